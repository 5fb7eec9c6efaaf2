"""A yamux session as a pure machine: bytes and calls in, events and bytes out. No clock, socket or task.

    events = session.receive(data)        # what the remote sent
    data = session.outgoing(size_max)     # what to send now, framed, streams taking turns
    events = session.on_time(now=now)     # when deadline() has passed

Rules kept here, with the specification's words at the place (libp2p/specs, yamux/README.md):
- The receive window is enforced: one byte over it ends the session.
- Credit goes back in batches of half a window, and only for bytes that the program has read.
- A writer gets as many bytes taken as its buffer has room for; it waits for room, it never fails for want of it.
- Streams take turns of one frame, so one bulk stream cannot hold up the others.
- Every table, buffer and queue has a bound in `YamuxSettings`.

After YamuxViolation or RemoteGone has been raised the session is over: send what `outgoing` still holds (a Go
Away) and close the connection.

Not here: encryption, sockets, deadlines of single reads (the driver's), protocol negotiation on a stream.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from p2p.yamux.messages import (
    ACK,
    DATA,
    DEFAULT_SETTINGS,
    FIN,
    GO_AWAY,
    HEADER,
    HEADER_BYTES,
    NANOSECONDS,
    NORMAL_TERMINATION,
    PING,
    PROTOCOL_ERROR,
    RST,
    SESSION_ID,
    STREAM_ID_MAX,
    SYN,
    WINDOW_BYTES_CEILING,
    WINDOW_BYTES_INITIAL,
    WINDOW_UPDATE,
    RemoteGone,
    StreamLimitReached,
    YamuxSettings,
    YamuxViolation,
)
from p2p.yamux.stream import SessionStream

_pack = HEADER.pack
_unpack = HEADER.unpack_from
_FLAGS_ALL = SYN | ACK | FIN | RST


@dataclass(frozen=True, slots=True)
class StreamArrived:
    """The remote opened a stream. `accept` or `reset` it."""

    stream: SessionStream


@dataclass(frozen=True, slots=True)
class StreamReadable:
    """Something to see for a reader: bytes, the end, or a reset. Look at the stream."""

    stream: SessionStream


@dataclass(frozen=True, slots=True)
class RemoteGoneAway:
    """The remote opens no more streams and takes none. Those that are open go on."""

    code: int


@dataclass(frozen=True, slots=True)
class PongReceived:
    ping_id: int


SessionEvent = StreamArrived | StreamReadable | RemoteGoneAway | PongReceived


class Session:
    """One side of a yamux session. "The client side should use odd ID's, and the server even." """

    def __init__(self, *, is_client: bool, now: int, settings: YamuxSettings = DEFAULT_SETTINGS) -> None:
        self._settings = settings
        self._next_id = 1 if is_client else 2
        self._remote_parity = 0 if is_client else 1
        self._streams: dict[int, SessionStream] = {}
        self._queue: deque[SessionStream] = deque()  # each stream at most once: bounded by the table
        self._control = bytearray()
        self._partial = b""  # less than a header
        self._body_left = 0  # of the Data frame being received
        self._body_stream: SessionStream | None = None
        self._body_flags = 0  # FIN or RST, which take effect after the frame's last byte
        self._unread_bytes = 0
        self._inbound = self._outbound = self._unaccepted = self._unacknowledged = 0
        self._pings_awaited: dict[int, None] = {}
        self._next_ping_id = 0
        self._pings_seen = self._refusals = 0  # since the last interval began
        self._is_gone_away_sent = self._is_over = False
        self._remote_gone_code: int | None = None
        self._interval = int(settings.keepalive_interval_s * NANOSECONDS)
        self._silence_max = int(settings.keepalive_timeout_s * NANOSECONDS)
        self._next_interval = now + self._interval
        self._has_heard = True
        self._silent_since = now
        self._unblocked: list[SessionStream] = []

    # --- what a driver asks --------------------------------------------------------------------------------

    @property
    def streams(self) -> tuple[SessionStream, ...]:
        return tuple(self._streams.values())

    @property
    def unread_bytes(self) -> int:
        """Bytes received and not yet read, over all streams."""
        return self._unread_bytes

    @property
    def has_outgoing(self) -> bool:
        return bool(self._control or self._queue)

    def deadline(self) -> int:
        return self._next_interval

    def take_unblocked(self) -> list[SessionStream]:
        """Streams whose writers were turned away and have room again. Each is reported once."""
        unblocked, self._unblocked = self._unblocked, []
        return unblocked

    # --- streams, from our side ----------------------------------------------------------------------------

    def open(self) -> SessionStream:
        """A new outbound stream, usable at once: "the corresponding ACK does not need to be received".

        Raises StreamLimitReached (try later) and RemoteGone (never again on this session)."""
        if self._is_over or self._remote_gone_code is not None or self._is_gone_away_sent:
            raise RemoteGone("the session is closing")
        settings = self._settings
        if self._outbound >= settings.streams_outbound_max:
            raise StreamLimitReached(f"{self._outbound} outbound streams are open")
        if self._unacknowledged >= settings.unacknowledged_outbound_max:
            raise StreamLimitReached(f"{self._unacknowledged} streams wait for the remote's acknowledgement")
        if self._next_id > STREAM_ID_MAX:
            raise StreamLimitReached("stream ids are used up: a new connection is needed")
        stream = self._add(self._next_id, is_inbound=False)
        self._next_id += 2
        self._outbound += 1
        self._unacknowledged += 1
        self._control += _pack(0, WINDOW_UPDATE, SYN, stream.id, self._window_beyond_initial)
        return stream

    def accept(self, stream: SessionStream) -> None:
        """Take an inbound stream. Only now is it acknowledged: "Implementations SHOULD NOT implicitly
        acknowledge streams"."""
        if stream.is_accepted or stream.is_detached:
            return
        stream.is_accepted = True
        self._unaccepted -= 1
        self._control += _pack(0, WINDOW_UPDATE, ACK, stream.id, self._window_beyond_initial)

    def write(self, stream: SessionStream, data: bytes | memoryview, offset: int = 0) -> int:
        """Take data[offset:] as far as there is room; returns the offset of the first byte not taken.

        Less than all: wait until `take_unblocked` names the stream. Writing after `close_write` or a reset
        is the caller's bug.
        """
        assert not stream.is_write_closed, "write after close_write"
        if stream.is_reset:
            return len(data)
        unsent = stream.unsent
        room = stream.send_buffer_bytes_max - len(unsent)
        left = len(data) - offset
        if left <= room:
            unsent += data if offset == 0 else memoryview(data)[offset:]
        else:
            stream.is_blocked = True
            if room <= 0:
                return offset
            left = room
            unsent += memoryview(data)[offset : offset + room]
        if not stream.is_queued and stream.send_window and unsent:
            stream.is_queued = True
            self._queue.append(stream)
        return offset + left

    def read(self, stream: SessionStream, size_max: int | None = None) -> bytes:
        """Up to `size_max` unread bytes, b"" when there are none. Frees room in the remote's window."""
        unread = stream.unread
        size = len(unread)
        if size_max is None or size_max >= size:
            taken = bytes(unread)
            unread.clear()
        else:
            taken = bytes(unread[:size_max])
            del unread[:size_max]
            size = size_max
        if stream.is_detached:
            return taken
        self._unread_bytes -= size
        stream.owed += size
        if stream.owed >= self._settings.window_bytes // 2 and not stream.is_ended:
            self._control += _pack(0, WINDOW_UPDATE, 0, stream.id, stream.owed)
            stream.receive_window += stream.owed
            stream.owed = 0
        return taken

    def close_write(self, stream: SessionStream) -> None:
        """Half-close: FIN follows what was written. Reading goes on. Idempotent."""
        if stream.is_write_closed or stream.is_reset:
            return
        stream.is_write_closed = True
        if not stream.is_queued and (stream.send_window or not stream.unsent):
            stream.is_queued = True
            self._queue.append(stream)

    def release(self, stream: SessionStream) -> None:
        """The program is done reading. What still arrives is dropped, and the remote gets no more credit."""
        stream.is_released = True
        if not stream.is_detached:
            self._unread_bytes -= len(stream.unread)
        stream.unread.clear()

    def reset(self, stream: SessionStream) -> None:
        """End the stream at once, both ways; what is unread or unsent is dropped. Idempotent."""
        if not stream.is_detached:
            self._control += _pack(0, WINDOW_UPDATE, RST, stream.id, 0)
        self._break(stream)

    # --- session -------------------------------------------------------------------------------------------

    def ping(self) -> int:
        """Ask the remote for a sign of life; PongReceived carries the id that is returned."""
        ping_id = self._next_ping_id
        self._next_ping_id = (ping_id + 1) & 0xFFFFFFFF
        if len(self._pings_awaited) >= 16:  # a deaf remote: the oldest question is given up
            del self._pings_awaited[next(iter(self._pings_awaited))]
        self._pings_awaited[ping_id] = None
        self._control += _pack(0, PING, SYN, SESSION_ID, ping_id)
        return ping_id

    def go_away(self, code: int = NORMAL_TERMINATION) -> None:
        """Say that the session ends. "When a session is being terminated, the Go Away message should be sent." """
        if not self._is_gone_away_sent:
            self._is_gone_away_sent = True
            self._control += _pack(0, GO_AWAY, 0, SESSION_ID, code)

    def on_time(self, *, now: int) -> list[SessionEvent]:
        """Keep-alive and housekeeping. Raises RemoteGone when the remote has been silent for too long."""
        if now < self._next_interval:
            return []
        self._next_interval = now + self._interval
        self._pings_seen = self._refusals = 0
        for stream in list(self._streams.values()):
            if not stream.is_fin_sent:
                continue
            stream.idle_intervals += 1
            if stream.idle_intervals > self._settings.half_closed_idle_intervals_max:
                self.reset(stream)
        if self._has_heard:
            self._has_heard = False
            self._silent_since = now
            return []
        if now - self._silent_since >= self._silence_max:
            self._end(NORMAL_TERMINATION)
            raise RemoteGone("the remote does not answer")
        self.ping()
        return []

    def outgoing(self, size_max: int) -> bytearray:
        """The next bytes for the connection: everything about the session itself, then the streams in turn.

        At most `size_max` bytes (≥ 16 KiB) beyond the control frames; empty when there is nothing to send.
        """
        out = self._control
        self._control = bytearray()
        queue = self._queue
        frame_max = self._settings.frame_bytes_max
        while queue:
            room = size_max - len(out) - HEADER_BYTES
            if room <= 0:
                break
            stream = queue.popleft()
            stream.is_queued = False
            if stream.is_detached:
                continue
            unsent = stream.unsent
            size = len(unsent)
            if size > room or size > frame_max or size > stream.send_window:
                size = min(room, frame_max, stream.send_window)
                stream.send_window -= size
                out += _pack(0, DATA, 0, stream.id, size)
                with memoryview(unsent) as view:
                    out += view[:size]
                del unsent[:size]
                if stream.send_window:
                    stream.is_queued = True
                    queue.append(stream)
            elif stream.is_write_closed:
                stream.send_window -= size
                out += _pack(0, DATA, FIN, stream.id, size)
                out += unsent
                unsent.clear()
                stream.is_fin_sent = True
                if stream.is_ended:
                    self._detach(stream)
            else:
                stream.send_window -= size
                out += _pack(0, DATA, 0, stream.id, size)
                out += unsent
                unsent.clear()
            if stream.is_blocked and len(unsent) <= stream.send_buffer_bytes_max // 2:
                stream.is_blocked = False
                self._unblocked.append(stream)
        return out

    # --- what the remote sent ------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[SessionEvent]:
        """Take bytes from the connection, split anywhere. Raises YamuxViolation; then the session is over."""
        if self._is_over:
            return []
        self._has_heard = True
        events: list[SessionEvent] = []
        try:
            self._parse(data, events)
            if len(self._control) > self._settings.control_bytes_max:
                raise YamuxViolation("the remote causes answers and does not read them")
        except YamuxViolation:
            self._end(PROTOCOL_ERROR)
            raise
        for event in events:
            if type(event) is StreamReadable:
                event.stream.is_signalled = False
        return events

    def _parse(self, data: bytes, events: list[SessionEvent]) -> None:
        if self._partial:
            data = self._partial + data
            self._partial = b""
        position = 0
        end = len(data)
        while True:
            if self._body_left:
                size = min(self._body_left, end - position)
                if size == 0:
                    return
                stream = self._body_stream
                if stream is not None and not stream.is_detached and not stream.is_released:
                    if size > 4096:
                        with memoryview(data) as view:
                            stream.unread += view[position : position + size]
                    else:
                        stream.unread += data[position : position + size]
                    self._unread_bytes += size
                    self._signal(stream, events)
                    if self._unread_bytes > self._settings.receive_total_bytes_max:
                        self._shed(events)
                position += size
                self._body_left -= size
                if not self._body_left and self._body_flags:
                    self._close_from_remote(stream, self._body_flags, events)
            if end - position < HEADER_BYTES:
                self._partial = data[position:] if position < end else b""
                return
            version, kind, flags, stream_id, length = _unpack(data, position)
            position += HEADER_BYTES
            if version or flags & ~_FLAGS_ALL:
                raise YamuxViolation("unknown version or flag")
            if kind <= WINDOW_UPDATE:
                self._stream_frame(kind, flags, stream_id, length, events)
            elif stream_id != SESSION_ID:
                raise YamuxViolation("ping or go-away on a stream")
            elif kind == PING:
                self._ping_frame(flags, length, events)
            elif kind == GO_AWAY:
                self._remote_gone_code = length
                events.append(RemoteGoneAway(length))
            else:
                raise YamuxViolation("unknown frame type")

    def _stream_frame(self, kind: int, flags: int, stream_id: int, length: int, events: list[SessionEvent]) -> None:
        stream = self._streams.get(stream_id)
        if flags:
            if flags & SYN:
                stream = self._arrive(stream, stream_id, events)
            if stream is not None and flags & ACK and not stream.is_acknowledged:
                stream.is_acknowledged = True
                self._unacknowledged -= 1
        closing = flags & (FIN | RST)
        if kind == DATA and length:
            self._begin_body(stream, length, closing)
            return
        if kind == WINDOW_UPDATE and stream is not None and length:
            stream.send_window += length
            if stream.send_window > WINDOW_BYTES_CEILING:
                raise YamuxViolation("send window over 2^32 - 1")
            if stream.unsent and not stream.is_queued:
                stream.is_queued = True
                self._queue.append(stream)
        if closing:
            self._close_from_remote(stream, closing, events)

    def _close_from_remote(self, stream: SessionStream | None, flags: int, events: list[SessionEvent]) -> None:
        if stream is None or stream.is_detached:
            return
        if flags & RST:
            self._break(stream)
        else:
            stream.is_ended = True
            if stream.is_fin_sent:
                self._detach(stream)
        self._signal(stream, events)

    def _arrive(self, stream: SessionStream | None, stream_id: int, events: list[SessionEvent]) -> SessionStream | None:
        if stream is not None or stream_id & 1 != self._remote_parity or stream_id == SESSION_ID:
            raise YamuxViolation("a stream id that is in use, or ours to give")
        settings = self._settings
        if (
            self._inbound >= settings.streams_inbound_max
            or self._unaccepted >= settings.unaccepted_inbound_max
            or self._is_gone_away_sent
        ):
            # "… or with the RST flag to reject the stream."
            self._refusals += 1
            if self._refusals > settings.refusals_per_interval_max:
                raise YamuxViolation("a flood of streams over the limit")
            self._control += _pack(0, WINDOW_UPDATE, RST, stream_id, 0)
            return None
        stream = self._add(stream_id, is_inbound=True)
        self._inbound += 1
        self._unaccepted += 1
        events.append(StreamArrived(stream))
        return stream

    def _begin_body(self, stream: SessionStream | None, length: int, closing: int) -> None:
        if stream is None:
            # A stream that we reset, whose last frames were on their way: read over them, keep nothing.
            if length > self._settings.window_bytes:
                raise YamuxViolation("a frame longer than any window")
        else:
            if stream.is_ended:
                raise YamuxViolation("data after FIN")
            stream.receive_window -= length
            if stream.receive_window < 0:
                raise YamuxViolation("receive window overrun")
            stream.idle_intervals = 0
        self._body_left = length
        self._body_stream = stream
        self._body_flags = closing

    def _ping_frame(self, flags: int, ping_id: int, events: list[SessionEvent]) -> None:
        if flags & SYN:
            self._pings_seen += 1
            if self._pings_seen > self._settings.pings_per_interval_max:
                raise YamuxViolation("a flood of pings")
            self._control += _pack(0, PING, ACK, SESSION_ID, ping_id)
        elif ping_id in self._pings_awaited:
            del self._pings_awaited[ping_id]
            events.append(PongReceived(ping_id))

    # --- helpers -------------------------------------------------------------------------------------------

    @property
    def _window_beyond_initial(self) -> int:
        # "… but can immediately send a window update as part of the SYN/ACK indicating a larger window."
        return self._settings.window_bytes - WINDOW_BYTES_INITIAL

    def _add(self, stream_id: int, *, is_inbound: bool) -> SessionStream:
        settings = self._settings
        stream = self._streams[stream_id] = SessionStream(
            stream_id,
            is_inbound=is_inbound,
            receive_window=settings.window_bytes,
            send_window=WINDOW_BYTES_INITIAL,
            send_buffer_bytes_max=settings.send_buffer_bytes_max,
        )
        return stream

    def _signal(self, stream: SessionStream, events: list[SessionEvent]) -> None:
        if not stream.is_signalled:
            stream.is_signalled = True
            events.append(StreamReadable(stream))

    def _shed(self, events: list[SessionEvent]) -> None:
        """Too much lies unread, though each stream keeps to its window: the worst stream pays."""
        worst = max(self._streams.values(), key=lambda stream: len(stream.unread))
        self.reset(worst)
        self._signal(worst, events)

    def _break(self, stream: SessionStream) -> None:
        if stream.is_reset:
            return
        self._detach(stream)
        stream.is_reset = True
        stream.unread.clear()
        stream.unsent.clear()
        if stream.is_blocked:
            stream.is_blocked = False
            self._unblocked.append(stream)

    def _detach(self, stream: SessionStream) -> None:
        if stream.is_detached:
            return
        stream.is_detached = True
        del self._streams[stream.id]
        self._unread_bytes -= len(stream.unread)
        if stream.is_inbound:
            self._inbound -= 1
            if not stream.is_accepted:
                self._unaccepted -= 1
        else:
            self._outbound -= 1
            if not stream.is_acknowledged:
                self._unacknowledged -= 1

    def _end(self, code: int) -> None:
        self.go_away(code)
        self._is_over = True
        for stream in list(self._streams.values()):
            self._break(stream)
