"""What happened in a market, counted while it happens, and its summary.

Trades that began before the warm-up's end, and an attacker's own, are served but not counted. Welfare is what buyers
got (the value of answers that came in time, less the time they waited for) less what the engines' work cost, answers
that nobody used included; what is paid only moves between them. The optimum is the best assignment of the same orders
to honest providers, window by window, as if all were known and every engine ran at its idle speed: a bound, not a
plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cocoon.types import SECOND_NS, due_nano
from sim.econ.metrics import gini, jain, quantile, rounded, share, variation
from sim.econ.optimum import assign

if TYPE_CHECKING:
    from sim.econ.orders import Order, Record
    from sim.econ.provider import ProviderPeer
    from sim.econ.purchase import Purchase

WINDOW_S: Final = 10.0  # of the optimum
WINDOW_ORDERS_MAX: Final = 400  # a longer window is cut
TRADES_MAX: Final = 2_000_000  # kept for the summary


@dataclass(frozen=True, slots=True)
class Trade:
    """One order and what it led to."""

    order: Order
    record: Record
    client: int


@dataclass(slots=True)
class Tally:
    """Filled by the market."""

    warmup_ns: int
    start_ns: int
    trades: list[Trade] = field(default_factory=list)
    dropped: int = 0
    offers_heard: int = 0
    prices_seen: list[float] = field(default_factory=list)
    settled_nano: int = 0
    settlements_s: list[float] = field(default_factory=list)
    lost_nano: int = 0
    claims: int = 0
    claims_confirmed: int = 0
    foreign_claims: int = 0
    acknowledged_nano: int = 0

    def add(self, purchase: Purchase) -> Trade | None:
        """A purchase has ended. None: it is not counted: too early, or an attacker's."""
        is_late = len(self.trades) >= TRADES_MAX
        if purchase.order.at_ns < self.warmup_ns or not purchase.client.setup.is_honest or is_late:
            self.dropped += 1
            return None
        trade = Trade(purchase.order, purchase.record, purchase.client.number)
        self.trades.append(trade)
        return trade


def market_summary(tally: Tally, providers: Sequence[ProviderPeer], *, now: int) -> dict[str, Any]:
    """The `market` part of a run's summary."""
    trades = [trade for trade in tally.trades if trade.record.status != "abandoned"]
    done = [trade for trade in trades if trade.record.status == "done"]
    wanted = [trade for trade in trades if trade.record.status != "declined"]
    failed = [trade for trade in wanted if trade.record.status in ("failed", "late")]
    first_s = sorted(
        (trade.record.first_ns - trade.order.at_ns) / SECOND_NS for trade in wanted if trade.record.first_ns is not None
    )
    total_s = sorted((trade.record.end_ns - trade.order.at_ns) / SECOND_NS for trade in done)
    attempts = sum(trade.record.attempts for trade in wanted)
    tokens = sum(trade.record.tokens for trade in done)
    paid = sum(trade.record.paid_nano for trade in wanted)
    honest = [provider for provider in providers if provider.setup.is_honest]
    earned = [provider.sold.earned_nano / provider.engine.slots for provider in honest]
    all_earned = sum(provider.sold.earned_nano for provider in providers)
    welfare = welfare_nano(trades, providers)
    best = optimum_nano([trade.order for trade in trades], honest, start_ns=tally.start_ns)
    elapsed_ns = max(1, now - tally.start_ns)
    prices = [float(provider.price) for provider in providers if provider.is_up]
    return {
        "requests": len(trades),
        "done": len(done),
        "declined": len(trades) - len(wanted),
        "failed": len(failed),
        "wrong": sum(trade.record.status == "wrong" for trade in wanted),
        "failed_share": rounded(share(len(failed), len(wanted))),
        "first_token_s": {
            "p50": rounded(quantile(first_s, 0.5)),
            "p95": rounded(quantile(first_s, 0.95)),
            "p99": rounded(quantile(first_s, 0.99)),
        },
        "answer_s": {"p50": rounded(quantile(total_s, 0.5)), "p95": rounded(quantile(total_s, 0.95))},
        "attempts_per_request": rounded(share(attempts, len(wanted))),
        "bad_attempts_share": rounded(share(sum(trade.record.bad_attempts for trade in wanted), attempts)),
        "refusals": sum(trade.record.refusals for trade in wanted),
        "hedges": sum(trade.record.hedges for trade in wanted),
        "failovers": sum(trade.record.failovers for trade in wanted),
        "tokens": tokens,
        "paid_nano": paid,
        "wasted_share": rounded(share(sum(trade.record.wasted_nano for trade in wanted), paid)),
        "price_nano_per_mtok": rounded(share(sum(t.record.paid_nano for t in done) * 1e6, tokens), 1),
        "price_dispersion": rounded(variation(prices)),
        "utilisation": rounded(
            share(
                math.fsum(provider.engine.utilisation(elapsed_ns) * provider.engine.slots for provider in honest),
                sum(provider.engine.slots for provider in honest),
            )
        ),
        "revenue_gini": rounded(gini(earned)),
        "revenue_jain": rounded(jain(earned)),
        "honest_revenue_share": rounded(share(sum(provider.sold.earned_nano for provider in honest), all_earned)),
        "welfare_nano": round(welfare),
        "optimum_nano": round(best),
        "welfare_share": rounded(share(welfare, best)),
        "buyers_surplus_nano": round(buyers_surplus_nano(trades)),
        "sellers_surplus_nano": round(all_earned - engine_cost_nano(providers)),
    }


