"""A connection on a socket, under trio: the streams of one yamux session as objects with async methods.

    link = await open_link(sock, connection, link_type=Link)  # the handshake; raises what the machine raises
    nursery.start_soon(link.run)
    stream = link.open_nowait()

Three tasks per link: one reads, one writes what could not be written at once, one keeps the session alive. The
machine decides everything; this file reads, calls it, sends and wakes. Not here: libp2p, dialling, listening.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import TypeVar

import trio

from p2p.errors import P2PError, StreamClosed, StreamLimitReached, StreamReset
from p2p.noise import NoiseError
from p2p.transport.machine import Connection
from p2p.transport.signal import Signal
from p2p.yamux import (
    PongReceived,
    RemoteGone,
    SessionEvent,
    SessionStream,
    StreamArrived,
    StreamReadable,
    YamuxError,
)
from p2p.yamux import StreamLimitReached as SessionStreamLimitReached

READ_BYTES_MAX = 64 * 1024
RECEIVE_BYTES_SMALL = 32 * 1024  # while frames are small, so is the buffer that each read allocates
RECEIVE_BYTES_BULK = 256 * 1024
WRITES_PER_TURN_MAX = 64  # a writer that never has to wait still lets others run: about 0.3 ms
NANOSECONDS = 1_000_000_000
_TICK_S = 1e-6


class LinkClosed(P2PError):
    """The connection has ended, in order or not."""


def _now() -> int:
    return int(trio.current_time() * NANOSECONDS)


class LinkStream:
    """One stream, as the `RawStream` that frames are put on. One reader and one writer at a time.

    Cancelled, a read loses nothing; a write may have handed over a part.
    """

    __slots__ = ("_link", "_readable", "_room", "_stream", "_writes")

    def __init__(self, link: Link, stream: SessionStream) -> None:
        self._link = link
        self._stream = stream
        self._readable = Signal()
        self._room = Signal()
        self._writes = 0
        stream.owner = self

    async def read_some(self, size_max: int = READ_BYTES_MAX) -> bytes:
        """At least one byte; b"" at the peer's orderly end. Raises StreamReset."""
        await trio.lowlevel.checkpoint_if_cancelled()
        stream = self._stream
        while not stream.unread:
            if stream.is_reset or self._link._is_closed:
                raise StreamReset("the stream was reset" if stream.is_reset else "the connection was lost")
            if stream.is_ended:
                return b""
            await self._readable.wait()
        data = self._link.session.read(stream, size_max)
        self._link.flush()
        return data

    async def write_all(self, data: bytes) -> None:
        """Returns when the session has taken all of it, waiting for the peer's window as long as it takes.
        Raises StreamReset, StreamClosed (we closed this side)."""
        await trio.lowlevel.checkpoint_if_cancelled()
        link, stream = self._link, self._stream
        offset = 0
        while True:
            if stream.is_reset or link._is_closed:
                raise StreamReset("the stream was reset" if stream.is_reset else "the connection was lost")
            if stream.is_write_closed:
                raise StreamClosed("this side was closed")
            offset = link.session.write(stream, data, offset)
            link.flush()
            if offset >= len(data):
                break
            if stream.is_blocked:  # flush() may already have made room
                self._writes = 0
                await self._room.wait()
        self._writes += 1
        if self._writes >= WRITES_PER_TURN_MAX:
            self._writes = 0
            await trio.lowlevel.checkpoint()

    async def close_write(self) -> None:
        self._link.session.close_write(self._stream)
        self._link.flush()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        self._link.session.reset(self._stream)
        self.wake()
        self._link.flush()
        await trio.lowlevel.checkpoint()

    async def release(self) -> None:
        """We are done reading: what still arrives is dropped, and a peer that goes on and on is reset."""
        self._link.session.release(self._stream)
        await trio.lowlevel.checkpoint()

    @property
    def is_closed(self) -> bool:
        stream = self._stream
        return stream.is_reset or self._link._is_closed or (stream.is_write_closed and stream.is_ended)

    def wake(self) -> None:
        self._readable.notify()
        self._room.notify()

    def wake_reader(self) -> None:
        self._readable.notify()

    def wake_writer(self) -> None:
        self._room.notify()


