"""The fast gossip model against references that are slow, plain and exact."""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sim.errors import WorldInvalid
from sim.fast import gossip as gossip_module
from sim.fast import jit, state, validity
from sim.fast.flood import NEVER, copies, flood
from sim.fast.gossip import GossipModel
from sim.fast.graph import random_rows
from sim.fast.level import run_level
from sim.fast.script import Operation, script_of
from sim.fast.state import Rules, draw_phases
from sim.loading import load
from sim.out import NullSink

TICK_NS = 10_000
BUCKET = 1 << state.BUCKET_SHIFT
MESH = Rules(  # propagation over a mesh that stands
    is_maintained=False,
    has_scores=False,
    flood_publish=False,
    degree_lazy=0,
    dials=3,
    latency_low=1_000.0,
    latency_high=10_000.0,
)


def model_of(rules: Rules, nodes: int, published: list[tuple[int, int, int]], **given: Any) -> GossipModel:
    """`published`: (tick, node, bytes)."""
    rows = random_rows(nodes, rules, seed=5, all_in_mesh=not rules.is_maintained)
    draw_phases(rows.nodes, heartbeat=rules.heartbeat, seed=5)
    script = [
        Operation(at, state.PUBLISH, node, number, size) for number, (at, node, size) in enumerate(published)
    ] + given.pop("also", [])
    slots = given.pop("slots", max(1, len(published)))
    return GossipModel(rules=rules, rows=rows, script=script_of(script), slots=slots, tick_ns=TICK_NS, seed=5, **given)


