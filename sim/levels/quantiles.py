"""Quantiles of millions of delays in little room: counts per tenth of a millisecond."""

from __future__ import annotations

from collections.abc import Sequence

STEP_NS = 100_000
_MS = 1_000_000


class Delays:
    """Exact to 0.1 ms; at most one counter per tenth of a millisecond that occurs."""

    __slots__ = ("_counts", "count", "total_ns")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.total_ns = 0

    def add(self, delay_ns: int) -> None:
        step = delay_ns // STEP_NS
        self._counts[step] = self._counts.get(step, 0) + 1
        self.count += 1
        self.total_ns += delay_ns

    def quantiles_ms(self, shares: Sequence[float]) -> list[float | None]:
        """The middle of the step in which each quantile lies; None when there is nothing."""
        if not self.count:
            return [None for _ in shares]
        ordered = sorted(self._counts.items())
        found: list[float | None] = []
        for share in shares:
            rank, seen = share * (self.count - 1), 0
            for step, count in ordered:
                seen += count
                if seen > rank:
                    found.append((step + 0.5) * STEP_NS / _MS)
                    break
        return found

    def mean_ms(self) -> float | None:
        return self.total_ns / self.count / _MS if self.count else None

    def bins(self, width_ms: float, count: int) -> list[int]:
        """A histogram of so many bars; the last one holds the rest."""
        bars = [0] * count
        width = round(width_ms * _MS / STEP_NS) or 1
        for step, number in self._counts.items():
            bars[min(step // width, count - 1)] += number
        return bars


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Of a sorted list, with linear interpolation; None when it is empty."""
    if not ordered:
        return None
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)
