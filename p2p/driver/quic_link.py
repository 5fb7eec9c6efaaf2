"""One QUIC connection under trio, as libp2p's `IMuxedConn`; its streams are in `quic_streams.py`.

    link = QuicLink(machine, transmit, …)      # transmit: hands one datagram to the socket
    await link.shake_hands()                   # raises what went wrong
    nursery.start_soon(link.start)             # as the swarm does

Whoever reads the socket calls `receive` for each datagram and `settle` after each batch. Everything is decided by the
machine; this file calls it, sends, wakes, and keeps its alarm. Not here: sockets, and who may connect.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.abc import IMuxedConn
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError
from multiaddr import Multiaddr

from p2p.driver.quic_machine import Address, QuicMachine
from p2p.driver.quic_state import (
    IdIssued,
    IdRetired,
    Opened,
    Pong,
    QuicFailed,
    StreamArrived,
    StreamChanged,
    StreamState,
)
from p2p.driver.quic_streams import QuicStream
from p2p.transport.signal import Signal

KEEPALIVE_S = 15.0  # under the half minute after which many NATs forget a UDP mapping
GOODBYE_S = 0.5  # for what was written to arrive before the connection is closed
SUSPECT_S = 1.0  # for a peer whose machine says that nobody listens there to prove that it does

Transmit = Callable[[bytes, Address], None]


class QuicLink(IMuxedConn):  # type: ignore[misc]
    """One connection. `start` must run in a task for as long as it lives; the swarm does that."""

    negotiated_security_protocol = "/tls/1.0.0"
    negotiated_muxer_protocol = "/quic-v1"
    on_close: Callable[[], Awaitable[None]] | None = None  # set by the swarm
    is_relayed = False

    def __init__(
        self,
        machine: QuicMachine,
        transmit: Transmit,
        *,
        is_dialer: bool,
        on_end: Callable[[QuicLink], None] = lambda _: None,
        on_id: Callable[[QuicLink, IdIssued | IdRetired], None] = lambda _, __: None,
        read: Callable[[QuicLink], Awaitable[None]] | None = None,
    ) -> None:
        """`read`: reads the socket, where it belongs to this connection alone. `on_end`: the connection is over;
        called once. `on_id`: the peer may use another connection id from now on, or no longer."""
        self.machine = machine
        self.session = machine  # what the rest of the driver calls it: `streams`, `unread_bytes`
        self.is_dialer = is_dialer
        self.event_started = trio.Event()
        self.closed = trio.Event()
        self.error: BaseException | None = None  # why it ended, when not in order
        self.peer_id: Any = None  # once the handshake is done
        self._transmit = transmit
        self._on_end = on_end
        self._on_id = on_id
        self._read = read
        self._remote: tuple[str, int] | None = None
        self._is_closed = False
        self._is_writer_awake = False
        self._writer = Signal()
        self._alarm = trio.CancelScope()
        self._opened = trio.Event()
        self._arrived: deque[QuicStream] = deque()  # bounded by the machine's limit on streams
        self._acceptor = Signal()
        self._pong = trio.Event()
        self._settled = trio.Event()
        self._quiet_since = trio.current_time()
        self._suspect_until: float | None = None
        self._scope = trio.CancelScope()

    # --- state ---------------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def is_initiator(self) -> bool:
        return self.is_dialer

    @property
    def is_established(self) -> bool:
        return self.event_started.is_set() and not self._is_closed

    @property
    def remote_peer(self) -> bytes:
        assert self.machine.remote_peer is not None
        return self.machine.remote_peer

    def get_remote_address(self) -> tuple[str, int] | None:
        """Where the peer is now: a NAT may give it another port while the connection lives."""
        address = self.machine.get_peer_address()
        if address is not None:
            self._remote = (address[0].split("%")[0], address[1])
        return self._remote

    def get_transport_addresses(self) -> list[Multiaddr]:
        remote = self.get_remote_address()
        return [] if remote is None else [quic_multiaddr(*remote)]

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT

    # --- streams -------------------------------------------------------------------------------------------

    async def open_stream(self) -> QuicStream:
        """Raises StreamLimitReached (ours, at once), MuxedStreamError."""
        await trio.lowlevel.checkpoint()
        try:
            return QuicStream(self, self.machine.open_stream())
        except QuicFailed as error:
            raise MuxedStreamError(str(error)) from error

    async def accept_stream(self) -> QuicStream:
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            while not self._arrived:
                if self._is_closed:
                    raise MuxedConnUnavailable("the connection is closed")
                await self._acceptor.wait()
            stream = self._arrived.popleft()
            if not stream.state.is_reset:  # else it was gone before anyone looked
                return stream

    async def is_alive(self, *, timeout_s: float) -> bool:
        """Whether the peer answers a ping in time."""
        if self._is_closed:
            return False
        self.machine.ping()
        self.flush()
        with trio.move_on_after(timeout_s) as scope:
            await self._pong.wait()
        return not scope.cancelled_caught and not self._is_closed

    # --- life ----------------------------------------------------------------------------------------------

    async def shake_hands(self) -> None:
        """Until the peer is known. The caller sets the deadline. Raises QuicFailed, CertificateRefused, NoiseError
        (another peer answered), OSError."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._live)
            await self._opened.wait()
            nursery.cancel_scope.cancel()
        if self._is_closed:
            raise self.error or QuicFailed(self.machine.end_reason)
        self.peer_id = ID(self.remote_peer)

    async def start(self) -> None:
        self.event_started.set()
        try:
            with self._scope:
                await self._live()
        finally:
            self._end(None)
            if self.on_close is not None:
                with trio.CancelScope(shield=True):
                    await self.on_close()

    async def _live(self) -> None:
        """The tasks of a connection, until it is over."""
        if self._is_closed:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_late)
            if self._read is not None:
                nursery.start_soon(self._read, self)
            await self._watch_time()
            nursery.cancel_scope.cancel()

    async def close(self) -> None:
        """What was written gets a moment to arrive, then the peer is told. Idempotent."""
        if not self._is_closed and self.event_started.is_set():
            with trio.move_on_after(GOODBYE_S) as scope:
                scope.shield = True
                while self.machine.has_unacknowledged and not self._is_closed:
                    self._settled = trio.Event()
                    await self._settled.wait()
        self.close_nowait()
        await trio.lowlevel.checkpoint()

    def close_nowait(self) -> None:
        if not self._is_closed:
            self.machine.close(error_code=0)
            self._push()
            self._end(None)
        self._scope.cancel()

    def fail(self, error: BaseException) -> None:
        """The line is gone: nobody is told."""
        self._end(error)

    # --- what comes in -------------------------------------------------------------------------------------

    def receive(self, data: bytes, address: Address, now: float) -> None:
        """One datagram. Call `settle` after the last of a batch."""
        self._quiet_since = now
        self._suspect_until = None
        self.machine.receive_datagram(data, address, now)

    def settle(self) -> None:
        """Tell the streams what has arrived, and answer: at once in the handshake, else after those who were woken
        have had their turn, so that one datagram carries their answer and the acknowledgement."""
        now = trio.current_time()
        machine = self.machine
        self._dispatch(now)
        if machine.is_over:
            self._push()
            self._end(machine.failure)
        elif not machine.has_outgoing:
            self._set_alarm()
        elif self._opened.is_set():
            self._wake_writer()
        else:
            self._push()

    def note_refused(self, error: OSError) -> None:
        """The peer's machine says that nobody listens at its port. In the handshake that is an answer; later it may be
        a forgery, so the peer gets a moment to prove it wrong."""
        if not self._opened.is_set():
            self._end(error)
        elif self._suspect_until is None and error.errno == errno.ECONNREFUSED:
            self._suspect_until = trio.current_time() + SUSPECT_S
            self.machine.ping()
            self._wake_writer()

    # --- what goes out -------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what the machine has. The first call of a burst sends at once; the rest of the burst rides with the
        writing task, so that small writes share datagrams."""
        if self._is_writer_awake or self._is_closed:
            return
        self._push()
        self._wake_writer()

    def flush_credit(self) -> None:
        if self.machine.has_news:
            self._wake_writer()

    def _wake_writer(self) -> None:
        self._is_writer_awake = True
        self._writer.notify()

    async def _write_late(self) -> None:
        while not self._is_closed:
            self._is_writer_awake = False
            if self.machine.has_outgoing:
                self._push()
            await self._writer.wait()

    async def _watch_time(self) -> None:
        """Wakes the machine when its time has come, and the peer when all has been quiet."""
        while not self._is_closed:
            with trio.CancelScope() as self._alarm:
                self._set_alarm()
                await self.closed.wait()
            if not self.closed.is_set():
                self._on_time(trio.current_time())

    def _on_time(self, now: float) -> None:
        machine = self.machine
        due = machine.get_timer()
        if due is not None and now >= due:
            machine.handle_timer(now)
            self._dispatch(now)
        if self._suspect_until is not None and now >= self._suspect_until:
            self._end(QuicFailed("nobody listens there any more"))
            return
        if now >= self._quiet_until():
            self._quiet_since = now  # the next question comes after as much silence
            machine.ping()
            for state in machine.reset_silent_streams(now=now):
                self._wake(state)
        if machine.is_over:
            self._end(machine.failure or QuicFailed("the peer does not answer"))
            return
        self._push()

    def _quiet_until(self) -> float:
        return self._quiet_since + min(KEEPALIVE_S, self.machine.idle_timeout_s / 2)

    def _push(self) -> None:
        now = trio.current_time()
        for data, address in self.machine.datagrams_to_send(now):
            self._transmit(data, address)
        self._dispatch(now)
        self._set_alarm()

    def _set_alarm(self) -> None:
        due = self.machine.get_timer()
        if due is None:
            return
        due = min(due, self._quiet_until())
        if self._suspect_until is not None:
            due = min(due, self._suspect_until)
        self._alarm.deadline = due

    # --- helpers -------------------------------------------------------------------------------------------

    def _dispatch(self, now: float) -> None:
        machine = self.machine
        for event in machine.take_events(now=now):
            if type(event) is StreamChanged:
                self._wake(event.stream)
            elif type(event) is StreamArrived:
                self._arrived.append(QuicStream(self, event.stream))
                self._acceptor.notify()
            elif type(event) is Pong:
                self._pong.set()
                self._pong = trio.Event()
            elif type(event) is Opened:
                self._opened.set()
            elif isinstance(event, (IdIssued, IdRetired)):
                self._on_id(self, event)
        for state in machine.take_unblocked():
            if isinstance(state.owner, QuicStream):
                state.owner.wake_writer()
        if not self._settled.is_set() and not machine.has_unacknowledged:
            self._settled.set()

    def _wake(self, state: StreamState) -> None:
        if isinstance(state.owner, QuicStream):
            state.owner.wake()

    def _end(self, error: BaseException | None) -> None:
        if self._is_closed:
            return
        self.get_remote_address()
        self._is_closed = True
        self.error = error
        for state in self.machine.streams:
            self._wake(state)
        self._arrived.clear()
        self._acceptor.notify()
        self._pong.set()
        self._opened.set()
        self._settled.set()
        self._writer.notify()
        self.closed.set()
        self._scope.cancel()
        self._on_end(self)


def quic_multiaddr(host: str, port: int) -> Multiaddr:
    return Multiaddr(f"/ip{6 if ':' in host else 4}/{host}/udp/{port}/quic-v1")
