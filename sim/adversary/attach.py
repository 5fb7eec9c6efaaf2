"""Puts a scenario's adversaries onto a world or a market: which nodes they take, when they act, and their summary.

part = attach_adversaries(world, scenario); part.summary()       # {"adversaries": [...]}
attach_to_market(market, scenario.adversaries)                   # a market without a world (`run_market`)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from cocoon.types import NANO_PER_TON, SECOND_NS
from sim.adversary.base import STAKE_YEAR_SHARE, Adversary, Knowledge, View
from sim.adversary.offers import Equivocation, OfferSpam
from sim.adversary.overlay import Censorship, ColdBoot, CovertFlash, Eclipse, OverlayAttack, Sybil
from sim.adversary.payers import BadPayer, OverIssue, Withhold, unpaid_nano
from sim.adversary.providers import PROVIDER_ATTACKS, LyingProvider, TokenInflation
from sim.econ.purchase import Purchase
from sim.errors import WorldInvalid
from sim.rng import stream
from sim.scenario import AdversarySpec, Scenario

PLAN_NS: Final = SECOND_NS
YEAR_S: Final = 365 * 86_400
_ATTACKS: Final[tuple[type[Adversary], ...]] = (
    *PROVIDER_ATTACKS,
    Withhold,
    OverIssue,
    OfferSpam,
    Equivocation,
    Sybil,
    ColdBoot,
    CovertFlash,
    Censorship,
    Eclipse,
)
KINDS: Final = {each.kind: each for each in _ATTACKS}


def make_adversary(spec: AdversarySpec, *, index: int) -> Adversary:
    """By the scenario's word. Raises `WorldInvalid`."""
    if spec.kind not in KINDS:
        raise WorldInvalid(f"adversary: no attack {spec.kind!r}; there are {', '.join(sorted(KINDS))}")
    return KINDS[spec.kind](spec, index=index)


class AdversaryPart:
    """All adversaries of a run."""

    def __init__(self, adversaries: Sequence[Adversary], *, market: Any, kernel: Any, seed: int) -> None:
        self.adversaries = list(adversaries)
        self.market = market
        self._kernel = kernel
        self._start_ns = kernel.now
        for adversary in self.adversaries:
            adversary.now = lambda: kernel.now
            adversary.from_ns = kernel.now + int(adversary.spec.at_s * SECOND_NS)
            if adversary.spec.until_s:
                adversary.until_ns = kernel.now + int(adversary.spec.until_s * SECOND_NS)
            kernel.at(adversary.from_ns, self._turn, adversary)
        if market is not None:
            self._of_node = {number: each for each in self.adversaries for number in each.nodes}
            market.on_done.append(self._bought)
        self._seed = seed

    def _turn(self, adversary: Adversary) -> None:
        if self._kernel.now >= adversary.until_ns:
            return
        adversary.act(adversary.plan(self._view(adversary)))
        self._kernel.after(PLAN_NS, self._turn, adversary)

    def _view(self, adversary: Adversary) -> View:
        heard: tuple[Any, ...] = ()
        everything = None
        if self.market is not None and adversary.knowledge is not Knowledge.LOCAL:
            heard = tuple(
                listed
                for client in self.market.clients
                if client.number in adversary.nodes
                for listed in client.book.listed(now=client.now)
            )
        if adversary.knowledge is Knowledge.OMNISCIENT:
            everything = self.market
        return View(now=self._kernel.now, own=tuple(adversary.nodes), heard=heard, everything=everything)

    def _bought(self, purchase: Purchase) -> None:
        """Harm done to one buyer, by whom it asked."""
        client_attack = self._of_node.get(purchase.client.number)
        for one in purchase._tries:
            adversary = self._of_node.get(one.provider.number)
            if adversary is None or client_attack is not None or not adversary.is_active:
                continue
            adversary.damage.count("attempts")
            is_answer = purchase.record.status == "done" and one.provider.number == purchase.record.provider
            if is_answer:
                continue
            ended_ns = one.ended_ns or purchase.record.end_ns
            seconds = max(0, ended_ns - one.began_ns) / SECOND_NS
            adversary.damage.time_nano += int(seconds * purchase.order.value_of_time_nano_per_s)
            adversary.damage.paid_nano += 0 if one.attempt is None else one.attempt.meter.due_nano
            status = purchase.record.status
            is_theirs = status == "wrong" and one.provider.number == purchase.record.provider
            if is_theirs or status in ("failed", "late"):
                adversary.damage.value_nano += purchase.order.value_nano

    def summary(self) -> dict[str, Any]:
        """`{"adversaries": [...]}`."""
        for adversary in self.adversaries:
            self._close(adversary)
        return {"adversaries": [adversary.summary() for adversary in self.adversaries]}

    def _close(self, adversary: Adversary) -> None:
        """What is known only at the end: stakes, debts."""
        if self.market is None:
            return
        elapsed_s = max(0, self._kernel.now - adversary.from_ns) / SECOND_NS
        for provider in self.market.providers:
            if provider.number in adversary.nodes and provider.setup.key_epoch:
                agent = self.market.spec.providers.get(provider.setup.group)
                stake = 0 if agent is None else int(agent.stake_ton * NANO_PER_TON)
                if isinstance(adversary, Equivocation) and self._is_proven(provider):
                    adversary.budget.spend("slashed", stake)
                    adversary.damage.count("slashed")
                else:
                    adversary.budget.spend("stake", int(stake * STAKE_YEAR_SHARE * elapsed_s / YEAR_S))
        if isinstance(adversary, BadPayer):
            for client in self.market.clients:
                if client.number in adversary.nodes:
                    adversary.damage.unpaid_nano += unpaid_nano(client, self.market)

    def _is_proven(self, provider: Any) -> bool:
        """Whether some honest client holds the proof: then somebody slashes, for half of it."""
        return any(
            provider.operator.public in client.book._shunned
            for client in self.market.clients
            if client.number not in self._of_node
        )


