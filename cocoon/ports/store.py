"""What must survive a crash, and who may sign as the operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from ..types import Digest, Nano, PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReceipt:
    """A verified receipt as received, and when."""

    session: Digest
    request_id: int
    number: int
    provider: PeerId
    receipt: bytes
    signature: bytes
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPeer:
    """An address-book entry for the next start."""

    peer: PeerId
    addresses: tuple[str, ...]
    seen_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReputation:
    """What we saw of one operator ourselves, as `cocoon.market.history` packs it."""

    key: bytes  # stake address or O (rule K7)
    observed: bytes
    at_ns: int


class VoucherSide(IntEnum):
    """Whose voucher it is."""

    ISSUED = 0  # we are the client and signed it
    HELD = 1  # we are the provider and may claim it


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVoucher:
    """The highest voucher of one (account, epoch, provider): what a crash must not lose."""

    side: VoucherSide
    network: int
    account: bytes
    epoch: int
    provider: bytes  # payout address
    cumulative_nano: Nano
    ceiling_nano: Nano
    key: bytes  # V
    signature: bytes
    clean_tokens: int  # tokens paid without a write-off: how far the unpaid window has grown
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReservation:
    """What the chain was proven to have paid and reserved for one (account, epoch, provider), and when."""

    network: int
    account: bytes
    epoch: int
    provider: bytes
    claimed_nano: Nano
    ceiling_nano: Nano
    proven_s: int  # time of the block
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredClaim:
    """A voucher that was, or is about to be, submitted. `confirmed_ns` is 0 until the chain is proven to have it."""

    network: int
    account: bytes
    epoch: int
    provider: bytes
    cumulative_nano: Nano
    ceiling_nano: Nano
    submitted_ns: int
    confirmed_ns: int = 0
    received_nano: Nano = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEarning:
    """What a provider served one account with one model on one day. Saving one *adds* its figures to what is kept."""

    network: int
    provider: bytes  # payout address
    account: bytes  # the client's; zeros: nobody pays
    model: Digest
    model_name: str
    day: int  # UTC, days since the Unix epoch
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    due_nano: Nano


PaymentRecord = StoredVoucher | StoredReservation | StoredClaim | StoredEarning


class Store(Protocol):
    """Durable state. Every method returns only once its effect is on disk, or raises `StoreError`."""

    async def claim_slot(self, slot: Digest, digest: Digest) -> None:
        """Bind a slot to a digest for ever; a second call with the same digest is a no-op.

        Raises `LocalProtocolError` when the slot is bound to another digest (rule K2).
        """
        ...

    async def next_seq(self, operator: bytes, peer: bytes, model: Digest) -> int:
        """A seq never given before for these three; persisted before it is returned.

        It is above every earlier one, and made of the time and of randomness, so that neither a restored backup
        nor a copied database gives one out again.
        """
        ...

    async def save_proof(self, slot: Digest, proof: bytes) -> None:
        """Keep a proof of equivocation; the first one for a slot stays."""
        ...

    async def proofs(self, *, count_max: int) -> tuple[bytes, ...]:
        """The newest proofs first."""
        ...

    async def save_reputation(self, entries: tuple[StoredReputation, ...]) -> None:
        """Replace what is kept under these keys; the most recent entries are kept."""
        ...

    async def reputation(self, *, count_max: int) -> tuple[StoredReputation, ...]:
        """The most recent first."""
        ...

    async def advance_ratchet(self, entries: Mapping[str, int]) -> None:
        """Raise what verified evidence has shown at the highest (`cocoon.attest.ratchet`); nothing ever falls."""
        ...

    async def ratchet(self) -> dict[str, int]:
        """All of it."""
        ...

    async def save_receipt(self, receipt: StoredReceipt) -> None:
        """Keep the newest receipt of a request."""
        ...

    async def receipts(self, *, count_max: int) -> tuple[StoredReceipt, ...]:
        """The newest receipts first."""
        ...

    async def remember_peers(self, peers: tuple[KnownPeer, ...]) -> None:
        """Add to the address book, which keeps the most recently seen."""
        ...

    async def known_peers(self, *, count_max: int) -> tuple[KnownPeer, ...]:
        """Most recently seen first."""
        ...

    async def hold(self, name: Digest) -> None:
        """Be the only holder of this name until `aclose` or the end of the process, kill -9 included.

        Raises `LocalProtocolError` when somebody else, in this process or another one on this store, holds it. It
        keeps voucher ledgers single (rule M1): one provider per payout address, one signer per account.
        """
        ...

    async def save_payments(self, records: tuple[PaymentRecord, ...]) -> None:
        """Keep all of them or none.

        A voucher replaces one of the same side, network, account, epoch and provider only where neither amount falls;
        else the stored one stays, silently. A reservation of an older block changes nothing; a confirmed claim stays
        confirmed; an earning is added to what is kept of its day, account and model.
        """
        ...

    async def vouchers(self, side: VoucherSide, *, network: int, party: bytes) -> tuple[StoredVoucher, ...]:
        """All that this account issued, or that this payout address holds; in order of account, epoch, provider."""
        ...

    async def reservations(self, *, network: int, provider: bytes) -> tuple[StoredReservation, ...]:
        """All of this payout address, in order of account and epoch."""
        ...

    async def claims(self, *, network: int, provider: bytes, count_max: int) -> tuple[StoredClaim, ...]:
        """Those of this payout address, the newest first."""
        ...

    async def earnings(self, *, network: int, provider: bytes, since_day: int) -> tuple[StoredEarning, ...]:
        """Those of this payout address from that day on; in order of day, account, model."""
        ...

    async def aclose(self) -> None:
        """Finish what is queued and close."""
        ...


class Signer(Protocol):
    """The operator key O: a key file in this process, or a small process outside the TD."""

    @property
    def operator(self) -> bytes:
        """O's public half: 32 bytes."""
        ...

    async def sign_offer(self, *, stake: bytes, key_epoch: int, slot: Digest, digest: Digest) -> bytes:
        """O's signature over the 108-byte stake statement, after the slot is durably bound to the digest (K2)."""
        ...

    async def sign_statement(self, statement: bytes) -> bytes:
        """O's signature over an attestation statement."""
        ...
