"""One story: a small market over real routers, faults for some minutes, then calm, and every law is checked.

    told = tell(seed=7)              # Told(seed, violations, faults, requests, events, trace)

The seed decides everything: how many there are, what strikes when, who wants what. So a seed and a commit are all
that is needed to see a failure again, and `told.log` says what was done.
"""

from __future__ import annotations

import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from cocoon.types import SECOND_NS
from sim.chaos.faults import Faults, Rates
from sim.chaos.laws import Laws
from sim.econ.market import Market
from sim.econ.orders import Order
from sim.econ.purchase import Purchase
from sim.levels.building import Population, build_world
from sim.levels.market import attach_market
from sim.out import NullSink
from sim.rng import Stream, stream
from sim.scenario import (
    ChainSpec,
    ChaosSpec,
    ClientAgent,
    GossipSpec,
    MarketSpec,
    ModelSpec,
    NetSpec,
    NodeGroup,
    ProviderAgent,
    RunSpec,
    Scenario,
)

STORM_S: Final = (60, 150)  # how long faults come
CALM_S: Final = 150  # then nothing more happens, and everybody recovers
SLOW_STORM_S: Final = (4 * 3_600, 10 * 3_600)  # of a slow story: keys, offers and proofs grow old
SLOW_CALM_S: Final = 2_400
WEALTH: Final = ((5.0, 1.0), (5.0, 1.0), (5.0, 0.02), (5.0, 0.0), (0.003, 0.1))  # deposit and bond, in TON
LAST_S: Final = 75  # for the last orders
LAST_ROUNDS: Final = 2
SETTLE_S: Final = 60  # for the last claims
FEE_NANO: Final = 1_000  # so that claims are worth making
LOOK_S: Final = 1.0
ASK_AGAIN_S: Final = 40
WAKES_MAX: Final = 3_000  # events in one instant: more is a machine that asks again and again
EVENTS_MAX: Final = 3_000_000  # of one story


@dataclass(slots=True, kw_only=True)
class Told:
    """What came of it."""

    seed: int
    violations: list[str]
    faults: dict[str, int]
    log: list[str]
    requests: int
    done: int
    events: int
    trace: str
    virtual_s: float
    where: str = ""  # the traceback, when a machine raised


@dataclass(slots=True)
class _Guard:
    """Counts events within one instant."""

    at: int = -1
    count: int = 0


class Spinning(Exception):
    """A machine asks to be woken again and again in one instant."""


