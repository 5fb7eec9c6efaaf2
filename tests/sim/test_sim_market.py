"""The market in virtual time: cases whose answer is known beforehand, and laws that hold in every run."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoon.market.selection import replay
from cocoon.ports import StoredVoucher
from cocoon.types import SECOND_NS
from sim.econ.comparison import Cell, run_cell
from sim.econ.market import Market
from sim.econ.metrics import gini, jain, quantile
from sim.econ.optimum import NOBODY, assign, clearing_price, monopoly_price
from sim.econ.policies import Bandit, BestResponse, CostPlus, Policy, Window, make_policy
from sim.econ.tally import order_worth
from sim.levels.market import run_market
from sim.rng import stream
from sim.scenario import (
    ChainSpec,
    ClientAgent,
    MarketSpec,
    ModelSpec,
    NetSpec,
    NodeGroup,
    OutageSpec,
    ProviderAgent,
    ReorgSpec,
    RunSpec,
    Scenario,
)

ROOT = Path(__file__).resolve().parents[2]


def little(
    *,
    rule: str = "real",
    clients: int = 6,
    providers: int = 3,
    until_s: float = 90,
    rate: float = 0.2,
    agent: ProviderAgent | None = None,
    buyer: ClientAgent | None = None,
    chain: ChainSpec | None = None,
    net: NetSpec | None = None,
    **spec: object,
) -> Scenario:
    return Scenario(
        name="little",
        run=RunSpec(until_s=until_s),
        nodes={
            "sellers": NodeGroup(count=providers, roles=("provider",)),
            "buyers": NodeGroup(count=clients, roles=("client",)),
        },
        net=net or NetSpec(),
        market=MarketSpec(
            selection=rule,
            providers={"sellers": agent or ProviderAgent(slots=(3, 6))},
            clients={"buyers": buyer or ClientAgent(rate_per_s=rate, value_nano=(1_000_000, 3_000_000))},
            **spec,  # type: ignore[arg-type]
        ),
        chain=chain,
    )


# --- the optimum -----------------------------------------------------------------------------------------


def best_by_trying(worth: list[list[float]], capacities: list[int]) -> float:
    places = [index for index, room in enumerate(capacities) for _ in range(room)] + [NOBODY] * len(worth)
    best = 0.0
    for chosen in set(itertools.permutations(places, len(worth))):
        best = max(best, sum(row[at] for row, at in zip(worth, chosen, strict=True) if at != NOBODY))
    return best


@settings(max_examples=60, deadline=None)
@given(
    worth=st.lists(st.lists(st.integers(-5, 30), min_size=2, max_size=2), min_size=1, max_size=4),
    capacities=st.lists(st.integers(0, 2), min_size=2, max_size=2),
)
def test_the_assignment_is_the_best_there_is_and_its_prices_lead_everybody_to_it(
    worth: list[list[int]], capacities: list[int]
) -> None:
    rows = [[float(value) for value in row] for row in worth]
    found = assign(rows, capacities)
    assert found.total == pytest.approx(best_by_trying(rows, capacities))
    for place, room in enumerate(capacities):
        assert sum(at == place for at in found.chosen) <= room
    for row, at in zip(rows, found.chosen, strict=True):  # at these prices nobody would rather have something else
        mine = 0.0 if at == NOBODY else row[at] - found.prices[at]
        assert mine >= max(0.0, *(value - price for value, price in zip(row, found.prices, strict=True))) - 1e-6


def test_perfect_information_reaches_the_optimum() -> None:
    """Prices at cost, everybody knows everything, no offer is late: what buyers choose is the best assignment."""
    scenario = little(
        rule="full-information",
        clients=10,
        providers=4,
        until_s=200,
        agent=ProviderAgent(slots=(20, 20), policy="cost-plus", margin=0.0, first_token_ms=(100, 300)),
        buyer=ClientAgent(rate_per_s=0.05, value_nano=(100_000, 1_000_000), value_of_time_nano_per_s=20_000),
        offers_by_gossip=False,
        net=NetSpec(latency_ms=(0.1, 0.2), jitter=0.0),
    )
    result, market = run_market(scenario, seed=3)
    summary = result.summary["market"]
    assert summary["requests"] > 60
    assert summary["welfare_share"] == pytest.approx(1.0, abs=0.02)  # handshakes and shared engines take the rest
    best = 0
    for trade in market.tally.trades:
        worth = {provider.number: order_worth(trade.order, provider) for provider in market.providers}
        best += trade.record.status == "declined" or worth[trade.record.provider] >= max(worth.values()) - 20_000
    assert best >= 0.98 * summary["requests"]


def test_the_shipped_choice_comes_close_to_the_optimum_and_beats_chance() -> None:
    shares = {}
    for rule in ("real", "random"):
        result, _ = run_market(little(rule=rule, clients=8, providers=5, until_s=150), seed=5)
        shares[rule] = result.summary["market"]["welfare_share"]
    assert shares["real"] > 0.85
    assert shares["real"] > shares["random"]


# --- prices ----------------------------------------------------------------------------------------------


def sells(price: float, *, high: float, buyers: int, rng_seed: int) -> int:
    rng = stream(rng_seed, "buyers")
    return sum(rng.uniform(0, high) >= price for _ in range(buyers))


def converge(policy: Policy, *, start: int, high: float, rounds: int) -> list[int]:
    """A monopolist and buyers who each want one piece (10⁶ tokens) if it costs less than it is worth to them."""
    price, seen = start, []
    for number in range(rounds):
        sold = sells(price, high=high, buyers=2_000, rng_seed=number)
        price = policy.next_price(
            Window(price=price, sold_tokens=sold * 1_000_000, load=0.5, rivals=(), seconds=60.0, requests=sold)
        )
        seen.append(price)
    return seen


@pytest.mark.parametrize("cost", [0, 200, 600])
def test_a_monopolist_that_answers_its_demand_asks_the_closed_form_price(cost: int) -> None:
    expected = monopoly_price(value_low=0, value_high=1_000, cost=cost)
    prices = converge(BestResponse(cost=cost, start=900), start=900, high=1_000, rounds=30)
    assert prices[-1] == pytest.approx(expected, rel=0.05)


def test_a_monopolist_that_tries_prices_ends_next_to_the_closed_form() -> None:
    expected = monopoly_price(value_low=0, value_high=1_000, cost=200)
    policy = Bandit(cost=200, start=500, rng=stream(1, "bandit"))
    converge(policy, start=500, high=1_000, rounds=200)
    nearest = min(policy._arms, key=lambda price: abs(price - expected))
    assert policy.favourite == nearest


def test_a_monopolist_in_the_whole_market_asks_the_closed_form_price() -> None:
    """Real offers, real sessions, real vouchers. Answers are all of one size, buyers' values uniform in [0, h]."""
    tokens, high, cost = 100, 100_000, 200_000_000  # cost of an answer: 20,000 nanoTON
    scenario = little(
        rule="cheapest",
        clients=40,
        providers=1,
        until_s=1_500,
        agent=ProviderAgent(
            slots=(400, 400),
            tokens_per_s=(2_000, 2_000),
            first_token_ms=(20, 20),
            cost_nano_per_mtok=(cost, cost),
            price_nano_per_mtok=(400_000_000, 400_000_000),
            policy="best-response",
            reprice_s=60,
        ),
        buyer=ClientAgent(rate_per_s=0.05, value_nano=(0, high), value_of_time_nano_per_s=0, deposit_ton=1_000),
        models=(ModelSpec(prompt_tokens=1, output_tokens=tokens, output_sigma=0.0),),
        offers_by_gossip=False,
        net=NetSpec(latency_ms=(1, 2)),
    )
    _, market = run_market(scenario, seed=2)
    provider = market.providers[0]
    expected = monopoly_price(value_low=0, value_high=high * 1e6 / tokens, cost=cost)  # 0.6 TON per 10⁶ tokens
    assert expected == 600_000_000
    assert provider.price == pytest.approx(expected, rel=0.08)
    assert provider.sold.requests > 500


