"""Many points of a scenario: a grid or a latin hypercube, on all cores or a Dask cluster, resumable at any instant.

DIR/manifest.json          the plan: scenario, axes, seeds, level; `--resume` refuses another plan
DIR/points/0003-seed7.json one finished run; written whole or not at all, so a kill loses only what was running
DIR/results.parquet        one row per run: point, seed, the axes, every number
DIR/summary.parquet        one row per point and number, with its 95 % interval
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checking import build
from .environment import environment
from .errors import Problem, RunError, ScenarioError
from .folder import RunFolder, copy_inputs, with_inputs
from .job import Job
from .loading import Document, assign, value_of
from .pool import cores, run_jobs
from .progress import Meter
from .rng import stream
from .scenario import Axis, Scenario, SweepSpec, Value
from .statistics import flat, intervals

POINTS_MAX = 100_000
RUNS_MAX = 1_000_000  # points times seeds
UNEQUAL = ("cpu_s", "rss_mb")  # what two runs of one seed may differ in


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    number: int
    values: Mapping[str, Value]
    scenario: Mapping[str, Any]  # as plain values


def sweep_spec(scenario: Scenario, *, axes: Sequence[str], ranges: Sequence[str], points: int | None) -> SweepSpec:
    """What the options say, else what the scenario says. Raises ScenarioError."""
    if axes and (ranges or points):
        raise ScenarioError(Problem("--axis", "", "is for a grid; --range and --points are for a latin hypercube"))
    if axes:
        listed: dict[str, Axis] = {}
        for text in axes:
            path, is_given, values = text.partition("=")
            if not is_given or not values:
                raise ScenarioError(Problem(f"--axis {text}", "", "write PATH=V1,V2, such as net.loss=0,0.01"))
            listed[path] = Axis(values=tuple(value_of(value) for value in values.split(",")))
        return SweepSpec(method="grid", axes=listed)
    if ranges:
        if not points or points < 1:
            raise ScenarioError(Problem("--range", "", "say how many points: --points 32"))
        return SweepSpec(method="latin", points=points, axes=dict(map(_range, ranges)))
    if scenario.sweep is None:
        raise ScenarioError(Problem(scenario.name, "sweep", "has no [sweep]: say --axis net.loss=0,0.01"))
    return scenario.sweep


def _range(text: str) -> tuple[str, Axis]:
    path, _, bounds = text.partition("=")
    parts = bounds.split(":")
    try:
        low, high = float(parts[0]), float(parts[1])
        scale = parts[2] if len(parts) > 2 else "linear"
    except (ValueError, IndexError):
        raise ScenarioError(Problem(f"--range {text}", "", "write PATH=LOW:HIGH or PATH=LOW:HIGH:log")) from None
    if not low < high or scale not in ("linear", "log", "integer") or (scale == "log" and low <= 0):
        raise ScenarioError(Problem(f"--range {text}", "", "write LOW < HIGH and linear, log (above 0) or integer"))
    return path, Axis(low=low, high=high, scale=scale)


def points_of(scenario: Scenario, spec: SweepSpec, values: Mapping[str, Any]) -> list[Point]:
    """Each point's scenario, checked as if it were a file: a sweep does not fail at its last point."""
    made: list[Point] = []
    combinations = _grid(spec) if spec.method == "grid" else _latin(spec, scenario.run.seed)
    for number, chosen in enumerate(combinations):
        if number >= POINTS_MAX:
            raise ScenarioError(Problem(scenario.name, "sweep", f"has more than {POINTS_MAX:,} points"))
        document = Document(copy.deepcopy(dict(values)), {}, f"point {number}", scenario.folder)
        document.values.pop("sweep", None)
        for path, value in chosen.items():
            assign(document, path, value, place=f"point {number} ({path}={value})")
        build(document.values, where=document.where, folder=scenario.folder)
        made.append(Point(number=number, values=chosen, scenario=document.values))
    return made


def _grid(spec: SweepSpec) -> Iterator[dict[str, Value]]:
    for values in itertools.product(*(axis.values for axis in spec.axes.values())):
        yield dict(zip(spec.axes, values, strict=True))


def _latin(spec: SweepSpec, seed: int) -> Iterator[dict[str, Value]]:
    """Every axis is cut into as many slices as there are points; each slice is used once."""
    columns: dict[str, list[Value]] = {}
    for path, axis in spec.axes.items():
        rng = stream(seed, f"sweep/{path}")
        slices = list(range(spec.points))
        rng.shuffle(slices)
        columns[path] = [_on(axis, (number + rng.uniform()) / spec.points) for number in slices]
    for number in range(spec.points):
        yield {path: values[number] for path, values in columns.items()}


def _on(axis: Axis, share: float) -> Value:
    if axis.scale == "log":
        return math.exp(math.log(axis.low) + share * (math.log(axis.high) - math.log(axis.low)))
    if axis.scale == "integer":
        return min(int(axis.high), math.floor(axis.low + share * (axis.high - axis.low + 1)))
    return axis.low + share * (axis.high - axis.low)


