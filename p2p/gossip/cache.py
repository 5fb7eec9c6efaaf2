"""What the router remembers of messages: those seen, those kept for IWANT, those promised. All bounded.

Source: gossipsub v1.0 "Message Cache", v1.1 "Spam Protection Measures".
"""

from __future__ import annotations

from typing import NamedTuple

from p2p.gossip.messages import Message

ASKED_AT_ONCE = 2


class SeenCache:
    """Message ids with the time of their first arrival: "a timed least-recently-used cache"."""

    __slots__ = ("_entries_max", "_seen", "_ttl")

    def __init__(self, *, ttl: int, entries_max: int) -> None:
        self._ttl = ttl
        self._entries_max = entries_max
        self._seen: dict[bytes, int] = {}  # in order of arrival

    def __contains__(self, message_id: bytes) -> bool:
        return message_id in self._seen

    def __len__(self) -> int:
        return len(self._seen)

    def seen_at(self, message_id: bytes) -> int | None:
        return self._seen.get(message_id)

    def add(self, message_id: bytes, *, now: int) -> None:
        self._seen[message_id] = now
        if len(self._seen) > self._entries_max:
            del self._seen[next(iter(self._seen))]

    def expire(self, *, now: int) -> None:
        oldest = now - self._ttl
        stale = []
        for message_id, at in self._seen.items():
            if at > oldest:
                break
            stale.append(message_id)
        for message_id in stale:
            del self._seen[message_id]


class Cached(NamedTuple):
    message: Message
    sent: dict[bytes, int]  # peer → how often it asked for it by IWANT


class MessageCache:
    """ "Stores message IDs and their corresponding messages, segmented into history windows"."""

    def __init__(self, *, windows: int, gossip_windows: int, messages_max: int, bytes_max: int) -> None:
        self._gossip_windows = gossip_windows
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._cached: dict[bytes, Cached] = {}  # in order of arrival
        self._windows: list[dict[str, list[bytes]]] = [{} for _ in range(windows)]
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._cached)

    def put(self, message_id: bytes, message: Message) -> None:
        if message_id in self._cached:
            return
        self._cached[message_id] = Cached(message, {})
        self._bytes += len(message.raw)
        self._windows[0].setdefault(message.topic, []).append(message_id)
        while len(self._cached) > self._messages_max or self._bytes > self._bytes_max:
            self._drop(next(iter(self._cached)))

    def get(self, message_id: bytes) -> Cached | None:
        return self._cached.get(message_id)

    def gossip_ids(self, topic: str) -> list[bytes]:
        """ "The message IDs for messages in the most recent history windows, scoped to a given topic"."""
        return [
            message_id
            for window in self._windows[: self._gossip_windows]
            for message_id in window.get(topic, ())
            if message_id in self._cached
        ]

    def shift(self) -> None:
        for ids in self._windows.pop().values():
            for message_id in ids:
                self._drop(message_id)
        self._windows.insert(0, {})

    def _drop(self, message_id: bytes) -> None:
        cached = self._cached.pop(message_id, None)
        if cached is not None:
            self._bytes -= len(cached.message.raw)


class Promises:
    """Which peer said that it has a message we asked it for, and until when it must have come: "If the message
    is not received (from any peer) within a period of time, then a behavioural penalty is applied"."""

    def __init__(self, *, followup: int, promises_max: int) -> None:
        self._followup = followup
        self._promises_max = promises_max
        self._by_id: dict[bytes, dict[bytes, int]] = {}  # id → peer → deadline
        self._asked: dict[bytes, tuple[int, int]] = {}  # id → how many peers were asked, until when

    def __len__(self) -> int:
        return len(self._by_id)

    def may_ask(self, message_id: bytes, *, now: int) -> bool:
        """Two peers at a time: one liar cannot suppress a message, and six honest ones do not all send it."""
        count, until = self._asked.get(message_id, (0, 0))
        return (count < ASKED_AT_ONCE or now >= until) and len(self._asked) < self._promises_max

    def asked(self, message_id: bytes, *, now: int) -> None:
        count, until = self._asked.get(message_id, (0, 0))
        self._asked[message_id] = (count + 1 if now < until else 1, now + self._followup)

    def add(self, peer: bytes, message_id: bytes, *, now: int) -> None:
        if len(self._by_id) < self._promises_max:
            self._by_id.setdefault(message_id, {}).setdefault(peer, now + self._followup)

    def kept(self, message_id: bytes) -> None:
        self._by_id.pop(message_id, None)
        self._asked.pop(message_id, None)

    def broken(self, *, now: int) -> dict[bytes, int]:
        """Peer → how many of its promises have run out. They are forgotten here."""
        broken: dict[bytes, int] = {}
        for message_id in [i for i, (_, until) in self._asked.items() if until <= now]:
            del self._asked[message_id]
        for message_id in list(self._by_id):
            peers = self._by_id[message_id]
            for peer in [peer for peer, deadline in peers.items() if deadline <= now]:
                del peers[peer]
                broken[peer] = broken.get(peer, 0) + 1
            if not peers:
                del self._by_id[message_id]
        return broken


class TokenBucket:
    """At most `burst` at once and `per_s` a second in the long run."""

    __slots__ = ("_burst", "_last", "_per_ns", "_tokens")

    def __init__(self, *, per_s: float, burst: float, now: int) -> None:
        self._per_ns = per_s / 1e9
        self._burst = burst
        self._tokens = burst
        self._last = now

    def take(self, *, now: int) -> bool:
        tokens = self._tokens + (now - self._last) * self._per_ns
        self._last = now
        if tokens > self._burst:
            tokens = self._burst
        if tokens < 1.0:
            self._tokens = tokens
            return False
        self._tokens = tokens - 1.0
        return True
