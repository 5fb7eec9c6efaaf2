"""The operator key O in this process, from a key file.

Every offer's slot is bound to its digest in the store *before* O signs (rule K2), so no crash, retry or second
process on the same store makes O sign two offers for one slot. Not here: P, V and wallet keys (rule K1: all
differ), and the signer outside the TD, which keeps this port.
"""

from __future__ import annotations

from pathlib import Path

import nacl.signing

from ..errors import LocalProtocolError
from ..ports import Entropy, Store
from ..types import DIGEST_BYTES, Digest, Network, Secret
from ..wire import limits
from ..wire.signing import Domain, signed_bytes, stake_statement
from .keyfile import load_or_create_seed


class KeyFileSigner:
    """O from a 32-byte seed. Its repr shows the public half only."""

    __slots__ = ("_key", "_network", "_operator", "_store")

    def __init__(self, seed: Secret, *, network: Network, store: Store) -> None:
        self._key = nacl.signing.SigningKey(seed.reveal())
        self._operator = bytes(self._key.verify_key)
        self._network = network
        self._store = store

    @staticmethod
    def open(path: Path, *, network: Network, store: Store, entropy: Entropy) -> KeyFileSigner:
        """From the file, creating the key on first use. Raises `ConfigError`."""
        return KeyFileSigner(load_or_create_seed(path, entropy=entropy), network=network, store=store)

    def __repr__(self) -> str:
        return f"KeyFileSigner(operator={self._operator.hex()})"

    @property
    def operator(self) -> bytes:
        """O's public half: 32 bytes."""
        return self._operator

    async def sign_offer(self, *, stake: bytes, key_epoch: int, slot: Digest, digest: Digest) -> bytes:
        """O's signature over the 108-byte stake statement, after the slot is durably bound to the digest (K2).

        Raises `LocalProtocolError` when the slot is bound to another digest, `StoreError` when it cannot be bound;
        nothing is signed then. Cancelled, it may have bound the slot, and signing the same digest again is fine.
        """
        if not (len(stake) == len(slot) == len(digest) == DIGEST_BYTES and 0 <= key_epoch <= 0xFFFF_FFFF):
            raise LocalProtocolError("a stake statement of the wrong shape")
        await self._store.claim_slot(slot, digest)
        return self._key.sign(stake_statement(self._network, stake, key_epoch, slot, digest)).signature

    async def sign_statement(self, statement: bytes) -> bytes:
        """O's signature over an attestation statement."""
        if not 0 < len(statement) <= limits.STATEMENT_BYTES_MAX:
            raise LocalProtocolError("a statement of the wrong size")
        return self._key.sign(signed_bytes(Domain.STATEMENT, self._network, statement)).signature
