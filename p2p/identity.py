"""Peer ids: an ed25519 public key as libp2p writes it.

The key goes into libp2p's protobuf (`08 01 12 20` + 32 bytes), that into an identity multihash (`00 24` + 36
bytes), and that into base58btc: `12D3Koo…`. Source: libp2p specs, peer-ids. Other key types are refused:
every peer of this network has an ed25519 key.
"""

from __future__ import annotations

from p2p.errors import PeerIdInvalid
from p2p.interface import PeerId

SEED_BYTES = 32
PUBLIC_KEY_BYTES = 32
_PREFIX = bytes.fromhex("002408011220")
PEER_ID_BYTES = len(_PREFIX) + PUBLIC_KEY_BYTES
_TEXT_CHARS_MAX = 64  # a peer id has 52; checked before the quadratic base58 decoding
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DIGITS = {char: value for value, char in enumerate(_ALPHABET)}


def peer_id_of_seed(seed: bytes) -> PeerId:
    """The peer id of the key pair that grows from a 32-byte ed25519 seed."""
    return peer_id_of_public_key(public_key_of_seed(seed))


def public_key_of_seed(seed: bytes) -> bytes:
    from nacl.bindings import crypto_sign_seed_keypair  # here: `cocoon --help` must not pay for it

    if len(seed) != SEED_BYTES:
        raise PeerIdInvalid(f"a key seed has {SEED_BYTES} bytes")
    return bytes(crypto_sign_seed_keypair(seed)[0])


def peer_id_of_public_key(public_key: bytes) -> PeerId:
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise PeerIdInvalid(f"an ed25519 public key has {PUBLIC_KEY_BYTES} bytes")
    return _base58_encode(_PREFIX + public_key)


def public_key_of_peer_id(peer: PeerId) -> bytes:
    """The 32-byte ed25519 public key inside a peer id. Raises PeerIdInvalid."""
    return peer_id_to_bytes(peer)[len(_PREFIX) :]


def peer_id_to_bytes(peer: PeerId) -> bytes:
    """The 38-byte multihash of a peer id. Raises PeerIdInvalid."""
    raw = _base58_decode(peer)
    if len(raw) != PEER_ID_BYTES or not raw.startswith(_PREFIX):
        raise PeerIdInvalid("not the id of an ed25519 peer key")
    return raw


def peer_id_of_bytes(raw: bytes) -> PeerId:
    if len(raw) != PEER_ID_BYTES or not raw.startswith(_PREFIX):
        raise PeerIdInvalid("not the id of an ed25519 peer key")
    return _base58_encode(raw)


def _base58_encode(raw: bytes) -> str:
    number = int.from_bytes(raw, "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_ALPHABET[digit])
    zeros = len(raw) - len(raw.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(digits))


def _base58_decode(text: str) -> bytes:
    if not 0 < len(text) <= _TEXT_CHARS_MAX:
        raise PeerIdInvalid("a peer id has 52 characters")
    number = 0
    for char in text:
        digit = _DIGITS.get(char)
        if digit is None:
            raise PeerIdInvalid("a peer id holds base58 characters only")
        number = number * 58 + digit
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")
