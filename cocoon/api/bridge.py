"""`AsyncClient` for asyncio programs (`cocoon.aio`): trio in a thread, its futures awaited here.

Cancelling an asyncio task cancels what it awaited in the trio thread, and so the request at the provider.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar

from ..client.interface import OfferView
from ..errors import Unavailable
from ..trust import TrustPolicy
from ..types import Nano
from . import native
from .terms import OFFERS_WAIT_S, OPEN_TIMEOUT_S, Model, open_terms, spend_limit
from .thread import ClientThread, ReplyFacts, ThreadedClient

T = TypeVar("T")


class AsyncClient(ThreadedClient):
    """A client peer for asyncio. Made by `AsyncClient.open`; every method may be called from any task."""

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
        """As `cocoon.Client.open`, in an `async with` block."""
        terms = open_terms(
            bootstrap=bootstrap, trust=trust, network=network, timeout_s=timeout_s, home=home, account=account
        )
        async with cls.over(
            lambda: native.AsyncClient.open(
                bootstrap=terms.bootstrap,
                trust=terms.trust,
                network=terms.network.label,
                timeout_s=terms.timeout_s,
                home=terms.home.path,
                account="auto" if terms.pays else "none",
            )
        ) as client:
            yield client

    @classmethod
    @asynccontextmanager
    async def over(
        cls, opening: Callable[[], AbstractAsyncContextManager[native.AsyncClient]]
    ) -> AsyncIterator[AsyncClient]:
        """A client over whatever trio client `opening()` opens in the thread."""
        thread = ClientThread()
        try:
            opened = await asyncio.to_thread(thread.start, opening)
            yield cls(thread, await asyncio.wrap_future(opened))
        finally:
            await asyncio.shield(asyncio.to_thread(thread.stop))

    async def chat(
        self, *, model: str, messages: Sequence[Mapping[str, Any]], spend_max: Nano | None = None, **params: Any
    ) -> AsyncReply:
        """As `cocoon.Client.chat`."""
        limit = spend_limit(spend_max)

        async def start() -> native.AsyncReply:
            return await self._client.chat(model=model, messages=messages, spend_max=limit, **params)

        return AsyncReply(self._thread, await over(self._thread, start))

    async def complete(self, *, model: str, prompt: str, spend_max: Nano | None = None, **params: Any) -> AsyncReply:
        """As `cocoon.Client.complete`."""
        limit = spend_limit(spend_max)

        async def start() -> native.AsyncReply:
            return await self._client.complete(model=model, prompt=prompt, spend_max=limit, **params)

        return AsyncReply(self._thread, await over(self._thread, start))

    async def models(self, *, wait_s: float = OFFERS_WAIT_S) -> tuple[Model, ...]:
        """What the network offers now, by name."""

        async def ask() -> tuple[Model, ...]:
            return await self._client.models(wait_s=wait_s)

        return await over(self._thread, ask)

    async def offers(self, model: str | None = None, *, wait_s: float = OFFERS_WAIT_S) -> tuple[OfferView, ...]:
        """Current offers, cheapest first."""

        async def ask() -> tuple[OfferView, ...]:
            return await self._client.offers(model, wait_s=wait_s)

        return await over(self._thread, ask)


class AsyncReply(ReplyFacts):
    """A running answer: `async for` its text."""

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        """The text that has come since; waits for some. Raises `StreamBroken` when the provider died."""
        text = await over(self._thread, self._reply.take)
        if text is None:
            raise StopAsyncIteration
        return text

    async def finish(self) -> AsyncReply:
        """Read to the end; the reply itself."""
        await over(self._thread, self._reply.finish)
        return self

    async def aclose(self) -> None:
        """Leave: the provider stops within a token."""
        await over(self._thread, self._reply.aclose)

    async def __aenter__(self) -> AsyncReply:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def over(thread: ClientThread, call: Callable[[], Awaitable[T]]) -> T:
    """The result of `call()` in the client's thread; cancelling here cancels there."""
    future = thread.submit(call)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            future.cancel()
            raise
        raise Unavailable("the client was closed meanwhile") from None
