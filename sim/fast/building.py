"""From a scenario to a gossip model: the router's own settings as rules, its own encodings as sizes.

Nodes are those with the role `gossip`, numbered as at level 1. Sessions of churn are those of level 1, draw for draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2p.gossip import GossipSettings, Rpc, rpc_bytes
from p2p.gossip.messages import Prune, new_message, with_signature
from sim import rng
from sim.churn import read_trace, sessions
from sim.errors import WorldInvalid
from sim.fast import state
from sim.fast.gossip import GossipModel
from sim.fast.graph import one_by_one, random_rows
from sim.fast.script import Operation, script_of
from sim.fast.state import Float64, Int64, Rules, draw_phases
from sim.levels.building import REDIALS_MAX, UPKEEP_S
from sim.levels.gossip import gossip_settings
from sim.net import load_matrix, load_regions
from sim.scenario import GossipSpec, LinkSpec, NodeGroup, Scenario

_MBIT = 1_000_000 / 8
_TICKS_MAX = 500_000_000  # of a run: marks of asked messages hold a time in 29 bits
TICKS_NS = (10_000, 100_000, 1_000_000)  # the finest that the run's length allows
_LARGE = 200_000  # nodes: from here on memory decides
_KEEP_S, _KEEP_LARGE_S, _KEEP_QUEUED_S = 20.0, 8.0, 60.0  # how long a message is spoken of and counted
_ROWS_MAX = 5_000_000  # deliveries that are written one by one
_WAYS = 4_096  # delays that stand for all pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The workload, in ticks."""

    at: Int64
    node: Int64


def tick_of(until_s: float) -> int:
    """ns. Raises WorldInvalid."""
    for tick_ns in TICKS_NS:
        if until_s * 1e9 / tick_ns <= _TICKS_MAX:
            return tick_ns
    raise WorldInvalid(f"run.until_s: the fast level takes {_TICKS_MAX * TICKS_NS[-1] / 1e9:,.0f} s at most")


def gossipers(scenario: Scenario) -> list[tuple[str, NodeGroup]]:
    return [(name, group) for name, group in scenario.nodes.items() if "gossip" in group.roles]


def rules_of(scenario: Scenario, spec: GossipSpec, *, tick_ns: int, seed: int) -> Rules:
    """The settings of level 1's routers, in ticks."""
    settings = gossip_settings(spec)
    groups = [group for _, group in gossipers(scenario)]
    nodes = sum(group.count for group in groups)
    has_bandwidth = any(group.link.up_mbit_per_s or group.link.down_mbit_per_s for group in groups)
    has_churn = any(group.churn.model != "none" for group in groups)
    second = 1e9 / tick_ns
    score = settings.score
    topic = score.topics.get(spec.topic, score.topic_default)
    low, high = scenario.net.latency_ms
    in_mesh_s = 1.0 if topic is None else topic.time_in_mesh_quantum_s
    is_first = spec.protocol == "v1.0"
    message, ids, each, graft, prune = _sizes(spec, settings)
    keep_s = _KEEP_QUEUED_S if has_bandwidth else _KEEP_LARGE_S if nodes > _LARGE else _KEEP_S
    return Rules(
        degree=settings.degree,
        degree_low=settings.degree_low,
        degree_high=settings.degree_high,
        degree_lazy=settings.degree_lazy,
        degree_score=settings.degree_score,
        degree_out=settings.degree_out,
        heartbeat=round(settings.heartbeat_s * second),
        gossip_windows=settings.gossip_windows,
        history_windows=settings.history_windows,
        followup=round(settings.iwant_followup_s * second),
        prune_backoff=round(settings.prune_backoff_s * second),
        backoff_slack=round(settings.backoff_slack_s * second),
        flood_publish=settings.flood_publish,
        has_scores=topic is not None,
        has_idontwant=spec.protocol == "v1.2",
        idontwant_bytes_min=settings.idontwant_bytes_min,
        opportunistic_ticks=settings.opportunistic_graft_ticks,
        opportunistic_peers=settings.opportunistic_graft_peers,
        ids_max=settings.ihave_ids_max,
        dials=spec.dials,
        has_bandwidth=has_bandwidth,
        has_churn=has_churn,
        message_bytes=message,
        ids_bytes=ids,
        id_bytes=each,
        graft_bytes=graft,
        prune_bytes=prune,
        keep=round(max(keep_s, 2 * settings.history_windows * settings.heartbeat_s) * second),
        salt=rng.stream(seed, "fast.latency").u64() >> 1,
        px_peers=settings.px_peers,
        px_dials_max=settings.px_dials_max,
        outbound_both=is_first,
        upkeep_ticks=round(UPKEEP_S * second) if has_churn else 0,
        redials_max=REDIALS_MAX,
        gossip_factor=settings.gossip_factor,
        opportunistic_below=score.opportunistic_graft_threshold,
        time_weight=0.0 if topic is None else topic.weight * topic.time_in_mesh_weight / in_mesh_s / second,
        time_cap=0.0 if topic is None else topic.time_in_mesh_cap * in_mesh_s * second,
        first_weight=0.0 if topic is None else topic.weight * topic.first_deliveries_weight,
        first_cap=0.0 if topic is None else topic.first_deliveries_cap,
        first_decay=1.0 if topic is None else topic.first_deliveries_decay,
        topic_cap=score.topic_score_cap,
        jitter=scenario.net.jitter,
        loss=scenario.net.loss,
        latency_low=low * 1e6 / tick_ns,
        latency_high=high * 1e6 / tick_ns,
        px_score_min=score.accept_px_threshold,
    )


