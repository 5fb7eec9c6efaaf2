"""The fast market against the market of real machines, and against what must hold in any market."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cocoon.market.dice import Dice
from sim.errors import WorldInvalid
from sim.fast import market_state as state
from sim.fast.chance import seeded
from sim.fast.jit import kernel
from sim.fast.market import MarketRun, run_market
from sim.fast.market_choice import beta
from sim.levels.market import run_market as run_real_market
from sim.loading import load

SMALL = ("run.until_s=150", "run.warmup_s=30", "net.model=uniform")


def run(*overrides: str, seed: int = 1) -> MarketRun:
    return run_market(load("market-baseline", overrides=[*SMALL, *overrides]), seed=seed)


def test_it_comes_close_to_the_market_of_real_machines() -> None:
    real, _ = run_real_market(load("market-baseline", overrides=SMALL), seed=1)
    wanted = real.summary["market"]
    found = run().summary["market"]
    assert run().summary["market"] == found
    assert found["price_dispersion"] == wanted["price_dispersion"]  # the same providers
    assert found["price_nano_per_mtok"] == pytest.approx(wanted["price_nano_per_mtok"], rel=0.05)
    assert found["declined"] / found["requests"] == pytest.approx(wanted["declined"] / wanted["requests"], abs=0.07)
    assert found["answer_s"]["p50"] == pytest.approx(wanted["answer_s"]["p50"], rel=0.2)
    assert found["first_token_s"]["p50"] == pytest.approx(wanted["first_token_s"]["p50"], rel=0.25)
    assert found["revenue_gini"] == pytest.approx(wanted["revenue_gini"], abs=0.1)
    assert found["requests"] == pytest.approx(wanted["requests"], rel=0.15)


@kernel
def fill_with_beta(words: Any, a: float, b: float, found: Any) -> None:
    """What only kernels call has no entry from Python: a kernel of the test's own."""
    for index in range(len(found)):
        found[index] = beta(words, a, b)


@pytest.mark.parametrize("seen", [0.0, 5.0, 200.0])
def test_draws_of_belief_are_those_of_the_shipped_dice(seen: float) -> None:
    ours, dice = np.zeros(20_000), Dice(bytes(32))
    fill_with_beta(seeded(1, "test"), 3.0 + seen, 0.6, ours)
    theirs = np.array([dice.beta(3.0 + seen, 0.6) for _ in range(20_000)])
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.006)
    assert ours.std() == pytest.approx(theirs.std(), abs=0.006)
    for share in (1, 10, 50, 90):
        assert np.percentile(ours, share) == pytest.approx(np.percentile(theirs, share), abs=0.03)


def test_every_order_ends_once_and_nobody_pays_more_than_it_is_worth() -> None:
    found = run("run.warmup_s=0")
    trades, market = found.trades, found.summary["market"]
    assert len(trades) == market["requests"] == market["done"] + market["declined"] + market["failed"]
    assert (trades[:, state.T_PAID] <= trades[:, state.T_VALUE]).all()
    assert (trades[:, state.T_END] >= trades[:, state.T_AT]).all()
    declined = trades[trades[:, state.T_ENDED] == state.DECLINED]
    assert (declined[:, state.T_PAID] == 0).all() and (declined[:, state.T_TOKENS] == 0).all()
    done = trades[trades[:, state.T_ENDED] == state.DONE]
    assert (done[:, state.T_FIRST] > done[:, state.T_AT]).all()
    assert found.summary["payments"]["acknowledged_nano"] == trades[:, state.T_PAID].sum()


def test_who_chooses_does_better_than_chance() -> None:
    welfare = {
        rule: np.mean(
            [run(f"market.selection={rule}", seed=seed).summary["market"]["welfare_nano"] for seed in range(1, 7)]
        )
        for rule in ("full-information", "real", "random")
    }
    assert min(welfare["full-information"], welfare["real"]) > 1.02 * welfare["random"]


def test_the_cheapest_rule_pays_the_least() -> None:
    prices = {
        rule: run(f"market.selection={rule}").summary["market"]["price_nano_per_mtok"]
        for rule in ("cheapest", "random")
    }
    assert prices["cheapest"] < prices["random"]


def test_a_surge_makes_people_wait() -> None:
    calm = run()
    surge = run("market.surge_at_s=60", "market.surge_for_s=60", "market.surge_factor=6")
    assert surge.summary["market"]["requests"] > 2 * calm.summary["market"]["requests"]
    assert surge.summary["market"]["first_token_s"]["p95"] > calm.summary["market"]["first_token_s"]["p95"]


def test_a_rule_that_only_level_one_has_is_refused() -> None:
    with pytest.raises(WorldInvalid, match="level 1"):
        run("market.selection=original")


def test_a_large_market_fits_a_short_time() -> None:
    found = run(
        "nodes.clients.count=20000",
        "nodes.providers.count=400",
        "market.providers.providers.slots=[10, 30]",
        "market.clients.clients.rate_per_s=0.02",
        "run.until_s=40",
        "run.warmup_s=0",
    )
    assert found.summary["market"]["requests"] > 10_000
    assert found.summary["market"]["failed_share"] < 0.05