@dataclass(slots=True)
class Story:
    """See the file's head."""

    seed: int
    rates: Rates = field(default_factory=Rates)
    is_slow: bool = False  # hours, with a request every few minutes, and without routers: their heartbeats cost most
    is_poor: bool = field(default=False, init=False)  # accounts that run dry

    def scenario(self, rng: Stream) -> Scenario:
        """How many there are, and what they are like."""
        providers, clients, others = rng.between(2, 3), rng.between(2, 4), rng.between(1, 3)
        overlay = () if self.is_slow else ("gossip",)
        wealth = rng.choice(WEALTH)
        self.is_poor = wealth[0] < 1.0
        return Scenario(
            name=f"chaos-{self.seed}",
            run=RunSpec(until_s=1_000.0),
            nodes={
                "plain": NodeGroup(count=0 if self.is_slow else others, roles=("gossip",)),
                "provider": NodeGroup(count=providers, roles=(*overlay, "provider")),
                "client": NodeGroup(count=clients, roles=(*overlay, "client")),
            },
            net=NetSpec(latency_ms=(5.0, 80.0), loss=rng.choice((0.0, 0.0, 0.01))),
            gossip=None if self.is_slow else GossipSpec(publishers=0, dials=3),
            market=MarketSpec(
                models=(ModelSpec(prompt_tokens=40, output_tokens=120, output_sigma=0.8),),
                providers={"provider": ProviderAgent(slots=(2, 4), tokens_per_s=(60, 150))},
                clients={
                    "client": ClientAgent(
                        rate_per_s=0.0,
                        deposit_ton=wealth[0],
                        params={"bond_ton": wealth[1], "first_token_ms": 8_000, "stall_ms": 6_000},
                    )
                },
            ),
            chain=ChainSpec(fee_nano=FEE_NANO, finality_blocks=2, fail_rate=rng.choice((0.0, 0.1))),
            chaos=ChaosSpec(),  # nodes that lost their connections dial again
        )

    def tell(self) -> Told:
        """Run it. Never raises on a machine's account: what it raised is a violation."""
        rng = stream(self.seed, "story")
        scenario = self.scenario(rng)
        world = build_world(scenario, seed=self.seed)
        population = Population(world)
        part = attach_market(world, scenario, NullSink())
        market = part.market
        market.ask_again_ns = ASK_AGAIN_S * SECOND_NS
        laws = Laws(market, has_lying_disks=self.rates.lying_share > 0)
        laws.watch()
        faults = Faults(world, market, self.rates, rng=stream(self.seed, "chaos"))
        where = ""
        with ExitStack() as stack:
            stack.callback(part.stack.close)
            try:
                population.start_all()
                self._play(world, market, laws, faults, rng)
            except Exception as error:  # a supervision boundary: whatever a machine raises is what we look for
                laws.broken(f"a node is dead: {type(error).__name__}: {error}")
                where = traceback.format_exc()
        return Told(
            seed=self.seed,
            violations=laws.violations,
            faults=dict(sorted(faults.counts.items())),
            log=faults.log,
            requests=len(laws.issued),
            done=sum(trade.record.status == "done" for trade in market.tally.trades),
            events=world.kernel.events,
            trace=world.kernel.trace.hexdigest(),
            virtual_s=world.kernel.elapsed_s,
            where=where,
        )

    def _play(self, world: Any, market: Market, laws: Laws, faults: Faults, rng: Stream) -> None:
        kernel = world.kernel
        run = _Runner(kernel, laws)
        run.for_s(5)
        storm_s = rng.between(*(SLOW_STORM_S if self.is_slow else STORM_S))
        storm_ends_ns = kernel.now + storm_s * SECOND_NS
        faults.begin(storm_ends_ns)
        for client in market.clients:
            self._want(market, laws, client, stream(self.seed, "wants", client.number), storm_ends_ns)
        run.for_s(storm_s)
        faults.heal()
        run.for_s(SLOW_CALM_S if self.is_slow else CALM_S)
        laws.check_offers()
        last: dict[tuple[int, int], Purchase] = {}
        market.on_done.append(
            lambda purchase: (
                last.update({(purchase.client.number, purchase.order.only): purchase})
                if purchase.order.only >= 0
                else None
            )
        )
        wanted = [(client, provider) for provider in market.providers for client in market.clients]
        for _ in range(LAST_ROUNDS):  # who must reserve first is served once the chain shows it
            for client, provider in wanted:
                known = last.get((client.number, provider.number))
                if known is None or known.record.status != "done":
                    self._order(market, laws, client, rng, only=provider.number)
                run.for_s(LAST_S / len(wanted) / 2)
            run.for_s(LAST_S)
        if not self.is_poor:
            laws.check_served(last.values())
        if len(last) != len(wanted):
            laws.broken(f"{len(wanted) - len(last)} of the last requests did not end")
        laws.check_ended()
        market.settle()
        run.for_s(SETTLE_S)
        market.settle()  # a claim that was lost is made again
        run.for_s(SETTLE_S)
        laws.check_money()

    def _want(self, market: Market, laws: Laws, client: Any, rng: Stream, until_ns: int) -> None:
        wait_ns = int(rng.exponential(400.0 if self.is_slow else 4.0) * SECOND_NS)
        if market.env.now + wait_ns < until_ns:
            market.env.kernel.after(wait_ns, self._wants, market, laws, client, rng, until_ns)

    def _wants(self, market: Market, laws: Laws, client: Any, rng: Stream, until_ns: int) -> None:
        self._want(market, laws, client, rng, until_ns)
        if client.is_up:
            self._order(market, laws, client, rng)

    def _order(self, market: Market, laws: Laws, client: Any, rng: Stream, *, only: int = -1) -> None:
        market._orders += 1
        order = Order(
            number=market._orders,
            model=market.models[0].digest,
            prompt_tokens=rng.between(5, 80) if rng.chance(0.7) else rng.between(200, 3_000),
            tokens=40 if only >= 0 else max(8, min(600, round(rng.lognormal(120, 0.9)))),
            value_nano=2_000_000,
            value_of_time_nano_per_s=10_000,
            deadline_s=60.0,
            at_ns=market.env.now,
            only=only,
        )
        laws.issued.add(order.number)
        market.order(client, order)


class _Runner:
    """Runs the kernel a second at a time, looks at the laws, and stops machines that spin."""

    def __init__(self, kernel: Any, laws: Laws) -> None:
        self._kernel = kernel
        self._laws = laws

    def for_s(self, seconds: float) -> None:
        kernel = self._kernel
        until = kernel.now + int(seconds * SECOND_NS)
        while kernel.now < until:
            before = kernel.events
            slice_end = min(until, kernel.now + int((LOOK_S if seconds < SLOW_CALM_S else 10 * LOOK_S) * SECOND_NS))
            guard = _Guard()
            kernel.run(slice_end, on_progress=lambda now, guard=guard: _watch(guard, now))
            if kernel.events - before > EVENTS_MAX // 10 or kernel.events > EVENTS_MAX:
                raise Spinning(f"{kernel.events - before:,} events in a second")
            self._laws.look()


def _watch(guard: _Guard, now: int) -> None:
    """Called every few ten thousand events: an instant that has so many never ends."""
    if guard.at == now:
        raise Spinning("a machine asks to be woken again and again in one instant")
    guard.at = now


def tell(seed: int, rates: Rates | None = None, *, is_slow: bool = False) -> Told:
    """One story."""
    return Story(seed, rates or Rates(), is_slow).tell()
