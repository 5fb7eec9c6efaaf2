"""What a router knows: its neighbours, its meshes, and what it remembers. Values and their bookkeeping only.

Dictionaries stand where sets would do: their order does not depend on the process, so a seed replays a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from p2p.gossip.cache import MessageCache, Promises, SeenCache, TokenBucket
from p2p.gossip.messages import Message, Rpc
from p2p.gossip.score import PeerScore, Scores
from p2p.gossip.settings import NANOSECONDS, GossipSettings
from p2p.randomness import Randomness

TOPICS_LEFT_MAX = 64  # a client that moves between shards leaves a few a minute


class Send(NamedTuple):
    """Send `rpc` to each of `peers`: encode it once."""

    peers: tuple[bytes, ...]
    rpc: Rpc


class Deliver(NamedTuple):
    """A valid message of a topic that we joined, for the first time."""

    forwarder: bytes
    message: Message


class Disconnect(NamedTuple):
    peer: bytes
    why: str


class Dial(NamedTuple):
    """A peer offered in exchange by one we trust. Verify `record` (a signed envelope, maybe empty) and the dial
    policy before dialling."""

    peer: bytes
    record: bytes


Effect = Send | Deliver | Disconnect | Dial


class Neighbour:
    """A connected peer that speaks gossipsub."""

    __slots__ = (
        "bucket",
        "dont_send",
        "graylisted_ticks",
        "has_idontwant",
        "idontwant_ids",
        "ihave_ids",
        "ihave_messages",
        "is_explicit",
        "is_outbound",
        "iwant_ids",
        "mesh_changes",
        "peer",
        "score",
        "topic_buckets",
        "topics",
    )

    def __init__(
        self, peer: bytes, *, score: PeerScore, is_outbound: bool, has_idontwant: bool, is_explicit: bool
    ) -> None:
        self.peer = peer
        self.score = score
        self.is_outbound = is_outbound  # we dialled it: "Outbound Mesh Quotas"
        self.has_idontwant = has_idontwant
        self.is_explicit = is_explicit
        self.topics: dict[str, None] = {}
        self.bucket: TokenBucket | None = None
        self.topic_buckets: dict[str, TokenBucket] = {}  # of topics that we joined
        self.dont_send: dict[bytes, int] = {}  # id → tick at which to forget it
        self.ihave_messages = self.ihave_ids = self.idontwant_ids = 0  # since the last heartbeat, and:
        self.iwant_ids = self.mesh_changes = 0
        self.graylisted_ticks = 0


class Backoffs:
    """Until when a peer must not be grafted: (topic, peer) → ns. Bounded; the oldest entry goes first."""

    __slots__ = ("_entries", "_entries_max")

    def __init__(self, entries_max: int) -> None:
        self._entries: dict[tuple[str, bytes], int] = {}
        self._entries_max = entries_max

    def __len__(self) -> int:
        return len(self._entries)

    def until(self, topic: str, peer: bytes) -> int:
        return self._entries.get((topic, peer), 0)

    def extend(self, topic: str, peer: bytes, until: int) -> None:
        key = (topic, peer)
        if until > self._entries.get(key, 0):
            self._entries[key] = until
            if len(self._entries) > self._entries_max:
                del self._entries[next(iter(self._entries))]

    def expire(self, *, now: int) -> None:
        for key in [key for key, until in self._entries.items() if until <= now]:
            del self._entries[key]


class Counters:
    """What happened, for people and tests. They only rise."""

    __slots__ = (
        "delivered",
        "duplicates",
        "ignored",
        "invalid_signatures",
        "over_rate",
        "promises_broken",
        "published",
        "rejected",
        "rpcs_graylisted",
    )

    def __init__(self) -> None:
        self.delivered = self.duplicates = self.ignored = self.invalid_signatures = self.over_rate = 0
        self.promises_broken = self.published = self.rejected = self.rpcs_graylisted = 0


class RouterState:
    def __init__(
        self,
        me: bytes,
        settings: GossipSettings,
        *,
        rng: Randomness,
        scores: Scores,
        peer_record: Callable[[bytes], bytes] | None,
        now: int,
    ) -> None:
        self.me = me
        self.peer_record = peer_record
        self.settings = settings
        self.rng = rng
        self.scores = scores
        self.counters = Counters()
        self.neighbours: dict[bytes, Neighbour] = {}
        self.topics: dict[str, dict[bytes, Neighbour]] = {}  # who is in which topic
        self.mesh: dict[str, dict[bytes, Neighbour]] = {}  # the topics that we joined
        self.left: dict[str, None] = {}  # topics that we were in lately: said again in a repeated hello
        self.fanout: dict[str, dict[bytes, Neighbour]] = {}
        self.fanout_published_at: dict[str, int] = {}
        self.backoffs = Backoffs(settings.backoffs_max)
        self.seen = SeenCache(ttl=int(settings.seen_ttl_s * NANOSECONDS), entries_max=settings.seen_max)
        self.cache = MessageCache(
            windows=settings.history_windows,
            gossip_windows=settings.gossip_windows,
            messages_max=settings.cache_messages_max,
            bytes_max=settings.cache_bytes_max,
        )
        self.promises = Promises(
            followup=int(settings.iwant_followup_s * NANOSECONDS), promises_max=settings.promises_max
        )
        self.tick = 0
        self.next_heartbeat = now + int(settings.heartbeat_s * NANOSECONDS)

    def note_left(self, topic: str) -> None:
        self.left[topic] = None
        if len(self.left) > TOPICS_LEFT_MAX:
            del self.left[next(iter(self.left))]

    def subscribed(self, neighbour: Neighbour, topic: str) -> bool:
        """False when the peer is in too many topics already."""
        if topic in neighbour.topics:
            return True
        if len(neighbour.topics) >= self.settings.topics_per_peer_max:
            return False
        neighbour.topics[topic] = None
        self.topics.setdefault(topic, {})[neighbour.peer] = neighbour
        return True

    def unsubscribed(self, neighbour: Neighbour, topic: str) -> None:
        if neighbour.topics.pop(topic, 0) == 0:
            return
        members = self.topics[topic]
        del members[neighbour.peer]
        if not members:
            del self.topics[topic]
        self.leave_mesh(neighbour, topic)
        if topic in self.fanout:
            self.fanout[topic].pop(neighbour.peer, None)

    def leave_mesh(self, neighbour: Neighbour, topic: str) -> None:
        mesh = self.mesh.get(topic)
        if mesh is not None and mesh.pop(neighbour.peer, None) is not None:
            self.scores.pruned(neighbour.score, topic)

    def join_mesh(self, neighbour: Neighbour, topic: str, *, now: int) -> None:
        self.mesh[topic][neighbour.peer] = neighbour
        self.scores.grafted(neighbour.score, topic, now=now)

    def candidates(self, topic: str, *, without: Iterable[bytes], now: int) -> list[Neighbour]:
        """Members of the topic that may be grafted: not there yet, not explicit, not negative, not backed off."""
        excluded = without if isinstance(without, dict) else dict.fromkeys(without)
        until = self.backoffs.until
        slack = int(self.settings.backoff_slack_s * NANOSECONDS)
        return [
            neighbour
            for peer, neighbour in self.topics.get(topic, {}).items()
            if peer not in excluded
            and not neighbour.is_explicit
            and neighbour.score.value >= 0
            and not now < (until(topic, peer) or -slack) + slack
        ]

    def choose(self, found: list[Neighbour], count: int) -> list[Neighbour]:
        if count <= 0:
            return []
        return found if len(found) <= count else self.rng.sample(found, count)
