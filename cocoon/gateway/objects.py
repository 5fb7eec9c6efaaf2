"""OpenAI's objects made of deltas and summaries: usage, logprobs, tool calls, whole answers, models, `x_cocoon`.

Values in, JSON-ready values out. Streaming chunks are in `sse`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..client.interface import OfferView, ReplySummary
from ..ports import Delta, Logprob
from ..types import TrustLevel, Usage
from .generation import Choice

LOGPROB_MIN: Final = -9_999.0  # what OpenAI sends for "never"; JSON has no infinity


def finite_logprob(value: float) -> float:
    """A log probability that JSON can hold."""
    return value if math.isfinite(value) and value > LOGPROB_MIN else LOGPROB_MIN


def usage_object(usages: Sequence[Usage]) -> dict[str, Any]:
    """The usage of one HTTP request. With `n` choices the prompt counts once, as in OpenAI's API.

    What was paid is in `x_cocoon`, where every choice has its receipt.
    """
    prompt = usages[0].prompt_tokens if usages else 0
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usages[0].cached_tokens if usages else 0},
    }


def chat_logprobs(logprobs: Sequence[Logprob]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion."""
    return {"content": [_chat_logprob(one) for one in logprobs], "refusal": None}


def _chat_logprob(one: Logprob) -> dict[str, Any]:
    top = [_token(token, logprob) for _, token, logprob in one.top]
    return {**_token(one.token, one.logprob), "top_logprobs": top}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode("utf-8", "replace"), "logprob": finite_logprob(logprob), "bytes": list(token)}


def completion_logprobs(logprobs: Sequence[Logprob], *, offset: int) -> dict[str, Any]:
    """`choices[].logprobs` of a plain completion; `offset` is the number of characters before these tokens."""
    tokens = [one.token.decode("utf-8", "replace") for one in logprobs]
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [finite_logprob(one.logprob) for one in logprobs],
        "top_logprobs": [
            {token.decode("utf-8", "replace"): finite_logprob(logprob) for _, token, logprob in one.top}
            for one in logprobs
        ],
        "text_offset": offsets,
    }


def merge_tool_calls(calls: dict[int, dict[str, Any]], deltas: Sequence[Mapping[str, Any]]) -> None:
    """Add tool-call deltas to whole calls by their index: names are set, arguments grow."""
    for delta in deltas:
        index = delta.get("index", 0)
        call = calls.setdefault(index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call["id"] = delta.get("id") or call["id"]
        call["type"] = delta.get("type") or call["type"]
        function = delta.get("function") or {}
        call["function"]["name"] = function.get("name") or call["function"]["name"]
        call["function"]["arguments"] += function.get("arguments") or ""


@dataclass(slots=True, kw_only=True)
class WholeChoice:
    """One choice of an answer that is not streamed, as it grows."""

    index: int
    text: list[str] = field(default_factory=list, repr=False)
    logprobs: list[Logprob] = field(default_factory=list, repr=False)
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict, repr=False)

    def add(self, delta: Delta) -> None:
        """Take in a delta."""
        if delta.text:
            self.text.append(delta.text)
        if delta.logprobs:
            self.logprobs.extend(delta.logprobs)
        if delta.tool_calls:
            merge_tool_calls(self.tool_calls, delta.tool_calls)

    def chat(self, finish_reason: str, *, wants_logprobs: bool) -> dict[str, Any]:
        """As a choice of a chat completion."""
        text = "".join(self.text)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self.tool_calls:
            message["content"] = text or None
            message["tool_calls"] = [self.tool_calls[index] for index in sorted(self.tool_calls)]
        return {
            "index": self.index,
            "message": message,
            "logprobs": chat_logprobs(self.logprobs) if wants_logprobs else None,
            "finish_reason": finish_reason,
        }

    def completion(self, finish_reason: str, *, wants_logprobs: bool) -> dict[str, Any]:
        """As a choice of a plain completion."""
        return {
            "index": self.index,
            "text": "".join(self.text),
            "logprobs": completion_logprobs(self.logprobs, offset=0) if wants_logprobs else None,
            "finish_reason": finish_reason,
        }


# --- x_cocoon ----------------------------------------------------------------------------------------------


def x_cocoon(choices: Sequence[Choice]) -> dict[str, Any]:
    """Who served it, what was proven, what it cost. One choice: flat. Several: their sum, and each under `choices`."""
    first = _choice_object(choices[0])
    if len(choices) == 1:
        return first
    each = [{"index": choice.index, **_choice_object(choice)} for choice in choices]
    return {**first, "cost_nano": sum(one["cost_nano"] for one in each), "choices": each}


def _choice_object(choice: Choice) -> dict[str, Any]:
    reply, summary = choice.reply, choice.summary
    assert reply is not None and summary is not None
    return {
        "provider": reply.provider,
        "offer": reply.offer.digest.hex(),
        "model_digest": reply.offer.model.hex(),
        "trust": reply.trust.value,
        "trust_words": reply.trust.words,
        "receipt": receipt_object(summary),
        "cost_nano": summary.cost_nano,
        "ttft_ms": None if reply.first_token_ms is None else round(reply.first_token_ms, 3),
        "attempts": list(reply.attempts),
    }


def receipt_object(summary: ReplySummary) -> dict[str, Any]:
    """The receipt with the signed bytes themselves, so that anyone can check it again (rule H3)."""
    receipt = summary.receipt
    return {
        "verified": receipt.verified,
        "session": receipt.session.hex(),
        "request_id": receipt.request_id,
        "prompt_tokens": receipt.prompt_tokens,
        "cached_tokens": receipt.cached_tokens,
        "completion_tokens": receipt.completion_tokens,
        "due_nano": receipt.due_nano,
        "body": receipt.body.hex(),
        "signature": receipt.signature.hex(),
    }


# --- models ------------------------------------------------------------------------------------------------


def model_objects(offers: Sequence[OfferView], *, created: int) -> dict[str, dict[str, Any]]:
    """id → model object. A name that means two digests is listed as `name@digest`, once each (rule G5)."""
    digests: dict[str, set[bytes]] = {}
    for offer in offers:
        digests.setdefault(offer.model_name, set()).add(offer.model)
    groups: dict[str, list[OfferView]] = {}
    for offer in offers:
        name = offer.model_name
        groups.setdefault(name if len(digests[name]) == 1 else f"{name}@{offer.model.hex()}", []).append(offer)
    return {key: _model_object(key, group, created) for key, group in sorted(groups.items())}


def _model_object(key: str, offers: Sequence[OfferView], created: int) -> dict[str, Any]:
    strongest: TrustLevel = max((offer.trust for offer in offers), key=lambda level: level.rank)
    return {
        "id": key,
        "object": "model",
        "created": created,
        "owned_by": "cocoon",
        "x_cocoon": {
            "digest": offers[0].model.hex(),
            "offers": len(offers),
            "providers": len({offer.provider for offer in offers}),
            "context_tokens_max": max(offer.context_tokens_max for offer in offers),
            "output_tokens_max": max(offer.output_tokens_max for offer in offers),
            "price_input_min_nano": min(offer.prices.input_nano for offer in offers),
            "price_output_min_nano": min(offer.prices.output_nano for offer in offers),
            "features": sorted({feature for offer in offers for feature in offer.features}),
            "trust_claimed": strongest.value,
        },
    }
