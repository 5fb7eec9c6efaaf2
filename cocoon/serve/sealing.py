"""Sealing a request to the enclave's key E, and keeping E (rules K5, S1-S3, S5, S6).

`Crypto` is everything secret-key that a session does, as one small object: the real one is `HpkeCrypto`; the
simulator passes its own, because HPKE draws randomness inside the library. Every way in which a sealed thing can
fail to open gives one identical `SealError`: who probes learns nothing from the kind of failure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import LimitExceeded, LocalProtocolError, SealError
from ..types import Digest, Network, PeerId, Secret
from ..wire import limits
from ..wire.signing import Domain, domain_hash, hash_prefix, signed_bytes
from . import bounds

SUITE_X25519: Final = 1  # HPKE base mode: DHKEM(X25519), HKDF-SHA256, ChaCha20-Poly1305; `sealing_suite` of S
KEY_BYTES: Final = 32
SESSION_PREFIX_BYTES: Final = 8
PLAINTEXT_BYTES_MAX: Final = 1024 * 1024  # with HPKE's 48 bytes it fits SEALED_REQUEST_BYTES_MAX
_LENGTH_BYTES: Final = 4


class Cipher(Protocol):
    """An AEAD under one key."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        """Ciphertext and tag."""
        ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        """The plaintext; raises `cryptography.exceptions.InvalidTag`."""
        ...


class Crypto(Protocol):
    """Public-key sealing and chunk ciphers, replaceable as one."""

    def public_key(self, private: Secret) -> bytes:
        """The public half of 32 private bytes."""
        ...

    def seal(self, public: bytes, plaintext: bytes, info: bytes) -> bytes:
        """HPKE base mode, single shot."""
        ...

    def open(self, private: Secret, sealed: bytes, info: bytes) -> bytes:
        """The plaintext; raises `SealError`, always the same."""
        ...

    def cipher(self, key: bytes) -> Cipher:
        """The AEAD for chunks under a 32-byte key."""
        ...


class HpkeCrypto:
    """RFC 9180 HPKE and ChaCha20-Poly1305 by `cryptography`."""

    def __init__(self) -> None:
        self._suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)

    def public_key(self, private: Secret) -> bytes:
        """X25519."""
        return X25519PrivateKey.from_private_bytes(private.reveal()).public_key().public_bytes_raw()

    def seal(self, public: bytes, plaintext: bytes, info: bytes) -> bytes:
        """Raises `SealError` when `public` is no usable key."""
        try:
            return self._suite.encrypt(plaintext, X25519PublicKey.from_public_bytes(public), info)
        except ValueError:
            raise seal_error() from None

    def open(self, private: Secret, sealed: bytes, info: bytes) -> bytes:
        """Raises `SealError`."""
        try:
            return self._suite.decrypt(sealed, X25519PrivateKey.from_private_bytes(private.reveal()), info)
        except (InvalidTag, ValueError, UnsupportedAlgorithm):
            raise seal_error() from None

    def cipher(self, key: bytes) -> Cipher:
        """ChaCha20-Poly1305."""
        return ChaCha20Poly1305(key)


def seal_error() -> SealError:
    """The one error of everything that does not open (S6)."""
    return SealError("a sealed message does not open")


# --- what the seals bind ---------------------------------------------------------------------------------


def session_id(*, statement: bytes, client: PeerId, peer: bytes, client_nonce: bytes, provider_nonce: bytes) -> Digest:
    """sid of rule S1, new for every stream and for every Hello on it."""
    assert len(peer) == len(client_nonce) == len(provider_nonce) == 32
    name = client.encode()
    assert 0 < len(name) < 256
    return domain_hash(
        "session",
        domain_hash("statement-digest", statement),
        bytes((len(name),)),
        name,
        peer,
        client_nonce,
        provider_nonce,
    )


def request_info(session: Digest, request_id: int, header: bytes) -> bytes:
    """HPKE's `info` for a request (S3): domain ‖ sid ‖ u64 id ‖ H(header)."""
    return hash_prefix("seal-request") + session + request_id.to_bytes(8, "big") + domain_hash("open-header", header)


