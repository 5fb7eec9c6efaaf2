"""A trio client in a thread of its own, for programs that are not trio programs.

`blocking` waits for the futures, `bridge` awaits them. Cancelling a future cancels the call in the trio thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Final, TypeVar

import trio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from ..causes import single_cause
from ..client.interface import OfferView, ReceiptView
from ..errors import LocalProtocolError
from ..ports import Connection, DialFailure
from ..types import FinishReason, Nano, PeerId, TrustLevel, Usage
from .native import AsyncClient, AsyncReply

T = TypeVar("T")

CLOSE_TIMEOUT_S: Final = 10.0  # the roles close within a few seconds; after that the thread is left to its end


class ClientThread:
    """Owns the thread, and the client that lives in it."""

    def __init__(self) -> None:
        self._portal_manager: AbstractContextManager[BlockingPortal] | None = None
        self._portal: BlockingPortal | None = None
        self._stop = trio.Event()
        self._opened: Future[AsyncClient] | None = None
        self._held: Future[None] | None = None

    def start(self, opening: Callable[[], AbstractAsyncContextManager[AsyncClient]]) -> Future[AsyncClient]:
        """Start the thread and open a client in it. Cancelling the future, or its failing, needs a `stop` too."""
        self._portal_manager = start_blocking_portal("trio", name="cocoon-client")
        self._portal = self._portal_manager.__enter__()
        opened: Future[AsyncClient] = Future()
        self._opened = opened
        self._held = self._portal.start_task_soon(self._hold, opening, opened)
        return opened

    def submit(self, call: Callable[..., Awaitable[T]], *args: Any) -> Future[T]:
        """Run `call(*args)` in the thread. Raises `LocalProtocolError` when the client is closed."""
        if self._portal is None or self._held is None or self._held.done():
            raise LocalProtocolError("the client has been closed")
        try:
            return self._portal.start_task_soon(call, *args)
        except RuntimeError as error:  # anyio's way of saying that the portal has stopped meanwhile
            raise LocalProtocolError("the client has been closed") from error

    def stop(self) -> None:
        """Close the client and end the thread; blocks for at most `CLOSE_TIMEOUT_S`. Safe to call twice."""
        manager, self._portal_manager = self._portal_manager, None
        portal, self._portal = self._portal, None
        if manager is None or portal is None or self._held is None:
            return
        try:
            if self._opened is not None and not self._opened.done():
                self._held.cancel()  # nobody waits for it any more
            elif not self._held.done():
                portal.start_task_soon(self._ask_to_stop)
            self._held.exception(timeout=CLOSE_TIMEOUT_S)
        except (CancelledError, TimeoutError):
            self._held.cancel()
        finally:
            manager.__exit__(None, None, None)

    async def _hold(
        self, opening: Callable[[], AbstractAsyncContextManager[AsyncClient]], opened: Future[AsyncClient]
    ) -> None:
        try:
            async with opening() as client:
                if opened.set_running_or_notify_cancel():
                    opened.set_result(client)
                    await self._stop.wait()
        except Exception as error:  # the boundary of the thread: whatever ends the client is the caller's to see
            if not opened.done():
                opened.set_exception(single_cause(error))
        finally:
            if not opened.done():
                opened.cancel()

    async def _ask_to_stop(self) -> None:
        self._stop.set()


class ThreadedClient:
    """What can be asked of a client in another thread without waiting."""

    def __init__(self, thread: ClientThread, client: AsyncClient) -> None:
        """Not for callers: use `open`."""
        self._thread = thread
        self._client = client

    @property
    def peer(self) -> PeerId:
        """Our own peer id, fresh for every client."""
        return self._client.peer

    def connections(self) -> tuple[Connection, ...]:
        """Live connections."""
        return self._client.connections()

    def dial_failures(self) -> tuple[DialFailure, ...]:
        """Why others could not be reached."""
        return self._client.dial_failures()


class ReplyFacts:
    """What is known of a reply in another thread, without waiting."""

    def __init__(self, thread: ClientThread, reply: AsyncReply) -> None:
        """Not for callers."""
        self._thread = thread
        self._reply = reply

    @property
    def text(self) -> str:
        """The text that was read so far; the whole answer after the end."""
        return self._reply.text

    @property
    def tool_calls(self) -> tuple[dict[str, Any], ...]:
        """OpenAI's tool calls as read so far; whole after the end."""
        return self._reply.tool_calls

    @property
    def provider(self) -> PeerId:
        """Who serves it."""
        return self._reply.provider

    @property
    def offer(self) -> OfferView:
        """Under which offer."""
        return self._reply.offer

    @property
    def trust(self) -> TrustLevel:
        """What was proven of the provider before the prompt left."""
        return self._reply.trust

    @property
    def first_token_ms(self) -> float | None:
        """From the call to the first text."""
        return self._reply.first_token_ms

    @property
    def attempts(self) -> tuple[str, ...]:
        """Providers that were tried before this one, and why they did not serve."""
        return self._reply.attempts

    @property
    def usage(self) -> Usage:
        """Token counts. This and the next three raise `LocalProtocolError` before the end."""
        return self._reply.usage

    @property
    def receipt(self) -> ReceiptView:
        """The provider's signed receipt, checked against what we counted."""
        return self._reply.receipt

    @property
    def cost(self) -> Nano:
        """What it cost, in nanoTON."""
        return self._reply.cost

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended."""
        return self._reply.finish_reason
