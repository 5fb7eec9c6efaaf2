"""Sweeps: every point once, on all cores or a cluster, and a kill loses only what was running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sim
from sim.folder import MARK
from sim.scenario import load
from sim.sweep import points_of, sweep_spec
from sim.writing import plain

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "gossip-v11", "--set", "nodes.honest.count=12", "--set", "gossip.dials=4", "--set", "run.until_s=20",
    "--set", "gossip.publish_until_s=12", "--quiet", "--no-report",
)  # fmt: skip
AXES = ("--axis", "net.loss=0,0.1,0.3", "--axis", "gossip.degree=4,6", "--replications", "2")


def sweep(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sim", "sweep", *TINY, "--out", str(out), "--json", *more],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def swept(out: Path, *more: str) -> dict[str, Any]:
    result = sweep(out, *more)
    assert result.returncode == 0, result.stderr
    made: dict[str, Any] = json.loads(result.stdout)
    return made


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The sweep undisturbed, on one core."""
    return swept(tmp_path_factory.mktemp("sweep") / "known", *AXES, "-j", "1")


def test_a_sweep_has_every_combination_with_its_interval(known: dict[str, Any]) -> None:
    assert known["axes"] == ["net.loss", "gossip.degree"]
    assert [tuple(point["values"].values()) for point in known["points"]] == [
        (0, 4), (0, 6), (0.1, 4), (0.1, 6), (0.3, 4), (0.3, 6),
    ]  # fmt: skip
    for point in known["points"]:
        low, high = point["ci95"]["gossip.delay_ms.p50"]
        assert low < point["mean"]["gossip.delay_ms.p50"] < high
        assert len(set(point["trace_hashes"])) == 2
    lossy, whole = known["points"][4]["mean"], known["points"][0]["mean"]
    assert lossy["network.lost"] > whole["network.lost"] == 0


def test_a_sweep_killed_in_the_middle_resumes_to_the_same_results(known: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "sim", "sweep", *TINY, "--out", str(out), *AXES, "-j", "2"], cwd=ROOT
    )
    until = time.monotonic() + 60
    while len(list((out / "points").glob("*.json"))) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    before = {path.name: path.stat().st_mtime_ns for path in (out / "points").glob("*.json")}
    assert 3 <= len(before) < 12
    assert (out / MARK).exists()
    refused = sweep(out, *AXES)
    assert refused.returncode == 1
    assert "say --resume to go on" in refused.stderr
    assert swept(out, *AXES, "--resume") == known
    after = {path.name: path.stat().st_mtime_ns for path in (out / "points").glob("*.json")}
    assert len(after) == 12
    assert before.items() <= after.items(), "finished points are not run again"
    assert not (out / MARK).exists()
    assert swept(out, *AXES, "--resume") == known


def test_no_worker_outlives_a_sweep_that_was_killed(tmp_path: Path) -> None:
    out = tmp_path / "killed"
    marker = str(out)
    process = subprocess.Popen(
        [sys.executable, "-m", "sim", "sweep", *TINY, "--out", marker, *AXES, "-j", "2"],
        cwd=ROOT, env=os.environ | {"SIM_TEST_MARKER": marker},
    )  # fmt: skip
    until = time.monotonic() + 60
    while not list((out / "points").glob("*.json")) and time.monotonic() < until:
        time.sleep(0.01)
    assert len(of_environment(marker)) >= 2
    process.kill()
    process.wait(timeout=30)
    until = time.monotonic() + 30
    while of_environment(marker) and time.monotonic() < until:
        time.sleep(0.1)
    assert of_environment(marker) == []


def of_environment(marker: str) -> list[int]:
    """Processes that were started with the marker in their environment (Linux)."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc")
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if f"SIM_TEST_MARKER={marker}".encode() in content:
            found.append(int(path.parent.name))
    return found


def test_another_plan_does_not_resume_a_sweep(tmp_path: Path) -> None:
    out = tmp_path / "out"
    swept(out, "--axis", "net.loss=0", "--replications", "1")
    result = sweep(out, "--axis", "net.loss=0.5", "--replications", "1", "--resume")
    assert result.returncode == 1
    assert "holds another sweep (its points differ)" in result.stderr


def test_results_open_in_pandas_with_one_row_per_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    swept(out, "--axis", "net.loss=0,0.5", "--replications", "2")
    opened = sim.open(out)
    assert list(opened.results["net.loss"]) == [0.0, 0.0, 0.5, 0.5]
    assert list(opened.results["seed"]) == [1, 2, 1, 2]
    mean = opened.summary.query("metric == 'gossip.delivered_share' and point == 0")["mean"].item()
    assert mean == opened.results.query("point == 0")["gossip.delivered_share"].mean()
    page = subprocess.run(
        [sys.executable, "-m", "sim", "report", str(out)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert Path(page).read_text().count("<svg") >= 3


def test_a_latin_hypercube_uses_every_slice_of_every_axis_once() -> None:
    scenario = load("gossip-v11")
    spec = sweep_spec(
        scenario,
        axes=(),
        ranges=("net.loss=0:0.5", "net.jitter=0.01:1:log", "gossip.degree=5:12:integer"),
        points=16,
    )
    points = points_of(scenario, spec, plain(scenario))
    assert len(points) == 16
    assert sorted(int(float(point.values["net.loss"]) * 32) for point in points) == list(range(16))
    assert {point.values["gossip.degree"] for point in points} == set(range(5, 13))
    again = points_of(scenario, spec, plain(scenario))
    assert [point.values for point in again] == [point.values for point in points]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--axis", "net.loss=0,2"), "point 1 (net.loss=2): net.loss: is 2: write a number from 0 to 1"),
        (("--axis", "net.los=0,1"), "net.los: is unknown: did you mean loss?"),
        (("--axis", "net.loss"), "write PATH=V1,V2"),
        (("--range", "net.loss=0:1"), "say how many points"),
        (("--range", "net.loss=1:0", "--points", "3"), "write LOW < HIGH"),
        ((), "has no [sweep]: say --axis"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_before_its_first_run(
    arguments: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    result = sweep(tmp_path / "out", *arguments)
    assert result.returncode == 2
    assert says in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def cluster() -> Iterator[str]:
    """A Dask scheduler and two workers in processes of their own, started away from this checkout."""
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
         "--scheduler-file", (file := f"/tmp/sim-dask-{os.getpid()}.json")],
        cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    started = [scheduler]
    try:
        until = time.monotonic() + 60
        while not Path(file).is_file() and time.monotonic() < until:
            time.sleep(0.1)
        address: str = json.loads(Path(file).read_text())["address"]
        started += [
            subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard",
                 "--no-nanny", "--host", "127.0.0.1"],
                cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for _ in range(2)
        ]  # fmt: skip
        yield address
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=30)
        Path(file).unlink(missing_ok=True)


def test_a_sweep_on_a_dask_cluster_has_the_same_results(known: dict[str, Any], tmp_path: Path, cluster: str) -> None:
    assert swept(tmp_path / "out", *AXES, "--dask", cluster) == known


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = sweep(tmp_path / "out", "--axis", "net.loss=0", "--dask", "tcp://127.0.0.1:9")
    assert result.returncode == 1
    assert "no Dask scheduler at tcp://127.0.0.1:9" in result.stderr
    assert "Traceback" not in result.stderr
