"""The validity report: what the simulator gives for set-ups whose figures others have published, over many seeds.

    python -m sim validity --data runs/validity --out docs/validity.md

Every run is kept in the data folder, so that a stopped report goes on, and a report can be written anew from what is
there. Only what was measured is written; where others have published a figure it stands beside ours, with its source.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .environment import environment
from .errors import SimError
from .folder import json_text
from .job import Job
from .pool import cores, run_jobs
from .progress import Meter
from .scenario import load
from .statistics import Interval, interval, intervals
from .writing import plain

SEEDS = 20
CHURN_SESSIONS = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    title: str
    scenario: str
    level: int = 1
    overrides: tuple[str, ...] = ()
    note: str = ""
    published: Mapping[str, float] | None = None  # by the dotted path in the summary
    source: str = ""


GERBIL = "github.com/vyzo/gerbil-simsub, README (one run each)"
SMALL = ("nodes.honest.count=100", "gossip.publish_until_s=15", "run.until_s=25")
CASES = (
    Case(
        name="gossip-v10-small",
        title="Gossipsub v1.0, 100 nodes, 10 messages",
        scenario="gossip-v10",
        overrides=SMALL,
        published={"message": 6280, "ihave": 7212, "iwant": 44, "graft": 372, "prune": 7},
        source=GERBIL,
    ),
    Case(
        name="gossip-v11-small",
        title="Gossipsub v1.1, 100 nodes, 10 messages",
        scenario="gossip-v11",
        overrides=SMALL,
        published={"message": 6738, "ihave": 9516, "iwant": 30, "graft": 372, "prune": 7},
        source=GERBIL,
    ),
    Case(name="gossip-v10", title="Gossipsub v1.0, 1,000 nodes, 60 messages", scenario="gossip-v10"),
    Case(name="gossip-v11", title="Gossipsub v1.1, 1,000 nodes, 60 messages", scenario="gossip-v11"),
    Case(
        name="gossip-large",
        title="Messages of 32 KiB over uplinks of 20 Mbit/s, gossipsub v1.2 with IDONTWANT",
        scenario="gossip-large",
        overrides=("nodes.honest.count=200",),
    ),
    Case(
        name="gossip-large-v11",
        title="The same without IDONTWANT (v1.1)",
        scenario="gossip-large",
        overrides=("nodes.honest.count=200", "gossip.protocol=v1.1"),
    ),
    Case(name="dht-1000", title="Kademlia, 1,000 nodes, the real machine", scenario="dht-lookup"),
    *(
        Case(
            name=f"dht-fast-{count}",
            title=f"Kademlia, {count:,} nodes, the fast level",
            scenario="dht-lookup",
            level=2,
            overrides=(f"nodes.honest.count={count}", "dht.lookups=2000"),
        )
        for count in (1_000, 10_000, 100_000, 1_000_000)
    ),
)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m sim validity", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the runs are kept")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the report; default: stdout")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"per case (default {SEEDS})")
    parser.add_argument("--only", action="append", default=[], metavar="CASE", help="this case alone; may be repeated")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="for a quick look, in every case")
    parser.add_argument("-j", "--jobs", type=int, default=cores(), metavar="N")
    parser.add_argument("--no-run", action="store_true", help="write the report from what is there")
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args(arguments)
    known = {case.name for case in CASES}
    if unknown := set(options.only) - known:
        parser.error(f"no such case: {', '.join(sorted(unknown))} (there is {', '.join(sorted(known))})")
    cases = [case for case in CASES if not options.only or case.name in options.only]
    try:
        if not options.no_run:
            measure(cases, options.data, options.seeds, options.overrides, options.jobs, quiet=options.quiet)
        text = "\n".join(report(cases, options.data, options.overrides)) + "\n"
        if options.out is None:
            print(text)
        else:
            options.out.write_text(text, encoding="utf-8")
    except (SimError, OSError) as problem:
        print(f"sim: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sim: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def measure(
    cases: Sequence[Case], data: Path, seeds: int, overrides: Sequence[str], workers: int, *, quiet: bool = False
) -> None:
    """Runs what is not there yet. Seed by seed over all cases: an early look has something of everything."""
    jobs: list[Job] = []
    for case in cases:
        scenario = load(case.scenario, overrides=[*case.overrides, *overrides])
        (data / case.name).mkdir(parents=True, exist_ok=True)
        for seed in range(1, seeds + 1):
            name = f"{case.name}/{seed}"
            if not (data / f"{name}.json").is_file():
                values, folder = plain(scenario), str(scenario.folder)
                jobs.append(Job(name=name, scenario=values, folder=folder, seed=seed, level=case.level))
    jobs.sort(key=lambda job: job.seed)
    meter = Meter(len(jobs), quiet=quiet)
    made = environment()
    for job, result in run_jobs(jobs, workers=workers, on_progress=meter.progress):
        target = data / f"{job.name}.json"
        draft = target.with_suffix(".draft")
        draft.write_text(json_text({"summary": result["summary"], "environment": made}), encoding="utf-8")
        os.replace(draft, target)
        meter.finished(job)


def report(cases: Sequence[Case], data: Path, overrides: Sequence[str]) -> Iterator[str]:
    yield from (
        "# Validity of the simulator",
        "",
        "What the simulator gives for set-ups that others have published figures of, and for the sizes that it claims.",
        "Each figure is the mean over the seeds, its 95 % interval (Student's t) in brackets; `sd` is the standard",
        "deviation of single runs, which is what one published run may differ by. Every parameter that acts stands",
        "below its table, as `python -m sim run … --set` takes it. Made by:",
        "",
        "```sh",
        "python -m sim validity --data runs/validity --out docs/validity.md",
        "```",
        "",
    )
    commits: dict[str, None] = {}
    for case in cases:
        kept = [json.loads(path.read_text(encoding="utf-8")) for path in _runs_of(data, case)]
        runs = [one["summary"] for one in kept]
        commits |= dict.fromkeys(_made_with(one["environment"]) for one in kept)
        if not runs:
            yield from (f"## {case.title}", "", "Not measured.", "")
            continue
        yield from _case(case, runs, overrides)
    yield from _hops(cases, data)
    yield from _churn()
    yield from ("## Made with", "", *(f"- {one}" for one in commits), "")


def _runs_of(data: Path, case: Case) -> list[Path]:
    return sorted((data / case.name).glob("*.json"), key=lambda path: int(path.stem))


def _made_with(made: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {made['packages'][name]}" for name in ("numpy", "numba") if name in made["packages"])
    clean = "" if made["git_is_clean"] else " with changes"
    sources = made["source_hash"][:12]
    code = f"commit {made['git_commit'][:12]}{clean}, sources {sources}"
    return f"{code}; Python {made['python']}, {packages}; {made['cpu']}"


def _case(case: Case, runs: Sequence[Mapping[str, Any]], overrides: Sequence[str]) -> Iterator[str]:
    figures = intervals(runs)
    yield from (f"## {case.title}", "")
    cpu_s, events = (interval([run[key] for run in runs]).mean for key in ("cpu_s", "events"))
    rss_mb = max(run["rss_mb"] for run in runs)
    size = f"a run has {events:,.0f} events, takes {cpu_s:,.1f} CPU-s, and {rss_mb:,.0f} MB at most"
    yield from (f"Level {case.level}, seeds 1 to {len(runs)}; {size}.", "")
    if runs[0]["gossip"]:
        yield from _gossip(case, figures, runs)
    if runs[0]["dht"]:
        chosen = ["dht.hops.p50", "dht.hops.p95", "dht.hops.mean", "dht.rpcs_mean", "dht.found_closest_share"]
        yield from ("| | mean [95 %] | sd |", "|---|---|---|")
        yield from (f"| {path} | {_text(figures[path])} | {_sd(figures[path])} |" for path in chosen if path in figures)
        yield ""
    scenario = plain(load(case.scenario, overrides=[*case.overrides, *overrides]))
    shown = [f"`{path}={value}`" for path, value in _leaves(scenario) if _acts(path, value, scenario)]
    yield from ("Parameters: " + ", ".join(shown) + ".", "")


def _acts(path: str, value: Any, scenario: Mapping[str, Any]) -> bool:
    """Does this parameter do anything in this scenario? Churn that is off, for one, has many that do not."""
    parts = path.split(".")
    if parts[0] not in ("nodes", "net", "gossip", "dht", "run") or value in ("", [], {}):
        return False
    if parts[:1] == ["nodes"] and parts[2:3] == ["churn"] and parts[3] != "model":
        return bool(scenario["nodes"][parts[1]]["churn"]["model"] != "none")
    if path == "net.latency_ms":
        return bool(scenario["net"]["model"] == "uniform")
    return path not in ("run.seed", "run.replications", "run.level")


def _gossip(case: Case, figures: Mapping[str, Interval], runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    published = case.published or {}
    head = "| sent in the whole run | mean [95 %] | sd |" + (" published |" if published else "")
    yield from (head, "|---|---|---|" + ("---|" if published else ""))
    for kind in ("message", "ihave", "iwant", "graft", "prune", "idontwant"):
        one = figures.get(f"gossip.sent.{kind}")
        if one is not None:
            beside = (
                f" {published.get(kind, '–'):,} |" if published and kind in published else " – |" if published else ""
            )
            yield f"| {kind.upper()} | {_text(one)} | {_sd(one)} |{beside}"
    yield ""
    if published:
        yield from (f"Published: {case.source}.", "")
    yield from ("| | mean [95 %] | sd |", "|---|---|---|")
    for path in ("delay_ms.p50", "delay_ms.p90", "delay_ms.p99", "duplicates_per_delivery", "delivered_share"):
        one = figures.get(f"gossip.{path}")
        if one is not None:
            yield f"| {path} | {_text(one)} | {_sd(one)} |"
    yield ""
    bins = [run["gossip"]["delay_ms"]["bins_100ms"] for run in runs]
    last = max((n for one in bins for n, count in enumerate(one) if count), default=-1) + 1
    yield from ("| delay, ms | deliveries, mean [95 %] | sd |", "|---|---|---|")
    for number in range(last):
        one = interval([float(values[number]) for values in bins])
        yield f"| {number * 100} to {number * 100 + 100} | {_text(one)} | {_sd(one)} |"
    yield ""


def _hops(cases: Sequence[Case], data: Path) -> Iterator[str]:
    rows = []
    for case in cases:
        runs = [json.loads(path.read_text(encoding="utf-8"))["summary"] for path in _runs_of(data, case)]
        if not runs or not runs[0]["dht"]:
            continue
        scenario = load(case.scenario, overrides=case.overrides)
        count, k = scenario.node_count, scenario.dht.k if scenario.dht else 20
        one = intervals(runs)["dht.hops.mean"]
        bits = math.log2(count)
        rows.append(f"| {count:,} | {case.level} | {_text(one)} | {bits / (1 + math.log2(k)):.2f} | {bits:.1f} |")
    if rows:
        yield from (
            "## Hops over the size of the network",
            "",
            "The textbook's log2 N is an upper bound only: with k entries per bucket each hop gains about 1 + log2 k",
            "bits, so about log2 N / (1 + log2 k) is to be expected.",
            "",
            "| nodes | level | mean hops [95 %] | log2 N / (1 + log2 k) | log2 N |",
            "|---|---|---|---|---|",
            *rows,
            "",
        )


def _churn() -> Iterator[str]:
    """Draws of the very distribution that the levels use."""
    from .rng import stream
    from .scenario import ChurnSpec

    spec = ChurnSpec()
    rows = []
    hours: list[list[float]] = []
    for seed in range(1, SEEDS + 1):
        rng = stream(seed, "validity/churn")
        hours.append([rng.weibull(spec.shape, spec.scale_s) / 3600 for _ in range(CHURN_SESSIONS // SEEDS)])
    for limit, published in ((2.0, 0.50), (8.0, 0.80)):
        one = interval([sum(length <= limit for length in lengths) / len(lengths) for lengths in hours])
        rows.append(f"| up to {limit:g} h | {one.mean:.4f} [{one.low:.4f}, {one.high:.4f}] | {published:.2f} |")
    yield from (
        "## Churn",
        "",
        f"Session lengths drawn as the levels draw them: Weibull, shape {spec.shape}, scale {spec.scale_s:g} s;",
        f"{CHURN_SESSIONS:,} sessions over {SEEDS} seeds. Published: IPFS, ProbeLab RFM2.",
        "",
        "| sessions | share, mean [95 %] | published |",
        "|---|---|---|",
        *rows,
        "",
    )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield from _leaves(one, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _text(one: Interval) -> str:
    if one.count < 2 or one.low == one.high:
        return _number(one.mean)
    return f"{_number(one.mean)} [{_number(one.low)}, {_number(one.high)}]"


def _sd(one: Interval) -> str:
    return "–" if one.count < 2 else _number(one.deviation)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
