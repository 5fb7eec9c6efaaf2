"""Peers that answered what no honest peer answers: counted, and after a few times out of the table for a while.

What counts is decided by `machine.py`; all of it can be seen from the answer alone or from one lookup. A peer that is
slow, gone or out of date commits no offence. Bounded in every direction: an attacker who makes new keys pushes out
counts of its other keys, never an honest entry of the table.
"""

from __future__ import annotations

from p2p.kad.settings import NANOSECONDS, KadSettings


class Offences:
    def __init__(self, settings: KadSettings) -> None:
        self._settings = settings
        self._counts: dict[bytes, tuple[int, int]] = {}  # peer → offences, when the count lapses; the latest last
        self._banned: dict[bytes, int] = {}  # peer → until when; the earliest first
        self.counted = 0  # over the whole life, for statistics:
        self.bans = 0

    def count(self, peer: bytes, *, now: int) -> bool:
        """One more offence. True when the peer is banned now, and was not before."""
        self.counted += 1
        if self.is_banned(peer, now=now):
            return False
        earlier, lapses = self._counts.pop(peer, (0, 0))
        count = 1 + (earlier if now < lapses else 0)
        if count >= self._settings.offences_max:
            self.ban(peer, now=now)
            return True
        self._counts[peer] = (count, now + int(self._settings.offence_memory_s * NANOSECONDS))
        if len(self._counts) > self._settings.offenders_max:
            del self._counts[next(iter(self._counts))]
        return False

    def ban(self, peer: bytes, *, now: int) -> None:
        self.bans += 1
        self._counts.pop(peer, None)
        self._banned.pop(peer, None)
        self._banned[peer] = now + int(self._settings.ban_s * NANOSECONDS)
        if len(self._banned) > self._settings.offenders_max:
            del self._banned[next(iter(self._banned))]

    def is_banned(self, peer: bytes, *, now: int) -> bool:
        return self._banned.get(peer, 0) > now

    def banned(self, *, now: int) -> frozenset[bytes]:
        return frozenset(peer for peer, until in self._banned.items() if until > now)

    def expire(self, *, now: int) -> None:
        for peer in [peer for peer, until in self._banned.items() if until <= now]:
            del self._banned[peer]
        for peer in [peer for peer, (_, lapses) in self._counts.items() if lapses <= now]:
            del self._counts[peer]
