"""An engine that says what it is told to, one word a token, at a given pace; with ways to fail."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from cocoon.errors import EngineError
from cocoon.ports import Delta, EngineEvent, EngineInfo, EngineLoad, Finished, GenerationRequest
from cocoon.types import Feature, FinishReason, Usage


class ScriptedEngine:
    """Answers every request with the same words; `token_s` apart, the first after `first_token_s`."""

    def __init__(
        self,
        text: str = "the quick brown fox jumps over the lazy dog",
        *,
        token_s: float = 0.001,
        first_token_s: float = 0.0,
        slots: int = 4,
        context_tokens_max: int = 2_048,
        fail_after: int | None = None,
    ) -> None:
        words = text.split(" ")
        self.pieces = [word if i == 0 else " " + word for i, word in enumerate(words)]
        self.token_s = token_s
        self.first_token_s = first_token_s
        self.fail_after = fail_after
        self.seen: list[GenerationRequest] = []
        self.cancelled = 0
        self.running = 0
        self._slots = trio.CapacityLimiter(slots)
        self._info = EngineInfo(
            name="scripted",
            version="1",
            engine_digest=hashlib.sha256(b"scripted 1").digest(),
            context_tokens_max=context_tokens_max,
            slots=slots,
            vocabulary_size=50_000,
            features=Feature.TOOLS | Feature.JSON_SCHEMA | Feature.LOGPROBS | Feature.COMPLETIONS,
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    async def count_prompt_tokens(self, request: GenerationRequest) -> int:
        await trio.lowlevel.checkpoint()
        return _words(request.body)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        self.seen.append(request)
        async with self._slots:
            self.running += 1
            events = self._events(request)
            try:
                yield events
            except BaseException:
                self.cancelled += 1
                raise
            finally:
                self.running -= 1
                await events.aclose()

    async def _events(self, request: GenerationRequest) -> AsyncIterator[Any]:
        await trio.sleep(self.first_token_s)
        most = int(request.body["max_tokens"])
        pieces = self.pieces[:most]
        for number, piece in enumerate(pieces):
            if self.fail_after is not None and number >= self.fail_after:
                raise EngineError("the scripted engine broke, as told")
            await trio.sleep(self.token_s)
            yield Delta(text=piece, token_ids=(number,))
        yield Finished(
            finish_reason=FinishReason.LENGTH if most < len(self.pieces) else FinishReason.STOP,
            usage=Usage(prompt_tokens=_words(request.body), completion_tokens=len(pieces)),
        )

    def load(self) -> EngineLoad:
        return EngineLoad(running=self.running, queued=0)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def _words(body: Any) -> int:
    if "prompt" in body:
        return len(body["prompt"].split())
    return sum(len(message["content"].split()) for message in body["messages"])
