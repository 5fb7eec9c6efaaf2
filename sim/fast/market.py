"""The fast market: 10^5 clients and thousands of providers with the shipped rule of choice.

    part = run_market(load("market-baseline"), seed=7)
    part.summary["market"]["first_token_s"]["p50"]

Providers are those of level 1, draw for draw; orders are drawn from the same distributions. Everybody knows every
offer, and a beacon reaches all at once. Not modelled: gossip of offers, the chain and vouchers, hedges, prices that
move, liars. `tests/sim/test_sim_fast_market.py` holds it against the market of real machines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim import rng
from sim.econ.metrics import gini, jain, rounded, share, variation
from sim.errors import WorldInvalid
from sim.fast import market_state as state
from sim.fast.building import ways_of
from sim.fast.chance import seeded
from sim.fast.jit import require_speed
from sim.fast.market_kernel import begin, run
from sim.fast.market_state import Market, new_arrays
from sim.fast.state import Float64
from sim.scenario import ClientAgent, MarketSpec, ProviderAgent, Scenario

RULES = {
    "real": state.REAL,
    "cheapest": state.CHEAPEST,
    "random": state.RANDOM,
    "least-load": state.LEAST_LOAD,
    "full-information": state.FULL_INFORMATION,
}
_ORDERS_MAX = 20_000_000  # of a run: 1.8 GB of trades


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketRun:
    events: int
    summary: dict[str, Any]
    warnings: list[str]
    digest: bytes
    trades: Float64  # by `market_state.T_…`; those of the warm-up are not among them


def _providers(scenario: Scenario, spec: MarketSpec, *, seed: int) -> Float64:
    """Level 1's agents, by the same draws in the same order."""
    rows: list[list[float]] = []
    names = [model.name for model in spec.models]
    for group, nodes in scenario.nodes.items():
        if "provider" not in nodes.roles:
            continue
        agent = spec.providers.get(group, ProviderAgent())
        offered = list(agent.models) or names
        for index in range(nodes.count):
            draw = rng.stream(seed, f"provider@{group}", index)
            cost, start = draw.between(*agent.cost_nano_per_mtok), draw.between(*agent.price_nano_per_mtok)
            slots, per_s = draw.between(*agent.slots), draw.uniform(*agent.tokens_per_s)
            first_ms = draw.uniform(*agent.first_token_ms)
            price = round(cost * (1 + agent.margin)) if agent.policy == "cost-plus" else start
            row = [0.0] * state.PROVIDER_COLUMNS
            row[state.MODEL] = names.index(offered[index % len(offered)])
            row[state.SLOTS], row[state.TOKENS_PER_S], row[state.FIRST_TOKEN_S] = slots, per_s, first_ms / 1_000
            row[state.COST], row[state.PRICE] = cost, price
            row[state.CLAIMED_PER_S], row[state.CLAIMED_FIRST_S] = max(1, round(per_s)), round(first_ms) / 1_000
            row[state.SAID_AT] = -math.inf
            rows.append(row)
    return np.array(rows, np.float64).reshape(-1, state.PROVIDER_COLUMNS)


def _clients(scenario: Scenario, spec: MarketSpec) -> Float64:
    blocks = [np.zeros((0, state.CLIENT_COLUMNS))]
    for group, nodes in scenario.nodes.items():
        if "client" in nodes.roles and "provider" not in nodes.roles:
            agent = spec.clients.get(group, ClientAgent())
            low, high = agent.value_nano
            row = (agent.rate_per_s, low, high, agent.deadline_s, agent.value_of_time_nano_per_s)
            blocks.append(np.tile(np.array(row, np.float64), (nodes.count, 1)))
    return np.concatenate(blocks)


def _warnings(scenario: Scenario, spec: MarketSpec) -> list[str]:
    found = ["the market knows no hedges, no vouchers and no chain at this level; payments are what is owed"]
    if spec.offers_by_gossip:
        found.append("every client knows every offer from the start at this level")
    agents = [spec.providers.get(group, ProviderAgent()) for group in scenario.nodes]
    if any(agent.policy in ("best-response", "bandit") for agent in agents):
        found.append("prices stay where they start at this level: take level 1 for best-response and bandit")
    return found


def run_market(scenario: Scenario, *, seed: int) -> MarketRun:
    """Raises WorldInvalid for a rule that only level 1 has, or more orders than there is room for."""
    spec = scenario.market
    assert spec is not None
    if spec.selection not in RULES:
        raise WorldInvalid(f"market.selection {spec.selection!r} is for level 1; here: {', '.join(RULES)}")
    providers, clients = _providers(scenario, spec, seed=seed), _clients(scenario, spec)
    if not len(providers) or not len(clients):
        raise WorldInvalid("a market needs nodes with the role provider, and others with the role client")
    require_speed(len(clients))
    market = _new(scenario, spec, providers, clients, seed=seed)
    with np.errstate(over="ignore"):  # plain-Python kernels multiply words that wrap around
        begin(market)
        run(market, scenario.run.until_s + float(clients[:, state.DEADLINE_S].max()))
    if market.core[state.FULL]:
        raise WorldInvalid("more orders at one time than the fast market has room for: demand outruns its own estimate")
    trades = market.trades[: market.core[state.TRADES]]
    trades = trades[trades[:, state.T_AT] >= scenario.run.warmup_s]
    elapsed_s = scenario.run.until_s
    return MarketRun(
        events=int(market.core[state.EVENTS]),
        summary={"market": _summary(trades, market, elapsed_s), "payments": _payments(market)},
        warnings=_warnings(scenario, spec),
        digest=trades.tobytes(),
        trades=trades,
    )


