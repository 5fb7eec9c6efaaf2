"""`AsyncClient`: the client for trio programs. The other two run this one in a thread of its own.

A reply runs in a task of the client's nursery and hands text over through a bounded queue, so it may be iterated
anywhere, put aside, or left: no `async with` is needed around it. A reader that stops reading stops the provider, by
the credits of the session.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Final

import trio

from ..causes import single_cause
from ..client.interface import ClientRole, OfferView, ReceiptView, ReplySummary
from ..client.interface import Reply as RoleReply
from ..errors import LocalProtocolError, Unavailable
from ..ports import Connection, Delta, DialFailure
from ..trust import TrustPolicy
from ..types import FinishReason, Nano, PeerId, TrustLevel, Usage
from .terms import (
    OFFERS_WAIT_S,
    OPEN_TIMEOUT_S,
    Model,
    ToolCalls,
    chat_body,
    completion_body,
    ended,
    models_of,
    open_terms,
    spend_limit,
)

DELTAS_WAITING_MAX: Final = 64  # per reply; behind them the session's credits hold the provider back


class AsyncClient:
    """A client peer. Made by `AsyncClient.open`; every method may be called from any task."""

    def __init__(self, role: ClientRole, nursery: trio.Nursery) -> None:
        """Not for callers: use `open` or `over`."""
        self._role = role
        self._nursery = nursery
        self._is_open = True

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        bootstrap: Iterable[str] = (),
        trust: TrustPolicy | None = None,
        network: str = "devnet",
        home: str | os.PathLike[str] | None = None,
        timeout_s: float = OPEN_TIMEOUT_S,
        account: str = "auto",
    ) -> AsyncIterator[AsyncClient]:
        """Join the network as a fresh client peer, and leave it at the end of the block.

        `bootstrap` are multiaddrs that end in `/p2p/<peer>`. `trust` (from `cocoon.trust`) has no default. `home`
        is where models are pinned by name, and where the spending account is (`cocoon account open`) that pays; with
        `account="none"`, or without one, free offers only are used. One client at a time pays from a home. Raises
        `ConfigError`, `LocalProtocolError` when another client pays from this account, and
        `Unavailable` when no bootstrap peer answers within `timeout_s`; never an exception group.
        """
        terms = open_terms(
            bootstrap=bootstrap, trust=trust, network=network, timeout_s=timeout_s, home=home, account=account
        )
        from .opening import open_paying_role  # here: only opening a client pays for the network

        border = Border()
        async with border, open_paying_role(terms) as role, cls.over(role) as client:
            with border.body():
                yield client

    @classmethod
    @asynccontextmanager
    async def over(cls, role: ClientRole) -> AsyncIterator[AsyncClient]:
        """A client over a role that is already open. Replies still running are cancelled at the end."""
        border = Border()
        async with border, trio.open_nursery() as nursery:
            client = cls(role, nursery)
            try:
                with border.body():
                    yield client
            finally:
                client._is_open = False
                nursery.cancel_scope.cancel()

    async def chat(
        self, *, model: str, messages: Sequence[Mapping[str, Any]], spend_max: Nano | None = None, **params: Any
    ) -> AsyncReply:
        """Ask a model; returns once a provider has accepted.

        `messages` and `params` are OpenAI's (temperature, max_tokens, tools, ...). `spend_max` in nanoTON has no
        default: `ton("0.02")`. Raises `InvalidRequest`, `ModelNotFound`, `NoProvider`, `PriceTooHigh`,
        `AttestationError`, `Refused`, `Unavailable`. Cancelled, it cancels at the provider as well.
        """
        return await self._start("chat.completions", chat_body(model, messages, params), spend_limit(spend_max))

    async def complete(self, *, model: str, prompt: str, spend_max: Nano | None = None, **params: Any) -> AsyncReply:
        """Continue a text, without a chat template. Else as `chat`."""
        return await self._start("completions", completion_body(model, prompt, params), spend_limit(spend_max))

    async def models(self, *, wait_s: float = OFFERS_WAIT_S) -> tuple[Model, ...]:
        """What the network offers now, by name; waits up to `wait_s` for the first offer."""
        return models_of(await self.offers(wait_s=wait_s))

    async def offers(self, model: str | None = None, *, wait_s: float = OFFERS_WAIT_S) -> tuple[OfferView, ...]:
        """Current offers, cheapest first; waits up to `wait_s` for the first."""
        self._check_open()
        return await self._role.offers(model, wait_s=wait_s)

    @property
    def peer(self) -> PeerId:
        """Our own peer id, fresh for every client."""
        return self._role.peer

    def connections(self) -> tuple[Connection, ...]:
        """Live connections."""
        return self._role.connections()

    def dial_failures(self) -> tuple[DialFailure, ...]:
        """Why others could not be reached."""
        return self._role.dial_failures()

    async def _start(self, endpoint: str, body: Mapping[str, Any], spend_max_nano: Nano) -> AsyncReply:
        self._check_open()
        reply = AsyncReply()
        try:
            await self._nursery.start(reply._run, self._role, endpoint, body, spend_max_nano)
        except BaseExceptionGroup as group:
            raise single_cause(group) from None
        return reply

    def _check_open(self) -> None:
        if not self._is_open:
            raise LocalProtocolError("the client has been closed")


class AsyncReply:
    """A running answer: iterate for its text. Made by `AsyncClient.chat`."""

    def __init__(self) -> None:
        """Not for callers."""
        self._send, self._receive = trio.open_memory_channel[Delta](DELTAS_WAITING_MAX)
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._source: RoleReply | None = None
        self._failure: BaseException | None = None
        self._pieces: list[str] = []
        self._tool_calls = ToolCalls()
        self._summary: ReplySummary | None = None
        self._was_left = False

    async def _run(
        self,
        role: ClientRole,
        endpoint: str,
        body: Mapping[str, Any],
        spend_max_nano: Nano,
        task_status: Any,
    ) -> None:
        try:
            with self._scope:
                async with role.generate(endpoint, body, spend_max_nano=spend_max_nano) as source:
                    self._source = source
                    task_status.started()
                    async for delta in source:
                        await self._send.send(delta)
                    self._summary = source.summary
        except Exception as error:  # the boundary of one reply: what ends it is raised to its reader, and only there
            if self._source is None:
                raise
            self._failure = single_cause(error)
        finally:
            self._send.close()
            self._ended.set()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        """The next piece of text. Raises `StreamBroken` when the provider died, `EngineError` when its engine did."""
        while True:
            try:
                delta = await self._receive.receive()
            except trio.EndOfChannel:
                await self._ended.wait()
                self._raise_failure()
                raise StopAsyncIteration from None
            if text := self._take(delta):
                return text

    async def take(self) -> str | None:
        """All the text that is there by now, waiting for some; None at the end. For readers in other threads."""
        try:
            text = await self.__anext__()
        except StopAsyncIteration:
            return None
        pieces = [text]
        while True:
            try:
                pieces.append(self._take(self._receive.receive_nowait()))
            except (trio.WouldBlock, trio.EndOfChannel):
                return "".join(pieces)

    async def finish(self) -> AsyncReply:
        """Read to the end; the reply itself, so that `(await reply.finish()).text` is the whole answer."""
        async for _ in self:
            pass
        return self

    async def aclose(self) -> None:
        """Leave: the provider stops within a token. Fine to call at any time, more than once."""
        self._was_left = self._was_left or not self._ended.is_set()
        self._scope.cancel()
        await self._ended.wait()

    async def __aenter__(self) -> AsyncReply:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with trio.CancelScope(shield=True):
            await self.aclose()  # bounded: the role ends a cancelled request without waiting for the peer

    @property
    def text(self) -> str:
        """The text that was read so far; the whole answer after the end."""
        return "".join(self._pieces)

    @property
    def tool_calls(self) -> tuple[dict[str, Any], ...]:
        """OpenAI's tool calls as read so far; whole after the end."""
        return self._tool_calls.whole()

    @property
    def provider(self) -> PeerId:
        """Who serves it."""
        return self._running.provider

    @property
    def offer(self) -> OfferView:
        """Under which offer."""
        return self._running.offer

    @property
    def trust(self) -> TrustLevel:
        """What was proven of the provider before the prompt left."""
        return self._running.trust

    @property
    def first_token_ms(self) -> float | None:
        """From the call to the first text."""
        return self._running.first_token_ms

    @property
    def attempts(self) -> tuple[str, ...]:
        """Providers that were tried before this one, and why they did not serve."""
        return self._running.attempts

    @property
    def usage(self) -> Usage:
        """Token counts. This and the next three raise `LocalProtocolError` before the end."""
        return self._end.usage

    @property
    def receipt(self) -> ReceiptView:
        """The provider's signed receipt, checked against what we counted."""
        return self._end.receipt

    @property
    def cost(self) -> Nano:
        """What it cost, in nanoTON."""
        return self._end.cost_nano

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended."""
        return self._end.finish_reason

    @property
    def _running(self) -> RoleReply:
        assert self._source is not None  # `chat` returns a reply only once it is accepted
        return self._source

    @property
    def _end(self) -> ReplySummary:
        return ended(self._summary)

    def _take(self, delta: Delta) -> str:
        for call in delta.tool_calls:
            self._tool_calls.add(call)
        if delta.text:
            self._pieces.append(delta.text)
        return delta.text

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._summary is None and not self._was_left:
            raise Unavailable("the client was closed while the reply was running")


class Border:
    """Exception groups do not cross it: out comes what the caller's own block raised, else the single cause."""

    def __init__(self) -> None:
        self._body_error: BaseException | None = None

    @contextmanager
    def body(self) -> Iterator[None]:
        """Around the `yield` to the caller, to know its errors from ours."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, (trio.Cancelled, GeneratorExit)):
                self._body_error = error
            raise

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, BaseExceptionGroup):
            raise self._body_error or single_cause(error) from None