class Link:
    """One open connection. `run` must run in a task for as long as it lives."""

    def __init__(
        self,
        sock: socket.socket,
        connection: Connection,
        early_events: list[SessionEvent],
        *,
        stream_type: type[LinkStream] = LinkStream,
    ) -> None:
        self.session = connection.session
        self._is_closed = False
        self.closed = trio.Event()
        self.error: BaseException | None = None  # why it ended, when not in order
        self._sock = sock
        self._handle = sock.fileno()
        self._connection = connection
        self._stream_type = stream_type
        self._unsent: bytes | memoryview = b""  # sealed, in order; only _push sends and shortens it
        self._is_writer_awake = False
        self._writer = Signal()
        self._arrived: deque[LinkStream] = deque()  # bounded by the session's unaccepted streams
        self._acceptor = Signal()
        self._pong = trio.Event()
        self._scope = trio.CancelScope()
        self._dispatch(early_events)

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def remote_peer(self) -> bytes:
        return self._connection.remote_peer

    @property
    def is_dialer(self) -> bool:
        return self._connection.is_dialer

    # --- streams -------------------------------------------------------------------------------------------

    def open_nowait(self) -> LinkStream:
        """A new stream, at once. Raises StreamLimitReached, LinkClosed."""
        if self._is_closed:
            raise LinkClosed("the connection is closed")
        try:
            stream = self.session.open()
        except SessionStreamLimitReached as error:
            raise StreamLimitReached(str(error)) from error
        except RemoteGone as error:
            raise LinkClosed(str(error)) from error
        self.flush()
        return self._stream_type(self, stream)

    async def accept(self) -> LinkStream:
        """The next stream that the peer opened. Raises LinkClosed. One waiting task at a time."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            while not self._arrived:
                if self._is_closed:
                    raise LinkClosed("the connection is closed")
                await self._acceptor.wait()
            stream = self._arrived.popleft()
            if not stream._stream.is_reset:  # else it was gone before anyone looked
                break
        self.session.accept(stream._stream)
        self.flush()
        return stream

    async def is_alive(self, *, timeout_s: float) -> bool:
        """Whether the peer answers a ping in time."""
        if self._is_closed:
            return False
        self.session.ping()
        self.flush()
        with trio.move_on_after(timeout_s) as scope:
            await self._pong.wait()
        return not scope.cancelled_caught and not self.is_closed

    # --- life ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Carries bytes until either side ends the connection. Does not raise for the peer's doings: see
        `error`."""
        with self._scope:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_late)
                    nursery.start_soon(self._keep_alive)
                    await self._read()
                    nursery.cancel_scope.cancel()
            finally:
                self._end(None)

    def close_nowait(self) -> None:
        """End the connection: a Go Away when the socket takes it, and no waiting. Idempotent."""
        if not self._is_closed:
            self.session.go_away()
            self.flush()
            self._end(None)
        self._scope.cancel()

    def flush(self) -> None:
        """Send what the session has. The first call of a burst sends at once; the rest of the burst rides with
        the writing task, so that a batch costs one seal and one system call."""
        if self._is_writer_awake or self._is_closed or not self.session.has_outgoing:
            return
        self._is_writer_awake = True
        self._push()
        self._writer.notify()

    # --- tasks ---------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        sock, connection = self._sock, self._connection
        size = RECEIVE_BYTES_SMALL
        try:
            while not self._is_closed:
                try:
                    data = sock.recv(size)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(self._handle)
                    continue
                if not data:
                    return
                self._dispatch(connection.receive(data, now=0))
                self.flush()
                if len(data) == size:
                    size = RECEIVE_BYTES_BULK
                    await trio.lowlevel.checkpoint()
                else:
                    size = RECEIVE_BYTES_SMALL if len(data) < RECEIVE_BYTES_SMALL else RECEIVE_BYTES_BULK
                    await trio.lowlevel.wait_readable(self._handle)
        except (NoiseError, YamuxError) as error:
            self.session.go_away()
            self._push()
            self._end(error)
        except (OSError, trio.ClosedResourceError) as error:
            self._end(error)

    async def _write_late(self) -> None:
        while not self._is_closed:
            if self._unsent:
                try:
                    await trio.lowlevel.wait_writable(self._handle)
                except (OSError, trio.ClosedResourceError) as error:
                    self._end(error)
                    return
                self._push()
            elif self.session.has_outgoing:
                self._push()
                await trio.lowlevel.checkpoint()
            else:
                self._is_writer_awake = False
                await self._writer.wait()

    async def _keep_alive(self) -> None:
        while True:
            # A float of seconds may come back a nanosecond short of the deadline: without the rest it would spin.
            await trio.sleep_until(self.session.deadline() / NANOSECONDS + _TICK_S)
            try:
                self._dispatch(self.session.on_time(now=_now()))
            except RemoteGone as error:
                self._end(error)
                return
            self.flush()

    # --- helpers -------------------------------------------------------------------------------------------

    def _push(self) -> None:
        """Seal one batch and give it to the socket. The only place that does either."""
        if self._is_closed:
            return
        if not self._unsent:
            self._unsent = self._connection.outgoing()
            unblocked = self.session.take_unblocked()
            for stream in unblocked:
                if isinstance(stream.owner, LinkStream):
                    stream.owner.wake_writer()
        if not self._unsent:
            return
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        self._unsent = b"" if sent == len(self._unsent) else memoryview(self._unsent)[sent:]

    def _dispatch(self, events: list[SessionEvent]) -> None:
        for event in events:
            if type(event) is StreamReadable:
                owner = event.stream.owner
                if isinstance(owner, LinkStream):
                    owner.wake() if event.stream.is_reset else owner.wake_reader()
            elif type(event) is StreamArrived:
                self._arrived.append(self._stream_type(self, event.stream))
                self._acceptor.notify()
            elif type(event) is PongReceived:
                self._pong.set()
                self._pong = trio.Event()

    def _end(self, error: BaseException | None) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self.error = error
        for stream in self.session.streams:
            if isinstance(stream.owner, LinkStream):
                stream.owner.wake()
        self._arrived.clear()
        self._acceptor.notify()
        self._pong.set()
        self._writer.notify()
        trio.lowlevel.notify_closing(self._handle)
        self._sock.close()
        self.closed.set()
        self._scope.cancel()


LinkT = TypeVar("LinkT", bound=Link)


async def open_link(
    sock: socket.socket,
    connection: Connection,
    *,
    link_type: type[LinkT],
    stream_type: type[LinkStream] = LinkStream,
) -> LinkT:
    """Carry the handshake on a connected, non-blocking socket. The caller sets the deadline and closes the
    socket on failure. Raises NegotiationFailed, NoiseError, YamuxError, OSError, LinkClosed."""
    events: list[SessionEvent] = []
    await _send_all(sock, connection)
    while not connection.is_open:
        try:
            data = sock.recv(RECEIVE_BYTES_SMALL)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock.fileno())
            continue
        if not data:
            raise LinkClosed("the remote hung up during the handshake")
        events += connection.receive(data, now=_now())
        await _send_all(sock, connection)
    return link_type(sock, connection, events, stream_type=stream_type)


async def _send_all(sock: socket.socket, connection: Connection) -> None:
    while out := connection.outgoing():
        view = memoryview(out)
        while view:
            try:
                view = view[sock.send(view) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock.fileno())
