"""Rules of choice side by side, under the same demand, at several loads, with bad providers among the good.

    python -m sim.econ.comparison --loads 0.3,0.5,0.7,0.85,0.95 --seeds 3 --minutes 6

The mix is twelve providers: two that fail at once, two that stall, two that lie about their speed, one that bills
more than there was, one that serves another model, and four that are honest. A load is the demand as a share of what
the honest ones can serve. All rules see the same orders; each has its own run of the whole market.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from cocoon.market.selection import VALUE_OF_TIME_NANO_PER_S
from sim.adversary import AdversaryPart, attach_to_market
from sim.econ.market import Market
from sim.levels.market import run_market
from sim.scenario import (
    AdversarySpec,
    ChainSpec,
    ClientAgent,
    MarketSpec,
    ModelSpec,
    NetSpec,
    NodeGroup,
    ProviderAgent,
    RunSpec,
    Scenario,
)

RULES: Final = ("real", "power-of-two", "original", "least-load", "cheapest", "random")
LOADS: Final = (0.3, 0.5, 0.7, 0.85, 0.95)
BAD: Final = (("fast-fail", 2), ("stall", 2), ("speed-liar", 2), ("token-inflation", 1), ("model-swap", 1))
PROVIDERS: Final = 12
SLOTS: Final = (4, 8)
OUTPUT_TOKENS: Final = 200.0
OUTPUT_SIGMA: Final = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run."""

    rule: str
    load: float
    seed: int
    minutes: float = 6.0
    warmup_s: float = 120.0
    clients: int = 4  # gateways: each learns for itself, from some hundred requests
    has_bad: bool = True
    value_of_time_nano_per_s: int = VALUE_OF_TIME_NANO_PER_S


def capacity_per_s(market: Market) -> float:
    """Requests per second that the honest providers can serve when they are full, for orders of the mean size."""
    mean = OUTPUT_TOKENS * 2.718281828 ** (OUTPUT_SIGMA**2 / 2)
    total = 0.0
    for provider in market.providers:
        if provider.setup.is_honest:
            full_s = 2 * provider.setup.first_token_ms / 1_000 + mean * 1.5 / provider.setup.tokens_per_s
            total += provider.setup.slots / full_s
    return total


def scenario_of(cell: Cell) -> Scenario:
    """The market of one cell; its demand is set once the capacity is known."""
    return Scenario(
        name=f"comparison-{cell.rule}-{cell.load}",
        run=RunSpec(until_s=60 * cell.minutes, warmup_s=cell.warmup_s),
        nodes={
            "providers": NodeGroup(count=PROVIDERS, roles=("provider",)),
            "clients": NodeGroup(count=cell.clients, roles=("client",)),
        },
        net=NetSpec(latency_ms=(5.0, 75.0)),
        market=MarketSpec(
            selection=cell.rule,
            models=(ModelSpec(output_tokens=OUTPUT_TOKENS, output_sigma=OUTPUT_SIGMA),),
            providers={"providers": ProviderAgent(slots=SLOTS)},
            clients={
                "clients": ClientAgent(
                    rate_per_s=0.0,
                    value_nano=(5_000_000, 5_000_000),
                    value_of_time_nano_per_s=cell.value_of_time_nano_per_s,
                    deadline_s=120.0,
                    deposit_ton=50.0,
                )
            },
        ),
        chain=ChainSpec(),
    )


def run_cell(cell: Cell) -> dict[str, Any]:
    """The summary of one cell, with the honest providers' cheapest price beside what was paid."""
    parts: list[AdversaryPart] = []

    def prepare(market: Market) -> None:
        if cell.has_bad:
            specs = [AdversarySpec(kind=kind, count=count) for kind, count in BAD]
            parts.append(attach_to_market(market, specs))
        rate = capacity_per_s(market) * cell.load / cell.clients
        for demand in market.demands:
            demand.agent = _with_rate(demand.agent, rate)

    result, market = run_market(scenario_of(cell), seed=cell.seed, prepare=prepare)
    summary = dict(result.summary["market"])
    honest = [provider for provider in market.providers if provider.setup.is_honest]
    summary["cheapest_honest_nano"] = min(provider.price for provider in honest)
    done = [trade for trade in market.tally.trades if trade.record.status == "done"]
    paid = sum(trade.record.paid_nano for trade in done)
    fair = sum(
        min(
            provider.price * trade.order.tokens + provider.price // 4 * trade.order.prompt_tokens for provider in honest
        )
        / 1_000_000
        for trade in done
    )
    summary["price_over_cheapest_honest"] = round(paid / fair, 4) if fair else None
    summary["trace"] = result.trace_hash
    summary["events"] = result.events
    summary["adversaries"] = parts[0].summary()["adversaries"] if parts else []
    return summary


def _with_rate(agent: ClientAgent, rate: float) -> ClientAgent:
    return replace(agent, rate_per_s=rate)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; `--json FILE` keeps every cell."""
    parser = argparse.ArgumentParser(prog="python -m sim.econ.comparison", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--loads", default=",".join(str(load) for load in LOADS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--value-of-time", type=int, default=VALUE_OF_TIME_NANO_PER_S, help="nanoTON per second")
    parser.add_argument("--json", default="", help="a file for every cell's summary")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    heads = "load  rule            first p50   p95   p99   failed %  bad att. %  price/cheapest  wasted %  welfare"
    print(heads)
    for load in (float(word) for word in options.loads.split(",")):
        for rule in options.rules.split(","):
            cells = [
                run_cell(
                    Cell(
                        rule=rule,
                        load=load,
                        seed=seed,
                        minutes=options.minutes,
                        value_of_time_nano_per_s=options.value_of_time,
                    )
                )
                for seed in range(1, options.seeds + 1)
            ]
            rows += [{"rule": rule, "load": load, "seed": seed + 1, **cell} for seed, cell in enumerate(cells)]
            print(_line(load, rule, cells), flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)
        print(f"kept in {options.json}", file=sys.stderr)
    return 0


def _line(load: float, rule: str, cells: list[dict[str, Any]]) -> str:
    def mean(*path: str) -> float:
        values = []
        for cell in cells:
            value: Any = cell
            for word in path:
                value = value[word]
            if value is not None:
                values.append(float(value))
        return sum(values) / len(values) if values else float("nan")

    return (
        f"{load:4.2f}  {rule:14s}  {mean('first_token_s', 'p50'):9.2f} {mean('first_token_s', 'p95'):5.2f} "
        f"{mean('first_token_s', 'p99'):5.2f}  {100 * mean('failed_share'):9.2f}  "
        f"{100 * mean('bad_attempts_share'):10.1f}  {mean('price_over_cheapest_honest'):14.3f}  "
        f"{100 * mean('wasted_share'):8.2f}  {mean('welfare_share'):7.3f}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
