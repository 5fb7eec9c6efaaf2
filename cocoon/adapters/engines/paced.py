"""An engine without a model: invented words at a set pace, for tests, the simulator and `cocoon bench`.

It keeps the promises of the `Engine` port (the same contract suite runs over it), costs next to no CPU, and gives the
same words for the same prompt and seed, so that what lies around an engine can be measured and compared. Nothing
that serves people may select it: its name says `paced test engine` in every offer, and `cocoon serve` has no word
for it.
"""

# ruff: noqa: SIM905 - a list of 130 literals is no easier to read
from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import trio

from ...errors import EngineError, InvalidRequest
from ...ports.engine import Delta, EngineEvent, EngineInfo, EngineLoad, Finished, GenerationRequest, Logprob
from ...types import Feature, FinishReason, Usage
from .fields import kept_beginning
from .stops import StopWords

NAME: Final = "paced test engine"
VERSION: Final = "1"
QUEUED_MAX: Final = 4_096  # the simulator and benchmarks push thousands at once
BYTES_PER_TOKEN: Final = 4  # of a prompt; close to what real tokenizers do with English
LOGPROB: Final = -0.25

_WORDS: Final = (
    "a about after again all also and any are as at be been before but by can come could day did do down each even "
    "find first for from get give go good great had has have he her here him his how if in into is it just know like "
    "little long look made make man many may me more most much must my never new no not now of old on one only or "
    "other our out over own people put right said same say see she should so some still such take than that the "
    "their them then there these they thing think this those through time to too two under up us use very want was "
    "way we well were what when where which while who will with word work world would year you your"
).split()


class PacedEngine:
    """`tokens_per_s` per stream, the first token after `first_token_s`; an answer ends by itself after
    `answer_tokens`."""

    def __init__(
        self,
        *,
        slots: int = 16,
        tokens_per_s: float = 50.0,
        first_token_s: float = 0.02,
        answer_tokens: int = 128,
        context_tokens: int = 4_096,
    ) -> None:
        self._gap_s = 1 / tokens_per_s
        self._first_s = first_token_s
        self._answer_tokens = answer_tokens
        self._free = trio.Semaphore(slots, max_value=slots)
        self._running = 0
        self._queued = 0
        self._closed = False
        self._info = EngineInfo(
            name=NAME,
            version=VERSION,
            engine_digest=hashlib.sha256(f"cocoon/engine/v1\0{NAME}\0{VERSION}".encode()).digest(),
            context_tokens_max=context_tokens,
            slots=slots,
            vocabulary_size=len(_WORDS),
            features=Feature.COMPLETIONS | Feature.LOGPROBS,
        )

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self._info

    def load(self) -> EngineLoad:
        """Requests running and waiting now."""
        return EngineLoad(running=self._running, queued=self._queued)

    async def count_prompt_tokens(self, request: GenerationRequest) -> int:
        """One token per four bytes, and one per message. Raises `InvalidRequest` for roles it does not know."""
        await trio.lowlevel.checkpoint()
        return self._prompt_tokens(request)

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
        """Run it; see the port."""
        return self._generate(request)

    @asynccontextmanager
    async def _generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        prompt_tokens = self._prompt_tokens(request)
        if self._closed:
            raise EngineError("the engine is closed")
        if prompt_tokens >= self._info.context_tokens_max:
            raise InvalidRequest(
                f"the prompt has {prompt_tokens} tokens; the context holds {self._info.context_tokens_max}",
                param="messages" if "messages" in request.body else "prompt",
                kind="context_length_exceeded",
            )
        if request.body.get("tools") and request.body.get("tool_choice", "auto") != "none":
            raise InvalidRequest("the test engine calls no tools", param="tools", kind="unsupported_parameter")
        if request.body.get("response_format"):
            raise InvalidRequest("the test engine writes no JSON", param="response_format")
        if self._queued >= QUEUED_MAX:
            raise EngineError(f"{QUEUED_MAX} requests are waiting already", retryable=True)
        stream = _Stream(self, request.body, prompt_tokens, begun=len(_kept(request)))
        try:
            yield stream
        finally:
            stream.leave()

    def _prompt_tokens(self, request: GenerationRequest) -> int:
        return self._own_prompt_tokens(request) + len(_kept(request))

    def _own_prompt_tokens(self, request: GenerationRequest) -> int:
        if request.endpoint != "chat.completions":
            prompt = request.body.get("prompt")
            if not isinstance(prompt, str) or not prompt:
                raise InvalidRequest("prompt must be text", param="prompt")
            return _tokens(prompt)
        messages = request.body.get("messages") or ()
        for index, message in enumerate(messages):
            if message.get("role") not in ("system", "user", "assistant", "tool"):
                raise InvalidRequest(f"messages[{index}].role is unknown", param=f"messages[{index}].role")
        return 1 + sum(1 + _tokens(message.get("content") or "") for message in messages)

    async def aclose(self) -> None:
        """End everything; streams still open get `EngineError`."""
        self._closed = True
        await trio.lowlevel.checkpoint()


