"""The market at level 1: the shipped offer book, selection, sessions, payer and payee, between agents with motives.

    part = attach_market(world, scenario, sink)        # inside a run of level 1; part.summary()
    result = run_market(scenario, seed=7)              # the market alone, over the scenario's network

Attached to a world whose scenario has gossip, offers and beacons travel by the real routers on the market's own
topics, and each client's validator is its offer book. Alone, or in a scenario without gossip, a message reaches every
client after a delay of a few hops. `offers_by_gossip = false` shows every offer to everybody at once: the control
case.

Not here: the peers (`sim.econ`), attackers (`sim.adversary`), which change what is attached here before the first
event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from cocoon.market.keys import shard_of
from cocoon.ports import Verdict
from cocoon.types import SECOND_NS, PeerId
from p2p.gossip import Verdict as GossipVerdict
from sim.econ.client import ClientPeer
from sim.econ.crypto import shared_signatures
from sim.econ.env import Env
from sim.econ.market import Market, Model
from sim.econ.provider import ProviderPeer
from sim.kernel import Kernel, quiet_collector
from sim.net import Network, UniformLatency
from sim.out import NullSink, Progress, Sink
from sim.result import LevelResult
from sim.scenario import ClientAgent, ProviderAgent, Scenario

SETTLE_S: Final = 30.0  # after the last order, and again after the last claim
OPEN_VERDICT: Final = {
    Verdict.ACCEPT: GossipVerdict.ACCEPT,
    Verdict.IGNORE: GossipVerdict.IGNORE,
    Verdict.REJECT: GossipVerdict.REJECT,
}


class Gossips:
    """Offers and beacons by the world's routers; each client's book is its validator."""

    def __init__(self, world: Any, models: Sequence[Model]) -> None:
        self.world = world
        self.clients: dict[int, ClientPeer] = {}
        self._topics: dict[str, tuple[int, bool]] = {}
        for model in models:
            for topic, is_offer in zip(model.topics, (True, False), strict=True):
                self._topics[topic] = (shard_of(model.digest), is_offer)
                world.set_validator(topic, partial(self._judge, topic))

    def join(self, node: Any) -> None:
        """This node takes part in the market's topics, now and after every restart."""
        for topic in self._topics:
            self.world.join_at_start(node.group, topic)

    def publish(self, provider: ProviderPeer, topic: str, data: bytes) -> None:
        """From the provider's own node."""
        self.world.publish(self.world.nodes[provider.number], topic, data)

    def _judge(self, topic: str, node: Any, forwarder: bytes, message: Any) -> GossipVerdict:
        client = self.clients.get(node.number)
        if client is None:
            return GossipVerdict.ACCEPT
        shard, is_offer = self._topics[topic]
        heard = client.heard_offer if is_offer else client.heard_beacon
        judgement = heard(PeerId(forwarder.hex()), message.data, shard=shard)
        return OPEN_VERDICT[judgement.verdict]


@dataclass(slots=True)
class MarketPart:
    """What `attach_market` gives to the run."""

    market: Market
    stack: ExitStack = field(default_factory=ExitStack)

    def summary(self) -> dict[str, Any]:
        """The parts of the run's summary; the shared signatures end here."""
        self.stack.close()
        return self.market.summary()


def attach_market(world: Any, scenario: Scenario, sink: Sink) -> MarketPart:
    """Put the scenario's market onto the world's nodes with the roles `provider` and `client`."""
    spec = scenario.market
    assert spec is not None
    env = Env(kernel=world.kernel, wire=world.network, seed=world.seed)
    stack = ExitStack()
    stack.enter_context(shared_signatures(env.memo))
    market = Market(
        env, spec, chain=scenario.chain, sink=sink, warmup_s=scenario.run.warmup_s, until_s=scenario.run.until_s
    )
    has_gossip = scenario.gossip is not None and spec.offers_by_gossip
    gossips = Gossips(world, market.models) if has_gossip else None
    market.gossips = gossips
    by_number: dict[int, Any] = {}
    for node in world.nodes:
        if "provider" in node.roles:
            agent = spec.providers.get(node.group, ProviderAgent())
            by_number[node.number] = market.add_provider(node.number, node.group, node.index, agent)
        elif "client" in node.roles:
            client = market.add_client(
                node.number, node.group, node.index, spec.clients.get(node.group, ClientAgent())
            )  # fmt: skip
            by_number[node.number] = client
            if gossips is not None:
                gossips.clients[node.number] = client
        if gossips is not None and "gossip" in node.roles:
            gossips.join(node)

    def up(node: Any) -> None:
        if node.number in by_number:
            market.came_up(by_number[node.number])

    def down(node: Any) -> None:
        if node.number in by_number:
            by_number[node.number].crash()

    world.on_up(up)
    world.on_down(down)
    world.kernel.after(0, market.begin_demand)
    world.market = market
    return MarketPart(market, stack)


def run_market(
    scenario: Scenario,
    *,
    seed: int,
    sink: Sink | None = None,
    progress: Progress | None = None,
    prepare: Callable[[Market], None] | None = None,
    settle_s: float = SETTLE_S,
) -> tuple[LevelResult, Market]:
    """The market alone, over a uniform network; `prepare(market)` may change it before it starts."""
    spec = scenario.market
    assert spec is not None
    kernel = Kernel(seed)
    net = scenario.net
    latency = UniformLatency(*net.latency_ms)
    wire = Network(kernel, latency, jitter=net.jitter, loss=net.loss)
    env = Env(kernel=kernel, wire=wire, seed=seed)
    market = Market(
        env,
        spec,
        chain=scenario.chain,
        sink=sink or NullSink(),
        warmup_s=scenario.run.warmup_s,
        until_s=scenario.run.until_s,
    )
    for name, group in scenario.nodes.items():
        for index in range(group.count):
            if "provider" in group.roles:
                number = wire.add(_node_key(seed, name, index))
                market.add_provider(number, name, index, spec.providers.get(name, ProviderAgent()))
            elif "client" in group.roles:
                number = wire.add(_node_key(seed, name, index))
                market.add_client(number, name, index, spec.clients.get(name, ClientAgent()))
    if prepare is not None:
        prepare(market)
    with shared_signatures(env.memo), quiet_collector():
        market.start()
        end_ns = market.until_ns + int(settle_s * SECOND_NS)
        until_ns = market.until_ns

        def report(now: int) -> None:
            if progress is not None:
                progress((now - kernel.start_ns) / (end_ns - kernel.start_ns), "market")

        kernel.run(until_ns, on_progress=report)
        kernel.run(end_ns, on_progress=report)
        market.settle()
        kernel.run(end_ns + int(settle_s * SECOND_NS))
        summary = market.summary()
    result = LevelResult(
        events=kernel.events,
        trace_hash=kernel.trace.hexdigest(),
        checkpoints=tuple(kernel.trace.checkpoints),
        summary=summary,
    )
    return result, market


def _node_key(seed: int, group: str, index: int) -> int:
    name = f"{seed}/{group}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "big")
