"""What no single field of a scenario can know: groups that do not exist, a mesh that is wider than its bound.

`contradictions` yields the place and what to write; the loader points at the line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path as FilePath

from .lines import Path
from .scenario import NODES_MAX, ChurnSpec, Scenario

INPUT_BYTES_MAX = 64 * 1024 * 1024  # of one matrix or trace file


def contradictions(scenario: Scenario) -> Iterator[tuple[Path, str]]:
    yield from _nodes(scenario)
    yield from _overlay(scenario)
    yield from _market(scenario)
    yield from _adversaries(scenario)
    yield from _sweep(scenario)


def _nodes(scenario: Scenario) -> Iterator[tuple[Path, str]]:
    if scenario.node_count == 0:
        yield ("nodes",), 'there are none: write [nodes.honest] with count = 100 and roles = ["gossip"]'
    if scenario.node_count > NODES_MAX:
        yield ("nodes",), f"are {scenario.node_count:,} in all: {NODES_MAX:,} at most"
    run = scenario.run
    if run.warmup_s >= run.until_s:
        yield ("run", "warmup_s"), f"is {run.warmup_s:g}, not before run.until_s = {run.until_s:g}: nothing is measured"
    for name, group in scenario.nodes.items():
        if not group.roles:
            yield ("nodes", name, "roles"), 'is empty: write roles = ["gossip"]'
        yield from _churn(scenario, ("nodes", name, "churn"), group.churn)
    if scenario.net.model == "matrix":
        yield from _input(scenario, ("net", "file"), scenario.net.file)
    elif scenario.net.file:
        yield ("net", "file"), f'is not used by model "{scenario.net.model}": write model = "matrix"'


def _churn(scenario: Scenario, path: Path, churn: ChurnSpec) -> Iterator[tuple[Path, str]]:
    if churn.model == "trace":
        yield from _input(scenario, (*path, "file"), churn.file)
    if churn.model == "flash" and churn.share == 0:
        yield (*path, "share"), "is 0, so nobody comes: write share = 0.5"


def _input(scenario: Scenario, path: Path, name: str) -> Iterator[tuple[Path, str]]:
    """A CSV beside the scenario: there, of a bearable size, and readable as CSV."""
    if not name:
        yield path, 'is empty: write file = "NAME.csv", relative to this scenario'
        return
    file = FilePath(scenario.folder, name)
    try:
        if file.stat().st_size > INPUT_BYTES_MAX:
            yield path, f"{name} is larger than {INPUT_BYTES_MAX >> 20} MiB"
            return
        with file.open(newline="", encoding="utf-8") as lines:
            if next(csv.reader(lines), None) is None:
                yield path, f"{name} is empty"
    except OSError as problem:
        yield path, f"{name} cannot be read ({problem.strerror}): the name is relative to this scenario's folder"
    except (UnicodeDecodeError, csv.Error):
        yield path, f"{name} is no CSV text"


def _overlay(scenario: Scenario) -> Iterator[tuple[Path, str]]:
    if (gossip := scenario.gossip) is not None:
        if not gossip.degree_low <= gossip.degree <= gossip.degree_high:
            low, high = gossip.degree_low, gossip.degree_high
            yield (
                ("gossip", "degree"),
                f"is {gossip.degree}: write degree_low <= degree <= degree_high ({low} to {high})",
            )
        count = scenario.count_with("gossip")
        if count == 0:
            yield ("gossip",), 'no group has the role: write roles = ["gossip"] in one of [nodes.…]'
        elif gossip.publishers > count:
            yield ("gossip", "publishers"), f"is {gossip.publishers}, of {count} nodes with the role gossip"
    if scenario.dht is not None and scenario.count_with("dht") < 2:
        yield ("dht",), 'fewer than two nodes have the role: write roles = ["dht"] in one of [nodes.…]'


def _market(scenario: Scenario) -> Iterator[tuple[Path, str]]:
    market = scenario.market
    if market is None:
        return
    models = {model.name for model in market.models}
    if not models:
        yield ("market", "models"), "is empty: write [[market.models]] with a name"
    for role, agents in (("provider", market.providers), ("client", market.clients)):
        if scenario.count_with(role) == 0:
            yield ("market",), f'no group has the role {role}: write roles = ["{role}"] in one of [nodes.…]'
        for name, agent in agents.items():
            path: Path = ("market", role + "s", name)
            if name not in scenario.nodes:
                yield path, f"no such group: write one of {', '.join(scenario.nodes)}"
            elif role not in scenario.nodes[name].roles:
                yield path, f'group {name} has not the role: write roles = ["{role}", …] in [nodes.{name}]'
            for model in agent.models:
                if model not in models:
                    yield (*path, "models"), f'"{model}" is not traded: write one of {", ".join(sorted(models))}'


def _adversaries(scenario: Scenario) -> Iterator[tuple[Path, str]]:
    for number, adversary in enumerate(scenario.adversaries):
        path: Path = ("adversaries", number)
        if adversary.share and adversary.count:
            yield (*path, "count"), "stands beside share: write one of the two"
        if adversary.group and adversary.group not in scenario.nodes:
            yield (*path, "group"), f'"{adversary.group}" is no group: write one of {", ".join(scenario.nodes)}'
        if 0 < adversary.until_s <= adversary.at_s:
            yield (*path, "until_s"), f"is not after at_s = {adversary.at_s:g}"


def _sweep(scenario: Scenario) -> Iterator[tuple[Path, str]]:
    sweep = scenario.sweep
    if sweep is None:
        return
    if not sweep.axes:
        yield ("sweep", "axes"), 'is empty: write "net.loss" = [0, 0.01] under [sweep.axes]'
    if sweep.method == "latin" and sweep.points == 0:
        yield ("sweep", "points"), "is 0: write how many points the latin hypercube has"
    for name, axis in sweep.axes.items():
        path: Path = ("sweep", "axes", name)
        if sweep.method == "grid" and not axis.values:
            yield path, f'is without values: write "{name}" = [1, 2, 3]'
        if sweep.method == "latin" and axis.low >= axis.high:
            yield path, f'has no range: write "{name}" = {{ low = 1, high = 10 }}'
        if axis.scale == "log" and axis.low <= 0 and sweep.method == "latin":
            yield path, "low must be above 0 on a log scale"
