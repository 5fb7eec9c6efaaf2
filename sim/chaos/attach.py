"""A scenario's chaos inside a run of level 1: the same faults, with the scenario's rates, on all nodes of the world."""

from __future__ import annotations

from typing import Any

from cocoon.types import SECOND_NS
from sim.chaos.faults import Faults, Rates
from sim.rng import stream
from sim.scenario import ChaosSpec, Scenario


def rates_of(spec: ChaosSpec) -> Rates:
    """The scenario's words for them."""
    return Rates(
        crash_per_s=spec.crash_per_s,
        crash_for_s=spec.crash_for_s,
        trap_share=float(spec.params.get("trap_share", 0.0)),
        torn_share=0.5,
        lying_share=spec.lose_last_write,
        partition_per_s=spec.partition_per_s,
        partition_for_s=spec.partition_for_s,
        clock_per_s=spec.clock_jump_per_s,
        clock_jump_s=spec.clock_jump_s,
        disk_per_s=float(spec.params.get("disk_per_s", 0.0)),
        chain_per_s=spec.chain_outage_per_s,
        chain_for_s=spec.chain_outage_for_s,
        reorg_per_s=float(spec.params.get("reorg_per_s", 0.0)),
        loss_per_s=float(spec.params.get("loss_per_s", 0.0)),
    )


class ChaosPart:
    """What `attach_chaos` gives to the run."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def summary(self) -> dict[str, Any]:
        """How many of each kind struck."""
        return {"chaos": dict(sorted(self._faults.counts.items()))}


def attach_chaos(world: Any, scenario: Scenario) -> ChaosPart:
    """Before the first event; faults come from the warm-up's end to the run's end."""
    assert scenario.chaos is not None
    market = getattr(world, "market", None)
    faults = Faults(world, market, rates_of(scenario.chaos), rng=stream(world.seed, "chaos"))
    start_ns = world.kernel.start_ns
    until_ns = start_ns + int(scenario.run.until_s * SECOND_NS)
    world.kernel.at(start_ns + int(scenario.run.warmup_s * SECOND_NS), faults.begin, until_ns)
    return ChaosPart(faults)
