"""A scripted role that behaves like the test model as far as an SDK can see: stops, lengths, tools, schemas, errors."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from cocoon.errors import InvalidRequest, ModelNotFound
from cocoon.ports import Delta, Logprob
from cocoon.types import FinishReason

from .client_role import FakeClientRole, Script

MODEL = "cocoon-tiny"
ANSWER = "Cocoon is a peer-to-peer network for private AI inference. Providers run models, and clients pay for tokens."
CONTEXT_TOKENS = 2_048


def tiny_role() -> FakeClientRole:
    """Answers like the test model, slowly enough to be cancelled."""
    return FakeClientRole(script_for)


def script_for(body: Mapping[str, Any]) -> Script:
    """What the model would do with this body."""
    if body["model"] != MODEL:
        near = difflib.get_close_matches(body["model"], [MODEL])
        return Script(refuse=ModelNotFound(f"no such model; near matches: {', '.join(near)}"))
    prompt_tokens = len(str(body.get("messages") or body.get("prompt"))) // 4
    if prompt_tokens > CONTEXT_TOKENS:
        return Script(refuse=InvalidRequest("too long", param="messages", kind="context_length_exceeded"))
    last = (body.get("messages") or [{"role": "user"}])[-1]
    if body.get("tools") and last["role"] == "user":
        return _tool_script(prompt_tokens)
    text = '{"answer":"a network"}' if body.get("response_format") else ANSWER
    finish = FinishReason.STOP
    for stop in body.get("stop") or ():
        text = text.partition(stop)[0]
    tokens = [text[start : start + 4] for start in range(0, len(text), 4)]
    if len(tokens) > body.get("max_tokens", 512):
        tokens, finish = tokens[: body["max_tokens"]], FinishReason.LENGTH
    steps: list[Any] = []
    for index, token in enumerate(tokens):
        steps += [0.002, Delta(text=token, token_ids=(index,), logprobs=_logprobs(body, index, token))]
    return Script(steps=steps, finish_reason=finish, prompt_tokens=prompt_tokens)


def _logprobs(body: Mapping[str, Any], token_id: int, token: str) -> tuple[Logprob, ...]:
    if not body.get("logprobs"):
        return ()
    top = ((token_id, token.encode(), -0.1), (999, b"\xe2\x82", -math.inf))[: body.get("top_logprobs", 0)]
    return (Logprob(token_id=token_id, token=token.encode(), logprob=-0.1, top=top),)


def _tool_script(prompt_tokens: int) -> Script:
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ""}}
    pieces = ['{"ci', 'ty":"Pa', 'ris"}']
    deltas = [Delta(tool_calls=(first,), token_ids=(1,))]
    deltas += [Delta(tool_calls=({"index": 0, "function": {"arguments": one}},), token_ids=(2,)) for one in pieces]
    return Script(steps=deltas, finish_reason=FinishReason.TOOL_CALLS, prompt_tokens=prompt_tokens)
