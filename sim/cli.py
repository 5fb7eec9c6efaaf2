"""The command line of the simulator. Data on stdout, talk on stderr; exit 0 done, 1 failed, 2 usage, 130 stopped.

Only argparse is imported at the start: `--help` answers at once, and each command imports what it needs.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .scenario import Scenario

EXAMPLES = """\
examples:
  python -m sim list
  python -m sim run gossip-v11 --seed 7 --level 1 --out runs/first --json
  python -m sim run gossip-v11 --set nodes.honest.count=200 --replications 5 --out runs/second
  python -m sim sweep gossip-v11 --axis net.loss=0,0.01,0.05 --out runs/loss --resume
  python -m sim replay runs/first --until 12.3s --node 7
  python -m sim diff runs/first runs/second
docs/simulation.md is the tutorial.
"""
_FORWARDED = ("xval", "bench", "validity")


def main(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in _FORWARDED:
        return _forwarded(arguments[0], arguments[1:])
    parser = _parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "act"):
        parser.print_help()
        return 2
    from .errors import RunError, ScenarioError, SimError

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return int(options.act(options, arguments))
    except ScenarioError as problem:
        print(problem, file=sys.stderr)
        return 2
    except (SimError, RunError) as problem:
        print(f"sim: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sim: stopped; what was done so far is kept and marked INCOMPLETE", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _forwarded(command: str, arguments: Sequence[str]) -> int:
    """Commands with a parser of their own."""
    import importlib

    return int(importlib.import_module(f".{command}", __package__).main(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sim",
        description="The simulator: the shipped machines in virtual time, from 10 to 1,000,000 nodes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND")

    run = commands.add_parser("run", help="run a scenario")
    _scenario_options(run)
    run.add_argument("--seed", type=int, help="run this seed alone, unless --replications says more")
    run.add_argument("--replications", type=int, metavar="N", help="seeds from the first on; default: the scenario's")
    run.add_argument("--out", type=Path, metavar="DIR", help="keep rows, manifest, plots and report there")
    run.add_argument("--overwrite", action="store_true", help="replace another run in DIR")
    run.add_argument("--no-report", action="store_true", help="no plots and no report.html")
    run.add_argument("--json", action="store_true", help="the summary as one JSON object")
    run.set_defaults(act=_run)

    sweep = commands.add_parser("sweep", help="vary numbers of a scenario, on all cores; resumes")
    _scenario_options(sweep)
    sweep.add_argument("--axis", action="append", default=[], metavar="PATH=V1,V2", help="grid: values of one number")
    sweep.add_argument("--range", action="append", default=[], metavar="PATH=LOW:HIGH[:log]", help="latin: a range")
    sweep.add_argument("--points", type=int, metavar="N", help="latin: how many points")
    sweep.add_argument("--seed", type=int, help="of the first replication")
    sweep.add_argument("--replications", type=int, metavar="N", help="seeds per point")
    sweep.add_argument("--out", type=Path, metavar="DIR", required=True, help="results; also what --resume reads")
    sweep.add_argument("--resume", action="store_true", help="go on where DIR stopped")
    sweep.add_argument("--dask", metavar="ADDRESS", help="run on this Dask cluster instead of here")
    sweep.add_argument("--no-report", action="store_true", help="no plots and no report.html")
    sweep.add_argument("--json", action="store_true", help="the results as one JSON object")
    sweep.set_defaults(act=_sweep)

    replay = commands.add_parser("replay", help="run again from the seed, and show what one node saw")
    replay.add_argument("folder", type=Path, metavar="DIR", help="of a run")
    replay.add_argument("--until", type=_instant, metavar="TIME", help="virtual time, such as 12.3s; default: the end")
    replay.add_argument("--from", type=_instant, default=0, dest="start", metavar="TIME", help="show events from here")
    replay.add_argument("--node", type=int, help="its number; default: all nodes")
    replay.add_argument("--seed", type=int, help="which of the run's seeds; default: the first")
    replay.add_argument("--last", type=int, default=40, metavar="N", help="show the last N events (default 40)")
    replay.add_argument("--json", action="store_true", help="everything as one JSON object")
    replay.set_defaults(act=_replay)

    diff = commands.add_parser("diff", help="the first event in which two runs part")
    diff.add_argument("a", type=Path, metavar="A", help="folder of a run")
    diff.add_argument("b", type=Path, metavar="B", help="folder of another")
    diff.add_argument("--seed", type=int, help="which seed of both; default: the first of each")
    diff.add_argument(
        "--expect-different", action="store_true", help="exit 1 when they are equal, not when they differ"
    )
    diff.add_argument("--json", action="store_true", help="one JSON object")
    diff.set_defaults(act=_diff)

    report = commands.add_parser("report", help="plots and one HTML page for a run or a sweep")
    report.add_argument("folder", type=Path, metavar="DIR")
    report.add_argument("--png", action="store_true", help="PNG beside the SVG plots")
    report.set_defaults(act=_report)

    listing = commands.add_parser("list", help="the shipped scenarios")
    listing.add_argument("--json", action="store_true", help="one JSON object")
    listing.add_argument("--schema", action="store_true", help="print the JSON schema of scenario files")
    listing.set_defaults(act=_list)

    new = commands.add_parser("new", help="write a commented scenario to start from")
    new.add_argument("name", metavar="NAME")
    new.add_argument("--from", default="gossip-v11", dest="base", metavar="SCENARIO", help="its numbers")
    new.add_argument("--out", type=Path, metavar="FILE", help="default: NAME.toml")
    new.set_defaults(act=_new)

    commands.add_parser("xval", help="hold the fast model against the real machines", add_help=False)
    commands.add_parser("bench", help="events a second: kernel, levels, C++, SimPy", add_help=False)
    commands.add_parser("validity", help="make the validity report", add_help=False)
    return parser


def _scenario_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", metavar="SCENARIO", help="a file, or the name of a shipped one (see list)")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="A.B.C=VALUE", help="any number of the scenario"
    )
    parser.add_argument("--level", type=int, choices=(0, 1, 2), help="0 whole nodes, 1 real machines, 2 fast model")
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help="processes; default: one per core")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _loaded(options: argparse.Namespace) -> tuple[Scenario, list[int], int]:
    """The scenario, its seeds and its level, as the options say."""
    from .errors import Problem, ScenarioError
    from .scenario import load

    overrides = list(options.overrides)
    overrides += [f"run.seed={options.seed}"] if options.seed is not None else []
    overrides += [f"run.replications={options.replications}"] if options.replications is not None else []
    overrides += [f"run.level={options.level}"] if options.level is not None else []
    scenario = load(options.scenario, overrides=overrides)
    if options.jobs is not None and options.jobs < 1:
        raise ScenarioError(Problem("--jobs", "", "write 1 or more"))
    return scenario, [scenario.run.seed + number for number in range(scenario.run.replications)], scenario.run.level


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from .pool import cores
    from .progress import Meter
    from .run import run

    if options.seed is not None and options.replications is None:
        options.replications = 1
    scenario, seeds, level = _loaded(options)
    meter = Meter(len(seeds), quiet=options.quiet)
    summary = run(
        scenario,
        seeds=seeds,
        level=level,
        meter=meter,
        out=options.out,
        workers=options.jobs or cores(),
        overwrite=options.overwrite,
        command=["python", "-m", "sim", *arguments],
    )
    meter.clear()
    for warning in summary.get("warnings", ()):
        print(f"note: {warning}", file=sys.stderr)
    if options.out is not None and not options.no_report:
        from .report import write_report

        print(f"report: {write_report(options.out)}", file=sys.stderr)
    if options.json:
        print(json.dumps(summary, ensure_ascii=False, allow_nan=False))
    else:
        from .table import summary_table

        print(summary_table(scenario.name, summary))
    return 0


def _sweep(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from .sweep import sweep, sweep_spec

    scenario, seeds, level = _loaded(options)
    spec = sweep_spec(scenario, axes=options.axis, ranges=options.range, points=options.points)
    results = sweep(
        scenario,
        spec,
        seeds=seeds,
        level=level,
        out=options.out,
        workers=options.jobs,
        dask=options.dask,
        resume=options.resume,
        quiet=options.quiet,
        command=["python", "-m", "sim", *arguments],
    )
    if not options.no_report:
        from .report import write_report

        print(f"report: {write_report(options.out)}", file=sys.stderr)
    if options.json:
        print(json.dumps(results, ensure_ascii=False, allow_nan=False))
    else:
        from .table import sweep_table

        print(sweep_table(results))
    return 0


def _replay(options: argparse.Namespace, _: Sequence[str]) -> int:
    from .replay import replay

    return _shown(
        options,
        replay(
            options.folder,
            until_ns=options.until,
            start_ns=options.start,
            node=options.node,
            seed=options.seed,
            last=options.last,
        ),
    )


def _diff(options: argparse.Namespace, _: Sequence[str]) -> int:
    from .diff import diff

    code = _shown(options, diff(options.a, options.b, seed=options.seed))
    return 1 - code if options.expect_different else code


def _shown(options: argparse.Namespace, found: Any) -> int:
    """What replay and diff found: as JSON, or in words. Exit 1 when it is not as it should be."""
    print(json.dumps(found.as_json(), ensure_ascii=False) if options.json else found.as_text())
    return 0 if found.is_good else 1


def _report(options: argparse.Namespace, _: Sequence[str]) -> int:
    from .report import write_report

    print(write_report(options.folder, png=options.png))
    return 0


def _list(options: argparse.Namespace, _: Sequence[str]) -> int:
    if options.schema:
        from .schema import json_schema

        print(json.dumps(json_schema(), ensure_ascii=False, indent=1))
        return 0
    from .loading import load, shipped_names

    scenarios = [load(name) for name in shipped_names()]
    if options.json:
        shown = [{"name": one.name, "title": one.title, "nodes": one.node_count} for one in scenarios]
        print(json.dumps({"scenarios": shown}, ensure_ascii=False))
        return 0
    width = max(len(one.name) for one in scenarios)
    for one in scenarios:
        print(f"{one.name:{width}}  {one.title}")
    return 0


def _new(options: argparse.Namespace, _: Sequence[str]) -> int:
    from .errors import Problem, ScenarioError
    from .scenario import load
    from .writing import commented_toml

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", options.name):
        raise ScenarioError(Problem("new", options.name, "write a name of letters, digits, dots and dashes"))
    target: Path = options.out or Path(f"{options.name}.toml")
    text = commented_toml(load(options.base), name=options.name, file=str(target))
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ScenarioError(Problem(str(target), "", "is there already: choose another name")) from None
    except OSError as problem:
        raise ScenarioError(Problem(str(target), "", f"cannot be written: {problem.strerror}")) from problem
    print(target)
    return 0


def _instant(text: str) -> int:
    """Nanoseconds from "12.3s", "500ms", "2min", "1h" or plain seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ns|us|ms|s|min|h)?", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 12.3s, 500ms, 2min or 1h")
    units = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}
    whole, _, fraction = match[1].partition(".")
    unit = units[match[2] or "s"]
    return int(whole) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)
