"""What a yamux session tells its driver."""

from __future__ import annotations

from dataclasses import dataclass

from p2p.yamux.stream import SessionStream


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
