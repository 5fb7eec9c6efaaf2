"""One stream of a yamux session: its windows, its two buffers and how far each side has closed.

Values only. The session changes them; a driver reads them and keeps its own waiting tasks in `owner`.
"""

from __future__ import annotations


class SessionStream:
    """Read by drivers: `id`, `is_inbound`, `unread`, `is_ended`, `is_reset`, `is_write_closed`, `has_room`.

    `owner` belongs to the driver and is never looked at here. Everything else belongs to the session.
    """

    __slots__ = (
        "discarded",
        "id",
        "idle_intervals",
        "is_accepted",
        "is_acknowledged",
        "is_blocked",
        "is_detached",
        "is_ended",
        "is_fin_sent",
        "is_inbound",
        "is_queued",
        "is_released",
        "is_reset",
        "is_signalled",
        "is_write_closed",
        "owed",
        "owner",
        "receive_window",
        "send_buffer_bytes_max",
        "send_window",
        "unread",
        "unsent",
    )

    def __init__(
        self, stream_id: int, *, is_inbound: bool, receive_window: int, send_window: int, send_buffer_bytes_max: int
    ) -> None:
        self.id = stream_id
        self.is_inbound = is_inbound
        self.receive_window = receive_window  # what the remote may still send
        self.send_window = send_window  # what we may still send
        self.send_buffer_bytes_max = send_buffer_bytes_max
        self.unread = bytearray()  # at most the receive window
        self.unsent = bytearray()  # at most send_buffer_bytes_max
        self.owed = 0  # bytes read by the program whose credit the remote has not been given yet
        self.is_ended = False  # the remote sent FIN
        self.is_write_closed = False  # we closed our side; FIN follows the last unsent byte
        self.is_fin_sent = False
        self.is_reset = False
        self.is_accepted = not is_inbound
        self.is_acknowledged = is_inbound
        self.is_blocked = False  # a writer waits for room
        self.is_queued = False  # waits for its turn to send
        self.is_signalled = False  # already reported in this call of receive()
        self.is_released = False  # the program reads no more: what arrives is dropped and earns no credit
        self.is_detached = False  # no longer in the session's table
        self.discarded = 0  # bytes dropped since is_released
        self.idle_intervals = 0
        self.owner: object = None

    @property
    def has_room(self) -> bool:
        return len(self.unsent) < self.send_buffer_bytes_max

    def __repr__(self) -> str:
        side = "inbound" if self.is_inbound else "outbound"
        return f"<SessionStream {self.id} {side}>"
