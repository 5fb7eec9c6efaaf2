"""The tables, buffers and counters of a yamux session, and how a stream enters and leaves them."""

from __future__ import annotations

from collections import deque

from p2p.yamux.events import SessionEvent, StreamReadable
from p2p.yamux.messages import NANOSECONDS, WINDOW_BYTES_INITIAL, YamuxSettings
from p2p.yamux.stream import SessionStream


class SessionState:
    """Everything a session remembers. `Receiving` and `Session` change it."""

    def __init__(self, *, is_client: bool, now: int, settings: YamuxSettings) -> None:
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
