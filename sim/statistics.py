"""Means and 95 % intervals over replications: Student's t, because five seeds are few.

flat({"gossip": {"delay_ms": {"p50": 1.0}}})      # {"gossip.delay_ms.p50": 1.0}
interval([1.0, 2.0, 3.0])                         # Interval(mean=2.0, low=…, high=…, …)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2).
_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_Z_975 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    mean: float
    low: float  # of the 95 % interval of the mean; NaN with fewer than two values
    high: float
    deviation: float  # of the sample
    count: int


def t_975(freedom: int) -> float:
    """Of the two-sided 95 % interval. Beyond the table by Cornish and Fisher's expansion, exact to 0.0005."""
    if freedom < 1:
        return math.nan
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    z = _Z_975
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def interval(values: Sequence[float]) -> Interval:
    """Raises ValueError when there are no values."""
    count = len(values)
    if count == 0:
        raise ValueError("an interval of no values")
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean=mean, low=math.nan, high=math.nan, deviation=math.nan, count=1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = t_975(count - 1) * deviation / math.sqrt(count)
    return Interval(mean=mean, low=mean - half, high=mean + half, deviation=deviation, count=count)


def flat(value: Any, path: str = "") -> dict[str, float]:
    """The numbers in nested tables and lists, by their dotted path. Texts, nulls, truths and NaN are left out."""
    if isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, (list, tuple)):
        pairs = dict(enumerate(value)).items()
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return {}
    else:
        return {path: float(value)}
    made: dict[str, float] = {}
    for key, one in pairs:
        made |= flat(one, f"{path}.{key}" if path else str(key))
    return made


def intervals(runs: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
    """Of every number that at least one of the runs has; `count` says how many had it."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for path, value in flat(run).items():
            values.setdefault(path, []).append(value)
    return {path: interval(these) for path, these in values.items()}


def means(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One nested table of the shape of the first run, each number the mean over the runs that have it."""
    return {key: _mean_of([run[key] for run in runs if key in run]) for key in runs[0]}


def _mean_of(values: list[Any]) -> Any:
    numbers = [one for one in values if isinstance(one, (int, float)) and not isinstance(one, bool)]
    if numbers:
        return math.fsum(numbers) / len(numbers)
    first = next((one for one in values if one is not None), None)
    if isinstance(first, Mapping):
        tables = [one for one in values if isinstance(one, Mapping)]
        return {key: _mean_of([one[key] for one in tables if key in one]) for key in first}
    if isinstance(first, (list, tuple)):
        lists = [one for one in values if isinstance(one, (list, tuple))]
        return [_mean_of([one[n] for one in lists if n < len(one)]) for n in range(max(map(len, lists)))]
    return first
