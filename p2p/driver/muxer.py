"""Our yamux session machine (`p2p.yamux`) as the muxer of libp2p's swarm, over libp2p's secured connection.

It closes three traps of the library's own muxer: the receive window is enforced (2), a writer whose reader
pauses waits for as long as it likes instead of failing after 5 s (3), and the limit on streams is an error at
once, for both sides (8). The swarm names its muxer class in code, hence `OwnMuxers`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from multiaddr import Multiaddr

from p2p.errors import StreamLimitReached
from p2p.interface import KIB, Limits
from p2p.yamux import (
    PongReceived,
    RemoteGone,
    Session,
    SessionEvent,
    SessionStream,
    StreamArrived,
    StreamReadable,
    YamuxError,
    YamuxSettings,
)
from p2p.yamux import StreamLimitReached as SessionStreamLimitReached

log = logging.getLogger("p2p")

FLUSH_BYTES_MAX = 60 * KIB  # one Noise message
GOODBYE_TIMEOUT_S = 0.5
ARRIVED_MAX = 256  # streams that the swarm has not picked up yet; those over it are reset
RELEASED_BYTES_MAX = 64 * KIB  # what a peer may still send to a stream that we closed, before it is reset


def yamux_settings(limits: Limits) -> YamuxSettings:
    return YamuxSettings(window_bytes=limits.stream_window_bytes, receive_total_bytes_max=limits.unread_bytes_max)


class OwnMuxers(MuxerMultistream):  # type: ignore[misc]
    """Negotiates as the library does, and then uses our connection."""

    def __init__(self, protocol: Any, *, limits: Limits) -> None:
        super().__init__({protocol: MuxedConnection}, int(limits.handshake_timeout_s))
        self._limits = limits

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        protocol, _ = await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)
        muxed = MuxedConnection(conn, peer_id, limits=self._limits)
        return self._annotate_connection(muxed, conn, protocol)


class MuxedStream(IMuxedStream):  # type: ignore[misc]
    def __init__(self, connection: MuxedConnection, state: SessionStream) -> None:
        self.muxed_conn = connection
        self._connection = connection
        self._session = connection.session
        self.state = state
        state.owner = self
        self._readable = trio.Event()
        self._writable = trio.Event()
        self._is_released = False
        self._discarded = 0

    async def read(self, n: int | None = None) -> bytes:
        state = self.state
        await trio.lowlevel.checkpoint()
        while not state.unread:
            if state.is_ended:
                raise MuxedStreamEOF("the peer closed its side")
            if state.is_reset or self._connection.is_closed:
                raise MuxedStreamReset("reset")
            self._readable = trio.Event()
            await self._readable.wait()
        data = self._session.read(state, None if n is None or n < 0 else n)
        self._connection.flush()
        return data

    async def write(self, data: bytes) -> None:
        """Returns when the session has taken everything, which waits for the peer's window. Cancelled, it
        may have written a part."""
        state = self.state
        offset = 0
        await trio.lowlevel.checkpoint()
        while True:
            if state.is_reset or self._connection.is_closed:
                raise MuxedStreamReset("reset")
            if state.is_write_closed:
                raise MuxedStreamError("closed for writing")
            offset = self._session.write(state, data, offset)
            self._connection.flush()
            if offset >= len(data):
                return
            self._writable = trio.Event()
            await self._writable.wait()

    async def close(self) -> None:
        """Half-close, as the library's own streams do."""
        self._session.close_write(self.state)
        self._connection.flush()
        await trio.lowlevel.checkpoint()

    async def close_write(self) -> None:
        await self.close()

    async def reset(self) -> None:
        self._session.reset(self.state)
        self.wake()
        self._connection.flush()
        await trio.lowlevel.checkpoint()

    async def release(self) -> None:
        """Nobody reads here any more. What still comes is dropped; a peer that goes on and on is reset."""
        self._is_released = True
        self._discard()
        await trio.lowlevel.checkpoint()

    def _discard(self) -> None:
        self._discarded += len(self._session.read(self.state))
        if self._discarded > RELEASED_BYTES_MAX:
            self._session.reset(self.state)
        self._connection.flush()

    def wake_reader(self) -> None:
        if self._is_released:
            self._discard()
        self._readable.set()
        if self.state.is_reset:
            self._writable.set()

    def wake_writer(self) -> None:
        self._writable.set()

    def wake(self) -> None:
        self._readable.set()
        self._writable.set()

    def set_deadline(self, ttl: int) -> None:
        raise NotImplementedError("use a cancel scope")

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._connection.get_remote_address()

    async def __aenter__(self) -> MuxedStream:
        return self


