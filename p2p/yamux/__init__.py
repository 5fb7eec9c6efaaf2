"""Yamux, sans-IO: many byte streams over one ordered connection."""

from p2p.yamux.events import PongReceived, RemoteGoneAway, SessionEvent, StreamArrived, StreamReadable
from p2p.yamux.machine import Session
from p2p.yamux.messages import (
    PROTOCOL,
    RemoteGone,
    StreamLimitReached,
    YamuxError,
    YamuxSettings,
    YamuxViolation,
)
from p2p.yamux.stream import SessionStream

__all__ = [
    "PROTOCOL",
    "PongReceived",
    "RemoteGone",
    "RemoteGoneAway",
    "Session",
    "SessionEvent",
    "SessionStream",
    "StreamArrived",
    "StreamLimitReached",
    "StreamReadable",
    "YamuxError",
    "YamuxSettings",
    "YamuxViolation",
]
