"""The workflow of a researcher on the command line: run, look, repeat, compare. Everything tiny, everything real."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import sim
from sim.errors import RunError, ScenarioError
from sim.folder import MARK
from sim.parquet import BATCH_ROWS, ParquetSink
from sim.statistics import flat, interval, intervals, means, t_975

TINY = ("--set", "nodes.honest.count=12", "--set", "gossip.dials=4", "--set", "run.until_s=20", "--quiet")
MORE = ("--set", "gossip.publish_until_s=12")
ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sim", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        timeout=120,
        check=False,
    )


def done(*arguments: str | Path, **environment: str) -> str:
    result = command(*arguments, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run(out: Path, *more: str, seed: int = 7, **environment: str) -> dict[str, Any]:
    text = done(
        "run", "gossip-v11", *TINY, *MORE, *more, "--seed", str(seed), "--level", "1", "--out", out, "--json",
        "--no-report", **environment,
    )  # fmt: skip
    made: dict[str, Any] = json.loads(text)
    return made


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sim") / "first"
    run(out)
    return out


def test_help_answers_within_three_tenths_of_a_second() -> None:
    best = 9.0
    for _ in range(5):
        started = time.perf_counter()
        text = done("--help")
        best = min(best, time.perf_counter() - started)
    assert best < 0.3
    for word in ("run", "sweep", "replay", "diff", "xval", "report", "list", "new", "bench"):
        assert re.search(rf"^    {word}\b", text, re.MULTILINE), word


def test_run_prints_the_summary_as_one_json_object(tmp_path: Path) -> None:
    summary = run(tmp_path / "out")
    assert list(summary)[:10] == [
        "level", "seed", "events", "cpu_s", "rss_mb", "trace_hash", "gossip", "dht", "market", "payments",
    ]  # fmt: skip
    assert (summary["level"], summary["seed"]) == (1, 7)
    assert summary["events"] > 500
    assert summary["cpu_s"] > 0
    assert summary["rss_mb"] > 10
    assert re.fullmatch(r"[0-9a-f]{32,}", summary["trace_hash"])
    gossip = summary["gossip"]
    assert {"message", "ihave", "iwant", "graft", "prune"} <= gossip["sent"].keys()
    assert {"p50", "p90", "p99", "bins_100ms"} <= gossip["delay_ms"].keys()
    assert gossip["delivered_share"] == 1.0
    assert gossip["duplicates_per_delivery"] > 0
    assert summary["dht"] is None


def test_a_run_is_the_same_in_another_process_whatever_the_hash_seed(first: Path, tmp_path: Path) -> None:
    one = run(tmp_path / "one", PYTHONHASHSEED="1")
    other = run(tmp_path / "other", "-j", "1", PYTHONHASHSEED="4242")
    known = json.loads((first / "summary.json").read_text())
    assert one["trace_hash"] == other["trace_hash"] == known["trace_hash"]
    assert one["gossip"] == other["gossip"] == known["gossip"]


def test_replications_are_the_same_on_one_core_and_on_two(tmp_path: Path) -> None:
    arguments = ("run", "gossip-v11", *TINY, *MORE, "--replications", "3", "--json", "--no-report")
    one = json.loads(done(*arguments, "-j", "1", "--out", tmp_path / "one"))
    two = json.loads(done(*arguments, "-j", "2", "--out", tmp_path / "two"))
    assert one["trace_hash"] == two["trace_hash"]
    assert [each["seed"] for each in two["runs"]] == [1, 2, 3]
    assert len({each["trace_hash"] for each in two["runs"]}) == 3
    assert two["replications"] == 3
    low, high = two["ci95"]["gossip.delay_ms.p50"]
    assert low < two["gossip"]["delay_ms"]["p50"] < high
    assert one["gossip"] == two["gossip"]


def test_what_a_run_leaves_opens_in_pandas_and_arrow(first: Path) -> None:
    opened = sim.open(first)
    assert opened.is_complete
    frame = opened.frame("deliveries")
    assert len(frame) == opened.json["gossip"]["deliveries"]
    assert set(frame["seed"]) == {7}
    assert opened.dataset("deliveries").count_rows() == len(frame)
    assert opened.arrow("deliveries").num_rows == len(frame)
    p50 = opened.summary.set_index("metric").loc["gossip.delay_ms.p50", "mean"]
    assert p50 == pytest.approx(frame["delay_ns"].median() / 1e6, rel=0.05)
    assert opened.scenario.nodes["honest"].count == 12
    with pytest.raises(RunError, match="has no rows of trades: it has deliveries"):
        opened.frame("trades")
    with pytest.raises(RunError, match="is no folder of a run"):
        sim.open(first / "deliveries")


def test_the_manifest_has_everything_to_repeat_a_run(first: Path) -> None:
    manifest = json.loads((first / "manifest.json").read_text())
    assert manifest["state"] == "complete"
    assert manifest["scenario"]["nodes"]["honest"]["count"] == 12
    assert manifest["seeds"] == [7]
    assert manifest["command"][:4] == ["python", "-m", "sim", "run"]
    made = manifest["environment"]
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", made["git_commit"])
    assert re.fullmatch(r"[0-9a-f]{32}", made["source_hash"])
    assert {"numpy", "pyarrow", "trio"} <= made["packages"].keys()
    assert made["cpu"]
    (proof,) = manifest["runs"]
    assert {"seed", "events", "cpu_s", "rss_mb", "trace_hash"} == proof.keys()
    assert not (first / MARK).exists()


def test_replay_reaches_any_instant_again_and_shows_what_a_node_saw(first: Path) -> None:
    found = json.loads(done("replay", first, "--until", "7.3s", "--node", "3", "--json"))
    assert found["checkpoints_equal"] >= 6
    assert found["parted_s"] is None
    assert found["events"]
    assert {event["node"] for event in found["events"]} == {3}
    assert max(event["t_s"] for event in found["events"]) <= 7.3
    later = json.loads(done("replay", first, "--from", "7.3s", "--until", "8s", "--node", "3", "--json"))
    assert min(event["t_s"] for event in later["events"]) >= 7.3
    whole = json.loads(done("replay", first, "--json", "--last", "0"))
    assert whole["trace_equal"] is True
    assert whole["events"] == []
    text = done("replay", first, "--until", "2s", "--node", "3")
    assert "the recorded run: " in text


def test_replay_says_when_it_is_not_the_recorded_run_any_more(first: Path, tmp_path: Path) -> None:
    out = tmp_path / "changed"
    run(out)
    checkpoints = json.loads((out / "checkpoints.json").read_text())
    checkpoints["7"][4][1] = "0" * 32
    (out / "checkpoints.json").write_text(json.dumps(checkpoints))
    result = command("replay", out, "--until", "9s")
    assert result.returncode == 1
    assert "NOT the recorded run: they part in the second that ends at" in result.stdout


def test_diff_finds_one_injected_event(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    run(one, "--set", "net.partitions=[{ at_s = 8.25, for_s = 1, share = 0.0 }]")
    run(other, "--set", "net.partitions=[{ at_s = 8.25, for_s = 1, share = 0.3 }]")
    result = command("diff", one, other, "--json")
    assert result.returncode == 1
    found = json.loads(result.stdout)
    assert found["equal"] is False
    assert found["second"][0] <= (found["a"] or found["b"])["t_s"] <= found["second"][1]
    assert 8.25 <= (found["a"] or found["b"])["t_s"] <= 9.5
    assert found["a"] != found["b"]
    assert found["before"]
    assert [one["path"] for one in found["settings"]] == ["net.partitions.0.share"]
    assert "traces part between" in command("diff", one, other).stdout


def test_diff_of_equal_runs_says_so(first: Path, tmp_path: Path) -> None:
    run(tmp_path / "again")
    assert json.loads(done("diff", first, tmp_path / "again", "--json"))["equal"] is True


@pytest.mark.slow
def test_the_report_is_one_page_without_anything_from_elsewhere(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done("run", "gossip-v11", *TINY, *MORE, "--replications", "2", "--out", out)
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 3
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", page)
    assert "<script" not in page
    assert "<link" not in page
    assert "@import" not in page
    assert json.loads((out / "summary.json").read_text())["trace_hash"]
    for run_of in json.loads((out / "manifest.json").read_text())["runs"]:
        assert run_of["trace_hash"] in page
    assert done("report", out, "--png").strip() == str(out / "report.html")
    assert (out / "plots" / "delay-histogram.png").stat().st_size > 1_000
    assert (out / "plots" / "delay-histogram.svg").stat().st_size > 1_000


def test_bad_options_are_usage_errors_in_one_line(tmp_path: Path) -> None:
    for arguments in (
        ("run", "nothing-like-this"),
        ("run", "gossip-v11", "--set", "net.loss=2"),
        ("run", "gossip-v11", "--seed", "-3"),
        ("run", "gossip-v11", "-j", "0"),
        ("run", "gossip-v11", "--level", "7"),
        ("new", "../up"),
        ("replay", str(tmp_path), "--until", "soon"),
    ):
        result = command(*arguments)
        assert result.returncode == 2, arguments
        assert "Traceback" not in result.stderr
        assert result.stdout == ""


@pytest.mark.parametrize("arguments", [("replay",), ("diff", "."), ("report",)])
def test_a_folder_that_is_no_run_is_refused(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = command(arguments[0], tmp_path, *arguments[1:])
    assert result.returncode == 1
    assert "is no folder of a run: manifest.json is missing" in result.stderr


def test_another_run_in_the_folder_is_not_overwritten_unasked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out)
    run(out)  # the very same is repeated in place
    result = command("run", "gossip-v11", *TINY, *MORE, "--seed", "8", "--out", out, "--no-report")
    assert result.returncode == 1
    assert "holds another run: choose another folder, or say --overwrite" in result.stderr
    assert sim.open(out).manifest["seeds"] == [7]
    run(out, "--overwrite", seed=8)
    assert sim.open(out).manifest["seeds"] == [8]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    result = command("run", "gossip-v11", *TINY, "--seed", "8", "--out", tmp_path / "mine", "--overwrite")
    assert result.returncode == 1
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def _hears_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background ignores it


def test_ctrl_c_keeps_what_is_done_and_marks_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "sim", "run", "gossip-v11", "--set", "nodes.honest.count=60", "--replications", "400",
         "-j", "2", "--out", str(out), "--quiet", "--set", "gossip.dials=8"],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=_hears_ctrl_c,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not (out / "summary.json").is_file() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "what was done so far is kept and marked INCOMPLETE" in talk
    assert "Traceback" not in talk
    opened = sim.open(out)
    assert not opened.is_complete
    assert opened.manifest["state"] == "interrupted"
    assert 1 <= len(opened.manifest["runs"]) < 400
    assert opened.frame("deliveries")["seed"].nunique() >= 1
    assert "stopped by hand after" in (out / MARK).read_text()
    assert "Cut short" in Path(done("report", out).strip()).read_text()


def test_what_a_killed_run_left_opens_without_the_file_that_has_no_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done("run", "gossip-v11", *TINY, *MORE, "--replications", "2", "--out", out, "--no-report")
    whole = sim.open(out).frame("deliveries")
    half = out / "deliveries" / "seed=2" / "rows.parquet"
    half.write_bytes(half.read_bytes()[:-100])
    (out / MARK).touch()
    assert set(sim.open(out).frame("deliveries")["seed"]) == {1} < set(whole["seed"])
    for name in ("summary.json", "summary.parquet"):
        (out / name).unlink()
    assert "Cut short" in Path(done("report", out).strip()).read_text()


def test_a_full_disk_ends_the_run_with_a_reason_and_marks_the_folder(tmp_path: Path) -> None:
    """No file may grow beyond 6 KB: the rows do not fit, as on a full disk."""
    out = tmp_path / "out"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))

    result = subprocess.run(
        [sys.executable, "-m", "sim", "run", "gossip-v11", "--set", "nodes.honest.count=40", "--seed", "1", "--out",
         str(out), "--quiet", "--set", "gossip.dials=8"],
        cwd=ROOT, capture_output=True, text=True, preexec_fn=limit, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "cannot be written" in result.stderr
    assert (out / MARK).exists()
    assert json.loads((out / "manifest.json").read_text())["state"] in ("failed", "running")


def test_rows_that_meet_a_full_disk_raise_and_say_where(tmp_path: Path) -> None:
    folder = tmp_path / "deliveries" / "seed=1"
    folder.mkdir(parents=True)
    (folder / "rows.parquet").symlink_to("/dev/full")
    sink = ParquetSink(tmp_path, seed=1, tables=("deliveries",), rows_max=10**9)
    with pytest.raises(RunError, match=r"rows .*cannot be written.*No space left on device"):
        write_rows(sink, 3 * BATCH_ROWS)


def write_rows(sink: ParquetSink, count: int) -> None:
    with sink:
        for number in range(count):
            sink.row("deliveries", message=number, delay_ns=number * 7919 % 1_000_003)


def test_rows_are_on_the_disk_while_the_run_goes_on_and_memory_is_bounded(tmp_path: Path) -> None:
    with ParquetSink(tmp_path, seed=1, tables=("deliveries",), rows_max=10**9) as sink:
        for number in range(5 * BATCH_ROWS + 10):
            sink.row("deliveries", message=number, delay_ns=number * 7919 % 1_000_003)
            assert sum(map(len, sink._waiting.values())) < BATCH_ROWS
        assert (tmp_path / "deliveries" / "seed=1" / "rows.parquet").stat().st_size > 100_000
    import pyarrow.parquet as pq

    data = pq.ParquetFile(tmp_path / "deliveries" / "seed=1" / "rows.parquet")
    assert data.num_row_groups == 6
    assert data.metadata.num_rows == 5 * BATCH_ROWS + 10
    assert data.metadata.row_group(0).column(0).compression == "ZSTD"


def test_rows_over_the_limit_are_counted_and_tables_not_asked_for_are_not_written(tmp_path: Path) -> None:
    with ParquetSink(tmp_path, seed=1, tables=("deliveries",), rows_max=10) as sink:
        assert not sink.wants("events")
        for number in range(25):
            sink.row("deliveries", message=number)
            sink.row("events", node=number)
    assert sink.skipped() == {"deliveries": 15}
    assert not (tmp_path / "events").exists()


def test_rows_whose_columns_change_are_a_defect_that_is_named(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path, seed=1, tables=("deliveries",), rows_max=10)
    sink.row("deliveries", message=1)
    sink.row("deliveries", message=1, more=2)
    with pytest.raises(RunError, match="have not all the columns"):
        sink.close()


def test_new_writes_a_commented_scenario_that_runs(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    assert done("new", "mine", "--out", path).strip() == str(path)
    text = path.read_text()
    assert "# virtual seconds" in text
    assert "# [market]" in text
    summary = json.loads(done("run", path, *TINY, *MORE, "--seed", "7", "--json"))
    assert summary["trace_hash"]
    assert "is there already" in command("new", "mine", "--out", path).stderr


def test_list_names_every_scenario_with_its_title() -> None:
    text = done("list")
    assert "market-baseline" in text
    assert len(text.splitlines()) >= 14
    assert {one["name"] for one in json.loads(done("list", "--json"))["scenarios"]} >= {"gossip-v10", "price-war"}
    assert json.loads(done("list", "--schema"))["$defs"]["NetSpec"]


# --- statistics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freedom", "published"),
    [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (19, 2.093), (30, 2.042), (40, 2.021), (60, 2.000), (120, 1.980)],
)
def test_quantiles_of_students_t_are_the_published_ones(freedom: int, published: float) -> None:
    assert t_975(freedom) == pytest.approx(published, abs=0.0006)


def test_an_interval_of_five_values_is_the_textbooks() -> None:
    one = interval([4.0, 5.0, 6.0, 7.0, 8.0])
    assert (one.mean, one.count) == (6.0, 5)
    assert one.high - one.mean == pytest.approx(2.776 * 1.5811388 / 5**0.5, rel=1e-4)
    assert one.low < one.mean


def test_a_single_value_has_no_interval_and_none_is_an_error() -> None:
    one = interval([3.0])
    assert one.mean == 3.0
    assert one.low != one.low
    with pytest.raises(ValueError, match="no values"):
        interval([])


def test_nested_numbers_are_averaged_by_their_place() -> None:
    runs: list[dict[str, Any]] = [
        {"a": {"b": 1, "c": [1, 2]}, "t": "x", "n": None},
        {"a": {"b": 3, "c": [3, 4]}, "t": "y", "n": 2},
    ]
    assert means(runs) == {"a": {"b": 2.0, "c": [2.0, 3.0]}, "t": "x", "n": 2.0}
    assert flat(runs[0]) == {"a.b": 1.0, "a.c.0": 1.0, "a.c.1": 2.0}
    assert intervals(runs)["n"].count == 1


def test_errors_are_of_one_family() -> None:
    assert issubclass(ScenarioError, sim.errors.SimError)
    assert issubclass(RunError, sim.errors.SimError)