def authentication_info(session: Digest) -> bytes:
    """HPKE's `info` for the client's authentication (S2)."""
    return hash_prefix("seal-authentication") + session


def authentication_bytes(network: Network, session: Digest, account: bytes, payout: bytes) -> bytes:
    """What V signs (S2)."""
    assert len(account) == len(payout) == 32
    return signed_bytes(Domain.SESSION_AUTH, network, session + account + payout)


def chunk_key(response_key: bytes, salt: bytes, session: Digest, request_id: int) -> bytes:
    """The key of one request's chunks (S4)."""
    info = hash_prefix("chunk-key") + session + request_id.to_bytes(8, "big")
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(response_key)


# --- padding (S5) ----------------------------------------------------------------------------------------


def pad_request(plaintext: bytes) -> bytes:
    """`u32 length ‖ plaintext ‖ zeros`, up to the next power of two from 1 KiB.

    Raises `LimitExceeded` beyond 1 MiB with the length.
    """
    size = _LENGTH_BYTES + len(plaintext)
    if size > PLAINTEXT_BYTES_MAX:
        raise LimitExceeded(f"a request of {len(plaintext)} bytes; at most {PLAINTEXT_BYTES_MAX - _LENGTH_BYTES}")
    padded = max(limits.REQUEST_PAD_BYTES_MIN, 1 << (size - 1).bit_length())
    return len(plaintext).to_bytes(_LENGTH_BYTES, "big") + plaintext + bytes(padded - size)


def unpad_request(padded: bytes) -> bytes:
    """What was padded; raises `SealError` unless these are exactly its padded bytes."""
    size = int.from_bytes(padded[:_LENGTH_BYTES], "big")
    plaintext = padded[_LENGTH_BYTES : _LENGTH_BYTES + size]
    if len(padded) > PLAINTEXT_BYTES_MAX or len(plaintext) != size or pad_request(plaintext) != padded:
        raise seal_error()
    return plaintext


# --- the provider's key (K5) -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingKey:
    """One E with its life. New requests may be sealed to it until `grace_ends_ns`."""

    public: bytes
    private: Secret = field(repr=False)
    made_ns: int

    @property
    def life_ends_ns(self) -> int:
        """No new session gets it after this."""
        return self.made_ns + bounds.KEY_LIFE_NS

    @property
    def grace_ends_ns(self) -> int:
        """Erased here."""
        return self.life_ends_ns + bounds.KEY_GRACE_NS


class SealingKeys:
    """The provider's current E and the one before it, shared by all its sessions; each is erased when its time is up.

    `entropy` gives 32 fresh bytes for each key. The private halves never leave this object but through `find`.
    """

    def __init__(self, crypto: Crypto, entropy: Callable[[int], bytes], *, now: int) -> None:
        self._crypto = crypto
        self._entropy = entropy
        self._keys = [self._make(now)]

    def current(self, now: int) -> SealingKey:
        """The key for new sessions; makes a fresh one when the old is an hour old."""
        self.on_time(now)
        return self._keys[-1]

    def find(self, public: bytes, now: int) -> SealingKey | None:
        """The key of that public half while it may still open requests, else None."""
        self.on_time(now)
        return next((key for key in self._keys if key.public == public), None)

    def on_time(self, now: int) -> None:
        """Rotate and erase. Nothing happens before `deadline()`."""
        if now >= self._keys[-1].life_ends_ns:
            self._keys.append(self._make(now))
        self._keys = [key for key in self._keys if now < key.grace_ends_ns]

    def deadline(self) -> int:
        """When `on_time` has work."""
        return min(self._keys[-1].life_ends_ns, self._keys[0].grace_ends_ns)

    def _make(self, now: int) -> SealingKey:
        private = Secret(self._entropy(KEY_BYTES))
        if len(private.reveal()) != KEY_BYTES:
            raise LocalProtocolError("the entropy source gave the wrong number of bytes")
        return SealingKey(public=self._crypto.public_key(private), private=private, made_ns=now)
