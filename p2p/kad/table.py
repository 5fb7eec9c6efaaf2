"""The routing table: whom we know, by distance, with limits on how much of it one network may fill.

Buckets by common prefix length with our own id, `k` entries each (kad-dht/README.md, "Kademlia routing table"). Only
peers that have answered us are entered, never hearsay. An entry that lives is not displaced by a newcomer, which
is what makes the table slow to poison; a newcomer waits as a replacement.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from p2p.kad.messages import kad_id
from p2p.kad.settings import NANOSECONDS, KadSettings

ID_BITS = 256

GroupsOf = Callable[[tuple[bytes, ...]], tuple[str, ...]]
"""Addresses → the groups that they belong to, such as "4:192.0.2" (a /24) or "as64496". () means exempt."""

_IP4, _IP6 = 0x04, 0x29  # multicodec of /ip4 and /ip6


def network_groups(addresses: tuple[bytes, ...]) -> tuple[str, ...]:
    """The /24 of each IPv4 and the /48 of each IPv6 address: what one tenant of a hosting company has."""
    groups: dict[str, None] = {}
    for address in addresses:
        if len(address) >= 5 and address[0] == _IP4:
            groups["4:" + address[1:4].hex()] = None
        elif len(address) >= 17 and address[0] == _IP6:
            groups["6:" + address[1:7].hex()] = None
    return tuple(groups)


def no_groups(addresses: tuple[bytes, ...]) -> tuple[str, ...]:
    """For development networks, where everybody has one address."""
    return ()


class Entry:
    __slots__ = ("addresses", "checked_at", "failures", "groups", "heard_at", "id", "peer")

    def __init__(self, peer: bytes, addresses: tuple[bytes, ...], groups: tuple[str, ...], *, now: int) -> None:
        self.peer = peer
        self.id = kad_id(peer)
        self.addresses = addresses
        self.groups = groups
        self.heard_at = self.checked_at = now
        self.failures = 0


class RoutingTable:
    def __init__(self, me: bytes, settings: KadSettings, *, groups_of: GroupsOf) -> None:
        self._id = kad_id(me)
        self._me = me
        self._settings = settings
        self._groups_of = groups_of
        self._buckets: dict[int, dict[bytes, Entry]] = {}
        self._replacements: dict[int, dict[bytes, Entry]] = {}
        self._per_group: dict[str, int] = {}
        self._entries: dict[bytes, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, peer: bytes) -> Entry | None:
        return self._entries.get(peer)

    def heard(self, peer: bytes, addresses: tuple[bytes, ...], *, now: int) -> bool:
        """The peer answered us as a server. True when it is in the table now."""
        if peer == self._me:
            return False
        entry = self._entries.get(peer)
        if entry is not None:
            entry.heard_at = entry.checked_at = now
            entry.failures = 0
            if addresses and addresses != entry.addresses:
                self._readdress(entry, addresses)
            return True
        entry = Entry(peer, addresses, self._groups_of(addresses), now=now)
        prefix = self._prefix(entry.id)
        if self._has_room(prefix, entry.groups):
            self._insert(prefix, entry)
            return True
        waiting = self._replacements.setdefault(prefix, {})
        waiting.pop(peer, None)
        waiting[peer] = entry  # the latest heard stand last
        if len(waiting) > self._settings.replacements_max:
            del waiting[next(iter(waiting))]
        return False

    def failed(self, peer: bytes) -> None:
        """The peer did not answer. After some failures in a row its place goes to a replacement."""
        entry = self._entries.get(peer)
        if entry is not None:
            entry.failures += 1
        if entry is None or entry.failures >= self._settings.failures_max:
            self.remove(peer)

    def remove(self, peer: bytes) -> None:
        """Also from those that wait for a place."""
        entry = self._entries.pop(peer, None)
        if entry is None:
            for waiting in self._replacements.values():
                waiting.pop(peer, None)
            return
        prefix = self._prefix(entry.id)
        del self._buckets[prefix][peer]
        for group in entry.groups:
            self._count_group(group, -1)
        waiting = self._replacements.get(prefix, {})
        for candidate in reversed(list(waiting.values())):
            if self._has_room(prefix, candidate.groups):
                del waiting[candidate.peer]
                self._insert(prefix, candidate)
                return

    def closest(self, target: int, count: int) -> list[Entry]:
        """The `count` entries nearest to `target`, nearest first.

        Buckets are taken in the order of their distance: those that share our first difference with the target,
        then all deeper ones, then the shallower ones one by one.
        """
        prefix = self._prefix(target)
        found = list(self._buckets.get(prefix, {}).values())
        if len(found) < count:
            for deeper, bucket in self._buckets.items():
                if deeper > prefix:
                    found += bucket.values()
        shallower = prefix - 1
        while len(found) < count and shallower >= 0:
            found += self._buckets.get(shallower, {}).values()
            shallower -= 1
        return heapq.nsmallest(count, found, key=lambda entry: entry.id ^ target)

    def due_for_check(self, *, now: int) -> list[Entry]:
        """Entries not heard of for long, the longest first; each is named once per interval."""
        oldest = now - int(self._settings.liveness_interval_s * NANOSECONDS)
        due = [entry for entry in self._entries.values() if entry.checked_at <= oldest]
        due = heapq.nsmallest(self._settings.liveness_checks_max, due, key=lambda entry: entry.checked_at)
        for entry in due:
            entry.checked_at = now
        return due

    # --- helpers -------------------------------------------------------------------------------------------

    def _prefix(self, identifier: int) -> int:
        """How many leading bits it shares with our id; our own id counts as the deepest bucket."""
        return min(ID_BITS - (identifier ^ self._id).bit_length(), ID_BITS - 1)

    def _has_room(self, prefix: int, groups: tuple[str, ...]) -> bool:
        settings = self._settings
        bucket = self._buckets.get(prefix, {})
        if len(bucket) >= settings.replication:
            return False
        for group in groups:
            if self._per_group.get(group, 0) >= settings.table_per_group_max:
                return False
            in_bucket = sum(group in entry.groups for entry in bucket.values())
            if in_bucket >= settings.table_per_group_bucket_max:
                return False
        return True

    def _insert(self, prefix: int, entry: Entry) -> None:
        self._buckets.setdefault(prefix, {})[entry.peer] = entry
        self._entries[entry.peer] = entry
        for group in entry.groups:
            self._count_group(group, 1)

    def _readdress(self, entry: Entry, addresses: tuple[bytes, ...]) -> None:
        """New addresses, unless they would bring the peer into a group that is full."""
        groups = self._groups_of(addresses)
        added = [group for group in groups if group not in entry.groups]
        if any(self._per_group.get(group, 0) >= self._settings.table_per_group_max for group in added):
            return
        for group in entry.groups:
            self._count_group(group, -1)
        for group in groups:
            self._count_group(group, 1)
        entry.addresses, entry.groups = addresses, groups

    def _count_group(self, group: str, change: int) -> None:
        count = self._per_group.get(group, 0) + change
        if count:
            self._per_group[group] = count
        else:
            del self._per_group[group]
