"""The offer book: what this peer knows to be on offer, and its verdict on every message that gossip brings.

Checks run in the order of rule G1: size, shape, duplicate, time, the forwarder's token bucket, cached stake,
signature. Only what every honest peer judges alike is REJECTed; the rest is IGNOREd, which blames nobody. Nothing is
remembered of a message before its signatures hold, so a mangled first copy suppresses nothing: seq, rates, quota
and the memory of duplicates are touched only afterwards.

Per (operator, peer, model) the newest seq stands. A second digest for one slot is equivocation: the proof is kept
and emitted, the conflicting copy goes on (so that others see both), and the operator is shunned for an hour.

Memory is bounded in two pools (`table`). Offers whose stake is a cached chain fact have the large one; all others,
those that name a stake nobody looked up included, share the small one.

Not here: chain look-ups (facts are passed in), ranking (`selection`), our own offers (`publisher`).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ..errors import BadSignature, DecodeError, LimitExceeded, OfferInvalid
from ..ports import Verdict
from ..types import MILLISECOND_NS, NO_DIGEST, SECOND_NS, Digest, Network, PeerId
from ..wire import limits
from .beacon import (
    BEACON_LIFE_NS,
    VerifiedBeacon,
    parse_beacon,
    verify_parsed_beacon,
)
from .catalogue import ModelRef
from .effects import (
    BookEffect,
    DelistReason,
    Emit,
    EquivocationFound,
    Judgement,
    OfferDelisted,
    OfferListed,
    Persist,
    StakeWanted,
)
from .equivocation import EquivocationProof, SignedStatement
from .keys import shard_of
from .offer import OfferKey, ParsedOffer, VerifiedOffer, parse_offer, verify_parsed
from .rates import Buckets, Rate
from .table import BookLimits, Entry, OfferTable, statement_of

CLOCK_SKEW_NS: Final = 60 * SECOND_NS  # how far ahead of ours a sender's clock may be
OPERATOR_RATE: Final = Rate(interval_ns=4 * SECOND_NS, burst=64)  # all offers of one O; a full set at once
FORWARDER_OFFER_RATE: Final = Rate(interval_ns=SECOND_NS // 20, burst=400)  # two signatures of 0.1 ms each
FORWARDER_BEACON_RATE: Final = Rate(interval_ns=SECOND_NS // 100, burst=500)
FORWARDERS_MAX: Final = 1_024  # more neighbours than any node keeps
SEEN_MAX: Final = 16_384  # message hashes remembered: an hour of a large market's offers
SHUN_NS: Final = limits.OFFER_LIFE_MAX_S * SECOND_NS  # an equivocator's offers are all dead by then
SHUNNED_MAX: Final = 4_096
STAKES_WANTED_MAX: Final = 1_024  # asked for once each until forgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class StakeFact:
    """What the chain says of a stake contract; only proven state gets here."""

    operator: bytes
    key_epoch: int
    amount_nano: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedOffer:
    """An offer in force, as the book shows it."""

    offer: VerifiedOffer
    beacon: VerifiedBeacon | None  # not older than 30 s
    is_staked: bool  # its stake is a cached chain fact
    listed_ns: int

    @property
    def reputation_key(self) -> bytes:
        """Rule K7: the stake address once the chain confirmed that it is this operator's, else O. Never P."""
        return self.offer.offer.stake if self.is_staked else self.offer.offer.operator