def _sizes(spec: GossipSpec, settings: GossipSettings) -> tuple[int, int, int, int, int]:
    """Bytes of a message beyond its payload; of an IHAVE or IWANT beyond its ids; of an id; of GRAFT; of PRUNE."""
    peer, message_id = bytes(38), bytes(32)
    unsigned = new_message(source=peer, data=bytes(spec.message_bytes), seqno=bytes(8), topic=spec.topic)
    message = rpc_bytes(Rpc(messages=(with_signature(unsigned, bytes(64)),))) - spec.message_bytes
    one = rpc_bytes(Rpc(ihave=((spec.topic, (message_id,)),)))
    two = rpc_bytes(Rpc(ihave=((spec.topic, (message_id, message_id)),)))
    offered = tuple((peer, b"") for _ in range(settings.px_peers))
    graft = rpc_bytes(Rpc(graft=(spec.topic,)))
    return message, 2 * one - two, two - one, graft, rpc_bytes(Rpc(prune=(Prune(spec.topic, 60, offered),)))


def flows_of(links: list[tuple[int, LinkSpec]], *, tick_ns: int) -> Float64:
    """(nodes, FLOW_COLUMNS) of so many nodes with each link."""
    blocks = []
    for count, link in links:
        block = np.zeros((count, state.FLOW_COLUMNS), np.float64)
        for column, mbit in ((state.UP_PER_BYTE, link.up_mbit_per_s), (state.DOWN_PER_BYTE, link.down_mbit_per_s)):
            block[:, column] = 1e9 / (mbit * _MBIT) / tick_ns if mbit else 0.0
        block[:, state.QUEUE_BYTES] = link.queue_bytes
        blocks.append(block)
    return np.concatenate(blocks)


def latencies_of(scenario: Scenario, *, tick_ns: int, seed: int) -> tuple[NDArray[np.int32] | None, Float64 | None]:
    """Region of each node and the matrix between regions, in ticks; None, None for a uniform network."""
    net = scenario.net
    groups = gossipers(scenario)
    if net.model == "uniform":
        return None, None
    nodes = sum(group.count for _, group in groups)
    generator = np.random.Generator(np.random.PCG64(rng.stream(seed, "fast.regions").u64()))
    if net.model == "matrix":
        hosts = np.array(load_matrix(scenario.folder / net.file), np.float64) / tick_ns
        region = np.arange(nodes, dtype=np.int32)
        if nodes > len(hosts):
            region[len(hosts) :] = generator.integers(0, len(hosts), nodes - len(hosts))
        return region, hosts
    regions = load_regions(net.model)
    weights = np.array(regions.weights) / sum(regions.weights)
    region = generator.choice(len(weights), nodes, p=weights).astype(np.int32)
    first = 0
    for _, group in groups:
        if group.link.region:
            region[first : first + group.count] = regions.index(group.link.region)
        first += group.count
    return region, np.array(regions.latency_ns, np.float64) / tick_ns


def ways_of(scenario: Scenario, *, seed: int) -> Float64:
    """Delays of one way between random nodes of the network, jitter included, in ms, each as likely."""
    net = scenario.net
    jitter = 1.0 + net.jitter / 2
    if net.model == "uniform":
        return np.linspace(net.latency_ms[0], net.latency_ms[1], _WAYS) * jitter
    generator = np.random.Generator(np.random.PCG64(rng.stream(seed, "fast.ways").u64()))
    if net.model == "matrix":
        matrix = np.array(load_matrix(scenario.folder / net.file), np.float64)
        ends = generator.integers(0, len(matrix), (2, _WAYS))
    else:
        regions = load_regions(net.model)
        matrix = np.array(regions.latency_ns, np.float64)
        ends = generator.choice(len(matrix), (2, _WAYS), p=np.array(regions.weights) / sum(regions.weights))
    found: Float64 = matrix[ends[0], ends[1]] / 1e6 * jitter
    return found


