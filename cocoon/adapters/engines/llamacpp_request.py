"""From an OpenAI body to what llama.cpp's completion endpoint takes. Pure functions.

The prompt is rendered and tokenised before (`Control`), so llama.cpp sees token ids only. The completion endpoint is
used for chats too: the chat endpoint keeps back the ids of tokens whose text it holds, and without exact ids nobody
can count what they pay for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ...ports.engine import GenerationRequest
from . import fields
from .tool_calls import ToolFormat

SEED_MASK: Final = 0xFFFFFFFF  # llama.cpp's seeds have 32 bits, and all ones mean "choose one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to run one request, once its prompt is known."""

    native: Mapping[str, Any] = field(repr=False)  # llama.cpp's body, without prompt and slot
    tools: ToolFormat | None  # how to read calls out of the answer; None: it is all text
    json_answer: bool  # the whole text must parse as JSON
    top_logprobs: int | None
    constrained: bool


def plan(request: GenerationRequest, form: ToolFormat | None, vocabulary_size: int) -> Plan:
    """Check and translate everything but the prompt. Raises `InvalidRequest`."""
    body = request.body
    top = fields.top_logprobs(body)
    rules, reader = fields.grammar_rules(body, form)
    max_tokens = body["max_tokens"]
    native: dict[str, Any] = {
        "stream": True,
        "verbose": True,  # brings the token ids
        "return_progress": True,  # an event per piece of prompt, at which a cancelled request can leave
        "n_predict": max_tokens,
        "temperature": body.get("temperature", fields.TEMPERATURE),
        "top_p": body.get("top_p", fields.TOP_P),
        "top_k": 0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "frequency_penalty": body.get("frequency_penalty", 0.0),
        "presence_penalty": body.get("presence_penalty", 0.0),
        "repeat_last_n": max_tokens,  # llama.cpp counts the prompt's end too while the answer is shorter than this
    }
    if body.get("seed") is not None:
        native["seed"] = int(body["seed"]) & SEED_MASK if int(body["seed"]) & SEED_MASK != SEED_MASK else 0
    if body.get("stop"):
        native["stop"] = list(body["stop"])
    if body.get("logit_bias"):
        native["logit_bias"] = [list(one) for one in fields.biases(body["logit_bias"], vocabulary_size)]
    if top is not None:
        native["n_probs"] = max(1, top)
    if rules:
        native["grammar"] = rules
    if reader is not None and reader.special:
        native["preserved_tokens"] = list(reader.special)
    return Plan(
        native=native,
        tools=reader,
        json_answer=bool(rules) and reader is None,
        top_logprobs=top,
        constrained=bool(rules),
    )