class OfferBook:
    """One per node. `receive_offer` and `receive_beacon` are the validators of the gossip topics."""

    def __init__(self, network: Network, *, limits: BookLimits | None = None) -> None:
        self._network = network
        limits = limits or BookLimits()
        self._table = OfferTable(limits)
        self._stakes: dict[bytes, StakeFact] = {}
        self._stakes_wanted: OrderedDict[bytes, None] = OrderedDict()
        self._shunned: OrderedDict[bytes, int] = OrderedDict()
        self._seen: OrderedDict[bytes, Verdict] = OrderedDict()
        self._ungossiped: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        self._operators: Buckets[bytes] = Buckets(
            OPERATOR_RATE, count_max=2 * (limits.staked_offers_max + limits.unstaked_offers_max)
        )
        self._offer_forwarders: Buckets[PeerId] = Buckets(FORWARDER_OFFER_RATE, count_max=FORWARDERS_MAX)
        self._beacon_forwarders: Buckets[PeerId] = Buckets(FORWARDER_BEACON_RATE, count_max=FORWARDERS_MAX)

    def __len__(self) -> int:
        return len(self._table)

    # --- what is on offer --------------------------------------------------------------------------------

    def listed(self, model: Digest | None = None, *, now: int) -> tuple[ListedOffer, ...]:
        """Offers in force, of one model or of all."""
        return tuple(
            _show(entry, now)
            for entry in self._table.entries(model)
            if entry.offer.offer.not_before_s * SECOND_NS <= now + CLOCK_SKEW_NS and now < entry.offer.expiry_ns
        )

    def find(self, digest: Digest, *, now: int) -> ListedOffer | None:
        """The listed offer with this digest."""
        return next((listed for listed in self.listed(now=now) if listed.offer.digest == digest), None)

    def models(self) -> tuple[ModelRef, ...]:
        """Every (name, digest) that some offer uses: suggestions only (rule G5), most offered first."""
        counts: dict[ModelRef, int] = {}
        for entry in self._table.entries():
            ref = ModelRef(name=entry.offer.offer.model_name, digest=entry.offer.model)
            counts[ref] = counts.get(ref, 0) + 1
        return tuple(sorted(counts, key=lambda ref: (-counts[ref], ref.name, ref.digest)))

    # --- verdicts ----------------------------------------------------------------------------------------

    def receive_offer(self, forwarder: PeerId, message: bytes, *, now: int, shard: int | None = None) -> Judgement:
        """Judge an encoded `SignedOffer` from a neighbour, a reply or ourselves. Never raises.

        `shard` is that of the topic it came on when gossip brought it, None when we asked for it.
        """
        if len(message) > limits.SIGNED_OFFER_BYTES_MAX:
            return Judgement(verdict=Verdict.REJECT, reason="size")
        # The hash first, though G1 puts shape before it: shape depends on the bytes alone, so the verdict is the
        # same, and most copies that a mesh brings are duplicates.
        message_id = hashlib.sha256(message).digest()
        if (again := self._seen_before(message_id, shard, now)) is not None:
            return again
        try:
            parsed = parse_offer(message, network=self._network)
        except (DecodeError, LimitExceeded, OfferInvalid):
            return Judgement(verdict=Verdict.REJECT, reason="shape")
        offer = parsed.offer
        if shard is not None and shard_of(offer.model) != shard:
            return Judgement(verdict=Verdict.REJECT, reason="shard")
        if offer.not_before_s * SECOND_NS > now + CLOCK_SKEW_NS:
            return _ignore("early")
        if offer.expiry_s * SECOND_NS <= now:
            return _ignore("expired")
        if self._shunned.get(offer.operator, 0) > now:
            return _ignore("shunned")
        entry = self._table.get((offer.operator, offer.peer, offer.model))
        known = entry.statements.get(parsed.slot) if entry is not None else None
        if known is not None and known.digest == parsed.digest:
            return _ignore("duplicate")
        if known is None and entry is not None and offer.seq <= entry.offer.offer.seq:
            return _ignore("stale")
        if not self._offer_forwarders.take(forwarder, now):
            return _ignore("forwarder_rate")
        fact = self._stakes.get(offer.stake)
        if fact is not None and not _is_stake_of(parsed, fact):
            return _ignore("stake")
        # The rate bounds what is forwarded. Whoever restarts often is found all the same by asking it.
        is_within_rate = entry is None or entry.offer_bucket.has_token(now)
        if known is None:
            if shard is not None and not is_within_rate:
                return _ignore("offer_rate")
            if not self._operators.has_token(offer.operator, now):
                return _ignore("operator_rate")
            if entry is None and not self._table.has_room(offer.operator, forwarder, is_staked=fact is not None):
                return _ignore("full")
        try:
            verified = verify_parsed(parsed)
        except BadSignature:
            self._remember(message_id, Verdict.REJECT)
            return Judgement(verdict=Verdict.REJECT, reason="signature")
        self._remember(message_id, Verdict.IGNORE)
        if shard is None and (is_within_rate or known is not None):
            self._await_gossip(message_id, offer.model, verified.expiry_ns)
        if known is not None:
            return self._equivocated(verified, known, now)
        return self._list(verified, forwarder, is_staked=fact is not None, now=now)

    def receive_beacon(self, forwarder: PeerId, message: bytes, *, now: int, shard: int | None = None) -> Judgement:
        """Judge an encoded `SignedBeacon`. Never raises. Only beacons of listed offers are taken."""
        if len(message) > limits.SIGNED_BEACON_BYTES_MAX:
            return Judgement(verdict=Verdict.REJECT, reason="size")
        message_id = hashlib.sha256(message).digest()
        if (again := self._seen_before(message_id, shard, now)) is not None:
            return again
        try:
            parsed = parse_beacon(message, network=self._network)
        except (DecodeError, LimitExceeded, OfferInvalid):
            return Judgement(verdict=Verdict.REJECT, reason="shape")
        beacon = parsed.beacon
        if shard is not None and shard_of(beacon.model_prefix) != shard:
            return Judgement(verdict=Verdict.REJECT, reason="shard")
        at_ns = beacon.at_ms * MILLISECOND_NS
        if at_ns > now + CLOCK_SKEW_NS:
            return _ignore("early")
        if at_ns + BEACON_LIFE_NS <= now:
            return _ignore("expired")
        entry = self._table.of_beacon(beacon.operator, beacon.peer, beacon.model_prefix)
        if entry is None:
            return _ignore("unknown_offer")
        if entry.beacon is not None and beacon.at_ms <= entry.beacon.beacon.at_ms:
            return _ignore("stale")
        if not self._beacon_forwarders.take(forwarder, now):
            return _ignore("forwarder_rate")
        if not entry.beacon_bucket.has_token(now):
            return _ignore("beacon_rate")
        try:
            verified = verify_parsed_beacon(parsed)
        except BadSignature:
            self._remember(message_id, Verdict.REJECT)
            return Judgement(verdict=Verdict.REJECT, reason="signature")
        self._remember(message_id, Verdict.IGNORE)
        if shard is None:
            self._await_gossip(message_id, beacon.model_prefix, verified.expiry_ns)
        entry.beacon_bucket.take(now)
        entry.beacon = verified
        return Judgement(verdict=Verdict.ACCEPT, reason="new")

    # --- the world changes -------------------------------------------------------------------------------

    def stakes_changed(self, facts: Mapping[bytes, StakeFact | None], *, now: int) -> tuple[BookEffect, ...]:
        """Chain facts came in; None says that there is no such stake. Offers that contradict them go."""
        effects: list[BookEffect] = []
        for stake, fact in facts.items():
            self._stakes_wanted.pop(stake, None)
            if stake == NO_DIGEST:
                continue
            if fact is None:
                self._stakes.pop(stake, None)
            else:
                self._stakes[stake] = fact
        for entry in tuple(self._table.entries()):
            stake = entry.offer.offer.stake
            if stake not in facts or stake == NO_DIGEST:
                continue
            fact = facts[stake]
            if fact is None or not _is_stake_of(entry.offer, fact):
                effects.append(self._delist(entry.offer.key, DelistReason.EVICTED))
            else:
                self._table.set_staked(entry, True)
        return tuple(effects)

    def deadline(self) -> int | None:
        """When `on_time` has something to do."""
        return self._table.deadline()

    def on_time(self, *, now: int) -> tuple[BookEffect, ...]:
        """Drop what expired."""
        effects: list[BookEffect] = []
        while (entry := self._table.pop_expired(now)) is not None:
            effects.append(_delisted(entry.offer, DelistReason.EXPIRED))
        for buckets in (self._offer_forwarders, self._beacon_forwarders):
            buckets.forget_full(now)
        self._operators.forget_full(now)
        while self._shunned and next(iter(self._shunned.values())) <= now:
            self._shunned.popitem(last=False)
        return tuple(effects)

    # --- inside ------------------------------------------------------------------------------------------

    def _seen_before(self, message_id: bytes, shard: int | None, now: int) -> Judgement | None:
        asked = self._ungossiped.get(message_id)
        if asked is not None and asked[0] == shard:
            del self._ungossiped[message_id]
            if now < asked[1]:
                return Judgement(verdict=Verdict.ACCEPT, reason="asked_before")
        verdict = self._seen.get(message_id)
        return None if verdict is None else Judgement(verdict=verdict, reason="duplicate")

    def _await_gossip(self, message_id: bytes, model: bytes, expiry_ns: int) -> None:
        """We learned this by asking. When gossip brings it as well, it goes on to our neighbours, once."""
        self._ungossiped[message_id] = (shard_of(model), expiry_ns)
        if len(self._ungossiped) > SEEN_MAX:
            self._ungossiped.popitem(last=False)

    def _remember(self, message_id: bytes, verdict_of_copies: Verdict) -> None:
        self._seen[message_id] = verdict_of_copies
        if len(self._seen) > SEEN_MAX:
            self._seen.popitem(last=False)

    def _list(self, offer: VerifiedOffer, forwarder: PeerId, *, is_staked: bool, now: int) -> Judgement:
        effects: list[BookEffect] = []
        operator = offer.offer.operator
        entry = self._table.get(offer.key)
        if entry is None:
            victim = self._table.victim(operator, forwarder, is_staked=is_staked)
            if victim is not None:
                effects.append(self._delist(victim, DelistReason.EVICTED))
            entry = Entry(offer=offer, forwarder=forwarder, is_staked=is_staked, listed_ns=now)
            self._table.add(entry)
        else:
            effects.append(_delisted(entry.offer, DelistReason.REPLACED))
            self._table.renew(entry, offer, is_staked=is_staked, now=now)
        entry.remember_statement()
        entry.offer_bucket.take(now)
        self._operators.take(operator, now)
        effects.append(Emit(event=OfferListed(offer=offer)))
        stake = offer.offer.stake
        if not is_staked and stake != NO_DIGEST and stake not in self._stakes_wanted:
            self._stakes_wanted[stake] = None
            if len(self._stakes_wanted) > STAKES_WANTED_MAX:
                self._stakes_wanted.popitem(last=False)
            effects.append(Emit(event=StakeWanted(stake=stake)))
        return Judgement(verdict=Verdict.ACCEPT, reason="new", effects=tuple(effects))

    def _equivocated(self, offer: VerifiedOffer, known: SignedStatement, now: int) -> Judgement:
        operator = offer.offer.operator
        proof = EquivocationProof(
            network=self._network,
            operator=operator,
            slot=offer.slot,
            first=known,
            second=statement_of(offer),
        )
        effects: list[BookEffect] = [Persist(proof=proof)]
        effects += [self._delist(key, DelistReason.EQUIVOCATED) for key in self._table.keys_of(operator)]
        self._shunned[operator] = now + SHUN_NS
        self._shunned.move_to_end(operator)
        if len(self._shunned) > SHUNNED_MAX:
            self._shunned.popitem(last=False)
        effects.append(Emit(event=EquivocationFound(proof=proof)))
        return Judgement(verdict=Verdict.ACCEPT, reason="equivocation", effects=tuple(effects))

    def _delist(self, key: OfferKey, reason: DelistReason) -> Emit:
        return _delisted(self._table.remove(key).offer, reason)


def _ignore(reason: str) -> Judgement:
    return Judgement(verdict=Verdict.IGNORE, reason=reason)


def _show(entry: Entry, now: int) -> ListedOffer:
    beacon = entry.beacon if entry.beacon is not None and now < entry.beacon.expiry_ns else None
    return ListedOffer(offer=entry.offer, beacon=beacon, is_staked=entry.is_staked, listed_ns=entry.listed_ns)


def _delisted(offer: VerifiedOffer, reason: DelistReason) -> Emit:
    return Emit(event=OfferDelisted(digest=offer.digest, operator=offer.offer.operator, reason=reason))


def _is_stake_of(offer: ParsedOffer | VerifiedOffer, fact: StakeFact) -> bool:
    return offer.offer.operator == fact.operator and offer.offer.key_epoch == fact.key_epoch and fact.amount_nano > 0
