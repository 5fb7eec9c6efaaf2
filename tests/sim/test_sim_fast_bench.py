"""`python -m sim bench`: the same work for all, and a table that says what was missed."""

from __future__ import annotations

import json
import shutil

import pytest

from sim import bench


def test_the_engines_do_the_same_work() -> None:
    kernel = bench.kernel(200, 5)
    simpy = bench.simpy_floods(200, 5)
    assert kernel["events"] == simpy["events"] > 5 * 200
    fast = bench.fast(200, 5)
    per_flood = (fast["events"] - 2 * 200) / 5  # its heartbeats begin a second later
    assert per_flood == pytest.approx(kernel["events"] / 5, rel=0.25)


@pytest.mark.skipif(not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="no C++ compiler")
def test_the_plain_event_loop_compiles_and_its_two_engines_agree() -> None:
    calendar, heap = bench.cpp_calendar(300, 5), bench.cpp_heap(300, 5)
    assert calendar["first"] == heap["first"] == 5 * 300
    assert calendar["value"] > 0


def test_a_missed_goal_is_said_and_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = {"value": 1_000.0, "events": 1.0, "cpu_s": 1.0, "rss_mb": 20.0}
    monkeypatch.setattr(bench, "measure_apart", lambda row: dict(slow))
    assert bench.main(["--only", "kernel,flood"]) == 1
    out = capsys.readouterr().out
    assert out.count("MISSED") == 2  # one too few events a second, one too many seconds
    monkeypatch.setattr(bench, "measure_apart", lambda row: "no C++ compiler here")
    assert bench.main(["--only", "cpp", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rows"][0]["result"] == "no C++ compiler here"


def test_a_row_that_does_not_exist_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--only", "quantum"])
    assert stopped.value.code == 2
