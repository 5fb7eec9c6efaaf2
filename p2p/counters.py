"""The counters behind `Node.statistics()`, shared by every implementation of the interface."""

from __future__ import annotations

from dataclasses import dataclass

from p2p.interface import Statistics


@dataclass(slots=True)
class Counters:
    """Plain numbers, changed in place by their owners within one thread."""

    streams_open: int = 0
    streams_opened: int = 0
    streams_accepted: int = 0
    streams_refused: int = 0
    frames_sent: int = 0
    frames_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    frames_refused: int = 0
    gossip_published: int = 0
    gossip_received: int = 0
    gossip_rejected: int = 0
    gossip_ignored: int = 0
    gossip_dropped: int = 0
    handler_errors: int = 0
    dials: int = 0
    dials_failed: int = 0

    def snapshot(self, *, connections_open: int) -> Statistics:
        return Statistics(
            connections_open=connections_open,
            **{name: getattr(self, name) for name in self.__slots__},
        )
