"""The published page: the error of the fast level against the real machines, cell by cell, and what it means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sim.xval.cells import GRID, WORDS
from sim.xval.measure import (
    CONDITIONED_ERROR_MAX,
    FREE_ERROR_MAX,
    FREE_PER_SEED,
    FREE_SEEDS_MIN,
    KS_MAX,
    REPLAYS,
    SHARES,
    Verdict,
)

_COUNTS = ("message", "ihave", "iwant", "graft", "prune", "duplicates", "degree", "deliveries")

_HEAD = f"""\
# How far the fast model is from the real machines

`python -m sim xval` wrote this page. Level 1 runs the shipped gossip router; level 2 is the compiled model. Sixteen
cells: four sizes, each plain, with bandwidth, with loss, with churn. Thirty messages a seed, D 6/4/12, 20 dials,
gossipsub v1.1, heartbeat 1 s, forty publishers.

- **Conditioned**: level 2 replays the very meshes, connections, sessions and publications of level 1's run; jitter,
  loss and gossip to others are its own ({REPLAYS} replays a seed). This is the error of propagation alone. Wanted:
  p50, p90 and p99 within {CONDITIONED_ERROR_MAX:.0%}, Kolmogorov–Smirnov distance under {KS_MAX}. Delays of all seeds
  are pooled.
- **Free**: level 2 makes its own network from the same scenario ({FREE_PER_SEED} for each seed). Wanted: the mean p50,
  p90 and p99 within {FREE_ERROR_MAX:.0%} over at least {FREE_SEEDS_MIN} seeds, and overlapping 95 % intervals.

Delays are those to nodes that were up when the message was published; who comes up later catches up after seconds, by
what its first neighbours announce, and is in `deliveries` only.
"""

_TAIL = """\
## What this says

A row with "no" misses its mark. The fast level warns outside the region of this table (`sim/fast/validity.py`), and
inside it these are its errors. Counts are models too: their errors are in the third table. Repeat with

    python -m sim xval --seeds 20 --write docs/xval.md

which is resumable: it keeps what was measured under `build/xval`.
"""


def page(verdicts: Mapping[str, Verdict], *, machine: str) -> str:
    parts = [_HEAD, _conditioned(verdicts), _free(verdicts), _counts(verdicts), _missing(verdicts), _TAIL]
    parts.append(f"Measured on {machine}.\n")
    return "\n".join(part for part in parts if part)


def _conditioned(verdicts: Mapping[str, Verdict]) -> str:
    lines = [
        "## Conditioned\n",
        "| cell | seeds | p50 | p90 | p99 | KS, pooled | KS, worst seed | within |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, verdict in verdicts.items():
        errors = " | ".join(f"{verdict.conditioned[share]:+.2%}" for share in SHARES)
        lines.append(
            f"| {name} | {verdict.seeds} | {errors} | {verdict.ks:.4f} | {verdict.ks_seed_max:.4f} "
            f"| {_yes(verdict.conditioned_holds)} |"
        )
    return "\n".join([*lines, ""])


def _free(verdicts: Mapping[str, Verdict]) -> str:
    lines = [
        "## Free\n",
        "| cell | seeds | p50 ms, level 1 | level 2 | p50 | p90 | p99 | intervals overlap | within | CPU ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, verdict in verdicts.items():
        real, fast = verdict.real["p50"], verdict.fast["p50"]
        errors = " | ".join(f"{verdict.free[share]:+.2%}" for share in SHARES)
        lines.append(
            f"| {name} | {verdict.seeds} | {real.mean:.1f} ± {_half(real)} | {fast.mean:.1f} ± {_half(fast)} "
            f"| {errors} | {_overlap(verdict)} | {_within(verdict)} | {verdict.speed:.0f} |"
        )
    return "\n".join([*lines, ""])


def _counts(verdicts: Mapping[str, Verdict]) -> str:
    lines = [
        "## Counts, free\n",
        "Mean per run at level 1, and the error of level 2's mean.\n",
        "| cell | " + " | ".join(_COUNTS) + " |",
        "|---" * (len(_COUNTS) + 1) + "|",
    ]
    for name, verdict in verdicts.items():
        cells = [f"{_short(verdict.real[count].mean)} ({verdict.free[count]:+.1%})" for count in _COUNTS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _missing(verdicts: Mapping[str, Verdict]) -> str:
    absent = [cell.name for cell in GRID if cell.name not in verdicts]
    few = [name for name, verdict in verdicts.items() if verdict.seeds < FREE_SEEDS_MIN]
    lines = ["## Cells\n", *(f"- `{kind}-N`: {words}" for kind, words in WORDS.items())]
    if few:
        lines.append(f"- fewer than {FREE_SEEDS_MIN} seeds, so no verdict on free runs yet: {', '.join(few)}")
    if absent:
        lines.append(f"- not measured yet: {', '.join(absent)}")
    return "\n".join([*lines, ""])


def as_json(verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    return {
        name: {
            "seeds": verdict.seeds,
            "conditioned": dict(verdict.conditioned)
            | {"ks": verdict.ks, "ks_seed_max": verdict.ks_seed_max, "holds": verdict.conditioned_holds},
            "free": dict(verdict.free) | {"overlaps": verdict.overlaps, "holds": verdict.free_holds},
            "level1": {figure: interval.mean for figure, interval in verdict.real.items()},
            "level2": {figure: interval.mean for figure, interval in verdict.fast.items()},
            "cpu_ratio": verdict.speed,
        }
        for name, verdict in verdicts.items()
    }


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


def _overlap(verdict: Verdict) -> str:
    return _yes(verdict.overlaps) if verdict.seeds > 1 else "–"


def _within(verdict: Verdict) -> str:
    """A verdict needs its seeds; before that the row says only how close it is."""
    if verdict.free_holds or verdict.seeds >= FREE_SEEDS_MIN:
        return _yes(verdict.free_holds)
    return "too few seeds"


def _half(interval: Any) -> str:
    return "–" if math.isnan(interval.low) else f"{(interval.high - interval.low) / 2:.1f}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
