"""The grid: sixteen cells, each one scenario that both levels run."""

from __future__ import annotations

from dataclasses import dataclass

from sim.loading import load
from sim.scenario import Scenario

SIZES = (200, 500, 1_000, 2_000)
BASE = (
    "run.until_s=16",
    "gossip.publishers=40",
    "gossip.rate_per_s=0.125",
    "gossip.publish_from_s=6",
    "gossip.publish_until_s=12",
)
"""Thirty messages of different publishers, once the mesh stands: a seed's median depends on who publishes."""

KINDS = {
    "plain": (),
    "bandwidth": (
        "gossip.message_bytes=4096",
        "nodes.honest.link.up_mbit_per_s=20",
        "nodes.honest.link.down_mbit_per_s=50",
    ),
    "loss": ("net.loss=0.05",),
    "churn": (
        "nodes.honest.churn.model=weibull",
        "nodes.honest.churn.scale_s=300",
        "nodes.honest.churn.off_mean_s=60",
    ),
}
WORDS = {
    "plain": "latencies U(10, 150) ms + 10 % jitter",
    "bandwidth": "the same, messages of 4 KiB, 20 Mbit/s up, 50 Mbit/s down",
    "loss": "the same as plain, 5 % of all RPCs vanish",
    "churn": "the same as plain, sessions Weibull(0.608, 300 s), away 60 s on average",
}


@dataclass(frozen=True, slots=True)
class Cell:
    kind: str
    nodes: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.nodes}"

    def scenario(self) -> Scenario:
        return load("gossip-v11", overrides=[*BASE, *KINDS[self.kind], f"nodes.honest.count={self.nodes}"])


GRID = tuple(Cell(kind, nodes) for nodes in SIZES for kind in KINDS)


def named(names: str) -> tuple[Cell, ...]:
    """ "plain-200,loss-500", "plain" (all sizes), "200" (all kinds), "" (all). Raises ValueError."""
    if not names:
        return GRID
    found: dict[Cell, None] = {}
    for name in names.split(","):
        matching = [cell for cell in GRID if name in (cell.name, cell.kind, str(cell.nodes))]
        if not matching:
            raise ValueError(f"no cell {name!r}; there are {', '.join(cell.name for cell in GRID)}")
        found.update(dict.fromkeys(matching))
    return tuple(found)
