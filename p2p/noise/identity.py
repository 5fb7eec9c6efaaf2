"""Ed25519 identities for the handshake: libp2p's PublicKey message, its signature, the peer id.

Only ed25519 is taken: every peer of this network has such a key, and one kind is one thing to get wrong.
"""

from __future__ import annotations

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

from p2p.noise.cipher import NoiseError
from p2p.noise.machine import NoiseIdentity

_KEY_PREFIX = bytes.fromhex("08011220")  # message PublicKey { Type = 1 (ed25519); Data = 32 bytes }
_PEER_ID_PREFIX = bytes.fromhex("0024")  # the identity multihash of those 36 bytes
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64


def ed25519_identity(*, seed: bytes, static_private: bytes) -> NoiseIdentity:
    """Our handshake identity from the 32-byte ed25519 seed and 32 random bytes for the Noise static key."""
    public, secret = crypto_sign_seed_keypair(seed)

    def sign(data: bytes) -> bytes:
        return crypto_sign(data, secret)[:SIGNATURE_BYTES]

    return NoiseIdentity.create(static_private=static_private, identity_key=_KEY_PREFIX + public, sign=sign)


def verify_ed25519(identity_key: bytes, signature: bytes, signed: bytes) -> bytes:
    """The peer id (38 bytes) of an identity key whose signature holds. Raises NoiseError."""
    if len(identity_key) != len(_KEY_PREFIX) + PUBLIC_KEY_BYTES or not identity_key.startswith(_KEY_PREFIX):
        raise NoiseError("an identity key that is not ed25519")
    if len(signature) != SIGNATURE_BYTES:
        raise NoiseError("a signature of the wrong length")
    try:
        crypto_sign_open(signature + signed, identity_key[len(_KEY_PREFIX) :])
    except (BadSignatureError, ValueError):
        raise NoiseError("a false signature over the static key") from None
    return _PEER_ID_PREFIX + identity_key
