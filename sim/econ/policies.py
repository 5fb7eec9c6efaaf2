"""How a provider sets its price: fixed, cost plus a margin, best response to what it saw, or a bandit that tries.

    policy = make_policy(agent, cost=…, start=…, rng=…)
    price = policy.next_price(Window(price=…, sold=…, asked=…, rivals=(…), load=…))

Prices are nanoTON per 10⁶ output tokens, and change at most once per window. A policy sees what an operator sees: its
own sales, its own load, and the others' offers. Not here: publishing the price (`provider`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from sim.rng import Stream

PRICE_MIN: Final = 1
LADDER: Final = 1.25  # a bandit's prices are so far apart
ARMS: Final = 9
EXPLORE: Final = 1.5  # UCB's width
LOAD_HIGH: Final = 0.85
LOAD_LOW: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What an operator saw since it last looked."""

    price: int
    sold_tokens: int
    load: float  # mean share of slots in use
    rivals: tuple[int, ...]  # prices of the other offers of this model, sorted
    seconds: float
    requests: int = 0


class Policy(Protocol):
    """One per provider and model."""

    def next_price(self, seen: Window) -> int:
        """What to ask from now on."""
        ...


class Fixed:
    """Never changes."""

    def __init__(self, price: int) -> None:
        self._price = max(PRICE_MIN, price)

    def next_price(self, seen: Window) -> int:
        """The same."""
        return self._price


class CostPlus(Fixed):
    """Cost and a margin."""

    def __init__(self, cost: int, margin: float) -> None:
        super().__init__(round(cost * (1 + margin)))


class BestResponse:
    """Asks what would have earned most: just below a rival while there is room, more when it is full.

    With rivals: undercuts the cheapest rival that is dearer than its own cost as long as its slots are not full, and
    goes up when they are. Without any, it has only its customers to respond to: it estimates their demand from its own
    sales (a straight line through what it sold at which price) and asks the price that the line says is best.
    """

    def __init__(self, *, cost: int, start: int, undercut: float = 0.02, step: float = 0.05) -> None:
        self._cost = max(PRICE_MIN, cost)
        self._price = max(self._cost, start)
        self._undercut = undercut
        self._step = step
        self._sales: dict[int, tuple[float, float]] = {}  # price → (sold per second, weight)
        self._probe = 1

    def next_price(self, seen: Window) -> int:
        """See the class."""
        if seen.rivals:
            self._price = self._against(seen)
        else:
            self._price = self._alone(seen)
        return self._price

    def _against(self, seen: Window) -> int:
        if seen.load >= LOAD_HIGH:
            return round(seen.price * (1 + self._step))
        if seen.load <= LOAD_LOW:
            dearer = [rival for rival in seen.rivals if rival * (1 - self._undercut) > self._cost]
            target = min(dearer, default=seen.price) * (1 - self._undercut)
            return max(self._cost, round(min(seen.price, target)))
        return seen.price

    def _alone(self, seen: Window) -> int:
        sold, weight = self._sales.get(seen.price, (0.0, 0.0))
        total = weight + seen.seconds
        if total > 0:
            self._sales[seen.price] = ((sold * weight + seen.sold_tokens) / total, total)
        line = _line(self._sales)
        if line is None or len(self._sales) < 3:
            self._probe += 1  # three prices before a line is believed: a little up, a little down
            return max(self._cost, round(seen.price * (1.2 if self._probe % 2 else 0.7)))
        level, slope = line
        if slope >= 0:
            return round(seen.price * (1 + self._step))
        return max(self._cost, round((level / -slope + self._cost) / 2))  # max of (p − c)·(level + slope·p)


class Bandit:
    """UCB over a ladder of prices around the start: tries them all, then mostly what earned most per second."""

    def __init__(self, *, cost: int, start: int, rng: Stream) -> None:
        middle = ARMS // 2
        self._cost = cost
        self._arms = [max(PRICE_MIN, round(start * LADDER ** (index - middle))) for index in range(ARMS)]
        self._earned = [0.0] * ARMS
        self._tries = [0] * ARMS
        self._now = min(range(ARMS), key=lambda index: abs(self._arms[index] - start))
        self._rng = rng

    def next_price(self, seen: Window) -> int:
        """See the class."""
        if seen.seconds > 0:
            self._earned[self._now] += (seen.price - self._cost) * seen.sold_tokens / seen.seconds
            self._tries[self._now] += 1
        untried = [index for index in range(ARMS) if self._tries[index] == 0]
        if untried:
            self._now = self._rng.choice(untried)
        else:
            self._now = max(range(ARMS), key=self._bound)
        return self._arms[self._now]

    @property
    def favourite(self) -> int:
        """The price that has earned most per window so far."""
        return self._arms[max(range(ARMS), key=lambda index: (self._mean(index), -index))]

    def _mean(self, index: int) -> float:
        return self._earned[index] / self._tries[index] if self._tries[index] else -math.inf

    def _bound(self, index: int) -> float:
        scale = max(1.0, max(self._mean(each) for each in range(ARMS)))
        width = EXPLORE * scale * math.sqrt(math.log(sum(self._tries)) / self._tries[index]) / 4
        return self._mean(index) + width


def make_policy(
    name: str, *, cost: int, start: int, margin: float, rng: Stream
) -> Policy:  # fmt: skip
    """By the scenario's word."""
    match name:
        case "fixed":
            return Fixed(start)
        case "cost-plus":
            return CostPlus(cost, margin)
        case "best-response":
            return BestResponse(cost=cost, start=start)
        case "bandit":
            return Bandit(cost=cost, start=start, rng=rng)
    raise ValueError(f"no price policy {name!r}")


def _line(points: dict[int, tuple[float, float]]) -> tuple[float, float] | None:
    """Level and slope of the weighted least-squares line; None with fewer than two prices."""
    if len(points) < 2:
        return None
    rows: Sequence[tuple[float, float, float]] = [(price, sold, weight) for price, (sold, weight) in points.items()]
    total = math.fsum(weight for _, _, weight in rows)
    x = math.fsum(price * weight for price, _, weight in rows) / total
    y = math.fsum(sold * weight for _, sold, weight in rows) / total
    spread = math.fsum(weight * (price - x) ** 2 for price, _, weight in rows)
    if spread == 0:
        return None
    slope = math.fsum(weight * (price - x) * (sold - y) for price, sold, weight in rows) / spread
    return y - slope * x, slope
