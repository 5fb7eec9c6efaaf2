"""Numbers about a market: quantiles, concentration, dispersion. Plain functions of plain lists."""

from __future__ import annotations

import math
from collections.abc import Sequence


def quantile(sorted_values: Sequence[float], share: float) -> float:
    """The value below which this share lies; `nan` of nothing. The list must be sorted."""
    if not sorted_values:
        return math.nan
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


def gini(values: Sequence[float]) -> float:
    """0: all the same; towards 1: one has all. 0 of nothing."""
    ordered = sorted(values)
    total = math.fsum(ordered)
    count = len(ordered)
    if count == 0 or total <= 0:
        return 0.0
    return math.fsum((2 * (index + 1) - count - 1) * value for index, value in enumerate(ordered)) / (count * total)


def jain(values: Sequence[float]) -> float:
    """Jain's fairness: 1 when all are the same, 1/n when one has all."""
    squares = math.fsum(value * value for value in values)
    if not values or squares == 0:
        return 1.0
    return math.fsum(values) ** 2 / (len(values) * squares)


def variation(values: Sequence[float]) -> float:
    """Deviation over mean: how dispersed prices are."""
    if not values:
        return math.nan
    mean = math.fsum(values) / len(values)
    if mean == 0:
        return 0.0
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)) / mean


def share(part: float, whole: float) -> float:
    """`nan` of nothing."""
    return part / whole if whole else math.nan


def rounded(value: float, digits: int = 6) -> float | None:
    """For JSON, which has no `nan`."""
    return None if math.isnan(value) else round(value, digits)