class _Stream:
    """One answer. It takes its slot when it is first read, and gives it back at its end or when it is left."""

    def __init__(self, engine: PacedEngine, body: Mapping[str, Any], prompt_tokens: int, *, begun: int) -> None:
        self._engine = engine
        self._prompt_tokens = prompt_tokens
        room = engine._info.context_tokens_max - prompt_tokens
        self._limit = min(body["max_tokens"], room)
        self._natural = max(1, engine._answer_tokens - begun)
        self._begun = begun  # tokens that another engine made
        self._stops = StopWords(body.get("stop") or ())
        self._logprobs = bool(body.get("logprobs"))
        subject = repr((body.get("messages"), body.get("prompt"), body.get("seed"))).encode()
        self._seed = hashlib.sha256(subject).digest()
        self._made = 0
        self._began_s = 0.0
        self._holds = False
        self._reason: FinishReason | None = None
        self._over = False

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> EngineEvent:
        if self._over:
            raise StopAsyncIteration
        if self._reason is not None:
            return self._finish(self._reason)
        if not self._holds:
            await self._take_slot()
        engine = self._engine
        await trio.sleep_until(self._began_s + engine._first_s + self._made * engine._gap_s)
        if engine._closed:
            self.leave()
            raise EngineError("the engine was closed")
        # Everything that is due by now goes into one delta, however late the reader is.
        due = 1 + math.floor((trio.current_time() - self._began_s - engine._first_s) / engine._gap_s + 1e-6)
        until = max(self._made + 1, min(due, self._limit, self._natural))
        ids = tuple(self._token(index) for index in range(self._made, until))
        self._made = until
        if self._made >= self._natural:
            self._reason = FinishReason.STOP
        elif self._made >= self._limit:
            self._reason = FinishReason.LENGTH
        text = self._settle([_piece(one) for one in ids])
        return Delta(
            text=text,
            token_ids=ids,
            logprobs=tuple(Logprob(token_id=one, token=_piece(one).encode(), logprob=LOGPROB) for one in ids)
            if self._logprobs
            else (),
        )

    async def _take_slot(self) -> None:
        engine = self._engine
        engine._queued += 1
        try:
            await engine._free.acquire()
        finally:
            engine._queued -= 1
        engine._running += 1
        self._holds = True
        self._began_s = trio.current_time()

    def _token(self, index: int) -> int:
        """The same for the same prompt, seed and place."""
        index += self._begun
        digest = hashlib.blake2b(self._seed + (index // 32).to_bytes(4, "big"), digest_size=32).digest()
        return digest[index % 32] * len(_WORDS) // 256

    def _settle(self, pieces: list[str]) -> str:
        """Text that is certain: cut at a stop word, and held while it may begin one."""
        text = "".join(self._stops.feed(piece) for piece in pieces)
        if self._stops.hit:
            self._reason = FinishReason.STOP
        elif self._reason is not None:
            text += self._stops.finish()
        return text

    def _finish(self, reason: FinishReason) -> Finished:
        self.leave()
        return Finished(
            finish_reason=reason, usage=Usage(prompt_tokens=self._prompt_tokens, completion_tokens=self._made)
        )

    def leave(self) -> None:
        """Give the slot back, once."""
        self._over = True
        if self._holds:
            self._holds = False
            self._engine._running -= 1
            self._engine._free.release()


def _kept(request: GenerationRequest) -> list[int]:
    return kept_beginning(request.continued, lambda one: _piece(one).encode() if one < len(_WORDS) else None)


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def _piece(token_id: int) -> str:
    return _WORDS[token_id] + " "
