"""One job: one scenario, one seed, one level, in this process. What `run`, `sweep`, `replay` and `diff` all execute.

The result is plain values (JSON), so that it crosses processes and machines. Levels are imported here, when needed:
each is one function, `run_level(scenario, *, seed, sink, progress) -> LevelResult`.
"""

from __future__ import annotations

import importlib
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, cast

from .checking import build
from .errors import RunError
from .out import NullSink, Progress
from .parquet import ParquetSink
from .result import LevelResult
from .scenario import Scenario
from .trace import Recording

LEVELS = {0: "sim.levels.whole", 1: "sim.levels.machines", 2: "sim.fast.level"}
PARTS = ("gossip", "dht", "market", "payments")  # in the summary always, null when not simulated


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    name: str  # unique within its batch, and part of a file name
    scenario: Mapping[str, Any]  # as `writing.plain` gives it
    folder: str  # what the scenario's files are relative to
    seed: int
    level: int
    rows_to: str = ""  # a folder; empty: rows are not written


def run_job(job: Job, progress: Progress) -> dict[str, Any]:
    """{"summary": the JSON of one run, "checkpoints": [[ns, hash], …], "skipped": {table: rows}}."""
    scenario = build(job.scenario, where=lambda _: job.name, folder=Path(job.folder))
    if not job.rows_to:
        return execute(scenario, seed=job.seed, level=job.level, sink=None, progress=progress)
    sink = ParquetSink(
        Path(job.rows_to), seed=job.seed, tables=scenario.metrics.tables, rows_max=scenario.metrics.rows_max
    )
    return execute(scenario, seed=job.seed, level=job.level, sink=sink, progress=progress)


def execute(
    scenario: Scenario,
    *,
    seed: int,
    level: int,
    progress: Progress,
    sink: ParquetSink | None = None,
    recording: Recording | None = None,
) -> dict[str, Any]:
    run_level = level_function(level)
    more = {} if recording is None else {"recording": recording}
    _forget_peak()
    cpu_started, started = time.process_time(), time.perf_counter()
    with sink or nullcontext(NullSink()) as rows:
        result = run_level(scenario, seed=seed, sink=rows, progress=progress, **more)
    cpu_s, wall_s = time.process_time() - cpu_started, time.perf_counter() - started
    return {
        "summary": summary_of(result, seed=seed, level=level, cpu_s=cpu_s, rss_mb=peak_rss_mb()),
        "checkpoints": [[t_ns, digest] for t_ns, digest in result.checkpoints],
        "skipped": sink.skipped() if sink else {},
        "wall_s": round(wall_s, 3),
    }


def level_function(level: int) -> Callable[..., LevelResult]:
    if level not in LEVELS:
        raise RunError(f"level {level}: there are levels 0, 1 and 2")
    module = importlib.import_module(LEVELS[level])
    return cast("Callable[..., LevelResult]", module.run_level)


def summary_of(result: LevelResult, *, seed: int, level: int, cpu_s: float, rss_mb: float) -> dict[str, Any]:
    """The JSON that `run --json` prints for one seed."""
    made: dict[str, Any] = {
        "level": level,
        "seed": seed,
        "events": result.events,
        "cpu_s": round(cpu_s, 3),
        "rss_mb": round(rss_mb, 1),
        "trace_hash": result.trace_hash,
    }
    made |= {part: _plain(result.summary.get(part)) for part in PARTS}
    made |= {part: _plain(value) for part, value in result.summary.items() if part not in made}
    if result.warnings:
        made["warnings"] = list(result.warnings)
    return made


def _plain(value: Any) -> Any:
    """Only what JSON has: numpy's numbers and dataclasses become plain ones."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if hasattr(value, "tolist"):  # numpy
        return _plain(value.tolist())
    raise TypeError(f"{type(value).__name__} in a summary")


def _forget_peak() -> None:
    """So that the peak is this job's, not an earlier one's. Linux only; elsewhere the process's whole life counts."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_rss_mb() -> float:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    unit = 1024 * 1024 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
