"""What libp2p says inside the handshake: the identity key, and its signature over the Noise static key.

    message NoiseHandshakePayload { optional bytes identity_key = 1; optional bytes identity_sig = 2;
                                    optional NoiseExtensions extensions = 4; }

Source: libp2p/specs, noise/README.md, "The libp2p Signed Handshake Payload". Extensions are read over: we offer
none and use none.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2p.noise.cipher import NoiseError
from p2p.protobuf import BYTES, ProtobufInvalid, bytes_field, fields

STATIC_KEY_PREFIX = b"noise-libp2p-static-key:"
PAYLOAD_BYTES_MAX = 4096  # an RSA-2048 key and signature need 600; extensions a few hundred
IDENTITY_KEY_BYTES_MAX = 1024
SIGNATURE_BYTES_MAX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HandshakePayload:
    identity_key: bytes  # libp2p's PublicKey message, as received
    signature: bytes


def encode_payload(payload: HandshakePayload) -> bytes:
    return bytes_field(1, payload.identity_key) + bytes_field(2, payload.signature)


def decode_payload(data: bytes) -> HandshakePayload:
    """Raises NoiseError."""
    if len(data) > PAYLOAD_BYTES_MAX:
        raise NoiseError("the handshake payload is too long")
    found: dict[int, bytes] = {}
    try:
        for tag, a, b, _ in fields(data, 0, len(data)):
            number = tag >> 3
            if number not in (1, 2):
                continue
            if tag & 7 != BYTES or number in found:
                raise NoiseError("a handshake payload with a wrong or repeated field")
            found[number] = data[a:b]
    except ProtobufInvalid as error:
        raise NoiseError(f"handshake payload: {error}") from error
    identity_key, signature = found.get(1, b""), found.get(2, b"")
    if not 0 < len(identity_key) <= IDENTITY_KEY_BYTES_MAX or not 0 < len(signature) <= SIGNATURE_BYTES_MAX:
        raise NoiseError("the handshake payload lacks its key or signature")
    return HandshakePayload(identity_key=identity_key, signature=signature)


def statement_of_static_key(static_public: bytes) -> bytes:
    """What the identity key signs: "the UTF-8 string noise-libp2p-static-key:, followed by the Noise static
    public key"."""
    return STATIC_KEY_PREFIX + static_public