class MuxedConnection(IMuxedConn):  # type: ignore[misc]
    """Lives in `start`, which the swarm runs as a task and which lets no error out."""

    def __init__(self, conn: ISecureConn, peer_id: ID, *, limits: Limits | None = None) -> None:
        self.peer_id = peer_id
        self.session = Session(
            is_client=conn.is_initiator, now=time.monotonic_ns(), settings=yamux_settings(limits or Limits())
        )
        self.event_started = trio.Event()
        self.on_close: Callable[[], Awaitable[None]] | None = None
        self._conn = conn
        self._closed = trio.Event()
        self._is_writing = False
        self._outgoing = trio.Event()
        self._idle = trio.Event()  # set while there is nothing to write
        self._pong = trio.Event()
        self._scope = trio.CancelScope()
        self._arrived_send, self._arrived = trio.open_memory_channel[SessionStream](ARRIVED_MAX)

    # --- state -------------------------------------------------------------------------------------------

    @property
    def is_initiator(self) -> bool:
        return bool(self._conn.is_initiator)

    @property
    def is_established(self) -> bool:
        return self.event_started.is_set() and not self.is_closed

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def get_transport_addresses(self) -> list[Multiaddr]:
        return list(self._conn.get_transport_addresses())

    def get_connection_type(self) -> ConnectionType:
        return self._conn.get_connection_type()

    def get_remote_address(self) -> tuple[str, int] | None:
        remote: tuple[str, int] | None = self._conn.get_remote_address()
        return remote

    # --- streams -----------------------------------------------------------------------------------------

    async def open_stream(self) -> MuxedStream:
        """Raises StreamLimitReached, MuxedStreamError."""
        if self.is_closed:
            raise MuxedStreamError("the connection is closed")
        try:
            state = self.session.open()
        except SessionStreamLimitReached as error:
            raise StreamLimitReached(str(error)) from error
        except RemoteGone as error:
            raise MuxedStreamError(str(error)) from error
        self.flush()
        return MuxedStream(self, state)

    async def accept_stream(self) -> MuxedStream:
        try:
            while (state := await self._arrived.receive()).is_reset:
                continue  # gone before anyone looked
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise MuxedConnUnavailable("the connection is closed") from None
        self.session.accept(state)
        self.flush()
        return MuxedStream(self, state)

    async def is_alive(self, *, timeout_s: float) -> bool:
        """Whether the peer answers a ping in time."""
        self.session.ping()
        self.flush()
        with trio.move_on_after(timeout_s) as scope:
            await self._pong.wait()
        return not scope.cancelled_caught and not self.is_closed

    # --- life --------------------------------------------------------------------------------------------

    def flush(self) -> None:
        if self.session.has_outgoing:
            if self._idle.is_set():
                self._idle = trio.Event()
            self._outgoing.set()

    async def start(self) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_loop)
                    nursery.start_soon(self._time_loop)
                    self.event_started.set()
                    await self._read_loop()
                    nursery.cancel_scope.cancel()
        except* YamuxError as group:
            log.debug("connection.refused", extra={"error": type(group.exceptions[0]).__name__})
            await self._last_words()
        except* Exception as group:  # the library's many ways to say that a connection is gone
            log.debug("connection.lost", extra={"error": type(group.exceptions[0]).__name__})
        finally:
            self._die()
            with trio.move_on_after(GOODBYE_TIMEOUT_S) as scope:
                scope.shield = True
                await self._close_below()
        if self.on_close is not None:
            await self.on_close()

    async def _read_loop(self) -> None:
        while data := await self._conn.read(None):
            for event in self.session.receive(data):
                self._on_event(event)
            self._wake_writers()
            self.flush()

    def _on_event(self, event: SessionEvent) -> None:
        if isinstance(event, StreamReadable):
            if isinstance(event.stream.owner, MuxedStream):
                event.stream.owner.wake_reader()
        elif isinstance(event, StreamArrived):
            self._queue_arrived(event.stream)
        elif isinstance(event, PongReceived):
            self._pong.set()
            self._pong = trio.Event()

    def _queue_arrived(self, state: SessionStream) -> None:
        try:
            self._arrived_send.send_nowait(state)
        except trio.WouldBlock:
            self.session.reset(state)

    async def _write_loop(self) -> None:
        self._is_writing = True
        try:
            while True:
                while data := self.session.outgoing(FLUSH_BYTES_MAX):
                    self._wake_writers()
                    await self._conn.write(bytes(data))
                self._outgoing = trio.Event()
                self._idle.set()
                await self._outgoing.wait()
        finally:
            self._is_writing = False
            self._idle.set()

    def _wake_writers(self) -> None:
        for state in self.session.take_unblocked():
            if isinstance(state.owner, MuxedStream):
                state.owner.wake_writer()

    async def _time_loop(self) -> None:
        while True:
            now = time.monotonic_ns()
            self.session.on_time(now=now)
            self._wake_writers()
            self.flush()
            await trio.sleep(max(0.0, (self.session.deadline() - now) / 1e9))

    async def close(self) -> None:
        """Ends every stream with a reset. Idempotent."""
        if self.is_established and self._is_writing:
            self.session.go_away()
            self.flush()
            with trio.move_on_after(GOODBYE_TIMEOUT_S) as scope:
                scope.shield = True
                await self._idle.wait()
        self._die()
        await self._close_below()

    async def _last_words(self) -> None:
        """Why we leave, for a peer that still listens. The write loop has stopped by now."""
        try:
            with trio.move_on_after(GOODBYE_TIMEOUT_S):
                await self._conn.write(bytes(self.session.outgoing(FLUSH_BYTES_MAX)))
        except Exception as error:
            log.debug("connection.lost", extra={"error": type(error).__name__})

    def _die(self) -> None:
        if self.is_closed:
            return
        self._closed.set()
        self._scope.cancel()
        self._arrived_send.close()
        self._pong.set()
        for state in self.session.streams:
            if isinstance(state.owner, MuxedStream):
                state.owner.wake()

    async def _close_below(self) -> None:
        try:
            await self._conn.close()
        except Exception as error:
            log.debug("connection.close_failed", extra={"error": type(error).__name__})
