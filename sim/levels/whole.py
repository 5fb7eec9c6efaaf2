"""Level 0: whole nodes. The shipped libp2p driver with all its tasks, streams, handshakes and bytes, in virtual time.

    result = run_level(scenario, seed=7, sink=NullSink(), progress=lambda share, note: None)

Every node is `p2p.driver.open_libp2p_node` on simulated sockets (`sim.net.sockets`) under the simulation's clock
(`sim.clock`), so this level finds bugs of the driver, which level 1 does not have. It costs twenty times level 1 and
more: at most `NODES_MAX` nodes. Gossip and DHT workloads, churn and partitions are simulated; markets, chains and
adversaries are level 1's. Hidden nodes (`link.nat`) can dial and cannot be dialled; holes are not punched here.

A run repeats to the byte: the trace holds a digest of every segment that arrives. One thing is therefore off unless a
group asks for it (`params.reach_check = true`): nodes that ask their peers whether they can be reached list their
addresses in an order that depends on PYTHONHASHSEED.
"""

from __future__ import annotations

import math
from typing import Any

import trio

import p2p.driver.node
from p2p.errors import P2PError
from p2p.identity import peer_id_of_seed, peer_id_to_bytes
from p2p.interface import DhtMode, NodeSettings, ReachSettings, Verdict
from p2p.kad.messages import kad_id
from sim.churn import read_trace, sessions
from sim.clock import SimClock, run_trio
from sim.errors import WorldInvalid
from sim.kernel import SECOND, Kernel
from sim.levels.building import new_network
from sim.levels.counts import Sent
from sim.levels.entropy import simulated_modules
from sim.levels.gossip import UNDER_WAY_S
from sim.levels.machines import with_ends
from sim.levels.node import Identity
from sim.levels.quantiles import Delays, quantile
from sim.levels.whole_driver import clock_host, scenario_settings
from sim.net import Nat, Network
from sim.net.sockets import SimHost, SimHosts
from sim.out import Progress, Sink
from sim.result import LevelResult
from sim.rng import Stream, stream
from sim.scenario import DhtSpec, GossipSpec, NodeGroup, Scenario
from sim.trace import Recording, Trace

NODES_MAX = 200  # each holds some megabytes and twenty tasks per connection
PORT = 4001
DIALS_AT_S = 0.5  # when all listeners stand
BEATS_FROM_S = 2.0  # when connections stand: else the first meshes are made of whoever is near
_MS = 1_000_000
_MBIT = 1_000_000 / 8


class _Whole:
    """One node over its restarts."""

    def __init__(self, number: int, group: str, index: int, spec: NodeGroup, identity: Identity) -> None:
        self.number = number
        self.group = group
        self.index = index
        self.spec = spec
        self.identity = identity
        self.peer = peer_id_of_seed(identity.seed32)
        self.address = f"/ip4/{identity.host}/tcp/{PORT}"
        self.host: SimHost
        self.node: Any = None  # the Libp2pNode while it is up
        self.since_ns = 0


class _Publication:
    def __init__(self, number: int, at: int, expected: dict[int, None]) -> None:
        self.number = number
        self.at = at
        self.waiting = expected
        self.expected = len(expected)
        self.got = 0


