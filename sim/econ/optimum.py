"""What a market could reach at best, exactly: assignments under full information, prices that support them, monopoly.

    best = assign(worth, capacities)       # worth[i][j]: of serving request i at provider j; −inf where impossible
    best.total, best.chosen[i], best.prices[j]

`assign` is a minimum-cost flow by successive shortest paths over providers, so a whole window of requests with dozens
of providers takes milliseconds in plain Python. Its prices are the competitive ones: at these, every request choosing
for itself what is best for it leads to the same total (the first theorem of welfare, for assignment markets).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

REQUESTS_MAX: Final = 5_000  # of one call: the search grows with requests × providers²
NOBODY: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The best total; who serves each request (`NOBODY`: better unserved); what a place at each provider is worth."""

    total: float
    chosen: tuple[int, ...]
    prices: tuple[float, ...]


def assign(worth: Sequence[Sequence[float]], capacities: Sequence[int]) -> Assignment:
    """Serve the requests so that the sum of their worth is largest. Serving nobody is worth 0.

    Requests enter one by one; each takes the best chain of "I take your place, you move on" that adds worth. That keeps
    the assignment optimal for the requests so far.
    """
    if len(worth) > REQUESTS_MAX:
        raise ValueError(f"an assignment of {len(worth)} requests; at most {REQUESTS_MAX}")
    providers = len(capacities)
    outside = providers  # a provider of worth 0 with room for all
    rooms = [*capacities, len(worth) + 1]
    rows = [[*row, 0.0] for row in worth]
    chosen: list[int] = []
    members: list[set[int]] = [set() for _ in rooms]
    for request, row in enumerate(rows):
        chosen.append(outside)
        distance, came_from, mover = _longest(row, rows, members, rooms)
        ends = [at for at in range(providers + 1) if len(members[at]) < rooms[at]]
        at = max(ends, key=lambda end: (distance[end], -end))
        while came_from[at] != NOBODY:  # everybody on the chain moves one place
            before = came_from[at]
            moved = mover[at]
            members[before].discard(moved)
            members[at].add(moved)
            chosen[moved] = at
            at = before
        members[at].add(request)
        chosen[request] = at
    total = sum(row[at] for row, at in zip(rows, chosen, strict=True))
    return Assignment(
        total=total,
        chosen=tuple(NOBODY if at == outside else at for at in chosen),
        prices=tuple(_prices(rows, members, rooms)[:providers]),
    )


def _longest(
    row: Sequence[float], rows: Sequence[Sequence[float]], members: list[set[int]], rooms: list[int]
) -> tuple[list[float], list[int], list[int]]:
    """For a newcomer: the most that is gained in all if the chain of moves that it starts ends at each provider."""
    count = len(rooms)
    gain = _moves(rows, members, count)
    distance = list(row)
    came_from = [NOBODY] * count
    mover = [NOBODY] * count
    for _ in range(count):
        has_changed = False
        for a in range(count):
            if distance[a] == -math.inf or not members[a]:
                continue
            for b in range(count):
                if a == b or gain[a][b] is None:
                    continue
                value, who = gain[a][b]  # type: ignore[misc]
                if distance[a] + value > distance[b] + 1e-9:
                    distance[b] = distance[a] + value
                    came_from[b], mover[b] = a, who
                    has_changed = True
        if not has_changed:
            break
    return distance, came_from, mover


def _moves(
    rows: Sequence[Sequence[float]], members: list[set[int]], count: int
) -> list[list[tuple[float, int] | None]]:
    """gain[a][b]: the cheapest member of a to move to b, and what moving it adds."""
    gain: list[list[tuple[float, int] | None]] = [[None] * count for _ in range(count)]
    for a in range(count):
        line = gain[a]
        for who in members[a]:
            row = rows[who]
            here = row[a]
            for b in range(count):
                if a == b or row[b] == -math.inf:
                    continue
                value = row[b] - here
                known = line[b]
                if known is None or value > known[0] or (value == known[0] and who < known[1]):
                    line[b] = (value, who)
    return gain


def _prices(rows: Sequence[Sequence[float]], members: list[set[int]], rooms: list[int]) -> list[float]:
    """What one more place at each provider would add: the dual prices. 0 where there is room."""
    count = len(rooms)
    gain = _moves(rows, members, count)
    price = [0.0] * count
    for _ in range(count + 1):  # longest chains that end in the new place
        has_changed = False
        for b in range(count):
            if len(members[b]) < rooms[b]:
                continue
            for a in range(count):
                if a == b or gain[a][b] is None:
                    continue
                value, _ = gain[a][b]  # type: ignore[misc]
                candidate = value + price[a]
                if candidate > price[b] + 1e-9:
                    price[b] = candidate
                    has_changed = True
        if not has_changed:
            break
    return price


# --- closed forms ----------------------------------------------------------------------------------------


def monopoly_price(*, value_low: float, value_high: float, cost: float) -> float:
    """What one seller without rivals asks of buyers whose values are uniform in [low, high], each wanting one piece.

    Profit (p − c)·(h − p)/(h − l) is largest at p = (h + c)/2, or at l when all buy there.
    """
    return max(value_low, (value_high + cost) / 2)


def clearing_price(values: Sequence[float], costs: Sequence[float]) -> float:
    """The price at which as many want to buy as to sell, one piece each: midway between the marginal pair."""
    demand = sorted(values, reverse=True)
    supply = sorted(costs)
    traded = 0
    while traded < min(len(demand), len(supply)) and demand[traded] >= supply[traded]:
        traded += 1
    if traded == 0:
        return (demand[0] + supply[0]) / 2 if demand and supply else 0.0
    low = max(supply[traded - 1], demand[traded] if traded < len(demand) else -math.inf)
    high = min(demand[traded - 1], supply[traded] if traded < len(supply) else math.inf)
    return (low + high) / 2
