"""A QUIC connection as a machine: streams as our program sees them, credit by what it has read, bounds for all of it.

    machine = QuicMachine(…)                        # ours to dial, or for an Initial that a listener admitted
    machine.receive_datagram(data, address, now)    # then take_events(), datagrams_to_send(now), get_timer()

After `failure` is set, or `is_over`, send what is left and forget the connection. Anything that the library raises is
the peer's doing, or a bug in it, and ends this one connection. Not here: what of the library is other than it was
(`quic_tamed.py`), sockets, clocks, waiting tasks.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable

from aioquic import tls
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import END_STATES, NetworkAddress, QuicConnectionState
from aioquic.quic.packet import QuicErrorCode, QuicFrameType

from p2p.driver.quic_certificate import CertificateRefused, verify_certificate
from p2p.driver.quic_state import (
    DEFAULT_SETTINGS,
    IdIssued,
    IdRetired,
    Opened,
    Pong,
    QuicEvent,
    QuicFailed,
    QuicSettings,
    StreamArrived,
    StreamChanged,
    StreamState,
)
from p2p.driver.quic_tamed import STREAMS_MAX, TamedConnection
from p2p.errors import P2PError, StreamLimitReached
from p2p.interface import KIB
from p2p.noise import AnotherPeer

SEND_BUFFER_BYTES_MAX = 256 * KIB  # of one stream: written, and not acknowledged yet
RELEASED_BYTES_MAX = 64 * KIB  # what may still come to a stream that nobody reads before the peer is told to stop
PINGS_MAX = 16  # questions of ours on their way: a deaf peer gets no more
HALF_CLOSED_IDLE_S = 300.0  # silence of the peer after we closed our side

Address = NetworkAddress


class QuicMachine(TamedConnection):
    def __init__(
        self,
        configuration: QuicConfiguration,
        *,
        utc_now: Callable[[], datetime.datetime],
        settings: QuicSettings = DEFAULT_SETTINGS,
        expected_peer: bytes | None = None,
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> None:
        """`expected_peer`: whom we dialled; anyone else is refused."""
        super().__init__(
            configuration,
            settings=settings,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        self.remote_peer: bytes | None = None  # proven, once `Opened`
        self.failure: P2PError | None = None
        self.unread_bytes = 0
        self._utc_now = utc_now
        self._settings = settings
        self._expected_peer = expected_peer
        self._table: dict[int, StreamState] = {}  # bounded by both limits on streams, and `open_stream`
        self._open = {True: 0, False: 0}  # by is_inbound
        self._blocked: dict[StreamState, None] = {}
        self._consumed_total = 0
        self._is_dirty = True
        self._next_ping = 0
        # Shedding begins early enough that a peer is never held back by what was shed and not told yet.
        reserve = min(settings.window_bytes, settings.receive_total_bytes_max // 2)
        self._shed_bytes = settings.receive_total_bytes_max - reserve
        self._credit_bytes = reserve // 2

    # --- what a driver asks --------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        return self.failure is not None or self._close_event is not None or self._state in END_STATES

    @property
    def has_understood(self) -> bool:
        """Whether anything that was received could be decrypted."""
        return self._state is not QuicConnectionState.FIRSTFLIGHT

    @property
    def streams(self) -> tuple[StreamState, ...]:
        return tuple(stream for stream in self._table.values() if not stream.is_done_here)

    @property
    def connection_ids(self) -> tuple[bytes, ...]:
        return tuple(known.cid for known in self._host_cids)

    @property
    def idle_timeout_s(self) -> float:
        return self._idle_timeout()

    @property
    def has_unacknowledged(self) -> bool:
        """Whether data that the program wrote may not have arrived."""
        return any(
            stream.sender._buffer_stop > stream.sender._buffer_start and stream.sender._reset_error_code is None
            for stream in self._streams_queue
        )

    @property
    def is_refused(self) -> bool:
        """Whether the handshake failed for what one side is, and not for the line."""
        code = self._close_event.error_code if self._close_event is not None else 0
        return QuicErrorCode.CRYPTO_ERROR <= code < QuicErrorCode.CRYPTO_ERROR + 0x100

    @property
    def end_reason(self) -> str:
        event = self._close_event
        if self.failure is not None:
            return str(self.failure)
        if event is None:
            return "closed"
        return f"closed with code {event.error_code}"

    @property
    def has_news(self) -> bool:
        """Whether the program has given the machine something to say since the last sending."""
        return self._is_dirty

    @property
    def has_outgoing(self) -> bool:
        """Whether sending now is worth it: acknowledgements alone wait for their timer."""
        if self._is_dirty or self._close_pending or not self._handshake_confirmed:
            return True
        return any(
            stream.is_finished
            or stream.sender.reset_pending
            or stream.receiver.stop_pending
            or not stream.sender.buffer_is_empty
            for stream in self._streams_queue
        )

    def take_unblocked(self) -> list[StreamState]:
        """Streams whose writers were turned away and have room again. Each is reported once."""
        unblocked = [stream for stream in self._blocked if self._room(stream) >= SEND_BUFFER_BYTES_MAX // 2]
        for stream in unblocked:
            stream.is_blocked = False
            del self._blocked[stream]
        return unblocked

    # --- streams, from our side ----------------------------------------------------------------------------

    def open_stream(self) -> StreamState:
        """Raises StreamLimitReached, ours or the peer's, and QuicFailed."""
        if self.is_over or self.remote_peer is None:
            raise QuicFailed("the connection is closed")
        if self._open[False] >= STREAMS_MAX:
            raise StreamLimitReached(f"{self._open[False]} outbound streams are open")
        stream_id = self.get_next_available_stream_id()
        if stream_id // 4 >= self._remote_max_streams_bidi or len(self._table) >= 3 * STREAMS_MAX:
            raise StreamLimitReached("the peer takes no more streams at this time")
        self._get_or_create_stream_for_send(stream_id)
        return self._add(stream_id, is_inbound=False)

    def write(self, stream: StreamState, data: bytes | memoryview, offset: int = 0) -> int:
        """Take data[offset:] as far as there is room; returns the offset of the first byte not taken. Less than all:
        wait until `take_unblocked` names the stream."""
        assert not stream.is_write_closed, "write after close_write"
        if stream.is_reset or stream.is_stopped:
            return len(data)
        room = self._room(stream)
        left = len(data) - offset
        if left > room:
            stream.is_blocked = True
            self._blocked[stream] = None
            left = max(0, room)
        if left:
            part = data if left == len(data) else memoryview(data)[offset : offset + left]
            self.send_stream_data(stream.id, part)  # type: ignore[arg-type]  # any buffer will do
            self._is_dirty = True
        return offset + left

    def read(self, stream: StreamState, size_max: int) -> bytes:
        """Up to `size_max` unread bytes. Frees room in the peer's window."""
        taken = bytes(stream.unread[:size_max])
        del stream.unread[:size_max]
        self.unread_bytes -= len(taken)
        stream.consumed += len(taken)
        self._credit(len(taken))
        quic = self._streams.get(stream.id)
        if quic is not None and not stream.is_read_over and not stream.is_released:
            allowed = stream.consumed + self._settings.window_bytes
            if allowed - quic.max_stream_data_local >= self._settings.window_bytes // 2:
                quic.max_stream_data_local = allowed
                self._is_dirty = True
        return taken

    def close_write(self, stream: StreamState, *, now: float) -> None:
        """FIN follows what was written. Idempotent."""
        if stream.is_write_closed or stream.is_reset or stream.is_stopped:
            return
        stream.is_write_closed = True
        stream.silent_since = now
        self.send_stream_data(stream.id, b"", end_stream=True)
        self._is_dirty = True
        self._settle(stream)

    def release(self, stream: StreamState) -> None:
        """The program is done reading. What still arrives is dropped; a peer that goes on and on is told to stop."""
        stream.is_released = True
        self._drop_unread(stream)

    def reset(self, stream: StreamState) -> None:
        """End the stream at once, both ways. Idempotent."""
        if stream.is_reset:
            return
        self._drop_unread(stream)
        stream.is_reset = stream.is_released = True
        if not self.is_over:
            self.reset_stream(stream.id, 0)
            self._stop(stream)
            self._is_dirty = True
        self._settle(stream)

    # --- the connection ------------------------------------------------------------------------------------

    def ping(self) -> None:
        """Ask the peer for a sign of life: `Pong`."""
        if len(self._ping_pending) < PINGS_MAX:
            self._next_ping += 1
            self.send_ping(self._next_ping)
            self._is_dirty = True

    def reset_silent_streams(self, *, now: float) -> list[StreamState]:
        """Streams whose peer does not close its side, and says nothing either, are broken. Returns them."""
        silent = [
            stream
            for stream in self._table.values()
            if stream.silent_since is not None
            and not stream.is_reset
            and now - stream.silent_since > HALF_CLOSED_IDLE_S
        ]
        for stream in silent:
            self.reset(stream)
        return silent

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None:
        if self.failure is not None:
            return
        try:
            super().receive_datagram(data, addr, now)
        except Exception as error:  # supervision boundary: the library asserts on what peers send
            self._upset(error)

    def handle_timer(self, now: float) -> None:
        try:
            super().handle_timer(now)
        except Exception as error:  # as above
            self._upset(error)

    def take_events(self, *, now: float) -> list[QuicEvent]:
        """What has happened since the last call, in order."""
        found: list[QuicEvent] = []
        try:
            self._take_all(found, now)
        except Exception as error:  # as above; and a listener's other peers must not pay for a bug of ours
            self._upset(error)
        return found

    def _take_all(self, found: list[QuicEvent], now: float) -> None:
        while self.failure is None and (event := self.next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                self._take_data(event, found, now)
            elif isinstance(event, events.StreamReset):
                self._take_reset(event, found)
            elif isinstance(event, events.StopSendingReceived):
                self._take_stop(event, found)
            elif isinstance(event, events.PingAcknowledged):
                found.append(Pong())
            elif isinstance(event, events.HandshakeCompleted):
                self._check_peer(found)
            elif isinstance(event, events.ConnectionIdIssued):
                found.append(IdIssued(event.connection_id))
            elif isinstance(event, events.ConnectionIdRetired):
                found.append(IdRetired(event.connection_id))
        if self.unread_bytes > self._shed_bytes:
            worst = max(self._table.values(), key=lambda stream: len(stream.unread))
            self.reset(worst)
            found.append(StreamChanged(worst))

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        if self._is_dirty and self._handshake_complete:
            space = self._spaces[tls.Epoch.ONE_RTT]
            if space.ack_at is not None:
                space.ack_at = now  # ride along, and save a datagram of their own
        self._is_dirty = False
        if not self._network_paths:  # nothing has been understood, so there is nobody to answer
            return []
        try:
            return super().datagrams_to_send(now)
        except Exception as error:  # as above
            self._upset(error)
            return []

    # --- helpers -------------------------------------------------------------------------------------------

    def _upset(self, error: Exception) -> None:
        self._fail(QuicFailed(f"the peer upset the connection: {type(error).__name__}"))

    def _fail(self, error: P2PError, code: int = QuicErrorCode.INTERNAL_ERROR) -> None:
        self.failure = error
        self.close(error_code=code, frame_type=QuicFrameType.PADDING)

    def _check_peer(self, found: list[QuicEvent]) -> None:
        certificate = self.tls._peer_certificate
        chain = [] if certificate is None else [certificate, *self.tls._peer_certificate_chain]
        try:
            peer = verify_certificate(chain, now=self._utc_now())
        except CertificateRefused as error:
            self._fail(error, QuicErrorCode.CRYPTO_ERROR + tls.AlertDescription.bad_certificate)
            return
        if self._expected_peer not in (None, peer):
            self._fail(
                AnotherPeer("another peer answered"),
                QuicErrorCode.CRYPTO_ERROR + tls.AlertDescription.bad_certificate,
            )
            return
        self.remote_peer = peer
        self._forget_handshake()
        found.append(Opened())

    def _room(self, stream: StreamState) -> int:
        quic = self._streams.get(stream.id)
        if quic is None:
            return SEND_BUFFER_BYTES_MAX
        return SEND_BUFFER_BYTES_MAX - (quic.sender._buffer_stop - quic.sender._buffer_start)

    def _add(self, stream_id: int, *, is_inbound: bool) -> StreamState:
        stream = self._table[stream_id] = StreamState(stream_id, is_inbound=is_inbound)
        self._open[is_inbound] += 1
        return stream

    def _find(self, stream_id: int, found: list[QuicEvent]) -> StreamState:
        stream = self._table.get(stream_id)
        if stream is None:
            stream = self._add(stream_id, is_inbound=True)
            quic = self._streams.get(stream_id)
            stream.is_stopped = quic is not None and quic.sender._reset_error_code is not None  # before any data
            found.append(StreamArrived(stream))
        return stream

    def _take_data(self, event: events.StreamDataReceived, found: list[QuicEvent], now: float) -> None:
        if event.stream_id & 2:
            return  # one-way streams, of which we allow none
        stream = self._find(event.stream_id, found)
        size = len(event.data)
        stream.received += size
        if stream.silent_since is not None:
            stream.silent_since = now
        if stream.is_released:
            stream.discarded += size
            stream.consumed += size
            self._credit(size)
            if stream.discarded > RELEASED_BYTES_MAX and not event.end_stream:
                self._stop(stream)
        else:
            stream.unread += event.data
            self.unread_bytes += size
        if event.end_stream:
            stream.is_ended = stream.is_read_over = True
        self._settle(stream)
        found.append(StreamChanged(stream))

    def _take_reset(self, event: events.StreamReset, found: list[QuicEvent]) -> None:
        """The peer's half, and with it ours: libp2p's reset is of both, and half a stream is of no use to anybody."""
        stream = self._find(event.stream_id, found)
        quic = self._streams.get(stream.id)
        if quic is not None:  # what was announced and will never be delivered
            self._credit(max(0, quic.receiver.highest_offset - stream.received))
        stream.is_read_over = True
        self.reset(stream)
        self._settle(stream)
        found.append(StreamChanged(stream))

    def _take_stop(self, event: events.StopSendingReceived, found: list[QuicEvent]) -> None:
        stream = self._table.get(event.stream_id)
        if stream is not None:
            stream.is_stopped = True
            self._settle(stream)
            found.append(StreamChanged(stream))

    def _stop(self, stream: StreamState) -> None:
        quic = self._streams.get(stream.id)
        if quic is not None and not quic.receiver.is_finished and quic.receiver._stop_error_code is None:
            self.stop_stream(stream.id, 0)
            self._is_dirty = True

    def _drop_unread(self, stream: StreamState) -> None:
        size = len(stream.unread)
        if size:
            stream.unread.clear()
            self.unread_bytes -= size
            stream.consumed += size
            self._credit(size)

    def _settle(self, stream: StreamState) -> None:
        """Free the place of a stream that is over for our program; forget it once nothing more can come."""
        is_written = stream.is_write_closed or stream.is_reset or stream.is_stopped
        if not stream.is_done_here and is_written and (stream.is_read_over or stream.is_reset):
            stream.is_done_here = True
            self._open[stream.is_inbound] -= 1
        if stream.is_done_here and stream.is_read_over:
            self._table.pop(stream.id, None)
        if is_written and stream.is_blocked:
            stream.is_blocked = False
            self._blocked.pop(stream, None)

    def _credit(self, size: int) -> None:
        """The program has done with `size` more bytes: the peer may send as many, told in batches."""
        self._consumed_total += size
        limit = self._local_max_data
        allowed = self._consumed_total + self._settings.receive_total_bytes_max
        if allowed - limit.value >= self._credit_bytes:
            limit.value = allowed
            self._is_dirty = True