def sweep(
    scenario: Scenario,
    spec: SweepSpec,
    *,
    seeds: Sequence[int],
    level: int,
    out: Path,
    workers: int | None = None,
    dask: str | None = None,
    resume: bool = False,
    quiet: bool = False,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """The results of every point. Raises RunError; what is finished stays, and `resume` goes on from there."""
    values, copies = with_inputs(scenario)
    points = points_of(scenario, spec, _beside_scenario(values, copies))
    if len(points) * len(seeds) > RUNS_MAX:
        raise RunError(f"{len(points):,} points with {len(seeds):,} seeds: {RUNS_MAX:,} runs at most")
    plan = {
        "kind": "sweep",
        "scenario": values,
        "seeds": list(seeds),
        "level": level,
        "points": [dict(point.values) for point in points],
    }
    folder = _folder(out, plan, resume=resume, command=command)
    copy_inputs(out, copies)
    jobs = [
        Job(name=_name(point.number, seed), scenario=point.scenario, folder=str(out / "inputs"), seed=seed, level=level)
        for point in points
        for seed in seeds
    ]
    open_jobs = [job for job in jobs if not (out / "points" / f"{job.name}.json").is_file()]
    meter = Meter(len(jobs), done=len(jobs) - len(open_jobs), quiet=quiet)
    if len(open_jobs) < len(jobs):
        meter.say(f"{len(jobs) - len(open_jobs)} of {len(jobs)} runs are done already")
    try:
        (out / "points").mkdir(exist_ok=True)
        for job, result in _results(open_jobs, workers=workers, dask=dask, meter=meter):
            folder.write_json(f"points/{job.name}.json", result["summary"])
            meter.finished(job)
        meter.clear()
        results = collect(folder, points)
    except KeyboardInterrupt:
        folder.cut_short("interrupted", "stopped by hand; --resume goes on")
        raise
    except Exception as problem:  # whatever it was, the folder says that it was cut short; then it goes on up
        folder.cut_short("failed", f"{type(problem).__name__}: {problem}; --resume goes on")
        if isinstance(problem, (OSError, MemoryError)):
            raise RunError(f"the sweep cannot go on: {problem or type(problem).__name__}") from problem
        raise
    folder.complete()
    return results


def _results(
    jobs: Sequence[Job], *, workers: int | None, dask: str | None, meter: Meter
) -> Iterator[tuple[Job, dict[str, Any]]]:
    if dask is not None and jobs:
        from .cluster import run_on_cluster

        yield from run_on_cluster(jobs, address=dask)
    else:
        yield from run_jobs(jobs, workers=workers or cores(), on_progress=meter.progress)


def _beside_scenario(values: Mapping[str, Any], copies: Mapping[str, Path]) -> dict[str, Any]:
    """The same values with whole names of files, for checking before they are copied."""
    made = copy.deepcopy(dict(values))
    for table in (made["net"], *(group["churn"] for group in made["nodes"].values())):
        if table["file"]:
            table["file"] = str(copies[table["file"]].resolve())
    return made


def _folder(out: Path, plan: Mapping[str, Any], *, resume: bool, command: Sequence[str]) -> RunFolder:
    if resume and (out / "manifest.json").is_file():
        folder = RunFolder.load(out)
        differing = [key for key, value in plan.items() if folder.manifest.get(key) != json.loads(json.dumps(value))]
        if differing:
            raise RunError(f"{out} holds another sweep (its {' and '.join(differing)} differ): choose another folder")
        if (now := environment())["source_hash"] != folder.manifest["environment"]["source_hash"]:
            raise RunError(
                f"{out} was begun with other code (commit {folder.manifest['environment']['git_commit'][:12]}, "
                f"now {now['git_commit'][:12]}): half a sweep of each would prove nothing"
            )
        folder.manifest["state"] = "running"
        return folder
    if out.exists() and (out / "manifest.json").is_file():
        raise RunError(f"{out} holds a sweep already: say --resume to go on, or choose another folder")
    return RunFolder.create(out, {**plan, "command": list(command), "environment": environment()})


def collect(folder: RunFolder, points: Sequence[Point] | None = None) -> dict[str, Any]:
    """What is there so far: every point that has all its seeds."""
    values = [point.values for point in points] if points is not None else folder.manifest["points"]
    seeds = folder.manifest["seeds"]
    rows: list[dict[str, Any]] = []
    long: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    for number, chosen in enumerate(values):
        names = [_name(number, seed) for seed in seeds]
        if not all((folder.path / "points" / f"{name}.json").is_file() for name in names):
            continue
        runs = [folder.read_json(f"points/{name}.json") for name in names]
        for run in runs:
            numbers = {key: value for key, value in flat(run).items() if key not in ("level", "seed")}
            rows.append({"point": number, "seed": run["seed"], **chosen, "trace_hash": run["trace_hash"]} | numbers)
        each = {metric: one for metric, one in intervals(runs).items() if metric not in ("level", "seed")}
        for metric, one in each.items():
            row = {"point": number, **chosen, "metric": metric, "mean": one.mean, "low": one.low, "high": one.high}
            long.append(row | {"count": one.count})
        shown.append(
            {
                "point": number,
                "values": dict(chosen),
                "trace_hashes": [run["trace_hash"] for run in runs],
                "mean": {metric: one.mean for metric, one in each.items() if metric not in UNEQUAL},
                "ci95": {
                    metric: [one.low, one.high]
                    for metric, one in each.items()
                    if one.count > 1 and metric not in UNEQUAL
                },
            }
        )
    _write(folder.path / "results.parquet", rows)
    _write(folder.path / "summary.parquet", long)
    metrics = list(dict.fromkeys(metric for one in shown for metric in one["mean"]))
    axes = list(values[0]) if values else []
    return {"kind": "sweep", "axes": axes, "seeds": seeds, "metrics": metrics, "points": shown}


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    try:
        table = pa.table(columns)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # an axis of numbers and texts
        table = pa.table({name: _as_text(column) for name, column in columns.items()})
    try:
        pq.write_table(table, path, compression="zstd")
    except OSError as problem:
        raise RunError(f"{path} cannot be written: {problem}") from problem


def _as_text(column: list[Any]) -> list[Any]:
    kinds = {type(one) for one in column if one is not None}
    return column if len(kinds) <= 1 or kinds == {int, float} else [None if one is None else str(one) for one in column]


def _name(point: int, seed: int) -> str:
    return f"{point:04}-seed{seed}"
