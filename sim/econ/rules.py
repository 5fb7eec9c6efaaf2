"""How a client chooses a provider: ours, which is `cocoon.market.selection` itself, and those it is compared with.

    pick = rule.choose(client, purchase)       # None: nobody, or nobody worth it

- `real`: the shipped selection (filter, cost, Thompson draw, three samples), with admission, hedges and first-hand
history. - `random`; `cheapest` (by price, ties by digest); `least-load` (by gossiped beacons); `power-of-two` (two at
random, the
  one with the lower peak-EWMA of its first token times its own requests in flight).
- `original`: as Telegram's Cocoon has it: a few proxies, each with what it saw itself; running requests × mean time of
  all that ended, failures included; price only as a ceiling.
- `full-information`: knows every engine's true state, speed and cost; the control case.

The others get the same retries at another provider; they have no breaker, no hedge and no conditional admission.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from cocoon.market.book import ListedOffer
from cocoon.market.selection import Choice, Wish, gather, select
from cocoon.types import SECOND_NS, TrustLevel, due_nano
from sim.econ.provider import ProviderPeer

if TYPE_CHECKING:
    from sim.econ.client import ClientPeer
    from sim.econ.purchase import Purchase

PROXIES: Final = 3  # of the original
DECAY_NS: Final = 600 * SECOND_NS  # of the original's mean time
FIRST_GUESS_S: Final = 0.5  # power-of-two: of a provider never asked
PEAK_GAIN: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """Whom to ask. `choice` is the shipped selection's own record, which replays."""

    listed: ListedOffer
    provider: ProviderPeer
    choice: Choice | None = None


class Rule(Protocol):
    """One per client; those of one proxy share what they saw."""

    has_care: bool
    """Conditional admission, hedges, and the first-hand history's breaker."""

    def choose(self, client: ClientPeer, purchase: Purchase) -> Pick | None:
        """Somebody who was not tried in this request, or None."""
        ...

    def noted(self, provider: int, *, first_s: float | None, total_s: float, is_good: bool, now: int) -> None:
        """How an attempt ended."""
        ...


def candidates(client: ClientPeer, purchase: Purchase) -> list[tuple[ListedOffer, ProviderPeer]]:
    """Offers of the model that were not tried, and are not dearer than the answer is worth; in a fixed order."""
    order = purchase.order
    found = []
    for listed in sorted(client.offers(order.model), key=lambda each: each.offer.digest):
        provider = client.directory[listed.offer.provider]
        if provider.number in purchase.excluded:
            continue
        price = due_nano(
            listed.offer.prices,
            input_tokens=purchase.prompt_tokens,
            cached_tokens=0,
            output_tokens=purchase.tokens_left,
        )
        if price <= order.value_nano - purchase.spent_nano:
            found.append((listed, provider))
    return found


class _Plain:
    has_care = False

    def choose(self, client: ClientPeer, purchase: Purchase) -> Pick | None:
        found = candidates(client, purchase)
        if not found:
            return None
        listed, provider = self._best(client, purchase, found)
        return Pick(listed=listed, provider=provider)

    def _best(
        self, client: ClientPeer, purchase: Purchase, found: list[tuple[ListedOffer, ProviderPeer]]
    ) -> tuple[ListedOffer, ProviderPeer]:
        raise NotImplementedError

    def noted(self, provider: int, *, first_s: float | None, total_s: float, is_good: bool, now: int) -> None:
        pass


class RandomRule(_Plain):
    """Anybody."""

    def _best(
        self, client: ClientPeer, purchase: Purchase, found: list[tuple[ListedOffer, ProviderPeer]]
    ) -> tuple[ListedOffer, ProviderPeer]:
        return client.dice.choice(found)


class CheapestRule(_Plain):
    """The lowest price of an output token."""

    def _best(
        self, client: ClientPeer, purchase: Purchase, found: list[tuple[ListedOffer, ProviderPeer]]
    ) -> tuple[ListedOffer, ProviderPeer]:
        return min(found, key=lambda pair: (pair[0].offer.prices.output_nano, pair[0].offer.digest))


class LeastLoadRule(_Plain):
    """What the beacons say; none counts as idle."""

    def _best(
        self, client: ClientPeer, purchase: Purchase, found: list[tuple[ListedOffer, ProviderPeer]]
    ) -> tuple[ListedOffer, ProviderPeer]:
        def load(pair: tuple[ListedOffer, ProviderPeer]) -> tuple[float, float]:
            beacon = pair[0].beacon
            said = 0.0 if beacon is None else (beacon.beacon.running + beacon.beacon.queued) / beacon.beacon.slots
            return said, client.dice.random()

        return min(found, key=load)


class PowerOfTwoRule(_Plain):
    """Two at random; the lower of peak-EWMA of the first token × (requests in flight + 1)."""

    def __init__(self) -> None:
        self._first_s: dict[int, float] = {}

    def _best(
        self, client: ClientPeer, purchase: Purchase, found: list[tuple[ListedOffer, ProviderPeer]]
    ) -> tuple[ListedOffer, ProviderPeer]:
        two = found if len(found) < 2 else client.dice.sample(found, 2)
        return min(
            two,
            key=lambda pair: (
                self._first_s.get(pair[1].number, FIRST_GUESS_S) * (client.inflight.get(pair[1].number, 0) + 1)
            ),
        )

    def noted(self, provider: int, *, first_s: float | None, total_s: float, is_good: bool, now: int) -> None:
        seen = total_s if first_s is None else first_s
        if not is_good:
            seen = max(seen, 2 * self._first_s.get(provider, FIRST_GUESS_S))
        known = self._first_s.get(provider)
        if known is None or seen > known:
            self._first_s[provider] = seen  # the peak counts at once
        else:
            self._first_s[provider] = (1 - PEAK_GAIN) * known + PEAK_GAIN * seen