class WholeWorld:
    def __init__(self, scenario: Scenario, *, seed: int, sink: Sink, recording: Recording | None) -> None:
        if scenario.node_count > NODES_MAX:
            raise WorldInvalid(
                f"level 0 takes {NODES_MAX} nodes, and the scenario has {scenario.node_count}: use --level 1"
            )
        self.scenario = scenario
        self.seed = seed
        self.kernel = Kernel(seed, trace=Trace(recording))
        self.network: Network = new_network(self.kernel, scenario.net, scenario.folder)
        self.nodes: list[_Whole] = []
        self.sent = Sent()
        self.delays = Delays()
        self.duplicates = 0
        self.publications: dict[int, _Publication] = {}
        self.published = 0
        self.lookups: list[tuple[float, bool]] = []  # milliseconds, found
        self.failures: dict[str, int] = {}  # what went wrong, by type: connects, publishes, look-ups
        self._sink = sink
        self._rows = sink.wants("deliveries")
        self._streams: dict[tuple[str, int], Stream] = {}
        for name, group in scenario.nodes.items():
            for index in range(group.count):
                self._add(name, index, group)

    def _add(self, group: str, index: int, spec: NodeGroup) -> None:
        number = len(self.nodes)
        identity = Identity(self.seed, group, index, host=f"11.{number >> 8}.{number & 255}.1")
        self.network.add(
            identity.key,
            up_bytes_per_s=spec.link.up_mbit_per_s * _MBIT,
            down_bytes_per_s=spec.link.down_mbit_per_s * _MBIT,
            queue_bytes=spec.link.queue_bytes,
            nat=Nat(spec.link.nat),
            region=spec.link.region,
        )
        self.nodes.append(_Whole(number, group, index, spec, identity))

    def rng(self, purpose: str, node: _Whole) -> Stream:
        key = (purpose, node.number)
        if key not in self._streams:
            self._streams[key] = stream(self.seed, f"{purpose}@{node.group}", node.index)
        return self._streams[key]

    def with_role(self, role: str) -> list[_Whole]:
        return [node for node in self.nodes if role in node.spec.roles]

    def failed(self, what: str, error: BaseException) -> None:
        name = f"{what}: {type(error).__name__}"
        self.failures[name] = self.failures.get(name, 0) + 1

    # --- tasks -------------------------------------------------------------------------------------------

    async def main(self, clock: SimClock) -> None:
        hosts = SimHosts(self.network, clock)
        scenario = self.scenario
        for spec in scenario.net.partitions:
            self.kernel.after(int(spec.at_s * SECOND), self._part, spec.share, spec.for_s)
        async with trio.open_nursery() as nursery:
            for node in self.nodes:
                node.host = hosts.add(node.identity.host, node.number)
                nursery.start_soon(self._live, node, clock)
            if scenario.gossip is not None:
                nursery.start_soon(self._publish_all, scenario.gossip, clock)
            if scenario.dht is not None:
                nursery.start_soon(self._look_up_all, scenario.dht, nursery, clock)
            await trio.sleep_forever()

    async def _live(self, node: _Whole, clock: SimClock) -> None:
        """One node through its sessions; sockets and entropy of everything started here are its host's."""
        trace = None
        if node.spec.churn.model == "trace":
            trace = read_trace(self.scenario.folder / node.spec.churn.file)
        with clock_host(node.host):
            for up_s, down_s in sessions(node.spec.churn, self.rng("churn", node), index=node.index, trace=trace):
                await trio.sleep_until(up_s)
                with trio.CancelScope(deadline=min(math.inf, down_s)):
                    await self._session(node)
                self._went_down(node)

    async def _session(self, node: _Whole) -> None:
        self.kernel.trace.add(self.kernel.now, node.number, "up")
        is_server = "dht" in node.spec.roles and node.spec.link.nat == "public"
        settings = NodeSettings(
            listen=(node.address,),
            dht_mode=DhtMode.SERVER if is_server else DhtMode.CLIENT,
            gossip="gossip" in node.spec.roles,
            reach=ReachSettings(check=bool(node.spec.params.get("reach_check", False))),
        )
        async with p2p.driver.node.open_libp2p_node(settings, key=node.identity.seed32) as opened:
            node.node, node.since_ns = opened, self.kernel.now
            if opened.gossip is not None and self.kernel.elapsed_s < DIALS_AT_S:
                state = opened.gossip.router.state
                first_s = BEATS_FROM_S + state.settings.heartbeat_s * self.rng("heartbeat", node).random()
                state.next_heartbeat = self.kernel.start_ns + int(first_s * SECOND)
            async with trio.open_nursery() as nursery:
                if self.scenario.gossip is not None and settings.gossip:
                    nursery.start_soon(self._listen, node, opened, self.scenario.gossip.topic)
                if self.kernel.elapsed_s < DIALS_AT_S:
                    await trio.sleep_until(DIALS_AT_S)
                for other in self._chosen(node):
                    nursery.start_soon(self._connect, opened, other)
                await trio.sleep_forever()

    def _chosen(self, node: _Whole) -> list[_Whole]:
        gossip, dht = self.scenario.gossip, self.scenario.dht
        chosen: dict[int, _Whole] = {}
        for role, count, purpose in (
            ("gossip", gossip.dials if gossip else 0, "dials"),
            ("dht", dht.bootstrap_dials if dht else 0, "bootstrap"),
        ):
            members = self.with_role(role)
            if role in node.spec.roles and count:
                sample = self.rng(purpose, node).sample(members, min(count + 1, len(members)))
                for other in [other for other in sample if other is not node][:count]:
                    chosen[other.number] = other
        return list(chosen.values())

    async def _connect(self, opened: Any, other: _Whole) -> None:
        try:
            await opened.connect(other.peer, [other.address])
        except P2PError as error:
            self.failed("connect", error)

    async def _listen(self, node: _Whole, opened: Any, topic: str) -> None:
        def judge(forwarder: str, data: bytes) -> Verdict:
            self._heard(node, data)
            return Verdict.ACCEPT

        subscription = await opened.subscribe(topic, judge)
        async for _ in subscription:
            pass

    def _went_down(self, node: _Whole) -> None:
        self.kernel.trace.add(self.kernel.now, node.number, "down")
        if node.node is not None and node.node.gossip is not None:
            self.duplicates += node.node.gossip.router.counters.duplicates
        node.node = None
        for publication in self.publications.values():
            if publication.waiting.pop(node.number, 0) is None:
                publication.expected -= 1

    def _part(self, share: float, for_s: float) -> None:
        """Each node draws its side itself."""
        side = [node.number for node in self.nodes if self.rng("partition", node).random() < share]
        number = self.network.partition(side)
        self.kernel.after(int(for_s * SECOND), self.network.heal, number)

    # --- workloads ---------------------------------------------------------------------------------------

    async def _publish_all(self, spec: GossipSpec, clock: SimClock) -> None:
        members = self.with_role("gossip")
        publishers = stream(self.seed, "publishers").sample(members, min(spec.publishers, len(members)))
        total = spec.publishers * spec.rate_per_s
        chance, number = stream(self.seed, "publish"), 0
        while publishers and total > 0:
            at_s = spec.publish_from_s + number / total
            if at_s >= spec.publish_until_s:
                return
            await trio.sleep_until(at_s)
            await self._publish(chance.choice(publishers), spec, number)
            number += 1

    async def _publish(self, node: _Whole, spec: GossipSpec, number: int) -> None:
        if node.node is None:
            return
        data = (number.to_bytes(8, "big") + bytes(max(0, spec.message_bytes - 8)))[: max(8, spec.message_bytes)]
        waiting = {
            other.number: None for other in self.with_role("gossip") if other.node is not None and other is not node
        }
        self.publications[number] = _Publication(number, self.kernel.now, waiting)
        self.published += 1
        self.kernel.trace.add(self.kernel.now, node.number, "publish", number.to_bytes(4, "little"))
        try:
            with clock_host(node.host):
                await node.node.publish(spec.topic, data)
        except P2PError as error:
            self.failed("publish", error)

    def _heard(self, node: _Whole, data: bytes) -> None:
        publication = self.publications.get(int.from_bytes(data[:8], "big"))
        if publication is None:
            return
        now = self.kernel.now
        self.kernel.trace.add(now, node.number, "deliver", data[:8])
        if publication.waiting.pop(node.number, 0) is None:
            publication.got += 1
        self.delays.add(now - publication.at)
        if self._rows:
            self._sink.row(
                "deliveries", message=publication.number, node=node.number, t_ns=now, delay_ns=now - publication.at
            )

    async def _look_up_all(self, spec: DhtSpec, nursery: trio.Nursery, clock: SimClock) -> None:
        members = self.with_role("dht")
        chance = stream(self.seed, "lookups")
        span = spec.lookups_until_s - spec.lookups_from_s
        for number in range(spec.lookups if len(members) > 1 and span > 0 else 0):
            await trio.sleep_until(spec.lookups_from_s + number * span / spec.lookups)
            key, asker = chance.bytes(32), chance.choice(members)
            if asker.node is not None:
                nursery.start_soon(self._look_up, number, asker, key)

    async def _look_up(self, number: int, asker: _Whole, key: bytes) -> None:
        """A node looks for the nodes that are closest to a random key."""
        began, found, opened = self.kernel.now, False, asker.node
        try:
            with clock_host(asker.host):
                closest = await opened.dht.find_closest(key)
            found = bool(closest) and closest[0] == self._closest_alive(key, asker)
        except P2PError as error:
            self.failed("lookup", error)
        took_ms = (self.kernel.now - began) / _MS
        self.lookups.append((took_ms, found))
        self._sink.row(
            "lookups",
            lookup=number,
            node=asker.number,
            t_ns=self.kernel.now,
            hops=0,
            rpcs=0,
            duration_ns=self.kernel.now - began,
            found_closest=int(found),
        )

    def _closest_alive(self, key: bytes, asker: _Whole) -> bytes | None:
        """The server that is closest to the key now, among all but the asker."""
        target = kad_id(key)
        servers = [
            peer_id_to_bytes(node.peer)
            for node in self.with_role("dht")
            if node.node is not None and node is not asker and node.spec.link.nat == "public"
        ]
        return min(servers, key=lambda peer: kad_id(peer) ^ target, default=None)

    # --- what was measured -------------------------------------------------------------------------------

    def gossip_summary(self) -> dict[str, Any]:
        routers = [node.node.gossip.router for node in self.nodes if node.node is not None and node.node.gossip]
        duplicates = self.duplicates + sum(router.counters.duplicates for router in routers)
        p50, p90, p99 = self.delays.quantiles_ms((0.5, 0.9, 0.99))
        settled = [p for p in self.publications.values() if self.kernel.now - p.at >= UNDER_WAY_S * SECOND]
        expected = sum(publication.expected for publication in settled)
        got = sum(publication.got for publication in settled)
        metrics = self.scenario.metrics
        topic = self.scenario.gossip.topic if self.scenario.gossip else ""
        degrees = [len(router.state.mesh.get(topic, ())) for router in routers]
        return {
            "sent": self.sent.as_dict(),
            "delay_ms": {
                "p50": p50,
                "p90": p90,
                "p99": p99,
                "mean": self.delays.mean_ms(),
                "bins_100ms": self.delays.bins(100.0, metrics.delay_bins),
            },
            "duplicates_per_delivery": duplicates / self.delays.count if self.delays.count else None,
            "delivered_share": got / expected if expected else None,
            "published": self.published,
            "deliveries": self.delays.count,
            "mesh_degree_mean": sum(degrees) / len(degrees) if degrees else None,
        }

    def dht_summary(self) -> dict[str, Any]:
        times = sorted(took for took, _ in self.lookups)
        found = sum(was for _, was in self.lookups)
        return {
            "hops": {"p50": None, "p95": None, "mean": None},  # the driver does not tell
            "rpcs_mean": None,
            "found_closest_share": found / len(times) if times else None,
            "lookups": len(times),
            "duration_ms": {
                "p50": quantile(times, 0.5),
                "p95": quantile(times, 0.95),
                "mean": sum(times) / len(times) if times else None,
            },
        }


