"""When a node is up: the sessions of one node, in virtual seconds since the start, one after the other, without end.

    for up_s, down_s in sessions(spec, stream(seed, "churn@honest", 12), index=12): ...

weibull   sessions of IPFS peers: 50 % end within 2 h and 80 % within 8 h (RFM2 of ProbeLab), which a Weibull of shape
          0.608 and scale 3.66 h fits; away times are exponential. At the start the process has run for ever: a node is
          up with the share of time that it is up, and what is left of its session is drawn for a session met at a
          random instant, which is longer than the average one (the inspection paradox)
trace     read from a CSV file of `node,up_s,down_s`; nodes are counted from 0 within their group
diurnal   a share of nodes is up for half of each period, from a random minute around the same hour on
flash     a share of nodes arrives within some seconds of one instant, and may leave again

Not here: what going down does to a node (`sim.levels.world`).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

from sim.errors import WorldInvalid
from sim.rng import Stream
from sim.scenario import ChurnSpec

TRACE_ROWS_MAX = 5_000_000
_DAWN = 0.25  # diurnal: nodes come up after a quarter of the period, give or take:
_DAWN_SPREAD = 1 / 12

Session = tuple[float, float]  # up from, down from; the latter may be infinite
ALWAYS: Session = (0.0, math.inf)


def sessions(
    spec: ChurnSpec, chance: Stream, *, index: int, trace: dict[int, list[Session]] | None = None
) -> Iterator[Session]:
    """`trace`: what `read_trace` gave, for the model of that name. A node that it does not name is never up."""
    if spec.model == "weibull":
        return _weibull(spec, chance)
    if spec.model == "trace":
        return iter((trace or {}).get(index, []))
    if spec.model == "diurnal":
        return _diurnal(spec, chance)
    if spec.model == "flash" and chance.random() < spec.share:
        return _flash(spec, chance)
    return iter([ALWAYS])


def _weibull(spec: ChurnSpec, chance: Stream) -> Iterator[Session]:
    mean_up = spec.scale_s * math.gamma(1 + 1 / spec.shape)
    if chance.random() * (mean_up + spec.off_mean_s) < mean_up:
        at = 0.0
        # Sessions met at a random instant are weighted by their length: (x / scale)^shape is Gamma(1 + 1/shape).
        length = spec.scale_s * _gamma(1 + 1 / spec.shape, chance) ** (1 / spec.shape)
        until = length * chance.random()
    else:
        at = chance.exponential(spec.off_mean_s)
        until = at + chance.weibull(spec.shape, spec.scale_s)
    while True:
        yield at, until
        at = until + chance.exponential(spec.off_mean_s)
        until = at + chance.weibull(spec.shape, spec.scale_s)


def _gamma(shape: float, chance: Stream) -> float:
    """A draw of Gamma(shape, 1) for shape >= 1, by Marsaglia and Tsang's method."""
    d = shape - 1 / 3
    c = 1 / math.sqrt(9 * d)
    while True:
        x = chance.normal()
        v = (1 + c * x) ** 3
        if v > 0 and math.log(1.0 - chance.random()) < 0.5 * x * x + d - d * v + d * math.log(v):
            return d * v


def _diurnal(spec: ChurnSpec, chance: Stream) -> Iterator[Session]:
    if chance.random() >= spec.amplitude:
        yield ALWAYS
        return
    day = -1
    while True:
        dawn = (day + _DAWN + _DAWN_SPREAD * chance.uniform(-1.0, 1.0)) * spec.period_s
        dusk = dawn + spec.period_s / 2
        if dusk > 0:
            yield max(0.0, dawn), dusk
        day += 1


def _flash(spec: ChurnSpec, chance: Stream) -> Iterator[Session]:
    at = spec.at_s + spec.within_s * chance.random()
    yield at, at + spec.stay_s if spec.stay_s else math.inf


def read_trace(path: Path) -> dict[int, list[Session]]:
    """Node → its sessions, in order. Raises WorldInvalid, with the line."""
    found: dict[int, list[Session]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                if not row or row[0].startswith("#") or row[0] == "node":
                    continue
                if number > TRACE_ROWS_MAX:
                    raise WorldInvalid(f"{path}: more than {TRACE_ROWS_MAX:,} rows")
                _add(found, row, f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise WorldInvalid(f"{path}: {error}") from error
    return found


def _add(found: dict[int, list[Session]], row: list[str], where: str) -> None:
    try:
        node, up, down = int(row[0]), float(row[1]), float(row[2])
    except (ValueError, IndexError):
        raise WorldInvalid(f"{where}: node,up_s,down_s is wanted") from None
    earlier = found.setdefault(node, [])
    if not 0 <= up < down or (earlier and up < earlier[-1][1]):
        raise WorldInvalid(f"{where}: sessions must be in order, and end after they begin")
    earlier.append((up, down))
