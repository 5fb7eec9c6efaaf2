"""Region sets: named regions with weights and one-way latencies between them, shipped as CSV with their sources.

    regions = load_regions("regions8")          # of this package; or load_regions(Path("mine.csv"))
    regions.latency_ns[a][b]

The form of a file: comment lines (`#`) that say where its numbers come from, then a header
`region,weight,<name>,<name>,…`, then one row per region in the same order. A file without the column `weight` and
with one row per node is a matrix of nodes: `load_matrix`.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from sim.errors import WorldInvalid

NAMES = ("regions8", "simblock6")
_MS = 1_000_000
CELLS_MAX = 25_000_000  # of a matrix of nodes: 5,000 × 5,000, 200 MB; King's has 1,740², Meridian's 2,500²
LATENCY_MS_MAX = 60_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSet:
    name: str
    source: str  # the comment lines of its file
    regions: tuple[str, ...]
    weights: tuple[float, ...]
    latency_ns: tuple[tuple[int, ...], ...]  # one way, [from][to]

    def index(self, region: str) -> int:
        """Raises WorldInvalid, with the names that there are."""
        try:
            return self.regions.index(region)
        except ValueError:
            raise WorldInvalid(f"no region {region!r} in {self.name}; it has {', '.join(self.regions)}") from None


def load_regions(which: str | Path) -> RegionSet:
    """A region set of this package by its name, or one from a file. Raises WorldInvalid."""
    name = str(which)
    if name in NAMES:
        text = resources.files("sim.net").joinpath("data", f"{name}.csv").read_text(encoding="utf-8")
    else:
        text = _read(Path(which))
    comments, rows = _rows(text, name)
    if len(rows) < 2 or rows[0][:2] != ["region", "weight"]:
        raise WorldInvalid(f"{name}: the header must be region,weight,<names>")
    names = tuple(rows[0][2:])
    if [row[0] for row in rows[1:]] != list(names):
        raise WorldInvalid(f"{name}: one row per region is wanted, in the order of the columns")
    return RegionSet(
        name=name,
        source=comments,
        regions=names,
        weights=tuple(_number(row[1], name) for row in rows[1:]),
        latency_ns=tuple(_latencies(row[2:], len(names), name) for row in rows[1:]),
    )


def load_matrix(path: Path) -> tuple[tuple[int, ...], ...]:
    """One-way latencies in ns between nodes: a square of milliseconds, without header. Raises WorldInvalid."""
    _, rows = _rows(_read(path), str(path))
    if len(rows) ** 2 > CELLS_MAX:
        raise WorldInvalid(f"{path}: more than {CELLS_MAX:,} cells")
    if not rows:
        raise WorldInvalid(f"{path}: an empty matrix")
    return tuple(_latencies(row, len(rows), str(path)) for row in rows)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WorldInvalid(f"{path}: {error}") from error


def _rows(text: str, name: str) -> tuple[str, list[list[str]]]:
    lines = text.splitlines()
    comments = "\n".join(line[1:].strip() for line in lines if line.startswith("#"))
    rows = list(csv.reader(io.StringIO("\n".join(line for line in lines if line.strip() and not line.startswith("#")))))
    return comments, rows


def _latencies(cells: list[str], count: int, name: str) -> tuple[int, ...]:
    if len(cells) != count:
        raise WorldInvalid(f"{name}: a row has {len(cells)} latencies where {count} are wanted")
    return tuple(int(_number(cell, name) * _MS) for cell in cells)


def _number(cell: str, name: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        raise WorldInvalid(f"{name}: {cell!r} is no number") from None
    if not 0 <= number <= LATENCY_MS_MAX:
        raise WorldInvalid(f"{name}: {cell} is not between 0 and {LATENCY_MS_MAX:g}")
    return number