def test_rivals_drive_prices_to_cost() -> None:
    policies = [BestResponse(cost=300, start=900) for _ in range(3)]
    prices = [900, 800, 700]
    for _ in range(400):
        for index, policy in enumerate(policies):
            rivals = tuple(sorted(price for other, price in enumerate(prices) if other != index))
            prices[index] = policy.next_price(
                Window(price=prices[index], sold_tokens=1, load=0.3, rivals=rivals, seconds=60)
            )
    assert all(300 <= price <= 330 for price in prices)


def test_other_policies_say_what_their_names_say() -> None:
    window = Window(price=5, sold_tokens=0, load=0.0, rivals=(), seconds=60)
    assert CostPlus(100, 0.3).next_price(window) == 130
    assert make_policy("fixed", cost=1, start=7, margin=0, rng=stream(1, "x")).next_price(window) == 7
    with pytest.raises(ValueError, match="no price policy"):
        make_policy("greedy", cost=1, start=1, margin=0, rng=stream(1, "x"))
    assert clearing_price([10, 8, 2], [1, 3, 9]) == pytest.approx(5.5)


# --- laws ------------------------------------------------------------------------------------------------


def test_a_seed_gives_one_market_and_another_seed_another() -> None:
    first, _ = run_market(little(until_s=40), seed=11)
    again, _ = run_market(little(until_s=40), seed=11)
    other, _ = run_market(little(until_s=40), seed=12)
    assert (first.trace_hash, first.summary) == (again.trace_hash, again.summary)
    assert first.trace_hash != other.trace_hash


