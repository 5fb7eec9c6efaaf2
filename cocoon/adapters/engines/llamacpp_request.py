"""From an OpenAI body to what llama.cpp's completion endpoint takes. Pure functions.

The prompt is rendered and tokenised before (`Control`), so llama.cpp sees token ids only. The completion endpoint is
used for chats too: the chat endpoint keeps back the ids of tokens whose text it holds, and without exact ids nobody
can count what they pay for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ...errors import InvalidRequest
from ...ports.engine import GenerationRequest
from . import grammar, tool_calls
from .tool_calls import ToolFormat

TEMPERATURE: Final = 1.0  # OpenAI's defaults, not llama.cpp's
TOP_P: Final = 1.0
SEED_MASK: Final = 0xFFFFFFFF  # llama.cpp's seeds have 32 bits, and all ones mean "choose one"
TOP_LOGPROBS_MAX: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to run one request, once its prompt is known."""

    native: Mapping[str, Any] = field(repr=False)  # llama.cpp's body, without prompt and slot
    tools: ToolFormat | None  # how to read calls out of the answer; None: it is all text
    json_answer: bool  # the whole text must parse as JSON
    top_logprobs: int | None
    constrained: bool


def chat_body(request: GenerationRequest) -> dict[str, Any]:
    """What the chat template needs of the request: messages, and the tools unless none may be called."""
    messages = request.body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list with at least one message", param="messages")
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ("system", "user", "assistant", "tool"):
            # Templates skip roles that they do not know: the message would be lost without a word.
            raise InvalidRequest(f"messages[{index}].role is unknown", param=f"messages[{index}].role")
    body: dict[str, Any] = {"messages": messages}
    tools = request.body.get("tools")
    if tools and request.body.get("tool_choice", "auto") != "none":
        body["tools"] = tools
        if request.body.get("parallel_tool_calls") is not None:
            body["parallel_tool_calls"] = bool(request.body["parallel_tool_calls"])
    return body


def plan(request: GenerationRequest, form: ToolFormat | None, vocabulary_size: int) -> Plan:
    """Check and translate everything but the prompt. Raises `InvalidRequest`."""
    body = request.body
    top = _top_logprobs(body)
    rules, reader = _grammar(body, form)
    max_tokens = body["max_tokens"]
    native: dict[str, Any] = {
        "stream": True,
        "verbose": True,  # brings the token ids
        "return_progress": True,  # an event per piece of prompt, at which a cancelled request can leave
        "n_predict": max_tokens,
        "temperature": body.get("temperature", TEMPERATURE),
        "top_p": body.get("top_p", TOP_P),
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
        native["logit_bias"] = _biases(body["logit_bias"], vocabulary_size)
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


def _top_logprobs(body: Mapping[str, Any]) -> int | None:
    if not body.get("logprobs"):
        return None
    top = body.get("top_logprobs") or 0
    if isinstance(body["logprobs"], int) and not isinstance(body["logprobs"], bool):
        top = max(top, body["logprobs"])  # the completions endpoint's older spelling
    if not 0 <= top <= TOP_LOGPROBS_MAX:
        raise InvalidRequest(f"top_logprobs must be between 0 and {TOP_LOGPROBS_MAX}", param="top_logprobs")
    return int(top)


def _biases(given: Mapping[str, float], vocabulary_size: int) -> list[list[float]]:
    out: list[list[float]] = []
    for key, bias in given.items():
        token_id = int(key)
        if token_id >= vocabulary_size:
            raise InvalidRequest(f"logit_bias names a token beyond the {vocabulary_size} there are", param="logit_bias")
        out.append([token_id, bias])
    return out


def _grammar(body: Mapping[str, Any], form: ToolFormat | None) -> tuple[str, ToolFormat | None]:
    """(grammar or "", how to read tool calls or None)."""
    schema = _schema(body)
    tools: Sequence[Mapping[str, Any]] = body.get("tools") or ()
    choice = body.get("tool_choice", "auto")
    if not tools or choice == "none":
        return (grammar.json_grammar(schema, "response_format") if schema is not None else ""), None
    if form is None:
        raise InvalidRequest(
            "this model's chat template has no tools, or writes calls in a way that is not supported",
            param="tools",
            kind="unsupported_parameter",
        )
    named = choice["function"]["name"] if isinstance(choice, Mapping) else None
    rules = tool_calls.tool_grammar(
        form,
        tools,
        must=choice == "required" or named is not None,
        named=named,
        parallel=body.get("parallel_tool_calls", True) is not False,
        otherwise=schema,
    )
    return rules, form


def _schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    wanted = body.get("response_format")
    if not wanted or wanted.get("type") == "text":
        return None
    if wanted["type"] == "json_object":
        return grammar.ANY_OBJECT
    schema: Mapping[str, Any] = wanted["json_schema"]["schema"]
    return schema or grammar.ANY_OBJECT
