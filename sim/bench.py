"""`python -m sim bench`: events a second of the kernel and of each level, beside C++ and SimPy, on this machine.

Everything is measured in CPU time, each row in a process of its own, so that memory is that row's. The flood workload
is one for all: a random mesh of degree 8, pair latencies U(10, 100) ms, ten floods a second, one heartbeat per node
and second. C++ (`bench.cpp`, compiled on the spot where there is a compiler) shows what the machine can do at most;
SimPy what a simulator of processes does with it. Level 1 runs the shipped routers, which do far more per event.

Not here: whether the figures are right (`xval`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Result = dict[str, float]

CPP = Path(__file__).with_name("bench.cpp")
ROW_TIMEOUT_S = 600.0
EVERY_S = 0.1  # between two floods


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. `goal`: what has to be reached, in `unit`; 0 for none. `is_most`: the goal is an upper bound."""

    name: str
    what: str
    unit: str
    run: str  # a function of this module
    nodes: int
    count: int  # messages, lookups, virtual seconds
    goal: float = 0.0
    is_most: bool = False
    is_slow: bool = False


ROWS = (
    Row("kernel-1k", "kernel, Python handlers, floods", "events/s", "kernel", 1_000, 30, 300_000),
    Row("level1-1k", "level 1, shipped routers, gossip-v11", "events/s", "level_one", 1_000, 20, 15_000),
    Row("fast-1k", "level 2, floods", "events/s", "fast", 1_000, 100),
    Row("fast-10k", "level 2, floods", "events/s", "fast", 10_000, 100),
    Row("fast-100k", "level 2, floods", "events/s", "fast", 100_000, 20, 5e6),
    Row("fast-1m", "level 2, floods", "events/s", "fast", 1_000_000, 3, is_slow=True),
    Row("fast-full-100k", "level 2, gossip-v11 whole: scores, IHAVE, upkeep", "events/s", "fast_whole", 100_000, 25),
    Row("flood-1m", "level 2, one flood, first deliveries", "s", "flood_once", 1_000_000, 3, 2.0, True, True),
    Row("dht-1m", "level 2, lookups, k 20, alpha 3, one path", "lookups/s", "dht_one_path", 1_000_000, 20_000, 10_000),
    Row("dht-1m-paths", "level 2, lookups, as shipped: two paths", "lookups/s", "dht", 1_000_000, 20_000),
    Row("cpp-calendar-1k", "C++ calendar, floods", "events/s", "cpp_calendar", 1_000, 100),
    Row("cpp-calendar-100k", "C++ calendar, floods", "events/s", "cpp_calendar", 100_000, 20),
    Row("cpp-calendar-1m", "C++ calendar, floods", "events/s", "cpp_calendar", 1_000_000, 3, is_slow=True),
    Row("cpp-heap-1k", "C++ priority_queue, floods", "events/s", "cpp_heap", 1_000, 100),
    Row("cpp-heap-100k", "C++ priority_queue, floods", "events/s", "cpp_heap", 100_000, 20),
    Row("simpy-1k", "SimPy, timeouts with callbacks, floods", "events/s", "simpy_floods", 1_000, 10),
)


class Unavailable(Exception):
    """A row that cannot be measured here, and why."""


# --- rows ----------------------------------------------------------------------------------------------------


