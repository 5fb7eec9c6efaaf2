"""The memory of the offer book: entries, their indices and deadlines, and whose place a newcomer takes.

Two pools with their own bounds: offers whose stake is a cached chain fact, and all others. A full pool makes room
at the cost of whoever holds at least two more places than the newcomer would: first by operator, then by the
neighbour that brought the offers.

Not here: any judgement of a message (`book`). Everything that gets in is verified.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from ..types import SECOND_NS, Digest, PeerId
from .beacon import MODEL_PREFIX_BYTES, VerifiedBeacon
from .equivocation import SignedStatement
from .offer import OfferKey, VerifiedOffer
from .rates import Bucket, Rate

OFFER_RATE: Final = Rate(interval_ns=30 * SECOND_NS, burst=2)  # per (O, P, model); 2: arrival times jitter
BEACON_RATE: Final = Rate(interval_ns=5 * SECOND_NS, burst=2)
STATEMENTS_PER_OFFER_MAX: Final = 8  # slots remembered per (O, P, model), against equivocation in older seqs
_EXPIRIES_SLACK: Final = 64  # renewals leave their old deadlines behind; beyond four per entry and this they go


@dataclass(frozen=True, slots=True, kw_only=True)
class BookLimits:
    """How much the book holds. An offer takes about 4.3 KB as objects (measured; see the README)."""

    staked_offers_max: int = 3_072
    unstaked_offers_max: int = 1_024  # the "small quota" of `design.md` §4
    staked_offers_per_operator_max: int = 64
    unstaked_offers_per_operator_max: int = 16


@dataclass(slots=True, kw_only=True)
class Entry:
    """The current offer of one (operator, peer, model), and what is remembered beside it."""

    offer: VerifiedOffer
    forwarder: PeerId  # who brought this key first; it is charged for the place
    is_staked: bool
    listed_ns: int
    beacon: VerifiedBeacon | None = None
    offer_bucket: Bucket = field(default_factory=lambda: Bucket(OFFER_RATE))
    beacon_bucket: Bucket = field(default_factory=lambda: Bucket(BEACON_RATE))
    statements: OrderedDict[Digest, SignedStatement] = field(default_factory=OrderedDict)  # by slot

    def remember_statement(self) -> None:
        """Keep what O signed for the current slot."""
        self.statements[self.offer.slot] = statement_of(self.offer)
        if len(self.statements) > STATEMENTS_PER_OFFER_MAX:
            self.statements.popitem(last=False)


def statement_of(offer: VerifiedOffer) -> SignedStatement:
    """What O signed for this offer's slot."""
    return SignedStatement(
        stake=offer.offer.stake,
        key_epoch=offer.offer.key_epoch,
        digest=offer.digest,
        signature=offer.signature,
    )


