"""Yamux frames, codes and limits: the 12-byte header of the yamux specification (libp2p/specs, yamux/README.md).

Header, big-endian: version u8 · type u8 · flags u16 · stream id u32 · length u32. "The version field … is
always set to 0". The payload follows only in Data frames. What a frame means is the machine's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from p2p.errors import P2PError

PROTOCOL = "/yamux/1.0.0"

HEADER = Struct("!BBHII")
HEADER_BYTES = HEADER.size

# "Type Field"
DATA = 0
WINDOW_UPDATE = 1
PING = 2
GO_AWAY = 3

# "Flag Field"
SYN = 1
ACK = 2
FIN = 4
RST = 8

# "Session termination"
NORMAL_TERMINATION = 0
PROTOCOL_ERROR = 1
INTERNAL_ERROR = 2

SESSION_ID = 0  # "the 0 ID is reserved to represent the session"
STREAM_ID_MAX = 2**32 - 1
WINDOW_BYTES_INITIAL = 256 * 1024  # "Both sides assume the initial 256KB window"
WINDOW_BYTES_CEILING = 2**32 - 1  # a send window over what one update can say is nonsense

NANOSECONDS = 1_000_000_000


class YamuxError(P2PError):
    """Root of what can go wrong on a yamux session."""


class YamuxViolation(YamuxError):
    """The remote broke the protocol or a bound. The session is over; `code` is for our Go Away."""

    code = PROTOCOL_ERROR


class RemoteGone(YamuxError):
    """The remote said Go Away, or has not answered a ping in time: no stream can be opened any more."""


class StreamLimitReached(YamuxError):
    """Local refusal: as many streams as allowed are open, or wait for the remote's acknowledgement.
    Nothing was sent; try again when a stream has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class YamuxSettings:
    """Bounds of one session, per connection. Worst-case memory is about `receive_total_bytes_max` +
    `send_buffer_bytes_max` × streams that the local program writes to at once."""

    window_bytes: int = WINDOW_BYTES_INITIAL  # what a peer may have in flight unread on one stream
    frame_bytes_max: int = 32 * 1024  # our Data frames: also the turn of one stream, so others wait < 0.2 ms
    send_buffer_bytes_max: int = 128 * 1024  # written but not yet framed, per stream
    receive_total_bytes_max: int = 16 * 1024 * 1024  # unread bytes of all streams: 64 full windows
    released_bytes_max: int = 64 * 1024  # what may still come to a stream that nobody reads before it is reset
    control_bytes_max: int = 96 * 1024  # answers (ACK, RST, pong, credit) that a peer caused and does not read
    streams_inbound_max: int = 256
    streams_outbound_max: int = 256
    unaccepted_inbound_max: int = 256  # "SHOULD buffer at least 256 unacknowledged inbound streams"
    unacknowledged_outbound_max: int = 256  # "SHOULD at most allow an ACK backlog of 256 streams"
    pings_per_interval_max: int = 256  # a peer that measures its round trip every second needs 30
    refusals_per_interval_max: int = 1024  # SYNs over the stream limit before the peer counts as hostile
    keepalive_interval_s: float = 30.0
    keepalive_timeout_s: float = 60.0  # a busy Python peer has been seen to stall for 10 s
    half_closed_idle_intervals_max: int = 10  # 5 minutes of silence after we closed our side


DEFAULT_SETTINGS = YamuxSettings()


def encode_header(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    return HEADER.pack(0, kind, flags, stream_id, length)
