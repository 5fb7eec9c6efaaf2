"""ADNL over TCP, the server's side: the handshake, and encrypted packets either way. Bytes only; no I/O, no TL.

Source: docs.ton.org, "ADNL TCP - liteserver". Key agreement and SHA-256 checksums as there.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import nacl.bindings
from nacl.signing import SigningKey
from pytoniq_core.crypto.ciphers import create_aes_ctr_cipher

from ...errors import RemoteProtocolError

HANDSHAKE_BYTES: Final = 256
NONCE_BYTES: Final = 32
CHECKSUM_BYTES: Final = 32
PACKET_BYTES_MIN: Final = NONCE_BYTES + CHECKSUM_BYTES
PACKET_BYTES_MAX: Final = 1 << 20  # a query is a few hundred bytes, a message 64 KiB at most
_KEY_PREFIX: Final = b"\xc6\xb4\x13\x48"


class AdnlChannel:
    """One connection's two ciphers. Raises `RemoteProtocolError` for a handshake that is not meant for this key."""

    def __init__(self, key: SigningKey, handshake: bytes) -> None:
        assert len(handshake) == HANDSHAKE_BYTES
        public = bytes(key.verify_key)
        if handshake[:32] != hashlib.sha256(_KEY_PREFIX + public).digest():
            raise RemoteProtocolError("a handshake for another server")
        checksum, sealed = handshake[64:96], handshake[96:]
        try:
            theirs = nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(handshake[32:64])
            ours = nacl.bindings.crypto_sign_ed25519_sk_to_curve25519(bytes(key) + public)
            shared = nacl.bindings.crypto_scalarmult(ours, theirs)
        except Exception as error:  # libsodium's bindings raise several kinds; all mean a bad key
            raise RemoteProtocolError("a handshake with a bad key") from error
        cipher = create_aes_ctr_cipher(shared[:16] + checksum[16:32], checksum[:4] + shared[20:32])
        secret = cipher.decrypt(sealed)
        if hashlib.sha256(secret).digest() != checksum:
            raise RemoteProtocolError("a handshake with a wrong checksum")
        self._out: Any = create_aes_ctr_cipher(secret[:32], secret[64:80])
        self._in: Any = create_aes_ctr_cipher(secret[32:64], secret[80:96])

    def seal(self, payload: bytes, nonce: bytes) -> bytes:
        """A packet to send."""
        body = nonce + payload
        body += hashlib.sha256(body).digest()
        return bytes(self._out.encrypt(len(body).to_bytes(4, "little") + body))

    def open_length(self, data: bytes) -> int:
        """How many bytes the next packet has. Raises `RemoteProtocolError`."""
        length = int.from_bytes(self._in.decrypt(data), "little")
        if not PACKET_BYTES_MIN <= length <= PACKET_BYTES_MAX:
            raise RemoteProtocolError("a packet of an impossible length")
        return length

    def open_body(self, data: bytes) -> bytes:
        """Its payload. Raises `RemoteProtocolError`."""
        body = self._in.decrypt(data)
        if hashlib.sha256(body[:-CHECKSUM_BYTES]).digest() != body[-CHECKSUM_BYTES:]:
            raise RemoteProtocolError("a packet with a wrong checksum")
        return bytes(body[NONCE_BYTES:-CHECKSUM_BYTES])