def reference(
    model: GossipModel, published: list[tuple[int, int, int]], *, up: float = 0.0, down: float = 0.0
) -> tuple[dict[tuple[int, int], float], int]:
    """(message, node) → tick, and messages sent: one heap, exact times, FIFO links of so many ticks a byte."""
    nodes, links = model.model.nodes, model.model.links
    overhead = int(model.model.core[state.MESSAGE_BYTES])
    heap: list[tuple[float, int, str, int, int, int]] = []
    up_free: dict[int, float] = {}
    down_free: dict[int, float] = {}
    got: dict[tuple[int, int], float] = {}
    sent = order = 0

    def send(now: float, node: int, sender: int, message: int) -> None:
        nonlocal sent, order
        size = published[message][2] + overhead
        first = nodes[node, state.START]
        for slot in range(first, first + nodes[node, state.MESH]):
            peer = int(links[slot, state.PEER])
            if peer not in (sender, published[message][1]):
                sent += 1
                order += 1
                left = max(now, up_free.get(node, 0.0)) + size * up
                up_free[node] = left
                heapq.heappush(heap, (left + int(links[slot, state.DELAY]), order, "link", peer, node, message))

    for number, (at, node, _) in enumerate(published):
        order += 1
        heapq.heappush(heap, (at, order, "publish", node, -1, number))
    while heap:
        at, _, what, node, sender, message = heapq.heappop(heap)
        if what == "link":
            size = -(-(published[message][2] + overhead) // 8) * 8  # sizes travel in steps of eight bytes
            through = max(at, down_free.get(node, 0.0)) + size * down
            down_free[node] = through
            order += 1
            heapq.heappush(heap, (through, order, "arrive", node, sender, message))
        elif (message, node) not in got:
            got[message, node] = at
            send(at, node, sender, message)
    return got, sent


def arrivals(model: GossipModel) -> dict[tuple[int, int], int]:
    seen = model.arrivals()
    return {(message, node): int(seen[node, message]) for node, message in np.argwhere(seen > 0)}


# --- propagation ---------------------------------------------------------------------------------------------


def test_a_flood_arrives_when_dijkstra_says() -> None:
    rows = random_rows(400, MESH, seed=3, all_in_mesh=True)
    found, hops = flood(rows, 7)
    best, heap = {7: 0}, [(0, 7)]
    while heap:
        at, node = heapq.heappop(heap)
        if at > best[node]:
            continue
        first = rows.nodes[node, state.START]
        for slot in range(first, first + rows.nodes[node, state.MESH]):
            peer, reached = int(rows.links[slot, state.PEER]), at + int(rows.links[slot, state.DELAY])
            if reached < best.get(peer, NEVER):
                best[peer] = reached
                heapq.heappush(heap, (reached, peer))
    assert [best.get(node, NEVER) for node in range(400)] == found.tolist()
    assert hops[7] == 0
    assert (hops[found < NEVER] > 0).sum() == len(best) - 1
    assert copies(rows, 7) == rows.nodes[:, state.MESH].sum() - (len(best) - 1)


def test_the_calendar_delivers_as_an_exact_heap_does() -> None:
    published = [(1_000 + 700 * number, (37 * number) % 300, 100) for number in range(12)]
    model = model_of(MESH, 300, published)
    model.run_until(2.0)
    wanted, sent = reference(model, published)
    found = arrivals(model)
    assert found.keys() == wanted.keys()
    assert max(abs(found[key] - wanted[key]) for key in wanted) <= BUCKET
    assert sum(found[key] == wanted[key] for key in wanted) > 0.99 * len(wanted)
    assert model.counts()["message"] == sent
    assert model.counter(state.DUPLICATES) == sent - model.counter(state.DELIVERED)


def test_links_are_queues_first_come_first_served() -> None:
    rules = replace(MESH, has_bandwidth=True)
    published = [(1_000 + 3_000 * number, (11 * number) % 80, 4_000) for number in range(8)]
    flows = np.zeros((80, state.FLOW_COLUMNS))
    flows[:, state.UP_PER_BYTE], flows[:, state.DOWN_PER_BYTE] = 0.05, 0.02
    model = model_of(rules, 80, published, flows=flows)
    model.run_until(3.0)
    wanted, sent = reference(model, published, up=0.05, down=0.02)
    found = arrivals(model)
    assert found.keys() == wanted.keys()
    errors = np.array([found[key] - wanted[key] for key in wanted])
    assert np.abs(errors).mean() < 2 * BUCKET  # two that come within a bucket may pass the queue in the other order
    assert np.median([found[key] for key in wanted]) == pytest.approx(np.median(list(wanted.values())), rel=0.001)
    assert model.counts()["message"] == pytest.approx(sent, abs=3)
    unlimited = model_of(MESH, 80, published)
    unlimited.run_until(3.0)
    assert model.delay_quantile_ms(0.5) > 1.2 * unlimited.delay_quantile_ms(0.5)


def test_a_full_uplink_drops() -> None:
    rules = replace(MESH, has_bandwidth=True)
    flows = np.zeros((80, state.FLOW_COLUMNS))
    flows[:, state.UP_PER_BYTE], flows[:, state.QUEUE_BYTES] = 1.0, 5_000
    model = model_of(rules, 80, [(1_000, 3, 4_000)], flows=flows)
    model.run_until(3.0)
    assert model.counter(state.DROPPED) > 0


def test_what_is_farther_away_than_the_ring_of_buckets_still_arrives_in_time() -> None:
    far = replace(MESH, latency_low=300_000.0, latency_high=400_000.0)  # three seconds; the ring holds 1.3
    published = [(1_000, 3, 100)]
    model = model_of(far, 60, published)
    model.run_until(30.0)
    wanted, _ = reference(model, published)
    assert arrivals(model) == wanted


def test_a_calendar_that_is_too_small_grows_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    published = [(1_000 + 100 * number, number, 100) for number in range(30)]
    roomy = model_of(MESH, 300, published)
    roomy.run_until(1.0)
    monkeypatch.setattr(gossip_module, "_FIRST_CHUNKS", 1)
    tight = model_of(MESH, 300, published)
    chunks = len(tight.model.chunks)
    tight.run_until(1.0)
    assert len(tight.model.chunks) > chunks
    assert tight.digest() == roomy.digest()


def test_message_slots_are_used_again_when_messages_are_old() -> None:
    rules = replace(MESH, keep=30_000)
    published = [(1_000 + 20_000 * number, number, 100) for number in range(20)]
    few = model_of(rules, 100, published, slots=4)
    few.run_until(6.0)
    many = model_of(rules, 100, published)
    many.run_until(6.0)
    assert few.counter(state.DELIVERED) == many.counter(state.DELIVERED) == 20 * 99
    assert few.counter(state.STALE) == 0


# --- the protocol --------------------------------------------------------------------------------------------

WHOLE = Rules(dials=10, latency_low=1_000.0, latency_high=10_000.0, jitter=0.1, time_weight=2e-7, time_cap=3e7)


def test_meshes_form_and_stay_within_their_bounds() -> None:
    model = model_of(WHOLE, 300, [])
    model.run_until(10.0)
    degrees = model.model.nodes[:, state.MESH]
    assert degrees.min() >= WHOLE.degree_low
    assert degrees.max() <= WHOLE.degree_high
    assert model.counts()["graft"] >= 300


def test_a_mesh_is_mutual_once_it_is_quiet() -> None:
    model = model_of(WHOLE, 200, [])
    model.run_until(20.3)
    nodes, links = model.model.nodes, model.model.links
    meshes = [
        {int(links[slot, state.PEER]) for slot in range(row[state.START], row[state.START] + row[state.MESH])}
        for row in nodes
    ]
    assert all(node in meshes[peer] for node, mesh in enumerate(meshes) for peer in mesh)


def test_what_is_lost_is_asked_for_and_comes() -> None:
    published = [(500_000 + 20_000 * number, number, 100) for number in range(20)]
    model = model_of(replace(WHOLE, loss=0.4), 150, published)
    model.run_until(20.0)
    assert model.counter(state.LOST) / (model.counter(state.LOST) + model.events) > 0.2
    assert model.counter(state.RECOVERED) > 0
    assert model.counter(state.TIMELY) / model.counter(state.EXPECTED) > 0.99


def test_idontwant_saves_copies_of_large_messages_only() -> None:
    rules = replace(WHOLE, has_bandwidth=True)
    flows = np.zeros((100, state.FLOW_COLUMNS))
    flows[:, state.UP_PER_BYTE] = 0.04

    def duplicates(size: int, has_idontwant: bool) -> int:
        published = [(500_000 + 50_000 * number, number, size) for number in range(6)]
        model = model_of(replace(rules, has_idontwant=has_idontwant), 100, published, flows=flows.copy())
        model.run_until(12.0)
        assert model.counter(state.DELIVERED) == 6 * 99
        return model.counter(state.DUPLICATES)

    assert duplicates(20_000, True) < 0.92 * duplicates(20_000, False)
    assert duplicates(500, True) == duplicates(500, False)


def test_a_node_that_goes_hears_nothing_and_one_that_comes_back_catches_up() -> None:
    rules = replace(WHOLE, has_churn=True, upkeep_ticks=500_000)
    away = [Operation(700_000, state.DOWN, 9), Operation(1_000_000, state.UP, 9)]
    published = [(600_000, 1, 100), (800_000, 2, 100), (950_000, 3, 100), (1_500_000, 4, 100)]
    model = model_of(rules, 120, published, also=away)
    model.run_until(9.9)
    assert model.model.nodes[9, state.COUNT] == 0
    assert model.counter(state.EXPECTED) == 119 + 118 + 118
    assert model.model.seen[9, 1] <= 0 and model.model.seen[9, 2] <= 0
    model.run_until(25.0)
    assert model.model.nodes[9, state.MESH] >= rules.degree_low
    assert model.model.seen[9, 2] > 1_000_000  # from its first neighbours, by IHAVE
    assert model.model.seen[9, 3] > 1_500_000
    assert model.counter(state.TIMELY) == model.counter(state.EXPECTED)


# --- the level -----------------------------------------------------------------------------------------------


def test_too_large_a_network_without_numba_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "HAS_NUMBA", False)
    with pytest.raises(jit.NumbaMissing, match="group `sim`"):
        run_level(
            load("gossip-v11", overrides=["nodes.honest.count=5000"]),
            seed=1,
            sink=NullSink(),
            progress=lambda share, note: None,
        )


