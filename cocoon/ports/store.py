"""What must survive a crash, and who may sign as the operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..types import Digest, PeerId


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