class OfferTable:
    """Entries by (operator, peer, model), within the limits."""

    def __init__(self, limits: BookLimits) -> None:
        self._limits = limits
        self._entries: dict[OfferKey, Entry] = {}
        self._by_model: dict[Digest, dict[OfferKey, None]] = {}
        self._by_operator: dict[bytes, dict[OfferKey, None]] = {}
        self._by_prefix: dict[tuple[bytes, bytes, bytes], OfferKey] = {}
        self._unstaked = 0
        self._expiries: list[tuple[int, OfferKey, Digest]] = []

    def __len__(self) -> int:
        return len(self._entries)

    # --- looking -----------------------------------------------------------------------------------------

    def get(self, key: OfferKey) -> Entry | None:
        """The entry of this key."""
        return self._entries.get(key)

    def entries(self, model: Digest | None = None) -> Iterable[Entry]:
        """All, or those of one model."""
        if model is None:
            return self._entries.values()
        return (self._entries[key] for key in self._by_model.get(model, ()))

    def keys_of(self, operator: bytes) -> tuple[OfferKey, ...]:
        """What this operator holds."""
        return tuple(self._by_operator.get(operator, ()))

    def of_beacon(self, operator: bytes, peer: bytes, model_prefix: bytes) -> Entry | None:
        """The entry that a beacon speaks of."""
        key = self._by_prefix.get((operator, peer, model_prefix))
        return None if key is None else self._entries[key]

    def deadline(self) -> int | None:
        """When the next entry expires."""
        while self._expiries and not self._is_live(self._expiries[0]):
            heapq.heappop(self._expiries)
        return self._expiries[0][0] if self._expiries else None

    # --- changing ----------------------------------------------------------------------------------------

    def add(self, entry: Entry) -> None:
        """A new key; there must be room."""
        key = entry.offer.key
        operator, _, model = key
        self._entries[key] = entry
        self._by_model.setdefault(model, {})[key] = None
        self._by_operator.setdefault(operator, {})[key] = None
        self._by_prefix[_prefix_key(key)] = key
        self._unstaked += not entry.is_staked
        self._watch(entry)

    def renew(self, entry: Entry, offer: VerifiedOffer, *, is_staked: bool, now: int) -> None:
        """A newer offer for a key that is there."""
        self.set_staked(entry, is_staked)
        entry.offer, entry.listed_ns = offer, now
        self._watch(entry)

    def set_staked(self, entry: Entry, is_staked: bool) -> None:
        """Move it to the other pool if need be."""
        self._unstaked += entry.is_staked - is_staked
        entry.is_staked = is_staked

    def remove(self, key: OfferKey) -> Entry:
        """Take it out; it must be there."""
        entry = self._entries.pop(key)
        operator, _, model = key
        self._unstaked -= not entry.is_staked
        for index, name in ((self._by_model, model), (self._by_operator, operator)):
            del index[name][key]
            if not index[name]:
                del index[name]
        if self._by_prefix.get(_prefix_key(key)) == key:
            del self._by_prefix[_prefix_key(key)]
        return entry

    def pop_expired(self, now: int) -> Entry | None:
        """Take out one entry whose time is over, if there is one."""
        due = self.deadline()
        if due is None or due > now:
            return None
        _, key, _ = heapq.heappop(self._expiries)
        return self.remove(key)

    # --- room --------------------------------------------------------------------------------------------

    def has_room(self, operator: bytes, forwarder: PeerId, *, is_staked: bool) -> bool:
        """Whether a new key of this operator may enter, perhaps at another's cost."""
        own_max = (
            self._limits.staked_offers_per_operator_max if is_staked else self._limits.unstaked_offers_per_operator_max
        )
        if len(self._by_operator.get(operator, ())) >= own_max:
            return False
        return not self._is_full(is_staked) or self.victim(operator, forwarder, is_staked=is_staked) is not None

    def victim(self, operator: bytes, forwarder: PeerId, *, is_staked: bool) -> OfferKey | None:
        """Whose place the newcomer takes; None when there is room, or nobody who holds clearly more."""
        if not self._is_full(is_staked):
            return None
        by_operator: dict[bytes, int] = {}
        by_forwarder: dict[PeerId, int] = {}
        for key, entry in self._entries.items():
            if entry.is_staked == is_staked:
                by_operator[key[0]] = by_operator.get(key[0], 0) + 1
                by_forwarder[entry.forwarder] = by_forwarder.get(entry.forwarder, 0) + 1
        largest = max(by_operator, key=lambda each: by_operator[each])
        if by_operator[largest] > by_operator.get(operator, 0) + 1:
            return self._soonest(is_staked, operator=largest)
        busiest = max(by_forwarder, key=lambda each: by_forwarder[each])
        if by_forwarder[busiest] > by_forwarder.get(forwarder, 0) + 1:
            return self._soonest(is_staked, forwarder=busiest)
        return None

    def _is_full(self, is_staked: bool) -> bool:
        if is_staked:
            return len(self._entries) - self._unstaked >= self._limits.staked_offers_max
        return self._unstaked >= self._limits.unstaked_offers_max

    def _soonest(self, is_staked: bool, *, operator: bytes | None = None, forwarder: PeerId | None = None) -> OfferKey:
        """Of these, the key whose offer expires first."""
        return min(
            (
                key
                for key, entry in self._entries.items()
                if entry.is_staked == is_staked
                and (operator is None or key[0] == operator)
                and (forwarder is None or entry.forwarder == forwarder)
            ),
            key=lambda key: (self._entries[key].offer.expiry_ns, key),
        )

    # --- deadlines ---------------------------------------------------------------------------------------

    def _watch(self, entry: Entry) -> None:
        heapq.heappush(self._expiries, (entry.offer.expiry_ns, entry.offer.key, entry.offer.digest))
        if len(self._expiries) > 4 * len(self._entries) + _EXPIRIES_SLACK:
            self._expiries = [expiry for expiry in self._expiries if self._is_live(expiry)]
            heapq.heapify(self._expiries)

    def _is_live(self, expiry: tuple[int, OfferKey, Digest]) -> bool:
        entry = self._entries.get(expiry[1])
        return entry is not None and entry.offer.digest == expiry[2]


def _prefix_key(key: OfferKey) -> tuple[bytes, bytes, bytes]:
    return (key[0], key[1], key[2][:MODEL_PREFIX_BYTES])