def payments_summary(tally: Tally) -> dict[str, Any]:
    """The `payments` part."""
    times = sorted(tally.settlements_s)
    return {
        "acknowledged_nano": tally.acknowledged_nano,
        "settled_nano": tally.settled_nano,
        "open_nano": max(0, tally.acknowledged_nano - tally.settled_nano - tally.lost_nano),
        "lost_nano": tally.lost_nano,
        "claims": tally.claims,
        "claims_confirmed": tally.claims_confirmed,
        "foreign_claims": tally.foreign_claims,
        "settlement_s": {"p50": rounded(quantile(times, 0.5)), "p99": rounded(quantile(times, 0.99))},
    }


# --- welfare ---------------------------------------------------------------------------------------------


def worth_nano(trade: Trade) -> float:
    """To the buyer, before paying: the value if it came in time, less the waiting."""
    if trade.record.status in ("declined", "abandoned"):
        return 0.0
    seconds = (trade.record.end_ns - trade.order.at_ns) / SECOND_NS
    value = trade.order.value_nano if trade.record.status == "done" else 0
    return value - trade.order.value_of_time_nano_per_s * min(seconds, trade.order.deadline_s)


def buyers_surplus_nano(trades: Iterable[Trade]) -> float:
    """What buyers have after paying."""
    return math.fsum(worth_nano(trade) - trade.record.paid_nano for trade in trades)


def engine_cost_nano(providers: Iterable[ProviderPeer]) -> float:
    """What all tokens that were made cost to make."""
    return math.fsum(
        provider.setup.cost_nano_per_mtok * (provider.engine.tokens_made + provider.sold.prompt_tokens / 4) / 1e6
        for provider in providers
    )


def welfare_nano(trades: Iterable[Trade], providers: Iterable[ProviderPeer]) -> float:
    """See the file's head."""
    return math.fsum(worth_nano(trade) for trade in trades) - engine_cost_nano(providers)


def order_worth(order: Order, provider: ProviderPeer) -> float:
    """What serving it there on an idle engine would add."""
    setup = provider.setup
    seconds = setup.first_token_ms / 1_000 + order.tokens / setup.tokens_per_s
    if seconds > order.deadline_s:
        return -math.inf
    cost = setup.cost_nano_per_mtok * (order.tokens + order.prompt_tokens / 4) / 1e6
    return order.value_nano - order.value_of_time_nano_per_s * seconds - cost


def optimum_nano(orders: Sequence[Order], providers: Sequence[ProviderPeer], *, start_ns: int) -> float:
    """The bound of the file's head."""
    if not orders or not providers:
        return 0.0
    total = 0.0
    for window in _windows(orders, start_ns):
        mean = sum(order.tokens for order in window) / len(window)
        capacities = [
            max(
                1,
                math.ceil(
                    provider.engine.slots
                    * WINDOW_S
                    / (provider.setup.first_token_ms / 1_000 + mean / provider.setup.tokens_per_s)
                ),
            )
            for provider in providers
        ]
        worth = [[order_worth(order, provider) for provider in providers] for order in window]
        total += assign(worth, capacities).total
    return total


def _windows(orders: Sequence[Order], start_ns: int) -> Iterable[list[Order]]:
    window: list[Order] = []
    index = -1
    for order in sorted(orders, key=lambda order: (order.at_ns, order.number)):
        at = int((order.at_ns - start_ns) / SECOND_NS / WINDOW_S)
        if window and (at != index or len(window) >= WINDOW_ORDERS_MAX):
            yield window
            window = []
        index = at
        window.append(order)
    if window:
        yield window


def paid_for(order: Order, provider: ProviderPeer) -> int:
    """What the whole order costs at its current offer."""
    return due_nano(
        provider.spec.prices, input_tokens=order.prompt_tokens, cached_tokens=0, output_tokens=order.tokens
    )  # fmt: skip
