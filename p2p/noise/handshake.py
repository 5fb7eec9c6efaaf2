"""Noise_XX_25519_ChaChaPoly_SHA256: the three messages of the handshake, nothing of libp2p.

    -> e
    <- e, ee, s, es
    -> s, se

Sections 5 and 7 of the Noise specification (revision 34). Proven against the cacophony vectors and against the
`noiseprotocol` package (tests/unit/test_noise_handshake.py). Private keys are passed in; nothing here is random.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from p2p.noise.cipher import TAG_BYTES, CipherState, NoiseError

PROTOCOL_NAME = b"Noise_XX_25519_ChaChaPoly_SHA256"  # exactly HASHLEN bytes, so h = the name itself
KEY_BYTES = 32


class SymmetricState:
    """Section 5.2: the transcript hash, the chaining key and the current cipher."""

    __slots__ = ("_chaining_key", "_cipher", "transcript")

    def __init__(self, prologue: bytes) -> None:
        self.transcript = self._chaining_key = PROTOCOL_NAME
        self._cipher: CipherState | None = None
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        self.transcript = hashlib.sha256(self.transcript + data).digest()

    def mix_key(self, secret: bytes) -> None:
        self._chaining_key, key = _hkdf(self._chaining_key, secret)
        self._cipher = CipherState(key)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = plaintext if self._cipher is None else self._cipher.encrypt(plaintext, self.transcript)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        plaintext = ciphertext if self._cipher is None else self._cipher.decrypt(ciphertext, self.transcript)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        """(initiator's sending cipher, responder's)."""
        first, second = _hkdf(self._chaining_key, b"")
        return CipherState(first), CipherState(second)


class XXHandshake:
    """One side. Call write and read in turn (the initiator writes first); after the third message `split`.

    After NoiseError the handshake is over.
    """

    def __init__(
        self, *, is_initiator: bool, static_private: bytes, ephemeral_private: bytes, prologue: bytes = b""
    ) -> None:
        self.is_initiator = is_initiator
        self.remote_static: bytes | None = None  # known after message 2 or 3
        self._static = X25519PrivateKey.from_private_bytes(static_private)
        self._ephemeral = X25519PrivateKey.from_private_bytes(ephemeral_private)
        self._remote_ephemeral: X25519PublicKey | None = None
        self._remote_static_key: X25519PublicKey | None = None
        self._state = SymmetricState(prologue)
        self._messages_done = 0

    @property
    def is_done(self) -> bool:
        return self._messages_done == 3

    @property
    def transcript(self) -> bytes:
        return self._state.transcript

    def write(self, payload: bytes) -> bytes:
        """The next message. The payload of the first one is not encrypted."""
        assert self._is_our_turn_to_write(), "not our turn"
        state = self._state
        if self._messages_done == 0:  # -> e
            message = self._write_ephemeral()
        elif self._messages_done == 1:  # <- e, ee, s, es
            message = self._write_ephemeral()
            state.mix_key(self._exchange(self._ephemeral, self._remote_ephemeral))
            message += state.encrypt_and_hash(self._static.public_key().public_bytes_raw())
            state.mix_key(self._exchange(self._static, self._remote_ephemeral))
        else:  # -> s, se
            message = state.encrypt_and_hash(self._static.public_key().public_bytes_raw())
            state.mix_key(self._exchange(self._static, self._remote_ephemeral))
        self._messages_done += 1
        return message + state.encrypt_and_hash(payload)

    def read(self, message: bytes) -> bytes:
        """The payload of the remote's message. Raises NoiseError."""
        assert not self._is_our_turn_to_write(), "not our turn"
        state = self._state
        if self._messages_done == 0:
            rest = self._read_ephemeral(message)
        elif self._messages_done == 1:
            rest = self._read_ephemeral(message)
            state.mix_key(self._exchange(self._ephemeral, self._remote_ephemeral))
            rest = self._read_static(rest)
            state.mix_key(self._exchange(self._ephemeral, self._remote_static_key))
        else:
            rest = self._read_static(message)
            state.mix_key(self._exchange(self._ephemeral, self._remote_static_key))
        payload = state.decrypt_and_hash(rest)
        self._messages_done += 1
        return payload

    def split(self) -> tuple[CipherState, CipherState]:
        """(sending, receiving) ciphers of this side."""
        assert self.is_done
        first, second = self._state.split()
        return (first, second) if self.is_initiator else (second, first)

    # --- tokens --------------------------------------------------------------------------------------------

    def _is_our_turn_to_write(self) -> bool:
        return (self._messages_done % 2 == 0) == self.is_initiator and not self.is_done

    def _write_ephemeral(self) -> bytes:
        public = self._ephemeral.public_key().public_bytes_raw()
        self._state.mix_hash(public)
        return public

    def _read_ephemeral(self, message: bytes) -> bytes:
        if len(message) < KEY_BYTES:
            raise NoiseError("a handshake message too short for its key")
        self._remote_ephemeral = X25519PublicKey.from_public_bytes(message[:KEY_BYTES])
        self._state.mix_hash(message[:KEY_BYTES])
        return message[KEY_BYTES:]

    def _read_static(self, message: bytes) -> bytes:
        size = KEY_BYTES + TAG_BYTES
        if len(message) < size:
            raise NoiseError("a handshake message too short for its key")
        self.remote_static = self._state.decrypt_and_hash(message[:size])
        self._remote_static_key = X25519PublicKey.from_public_bytes(self.remote_static)
        return message[size:]

    @staticmethod
    def _exchange(private: X25519PrivateKey, public: X25519PublicKey | None) -> bytes:
        assert public is not None
        try:
            return private.exchange(public)
        except ValueError:  # a point of low order: the shared secret would be all zeros
            raise NoiseError("a public key that is no key") from None


def _hkdf(chaining_key: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """Section 4.3, two outputs."""
    key = hmac.digest(chaining_key, secret, "sha256")
    first = hmac.digest(key, b"\x01", "sha256")
    return first, hmac.digest(key, first + b"\x02", "sha256")