def run_level(
    scenario: Scenario,
    *,
    seed: int,
    sink: Sink,
    progress: Progress,
    recording: Recording | None = None,
) -> LevelResult:
    """Raises WorldInvalid for more nodes than this level takes, or for what cannot be built."""
    scenario = with_ends(scenario)
    world = WholeWorld(scenario, seed=seed, sink=sink, recording=recording)
    kernel = world.kernel
    until = kernel.start_ns + int(scenario.run.until_s * SECOND)
    summary: dict[str, Any] = {}

    def on_end() -> None:
        if scenario.gossip is not None:
            summary["gossip"] = world.gossip_summary()
        if scenario.dht is not None:
            summary["dht"] = world.dht_summary()

    def report() -> None:
        progress((kernel.now - kernel.start_ns) / max(1, until - kernel.start_ns), f"{kernel.elapsed_s:.1f} s")
        kernel.after(SECOND, report)

    kernel.after(SECOND, report)
    roles = [node.spec.roles for node in world.nodes]
    with scenario_settings(scenario, world.sent, roles), simulated_modules(kernel):
        run_trio(kernel, world.main, until_ns=until, on_end=on_end)
    summary["network"] = {
        "messages": world.network.messages,
        "bytes": world.network.bytes,
        "lost": world.network.lost,
        "blocked": world.network.blocked,
        "overflowed": world.network.overflowed,
        "nodes": len(world.nodes),
        "failures": dict(sorted(world.failures.items())),
    }
    warnings = []
    for name, part in (("market", scenario.market), ("chain", scenario.chain), ("chaos", scenario.chaos)):
        if part is not None:
            warnings.append(f"level 0 does not simulate the {name}: use --level 1")
    if scenario.adversaries:
        warnings.append("level 0 does not simulate adversaries: use --level 1")
    return LevelResult(
        events=kernel.events,
        trace_hash=kernel.trace.hexdigest(),
        checkpoints=tuple(kernel.trace.checkpoints),
        summary=summary,
        warnings=tuple(warnings),
    )