def _new(scenario: Scenario, spec: MarketSpec, providers: Float64, clients: Float64, *, seed: int) -> Market:
    until_s, most = scenario.run.until_s, max(1.0, spec.surge_factor)
    rate = float(clients[:, state.RATE].sum())
    plain = rate * until_s
    orders = plain + (most - 1) * rate * min(spec.surge_for_s, until_s if spec.surge_at_s else 0.0)
    if orders > _ORDERS_MAX:
        raise WorldInvalid(f"about {orders:,.0f} orders: the fast market takes {_ORDERS_MAX:,}")
    at_once = rate * most * float(clients[:, state.DEADLINE_S].max())  # each waits for its deadline at most
    slots = int(providers[:, state.SLOTS].max())
    models = np.array([[m.prompt_tokens, m.output_tokens, m.output_sigma, m.weight] for m in spec.models], np.float64)
    market = new_arrays(
        providers=providers,
        clients=clients,
        models=models,
        jobs=_roomy(min(at_once, orders)),
        trades=_roomy(orders),
        queue=2 * slots + 2,
        slots=slots + 1,
        ways=ways_of(scenario, seed=seed) / 1_000,
        words=seeded(seed, "fast.market"),
    )
    market.core[state.RULE] = RULES[spec.selection]
    market.core[state.MODELS] = len(spec.models)
    reals = market.reals
    reals[state.UNTIL] = until_s
    reals[state.SURGE_AT], reals[state.SURGE_UNTIL] = spec.surge_at_s, spec.surge_at_s + spec.surge_for_s
    reals[state.SURGE_FACTOR] = spec.surge_factor
    return market


def _roomy(expected: float) -> int:
    """Room for that many, and six deviations more."""
    return int(expected + 6 * math.sqrt(expected)) + 64


# --- the summary ---------------------------------------------------------------------------------------------


def _summary(trades: Float64, market: Market, elapsed_s: float) -> dict[str, Any]:
    """The figures of level 1's market that have a meaning here, by the same names."""
    providers = market.providers
    ended = trades[:, state.T_ENDED]
    wanted, done = trades[ended != state.DECLINED], trades[ended == state.DONE]
    failed = wanted[(wanted[:, state.T_ENDED] == state.LATE) | (wanted[:, state.T_ENDED] == state.FAILED)]
    first = np.sort(wanted[:, state.T_FIRST] - wanted[:, state.T_AT])[(wanted[:, state.T_FIRST] == 0).sum() :]
    total = np.sort(done[:, state.T_END] - done[:, state.T_AT])
    cost = float((providers[:, state.COST] * (providers[:, state.MADE] + providers[:, state.PROMPTS] / 4)).sum() / 1e6)
    seconds = np.minimum(wanted[:, state.T_END] - wanted[:, state.T_AT], _deadlines(wanted, market))
    worth = np.where(wanted[:, state.T_ENDED] == state.DONE, wanted[:, state.T_VALUE], 0.0)
    worth -= _time_values(wanted, market) * seconds
    earned = (providers[:, state.EARNED] / providers[:, state.SLOTS]).tolist()
    paid, tokens = float(wanted[:, state.T_PAID].sum()), float(done[:, state.T_TOKENS].sum())
    return {
        "requests": len(trades),
        "done": len(done),
        "declined": len(trades) - len(wanted),
        "failed": len(failed),
        "failed_share": rounded(share(len(failed), len(wanted))),
        "first_token_s": {name: _at(first, at) for name, at in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))},
        "answer_s": {name: _at(total, at) for name, at in (("p50", 0.5), ("p95", 0.95))},
        "attempts_per_request": rounded(share(float(wanted[:, state.T_ATTEMPTS].sum()), len(wanted))),
        "refusals": int(wanted[:, state.T_REFUSALS].sum()),
        "tokens": int(tokens),
        "paid_nano": int(paid),
        "price_nano_per_mtok": rounded(share(float(done[:, state.T_PAID].sum()) * 1e6, tokens), 1),
        "price_dispersion": rounded(variation(providers[:, state.PRICE].tolist())),
        "utilisation": rounded(
            share(float(providers[:, state.BUSY].sum()), float(providers[:, state.SLOTS].sum()) * elapsed_s)
        ),
        "revenue_gini": rounded(gini(earned)),
        "revenue_jain": rounded(jain(earned)),
        "welfare_nano": round(float(worth.sum()) - cost),
        "buyers_surplus_nano": round(float(worth.sum()) - paid),
        "sellers_surplus_nano": round(float(providers[:, state.EARNED].sum()) - cost),
    }


def _payments(market: Market) -> dict[str, Any]:
    return {"acknowledged_nano": int(market.providers[:, state.EARNED].sum())}


def _deadlines(trades: Float64, market: Market) -> Float64:
    found: Float64 = market.clients[trades[:, state.T_CLIENT].astype(np.int64), state.DEADLINE_S]
    return found


def _time_values(trades: Float64, market: Market) -> Float64:
    found: Float64 = market.clients[trades[:, state.T_CLIENT].astype(np.int64), state.TIME_VALUE]
    return found


def _at(ordered: Float64, at: float) -> float | None:
    return None if not len(ordered) else rounded(float(ordered[min(len(ordered) - 1, int(at * len(ordered)))]))
