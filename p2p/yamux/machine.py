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

from p2p.yamux.events import SessionEvent, StreamReadable
from p2p.yamux.messages import (
    ACK,
    DATA,
    DEFAULT_SETTINGS,
    FIN,
    GO_AWAY,
    HEADER,
    HEADER_BYTES,
    NORMAL_TERMINATION,
    PING,
    PROTOCOL_ERROR,
    SESSION_ID,
    STREAM_ID_MAX,
    SYN,
    WINDOW_UPDATE,
    RemoteGone,
    StreamLimitReached,
    YamuxSettings,
    YamuxViolation,
)
from p2p.yamux.receiving import Receiving
from p2p.yamux.stream import SessionStream

_pack = HEADER.pack


class Session(Receiving):
    """One side of a yamux session. "The client side should use odd ID's, and the server even." """

    def __init__(self, *, is_client: bool, now: int, settings: YamuxSettings = DEFAULT_SETTINGS) -> None:
        super().__init__(is_client=is_client, now=now, settings=settings)

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
        """The program is done reading. What still arrives is dropped and earns no credit; a remote that sends more
        than `released_bytes_max` of it is reset, so that its writers learn that nobody listens."""
        stream.is_released = True
        if not stream.is_detached:
            self._unread_bytes -= len(stream.unread)
        stream.unread.clear()

    def reset(self, stream: SessionStream) -> None:
        """End the stream at once, both ways; what is unread or unsent is dropped. Idempotent."""
        self._refuse(stream)

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
                if size:
                    stream.send_window -= size
                    out += _pack(0, DATA, 0, stream.id, size)
                    out += unsent
                    unsent.clear()
                # in a frame of its own: js-yamux 8.0 drops data in a frame with FIN once it has closed its side
                out += _pack(0, WINDOW_UPDATE, FIN, stream.id, 0)
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

    def _end(self, code: int) -> None:
        self.go_away(code)
        self._is_over = True
        for stream in list(self._streams.values()):
            self._break(stream)
