"""What the remote sent: frames out of bytes, and what each of them does to the session.

Whatever an honest remote does not send ends the session with YamuxViolation.
"""

from __future__ import annotations

from p2p.yamux.events import PongReceived, RemoteGoneAway, SessionEvent, StreamArrived
from p2p.yamux.messages import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    HEADER_BYTES,
    PING,
    RST,
    SESSION_ID,
    SYN,
    WINDOW_BYTES_CEILING,
    WINDOW_UPDATE,
    YamuxViolation,
)
from p2p.yamux.state import SessionState
from p2p.yamux.stream import SessionStream

_pack = HEADER.pack
_unpack = HEADER.unpack_from
_FLAGS_ALL = SYN | ACK | FIN | RST


class Receiving(SessionState):
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
                if stream is not None and not stream.is_detached:
                    self._take_body(stream, data, position, size, events)
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

    def _take_body(
        self, stream: SessionStream, data: bytes, position: int, size: int, events: list[SessionEvent]
    ) -> None:
        if stream.is_released:
            stream.discarded += size
            if stream.discarded > self._settings.released_bytes_max:
                self._refuse(stream)
            return
        if size > 4096:
            with memoryview(data) as view:
                stream.unread += view[position : position + size]
        else:
            stream.unread += data[position : position + size]
        self._unread_bytes += size
        self._signal(stream, events)
        if self._unread_bytes > self._settings.receive_total_bytes_max:
            self._shed(events)

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

    def _shed(self, events: list[SessionEvent]) -> None:
        """Too much lies unread, though each stream keeps to its window: the worst stream pays."""
        worst = max(self._streams.values(), key=lambda stream: len(stream.unread))
        self._refuse(worst)
        self._signal(worst, events)

    def _refuse(self, stream: SessionStream) -> None:
        if not stream.is_detached:
            self._control += _pack(0, WINDOW_UPDATE, RST, stream.id, 0)
        self._break(stream)
