"""The gossip workload of a scenario and what is measured of it: counts, delays, duplicates, who got what.

Published as `vyzo/gerbil-simsub` publishes: some fixed publishers share an even total rate, `publishers * rate_per_s`;
each message is published by one of them, drawn at random. The delay of a (message, node) is the time from the
publication until that node's router delivers it, the publisher left out.

`delivered_share`: of those that were up and in the topic when a message was published, and did not go down before they
got it within `SETTLED_S`, the share that got it. `duplicates_per_delivery`: copies of messages of any topic that a
router had already, per delivery.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from p2p.gossip import GossipSettings, Message, ScoreSettings, TopicScore
from sim.kernel import SECOND
from sim.levels.node import Node
from sim.levels.quantiles import Delays
from sim.levels.world import World
from sim.out import Sink
from sim.rng import stream
from sim.scenario import GossipSpec, MetricsSpec

SETTLED_S = 30.0  # older messages are on no way any more: the IWANT of the last IHAVE has been answered long ago
UNDER_WAY_S = 3.0  # a message younger than this at the end of the run is not judged by who has it
NEVER_BYTES = 1 << 30  # a size that no message has: switches IDONTWANT off
_HELD = (0.0, 0.5, 0.9, 0.99, 1.0)


def gossip_settings(spec: GossipSpec) -> GossipSettings:
    """The router's settings for that version of the protocol.

    v1.0 is the shipped router with everything of 1.1 switched off: no scores, no backoff, no outbound quota, no flood
    publishing, no peer exchange, D_lazy peers per heartbeat however many there are, and an IWANT to every peer that
    announces what is missing.
    """
    base = GossipSettings(
        degree=spec.degree,
        degree_low=spec.degree_low,
        degree_high=spec.degree_high,
        degree_lazy=spec.degree_lazy,
        degree_score=min(4, spec.degree),
        degree_out=min(2, spec.degree_low, spec.degree // 2),
        heartbeat_s=spec.heartbeat_s,
    )
    if spec.protocol != "v1.2":
        base = replace(base, idontwant_bytes_min=NEVER_BYTES)
    score = base.score
    if spec.protocol == "v1.0":
        score = ScoreSettings(
            topic_default=None,
            colocation_weight=0.0,
            behaviour_weight=0.0,
            opportunistic_graft_threshold=-1.0,
        )
        base = replace(
            base,
            degree_score=0,
            degree_out=0,
            gossip_factor=0.0,
            flood_publish=False,
            prune_backoff_s=0,
            unsubscribe_backoff_s=0,
            backoff_slack_s=0.0,
            graft_flood_s=0.0,
            px_peers=0,
            iwant_followup_s=0.0,
        )
    if spec.topic_score:
        parameters = replace(TopicScore(), **_typed(TopicScore, spec.topic_score))
        score = replace(score, topics={spec.topic: parameters})
    if spec.score:
        score = replace(score, **_typed(ScoreSettings, spec.score))
    return replace(base, score=score, **_typed(GossipSettings, spec.settings))


def _typed(kind: type, given: Any) -> dict[str, Any]:
    """A TOML integer may stand where a float is wanted."""
    wants_float = {field.name for field in fields(kind) if field.type == "float"}
    return {name: float(value) if name in wants_float else value for name, value in given.items()}


class _Publication:
    __slots__ = ("at", "expected", "got", "number", "publisher", "waiting")

    def __init__(self, number: int, at: int, publisher: int, waiting: bytearray, expected: int) -> None:
        self.number = number
        self.at = at
        self.publisher = publisher
        self.waiting = waiting  # 1 for each node that should still get it
        self.expected = expected
        self.got = 0


class GossipWorkload:
    def __init__(self, world: World, spec: GossipSpec, metrics: MetricsSpec, sink: Sink, *, warmup_ns: int) -> None:
        self.world = world
        self.spec = spec
        self.metrics = metrics
        self.delays = Delays()
        self.published = 0
        self.unsent = 0  # the publisher was down, or had nobody
        self.expected = 0
        self.delivered = 0
        self.all_deliveries = 0
        self._sink = sink
        self._rows = sink.wants("deliveries")
        self._counted_from = world.kernel.start_ns + warmup_ns
        self._duplicates_before = 0
        self._publications: dict[bytes, _Publication] = {}
        self._numbers = 0
        self._chance = stream(world.seed, "publish")
        self._publishers = self._choose_publishers()
        world.on_deliver(spec.topic, self._on_deliver)
        world.on_down(self._on_down)
        self._schedule()
        if warmup_ns:
            world.kernel.at(self._counted_from, self._end_warmup)

    def _choose_publishers(self) -> list[Node]:
        members = [node for node in self.world.with_role("gossip") if self.spec.topic in self.world.topics_of(node)]
        return stream(self.world.seed, "publishers").sample(members, min(self.spec.publishers, len(members)))

    @property
    def publishers(self) -> list[Node]:
        return self._publishers

    def _schedule(self) -> None:
        """The whole schedule hangs on the rate and the two ends only: one event, and then the next."""
        total = self.spec.publishers * self.spec.rate_per_s
        if not self._publishers or total <= 0:
            return
        self._interval = SECOND / total
        self._first = self.world.kernel.start_ns + int(self.spec.publish_from_s * SECOND)
        self._last = self.world.kernel.start_ns + int(self.spec.publish_until_s * SECOND)
        if self._first < self._last:
            self.world.kernel.at(self._first, self._publish)

    def _publish(self) -> None:
        world, number = self.world, self._numbers
        self._numbers += 1
        after = self._first + int(self._numbers * self._interval)
        if after < self._last:
            world.kernel.at(after, self._publish)
        node = self._chance.choice(self._publishers)
        data = number.to_bytes(8, "big") + bytes(max(0, self.spec.message_bytes - 8))
        now = world.kernel.now
        waiting = bytearray(len(world.nodes))
        expected = 0
        for other in world.nodes:
            if other.is_up and other is not node and self.spec.topic in world.topics_of(other):
                waiting[other.number] = 1
                expected += 1
        message_id = world.publish(node, self.spec.topic, data[: self.spec.message_bytes])
        if message_id is None:
            self.unsent += 1
            if not node.is_up:
                return
            message_id = b"unsent %d" % number
        publication = _Publication(number, now, node.number, waiting, expected)
        self._publications[message_id] = publication
        world.observer.published(now, node.number, number, len(data))
        if now >= self._counted_from:
            self.published += 1
        world.kernel.after(int(SETTLED_S * SECOND), self._settle, message_id)

    def _on_deliver(self, node: Node, forwarder: bytes, message: Message) -> None:
        publication = self._publications.get(message.id or b"")
        if publication is None:
            return
        now = self.world.kernel.now
        if node.number < len(publication.waiting) and publication.waiting[node.number]:
            publication.waiting[node.number] = 0
            publication.got += 1
        if publication.at < self._counted_from:
            return
        self.all_deliveries += 1
        self.delays.add(now - publication.at)
        if self._rows:
            self._sink.row(
                "deliveries", message=publication.number, node=node.number, t_ns=now, delay_ns=now - publication.at
            )

    def _on_down(self, node: Node) -> None:
        """Who leaves before it got a message is not expected to have it."""
        number = node.number
        for publication in self._publications.values():
            if number < len(publication.waiting) and publication.waiting[number]:
                publication.waiting[number] = 0
                publication.expected -= 1

    def _settle(self, message_id: bytes) -> None:
        publication = self._publications.pop(message_id)
        self._count(publication)

    def _count(self, publication: _Publication) -> None:
        if publication.at >= self._counted_from:
            self.expected += publication.expected
            self.delivered += publication.got

    def _end_warmup(self) -> None:
        self.world.sent.reset()
        self._duplicates_before = self._duplicates()

    def _duplicates(self) -> int:
        world = self.world
        return world.duplicates + sum(
            node.router.counters.duplicates for node in world.nodes if node.router is not None
        )

    def summary(self) -> dict[str, Any]:
        for publication in self._publications.values():
            if self.world.kernel.now - publication.at >= UNDER_WAY_S * SECOND:
                self._count(publication)
        self._publications.clear()
        least, p50, p90, p99, most = self.delays.quantiles_ms(_HELD)
        degrees = [
            len(node.router.state.mesh.get(self.spec.topic, ())) for node in self.world.nodes if node.router is not None
        ]
        duplicates = self._duplicates() - self._duplicates_before
        bars = {"bins_100ms": self.delays.bins(100.0, self.metrics.delay_bins)}
        if self.metrics.delay_bin_ms != 100.0:
            bars["bins"] = self.delays.bins(self.metrics.delay_bin_ms, self.metrics.delay_bins)
        return {
            "sent": self.world.sent.as_dict(),
            "delay_ms": {
                "p50": p50,
                "p90": p90,
                "p99": p99,
                "min": least,
                "max": most,
                "mean": self.delays.mean_ms(),
                **bars,
            },
            "duplicates_per_delivery": duplicates / self.all_deliveries if self.all_deliveries else None,
            "delivered_share": self.delivered / self.expected if self.expected else None,
            "published": self.published,
            "deliveries": self.all_deliveries,
            "unsent": self.unsent,
            "mesh_degree_mean": sum(degrees) / len(degrees) if degrees else None,
        }
