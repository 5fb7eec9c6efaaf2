"""Who was sent away lately, and may not come back yet. A pure table: time is passed in.

It saves what a peer costs that dials again at once: streams, identify, subscriptions, and a heartbeat of patience. Not
a wall: a new identity is free, so limits per address and per peer stand beside it. What we dial ourselves is not asked.
"""

from __future__ import annotations

from p2p.interface import PeerId

BANNED_MAX = 1024  # 200 KiB; over it those that would be free soonest are forgotten


class BanList:
    def __init__(self, *, peers_max: int = BANNED_MAX) -> None:
        self._until: dict[PeerId, float] = {}
        self._peers_max = peers_max

    def __len__(self) -> int:
        return len(self._until)

    def add(self, peer: PeerId, *, now: float, for_s: float) -> None:
        """A longer time that already runs is not made shorter."""
        self._until[peer] = max(now + for_s, self._until.get(peer, 0.0))
        if len(self._until) > self._peers_max:
            self._forget(now)

    def is_banned(self, peer: PeerId, *, now: float) -> bool:
        until = self._until.get(peer)
        if until is None:
            return False
        if now >= until:
            del self._until[peer]
            return False
        return True

    def lift(self, peer: PeerId) -> None:
        self._until.pop(peer, None)

    def _forget(self, now: float) -> None:
        for peer in [peer for peer, until in self._until.items() if now >= until]:
            del self._until[peer]
        while len(self._until) > self._peers_max:
            del self._until[min(self._until, key=self._until.__getitem__)]
