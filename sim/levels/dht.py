"""The lookups of a scenario and what is measured of them: hops, questions, time, was the closest node found.

Random nodes that are up look up random keys, evenly spread in time. Hops are the length of the chain of answers that
led to the closest peer that was found: a peer of one's own table is one hop away, a peer that it names two. Questions
that the machines ask for their own upkeep are not counted.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from p2p.kad import Ask, ClosestFound, KadNode, KadSettings, TooManyOperations
from p2p.kad.messages import kad_id
from sim.kernel import SECOND
from sim.levels.node import Node
from sim.levels.quantiles import quantile
from sim.levels.world import World
from sim.out import Sink
from sim.rng import stream
from sim.scenario import DhtSpec

_MS = 1_000_000


def kad_settings(spec: DhtSpec) -> KadSettings:
    wants_float = {field.name for field in fields(KadSettings) if field.type == "float"}
    given: dict[str, Any] = {
        name: float(value) if name in wants_float else value for name, value in spec.settings.items()
    }
    base = KadSettings(replication=spec.k, alpha=spec.alpha, paths=spec.paths)
    return replace(base, **given)


class _Walk:
    """One lookup under way: how many answers it took to hear of each peer."""

    __slots__ = ("depth", "key", "number", "questions", "requests", "started_at", "target")

    def __init__(self, number: int, key: bytes, started_at: int) -> None:
        self.number = number
        self.key = key
        self.target = kad_id(key)
        self.started_at = started_at
        self.questions = 0
        self.depth: dict[bytes, int] = {}
        self.requests: dict[int, bytes] = {}  # in flight: request → peer


class DhtWorkload:
    def __init__(self, world: World, spec: DhtSpec, sink: Sink, *, warmup_ns: int) -> None:
        self.world = world
        self.spec = spec
        self.hops: list[float] = []
        self.questions: list[float] = []
        self.times_ms: list[float] = []
        self.found_closest = 0
        self.ended = 0
        self.started = 0
        self.refused = 0
        self._sink = sink
        self._rows = sink.wants("lookups")
        self._counted_from = world.kernel.start_ns + warmup_ns
        self._walks: dict[int, dict[int, _Walk]] = {}  # node → request → its lookup
        self._chance = stream(world.seed, "lookups")
        self._members = world.with_role("dht")
        self._ids: list[tuple[int, Node]] = []
        self._current: _Walk | None = None
        self._numbers = 0
        world.dht.on_ask(self._on_ask)
        world.dht.on_answer(self._on_answer)
        world.on_down(self._on_down)
        self._schedule()

    def _schedule(self) -> None:
        first = self.world.kernel.start_ns + int(self.spec.lookups_from_s * SECOND)
        last = self.world.kernel.start_ns + int(self.spec.lookups_until_s * SECOND)
        if self.spec.lookups and first < last:
            self._first, self._interval = first, (last - first) / self.spec.lookups
            self.world.kernel.at(first, self._look_up)

    def _look_up(self) -> None:
        world, number = self.world, self._numbers
        self._numbers += 1
        if self._numbers < self.spec.lookups:
            world.kernel.at(self._first + int(self._numbers * self._interval), self._look_up)
        if not self._members:
            return
        key = self._chance.bytes(32)
        node = self._chance.choice(self._members)
        for _ in range(16):  # tries to meet one that is up
            if node.kad is not None:
                break
            node = self._chance.choice(self._members)
        machine: KadNode | None = node.kad
        if machine is None:
            return
        walk = _Walk(number, key, world.kernel.now)
        try:
            started = machine.find_closest(key, now=world.now_of(node))
        except TooManyOperations:
            self.refused += 1
            return
        self.started += 1
        self._current = walk
        world.dht.follow(node, started, lambda result: self._ended(node, walk, result))
        self._current = None

    # --- following a lookup through its questions -------------------------------------------------------------

    def _on_ask(self, node: Node, ask: Ask) -> None:
        walk = self._current
        if walk is None:
            return
        walk.questions += 1
        walk.depth.setdefault(ask.peer.peer, 1)
        walk.requests[ask.request_id] = ask.peer.peer
        self._walks.setdefault(node.number, {})[ask.request_id] = walk

    def _on_answer(self, node: Node, request_id: int, answer: Any, before: bool) -> None:
        """Called before and after the machine takes an answer: what it asks in between belongs to the same lookup."""
        if not before:
            self._current = None
            return
        of_node = self._walks.get(node.number)
        walk = of_node.pop(request_id, None) if of_node else None
        if walk is None:
            return
        peer = walk.requests.pop(request_id)
        self._current = walk
        if answer is not None:
            hop = walk.depth[peer] + 1
            for known in answer.closer:
                walk.depth.setdefault(known.peer, hop)

    def _on_down(self, node: Node) -> None:
        self._walks.pop(node.number, None)

    def _ended(self, node: Node, walk: _Walk, result: Any) -> None:
        of_node = self._walks.get(node.number)
        if of_node:
            for request_id in walk.requests:
                of_node.pop(request_id, None)
        if walk.started_at < self._counted_from:
            return
        self.ended += 1
        took_ms = (self.world.kernel.now - walk.started_at) / _MS
        self.questions.append(walk.questions)
        self.times_ms.append(took_ms)
        hops, has_closest = 0, False
        if type(result) is ClosestFound and result.peers:
            closest = result.peers[0].peer
            hops = walk.depth.get(closest, 1)
            self.hops.append(hops)
            has_closest = closest == self._closest_alive(walk.target, node)
            self.found_closest += has_closest
        if self._rows:
            self._sink.row(
                "lookups",
                lookup=walk.number,
                node=node.number,
                t_ns=self.world.kernel.now,
                hops=hops,
                rpcs=walk.questions,
                duration_ns=self.world.kernel.now - walk.started_at,
                found_closest=int(has_closest),
            )

    def _closest_alive(self, target: int, asker: Node) -> bytes | None:
        """The server that is closest to the key now, among all but the asker."""
        if len(self._ids) != len(self._members):
            self._ids = [(kad_id(node.peer), node) for node in self._members]
        best, best_distance = None, 1 << 256
        for identifier, node in self._ids:
            distance = identifier ^ target
            if distance < best_distance and node.is_up and node is not asker and self.world.is_server(node):
                best, best_distance = node.peer, distance
        return best

    def summary(self) -> dict[str, Any]:
        hops, questions, times = sorted(self.hops), sorted(self.questions), sorted(self.times_ms)
        sizes = [len(node.kad.table) for node in self.world.nodes if node.kad is not None]
        return {
            "hops": {"p50": quantile(hops, 0.5), "p95": quantile(hops, 0.95), "mean": _mean(hops)},
            "rpcs_mean": _mean(questions),
            "found_closest_share": self.found_closest / self.ended if self.ended else None,
            "lookups": self.ended,
            "lookups_unfinished": self.started - self.ended,
            "lookups_refused": self.refused,
            "duration_ms": {"p50": quantile(times, 0.5), "p95": quantile(times, 0.95), "mean": _mean(times)},
            "questions_all": self.world.dht.asks,
            "table_size_mean": _mean([float(size) for size in sizes]),
        }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
