"""Server-sent events of a streamed answer: OpenAI's chunk objects, encoded with as little work per token as it takes.

Everything that stays the same in a stream is encoded once. One `encode` call makes one piece of bytes out of all
that has come since the last: the server writes it in one go. Order: the role first (chat), deltas, one
`finish_reason` per choice, the usage if asked for, `[DONE]`. After an error there is no `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from ..ports import Delta
from .generation import Choice, Event
from .objects import chat_logprobs, completion_logprobs, usage_object, x_cocoon

DONE: Final = b"data: [DONE]\n\n"
_END: Final = b"}\n\n"
_json = msgspec.json.Encoder().encode  # no line breaks in its output, so one `data:` line holds an object


def error_event(error: dict[str, Any]) -> bytes:
    """The event after which the stream ends early. SDKs raise on it."""
    return b"data: " + _json({"error": error}) + b"\n\n"


class ChunkEncoder:
    """Encodes one stream. `is_chat` chooses between chat chunks and plain completions."""

    def __init__(
        self,
        *,
        is_chat: bool,
        response_id: str,
        created: int,
        model: str,
        choices: Sequence[Choice],
        include_usage: bool,
        wants_logprobs: bool,
    ) -> None:
        kind = "chat.completion.chunk" if is_chat else "text_completion"
        head = {"id": response_id, "object": kind, "created": created, "model": model}
        self._head: Final = b"data: " + _json(head)[:-1] + b',"choices":['
        # With `include_usage` every chunk but the last says so with a null.
        self._tail: Final = (b'],"usage":null' if include_usage else b"]") + _END
        self._is_chat = is_chat
        self._choices = choices
        self._include_usage = include_usage
        self._wants_logprobs = wants_logprobs
        self._running = len(choices)
        self._begun = False
        self._offsets = dict.fromkeys(range(len(choices)), 0)  # characters of tokens so far, for `text_offset`
        if is_chat:
            opening, closing = b'"delta":{"content":', b'},"logprobs":null,"finish_reason":null}'
        else:
            opening, closing = b'"text":', b',"logprobs":null,"finish_reason":null}'
        self._text_heads: Final = [self._head + b'{"index":%d,' % choice.index + opening for choice in choices]
        self._text_tail: Final = closing + self._tail

    @property
    def is_finished(self) -> bool:
        """Whether `[DONE]` was encoded."""
        return not self._running

    def encode(self, batch: Sequence[Event]) -> bytes:
        """All chunks that a batch makes; the last batch's include everything up to `[DONE]`. May be empty."""
        parts: list[bytes] = []
        if not self._begun:
            self._begun = True
            if self._is_chat:
                parts += [self._role_chunk(choice.index) for choice in self._choices]
        for choice, delta in batch:
            if delta is None:
                self._running -= 1
                parts.append(self._finish_chunk(choice))
            elif delta.tool_calls or (delta.logprobs and self._wants_logprobs):
                parts.append(self._chunk(self._rich_choice(choice.index, delta)))
            elif delta.text:
                parts += [self._text_heads[choice.index], _json(delta.text), self._text_tail]
            # else: tokens whose text is not certain yet
        if not self._running:
            if self._include_usage:
                parts.append(self._usage_chunk())
            parts.append(DONE)
        return b"".join(parts)

    def failed(self, error: dict[str, Any]) -> bytes:
        """The event after which a broken stream ends."""
        return error_event(error)

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        return self._head + _json(choice) + self._tail

    def _role_chunk(self, index: int) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})

    def _rich_choice(self, index: int, delta: Delta) -> dict[str, Any]:
        logprobs: dict[str, Any] | None = None
        if delta.logprobs and self._wants_logprobs:
            if self._is_chat:
                logprobs = chat_logprobs(delta.logprobs)
            else:
                logprobs = completion_logprobs(delta.logprobs, offset=self._offsets[index])
                self._offsets[index] += sum(map(len, logprobs["tokens"]))
        if not self._is_chat:
            return {"index": index, "text": delta.text, "logprobs": logprobs, "finish_reason": None}
        content: dict[str, Any] = {}
        if delta.text or not delta.tool_calls:
            content["content"] = delta.text
        if delta.tool_calls:
            content["tool_calls"] = [{"index": 0, **call} for call in delta.tool_calls]
        return {"index": index, "delta": content, "logprobs": logprobs, "finish_reason": None}

    def _finish_chunk(self, choice: Choice) -> bytes:
        assert choice.summary is not None
        reason = choice.summary.finish_reason.value
        body: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
        encoded = _json({"index": choice.index, **body, "logprobs": None, "finish_reason": reason})
        if self._running or self._include_usage:
            return self._head + encoded + self._tail
        return self._head + encoded + b'],"x_cocoon":' + _json(x_cocoon(self._choices)) + _END

    def _usage_chunk(self) -> bytes:
        usages = [choice.summary.usage for choice in self._choices if choice.summary is not None]
        rest = b'],"usage":' + _json(usage_object(usages)) + b',"x_cocoon":' + _json(x_cocoon(self._choices))
        return self._head + rest + _END