@dataclass(slots=True)
class Proxy:
    """What one proxy of the original has seen: running requests, and the decayed mean time per provider."""

    running: dict[int, int] = field(default_factory=dict)
    total: dict[int, float] = field(default_factory=dict)
    count: dict[int, float] = field(default_factory=dict)
    at_ns: dict[int, int] = field(default_factory=dict)

    def weight(self, provider: int, now: int) -> float:
        """Lower is better."""
        decay = math.exp(-(now - self.at_ns.get(provider, now)) / DECAY_NS)
        count = self.count.get(provider, 0.0) * decay
        mean = self.total.get(provider, 0.0) * decay / count if count > 0.1 else 0.0
        return self.running.get(provider, 0) * mean


class OriginalRule(_Plain):
    """Running × mean time, at one of a few proxies."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy

    def _best(
        self, client: ClientPeer, purchase: Purchase, found: list[tuple[ListedOffer, ProviderPeer]]
    ) -> tuple[ListedOffer, ProviderPeer]:
        best = min(found, key=lambda pair: (self.proxy.weight(pair[1].number, client.now), pair[1].number))
        self.proxy.running[best[1].number] = self.proxy.running.get(best[1].number, 0) + 1
        return best

    def noted(self, provider: int, *, first_s: float | None, total_s: float, is_good: bool, now: int) -> None:
        proxy = self.proxy
        decay = math.exp(-(now - proxy.at_ns.get(provider, now)) / DECAY_NS)
        proxy.at_ns[provider] = now
        proxy.total[provider] = proxy.total.get(provider, 0.0) * decay + total_s
        proxy.count[provider] = proxy.count.get(provider, 0.0) * decay + 1
        proxy.running[provider] = max(0, proxy.running.get(provider, 0) - 1)


class FullInformationRule(_Plain):
    """What it would truly cost: the price, and the time that this engine would take from now."""

    def choose(self, client: ClientPeer, purchase: Purchase) -> Pick | None:
        """The best, if it is worth it."""
        found = [pair for pair in candidates(client, purchase) if pair[1].is_up and pair[1].setup.is_honest]
        if not found:
            return None
        listed, provider = self._best(client, purchase, found)
        if self._cost(purchase, listed, provider) > purchase.order.value_nano:
            return None
        return Pick(listed=listed, provider=provider)

    def _best(
        self, client: ClientPeer, purchase: Purchase, found: list[tuple[ListedOffer, ProviderPeer]]
    ) -> tuple[ListedOffer, ProviderPeer]:
        return min(found, key=lambda pair: (self._cost(purchase, *pair), pair[1].number))

    def _cost(self, purchase: Purchase, listed: ListedOffer, provider: ProviderPeer) -> float:
        price = due_nano(
            listed.offer.prices,
            input_tokens=purchase.prompt_tokens,
            cached_tokens=0,
            output_tokens=purchase.tokens_left,
        )
        seconds = provider.engine.expected_s(purchase.tokens_left)
        return price + purchase.order.value_of_time_nano_per_s * seconds


class RealRule:
    """The shipped selection."""

    has_care = True

    def choose(self, client: ClientPeer, purchase: Purchase) -> Pick | None:
        """As `cocoon.client` does it: candidates from the book with our own history, a fresh seed, a recorded
        choice."""
        order = purchase.order
        marked = {each.peer for each in client.directory.values() if client.marked.get(each.number, 0) > client.now}
        wish = Wish(
            model=order.model,
            trust_min=TrustLevel.OPEN,
            spend_max_nano=max(0, order.value_nano - purchase.spent_nano),
            prompt_tokens=purchase.prompt_tokens,
            output_tokens_max=purchase.tokens_left,
            output_tokens_expected=purchase.tokens_left,
            excluded_providers=frozenset(purchase.excluded_peers | marked),
            value_of_time_nano_per_s=order.value_of_time_nano_per_s,
        )
        listed = gather(client.offers(order.model), client.history)
        choice = select(listed, wish, now=client.now, seed=client.dice.bytes(32))
        chosen = choice.chosen
        purchase.choices.append(choice)
        if chosen is None or (purchase.is_first and chosen.cost_nano > order.value_nano):
            return None
        offer = chosen.candidate.listed
        return Pick(listed=offer, provider=client.directory[offer.offer.provider], choice=choice)

    def noted(self, provider: int, *, first_s: float | None, total_s: float, is_good: bool, now: int) -> None:
        """Its history is the client's own."""


def make_rule(name: str, *, client: int, proxies: list[Proxy]) -> Rule:
    """By the scenario's word. Clients of the original share `proxies`."""
    match name:
        case "real":
            return RealRule()
        case "random":
            return RandomRule()
        case "cheapest":
            return CheapestRule()
        case "least-load":
            return LeastLoadRule()
        case "power-of-two":
            return PowerOfTwoRule()
        case "original":
            return OriginalRule(proxies[client % len(proxies)])
        case "full-information":
            return FullInformationRule()
    raise ValueError(f"no selection rule {name!r}")