def churn_of(scenario: Scenario, *, tick_ns: int, seed: int) -> tuple[NDArray[np.bool_], list[Operation]]:
    """Who is up at the start, and who comes and goes then. Raises WorldInvalid."""
    alive: list[bool] = []
    operations: list[Operation] = []
    until_s, ticks = scenario.run.until_s, 1e9 / tick_ns
    for name, group in gossipers(scenario):
        if group.churn.model == "none":
            alive += [True] * group.count
            continue
        trace = read_trace(scenario.folder / group.churn.file) if group.churn.model == "trace" else None
        for index in range(group.count):
            number, is_up = len(alive), False
            for up_s, down_s in sessions(
                group.churn, rng.stream(seed, f"churn@{name}", index), index=index, trace=trace
            ):
                if up_s > until_s:
                    break
                if up_s <= 0:
                    is_up = True
                else:
                    operations.append(Operation(int(up_s * ticks), state.UP, number))
                if down_s <= until_s and not math.isinf(down_s):
                    operations.append(Operation(int(down_s * ticks), state.DOWN, number))
                else:
                    break
            alive.append(is_up)
    return np.array(alive, np.bool_), operations


def workload_of(spec: GossipSpec, nodes: int, *, until_s: float, tick_ns: int, seed: int) -> Published:
    """An even total rate, each message by one of the publishers, as at level 1."""
    generator = np.random.Generator(np.random.PCG64(rng.stream(seed, "fast.publish").u64()))
    total = spec.publishers * spec.rate_per_s
    until = spec.publish_until_s or max(0.0, until_s - 10.0)
    if total <= 0 or until <= spec.publish_from_s:
        return Published(at=np.zeros(0, np.int64), node=np.zeros(0, np.int64))
    count = math.ceil((until - spec.publish_from_s) * total - 1e-9)
    at = (spec.publish_from_s + np.arange(count) / total) * 1e9 / tick_ns
    publishers = generator.choice(nodes, min(spec.publishers, nodes), replace=False)
    return Published(at=at.astype(np.int64), node=publishers[generator.integers(0, len(publishers), count)])


def gossip_model(scenario: Scenario, spec: GossipSpec, *, seed: int, keeps_all: bool) -> GossipModel:
    """`keeps_all`: every arrival is remembered to the end. Raises WorldInvalid, NumbaMissing."""
    groups = gossipers(scenario)
    nodes = sum(group.count for _, group in groups)
    if not nodes:
        raise WorldInvalid("a gossip scenario without nodes of the role gossip")
    tick_ns = tick_of(scenario.run.until_s)
    rules = rules_of(scenario, spec, tick_ns=tick_ns, seed=seed)
    region, matrix = latencies_of(scenario, tick_ns=tick_ns, seed=seed)
    alive, operations = churn_of(scenario, tick_ns=tick_ns, seed=seed)
    if rules.has_churn:
        operations += [Operation(1, state.UP, int(node)) for node in np.flatnonzero(alive)]
    rows = random_rows(
        nodes, rules, seed=seed, region=region, matrix=matrix, alive=alive, spare=0 if nodes > _LARGE else 12
    )
    draw_phases(rows.nodes, heartbeat=rules.heartbeat, seed=seed)
    work = workload_of(spec, nodes, until_s=scenario.run.until_s, tick_ns=tick_ns, seed=seed)
    operations += [
        Operation(int(at), state.PUBLISH, int(node), number, spec.message_bytes)
        for number, (at, node) in enumerate(zip(work.at, work.node, strict=True))
    ]
    published = len(work.at)
    slots = published if keeps_all else min(published, slots_for(work.at, rules.keep))
    return GossipModel(
        rules=rules,
        rows=rows,
        script=script_of(operations),
        slots=max(1, slots),
        tick_ns=tick_ns,
        seed=seed,
        flows=flows_of([(group.count, group.link) for _, group in groups], tick_ns=tick_ns)
        if rules.has_bandwidth
        else None,
        matrix=one_by_one() if matrix is None else matrix,
    )


def slots_for(at: Int64, keep: int) -> int:
    """The most messages that any `keep` ticks hold, and a few."""
    if not len(at):
        return 1
    return int((np.arange(len(at)) - np.searchsorted(at, at - keep)).max()) + 2


def keeps_all(nodes: int, messages: int) -> bool:
    """Few enough deliveries to hand out one by one."""
    return nodes * messages <= _ROWS_MAX
