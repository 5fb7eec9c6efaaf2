"""A scripted client role: answers as the test says, and records what the gateway did with it.

For tests of whatever sits on `cocoon.client.interface`; the real client role has its own tests.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from cocoon.client.interface import OfferView, ReceiptView, ReplySummary
from cocoon.errors import CocoonError, LocalProtocolError
from cocoon.ports import Connection, Delta, DialFailure
from cocoon.types import Digest, FinishReason, Nano, PeerId, Prices, TrustLevel, Usage, due_nano

PROVIDER = PeerId("12D3KooWFakeProvider")


def offer(
    name: str = "cocoon-tiny",
    *,
    digest: bytes | None = None,
    prices: Prices | None = None,
    provider: PeerId = PROVIDER,
) -> OfferView:
    """An offer with plain values."""
    model = digest if digest is not None else hashlib.sha256(name.encode()).digest()
    return OfferView(
        digest=hashlib.sha256(b"offer" + model).digest(),
        model=model,
        model_name=name,
        provider=provider,
        operator=b"\x01" * 32,
        addresses=("/ip4/127.0.0.1/tcp/1",),
        prices=prices or Prices(input_nano=0, cached_input_nano=0, output_nano=0),
        context_tokens_max=2_048,
        output_tokens_max=1_024,
        first_token_p50_ms=10,
        tokens_per_s_p50=100,
        slots=4,
        running=0,
        queued=0,
        features=("tools", "json_schema", "logprobs", "completions"),
        trust=TrustLevel.OPEN,
        region="",
        age_s=1.0,
        expires_in_s=600.0,
    )


@dataclass(kw_only=True)
class Script:
    """What one generation does. A step is a delta, an error to raise, or a number of seconds to wait."""

    steps: Sequence[Delta | CocoonError | BaseException | float] = ()
    accept_after_s: float = 0.0
    refuse: CocoonError | BaseException | None = None  # instead of accepting
    finish_reason: FinishReason = FinishReason.STOP
    prompt_tokens: int = 7
    offer: OfferView = field(default_factory=offer)
    attempts: tuple[str, ...] = ()


def words(text: str) -> list[Delta]:
    """A delta per word."""
    parts = [word + " " for word in text.split(" ")]
    parts[-1] = parts[-1].rstrip()
    return [Delta(text=part, token_ids=(index,)) for index, part in enumerate(parts)]


class FakeReply:
    """A reply that follows a script."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._tokens = 0
        self._ended = False
        self.first_token_ms: float | None = None
        self.prompt_tokens = 0
        self.decisions: tuple[Any, ...] = ()

    @property
    def provider(self) -> PeerId:
        return self._script.offer.provider

    @property
    def offer(self) -> OfferView:
        return self._script.offer

    @property
    def trust(self) -> TrustLevel:
        return TrustLevel.OPEN

    @property
    def attempts(self) -> tuple[str, ...]:
        return self._script.attempts

    async def __aiter__(self) -> AsyncIterator[Delta]:
        for step in self._script.steps:
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, (int, float)):
                await trio.sleep(step)
                continue
            await trio.lowlevel.checkpoint()
            if self.first_token_ms is None:
                self.first_token_ms = 12.5
                self.prompt_tokens = self._script.prompt_tokens
            self._tokens += len(step.token_ids)
            yield step
        self._ended = True

    @property
    def cost_nano(self) -> Nano:
        if not self._tokens:
            return 0
        return due_nano(
            self.offer.prices,
            input_tokens=self._script.prompt_tokens,
            cached_tokens=0,
            output_tokens=self._tokens,
        )

    @property
    def summary(self) -> ReplySummary:
        if not self._ended:
            raise LocalProtocolError("the reply has not ended")
        prompt = self._script.prompt_tokens
        due = due_nano(self.offer.prices, input_tokens=prompt, cached_tokens=0, output_tokens=self._tokens)
        receipt = ReceiptView(
            verified=True,
            session=b"\x05" * 32,
            request_id=3,
            prompt_tokens=prompt,
            cached_tokens=0,
            completion_tokens=self._tokens,
            due_nano=due,
            signature=b"\x06" * 64,
            body=b"receipt",
        )
        usage = Usage(prompt_tokens=prompt, completion_tokens=self._tokens)
        return ReplySummary(finish_reason=self._script.finish_reason, usage=usage, receipt=receipt, cost_nano=due)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of `generate`."""

    endpoint: str
    body: Mapping[str, Any]
    spend_max_nano: Nano


class FakeClientRole:
    """Implements `ClientRole`. `script` gives each call its script by the body that it got."""

    def __init__(
        self, script: Script | Callable[[Mapping[str, Any]], Script], *, offers: Sequence[OfferView] | None = None
    ) -> None:
        self._script = script
        self._offers = tuple(offers) if offers is not None else (offer(),)
        self.calls: list[Call] = []
        self.running = 0
        self.cancelled = 0
        self.changed = trio.Event()  # set anew at each change of `running`

    @property
    def peer(self) -> PeerId:
        return PeerId("12D3KooWFakeClient")

    @asynccontextmanager
    async def generate(
        self, endpoint: str, body: Mapping[str, Any], *, spend_max_nano: Nano
    ) -> AsyncIterator[FakeReply]:
        self.calls.append(Call(endpoint=endpoint, body=body, spend_max_nano=spend_max_nano))
        script = self._script if isinstance(self._script, Script) else self._script(body)
        self._count(+1)
        reply = FakeReply(script)
        try:
            await trio.sleep(script.accept_after_s)
            if script.refuse is not None:
                raise script.refuse
            yield reply
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self.running += change
        self.changed.set()
        self.changed = trio.Event()

    async def wait_running(self, count: int) -> None:
        """Until exactly so many generations run."""
        while self.running != count:
            await self.changed.wait()

    async def offers(self, model: str | None = None, *, wait_s: float = 0.0) -> tuple[OfferView, ...]:
        return tuple(one for one in self._offers if model is None or one.model_name == model)

    account_left_nano: Nano | None = None

    def connections(self) -> tuple[Connection, ...]:
        return (Connection(peer=PROVIDER, address="/ip4/127.0.0.1/tcp/1", outbound=True, opened_ns=0),)

    def dial_failures(self) -> tuple[DialFailure, ...]:
        return ()


def digest_of(name: str) -> Digest:
    """The model digest that `offer(name)` uses."""
    return hashlib.sha256(name.encode()).digest()
