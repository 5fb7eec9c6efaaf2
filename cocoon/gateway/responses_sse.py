"""The events of a streamed response, in the order in which OpenAI sends them.

    response.created, response.in_progress,
    response.output_item.added, response.content_part.added, response.output_text.delta …,
    response.output_text.done, response.content_part.done, response.output_item.done,
    response.output_item.added, response.function_call_arguments.delta …, ….done, response.output_item.done,
    response.completed | response.incomplete

There is no `[DONE]`. After a failure the last event is `error`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ..ports import Delta
from ..types import FinishReason
from .generation import Choice, Event
from .objects import chat_logprobs, merge_tool_calls
from .responses import call_item, finished, message_item, new_id, text_part

_json = msgspec.json.Encoder().encode  # no line breaks in its output


class ResponsesEncoder:
    """Encodes one stream; `encode` as `sse.ChunkEncoder` has it."""

    def __init__(self, *, response: Mapping[str, Any], choice: Choice, wants_logprobs: bool) -> None:
        self._response = response
        self._choice = choice
        self._wants_logprobs = wants_logprobs
        self._number = 0
        self._begun = False
        self._is_finished = False
        self._output: list[dict[str, Any]] = []  # whole items
        self._message_id: str | None = None  # of the text that is being written
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._waiting: list[dict[str, Any]] = []  # log-probabilities of tokens whose text is not certain yet
        self._calls: dict[int, dict[str, Any]] = {}
        self._call_ids: dict[int, str] = {}
        self._open_call: int | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the last event was encoded."""
        return self._is_finished

    def encode(self, batch: Sequence[Event]) -> bytes:
        """All events that a batch makes. May be empty."""
        parts: list[bytes] = []
        if not self._begun:
            self._begun = True
            parts += [self._event(f"response.{word}", response=self._response) for word in ("created", "in_progress")]
        for _, delta in batch:
            if delta is None:
                parts += self._end()
            else:
                parts += self._delta(delta)
        return b"".join(parts)

    def failed(self, error: Mapping[str, Any]) -> bytes:
        """The last event of a stream that broke. SDKs raise on it."""
        return self._event(
            "error",
            error=error,
            code=error.get("code"),
            message=error.get("message"),
            param=error.get("param"),
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = _json({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def _delta(self, delta: Delta) -> list[bytes]:
        parts: list[bytes] = []
        if delta.logprobs and self._wants_logprobs:
            self._waiting += chat_logprobs(delta.logprobs)["content"]
        if delta.text:
            parts += self._close_call()
            parts += self._open_message()
            logprobs, self._waiting = self._waiting, []
            self._text.append(delta.text)
            self._logprobs += logprobs
            parts.append(self._in_text("response.output_text.delta", delta=delta.text, logprobs=logprobs))
        for one in delta.tool_calls:
            parts += self._call(one)
        return parts

    def _open_message(self) -> list[bytes]:
        if self._message_id is not None:
            return []
        self._message_id = new_id("msg")
        item = message_item(self._message_id, "in_progress", [])
        return [
            self._event("response.output_item.added", output_index=len(self._output), item=item),
            self._in_text("response.content_part.added", part=text_part("")),
        ]

    def _in_text(self, kind: str, **fields: Any) -> bytes:
        place = {"item_id": self._message_id, "output_index": len(self._output), "content_index": 0}
        return self._event(kind, **place, **fields)

    def _close_message(self, status: str = "completed") -> list[bytes]:
        if self._message_id is None:
            return []
        words = "".join(self._text)
        self._logprobs += self._waiting  # of the last tokens, which had no text of their own
        self._waiting = []
        part = text_part(words, self._logprobs)
        item = message_item(self._message_id, status, [part])
        parts = [
            self._in_text("response.output_text.done", text=words, logprobs=self._logprobs),
            self._in_text("response.content_part.done", part=part),
            self._event("response.output_item.done", output_index=len(self._output), item=item),
        ]
        self._output.append(item)
        self._message_id, self._text, self._logprobs = None, [], []
        return parts

    def _call(self, delta: Mapping[str, Any]) -> list[bytes]:
        index = delta.get("index", 0)
        parts = self._close_message()
        if index != self._open_call:
            parts += self._close_call()
            merge_tool_calls(self._calls, [delta])
            self._open_call, self._call_ids[index] = index, new_id("fc")
            call = self._calls[index]
            item = call_item(self._call_ids[index], "in_progress", call) | {"arguments": ""}
            parts.append(self._event("response.output_item.added", output_index=len(self._output), item=item))
        else:
            merge_tool_calls(self._calls, [delta])
        piece = (delta.get("function") or {}).get("arguments")
        if piece:
            parts.append(self._in_call("response.function_call_arguments.delta", delta=piece))
        return parts

    def _in_call(self, kind: str, **fields: Any) -> bytes:
        assert self._open_call is not None
        return self._event(kind, item_id=self._call_ids[self._open_call], output_index=len(self._output), **fields)

    def _close_call(self, status: str = "completed") -> list[bytes]:
        if self._open_call is None:
            return []
        call = self._calls[self._open_call]
        item = call_item(self._call_ids[self._open_call], status, call)
        done = self._in_call("response.function_call_arguments.done", arguments=item["arguments"], name=item["name"])
        parts = [done, self._event("response.output_item.done", output_index=len(self._output), item=item)]
        self._output.append(item)
        self._open_call = None
        return parts

    def _end(self) -> list[bytes]:
        assert self._choice.summary is not None
        self._is_finished = True
        is_cut = self._choice.summary.finish_reason is FinishReason.LENGTH
        status = "incomplete" if is_cut else "completed"
        parts: list[bytes] = []
        if not self._output and self._message_id is None and self._open_call is None:
            parts += self._open_message()  # an answer without any text is an empty message
        parts += self._close_message(status) + self._close_call(status)
        response = finished(self._response, self._output, self._choice)
        parts.append(self._event(f"response.{status}", response=response))
        return parts