def test_a_network_where_nobody_can_dial_so_many_is_refused() -> None:
    with pytest.raises(WorldInvalid, match="cannot dial"):
        random_rows(10, MESH, seed=1, dials=10)


def test_the_level_warns_where_it_was_not_checked_and_only_there() -> None:
    assert validity.warnings_for(load("gossip-v11", overrides=["nodes.honest.count=1000"])) == ()
    for override, word in (
        ("nodes.honest.count=50000", "50,000 nodes"),
        ("net.loss=0.4", "loss"),
        ("gossip.message_bytes=60000", "bytes"),
        ("nodes.honest.link.up_mbit_per_s=0.5", "Mbit"),
    ):
        said = validity.warnings_for(load("gossip-v11", overrides=[override]))
        assert any(word in line for line in said), (override, said)


def test_rows_and_summary_tell_the_same_story() -> None:
    class Rows:
        def __init__(self) -> None:
            self.delays: list[int] = []

        def wants(self, table: str) -> bool:
            return table == "deliveries"

        def row(self, table: str, **columns: Any) -> None:
            self.delays.append(columns["delay_ns"])

    sink = Rows()
    scenario = load("gossip-v11", overrides=["nodes.honest.count=150", "run.until_s=20", "gossip.publish_until_s=0"])
    result = run_level(scenario, seed=3, sink=sink, progress=lambda share, note: None)
    gossip = result.summary["gossip"]
    assert len(sink.delays) == gossip["deliveries"] == gossip["published"] * 149
    assert np.percentile(np.array(sink.delays) / 1e6, 50) == pytest.approx(gossip["delay_ms"]["p50"], abs=0.2)
    assert sum(gossip["delay_ms"]["bins_100ms"]) == gossip["deliveries"]
    assert gossip["delivered_share"] == 1.0
    assert len(result.checkpoints) == 20