def attach_adversaries(world: Any, scenario: Scenario) -> AdversaryPart:
    """Onto a world of level 1, before any event. Raises `WorldInvalid`."""
    market = getattr(world, "market", None)
    adversaries = []
    taken: set[int] = set()
    for index, spec in enumerate(scenario.adversaries):
        adversary = make_adversary(spec, index=index)
        if market is None and not isinstance(adversary, OverlayAttack):
            raise WorldInvalid(f"adversary {spec.kind}: it attacks a market, and the scenario has none")
        if isinstance(adversary, Sybil):
            _add_nodes(world, adversary, spec, index)
        else:
            adversary.nodes = _choose(world.nodes, spec, adversary.takes, taken, seed=world.seed, index=index)
        taken.update(adversary.nodes)
        if isinstance(adversary, OverlayAttack):
            adversary.world = world
            for number in adversary.nodes:
                wrap = adversary.wrap
                if adversary.takes == "dht":
                    world.wrap(world.nodes[number], kad=wrap)
                else:
                    world.wrap(world.nodes[number], router=wrap)
        else:
            _bend_market(market, adversary)
        adversaries.append(adversary)
    _find_victims(world, market, adversaries)
    return AdversaryPart(adversaries, market=market, kernel=world.kernel, seed=world.seed)


def attach_to_market(market: Any, specs: Sequence[AdversarySpec]) -> AdversaryPart:
    """Onto a market that has not started. Overlay attacks need a world and raise `WorldInvalid`."""
    adversaries = []
    taken: set[int] = set()
    for index, spec in enumerate(specs):
        adversary = make_adversary(spec, index=index)
        if isinstance(adversary, OverlayAttack):
            raise WorldInvalid(f"adversary {spec.kind}: it attacks the overlay, and this market has none")
        peers = market.providers if adversary.takes == "provider" else market.clients
        numbers = [_Numbered(peer.number, peer.setup.group) for peer in peers]
        adversary.nodes = _choose(numbers, spec, None, taken, seed=market.env.seed, index=index)
        taken.update(adversary.nodes)
        _bend_market(market, adversary)
        adversaries.append(adversary)
    return AdversaryPart(adversaries, market=market, kernel=market.env.kernel, seed=market.env.seed)


class _Numbered:
    def __init__(self, number: int, group: str) -> None:
        self.number = number
        self.group = group
        self.roles: tuple[str, ...] = ()


def _choose(
    nodes: Sequence[Any], spec: AdversarySpec, role: str | None, taken: set[int], *, seed: int, index: int
) -> list[int]:
    fitting = [
        node.number
        for node in nodes
        if node.number not in taken
        and (not spec.group or node.group == spec.group)
        and (role is None or role in node.roles)
    ]
    count = spec.count or round(spec.share * len(fitting))
    if count > len(fitting):
        raise WorldInvalid(f"adversary {spec.kind}: {count} nodes wanted, {len(fitting)} are there to be taken")
    chosen = stream(seed, f"adversary {spec.kind}", index).sample(fitting, count)
    return sorted(chosen)


def _add_nodes(world: Any, adversary: Sybil, spec: AdversarySpec, index: int) -> None:
    groups = world.groups
    name = spec.group if spec.group in groups else next(iter(groups))
    count = spec.count or round(spec.share * len(groups[name]))
    roles = groups[name][0].roles if groups[name] else ("gossip",)
    roles = tuple(role for role in roles if role in ("gossip", "dht"))
    label = f"sybil {index}"
    for _ in range(count):
        node = world.add_node(label, roles)
        adversary.nodes.append(node.number)
    for topic in world.topics_of(groups[name][0]) if groups[name] else ():
        world.join_at_start(label, topic)
    adversary.rng = stream(world.seed, "sybil dials", index)


def _bend_market(market: Any, adversary: Adversary) -> None:
    adversary.market = market  # type: ignore[attr-defined]
    for place, provider in enumerate(market.providers):
        if provider.number not in adversary.nodes:
            continue
        provider.mark_dishonest()
        if isinstance(adversary, LyingProvider):
            adversary.rng = stream(market.env.seed, f"liar {adversary.kind}", provider.number)
            market.wrap_engine[place] = adversary.wrap
            provider.engine = provider._new_engine()
            provider.spec = adversary.wrap(provider.spec)
            if isinstance(adversary, TokenInflation):
                provider.on_bill = adversary.bill()
    for client in market.clients:
        if client.number in adversary.nodes:
            client.patience(is_honest=False)
            adversary.wrap(client)


def _find_victims(world: Any, market: Any, adversaries: Sequence[Adversary]) -> None:
    bad = {number for each in adversaries for number in each.nodes}
    for adversary in adversaries:
        if not isinstance(adversary, Censorship):
            continue
        if market is not None:
            victims = [world.nodes[each.number].peer for each in market.providers if each.number not in bad]
        else:
            share = adversary.param("victims", 0.2)
            honest = [node.peer for node in world.with_role("gossip") if node.number not in bad]
            victims = stream(world.seed, "victims").sample(honest, round(share * len(honest)))
        adversary.victims = frozenset(victims)
