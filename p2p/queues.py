"""Bounded queues between the network and its readers: the newest item is dropped, and counted, when the
reader is too slow. Nothing here ever makes the network wait."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class BoundedFeed(Generic[T]):
    """An async iterator over what `put_nowait` was given. Iteration ends after `aclose` or `close_nowait`."""

    def __init__(
        self,
        *,
        items_max: int,
        on_close: Callable[[], Awaitable[None]] | None = None,
        on_drop: Callable[[], None] | None = None,
    ) -> None:
        self._send, self._receive = trio.open_memory_channel[T](items_max)
        self._on_close = on_close
        self._on_drop = on_drop
        self._closed = False
        self.dropped = 0

    def put_nowait(self, item: T) -> bool:
        """Whether the item found room. After the end nothing is kept, nor counted as dropped."""
        if self._closed:
            return False
        try:
            self._send.send_nowait(item)
        except trio.WouldBlock:
            self.dropped += 1
            if self._on_drop is not None:
                self._on_drop()
            return False
        return True

    def __aiter__(self) -> BoundedFeed[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self._receive.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise StopAsyncIteration from None

    def close_nowait(self) -> None:
        """End the iteration without telling the owner: for the owner itself."""
        self._closed = True
        self._send.close()
        self._receive.close()

    async def aclose(self) -> None:
        if self._closed:
            return
        self.close_nowait()
        if self._on_close is not None:
            with trio.move_on_after(1) as scope:  # leaving is local work and one message to neighbours
                scope.shield = True
                await self._on_close()
