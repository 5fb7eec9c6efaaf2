"""Lookups over implied routing tables: do they find the truth, and how far do they walk?"""

from __future__ import annotations

import numpy as np
import pytest

from sim.fast import dht
from sim.fast.dht import LookupModel, run_lookups
from sim.fast.level import run_level
from sim.levels.machines import run_level as run_real_level
from sim.loading import load
from sim.out import NullSink


def test_the_closest_node_is_the_closest_of_all() -> None:
    model = LookupModel(500, seed=4)
    chance = np.random.default_rng(4)
    model.alive[chance.integers(0, 500, 150)] = 0
    for target in chance.integers(0, 2**64, 200, dtype=np.uint64):
        asker = int(chance.integers(500))
        distances = model.ids ^ target
        up = [node for node in range(500) if model.alive[node] and node != asker]
        wanted = min(up, key=lambda node: distances[node])
        with np.errstate(over="ignore"):
            found = dht.true_closest_of(model, int(target), asker)
        assert found == wanted


@pytest.mark.parametrize("nodes", [2, 3, 25, 300, 5_000])
def test_every_lookup_finds_the_closest_node(nodes: int) -> None:
    found = run_lookups(nodes, 300, seed=nodes)
    assert found.found_closest.all()
    assert found.hops.min() >= 1
    assert found.rpcs.max() <= dht.QUESTIONS_MAX


def test_ten_times_the_nodes_cost_less_than_one_hop_more() -> None:
    hops = [run_lookups(nodes, 1_000, seed=1).hops.mean() for nodes in (1_000, 10_000, 100_000)]
    assert 1.5 < hops[0] < hops[1] < hops[2] < 4
    assert hops[1] - hops[0] < 1
    assert hops[2] - hops[1] < 1


def test_two_paths_ask_twice_as_many_and_find_the_same() -> None:
    one, two = (run_lookups(3_000, 500, seed=2, paths=paths) for paths in (1, 2))
    assert 1.7 < two.rpcs.mean() / one.rpcs.mean() < 2.4
    assert one.found_closest.all() and two.found_closest.all()


def test_dead_nodes_cost_time_and_questions() -> None:
    alive = np.ones(2_000, np.bool_)
    alive[np.random.default_rng(1).permutation(2_000)[:400]] = False
    whole = LookupModel(2_000, seed=3).look_up(400, k=20, alpha=3, paths=2)
    holes = LookupModel(2_000, seed=3, alive=alive).look_up(400, k=20, alpha=3, paths=2)
    assert holes.duration_ms.mean() > 2 * whole.duration_ms.mean()
    assert holes.rpcs.mean() > whole.rpcs.mean()
    assert holes.found_closest.mean() > 0.95


def test_a_scenario_of_lookups_runs_at_this_level() -> None:
    scenario = load("dht-lookup", overrides=["nodes.honest.count=20000", "dht.lookups=400"])
    result = run_level(scenario, seed=1, sink=NullSink(), progress=lambda share, note: None)
    found = result.summary["dht"]
    assert found["found_closest_share"] == 1.0
    assert 2 < found["hops"]["mean"] < 4
    assert 30 < found["rpcs_mean"] < 70
    assert any("dht.warm" in warning for warning in result.warnings)


def test_it_walks_as_far_as_the_real_nodes_do() -> None:
    overrides = [
        "nodes.honest.count=500",
        "net.model=uniform",
        "dht.warm=true",
        "dht.lookups=200",
        "dht.lookups_from_s=5",
        "run.until_s=40",
    ]
    real = run_real_level(
        load("dht-lookup", overrides=overrides), seed=1, sink=NullSink(), progress=lambda share, note: None
    ).summary["dht"]
    fast = run_level(
        load("dht-lookup", overrides=[*overrides, "dht.lookups=2000"]),
        seed=1,
        sink=NullSink(),
        progress=lambda share, note: None,
    ).summary["dht"]
    assert real["found_closest_share"] == fast["found_closest_share"] == 1.0
    assert fast["hops"]["mean"] == pytest.approx(real["hops"]["mean"], abs=0.15)
    assert fast["rpcs_mean"] == pytest.approx(real["rpcs_mean"], rel=0.05)
    assert fast["duration_ms"]["p50"] == pytest.approx(real["duration_ms"]["p50"], rel=0.12)
