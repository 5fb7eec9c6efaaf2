"""One iterative lookup as a machine: who to ask next, and when it is over. No messages, no time.

kad-dht/README.md, "Peer routing": candidates sorted by distance, α in flight, until the k closest seen have
answered. S/Kademlia: several paths that share no peer, so one liar's tale reaches one path only.
"""

from __future__ import annotations

from collections.abc import Container
from enum import Enum

from p2p.kad.messages import KadPeer, kad_id
from p2p.kad.settings import KadSettings
from p2p.kad.table import GroupsOf


class _State(Enum):
    NEW = "new"
    ASKED = "asked"
    ANSWERED = "answered"
    FAILED = "failed"


class _Candidate:
    __slots__ = ("distance", "known", "state")

    def __init__(self, known: KadPeer, distance: int) -> None:
        self.known = known
        self.distance = distance
        self.state = _State.NEW


class _Path:
    __slots__ = ("candidates", "in_flight")

    def __init__(self) -> None:
        self.candidates: list[_Candidate] = []  # nearest first
        self.in_flight = 0


class Lookup:
    def __init__(
        self,
        key: bytes,
        *,
        me: bytes,
        seeds: list[KadPeer],
        settings: KadSettings,
        groups_of: GroupsOf,
        avoid: Container[bytes] = frozenset(),
    ) -> None:
        """`seeds`: peers of our own table, nearest first; they are dealt out to the paths in turn. `avoid`: peers
        that are not asked, whoever names them."""
        self.key = key
        self.target = kad_id(key)
        self._me = me
        self._settings = settings
        self._groups_of = groups_of
        self._avoid = avoid
        self._path_of: dict[bytes, _Path] = {}
        self._per_group: dict[str, int] = {}
        self._asked = 0
        self._is_stopped = False
        self._paths = [_Path() for _ in range(max(1, min(settings.paths, len(seeds))))]
        for number, seed in enumerate(seeds):
            self._add(self._paths[number % len(self._paths)], seed)

    @property
    def is_over(self) -> bool:
        return self._is_stopped or all(path.in_flight == 0 and self._next_of(path) is None for path in self._paths)

    def stop(self) -> None:
        """What was looked for is found. Requests in flight are the caller's to forget."""
        self._is_stopped = True

    def next_peers(self) -> list[KadPeer]:
        """Whom to ask now; each counts as asked from here on."""
        chosen: list[KadPeer] = []
        if self._is_stopped:
            return chosen
        for path in self._paths:
            while path.in_flight < self._settings.alpha and self._asked < self._settings.queries_per_lookup_max:
                candidate = self._next_of(path)
                if candidate is None:
                    break
                candidate.state = _State.ASKED
                path.in_flight += 1
                self._asked += 1
                chosen.append(candidate.known)
        return chosen

    def answered(self, peer: bytes, closer: tuple[KadPeer, ...]) -> None:
        """`closer` comes from the peer and goes to its path alone; more than k of them are not read."""
        path = self._settle(peer, _State.ANSWERED)
        if path is not None:
            for known in closer[: self._settings.replication]:
                self._add(path, known)

    def failed(self, peer: bytes) -> None:
        self._settle(peer, _State.FAILED)

    def closest_answered(self, count: int) -> list[KadPeer]:
        """The nearest peers that answered, over all paths."""
        found = [c for path in self._paths for c in path.candidates if c.state is _State.ANSWERED]
        found.sort(key=lambda candidate: candidate.distance)
        return [candidate.known for candidate in found[:count]]

    # --- helpers -------------------------------------------------------------------------------------------

    def _add(self, path: _Path, known: KadPeer) -> None:
        peer = known.peer
        if peer == self._me or peer in self._path_of or peer in self._avoid:
            return
        groups = self._groups_of(known.addresses)
        if any(self._per_group.get(group, 0) >= self._settings.lookup_per_group_max for group in groups):
            return
        candidate = _Candidate(known, kad_id(peer) ^ self.target)
        candidates = path.candidates
        if len(candidates) >= self._settings.candidates_per_path_max:
            last = candidates[-1]
            if candidate.distance >= last.distance or last.state is _State.ASKED:
                return
            self._forget(candidates.pop())
        position = len(candidates)
        while position and candidates[position - 1].distance > candidate.distance:
            position -= 1
        candidates.insert(position, candidate)
        self._path_of[peer] = path
        for group in groups:
            self._per_group[group] = self._per_group.get(group, 0) + 1

    def _forget(self, candidate: _Candidate) -> None:
        del self._path_of[candidate.known.peer]
        for group in self._groups_of(candidate.known.addresses):
            self._per_group[group] -= 1

    def _next_of(self, path: _Path) -> _Candidate | None:
        """The nearest unasked one among the path's k nearest that have not failed."""
        if self._asked >= self._settings.queries_per_lookup_max:
            return None
        considered = 0
        for candidate in path.candidates:
            if candidate.state is _State.NEW:
                return candidate
            if candidate.state is not _State.FAILED:
                considered += 1
                if considered >= self._settings.replication:
                    return None
        return None

    def _settle(self, peer: bytes, state: _State) -> _Path | None:
        path = self._path_of.get(peer)
        if path is None:
            return None
        for candidate in path.candidates:
            if candidate.known.peer == peer:
                if candidate.state is not _State.ASKED:
                    return None
                candidate.state = state
                path.in_flight -= 1
                return path
        return None
