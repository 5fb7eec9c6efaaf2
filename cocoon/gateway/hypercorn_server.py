"""Hypercorn on trio as the gateway's server, without its banners, workers and lifespan.

Its connection handler is used directly, because `hypercorn.trio.serve` leaves two things open: writes are shielded
from cancellation, so one reader that stalls would hold up a shutdown for ever, and connections are unbounded. Here
every write has a time-out, and a stop closes what is left after the grace.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import Any, Final

import trio

from .asgi import AsgiApp, ServerLimits

HEADER_BYTES_MAX: Final = 32 * 1024
IDLE_S_MAX: Final = 5.0  # it notices only then that an idle client has closed, and holds the slot until it does
APP_QUEUE_MAX: Final = 64  # body pieces of 64 KiB waiting for the app: the largest accepted body


async def serve_hypercorn(app: AsgiApp, listener: socket.socket, *, limits: ServerLimits, stop: trio.Event) -> None:
    """Serve `app` on a listening socket, and close that socket at the end. The same promises as `serve_h11`."""
    # Imported here: it takes 0.15 s, and most gateways run without it.
    from hypercorn.app_wrappers import ASGIWrapper
    from hypercorn.config import Config
    from hypercorn.trio.tcp_server import TCPServer
    from hypercorn.trio.worker_context import WorkerContext
    from hypercorn.typing import ConnectionState

    config: Any = Config()
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    config.keep_alive_timeout = min(limits.idle_timeout_s, IDLE_S_MAX)
    config.h11_max_incomplete_size = HEADER_BYTES_MAX
    config.max_app_queue_size = APP_QUEUE_MAX
    context: Any = WorkerContext(None)
    streams: set[_BoundedStream] = set()
    source = _BoundedListener(listener, limits, streams)
    connect = partial(TCPServer, ASGIWrapper(app), config, context, ConnectionState({}))

    async def handle(stream: _BoundedStream) -> None:
        try:
            await connect(stream)
        finally:
            stream.forget()

    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(partial(trio.serve_listeners, handle, [source], handler_nursery=connections))
            await stop.wait()
            accepting.cancel_scope.cancel()
        await source.aclose()
        await context.terminated.set()
        with trio.move_on_after(limits.grace_s):
            await source.wait_empty()
        for stream in list(streams):
            await trio.aclose_forcefully(stream)  # reaches even the shielded writes
        connections.cancel_scope.cancel()


class _BoundedStream(trio.abc.HalfCloseableStream):
    """A connection whose writes end: by progress, or after the time-out."""

    def __init__(self, inner: trio.SocketStream, listener: _BoundedListener) -> None:
        self._inner = inner
        self._listener: _BoundedListener | None = listener
        self._write_timeout_s = listener.limits.write_timeout_s

    @property
    def socket(self) -> trio.socket.SocketType:
        """Hypercorn asks it for both addresses."""
        return self._inner.socket

    async def send_all(self, data: bytes | memoryview) -> None:
        """As trio's, but gives the client up after the time-out. Raises `trio.BrokenResourceError`."""
        try:
            with trio.fail_after(self._write_timeout_s):
                await self._inner.send_all(data)
        except trio.TooSlowError as error:
            await trio.aclose_forcefully(self._inner)
            raise trio.BrokenResourceError("the client does not read") from error

    async def wait_send_all_might_not_block(self) -> None:
        """As trio's."""
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As trio's."""
        return await self._inner.receive_some(max_bytes)

    async def send_eof(self) -> None:
        """As trio's."""
        await self._inner.send_eof()

    async def aclose(self) -> None:
        """As trio's."""
        await self._inner.aclose()

    def forget(self) -> None:
        """Give the slot back; harmless when repeated."""
        if self._listener is not None:
            self._listener.forget(self)
            self._listener = None


class _BoundedListener(trio.abc.Listener[_BoundedStream]):
    """Accepts while there are slots."""

    def __init__(self, listener: socket.socket, limits: ServerLimits, streams: set[_BoundedStream]) -> None:
        listener.setblocking(False)
        self._inner = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        self._slots = trio.Semaphore(limits.connections_max)
        self._streams = streams
        self._changed = trio.Event()
        self.limits = limits

    async def accept(self) -> _BoundedStream:
        """The next connection."""
        await self._slots.acquire()
        try:
            stream = _BoundedStream(await self._inner.accept(), self)
        except BaseException:
            self._slots.release()
            raise
        self._streams.add(stream)
        return stream

    def forget(self, stream: _BoundedStream) -> None:
        """A connection has ended."""
        self._streams.discard(stream)
        self._slots.release()
        self._changed.set()

    async def wait_empty(self) -> None:
        """Until every connection has ended."""
        while self._streams:
            self._changed = trio.Event()
            await self._changed.wait()

    async def aclose(self) -> None:
        """Stop listening."""
        await self._inner.aclose()
