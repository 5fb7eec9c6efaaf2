"""From a scenario to a world that is ready to run: network, nodes, topology, sessions, partitions.

Every draw is of a stream named after what is drawn and the group, and numbered within the group: a group more, an idle
node more, or another order of the groups changes nobody's draws.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

from p2p.kad.messages import kad_id
from sim.churn import Session, read_trace, sessions
from sim.errors import WorldInvalid
from sim.kernel import SECOND, Kernel
from sim.levels.dht import kad_settings
from sim.levels.gossip import gossip_settings
from sim.levels.node import Node
from sim.levels.world import Observer, World
from sim.net import Latency, MatrixLatency, Network, RegionLatency, UniformLatency, load_matrix, load_regions
from sim.scenario import DhtSpec, GossipSpec, NetSpec, Scenario
from sim.trace import Recording, Trace

UPKEEP_S = 5.0  # between two looks at the number of dialled connections
REDIALS_MAX = 4  # at one look: a node that lost all its connections comes back step by step
ID_BITS = 256


def new_network(kernel: Kernel, spec: NetSpec, folder: Path) -> Network:
    """Raises WorldInvalid."""
    latency: Latency
    if spec.model == "uniform":
        latency = UniformLatency(*spec.latency_ms)
    elif spec.model == "matrix":
        latency = MatrixLatency(load_matrix(folder / spec.file))
    else:
        latency = RegionLatency(load_regions(spec.model))
    return Network(kernel, latency, jitter=spec.jitter, loss=spec.loss)


def build_world(
    scenario: Scenario, *, seed: int, recording: Recording | None = None, observer: Observer | None = None
) -> World:
    """All nodes are there, and nothing has happened: `start_all` begins. Raises WorldInvalid."""
    kernel = Kernel(seed, trace=Trace(recording))
    network = new_network(kernel, scenario.net, scenario.folder)
    gossip_spec = scenario.gossip or GossipSpec()
    world = World(
        kernel,
        network,
        scenario,
        seed=seed,
        gossip_settings=gossip_settings(gossip_spec),
        kad_settings=kad_settings(scenario.dht or DhtSpec()),
        is_dialler_outbound_only=gossip_spec.protocol != "v1.0",
        observer=observer,
    )
    if scenario.dht is not None:
        settings = world.kad_settings
        world.refresh_spread_s = settings.refresh_interval_s if scenario.dht.warm else settings.tick_s
    for name, group in scenario.nodes.items():
        for _ in range(group.count):
            world.add_node(name, group.roles, group.link)
        if scenario.gossip is not None and "gossip" in group.roles:
            world.join_at_start(name, scenario.gossip.topic)
    return world


class Population:
    """Who is up when, whom it dials, and what its DHT knows when it starts."""

    def __init__(self, world: World) -> None:
        scenario = world.scenario
        self.world = world
        self._gossipers = world.with_role("gossip")
        self._dht_nodes = world.with_role("dht")
        self._dials = (scenario.gossip or GossipSpec()).dials
        self._dht = scenario.dht
        self._sessions: dict[int, Iterator[Session]] = {}
        self._has_begun = False
        self._is_changing = bool(
            scenario.net.partitions
            or scenario.adversaries
            or scenario.chaos
            or any(group.churn.model != "none" for group in scenario.nodes.values())
        )
        world.on_up(self._came_up)

    def start_all(self) -> None:
        """The first sessions, the connections of the start, and the partitions to come."""
        world, scenario = self.world, self.world.scenario
        traces = {
            name: read_trace(scenario.folder / group.churn.file)
            for name, group in scenario.nodes.items()
            if group.churn.model == "trace"
        }
        for node in world.nodes:
            group = scenario.nodes.get(node.group)
            if group is None:
                continue  # an adversary's: it starts its nodes itself
            self._sessions[node.number] = sessions(
                group.churn, world.rng("churn", node), index=node.index, trace=traces.get(node.group)
            )
            self._next_session(node)
        if self._dht is not None and self._dht.warm:
            self._warm_tables(self._dht.k)
        for node in world.nodes:
            if node.is_up:
                self._connect_at_start(node)
        self._has_begun = True
        for spec in scenario.net.partitions:
            world.kernel.at(world.kernel.start_ns + int(spec.at_s * SECOND), self._part, spec.share, spec.for_s)

    # --- sessions ----------------------------------------------------------------------------------------

    def _next_session(self, node: Node) -> None:
        world = self.world
        session = next(self._sessions[node.number], None)
        if session is None:
            return
        start_ns = world.kernel.start_ns
        up_s, down_s = session
        if up_s <= 0 and not self._has_begun:
            world.start(node)
        else:
            world.kernel.at(start_ns + int(up_s * SECOND), world.start, node)
        if down_s < math.inf:
            world.kernel.at(start_ns + int(down_s * SECOND), self._end_session, node)

    def _end_session(self, node: Node) -> None:
        self.world.crash(node)
        self._next_session(node)

    # --- connections -------------------------------------------------------------------------------------

    def _connect_at_start(self, node: Node) -> None:
        """A node that was there before the run: its connections stand."""
        for other in self._choose(node, self._gossipers, self._dials, "dials"):
            self.world.connect(node, other)
        self._bootstrap(node)

    def _came_up(self, node: Node) -> None:
        if self._is_changing and node.router is not None:
            self._schedule_upkeep(node)
        if not self._has_begun:
            return
        for other in self._choose(node, self._gossipers, self._dials, "dials"):
            self.world.dial(node, other)
        self._bootstrap(node)

    def _bootstrap(self, node: Node) -> None:
        if self._dht is None or node.kad is None or (self._dht.warm and not self._has_begun):
            return
        for other in self._choose(node, self._dht_nodes, self._dht.bootstrap_dials, "bootstrap"):
            if other.is_up and self.world.network.can_connect(node.number, other.number):
                self.world.know(node, other)
                if self.world.is_server(node):
                    self.world.know(other, node)

    def _choose(self, node: Node, members: list[Node], count: int, purpose: str) -> list[Node]:
        """Random members but the node itself."""
        if node.number >= len(self.world.nodes) or count <= 0 or (purpose == "dials" and node.router is None):
            return []
        chosen = self.world.rng(purpose, node).sample(members, min(count + 1, len(members)))
        return [other for other in chosen if other is not node][:count]

    def _schedule_upkeep(self, node: Node) -> None:
        delay = int(UPKEEP_S * SECOND * (0.5 + self.world.rng("upkeep", node).random()))
        self.world.kernel.after(delay, self._upkeep, node, node.session)

    def _upkeep(self, node: Node, session: int) -> None:
        """What the connection manager of a node does: keep up the number of connections that it has dialled."""
        if not node.is_up or node.session != session:
            return
        missing = min(self._dials - len(node.dialled), self._dials - len(node.links) // 2, REDIALS_MAX)
        if missing > 0:
            for other in self._choose(node, self._gossipers, missing, "redials"):
                if other.peer not in node.links:
                    self.world.dial(node, other)
        self._schedule_upkeep(node)

    # --- DHT ---------------------------------------------------------------------------------------------

    def _warm_tables(self, k: int) -> None:
        """Each table as days of traffic leave it: up to k random servers for each length of common prefix."""
        world = self.world
        ids = sorted(
            ((kad_id(node.peer), node) for node in self._dht_nodes if node.is_up and world.is_server(node)),
            key=lambda pair: pair[0],
        )
        numbers = [identifier for identifier, _ in ids]
        for node in self._dht_nodes:
            if node.kad is None:
                continue
            mine, chance = kad_id(node.peer), world.rng("warm", node)
            for prefix in range(ID_BITS):
                bit = ID_BITS - 1 - prefix
                low = (mine >> bit ^ 1) << bit  # ids that share `prefix` bits with ours, and not the next
                a, b = bisect_left(numbers, low), bisect_left(numbers, low + (1 << bit))
                for index in chance.sample(range(a, b), min(k, b - a)):
                    other = ids[index][1]
                    node.kad.table.heard(other.peer, other.identity.addresses, now=world.now_of(node))
                a, b = bisect_left(numbers, mine >> bit << bit), bisect_left(numbers, ((mine >> bit) + 1) << bit)
                if b - a <= 1:
                    break  # nobody shares more with us

    # --- partitions --------------------------------------------------------------------------------------

    def _part(self, share: float, for_s: float) -> None:
        """Each node draws its side itself."""
        world = self.world
        chosen = [node.number for node in world.nodes if node.roles and world.rng("partition", node).random() < share]
        part(world, chosen, for_s)


def part(world: World, side: list[int], for_s: float) -> None:
    """Split the network now, and heal it later. Connections across end when a keep-alive would notice."""
    number = world.network.partition(side)
    world.kernel.after(int(for_s * SECOND), world.network.heal, number)
    world.kernel.after(int(KEEPALIVE_S * SECOND), _cut_parted, world)


KEEPALIVE_S = 10.0  # the driver's, about: pings go out every few seconds


def _cut_parted(world: World) -> None:
    for node in world.nodes:
        for other in list(node.links.values()):
            if world.network.is_parted(node.number, other.number):
                world.disconnect(node, other)


def until_ns(world: World) -> int:
    if not world.nodes:
        raise WorldInvalid("a scenario without nodes")
    return world.kernel.start_ns + int(world.scenario.run.until_s * SECOND)
