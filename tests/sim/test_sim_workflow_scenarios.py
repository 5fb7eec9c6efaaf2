"""Every shipped scenario runs at every level where it has meaning, and elsewhere the level says that it has none."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from sim.job import execute
from sim.loading import shipped_names
from sim.scenario import Scenario, load


def little(name: str) -> Scenario:
    """The scenario with a handful of nodes and half a minute, everything else as it is."""
    scenario = load(name)
    settings = ["run.until_s=40", "run.warmup_s=0"]
    settings += ["nodes.honest.count=16"] if "honest" in scenario.nodes else []
    settings += ["nodes.providers.count=5", "nodes.clients.count=10"] if scenario.market else []
    settings += ["gossip.dials=5", "gossip.publish_until_s=30"] if scenario.gossip else []
    settings += ["dht.lookups=10", "dht.lookups_from_s=20"] if scenario.dht else []
    for number, adversary in enumerate(scenario.adversaries):
        settings += [f"adversaries.{number}.at_s=5"]
        settings += [f"adversaries.{number}.count=4"] if adversary.count else []
    return load(name, overrides=settings)


def run(scenario: Scenario, level: int) -> dict[str, Any]:
    summary: dict[str, Any] = execute(scenario, seed=1, level=level, progress=lambda *_: None)["summary"]
    gc.collect()
    return summary


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_scenario_runs_with_the_real_machines_and_repeats(name: str) -> None:
    scenario = little(name)
    summary = run(scenario, 1)
    assert summary["events"] > 1_000
    assert (summary["gossip"] is None) == (scenario.gossip is None)
    assert (summary["dht"] is None) == (scenario.dht is None)
    if scenario.market is not None:
        assert summary["market"]["requests"] > 5
        assert summary["market"]["done"] > 0
        assert summary["payments"]["acknowledged_nano"] > 0
    elif scenario.gossip is not None:
        assert summary["gossip"]["delivered_share"] > 0.9
    if scenario.dht is not None:
        assert summary["dht"]["found_closest_share"] > 0.5
    if scenario.adversaries:
        (attack,) = summary["adversaries"]
        assert attack["kind"] == scenario.adversaries[0].kind
        assert attack["nodes"] > 0
        assert attack["spent_nano"] > 0
        assert {"damage_nano", "damage_per_ton"} <= attack.keys()
    assert run(scenario, 1)["trace_hash"] == summary["trace_hash"]


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_scenario_runs_with_the_fast_model_which_says_what_it_leaves_out(name: str) -> None:
    scenario = little(name)
    summary = run(scenario, 2)
    assert summary["level"] == 2
    assert summary["events"] > 100
    warnings = " ".join(summary.get("warnings", ()))
    if scenario.adversaries:
        assert "adversaries" in warnings
    if scenario.market is not None:
        assert summary["market"]["done"] > 0
        assert "no chain at this level" in warnings


@pytest.mark.parametrize("name", ["gossip-v11", "dht-lookup"])
def test_a_scenario_of_the_overlay_runs_with_whole_nodes(name: str) -> None:
    scenario = little(name)
    summary = run(scenario, 0)
    assert summary["level"] == 0
    assert summary["events"] > 100


def test_a_level_says_what_it_leaves_out() -> None:
    summary = run(little("market-baseline"), 0)
    assert summary["market"] is None
    assert any("level 0 does not simulate the market: use --level 1" in text for text in summary["warnings"])
