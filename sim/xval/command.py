"""`python -m sim xval`: measure what is missing, print or publish the table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sim.errors import SimError
from sim.xval.cells import GRID, Cell, named
from sim.xval.measure import FREE_SEEDS_MIN, Verdict, judge, measure
from sim.xval.store import Store
from sim.xval.table import as_json, page


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sim xval",
        description="Hold the fast model against the real machines: the same meshes (conditioned) and its own (free).",
    )
    parser.add_argument("--cells", default="", metavar="LIST", help="plain-200,loss,1000 … (default: all sixteen)")
    parser.add_argument("--seeds", type=int, default=FREE_SEEDS_MIN, help="of each cell (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop measuring after so long; 0 is never")
    parser.add_argument("--out", type=Path, default=Path("build/xval"), help="where measurements are kept")
    parser.add_argument("--write", type=Path, metavar="FILE", help="publish the table as this page")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    return parser


def main(argv: Sequence[str]) -> int:
    """0: measured, whatever it says; 1: a run failed; 2: usage. Figures on stdout, talk on stderr."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        cells = named(arguments.cells)
    except ValueError as error:
        parser.error(str(error))
    store = Store(arguments.out)
    try:
        _measure(store, cells, seeds=arguments.seeds, seconds=arguments.seconds)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
    except SimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    verdicts = {cell.name: judge(store.of(cell.name)) for cell in GRID if cell in cells and store.of(cell.name)}
    text = page(verdicts, machine=_machine())
    if arguments.write is not None:
        arguments.write.write_text(text, encoding="utf-8")
        print(f"wrote {arguments.write}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(as_json(verdicts)))
    elif arguments.write is None:
        print(text)
    return 0


def _measure(store: Store, cells: Sequence[Cell], *, seeds: int, seconds: float) -> None:
    """Seed by seed over all cells, so that a run that is cut short has something of everything."""
    until = time.monotonic() + seconds if seconds > 0 else float("inf")
    waiting = [(cell, seed) for seed in range(1, seeds + 1) for cell in cells if not store.has(cell.name, seed)]
    for number, (cell, seed) in enumerate(waiting, start=1):
        if time.monotonic() >= until:
            print(f"time is up; {len(waiting) - number + 1} measurements are left", file=sys.stderr)
            return
        entry = measure(cell.scenario(), seed=seed)
        store.put(cell.name, entry)
        said = ", ".join(f"{name} {entry['replay'][name] / entry['real'][name] - 1:+.1%}" for name in ("p50", "p99"))
        print(f"{number}/{len(waiting)} {cell.name} seed {seed}: {said}, KS {entry['ks']:.4f}", file=sys.stderr)


def _machine() -> str:
    return f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"


__all__ = ["Verdict", "main"]
