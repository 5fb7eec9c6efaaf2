"""From llama.cpp's events to ours, with an exact account of tokens. No I/O.

llama.cpp sends one event per token, with one exception: a token that leaves the text in the middle of a character
sends none, and the event of the token that completes the character names only that last one. The event does say how
many tokens there are by now, and its text holds the bytes of all of them; so the missing ids are found by splitting
those bytes into that many tokens of the vocabulary (`MissingTokens`). Tokens of a character that never completes are
neither delivered nor counted: `Usage.completion_tokens` is always the number of ids given out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from ...errors import CocoonError, EngineError, InvalidRequest
from ...ports.engine import Delta, Finished, Logprob
from ...types import FinishReason, Usage
from ..gguf import Vocabulary
from .tool_calls import ToolCallReader

MISSING_MAX: Final = 3  # a character has at most four bytes; more missing tokens than this end a split early


class _Alternative(msgspec.Struct):
    id: int
    logprob: float


class _Probability(msgspec.Struct):
    id: int
    logprob: float
    top_logprobs: list[_Alternative] = []


class _Logprobs(msgspec.Struct):
    content: list[_Probability]


class _Choice(msgspec.Struct):
    text: str = ""
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Verbose(msgspec.Struct):
    tokens: list[int] = []
    tokens_predicted: int = 0


class _PromptDetails(msgspec.Struct):
    cached_tokens: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Error(msgspec.Struct):
    code: int = 500
    message: str = ""
    type: str = ""


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    verbose: _Verbose | None = msgspec.field(name="__verbose", default=None)
    usage: _Usage | None = None
    prompt_progress: msgspec.Raw | None = None
    error: _Error | None = None


_DECODER: Final = msgspec.json.Decoder(_Event)


class Translator:
    """The events of one generation. `translate` takes them in order, any number at a time."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        missing: MissingTokens,
        *,
        prompt_tokens: int,
        top_logprobs: int | None,
        reader: ToolCallReader | None,
        keep_text: bool,
    ) -> None:
        self._vocabulary = vocabulary
        self._missing = missing
        self._prompt_tokens = prompt_tokens
        self._top = top_logprobs
        self._reader = reader
        self._kept: list[str] | None = [] if keep_text else None
        self._seen = 0  # tokens that llama.cpp has made
        self._given = 0  # ids that we gave out
        self._owed = b""  # bytes of tokens given out whose text llama.cpp holds back: they may begin a stop word

    def __repr__(self) -> str:
        return "Translator()"

    @property
    def text(self) -> str:
        """All text so far, if it was to be kept."""
        return "".join(self._kept or ())

    def translate(self, events: Iterable[bytes]) -> tuple[Delta | None, Finished | None]:
        """One delta for all of them, and the end if it is among them. Raises `InvalidRequest`, `EngineError`."""
        ids: list[int] = []
        logprobs: list[Logprob] = []
        pieces: list[str] = []
        last: _Event | None = None
        for data in events:
            try:
                event = _DECODER.decode(data)
            except msgspec.DecodeError as error:
                raise EngineError("llama.cpp sent an event that cannot be read") from error
            if event.error is not None:
                raise mapped_error(event.error.code, event.error.type, event.error.message)
            if event.usage is not None:
                last = event
            elif event.prompt_progress is None:
                self._token(event, ids, logprobs, pieces)
        self._given += len(ids)
        text = "".join(pieces)
        calls: tuple[dict[str, Any], ...] = ()
        if self._kept is not None:
            self._kept.append(text)
        if self._reader is not None:
            text, calls = self._split(text, last is not None)
        delta = None
        if text or ids or calls:
            delta = Delta(text=text, token_ids=tuple(ids), logprobs=tuple(logprobs), tool_calls=calls)
        return delta, self._finished(last) if last is not None else None

    def _token(self, event: _Event, ids: list[int], logprobs: list[Logprob], pieces: list[str]) -> None:
        choice, verbose = event.choices[0], event.verbose
        if verbose is None or not verbose.tokens:
            raise EngineError("llama.cpp sent a token without its id")
        token_id = verbose.tokens[0]
        hidden = verbose.tokens_predicted - self._seen - 1
        self._seen = verbose.tokens_predicted
        if hidden > 0:
            ids.extend(self._missing.find(choice.text.encode()[len(self._owed) :], token_id, hidden))
        ids.append(token_id)
        if choice.text:
            pieces.append(choice.text)
            self._owed = b""
        else:
            self._owed += self._vocabulary.piece(token_id)
        if self._top is not None and choice.logprobs is not None:
            logprobs.extend(self._logprob(one) for one in choice.logprobs.content)

    def _logprob(self, one: _Probability) -> Logprob:
        piece = self._vocabulary.piece
        top = tuple((other.id, piece(other.id), other.logprob) for other in one.top_logprobs[: self._top or 0])
        return Logprob(token_id=one.id, token=piece(one.id), logprob=one.logprob, top=top)

    def _split(self, text: str, ended: bool) -> tuple[str, tuple[dict[str, Any], ...]]:
        assert self._reader is not None
        text, calls = self._reader.feed(text)
        if ended:
            text += self._reader.finish()
        return text, tuple(calls)

    def _finished(self, last: _Event) -> Finished:
        details = last.usage.prompt_tokens_details if last.usage is not None else None
        word = last.choices[0].finish_reason if last.choices else None
        reason = FinishReason.LENGTH if word == "length" else FinishReason.STOP
        if reason is FinishReason.STOP and self._reader is not None and self._reader.calls:
            reason = FinishReason.TOOL_CALLS
        return Finished(
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=self._prompt_tokens,
                completion_tokens=self._given,
                cached_tokens=min(details.cached_tokens, self._prompt_tokens) if details is not None else 0,
            ),
        )


