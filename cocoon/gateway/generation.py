"""One HTTP request as one or several generations: fan-out over `n`, and what each did cost.

A single choice is iterated in place, without a task or a channel of its own: that is the path whose CPU cost per
token is measured. Several choices run in a nursery and meet in one bounded channel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import trio

from ..client.interface import ClientRole, Reply, ReplySummary
from ..errors import CocoonError
from ..market.selection import Choice as Decision
from ..ports import Delta
from ..types import Nano, PeerId, TrustLevel

SAMPLES_MAX: Final = 256
TRACES_MAX: Final = 64  # a decision keeps the offers that it was made over: some 100 kB each in a large market
SPENT_MAX: Final = 4_096  # requests whose cost makes the pace of spending
FAN_OUT_DELTAS_MAX: Final = 64  # waiting to be written, over all choices: about a frame's worth for eight of them


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedChoice:
    """How one answer came about, without the answer."""

    provider: PeerId | None  # None: nobody accepted
    trust: TrustLevel | None
    first_token_ms: float | None
    attempts: tuple[str, ...]
    decisions: tuple[Decision, ...]
    summary: ReplySummary | None
    cost_nano: Nano


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What `cocoon why` tells of one request. Nothing of what was said is kept alive by it."""

    id: str
    at_ns: int
    model: str
    status: str
    choices: tuple[TracedChoice, ...]


@dataclass(slots=True, kw_only=True, eq=False)
class GatewayRecord:
    """What this gateway has done since it started. Counts only, never content."""

    requests: int = 0
    running: int = 0  # choices: a request with n answers counts n times
    failed: int = 0
    completion_tokens: int = 0
    first_token_ms: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    traces: deque[Trace] = field(default_factory=lambda: deque(maxlen=TRACES_MAX))  # for `cocoon why`
    spent: deque[tuple[int, Nano]] = field(default_factory=lambda: deque(maxlen=SPENT_MAX))  # (ns, cost), the newest


@dataclass(slots=True, kw_only=True, eq=False)
class Choice:
    """One of the `n` answers, while and after it runs."""

    index: int
    reply: Reply | None = None  # once a provider accepted
    summary: ReplySummary | None = None  # once it ended well
    tokens: int = 0  # counted by us as they came

    def traced(self) -> TracedChoice:
        """For `cocoon why`."""
        reply = self.reply
        return TracedChoice(
            provider=None if reply is None else reply.provider,
            trust=None if reply is None else reply.trust,
            first_token_ms=None if reply is None else reply.first_token_ms,
            attempts=() if reply is None else reply.attempts,
            decisions=() if reply is None else tuple(reply.decisions),
            summary=self.summary,
            cost_nano=self.cost_nano(),
        )

    def cost_nano(self) -> Nano:
        """What it did cost: as the receipt says, or, broken off, our own count at the offer's prices (rule M4)."""
        if self.summary is not None:
            return self.summary.cost_nano
        if self.reply is None:
            return 0  # nobody accepted
        return self.reply.cost_nano


Event = tuple[Choice, Delta | None]
"""A delta of a choice, or None: the choice has ended and has its summary."""


class Generations(Protocol):
    """The running choices."""

    async def next_batch(self) -> Sequence[Event]:
        """What has come since the last call, at least one event; empty once all have ended.

        Raises what `Reply` raises; then the whole request has failed. Cancelling may lose deltas.
        """
        ...


@asynccontextmanager
async def open_generations(
    role: ClientRole, endpoint: str, bodies: Sequence[Mapping[str, Any]], choices: Sequence[Choice], *, each_nano: Nano
) -> AsyncIterator[Generations]:
    """Run one generation per body, `choices` being their record. Leaving early cancels all of them at the providers."""
    if len(bodies) == 1:
        async with role.generate(endpoint, bodies[0], spend_max_nano=each_nano) as reply:
            choices[0].reply = reply
            async with _closing(aiter(reply)) as deltas:
                yield _Single(choices[0], reply, deltas)
        return
    failure: CocoonError | None = None
    async with trio.open_nursery() as nursery:
        sender, receiver = trio.open_memory_channel[Event | CocoonError](FAN_OUT_DELTAS_MAX)
        for choice, body in zip(choices, bodies, strict=True):
            nursery.start_soon(_run_choice, role, endpoint, body, choice, each_nano, sender)
        try:
            yield _Fan(len(bodies), receiver)
        except CocoonError as error:  # carried past the nursery, which would wrap it in a group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@asynccontextmanager
async def _closing(deltas: AsyncIterator[Delta]) -> AsyncIterator[AsyncIterator[Delta]]:
    """Close the iterator where it was used, if it is a generator; trio's collector may not."""
    try:
        yield deltas
    finally:
        if isinstance(deltas, AsyncGenerator):
            await deltas.aclose()


class _Single:
    def __init__(self, choice: Choice, reply: Reply, deltas: AsyncIterator[Delta]) -> None:
        self._choice = choice
        self._reply = reply
        self._deltas = deltas

    async def next_batch(self) -> Sequence[Event]:
        choice = self._choice
        if choice.summary is not None:
            return ()
        try:
            delta = await anext(self._deltas)
        except StopAsyncIteration:
            choice.summary = self._reply.summary
            return ((choice, None),)
        choice.tokens += len(delta.token_ids)
        return ((choice, delta),)


class _Fan:
    def __init__(self, count: int, receiver: trio.MemoryReceiveChannel[Event | CocoonError]) -> None:
        self._running = count
        self._receiver = receiver

    async def next_batch(self) -> Sequence[Event]:
        if not self._running:
            return ()
        batch = [self._taken(await self._receiver.receive())]
        while self._running and len(batch) < FAN_OUT_DELTAS_MAX:
            try:
                batch.append(self._taken(self._receiver.receive_nowait()))
            except trio.WouldBlock:
                break
        return batch

    def _taken(self, item: Event | CocoonError) -> Event:
        if isinstance(item, CocoonError):
            raise item
        if item[1] is None:
            self._running -= 1
        return item


async def _run_choice(
    role: ClientRole,
    endpoint: str,
    body: Mapping[str, Any],
    choice: Choice,
    spend_max_nano: Nano,
    sender: trio.MemorySendChannel[Event | CocoonError],
) -> None:
    try:
        async with role.generate(endpoint, body, spend_max_nano=spend_max_nano) as reply:
            choice.reply = reply
            async with _closing(aiter(reply)) as deltas:
                async for delta in deltas:
                    choice.tokens += len(delta.token_ids)
                    await sender.send((choice, delta))
            choice.summary = reply.summary
        await sender.send((choice, None))
    except CocoonError as error:
        await sender.send(error)
