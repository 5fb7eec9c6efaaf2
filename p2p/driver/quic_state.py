"""One QUIC stream as the machine sees it, what the machine tells its driver, and the bounds of a connection: values."""

from __future__ import annotations

from dataclasses import dataclass

from p2p.errors import P2PError
from p2p.interface import KIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class QuicSettings:
    """Bounds of one connection."""

    window_bytes: int = 256 * KIB  # what a peer may have in flight unread on one stream
    receive_total_bytes_max: int = 16 * MIB  # the same for all streams together; near it the fullest is reset


DEFAULT_SETTINGS = QuicSettings()


class QuicFailed(P2PError):
    """The connection broke: the peer left, kept silent, or broke the protocol."""


class StreamState:
    """One stream as the machine sees it. `owner` is the driver's."""

    __slots__ = (
        "consumed",
        "discarded",
        "id",
        "is_blocked",
        "is_done_here",
        "is_ended",
        "is_inbound",
        "is_read_over",
        "is_released",
        "is_reset",
        "is_stopped",
        "is_write_closed",
        "owner",
        "received",
        "silent_since",
        "unread",
    )

    def __init__(self, stream_id: int, *, is_inbound: bool) -> None:
        self.id = stream_id
        self.is_inbound = is_inbound
        self.unread = bytearray()  # at most the window
        self.received = 0  # bytes in order, ever
        self.consumed = 0  # of them read by the program
        self.discarded = 0  # dropped since is_released
        self.is_ended = False  # the peer's FIN has been reached
        self.is_reset = False  # by either side: nothing more to read or write
        self.is_stopped = False  # the peer reads no more
        self.is_write_closed = False
        self.is_released = False
        self.is_blocked = False  # a writer waits for room
        self.is_read_over = False  # the peer's side has ended: no further data can come
        self.is_done_here = False  # both sides have ended as far as our program is concerned
        self.silent_since: float | None = None  # when the peer was last heard, once we closed our side
        self.owner: object = None

    def __repr__(self) -> str:
        return f"<StreamState {self.id} {'inbound' if self.is_inbound else 'outbound'}>"


@dataclass(frozen=True, slots=True)
class StreamArrived:
    stream: StreamState


@dataclass(frozen=True, slots=True)
class StreamChanged:
    """Something to read, an end or a break."""

    stream: StreamState


@dataclass(frozen=True, slots=True)
class Opened:
    """The handshake is complete, and the peer has proved who it is."""


@dataclass(frozen=True, slots=True)
class Pong:
    pass


@dataclass(frozen=True, slots=True)
class IdIssued:
    connection_id: bytes


@dataclass(frozen=True, slots=True)
class IdRetired:
    connection_id: bytes


QuicEvent = StreamArrived | StreamChanged | Opened | Pong | IdIssued | IdRetired
