"""StrictSign: every message is signed by its source, whose ed25519 key is inside its peer id.

Source: libp2p/specs, pubsub/README.md, "Message Signing" and "Message Signature Policies": "the signature,
sequence number and from fields" must be there, and only what verifies is propagated.
"""

from __future__ import annotations

from collections.abc import Callable

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

from p2p.gossip.messages import SIGN_PREFIX, Message

_PEER_ID_PREFIX = bytes.fromhex("002408011220")  # identity multihash of an ed25519 PublicKey message
_PEER_ID_BYTES = len(_PEER_ID_PREFIX) + 32
_KEY_START = 2  # the PublicKey message begins after the multihash head
_SIGNATURE_BYTES = 64
_SEQNO_BYTES = 8


def signer(seed: bytes) -> Callable[[bytes], bytes]:
    """The router's `sign` for a 32-byte ed25519 seed."""
    _, secret = crypto_sign_seed_keypair(seed)

    def sign(data: bytes) -> bytes:
        return crypto_sign(data, secret)[:_SIGNATURE_BYTES]

    return sign


def is_signed_by_source(message: Message) -> bool:
    """The router's `verify`. Sources with other than ed25519 keys are refused: there are none here."""
    source = message.source
    if (
        len(source) != _PEER_ID_BYTES
        or not source.startswith(_PEER_ID_PREFIX)
        or len(message.signature) != _SIGNATURE_BYTES
        or len(message.seqno) != _SEQNO_BYTES
        or (message.key and message.key != source[_KEY_START:])
    ):
        return False
    try:
        crypto_sign_open(message.signature + SIGN_PREFIX + message.signed, source[len(_PEER_ID_PREFIX) :])
    except (BadSignatureError, ValueError):
        return False
    return True