def mapped_error(code: int, kind: str, message: str) -> CocoonError:
    """llama.cpp's error as one of ours."""
    if kind == "exceed_context_size_error":
        return InvalidRequest(
            "the prompt is longer than this model's context", param="messages", kind="context_length_exceeded"
        )
    if code == 400:
        return InvalidRequest(message[:300])
    return EngineError(f"llama.cpp: {message[:300]}")


class MissingTokens:
    """Finds tokens that llama.cpp did not name, by the bytes they must have.

    Where two splits fit the same bytes, the one with the longer token first is taken, which is what byte-level BPE
    makes of most characters: count and bytes are exact in any case.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._by_bytes: dict[bytes, int] | None = None

    def find(self, data: bytes, last: int, count: int) -> list[int]:
        """Ids of `count` tokens that with `last` make up `data`; [] if none fit (llama.cpp replaced broken bytes)."""
        tail = self._vocabulary.piece(last)
        if count > MISSING_MAX or not tail or not data.endswith(tail):
            return []
        return self._split(data[: len(data) - len(tail)], count) or []

    def _split(self, data: bytes, count: int) -> list[int] | None:
        """`count` tokens that are exactly `data`."""
        table = self._table()
        if count == 1:
            found = table.get(data)
            return None if found is None else [found]
        for size in range(len(data) - count + 1, 0, -1):
            first = table.get(data[:size])
            rest = self._split(data[size:], count - 1) if first is not None else None
            if first is not None and rest is not None:
                return [first, *rest]
        return None

    def _table(self) -> dict[bytes, int]:
        """Tokens that are not whole characters: only those can be missing. Built at the first need: 0.2 s at worst."""
        if self._by_bytes is None:
            table: dict[bytes, int] = {}
            for token_id in range(len(self._vocabulary.tokens)):
                piece = self._vocabulary.piece(token_id)
                if piece and (piece[-1] & 0x80):
                    table.setdefault(piece, token_id)
            self._by_bytes = table
        return self._by_bytes