def test_two_processes_with_different_hash_seeds_give_one_market() -> None:
    program = (
        "from tests.sim.test_sim_market import little; from sim.levels.market import run_market;"
        "print(run_market(little(until_s=30), seed=4)[0].trace_hash)"
    )
    hashes = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        hashes.add(done.stdout)
    assert len(hashes) == 1


def check_money(market: Market) -> None:
    """What clients say they spent is what they signed, and what providers hold is within a window of it."""
    market.chain.ledger.check()
    for client in market.clients:
        payer = client.purse.payer
        assert not payer.is_roll_advised
        for provider in market.providers:
            issued, ledger = payer.ledger(provider.payout), provider.till.payee.ledger(client.purse.account)
            if issued is None or ledger is None:
                continue
            held = [
                record
                for record in provider.till.disk.values()
                if isinstance(record, StoredVoucher) and record.account == client.purse.account
            ]
            most = max((record.cumulative_nano for record in held), default=0)
            assert most <= issued.cumulative_nano
            assert issued.cumulative_nano - most <= 200_000  # nothing but what is on its way
            assert ledger.paid_nano == most
            assert ledger.unpaid.count <= ledger.window_tokens


def test_every_order_ends_once_and_money_adds_up() -> None:
    scenario = little(
        until_s=120,
        net=NetSpec(loss=0.02),
        chain=ChainSpec(fail_rate=0.2, outages=(OutageSpec(at_s=30, for_s=40),), reorgs=(ReorgSpec(at_s=90),)),
    )
    _, market = run_market(scenario, seed=6)
    orders = [trade.order.number for trade in market.tally.trades]
    assert len(orders) == len(set(orders)) == market._orders
    assert all(not client.purchases for client in market.clients)
    done = [trade for trade in market.tally.trades if trade.record.status == "done"]
    assert len(done) > 0.9 * len(orders)
    assert all(trade.record.tokens >= trade.order.tokens for trade in done)
    check_money(market)


def test_claims_settle_on_chain_and_are_counted_once() -> None:
    """Fees of almost nothing, so that providers claim at once."""
    scenario = little(until_s=120, chain=ChainSpec(fee_nano=100, finality_blocks=1))
    result, market = run_market(scenario, seed=7)
    payments = result.summary["payments"]
    assert payments["claims_confirmed"] > 5
    on_chain = sum(
        entry.claimed_nano
        for client in market.clients
        for entry in market.chain.ledger.contracts[client.purse.account].entries.values()  # type: ignore[union-attr]
    )
    assert 0 < payments["settled_nano"] <= on_chain <= payments["acknowledged_nano"]
    assert payments["lost_nano"] == payments["foreign_claims"] == 0
    assert 5 <= payments["settlement_s"]["p99"] < 300
    check_money(market)


def test_every_choice_of_the_shipped_selection_replays() -> None:
    choices = []

    def watch(market: Market) -> None:
        market.on_done.append(lambda purchase: choices.extend(purchase.choices))

    run_market(little(until_s=60), seed=8, prepare=watch)
    assert len(choices) > 30
    for choice in choices:
        again = replay(choice)
        assert again.as_record() == choice.as_record()


def test_a_provider_that_dies_in_the_middle_of_answers_is_replaced() -> None:
    def schedule(market: Market) -> None:
        for index, at_s in enumerate((20, 30, 40)):
            provider = market.providers[index]
            market.env.kernel.after(at_s * SECOND_NS, provider.crash)
            market.env.kernel.after((at_s + 15) * SECOND_NS, provider.start)

    _, market = run_market(little(until_s=80, rate=0.3), seed=9, prepare=schedule)
    records = [trade.record for trade in market.tally.trades]
    assert sum(record.failovers for record in records) > 0
    assert sum(record.status == "failed" for record in records) <= 0.02 * len(records)


# --- rules side by side ----------------------------------------------------------------------------------


def test_with_bad_providers_ours_fails_less_and_is_faster_than_the_others() -> None:
    cells = {
        rule: run_cell(Cell(rule=rule, load=0.7, seed=2, minutes=3.0, warmup_s=90.0))
        for rule in ("real", "power-of-two", "original")
    }
    ours = cells["real"]
    assert ours["failed_share"] <= 0.001
    assert ours["bad_attempts_share"] <= 0.05
    for rule in ("power-of-two", "original"):
        assert ours["first_token_s"]["p95"] <= cells[rule]["first_token_s"]["p95"]
        assert ours["bad_attempts_share"] < cells[rule]["bad_attempts_share"] / 3
        assert ours["welfare_share"] > cells[rule]["welfare_share"]


def test_plain_numbers() -> None:
    assert gini([1, 1, 1]) == pytest.approx(0)
    assert gini([0, 0, 3]) == pytest.approx(2 / 3)
    assert jain([1, 1]) == 1
    assert math.isnan(quantile([], 0.5))
    assert quantile([1, 2, 3, 4], 0.5) == 3