def _cpu(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _mesh(nodes: int) -> list[list[tuple[int, int]]]:
    """For the Python engines: neighbours and latencies in ns."""
    chance = random.Random(1)  # noqa: S311 - a workload
    mesh: list[list[tuple[int, int]]] = [[] for _ in range(nodes)]
    for node in range(nodes):
        for _ in range(4):
            other = chance.randrange(nodes)
            other = (node + 1) % nodes if other == node else other
            delay = int((0.01 + 0.09 * chance.random()) * 1e9)
            mesh[node].append((other, delay))
            mesh[other].append((node, delay))
    return mesh


def kernel(nodes: int, count: int) -> Result:
    from sim.kernel import SECOND, Kernel

    loop, mesh, chance = Kernel(1), _mesh(nodes), random.Random(2)  # noqa: S311 - a workload
    seen: list[set[int]] = [set() for _ in range(nodes)]

    def receive(node: int, sender: int, message: int) -> None:
        if message in seen[node]:
            return
        seen[node].add(message)
        after = loop.after
        for peer, delay in mesh[node]:
            if peer != sender:
                after(delay, receive, peer, node, message)

    def beat(node: int) -> None:
        loop.after(SECOND, beat, node)

    for node in range(nodes):
        loop.after(int(chance.random() * SECOND), beat, node)
    for message in range(count):
        loop.after(int(message * EVERY_S * SECOND), receive, chance.randrange(nodes), -1, message)
    cpu_s = _cpu(lambda: loop.run(loop.now + int((count * EVERY_S + 2) * SECOND)))
    return {"value": loop.events / cpu_s, "events": loop.events, "cpu_s": cpu_s}


def level_one(nodes: int, count: int) -> Result:
    from sim.levels.machines import run_level
    from sim.loading import load
    from sim.out import NullSink

    scenario = load(
        "gossip-v11",
        overrides=[f"nodes.honest.count={nodes}", f"run.until_s={count}", "gossip.publish_until_s=0"],
    )
    found: list[int] = []

    def run() -> None:
        result = run_level(scenario, seed=1, sink=NullSink(), progress=lambda share, note: None)
        found.append(result.events)

    cpu_s = _cpu(run)
    return {"value": found[0] / cpu_s, "events": found[0], "cpu_s": cpu_s}


def _fast_model(nodes: int, messages: int) -> Any:
    import numpy as np

    from sim.fast import state
    from sim.fast.gossip import GossipModel
    from sim.fast.graph import random_rows
    from sim.fast.script import Operation, script_of
    from sim.fast.state import Rules, draw_phases

    rules = Rules(
        is_maintained=False,
        has_scores=False,
        flood_publish=False,
        degree_lazy=0,
        dials=4,
        latency_low=1_000.0,
        latency_high=10_000.0,
        salt=77,
    )
    rows = random_rows(nodes, rules, seed=1, all_in_mesh=True)
    draw_phases(rows.nodes, heartbeat=rules.heartbeat, seed=1)
    sources = np.random.default_rng(1).integers(0, nodes, messages)
    script = [
        Operation(110_000 + number * 10_000, state.PUBLISH, int(source), number, 100)
        for number, source in enumerate(sources)
    ]
    return GossipModel(
        rules=rules, rows=rows, script=script_of(script), slots=max(4, min(messages, 24)), tick_ns=10_000, seed=1
    )


def fast(nodes: int, count: int) -> Result:
    _fast_model(50, 1).run_until(1.1)  # compile, or load what was compiled
    model = _fast_model(nodes, count)
    model.run_until(1.0)
    model.cpu_s, before = 0.0, model.events
    model.run_until(1.1 + count * EVERY_S + 2.0)
    events = model.events - before
    return {"value": events / model.cpu_s, "events": events, "cpu_s": model.cpu_s}


def fast_whole(nodes: int, count: int) -> Result:
    from dataclasses import replace

    from sim.fast.building import gossip_model
    from sim.levels.machines import with_ends
    from sim.loading import load

    def model(size: int, until_s: int) -> Any:
        changes = [f"nodes.honest.count={size}", f"run.until_s={until_s}", "gossip.rate_per_s=1"]
        scenario = with_ends(load("gossip-v11", overrides=changes))
        assert scenario.gossip is not None
        return gossip_model(scenario, replace(scenario.gossip, publish_until_s=count - 5.0), seed=1, keeps_all=False)

    model(50, 2).run_until(2.0)
    whole = model(nodes, count)
    whole.run_until(count)
    return {"value": whole.events / whole.cpu_s, "events": whole.events, "cpu_s": whole.cpu_s}


def flood_once(nodes: int, count: int) -> Result:
    from sim.fast.flood import flood
    from sim.fast.graph import random_rows
    from sim.fast.state import Rules

    rules = Rules(has_scores=False, dials=4, latency_low=1_000.0, latency_high=10_000.0)
    flood(random_rows(50, rules, seed=1, all_in_mesh=True), 0)
    rows = random_rows(nodes, rules, seed=1, all_in_mesh=True)
    cpu_s = _cpu(lambda: [flood(rows, source) for source in range(count)]) / count
    return {"value": cpu_s, "events": nodes, "cpu_s": cpu_s}


def dht(nodes: int, count: int, *, paths: int = 2) -> Result:
    from sim.fast.dht import LookupModel

    LookupModel(50, seed=1).look_up(1, k=20, alpha=3, paths=paths)
    found = LookupModel(nodes, seed=1).look_up(count, k=20, alpha=3, paths=paths)
    return {"value": count / found.cpu_s, "events": 2 * int(found.rpcs.sum()), "cpu_s": found.cpu_s}


def dht_one_path(nodes: int, count: int) -> Result:
    return dht(nodes, count, paths=1)


def simpy_floods(nodes: int, count: int) -> Result:
    try:
        import simpy
    except ImportError as error:
        raise Unavailable("SimPy is not installed") from error
    world, mesh, chance = simpy.Environment(), _mesh(nodes), random.Random(2)  # noqa: S311 - a workload
    seen: list[set[int]] = [set() for _ in range(nodes)]
    events = [0]

    def later(delay_s: float, node: int, sender: int, message: int) -> None:
        world.timeout(delay_s).callbacks.append(lambda event: receive(node, sender, message))

    def receive(node: int, sender: int, message: int) -> None:
        events[0] += 1
        if message < 0:
            later(1.0, node, sender, message)
        elif message not in seen[node]:
            seen[node].add(message)
            for peer, delay in mesh[node]:
                if peer != sender:
                    later(delay / 1e9, peer, node, message)

    for node in range(nodes):
        later(chance.random(), node, -1, -1)
    for message in range(count):
        later(message * EVERY_S, chance.randrange(nodes), -1, message)
    cpu_s = _cpu(lambda: world.run(until=count * EVERY_S + 2))
    return {"value": events[0] / cpu_s, "events": events[0], "cpu_s": cpu_s}


def _cpp(kind: str, nodes: int, count: int) -> Result:
    compiler = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
    if compiler is None:
        raise Unavailable("no C++ compiler here")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "bench"
        subprocess.run(  # noqa: S603 - our own source
            [compiler, "-O3", "-march=native", "-std=c++17", "-o", str(program), str(CPP)], check=True, timeout=120
        )
        done = subprocess.run(  # noqa: S603 - what we have just compiled
            [str(program), kind, str(nodes), str(count)], check=True, capture_output=True, timeout=ROW_TIMEOUT_S
        )
    said = json.loads(done.stdout)
    return {"value": said["events"] / said["cpu_s"], **said}


def cpp_calendar(nodes: int, count: int) -> Result:
    return _cpp("calendar", nodes, count)


def cpp_heap(nodes: int, count: int) -> Result:
    return _cpp("heap", nodes, count)


# --- the command ---------------------------------------------------------------------------------------------


def measure(row: Row) -> Result:
    """In this process. Raises Unavailable."""
    found: Result = globals()[row.run](row.nodes, row.count)
    found.setdefault("rss_mb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return found


def measure_apart(row: Row) -> Result | str:
    """In a process of its own; a text where it could not be measured."""
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", "sim", "bench", "--one", row.name],
        capture_output=True,
        text=True,
        timeout=ROW_TIMEOUT_S,
        cwd=CPP.parent.parent,
        env=os.environ,
    )
    if done.returncode != 0:
        return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit status {done.returncode}"
    found: Result = json.loads(done.stdout)
    return found


def table(results: dict[str, Result | str]) -> str:
    """For people."""
    lines = [f"{'':46} {'nodes':>9} {'measured':>14} {'':9} {'goal':>11} {'CPU s':>7} {'MB':>5}"]
    for row in ROWS:
        found = results.get(row.name)
        if found is None:
            continue
        head = f"{row.what:46} {row.nodes:9,}"
        if isinstance(found, str):
            lines.append(f"{head}  not measured: {found}")
            continue
        goal, verdict = "", ""
        if row.goal:
            is_reached = found["value"] <= row.goal if row.is_most else found["value"] >= row.goal
            goal = f"{'≤' if row.is_most else '≥'} {_figure(row.goal)}"
            verdict = "" if is_reached else "  MISSED"
        lines.append(
            f"{head} {_figure(found['value']):>14} {row.unit:9} {goal:>11} {found['cpu_s']:7.2f} {found['rss_mb']:5.0f}"
            f"{verdict}"
        )
    lines += ["", *ratios(results)]
    return "\n".join(lines)


def ratios(results: dict[str, Result | str]) -> list[str]:
    """Who is how many times as fast as whom, on the same floods."""

    def value(name: str) -> float | None:
        found = results.get(name)
        return None if found is None or isinstance(found, str) else found["value"]

    lines = []
    for ours, other in (
        ("fast-1k", "cpp-calendar-1k"),
        ("fast-100k", "cpp-calendar-100k"),
        ("fast-100k", "cpp-heap-100k"),
        ("fast-1m", "cpp-calendar-1m"),
        ("kernel-1k", "simpy-1k"),
        ("fast-1k", "simpy-1k"),
        ("fast-1k", "kernel-1k"),
    ):
        a, b = value(ours), value(other)
        if a and b:
            lines.append(f"{ours} is {a / b:,.2f} times {other}")
    return lines


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sim bench", description="Events a second on this machine, in CPU time, beside C++ and SimPy."
    )
    parser.add_argument("--only", default="", metavar="LIST", help="rows by name or its beginning, by commas")
    parser.add_argument("--quick", action="store_true", help="leave out what needs a million nodes and floods")
    parser.add_argument("--json", action="store_true", help="one object: rows and ratios")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str]) -> int:
    """0: measured; 1: a goal was missed or a row failed; 2: usage. Figures on stdout, progress on stderr."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.one:
        return _one(arguments.one)
    wanted = [each for each in arguments.only.split(",") if each]
    rows = [
        row
        for row in ROWS
        if (not wanted or any(row.name.startswith(each) for each in wanted)) and not (arguments.quick and row.is_slow)
    ]
    if not rows:
        parser.error(f"no such row; there are {', '.join(row.name for row in ROWS)}")
    results: dict[str, Result | str] = {}
    for row in rows:
        print(f"{row.name} …", file=sys.stderr, flush=True)
        results[row.name] = measure_apart(row)
    if arguments.json:
        measured = [asdict(row) | {"result": results[row.name]} for row in rows]
        print(json.dumps({"rows": measured, "ratios": ratios(results)}))
    else:
        print(table(results))
    return 0 if all(_is_good(row, results[row.name]) for row in rows) else 1


def _one(name: str) -> int:
    for row in ROWS:
        if row.name == name:
            try:
                print(json.dumps(measure(row)))
            except Unavailable as error:
                print(error, file=sys.stderr)
                return 1
            return 0
    print(f"no row {name!r}", file=sys.stderr)
    return 2


def _is_good(row: Row, found: Result | str) -> bool:
    if isinstance(found, str):
        return not row.goal
    if not row.goal:
        return True
    return found["value"] <= row.goal if row.is_most else found["value"] >= row.goal
