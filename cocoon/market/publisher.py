"""A provider's side of the market: when its offers are renewed, its beacons sent and its DHT keys announced.

An offer lives an hour and is renewed at half its life, give or take 20 %, so that providers do not all speak at once;
a changed spec renews at once, but never twice within 30 seconds, which is what peers' books take (`book`). A
beacon goes out when the load changed, at most every 5 seconds. DHT keys are announced when the hour turns, the next
hour's ten minutes early (rule G2), and again every half hour, because records fade.

Every digest that was published stays honoured until it expires: `find` gives it for an `Open` that names it.

Making an offer takes a seq from the store and two signatures, which wait on the world, so the machine asks for it
(`PrepareOffer`) and gets the result through `prepared` or `failed`. Not here: any signature of O, and the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ..errors import LocalProtocolError
from ..types import SECOND_NS, Digest, Network
from ..wire import limits
from ..wire.messages import OffersQuery, OffersReply
from .beacon import BEACON_LIFE_NS, Load, make_beacon
from .effects import PrepareOffer, Provide, Publish, PublisherEffect
from .keys import (
    EARLY_S,
    HOUR_S,
    NO_BLOCKS,
    hour_of,
    load_topic,
    model_keys,
    offers_topic,
    provide_hours,
    shard_of,
)
from .offer import OfferSpec, VerifiedOffer

OFFER_LIFE_S: Final = limits.OFFER_LIFE_MAX_S
BACKDATE_S: Final = 30  # so that a peer whose clock is a little behind takes the offer at once
RENEW_SPREAD: Final = 0.2  # of half the life
OFFER_INTERVAL_NS: Final = 31 * SECOND_NS  # peers allow one per 30 s
BEACON_INTERVAL_NS: Final = 5 * SECOND_NS
RETRY_FIRST_NS: Final = 2 * SECOND_NS  # after a failed preparation; doubles up to a minute
RETRY_MAX_NS: Final = 60 * SECOND_NS
PROVIDE_AGAIN_NS: Final = 1_800 * SECOND_NS
MODELS_MAX: Final = limits.OFFERS_REPLY_OFFERS_MAX
HONOURED_MAX: Final = 128  # per model: an hour of offers at one per 30 s, and some


@dataclass(slots=True, kw_only=True)
class _Line:
    """One model that we offer."""

    spec: OfferSpec
    next_offer_ns: int
    preparing: bool = False
    preparing_spec: OfferSpec | None = None
    failures: int = 0
    published_ns: int | None = None
    offers: list[VerifiedOffer] = field(default_factory=list)  # oldest first, the last one is current
    load: Load | None = None
    beacon_due: bool = False
    beacon_sent_ns: int | None = None
    beacon: bytes = b""
    provided: set[int] = field(default_factory=set)  # hours
    provided_ns: int = 0


class OfferPublisher:
    """One per provider. `sign_as_peer` is P's signature (`Network.sign`), `uniform` gives numbers in [0, 1)."""

    def __init__(
        self,
        network: Network,
        *,
        peer: bytes,
        operator: bytes,
        sign_as_peer: Callable[[bytes], bytes],
        uniform: Callable[[], float],
    ) -> None:
        self._network = network
        self._peer = peer
        self._operator = operator
        self._sign_as_peer = sign_as_peer
        self._uniform = uniform
        self._lines: dict[Digest, _Line] = {}
        self._block_hashes: Mapping[int, bytes] = NO_BLOCKS

    # --- what we offer -----------------------------------------------------------------------------------

    def offer(self, spec: OfferSpec, *, now: int) -> tuple[PublisherEffect, ...]:
        """Offer this model from now on, or change what is offered. Raises `LocalProtocolError` beyond 64 models."""
        line = self._lines.get(spec.model)
        if line is None:
            if len(self._lines) >= MODELS_MAX:
                raise LocalProtocolError(f"a peer offers at most {MODELS_MAX} models")
            self._lines[spec.model] = _Line(spec=spec, next_offer_ns=now)
        elif line.spec != spec:
            line.spec = spec
            earliest = now if line.published_ns is None else line.published_ns + OFFER_INTERVAL_NS
            line.next_offer_ns = min(line.next_offer_ns, max(now, earliest))
        return self.on_time(now=now)

    def withdraw(self, model: Digest) -> None:
        """Renew no more. What was published is honoured by nobody any longer, and fades within the hour."""
        self._lines.pop(model, None)

    def prepared(self, offer: VerifiedOffer, *, now: int) -> tuple[PublisherEffect, ...]:
        """The offer that `PrepareOffer` asked for. Publishes it."""
        line = self._lines.get(offer.model)
        if line is None:
            return ()  # withdrawn meanwhile
        line.preparing = False
        line.failures = 0
        line.offers = [each for each in line.offers if each.expiry_ns > now][-(HONOURED_MAX - 1) :]
        line.offers.append(offer)
        line.published_ns = now
        half_ns = (offer.expiry_ns - now) // 2
        spread = 1 + RENEW_SPREAD * (2 * self._uniform() - 1)
        line.next_offer_ns = now + max(OFFER_INTERVAL_NS, int(half_ns * spread))
        if line.preparing_spec != line.spec:  # changed while it was being signed
            line.next_offer_ns = now + OFFER_INTERVAL_NS
        topic = offers_topic(self._network, shard_of(offer.model))
        return (Publish(topic=topic, data=offer.message), *self.on_time(now=now))

    def failed(self, model: Digest, *, now: int) -> None:
        """The offer could not be prepared; it is tried again, later each time."""
        line = self._lines.get(model)
        if line is not None:
            line.preparing = False
            line.next_offer_ns = now + min(RETRY_FIRST_NS << min(line.failures, 16), RETRY_MAX_NS)
            line.failures += 1

    def load_changed(self, model: Digest, load: Load, *, now: int) -> tuple[PublisherEffect, ...]:
        """How busy we are; a beacon follows when that is news."""
        line = self._lines.get(model)
        if line is None or line.load == load:
            return ()
        line.load = load
        line.beacon_due = True
        return self.on_time(now=now)

    def blocks_known(self, block_hashes: Mapping[int, bytes]) -> None:
        """Masterchain block hashes by hour, to mix into DHT keys (rule G2); keys are announced anew."""
        self._block_hashes = dict(block_hashes)
        for line in self._lines.values():
            line.provided.clear()

    # --- what others ask ---------------------------------------------------------------------------------

    def current(self, model: Digest, *, now: int) -> VerifiedOffer | None:
        """The newest offer of a model, if it is still in force."""
        line = self._lines.get(model)
        if line is None or not line.offers or line.offers[-1].expiry_ns <= now:
            return None
        return line.offers[-1]

    def find(self, digest: Digest, *, now: int) -> VerifiedOffer | None:
        """An offer that we published and that has not expired, current or not: its price still holds."""
        for line in self._lines.values():
            for offer in reversed(line.offers):
                if offer.digest == digest:
                    return offer if offer.expiry_ns > now else None
        return None

    def answer(self, query: OffersQuery, *, now: int) -> OffersReply:
        """The reply on `/cocoon/offers/1`: our current offers and beacons."""
        offers, beacons = [], []
        for model, line in self._lines.items():
            current = self.current(model, now=now)
            if current is None or (query.model and query.model != model):
                continue
            offers.append(current.message)
            if line.beacon_sent_ns is not None and now < line.beacon_sent_ns + BEACON_LIFE_NS:
                beacons.append(line.beacon)
        return OffersReply(offers=offers, beacons=beacons)

    # --- time --------------------------------------------------------------------------------------------

    def deadline(self) -> int | None:
        """When `on_time` has something to do."""
        times: list[int] = []
        for line in self._lines.values():
            if not line.preparing:
                times.append(line.next_offer_ns)
            if line.offers:
                times.append(self._next_provide_ns(line))
                if line.beacon_due:
                    times.append(self._next_beacon_ns(line))
        return min(times, default=None)

    def on_time(self, *, now: int) -> tuple[PublisherEffect, ...]:
        """Whatever is due."""
        effects: list[PublisherEffect] = []
        for model, line in self._lines.items():
            if not line.preparing and line.next_offer_ns <= now:
                line.preparing = True
                line.preparing_spec = line.spec
                start_s = now // SECOND_NS - BACKDATE_S
                effects.append(PrepareOffer(spec=line.spec, not_before_s=start_s, expiry_s=start_s + OFFER_LIFE_S))
            if self.current(model, now=now) is None:  # peers take a beacon only of an offer that they hold
                line.offers.clear()
                continue
            if self._next_provide_ns(line) <= now:
                effects.append(self._provide(model, line, now))
            if line.beacon_due and self._next_beacon_ns(line) <= now:
                effects.append(self._send_beacon(model, line, now))
        return tuple(effects)

    def _next_beacon_ns(self, line: _Line) -> int:
        return 0 if line.beacon_sent_ns is None else line.beacon_sent_ns + BEACON_INTERVAL_NS

    def _send_beacon(self, model: Digest, line: _Line, now: int) -> Publish:
        assert line.load is not None
        line.beacon = make_beacon(
            line.load,
            network=self._network,
            peer=self._peer,
            operator=self._operator,
            model=model,
            now=now,
            sign_as_peer=self._sign_as_peer,
        )
        line.beacon_due = False
        line.beacon_sent_ns = now
        return Publish(topic=load_topic(self._network, shard_of(model)), data=line.beacon)

    def _next_provide_ns(self, line: _Line) -> int:
        """At once, when the keys of the next hour are due, or when the records fade."""
        if not line.provided:
            return 0
        last_hour = max(line.provided)
        return min((((last_hour + 1) * HOUR_S) - EARLY_S) * SECOND_NS, line.provided_ns + PROVIDE_AGAIN_NS)

    def _provide(self, model: Digest, line: _Line, now: int) -> Provide:
        hours = provide_hours(now)
        line.provided = {hour for hour in (*line.provided, *hours) if hour >= hour_of(now)}
        line.provided_ns = now
        return Provide(
            keys=tuple(
                key
                for hour in hours
                for key in model_keys(self._network, model, hour, block_hash=self._block_hashes.get(hour, b""))
            )
        )
