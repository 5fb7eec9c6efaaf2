"""`python -m sim run`: one scenario, one or more seeds, one folder; the summary as JSON and with 95 % intervals.

With one seed the JSON is that run's. With several, every number is the mean over the runs, `ci95` has the interval of
each by its dotted path, and `runs` tells what proves each run (`trace_hash` on top is the hash of theirs).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from .environment import environment
from .errors import RunError
from .folder import RunFolder, copy_inputs, with_inputs
from .job import Job
from .pool import run_jobs
from .progress import Meter
from .scenario import Scenario
from .statistics import intervals, means

KEEP_EVERY_S = 2.0  # what a kill loses of finished seeds' summaries; their rows are there
PROOF = ("seed", "events", "cpu_s", "rss_mb", "trace_hash")


def run(
    scenario: Scenario,
    *,
    seeds: Sequence[int],
    level: int,
    meter: Meter,
    out: Path | None = None,
    workers: int = 1,
    overwrite: bool = False,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """The summary. `out` None writes nothing. What was done before Ctrl-C or an error stays in `out`, and is marked."""
    values, copies = with_inputs(scenario)
    folder: RunFolder | None = None
    inputs = str(scenario.folder)
    if out is not None:
        manifest = {"kind": "run", "scenario": values, "seeds": list(seeds), "level": level, "command": list(command)}
        folder = RunFolder.create(out, manifest | {"environment": environment()}, overwrite=overwrite)
        copy_inputs(out, copies)
        inputs = str(out / "inputs")
    else:
        from .writing import plain

        values = plain(scenario)
    jobs = [
        Job(name=f"seed {seed}", scenario=values, folder=inputs, seed=seed, level=level, rows_to=str(out or ""))
        for seed in seeds
    ]
    done: dict[int, dict[str, Any]] = {}
    keep_at = 0.0
    try:
        for job, result in run_jobs(jobs, workers=workers, on_progress=meter.progress):
            done[job.seed] = result
            meter.finished(job)
            if folder is not None and (len(done) == len(jobs) or time.monotonic() >= keep_at):
                _keep(folder, done)
                keep_at = time.monotonic() + KEEP_EVERY_S
    except KeyboardInterrupt:
        if folder is not None:
            _keep(folder, done)
            folder.cut_short("interrupted", f"stopped by hand after {len(done)} of {len(jobs)} runs")
        raise
    except Exception as problem:  # whatever it was, the folder says that it was cut short; then it goes on up
        if folder is not None:
            with contextlib.suppress(RunError):  # the disk may be full: the mark is there since the start
                _keep(folder, done)
            folder.cut_short("failed", f"{type(problem).__name__}: {problem}")
        if isinstance(problem, (OSError, MemoryError)):
            raise RunError(f"the run cannot go on: {problem or type(problem).__name__}") from problem
        raise
    summary = combined([done[seed]["summary"] for seed in seeds])
    if folder is not None:
        folder.complete()
    return summary


def combined(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if len(runs) == 1:
        return dict(runs[0])
    made = means([{key: value for key, value in one.items() if key != "warnings"} for one in runs])
    made["level"], made["seed"] = runs[0]["level"], runs[0]["seed"]
    made["trace_hash"] = blake2b("".join(one["trace_hash"] for one in runs).encode(), digest_size=16).hexdigest()
    if warnings := sorted({text for one in runs for text in one.get("warnings", ())}):
        made["warnings"] = warnings
    made["replications"] = len(runs)
    made["ci95"] = {
        path: [one.low, one.high]
        for path, one in intervals(runs).items()
        if path not in ("level", "seed") and one.count > 1
    }
    made["runs"] = [{key: one[key] for key in PROOF} for one in runs]
    return made


def _keep(folder: RunFolder, done: Mapping[int, dict[str, Any]]) -> None:
    """Now and then, and at the end, however it comes: a run that is cut short has kept the finished seeds."""
    if not done:
        return
    in_order = [done[seed] for seed in folder.manifest["seeds"] if seed in done]
    runs = [result["summary"] for result in in_order]
    folder.manifest["runs"] = [{key: one[key] for key in PROOF} for one in runs]
    if skipped := {str(seed): result["skipped"] for seed, result in done.items() if result["skipped"]}:
        folder.manifest["rows_skipped"] = skipped
    folder.write_json("summary.json", combined(runs))
    folder.write_json("checkpoints.json", {str(seed): result["checkpoints"] for seed, result in done.items()})
    folder.write_json("manifest.json", folder.manifest)
    write_intervals(folder.path / "summary.parquet", {"": runs})


def write_intervals(path: Path, groups: Mapping[str, Sequence[Mapping[str, Any]]], label: str = "") -> None:
    """One row per number and group: its mean and 95 % interval. `label`: a column that names the group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for name, runs in groups.items():
        for metric, one in intervals(runs).items():
            row = {"metric": metric, "mean": one.mean, "low": one.low, "high": one.high}
            row |= {"deviation": one.deviation, "count": one.count}
            rows.append({label: name} | row if label else row)
    try:
        pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
    except OSError as problem:
        raise RunError(f"{path} cannot be written: {problem}") from problem
