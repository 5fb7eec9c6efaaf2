"""One cell with one seed, measured on both levels; and what many seeds of a cell say together.

Conditioned: level 2 replays the meshes of level 1's run. Free: level 2 makes its own network from the same scenario.
Delays are those to nodes that were up when the message was published: who comes up later catches up after seconds,
which would put p99 of a network with churn on the edge between two worlds. They are kept as counts per half
millisecond, so that all seeds of a cell can be pooled later.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.fast.building import tick_of
from sim.fast.level import run_level as run_fast
from sim.out import NullSink
from sim.scenario import Scenario
from sim.statistics import Interval, interval
from sim.xval import conditioned, recorder

STEP_MS = 0.5
REPLAYS = 3  # of each recording, with jitter and loss of their own
FREE_PER_SEED = 5  # networks of level 2 for each of level 1: they cost next to nothing, and narrow the interval
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
CONDITIONED_ERROR_MAX, KS_MAX, FREE_ERROR_MAX = 0.02, 0.02, 0.05
FREE_SEEDS_MIN = 20

Counts = dict[int, int]


def quantiles(delays_ms: NDArray[np.float64]) -> dict[str, float]:
    if not len(delays_ms):
        return dict.fromkeys(SHARES, float("nan"))
    return {name: float(np.percentile(delays_ms, 100 * share)) for name, share in SHARES.items()}


def steps(delays_ms: NDArray[np.float64]) -> list[list[int]]:
    """[step, count] pairs, for JSON."""
    found, counts = np.unique((delays_ms / STEP_MS).astype(np.int64), return_counts=True)
    return [[int(step), int(count)] for step, count in zip(found, counts, strict=True)]


def measure(scenario: Scenario, *, seed: int) -> dict[str, Any]:
    """Both levels, both ways. CPU seconds of each included."""
    tick_ns = tick_of(scenario.run.until_s)
    started = time.process_time()
    recording, real = recorder.record(scenario, seed=seed, tick_ns=tick_ns)
    real_s = time.process_time() - started
    replays, replay_s, late = [], 0.0, 0
    for number in range(REPLAYS):
        model = conditioned.replay(recording, scenario, seed=seed * REPLAYS + number)
        replay_s += model.cpu_s / REPLAYS
        replays.append(conditioned.delays_ms(model))
        late += int(model.delays().sum()) - len(replays[-1])
    free, free_s = [], 0.0
    for number in range(FREE_PER_SEED):
        started = time.process_time()
        result = run_fast(
            scenario, seed=seed * FREE_PER_SEED + number, sink=NullSink(), progress=lambda share, note: None
        )
        free_s += (time.process_time() - started) / FREE_PER_SEED
        gossip = result.summary["gossip"]
        free.append(_figures(gossip) | gossip["delay_timely_ms"])
    pooled = np.concatenate(replays)
    return {
        "seed": seed,
        "events": real.events,
        "cpu_s": {"level1": real_s, "replay": replay_s, "free": free_s},
        "real": _figures(real.summary["gossip"]) | quantiles(recording.delays_ms),
        "replay": quantiles(pooled),
        "ks": kolmogorov_smirnov(recording.delays_ms, pooled),
        "steps": {"real": steps(recording.delays_ms), "replay": steps(pooled)},
        "timely": {"real": len(recording.delays_ms), "replay": len(pooled) / REPLAYS},
        "late": {"real": recording.late, "replay": late / REPLAYS},
        "free": free,
    }


def _figures(gossip: Mapping[str, Any]) -> dict[str, float]:
    figures = {kind: float(gossip["sent"][kind]) for kind in ("message", "ihave", "iwant", "graft", "prune")}
    figures["duplicates"] = float(gossip["duplicates_per_delivery"])
    figures["published"] = float(gossip["published"])
    figures["deliveries"] = float(gossip["deliveries"])
    figures["delivered"] = float(gossip["delivered_share"])
    figures["degree"] = float(gossip["mesh_degree_mean"])
    return figures


def kolmogorov_smirnov(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The largest distance of the two distribution functions."""
    if not len(a) or not len(b):
        return 1.0
    a, b = np.sort(a), np.sort(b)
    at = np.concatenate([a, b])
    return float(
        np.abs(np.searchsorted(a, at, side="right") / len(a) - np.searchsorted(b, at, side="right") / len(b)).max()
    )


# --- many seeds ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A cell over all its seeds. Errors are relative: level 2 against level 1."""

    seeds: int
    conditioned: Mapping[str, float]  # of the pooled delays' quantiles
    ks: float  # of the pooled delays
    ks_seed_max: float  # the worst single seed
    free: Mapping[str, float]  # of the means over seeds
    real: Mapping[str, Interval]
    fast: Mapping[str, Interval]
    speed: float  # CPU of level 1 / CPU of a free run of level 2

    @property
    def conditioned_holds(self) -> bool:
        return all(abs(error) <= CONDITIONED_ERROR_MAX for error in self.conditioned.values()) and self.ks < KS_MAX

    @property
    def overlaps(self) -> bool:
        """Do the 95 % intervals of the mean quantiles overlap?"""
        return all(
            self.real[name].low <= self.fast[name].high and self.fast[name].low <= self.real[name].high
            for name in SHARES
        )

    @property
    def free_holds(self) -> bool:
        is_close = all(abs(self.free[name]) <= FREE_ERROR_MAX for name in SHARES)
        return is_close and self.overlaps and self.seeds >= FREE_SEEDS_MIN


def judge(measured: Sequence[Mapping[str, Any]]) -> Verdict:
    """Raises ValueError when there is nothing to judge."""
    if not measured:
        raise ValueError("a cell without seeds")
    pools = {side: _pooled([each["steps"][side] for each in measured]) for side in ("real", "replay")}
    at = {side: _pool_quantiles(pool) for side, pool in pools.items()}
    names = list(measured[0]["real"])
    real = {name: interval([each["real"][name] for each in measured]) for name in names}
    fast = {name: interval([run[name] for each in measured for run in each["free"]]) for name in names}
    return Verdict(
        seeds=len(measured),
        conditioned={name: at["replay"][name] / at["real"][name] - 1 for name in SHARES},
        ks=_pool_distance(pools["real"], pools["replay"]),
        ks_seed_max=max(each["ks"] for each in measured),
        free={name: fast[name].mean / real[name].mean - 1 if real[name].mean else 0.0 for name in names},
        real=real,
        fast=fast,
        speed=sum(each["cpu_s"]["level1"] for each in measured) / sum(each["cpu_s"]["free"] for each in measured),
    )


def _pooled(parts: Sequence[Sequence[Sequence[int]]]) -> NDArray[np.int64]:
    size = max((step for part in parts for step, _ in part), default=0) + 1
    pool = np.zeros(size, np.int64)
    for part in parts:
        for step, count in part:
            pool[step] += count
    return pool


def _pool_quantiles(pool: NDArray[np.int64]) -> dict[str, float]:
    """With linear interpolation inside a step."""
    total = np.concatenate([[0], np.cumsum(pool)])
    return {
        name: float(np.interp(share * total[-1], total, np.arange(len(total)))) * STEP_MS
        for name, share in SHARES.items()
    }


def _pool_distance(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    size = max(len(a), len(b))
    a, b = np.pad(a, (0, size - len(a))), np.pad(b, (0, size - len(b)))
    return float(np.abs(np.cumsum(a) / max(1, a.sum()) - np.cumsum(b) / max(1, b.sum())).max())
