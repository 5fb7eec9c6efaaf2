"""Attackers: what they may spend, what they may see, and what each attack does to a market or an overlay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cocoon.types import NANO_PER_TON, due_nano
from sim.adversary import KINDS, Budget, attach_to_market, make_adversary
from sim.adversary.attach import AdversaryPart
from sim.adversary.base import Action
from sim.econ.market import Market
from sim.errors import WorldInvalid
from sim.levels.machines import run_level
from sim.levels.market import run_market
from sim.out import NullSink
from sim.scenario import (
    ADVERSARIES,
    AdversarySpec,
    ClientAgent,
    DhtSpec,
    GossipSpec,
    MarketSpec,
    NodeGroup,
    ProviderAgent,
    RunSpec,
    Scenario,
)


def attacked(
    *specs: AdversarySpec, until_s: float = 100, clients: int = 4, providers: int = 5, seed: int = 1, stake: float = 0.0
) -> tuple[dict[str, Any], list[dict[str, Any]], Market]:
    """A market without gossip under these attacks: its summary, theirs, and itself."""
    scenario = Scenario(
        name="attacked",
        run=RunSpec(until_s=until_s),
        nodes={
            "sellers": NodeGroup(count=providers, roles=("provider",)),
            "buyers": NodeGroup(count=clients, roles=("client",)),
        },
        market=MarketSpec(
            providers={"sellers": ProviderAgent(slots=(3, 6), stake_ton=stake)},
            clients={"buyers": ClientAgent(rate_per_s=0.3, value_nano=(1_000_000, 2_000_000), deposit_ton=1.0)},
        ),
    )
    parts: list[AdversaryPart] = []
    result, market = run_market(
        scenario, seed=seed, prepare=lambda market: parts.append(attach_to_market(market, specs))
    )  # fmt: skip
    return result.summary["market"], parts[0].summary()["adversaries"], market


def test_every_kind_that_a_scenario_can_name_is_there() -> None:
    assert set(KINDS) == set(ADVERSARIES)
    for kind in KINDS:
        adversary = make_adversary(AdversarySpec(kind=kind, budget_ton=1.5), index=0)
        assert adversary.summary()["budget_nano"] == 3 * NANO_PER_TON // 2
    with pytest.raises(WorldInvalid, match="no attack"):
        make_adversary(AdversarySpec(kind="kindness"), index=0)


def test_what_the_budget_does_not_cover_does_not_happen() -> None:
    budget = Budget(100)
    assert budget.spend("a", 60)
    assert not budget.spend("b", 41)
    assert budget.spend("b", 40)
    assert (budget.spent_nano, budget.by_action, budget.refused) == (100, {"a": 60, "b": 40}, 1)
    adversary = make_adversary(AdversarySpec(kind="sybil", budget_ton=1e-8), index=0)  # ten nanoTON
    done: list[int] = []
    adversary.act([Action(name="x", cost_nano=4, do=lambda: done.append(1)) for _ in range(5)])
    assert len(done) == 2


def test_a_poor_spammer_sends_fewer_offers_than_a_rich_one() -> None:
    offers = {}
    for budget in (0.00002, 0.0):
        _, (spam,), _ = attacked(AdversarySpec(kind="offer-spam", count=1, budget_ton=budget), until_s=60)
        offers[budget] = spam["counts"]["offers"]
    assert 0 < offers[0.00002] < offers[0.0] / 10


def test_what_an_attacker_sees_is_as_wide_as_stated() -> None:
    seen: dict[str, Any] = {}
    for knowledge in ("local", "colluding", "omniscient"):
        spec = AdversarySpec(kind="withhold", count=2, knowledge=knowledge)

        def look(view: Any, knowledge: str = knowledge) -> list[Action]:
            seen[knowledge] = view
            return []

        parts: list[AdversaryPart] = []

        def prepare(market: Market, parts: list[AdversaryPart] = parts, spec: AdversarySpec = spec) -> None:
            parts.append(attach_to_market(market, [spec]))
            parts[0].adversaries[0].plan = look  # type: ignore[method-assign,assignment]

        run_market(
            Scenario(
                name="seen",
                run=RunSpec(until_s=20),
                nodes={
                    "s": NodeGroup(count=2, roles=("provider",)),
                    "b": NodeGroup(count=3, roles=("client",)),
                },
                market=MarketSpec(),
            ),
            seed=1,
            prepare=prepare,
        )
    assert seen["local"].heard == () and seen["local"].everything is None
    assert seen["colluding"].heard and seen["colluding"].everything is None
    assert seen["omniscient"].everything is not None


@pytest.mark.parametrize("kind", ["fast-fail", "stall", "speed-liar", "load-liar", "price-liar", "model-swap"])
def test_a_lying_provider_draws_requests_in_and_loses_them(kind: str) -> None:
    summary, (attack,), market = attacked(AdversarySpec(kind=kind, count=2), until_s=150, providers=6)
    assert attack["nodes"] == 2
    assert attack["counts"].get("attempts", 0) > 0 or kind == "price-liar"
    assert attack["spent_nano"] > 0
    if kind in ("stall", "model-swap", "fast-fail"):
        assert attack["damage_nano"] > 0
        assert attack["damage_per_ton"] > 0
    assert summary["failed_share"] <= 0.02
    late = [trade for trade in market.tally.trades if trade.order.at_ns - market.tally.start_ns > 100 * 10**9]
    if kind in ("fast-fail", "stall", "model-swap"):
        bad = sum(trade.record.bad_attempts for trade in late)
        assert bad <= 0.2 * sum(trade.record.attempts for trade in late)


@pytest.mark.parametrize("mode", ["prompt", "padding"])
def test_inflated_bills_are_noticed_and_padding_is_paid_for(mode: str) -> None:
    _, (attack,), market = attacked(AdversarySpec(kind="token-inflation", count=1, params={"mode": mode}), until_s=80)
    bad = market.providers[next(i for i, p in enumerate(market.providers) if not p.setup.is_honest)]
    if mode == "prompt":
        assert attack["counts"]["inflated_bills"] > 0
        assert any(client.marked for client in market.clients)
        for client in market.clients:  # nobody pays for a prompt that was longer than its own
            ledger = client.purse.payer.ledger(bad.payout)
            assert ledger is None or ledger.cumulative_nano <= 200_000
    else:
        padded = [
            trade.record.tokens - trade.order.tokens
            for trade in market.tally.trades
            if trade.record.provider == bad.number
        ]
        assert max(padded) > 0  # no receipt shows it: the tokens were there


def test_a_withholding_payer_takes_no_more_than_the_window_from_each_provider() -> None:
    _, (attack,), market = attacked(AdversarySpec(kind="withhold", count=1), until_s=100)
    assert attack["counts"]["withheld_vouchers"] > 0
    assert attack["damage_of_nano"]["unpaid"] > 0
    bad = next(client for client in market.clients if not client.setup.is_honest)
    for provider in market.providers:
        ledger = provider.till.payee.ledger(bad.purse.account)
        if ledger is None:
            continue
        prices = provider.spec.prices
        window = due_nano(prices, input_tokens=0, cached_tokens=0, output_tokens=64 + 256)  # and what is written off
        prompt = due_nano(prices, input_tokens=8_000, cached_tokens=0, output_tokens=0)
        assert ledger.due_nano - ledger.paid_nano <= window + prompt


def test_an_over_issuing_payer_costs_a_provider_no_more_than_its_exposure() -> None:
    _, (attack,), market = attacked(AdversarySpec(kind="over-issue", count=1), until_s=100)
    assert attack["counts"]["inflated_proofs"] > 0
    bad = next(client for client in market.clients if not client.setup.is_honest)
    for provider in market.providers:
        ledger = provider.till.payee.ledger(bad.purse.account)
        if ledger is not None and ledger.standing is not None:
            assert ledger.exposure_nano() <= ledger.standing.limit_nano + 1_000_000


def test_equivocation_costs_its_author_the_stake() -> None:
    _, (attack,), market = attacked(AdversarySpec(kind="equivocation", count=1, at_s=5), stake=50.0)
    assert attack["counts"]["slashed"] == 1
    assert attack["spent_on_nano"]["slashed"] == 50 * NANO_PER_TON
    bad = next(provider for provider in market.providers if not provider.setup.is_honest)
    for client in market.clients:
        assert bad.peer not in {each.offer.provider for each in client.book.listed(now=client.now)}


# --- the overlay -----------------------------------------------------------------------------------------


def overlay(*specs: AdversarySpec, nodes: int = 40, until_s: float = 40, dht: bool = False) -> dict[str, Any]:
    roles = ("dht",) if dht else ("gossip",)
    scenario = Scenario(
        name="overlay",
        run=RunSpec(until_s=until_s),
        nodes={"honest": NodeGroup(count=nodes, roles=roles)},
        gossip=None if dht else GossipSpec(dials=8, publishers=4, rate_per_s=1.0, publish_from_s=12),
        dht=DhtSpec(lookups=30, lookups_from_s=15, k=8) if dht else None,
        adversaries=specs,
    )
    return dict(run_level(scenario, seed=1, sink=NullSink(), progress=lambda share, note: None).summary)


@pytest.mark.parametrize("kind", ["sybil", "cold-boot", "covert-flash", "censorship"])
def test_silent_nodes_drop_what_they_should_forward_and_the_mesh_delivers_all_the_same(kind: str) -> None:
    share = {"count": 12} if kind in ("sybil", "cold-boot") else {"share": 0.25}
    at_s = 0 if kind == "cold-boot" else 10
    summary = overlay(AdversarySpec(kind=kind, group="honest", at_s=at_s, **share))  # type: ignore[arg-type]
    (attack,) = summary["adversaries"]
    assert attack["counts"]["dropped_forwards"] > 0
    assert attack["spent_nano"] > 0
    assert summary["gossip"]["delivered_share"] > 0.95


def test_liars_in_the_dht_answer_with_one_another() -> None:
    summary = overlay(AdversarySpec(kind="eclipse", group="honest", share=0.2, at_s=10), dht=True)
    (attack,) = summary["adversaries"]
    assert attack["counts"]["lies"] > 0
    honest = overlay(dht=True)
    assert honest["dht"]["found_closest_share"] >= summary["dht"]["found_closest_share"] - 0.05


def test_an_attack_on_a_market_needs_one() -> None:
    with pytest.raises(WorldInvalid, match="has none"):
        overlay(AdversarySpec(kind="stall", count=1))
    with pytest.raises(WorldInvalid, match="attacks the overlay"):
        attacked(AdversarySpec(kind="sybil", count=1), until_s=5)
    with pytest.raises(WorldInvalid, match="wanted"):
        attacked(replace(AdversarySpec(kind="stall"), count=100), until_s=5)
