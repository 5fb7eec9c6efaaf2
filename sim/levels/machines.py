"""Level 1: the shipped machines of `p2p` and `cocoon`, thousands of them, in virtual time.

    result = run_level(load("gossip-v10"), seed=7, sink=NullSink(), progress=lambda share, note: None)

The parts of a scenario that are not None are attached to one world: gossip and DHT workloads here, the market, the
adversaries and the chaos from their own packages. What a machine sends is charged with the size of its encoding, and
nothing is encoded.
"""

from __future__ import annotations

import gc
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Protocol

from sim.kernel import SECOND, quiet_collector
from sim.levels.building import Population, build_world, until_ns
from sim.levels.dht import DhtWorkload
from sim.levels.gossip import GossipWorkload
from sim.levels.sharing import shared_hashes, shared_offers
from sim.levels.world import Observer, World
from sim.out import Progress, Sink
from sim.result import LevelResult
from sim.scenario import Scenario
from sim.trace import Recording

LINGER_S = 10.0  # without other word, workloads stop so long before the end: what is under way arrives


class Part(Protocol):
    def summary(self) -> dict[str, Any]: ...


def run_level(
    scenario: Scenario,
    *,
    seed: int,
    sink: Sink,
    progress: Progress,
    recording: Recording | None = None,
    observer: Observer | None = None,
) -> LevelResult:
    """Raises WorldInvalid for what cannot be built, and what the machines raise: that is a bug of theirs."""
    with ExitStack() as stack:
        stack.enter_context(quiet_collector())
        stack.enter_context(shared_hashes())
        if scenario.market is not None:
            stack.enter_context(shared_offers())
        return _run(with_ends(scenario), seed, sink, progress, recording, observer)


def _run(
    scenario: Scenario,
    seed: int,
    sink: Sink,
    progress: Progress,
    recording: Recording | None,
    observer: Observer | None,
) -> LevelResult:
    world = build_world(scenario, seed=seed, recording=recording, observer=observer)
    until = until_ns(world)
    parts = attach_parts(world, scenario, sink)
    world.observer.attached(world)
    start, span = world.kernel.start_ns, max(1, until - world.kernel.start_ns)

    def on_progress(now: int) -> None:
        progress(min(1.0, (now - start) / span), f"{(now - start) / SECOND:.1f} s, {world.kernel.events:,} events")

    gc.freeze()  # what is built stays: no collection need look at it again
    world.kernel.run(until, on_progress=on_progress)
    summary: dict[str, Any] = {}
    for part in parts:
        summary |= part.summary()
    world.observer.finished(world)
    summary["network"] = network_summary(world)
    trace = world.kernel.trace
    return LevelResult(
        events=world.kernel.events,
        trace_hash=trace.hexdigest(),
        checkpoints=tuple(trace.checkpoints),
        summary=summary,
    )


def with_ends(scenario: Scenario) -> Scenario:
    """Ends of workloads that were left open, resolved: `linger` before the end of the run."""
    until = max(0.0, scenario.run.until_s - LINGER_S)
    gossip, dht = scenario.gossip, scenario.dht
    if gossip is not None and not gossip.publish_until_s:
        gossip = replace(gossip, publish_until_s=until)
    if dht is not None and not dht.lookups_until_s:
        dht = replace(dht, lookups_until_s=until)
    return replace(scenario, gossip=gossip, dht=dht)


def attach_parts(world: World, scenario: Scenario, sink: Sink) -> list[Part]:
    """Everything that the scenario has, in the order in which the summary names it."""
    warmup_ns = int(scenario.run.warmup_s * SECOND)
    parts: list[Part] = []
    population = Population(world)
    if scenario.gossip is not None:
        parts.append(
            _Named("gossip", GossipWorkload(world, scenario.gossip, scenario.metrics, sink, warmup_ns=warmup_ns))
        )
    if scenario.dht is not None:
        parts.append(_Named("dht", DhtWorkload(world, scenario.dht, sink, warmup_ns=warmup_ns)))
    if scenario.market is not None:
        from sim.levels.market import attach_market  # the market and all of cocoon: only where it is wanted

        parts.append(attach_market(world, scenario, sink))
    if scenario.chaos is not None:
        from sim.chaos import attach_chaos

        parts.append(attach_chaos(world, scenario))
    if scenario.adversaries:
        from sim.adversary import attach_adversaries

        parts.append(attach_adversaries(world, scenario))
    population.start_all()
    return parts


class _Named:
    def __init__(self, name: str, part: Part) -> None:
        self._name = name
        self._part = part

    def summary(self) -> dict[str, Any]:
        return {self._name: self._part.summary()}


def network_summary(world: World) -> dict[str, Any]:
    network = world.network
    return {
        "messages": network.messages,
        "bytes": network.bytes,
        "lost": network.lost,
        "blocked": network.blocked,
        "overflowed": network.overflowed,
        "nodes": len(world.nodes),
        "up_at_end": sum(node.is_up for node in world.nodes),
        "dials_failed": world.dials_failed,
    }
