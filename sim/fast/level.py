"""Level 2: the scenario by compiled models, for 10^5 to 10^6 nodes. Where that is not exact, a warning says so.

    result = run_level(load("gossip-v11", overrides=["nodes.honest.count=100000"]), seed=7, sink=NullSink(), progress=…)

Gossip, DHT and market run one after the other, each on its own: offers do not travel by the gossip model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim.fast import state, validity
from sim.fast.building import gossip_model, gossipers, keeps_all, ways_of
from sim.fast.gossip import GossipModel
from sim.kernel import EPOCH_NS, SECOND
from sim.levels.machines import with_ends
from sim.out import Progress, Sink
from sim.result import LevelResult
from sim.scenario import DhtSpec, GossipSpec, MetricsSpec, Scenario

_LOOKUPS_AT_ONCE = 10_000  # lookups between two reports of progress


@dataclass(slots=True)
class _Run:
    """What the parts of a run add to."""

    events: int = 0
    summary: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[tuple[int, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))


def run_level(scenario: Scenario, *, seed: int, sink: Sink, progress: Progress) -> LevelResult:
    """Raises WorldInvalid, and NumbaMissing for large networks where numba is not installed."""
    scenario = with_ends(scenario)
    run = _Run(warnings=list(validity.warnings_for(scenario)))
    if scenario.gossip is not None and gossipers(scenario):
        _run_gossip(run, scenario, scenario.gossip, seed=seed, sink=sink, progress=progress)
    if scenario.dht is not None:
        _run_dht(run, scenario, scenario.dht, seed=seed, sink=sink, progress=progress)
    if scenario.market is not None:
        from sim.fast.market import run_market

        progress(0.0, "market")
        part = run_market(scenario, seed=seed)
        run.summary |= part.summary
        run.events += part.events
        run.warnings += part.warnings
        run.digest.update(part.digest)
    return LevelResult(
        events=run.events,
        trace_hash=run.digest.hexdigest(),
        checkpoints=tuple(run.checkpoints),
        summary=run.summary,
        warnings=tuple(run.warnings),
    )


# --- gossip --------------------------------------------------------------------------------------------------


def _run_gossip(run: _Run, scenario: Scenario, spec: GossipSpec, *, seed: int, sink: Sink, progress: Progress) -> None:
    nodes = sum(group.count for _, group in gossipers(scenario))
    messages = int(spec.publishers * spec.rate_per_s * max(0.0, spec.publish_until_s - spec.publish_from_s)) + 1
    has_rows = sink.wants("deliveries") and keeps_all(nodes, messages)
    if sink.wants("deliveries") and not has_rows:
        run.warnings.append("too many deliveries for rows of their own: their histogram is in the summary")
    model = gossip_model(scenario, spec, seed=seed, keeps_all=has_rows)
    until_s, warmup_s = scenario.run.until_s, scenario.run.warmup_s
    is_warm = warmup_s <= 0
    at_s = 0.0
    while at_s < until_s:
        step_s = min(at_s + 1.0, until_s)
        if not is_warm and step_s >= warmup_s:
            model.run_until(warmup_s)
            model.reset_counts()
            is_warm = True
        model.run_until(step_s)
        at_s = step_s
        run.checkpoints.append((EPOCH_NS + int(at_s * SECOND), model.digest()))
        progress(at_s / until_s, f"{at_s:.0f} s, {model.events:,} events")
    run.events += model.events
    run.digest.update(model.digest().encode() + b"%d" % model.events)
    run.summary["gossip"] = gossip_summary(model, scenario.metrics)
    run.summary["network"] = {
        "messages": sum(model.counts().values()),
        "bytes": model.counter(state.SENT_BYTES),
        "lost": model.counter(state.LOST),
        "overflowed": model.counter(state.DROPPED),
        "nodes": nodes,
        "up_at_end": model.counter(state.ALIVE_COUNT),
    }
    if model.counter(state.REFUSED):
        run.warnings.append(f"{model.counter(state.REFUSED):,} connections found no room in a row of the model")
    if model.counter(state.STALE):
        run.warnings.append(f"{model.counter(state.STALE):,} copies came when their message was forgotten")
    if has_rows:
        _write_deliveries(model, sink, warmup_s=warmup_s)


def gossip_summary(model: GossipModel, metrics: MetricsSpec) -> dict[str, Any]:
    """As level 1 says it; None where there was nothing to measure. `delay_timely_ms` is of nodes that were up when the
    message was published: with churn, others catch up seconds later."""
    delivered, expected = model.counter(state.DELIVERED), model.counter(state.EXPECTED)
    delays = model.delays()
    steps = np.flatnonzero(delays)
    has = delivered > 0 and len(steps) > 0
    middle = (np.arange(len(delays)) + 0.5) * 0.1
    bars: dict[str, list[int]] = {"bins_100ms": model.delay_histogram(100.0, metrics.delay_bins)}
    if metrics.delay_bin_ms != 100.0:
        bars["bins"] = model.delay_histogram(metrics.delay_bin_ms, metrics.delay_bins)
    alive = model.model.nodes[:, state.ALIVE] > 0
    return {
        "sent": model.counts() | {"bytes": model.counter(state.SENT_BYTES)},
        "delay_ms": {
            "p50": model.delay_quantile_ms(0.5) if has else None,
            "p90": model.delay_quantile_ms(0.9) if has else None,
            "p99": model.delay_quantile_ms(0.99) if has else None,
            "min": float(middle[steps[0]]) if has else None,
            "max": float(middle[steps[-1]]) if has else None,
            "mean": float((delays * middle).sum() / delays.sum()) if has else None,
            **bars,
        },
        "delay_timely_ms": {
            name: model.delay_quantile_ms(share, timely=True) if has else None
            for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
        },
        "duplicates_per_delivery": model.counter(state.DUPLICATES) / delivered if delivered else None,
        "delivered_share": model.counter(state.TIMELY) / expected if expected else None,
        "published": model.counter(state.PUBLISHED),
        "deliveries": delivered,
        "recovered": model.counter(state.RECOVERED),
        "mesh_degree_mean": float(model.model.nodes[alive, state.MESH].mean()) if alive.any() else None,
    }


def _write_deliveries(model: GossipModel, sink: Sink, *, warmup_s: float) -> None:
    """Rows in the order of messages, then of nodes: this level keeps arrivals, not the order of events."""
    messages, tick_ns = model.model.messages, model.tick_ns
    arrivals = model.arrivals()
    numbers = np.sort(messages[messages[:, state.NUMBER] >= 0, state.NUMBER])
    for column, number in enumerate(numbers):
        slot = number % len(messages)
        at, source = int(messages[slot, state.AT]), int(messages[slot, state.SOURCE])
        if at * tick_ns < warmup_s * SECOND:
            continue
        for node in np.flatnonzero(arrivals[:, column]):
            if node != source:
                arrived = int(arrivals[node, column])
                sink.row(
                    "deliveries",
                    message=int(number),
                    node=int(node),
                    t_ns=EPOCH_NS + arrived * tick_ns,
                    delay_ns=(arrived - at) * tick_ns,
                )


# --- DHT -----------------------------------------------------------------------------------------------------


def _run_dht(run: _Run, scenario: Scenario, spec: DhtSpec, *, seed: int, sink: Sink, progress: Progress) -> None:
    from sim.fast.dht import LookupModel

    nodes = scenario.count_with("dht")
    if nodes < 2 or not spec.lookups:
        return
    ways_ms = ways_of(scenario, seed=seed)
    model = LookupModel(nodes, seed=seed)
    parts = []
    for first in range(0, spec.lookups, _LOOKUPS_AT_ONCE):
        count = min(_LOOKUPS_AT_ONCE, spec.lookups - first)
        parts.append(model.look_up(count, k=spec.k, alpha=spec.alpha, paths=spec.paths, ways_ms=ways_ms))
        progress((first + count) / spec.lookups, f"{first + count:,} lookups")
    hops = np.concatenate([part.hops for part in parts])
    rpcs = np.concatenate([part.rpcs for part in parts])
    found = np.concatenate([part.found_closest for part in parts])
    times = np.concatenate([part.duration_ms for part in parts])
    run.events += 2 * int(rpcs.sum())  # a question and its answer
    run.digest.update(hops.tobytes() + rpcs.tobytes() + times.tobytes())
    run.summary["dht"] = {
        "hops": _quantiles(hops),
        "rpcs_mean": float(rpcs.mean()),
        "found_closest_share": float(found.mean()),
        "lookups": len(hops),
        "duration_ms": _quantiles(times),
    }
    if sink.wants("lookups") and spec.lookups <= scenario.metrics.rows_max:
        for number in range(len(hops)):
            sink.row(
                "lookups",
                lookup=number,
                hops=int(hops[number]),
                rpcs=int(rpcs[number]),
                duration_ns=int(times[number] * 1e6),
                found_closest=int(found[number]),
            )


def _quantiles(values: Any) -> dict[str, float]:
    return {
        "p50": float(np.percentile(values, 50)),
        "p95": float(np.percentile(values, 95)),
        "mean": float(values.mean()),
    }
