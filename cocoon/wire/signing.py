"""What is signed, byte for byte (rule K1), and the one place that checks an ed25519 signature.

Between peers every signature is over `domain ‖ network ‖ payload as received`: the domain is
`cocoon/<kind>/v1\\0`, the network four bytes. Nothing is re-encoded to be verified. The shapes that a contract
checks as well start with their own tag instead: CSV1 (voucher), CSS1 (stake statement), CSP1 (possession).
No shape is a prefix of another, so a signature of one kind never passes as another.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from typing import Final

import nacl.bindings
import nacl.exceptions

from ..errors import BadSignature
from ..types import Digest, Network

SIGNATURE_BYTES: Final = 64
KEY_BYTES: Final = 32


class Domain(Enum):
    """Kinds of signatures between peers."""

    STATEMENT = "statement"  # O and P over the attestation statement S
    CONSENT = "consent"  # P over the terms under which O may name it in an offer
    BEACON = "beacon"  # P over a load beacon
    RECEIPT = "receipt"  # P over a receipt
    SESSION_AUTH = "session-auth"  # V over a session id

    @property
    def prefix(self) -> bytes:
        """`cocoon/<kind>/v1\\0`."""
        return hash_prefix(self.value)


def hash_prefix(kind: str) -> bytes:
    """The domain bytes of a hash or signature of this kind."""
    return f"cocoon/{kind}/v1\0".encode()


def signed_bytes(domain: Domain, network: Network, payload: bytes) -> bytes:
    """The bytes that a signature of this kind covers."""
    return domain.prefix + network.wire + payload


def domain_hash(kind: str, *parts: bytes) -> Digest:
    """SHA-256 over `cocoon/<kind>/v1\\0` and fixed-length parts (length-prefix a part yourself if it varies)."""
    return hashlib.sha256(b"".join((hash_prefix(kind), *parts))).digest()


def verify(key: bytes, signature: bytes, message: bytes) -> None:
    """Raise `BadSignature` unless `signature` is `key`'s over `message`.

    libsodium refuses small-order keys and non-canonical S, so one signature has one encoding.
    """
    if len(key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        raise BadSignature("a key or signature of the wrong length")
    try:
        nacl.bindings.crypto_sign_open(signature + message, key)
    except nacl.exceptions.BadSignatureError as error:
        raise BadSignature("the signature does not verify") from error


def stake_statement(network: Network, stake: bytes, key_epoch: int, slot: Digest, digest: Digest) -> bytes:
    """The 108 bytes that O signs for an offer and that the stake contract rebuilds to slash equivocation."""
    assert len(stake) == 32 and len(slot) == 32 and len(digest) == 32
    return b"CSS1" + network.wire + stake + key_epoch.to_bytes(4, "big") + slot + digest
