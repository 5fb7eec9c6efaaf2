"""The world of level 1: nodes with the shipped machines, on one kernel, over one simulated network.

    world = World(kernel, network, scenario, seed=7)
    node = world.add_node("honest", ("gossip", "dht"))
    world.start(node); world.connect(node, other); world.join(node, topic); world.publish(node, topic, data)

Machines get messages as values, at the time that the network says, and are charged with the size of their encoding;
their effects are carried out here. Everything random comes from streams named (purpose@group, index in the group).
Signatures are real (Ed25519); each is verified once per run, and every further verification looks the verdict up.

What is simplified: the connections of the start stand at once, later ones after three round trips; when one is cut,
both sides see it at that instant; a DHT question to a peer that is not connected is dialled for, and the connection is
forgotten after the answer. Queues of the driver are not modelled.
Not here: workloads and metrics (`gossip.py`, `dht.py`), the market (`market.py`), the scenario (`machines.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from p2p import gossip
from p2p.gossip import GossipSettings, Message, Router, Rpc, Verdict
from p2p.gossip.signing import is_signed_by_source, signer
from p2p.kad import KadNode, KadSettings, network_groups
from sim.errors import WorldInvalid
from sim.kernel import SECOND, Kernel
from sim.levels.counts import Sent
from sim.levels.dht_carrier import DIAL_ROUND_TRIPS, DhtCarrier, Done
from sim.levels.node import Identity, Node, Wrap
from sim.net import Nat, Network
from sim.rng import Stream, stream
from sim.scenario import LinkSpec, Scenario

NODES_MAX = 1 << 24  # each has a /24 of its own
VERDICTS_MAX = 200_000  # signatures whose verdict is remembered, about 20 MB
_MBIT = 1_000_000 / 8

Deliver = Callable[[Node, bytes, Message], None]
Validate = Callable[[Node, bytes, Message], Verdict]


class Observer:
    """What somebody who watches a run may override. Nothing here may change what happens."""

    def attached(self, world: World) -> None:
        """Everything is built, and nothing has happened yet."""

    def finished(self, world: World) -> None: ...
    def node_up(self, number: int, router: Router | None) -> None: ...
    def node_down(self, number: int) -> None: ...
    def published(self, t_ns: int, node: int, message: int, size: int) -> None: ...


class World:
    def __init__(
        self,
        kernel: Kernel,
        network: Network,
        scenario: Scenario,
        *,
        seed: int,
        gossip_settings: GossipSettings | None = None,
        kad_settings: KadSettings | None = None,
        is_dialler_outbound_only: bool = True,
        observer: Observer | None = None,
    ) -> None:
        """`is_dialler_outbound_only=False`: both sides take a connection for outbound, as gossipsub 1.0 does, which
        knows no difference and accepts every GRAFT."""
        self.kernel = kernel
        self.network = network
        self.scenario = scenario
        self.seed = seed
        self.nodes: list[Node] = []
        self.groups: dict[str, list[Node]] = {}
        self._with_role: dict[str, list[Node]] = {}
        self.number_of: dict[bytes, int] = {}
        self.node_of: dict[bytes, Node] = {}
        self.sent = Sent()
        self.duplicates = 0
        self.observer = observer or Observer()
        self.gossip_settings = gossip_settings or GossipSettings()
        self.kad_settings = kad_settings or KadSettings()
        self.market: Any = None  # what `sim.levels.market` attaches
        self.refresh_spread_s = 0.0  # nodes that are there from the start look around within this time, not at once
        self.dials_failed = 0
        self._is_dialler_outbound_only = is_dialler_outbound_only
        self._trace = kernel.trace.add
        self._verdicts: dict[bytes, bool] = {}
        self._groups_of: dict[tuple[bytes, ...], tuple[str, ...]] = {}
        self._topics: dict[str, dict[str, None]] = {}  # group → topics that its nodes join when they come up
        self._on_deliver: dict[str, list[Deliver]] = {}
        self._validators: dict[str, Validate] = {}
        self._on_up: list[Callable[[Node], None]] = []
        self._on_down: list[Callable[[Node], None]] = []
        self.dht = DhtCarrier(self)

    # --- nodes -------------------------------------------------------------------------------------------

    def add_node(
        self, group: str, roles: tuple[str, ...], link: LinkSpec | None = None, *, host: str | None = None
    ) -> Node:
        """A node that is down. `host`: its IPv4 address; by default each has a /24 of its own. Raises WorldInvalid."""
        link = link or LinkSpec()
        number = len(self.nodes)
        if number >= NODES_MAX:
            raise WorldInvalid(f"more than {NODES_MAX:,} nodes")
        members = self.groups.setdefault(group, [])
        host = host or f"{11 + (number >> 16)}.{number >> 8 & 255}.{number & 255}.1"
        node = Node(number, group, len(members), roles, Identity(self.seed, group, len(members), host=host))
        self.network.add(
            node.identity.key,
            up_bytes_per_s=link.up_mbit_per_s * _MBIT,
            down_bytes_per_s=link.down_mbit_per_s * _MBIT,
            queue_bytes=link.queue_bytes,
            nat=Nat(link.nat),
            region=link.region,
            relays=bool(roles),
        )
        self.nodes.append(node)
        for role in roles:
            self._with_role.setdefault(role, []).append(node)
        members.append(node)
        self.number_of[node.peer] = number
        self.node_of[node.peer] = node
        return node

    def rng(self, purpose: str, node: Node) -> Stream:
        """The node's stream of that purpose: one, however often it is asked for."""
        found = node.streams.get(purpose)
        if found is None:
            found = node.streams[purpose] = stream(self.seed, f"{purpose}@{node.group}", node.index)
        return found

    def with_role(self, role: str) -> list[Node]:
        """A list that grows when such nodes are added. Not to be changed."""
        return self._with_role.setdefault(role, [])

    def join_at_start(self, group: str, topic: str) -> None:
        """Nodes of the group join this topic whenever they come up."""
        self._topics.setdefault(group, {})[topic] = None

    def topics_of(self, node: Node) -> dict[str, None]:
        """What the nodes of its group join when they come up."""
        return self._topics.get(node.group, {})

    def on_deliver(self, topic: str, handler: Deliver) -> None:
        """`handler(node, forwarder, message)` for each message of the topic that a node's router delivers."""
        self._on_deliver.setdefault(topic, []).append(handler)

    def set_validator(self, topic: str, validate: Validate) -> None:
        """Every node's validator of the topic. Only messages whose signature holds come to it."""
        self._validators[topic] = validate

    def on_up(self, handler: Callable[[Node], None]) -> None:
        self._on_up.append(handler)

    def on_down(self, handler: Callable[[Node], None]) -> None:
        self._on_down.append(handler)

    def wrap(self, node: Node, *, router: Wrap | None = None, kad: Wrap | None = None) -> None:
        """Put something in the place of the node's machines, now and after each restart."""
        node.wraps.append((router, kad))
        if router is not None and node.router is not None:
            node.router = router(node.router)
        if kad is not None and node.kad is not None:
            node.kad = kad(node.kad)

    # --- up and down -------------------------------------------------------------------------------------

    def start(self, node: Node) -> None:
        """A fresh process: machines without memory, no connections."""
        if node.is_up:
            return
        now = self.now_of(node)
        node.is_up = True
        node.session += 1
        self._trace(self.kernel.now, node.number, "up")
        if "gossip" in node.roles:
            node.router = self._new_router(node, now)
        if "dht" in node.roles:
            node.kad = self._new_kad(node, now)
        for wrap_router, wrap_kad in node.wraps:
            if wrap_router is not None and node.router is not None:
                node.router = wrap_router(node.router)
            if wrap_kad is not None and node.kad is not None:
                node.kad = wrap_kad(node.kad)
        self.observer.node_up(node.number, node.router)
        if node.router is not None:
            for topic in self.topics_of(node):
                self.join(node, topic)
            self.kernel.at(node.router.deadline() - node.clock_offset, self._wake_router, node, node.session)
        if node.kad is not None:
            node.kad_at = None
            self.dht.reschedule(node)
        for handler in self._on_up:
            handler(node)

    def crash(self, node: Node) -> None:
        """Gone at this instant, without a goodbye; neighbours see their connections end."""
        if not node.is_up:
            return
        self._trace(self.kernel.now, node.number, "down")
        for other in list(node.links.values()):
            self.disconnect(node, other)
        if node.router is not None:
            self.duplicates += node.router.counters.duplicates
        node.is_up = False
        node.router = None
        node.kad = None
        self.observer.node_down(node.number)
        for handler in self._on_down:
            handler(node)

    def now_of(self, node: Node) -> int:
        """The node's wall clock: never backwards, even when chaos turns it back."""
        if not node.clock_offset and not node.last_now:
            return self.kernel.now
        node.last_now = max(node.last_now, self.kernel.now + node.clock_offset)
        return node.last_now

    def shift_clock(self, node: Node, by_ns: int) -> None:
        """The wall clock of the node jumps. Its machines see time stand still until a clock that was turned back has
        caught up, as the drivers' clocks do."""
        node.last_now = self.now_of(node)
        node.clock_offset += by_ns
        if node.router is not None:
            self.kernel.at(node.router.deadline() - node.clock_offset, self._wake_router, node, node.session)
        if node.kad is not None:
            node.kad_at = None
            self.dht.reschedule(node)

    def _new_router(self, node: Node, now: int) -> Router:
        router = Router(
            node.peer,
            settings=self.gossip_settings,
            rng=self.rng("gossip", node),
            now=now,
            sign=signer(node.identity.seed32),
            verify=self._verify,
            validate=lambda forwarder, message: self._validate(node, forwarder, message),
        )
        interval = int(self.gossip_settings.heartbeat_s * SECOND)
        router.state.next_heartbeat = now + interval + self.rng("heartbeat", node).below(interval)
        return router

    def _new_kad(self, node: Node, now: int) -> KadNode:
        addresses = node.identity.addresses
        settings = self.kad_settings
        if node.session == 1 and self.refresh_spread_s:
            first_s = settings.refresh_first_s + self.refresh_spread_s * self.rng("refresh", node).random()
            settings = replace(settings, refresh_first_s=first_s)
        return KadNode(
            node.peer,
            settings=settings,
            rng=self.rng("kad", node),
            now=now,
            addresses=lambda: addresses,
            groups_of=self._groups_of_addresses,
        )

    def _groups_of_addresses(self, addresses: tuple[bytes, ...]) -> tuple[str, ...]:
        """`network_groups`, shared: a table of ten thousand nodes would hold a million copies of the same strings."""
        known = self._groups_of.get(addresses)
        if known is None:
            known = self._groups_of[addresses] = network_groups(addresses)
        return known

    def _verify(self, message: Message) -> bool:
        message_id = message.id
        assert message_id is not None  # the router sets it before it asks
        known = self._verdicts.get(message_id)
        if known is None:
            known = self._verdicts[message_id] = is_signed_by_source(message)
            if len(self._verdicts) > VERDICTS_MAX:
                del self._verdicts[next(iter(self._verdicts))]
        return known

    def _validate(self, node: Node, forwarder: bytes, message: Message) -> Verdict:
        validate = self._validators.get(message.topic)
        return Verdict.ACCEPT if validate is None else validate(node, forwarder, message)

    # --- connections -------------------------------------------------------------------------------------

    def connect(self, dialler: Node, listener: Node) -> bool:
        """A connection that stands at once. False when there is none to be had, or one already."""
        if (
            dialler is listener
            or listener.peer in dialler.links
            or not (dialler.is_up and listener.is_up)
            or not self.network.can_connect(dialler.number, listener.number)
        ):
            return False
        self._trace(self.kernel.now, dialler.number, "connect", listener.number.to_bytes(4, "little"))
        dialler.dialled[listener.peer] = None
        dialler.links[listener.peer] = listener
        listener.links[dialler.peer] = dialler
        self._connected(dialler, listener, is_outbound=True)
        self._connected(listener, dialler, is_outbound=not self._is_dialler_outbound_only)
        return True

    def dial(self, dialler: Node, listener: Node) -> None:
        """A connection that takes its round trips, or fails in silence."""
        if not listener.is_up or not self.network.can_connect(dialler.number, listener.number):
            self.dials_failed += 1
            return
        way = self.network.latency_ns(dialler.number, listener.number)
        self.kernel.after(2 * DIAL_ROUND_TRIPS * way, self._dialled, dialler, listener)

    def _dialled(self, dialler: Node, listener: Node) -> None:
        self.connect(dialler, listener)

    def disconnect(self, a: Node, b: Node) -> None:
        if b.peer not in a.links:
            return
        self._trace(self.kernel.now, a.number, "disconnect", b.number.to_bytes(4, "little"))
        for one, other in ((a, b), (b, a)):
            del one.links[other.peer]
            one.dialled.pop(other.peer, None)
        self.network.forget(a.number, b.number)
        for one, other in ((a, b), (b, a)):
            now = self.now_of(one)
            if one.router is not None:
                self.perform_gossip(one, one.router.peer_changed(other.peer, connected=False, now=now))
            if one.kad is not None:
                self.dht.perform(one, one.kad.peer_changed(other.peer, connected=False, now=now))

    def _connected(self, node: Node, other: Node, *, is_outbound: bool) -> None:
        now = self.now_of(node)
        if node.router is not None and other.router is not None:
            effects = node.router.peer_changed(
                other.peer,
                connected=True,
                now=now,
                address=other.identity.host,
                is_outbound=is_outbound,
                has_idontwant=True,
            )
            self.perform_gossip(node, effects)
        if node.kad is not None and other.kad is not None:
            self.know(node, other)

    def know(self, node: Node, other: Node) -> None:
        """The node's DHT has heard of the other, as after a connection."""
        if node.kad is not None:
            effects = node.kad.peer_changed(
                other.peer,
                connected=True,
                is_server=self.is_server(other),
                addresses=other.identity.addresses,
                now=self.now_of(node),
            )
            self.dht.perform(node, effects)

    def is_server(self, node: Node) -> bool:
        """Serves the DHT: who cannot be dialled asks only."""
        return "dht" in node.roles and self.network.is_public(node.number)

    # --- gossip ------------------------------------------------------------------------------------------

    def join(self, node: Node, topic: str) -> None:
        if node.router is not None:
            self.perform_gossip(node, node.router.join(topic, now=self.now_of(node)))

    def leave(self, node: Node, topic: str) -> None:
        if node.router is not None:
            self.perform_gossip(node, node.router.leave(topic, now=self.now_of(node)))

    def publish(self, node: Node, topic: str, data: bytes) -> bytes | None:
        """The id of the message; None when the node is down or has nobody to send it to."""
        if node.router is None:
            return None
        effects = node.router.publish(topic, data, now=self.now_of(node))
        self._trace(self.kernel.now, node.number, "publish", len(data).to_bytes(4, "little"))
        self.perform_gossip(node, effects)
        for effect in effects:
            if type(effect) is gossip.Send and effect.rpc.messages:
                return effect.rpc.messages[0].id
        return None

    def perform_gossip(self, node: Node, effects: list[gossip.Effect]) -> None:
        for effect in effects:
            kind = type(effect)
            if kind is gossip.Send:
                self._send_rpc(node, effect.peers, effect.rpc)  # type: ignore[union-attr]
            elif kind is gossip.Deliver:
                message: Message = effect.message  # type: ignore[union-attr]
                self._trace(self.kernel.now, node.number, "deliver", (message.id or b"")[:8])
                for handler in self._on_deliver.get(message.topic, ()):
                    handler(node, effect.forwarder, message)  # type: ignore[union-attr]
            elif kind is gossip.Disconnect:
                other = node.links.get(effect.peer)  # type: ignore[union-attr]
                if other is not None:
                    self.disconnect(node, other)
            elif kind is gossip.Dial:
                offered = self.node_of.get(effect.peer)  # type: ignore[union-attr]
                if offered is not None:
                    self.dial(node, offered)

    def _send_rpc(self, node: Node, peers: tuple[bytes, ...], rpc: Rpc) -> None:
        size = self.sent.count(rpc, len(peers))
        links, number, send, deliver = node.links, node.number, self.network.send, self._deliver_rpc
        for peer in peers:
            target = links.get(peer)
            if target is not None:
                send(number, target.number, size, deliver, node, target, rpc)

    def _deliver_rpc(self, source: Node, target: Node, rpc: Rpc) -> None:
        router = target.router
        if router is None or source.peer not in target.links:
            return  # the connection has ended on the way
        self._trace(self.kernel.now, target.number, "rpc", source.number.to_bytes(4, "little"))
        effects = router.receive(source.peer, rpc, now=self.now_of(target))
        if effects:
            self.perform_gossip(target, effects)

    def _wake_router(self, node: Node, session: int) -> None:
        router = node.router
        if router is None or node.session != session:
            return
        now = self.now_of(node)
        if now < router.deadline():
            return  # a clock was shifted: another timer stands
        self._trace(self.kernel.now, node.number, "heartbeat")
        self.perform_gossip(node, router.on_time(now=now))
        if node.session == session and node.router is not None:
            self.kernel.at(router.deadline() - node.clock_offset, self._wake_router, node, session)

    # --- DHT ---------------------------------------------------------------------------------------------

    def find_providers(self, node: Node, key: bytes, count_max: int, done: Done) -> None:
        """`done(ProvidersFound)`; never called when the node goes down before. The node must be up with a DHT."""
        assert node.kad is not None
        self.dht.follow(node, node.kad.find_providers(key, count_max=count_max, now=self.now_of(node)), done)

    def provide(self, node: Node, key: bytes, *, keep: bool = False) -> None:
        if node.kad is not None:
            self.dht.perform(node, node.kad.provide(key, now=self.now_of(node), keep=keep)[1])

    # --- anything else -----------------------------------------------------------------------------------

    def send(self, src: int, dst: int, size: int, fn: Callable[..., None], *args: object) -> bool:
        """A message of another protocol between two nodes: `fn(*args)` when it arrives and both are still in the same
        session. False when it is known to be gone already."""
        source, target = self.nodes[src], self.nodes[dst]
        if not (source.is_up and target.is_up):
            return False
        return self.network.send(src, dst, size, self._deliver_other, source, target, source.session, fn, args)

    def _deliver_other(
        self, source: Node, target: Node, session: int, fn: Callable[..., None], args: tuple[object, ...]
    ) -> None:
        if target.is_up and source.is_up and source.session == session:
            self._trace(self.kernel.now, target.number, "message", source.number.to_bytes(4, "little"))
            fn(*args)
