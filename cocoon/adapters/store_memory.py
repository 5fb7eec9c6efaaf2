"""The `Store` port in memory: for tests, simulations, and clients that mean to leave nothing behind.

Same answers and bounds as the database, but nothing survives the process: a provider must not use it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import TypeVar

import trio

from ..errors import LocalProtocolError, StoreError
from ..ports import (
    Clock,
    Entropy,
    KnownPeer,
    PaymentRecord,
    StoredClaim,
    StoredEarning,
    StoredReceipt,
    StoredReputation,
    StoredReservation,
    StoredVoucher,
    VoucherSide,
)
from ..types import Digest, PeerId
from .store_rules import (
    CLAIMS_MAX,
    EARNING_ROWS_MAX,
    PEERS_MAX,
    PROOFS_MAX,
    RECEIPTS_MAX,
    REPUTATION_MAX,
    check_payments,
    check_slot_digest,
    following_seq,
)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class MemoryStore:
    """Everything in dictionaries."""

    def __init__(self, *, clock: Clock, entropy: Entropy) -> None:
        self._clock = clock
        self._entropy = entropy
        self._slots: dict[Digest, Digest] = {}
        self._seqs: dict[tuple[bytes, bytes, Digest], int] = {}
        self._receipts: dict[tuple[Digest, int], StoredReceipt] = {}
        self._proofs: dict[Digest, tuple[int, bytes]] = {}
        self._reputation: dict[bytes, StoredReputation] = {}
        self._ratchet: dict[str, int] = {}
        self._peers: dict[PeerId, KnownPeer] = {}
        self._held: set[Digest] = set()
        self._vouchers: dict[tuple[VoucherSide, int, bytes, int, bytes], StoredVoucher] = {}
        self._reservations: dict[tuple[int, bytes, bytes, int], StoredReservation] = {}
        self._claims: dict[tuple[int, bytes, bytes, int, int, int], StoredClaim] = {}
        self._earnings: dict[tuple[int, bytes, int, bytes, bytes], StoredEarning] = {}
        self._closed = False

    async def claim_slot(self, slot: Digest, digest: Digest) -> None:
        """Bind a slot to a digest for as long as this object lives."""
        check_slot_digest(slot, digest)
        await self._checkpoint()
        if self._slots.setdefault(slot, digest) != digest:
            raise LocalProtocolError("this slot is bound to another offer; it is not signed")

    async def next_seq(self, operator: bytes, peer: bytes, model: Digest) -> int:
        """A seq above every earlier one for these three."""
        await self._checkpoint()
        key = (operator, peer, model)
        seq = following_seq(self._seqs.get(key), now=self._clock.now(), luck=self._entropy(4))
        self._seqs[key] = seq
        return seq

    async def save_receipt(self, receipt: StoredReceipt) -> None:
        """Keep the newest receipt of a request."""
        await self._checkpoint()
        key = (receipt.session, receipt.request_id)
        known = self._receipts.get(key)
        if known is None or receipt.number > known.number:
            self._receipts[key] = receipt
            _prune(self._receipts, RECEIPTS_MAX, lambda each: each.at_ns)

    async def receipts(self, *, count_max: int) -> tuple[StoredReceipt, ...]:
        """The newest receipts first."""
        await self._checkpoint()
        newest = sorted(self._receipts.values(), key=lambda each: (-each.at_ns, each.session, each.request_id))
        return tuple(newest[:count_max])

    async def save_proof(self, slot: Digest, proof: bytes) -> None:
        """Keep a proof of equivocation; the first one for a slot stays."""
        await self._checkpoint()
        self._proofs.setdefault(slot, (self._clock.now(), proof))
        _prune(self._proofs, PROOFS_MAX, lambda each: each[0])

    async def proofs(self, *, count_max: int) -> tuple[bytes, ...]:
        """The newest proofs first."""
        await self._checkpoint()
        newest = sorted(self._proofs.items(), key=lambda item: (-item[1][0], item[0]))
        return tuple(proof for _, (_, proof) in newest[:count_max])

    async def save_reputation(self, entries: tuple[StoredReputation, ...]) -> None:
        """Replace what is kept under these keys; the most recent entries are kept."""
        await self._checkpoint()
        self._reputation.update((entry.key, entry) for entry in entries)
        _prune(self._reputation, REPUTATION_MAX, lambda each: each.at_ns)

    async def reputation(self, *, count_max: int) -> tuple[StoredReputation, ...]:
        """The most recent first."""
        await self._checkpoint()
        return tuple(sorted(self._reputation.values(), key=lambda each: (-each.at_ns, each.key))[:count_max])

    async def advance_ratchet(self, entries: Mapping[str, int]) -> None:
        """Raise the entries; nothing ever falls."""
        await self._checkpoint()
        for name, value in entries.items():
            self._ratchet[name] = max(value, self._ratchet.get(name, value))

    async def ratchet(self) -> dict[str, int]:
        """All of it."""
        await self._checkpoint()
        return dict(self._ratchet)

    async def remember_peers(self, peers: tuple[KnownPeer, ...]) -> None:
        """Add to the address book, which keeps the most recently seen."""
        await self._checkpoint()
        for each in peers:
            known = self._peers.get(each.peer)
            if known is None or each.seen_ns >= known.seen_ns:
                self._peers[each.peer] = each
        _prune(self._peers, PEERS_MAX, lambda each: each.seen_ns)

    async def known_peers(self, *, count_max: int) -> tuple[KnownPeer, ...]:
        """Most recently seen first."""
        await self._checkpoint()
        return tuple(sorted(self._peers.values(), key=lambda each: (-each.seen_ns, each.peer))[:count_max])

    async def hold(self, name: Digest) -> None:
        """Be the only holder of this name for as long as this object is open."""
        await self._checkpoint()
        if name in self._held:
            raise LocalProtocolError("another cocoon keeps this ledger")
        self._held.add(name)

    async def save_payments(self, records: tuple[PaymentRecord, ...]) -> None:
        """Keep all of them or none; no voucher falls."""
        check_payments(records)
        await self._checkpoint()
        for record in records:
            match record:
                case StoredVoucher():
                    self._save_voucher(record)
                case StoredReservation():
                    entry = (record.network, record.provider, record.account, record.epoch)
                    kept = self._reservations.get(entry)
                    if kept is None or record.proven_s >= kept.proven_s:
                        self._reservations[entry] = record
                case StoredClaim():
                    self._save_claim(record)
                case StoredEarning():
                    self._add_earning(record)

    def _save_voucher(self, record: StoredVoucher) -> None:
        key = (record.side, record.network, record.account, record.epoch, record.provider)
        kept = self._vouchers.get(key)
        if kept is None or (
            record.cumulative_nano >= kept.cumulative_nano and record.ceiling_nano >= kept.ceiling_nano
        ):
            self._vouchers[key] = record

    def _save_claim(self, record: StoredClaim) -> None:
        key = (
            record.network, record.provider, record.account, record.epoch, record.cumulative_nano, record.ceiling_nano,
        )  # fmt: skip
        kept = self._claims.get(key)
        if kept is None or kept.confirmed_ns == 0:
            self._claims[key] = record
        if len(self._claims) > CLAIMS_MAX:
            for old in sorted(self._claims, key=lambda each: self._claims[each].submitted_ns)[:-CLAIMS_MAX]:
                if self._claims[old].confirmed_ns:
                    del self._claims[old]

    def _add_earning(self, record: StoredEarning) -> None:
        key = (record.network, record.provider, record.day, record.account, record.model)
        kept = self._earnings.get(key)
        if kept is not None:
            record = replace(
                record,
                requests=kept.requests + record.requests,
                prompt_tokens=kept.prompt_tokens + record.prompt_tokens,
                cached_tokens=kept.cached_tokens + record.cached_tokens,
                completion_tokens=kept.completion_tokens + record.completion_tokens,
                due_nano=kept.due_nano + record.due_nano,
            )
        self._earnings[key] = record
        _prune(self._earnings, EARNING_ROWS_MAX, lambda each: each.day)

    async def vouchers(self, side: VoucherSide, *, network: int, party: bytes) -> tuple[StoredVoucher, ...]:
        """All that this account issued, or that this payout address holds."""
        await self._checkpoint()
        return tuple(
            each
            for _, each in sorted(self._vouchers.items(), key=lambda item: item[0][2:])
            if each.side is side
            and each.network == network
            and party == (each.account if side is VoucherSide.ISSUED else each.provider)
        )

    async def reservations(self, *, network: int, provider: bytes) -> tuple[StoredReservation, ...]:
        """All of this payout address."""
        await self._checkpoint()
        return tuple(each for key, each in sorted(self._reservations.items()) if key[:2] == (network, provider))

    async def claims(self, *, network: int, provider: bytes, count_max: int) -> tuple[StoredClaim, ...]:
        """Those of this payout address, the newest first."""
        await self._checkpoint()
        found = [each for key, each in self._claims.items() if key[:2] == (network, provider)]
        found.sort(key=lambda each: (-each.submitted_ns, each.account, -each.cumulative_nano))
        return tuple(found[:count_max])

    async def earnings(self, *, network: int, provider: bytes, since_day: int) -> tuple[StoredEarning, ...]:
        """Those of this payout address from that day on; in order of day, account, model."""
        await self._checkpoint()
        return tuple(
            each
            for key, each in sorted(self._earnings.items())
            if key[:2] == (network, provider) and each.day >= since_day
        )

    async def aclose(self) -> None:
        """No more calls."""
        self._held.clear()
        self._closed = True

    async def _checkpoint(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise StoreError("the database is closed")


def _prune(table: dict[K, V], count_max: int, age: Callable[[V], int]) -> None:
    """Keep the newest `count_max`."""
    if len(table) > count_max:
        newest_first = sorted(table, key=lambda key: age(table[key]), reverse=True)
        for key in newest_first[count_max:]:
            del table[key]
