"""Where the fast level was held against the real machines, and with what error: the region, and warnings outside it.

The figures are those of `docs/xval.md`, which `python -m sim xval` writes; change them together.
"""

from __future__ import annotations

from sim.scenario import Scenario

NODES = (200, 2_000)  # level 1 is too slow for grids of more
LOSS_MAX = 0.05
UP_MBIT_MIN = 20.0
MESSAGE_BYTES_MAX = 4_096
SESSION_SCALE_S_MIN = 300.0


def warnings_for(scenario: Scenario) -> tuple[str, ...]:
    """One line for each way in which the scenario leaves what was checked or modelled."""
    found: list[str] = []
    spec, groups = scenario.gossip, list(scenario.nodes.values())
    nodes = scenario.node_count
    if spec is not None and nodes > NODES[1]:
        found.append(f"{nodes:,} nodes: gossip was held against the real routers up to {NODES[1]:,} only")
    if scenario.net.loss > LOSS_MAX:
        found.append(f"loss of {scenario.net.loss:g}: checked up to {LOSS_MAX:g}")
    if spec is not None and spec.message_bytes > MESSAGE_BYTES_MAX:
        found.append(f"messages of {spec.message_bytes:,} bytes: checked up to {MESSAGE_BYTES_MAX:,}")
    if any(0 < group.link.up_mbit_per_s < UP_MBIT_MIN for group in groups):
        found.append(f"uplinks under {UP_MBIT_MIN:g} Mbit/s: not checked")
    if spec is not None and spec.protocol != "v1.1":
        found.append(f"gossipsub {spec.protocol}: checked with v1.1")
    if spec is not None and scenario.net.model != "uniform":
        found.append(f"latencies of {scenario.net.model}: gossip was checked with uniform ones")
    if spec is not None and any(group.churn.model != "none" for group in groups):
        found.append("with churn p99 hangs on the last nodes to come: in one cell it is 31 % too high (docs/xval.md)")
    if any(group.churn.model == "weibull" and group.churn.scale_s < SESSION_SCALE_S_MIN for group in groups):
        found.append(f"sessions shorter than Weibull({SESSION_SCALE_S_MIN:g} s): not checked")
    if spec is not None and (spec.topic_score or spec.score or spec.settings):
        found.append("scores or settings of one's own: P3 to P7 and the rate limits are not modelled here")
    if scenario.adversaries or scenario.chaos is not None:
        found.append("adversaries and chaos are left out at this level: take level 1")
    if scenario.net.partitions:
        found.append("partitions are left out at this level: take level 1")
    if any(group.link.nat != "public" for group in groups):
        found.append("NATs are left out at this level: every node can be dialled")
    if scenario.dht is not None and any(group.churn.model != "none" for group in groups):
        found.append("the tables of the DHT hold no peers that have left: with churn, lookups look too good")
    if scenario.dht is not None and not scenario.dht.warm:
        found.append("the tables of the DHT are full from the start (dht.warm)")
    if scenario.run.until_s > 5_000:
        found.append("more than 5,000 s: time is counted in steps of 0.1 ms or more")
    return tuple(found)
