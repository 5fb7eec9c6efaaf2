"""ChaCha20-Poly1305 with Noise's counter nonces, and the length-prefixed frames that libp2p puts around it.

One CipherState encrypts in one direction. The nonce is a counter that only this object can advance, so no nonce
is ever used twice: whoever seals must also send, in that order (see `SealedChannel.seal`).
"""

from __future__ import annotations

from struct import Struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from p2p.errors import P2PError

TAG_BYTES = 16
NOISE_MESSAGE_BYTES_MAX = 65535  # Noise specification, section 3: "less than or equal to 65535 bytes"
PLAINTEXT_BYTES_MAX = NOISE_MESSAGE_BYTES_MAX - TAG_BYTES
NONCE_CEILING = 2**64 - 1  # "the maximum n value (2^64-1) is reserved"

# "ChaChaPoly: … the 96-bit nonce is formed by encoding 32 bits of zeros followed by little-endian encoding of n."
_nonce = Struct("<4xQ").pack
_length = Struct("!H")


class NoiseError(P2PError):
    """The handshake or a message failed. The connection must be closed; nothing about it can be trusted."""


class AnotherPeer(NoiseError):
    """Whoever answered has proven to be somebody else than the peer that was dialled."""


class CipherState:
    """Section 5.1 of the Noise specification."""

    __slots__ = ("_aead", "_counter")

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)
        self._counter = 0

    def encrypt(self, plaintext: bytes | bytearray | memoryview, associated: bytes = b"") -> bytes:
        return self._aead.encrypt(self._next_nonce(), plaintext, associated)

    def decrypt(self, ciphertext: bytes | bytearray | memoryview, associated: bytes = b"") -> bytes:
        """Raises NoiseError. "If an authentication failure occurs … n is not incremented": but the channel
        is dead anyway, so it does not matter that ours is."""
        try:
            return self._aead.decrypt(self._next_nonce(), ciphertext, associated)
        except InvalidTag:
            raise NoiseError("a message that does not decrypt") from None

    def _next_nonce(self) -> bytes:
        counter = self._counter
        if counter >= NONCE_CEILING:
            raise NoiseError("nonces are used up")
        self._counter = counter + 1
        return _nonce(counter)


class SealedChannel:
    """After the handshake: plaintext to sealed frames and back. "All data is segmented into messages" of a
    2-byte big-endian length and a Noise message (libp2p/specs, noise/README.md, Wire Format)."""

    __slots__ = ("_buffer", "_receiving", "_sending")

    def __init__(self, sending: CipherState, receiving: CipherState, received: bytes = b"") -> None:
        self._sending = sending
        self._receiving = receiving
        self._buffer = bytearray(received)  # at most one incomplete frame plus one read

    def seal(self, plaintext: bytes | bytearray) -> bytes:
        """Frames for all of `plaintext`. They must reach the connection in the order of these calls.

        Never an empty Noise message: some peers take one for the end of the connection.
        """
        size = len(plaintext)
        if size == 0:
            return b""
        if size <= PLAINTEXT_BYTES_MAX:
            sealed = self._sending.encrypt(plaintext)
            return _length.pack(len(sealed)) + sealed
        parts: list[bytes] = []
        with memoryview(plaintext) as view:
            for start in range(0, size, PLAINTEXT_BYTES_MAX):
                with view[start : start + PLAINTEXT_BYTES_MAX] as chunk:
                    sealed = self._sending.encrypt(chunk)
                parts += (_length.pack(len(sealed)), sealed)
        return b"".join(parts)

    def open(self, data: bytes) -> list[bytes]:
        """The plaintexts that `data` completes. Raises NoiseError; then nothing more can be read."""
        buffer = self._buffer
        buffer += data
        plaintexts: list[bytes] = []
        position = 0
        end = len(buffer)
        with memoryview(buffer) as view:
            while end - position >= 2:
                stop = position + 2 + (buffer[position] << 8 | buffer[position + 1])
                if stop - position < 2 + TAG_BYTES:
                    raise NoiseError("a frame shorter than its tag")
                if stop > end:
                    break
                with view[position + 2 : stop] as frame:
                    plaintext = self._receiving.decrypt(frame)
                if plaintext:
                    plaintexts.append(plaintext)
                position = stop
        if position:
            del buffer[:position]
        return plaintexts
