"""Peer keys as peer ids, and the multiaddrs of an offer as text and back.

An offer carries addresses as binary multiaddrs without the peer id; the `Network` port speaks text. Known forms
are those that the transport can dial: `/ip4|ip6|dns|dns4|dns6/…`, then `/tcp/N`, `/tcp/N/ws` or `/udp/N/quic-v1`,
optionally `/p2p/RELAY/p2p-circuit`. An offer may hold others (a newer node's): they are skipped, not refused.

Not here: whether an address may be dialled (rule G4); the network adapter's dial policy decides that.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from ..errors import DecodeError, LimitExceeded
from ..types import PeerId
from ..wire import limits

_PEER_ID_PREFIX: Final = bytes.fromhex("002408011220")  # identity multihash of an ed25519 public key
_PEER_ID_BYTES: Final = len(_PEER_ID_PREFIX) + 32
_PEER_ID_CHARS_MAX: Final = 64  # a peer id has 52; checked before the quadratic decoding
_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DIGITS: Final = {char: value for value, char in enumerate(_ALPHABET)}
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?\Z")
_NAME_CHARS_MAX: Final = 96  # what fits ADDRESS_BYTES_MAX beside a port

# Multicodec numbers as they stand on the wire (unsigned varints).
_IP4, _IP6 = b"\x04", b"\x29"
_TCP, _UDP, _WS, _QUIC = b"\x06", b"\x91\x02", b"\xdd\x03", b"\xcd\x03"
_PORTS: Final = {"tcp": _TCP, "udp": _UDP}
_ABOVE: Final = {("tcp", "ws"): _WS, ("udp", "quic-v1"): _QUIC}  # what may follow a port; after UDP it must
_NAMES: Final = {"dns": b"\x35", "dns4": b"\x36", "dns6": b"\x37"}
_KIND_OF_NAME: Final = {code: kind for kind, code in _NAMES.items()}
_P2P, _CIRCUIT = b"\xa5\x03", b"\xa2\x02"


def peer_id_of_key(key: bytes) -> PeerId:
    """The peer id of a 32-byte ed25519 public key. Raises `DecodeError` on another length."""
    if len(key) != 32:
        raise DecodeError("an ed25519 public key has 32 bytes")
    number = int.from_bytes(_PEER_ID_PREFIX + key, "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_ALPHABET[digit])
    return PeerId("1" + "".join(reversed(digits)))  # the multihash starts with one zero byte


def key_of_peer_id(peer: str) -> bytes:
    """The 32-byte ed25519 key inside a peer id. Raises `DecodeError`."""
    return _multihash_of(peer)[len(_PEER_ID_PREFIX) :]


def _multihash_of(peer: str) -> bytes:
    number = 0
    if not 0 < len(peer) <= _PEER_ID_CHARS_MAX:
        raise DecodeError("a peer id has 52 characters")
    for char in peer:
        digit = _DIGITS.get(char)
        if digit is None:
            raise DecodeError("a peer id in another alphabet than base58")
        number = number * 58 + digit
    if number.bit_length() > 8 * _PEER_ID_BYTES:
        raise DecodeError("not the id of an ed25519 peer key")
    raw = number.to_bytes(_PEER_ID_BYTES, "big")
    if not raw.startswith(_PEER_ID_PREFIX) or not peer.startswith("1") or peer.startswith("11"):
        raise DecodeError("not the id of an ed25519 peer key")
    return raw


def encode_address(text: str) -> bytes:
    """The binary form of `/ip4/1.2.3.4/tcp/5`; a last `/p2p/<peer>` is left out, for an offer's peer is known.

    Raises `DecodeError` on any other form, `LimitExceeded` when it does not fit an offer.
    """
    if len(text) > 512:  # a relayed DNS address with both peer ids needs about 400
        raise LimitExceeded("an address has at most 512 characters")
    parts = text.split("/")
    if len(parts) < 5 or parts[0] or parts[3] not in _PORTS:
        raise DecodeError(f"not an address of the form /ip4/…/tcp/…: {text[:80]!a}")
    port = parts[4]
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= 0xFFFF):
        raise DecodeError(f"not a port in {text[:80]!a}")
    binary = _encode_host(parts[1], parts[2]) + _PORTS[parts[3]] + int(port).to_bytes(2, "big")
    above = _ABOVE.get((parts[3], parts[5] if len(parts) > 5 else ""), b"")
    if parts[3] == "udp" and not above:
        raise DecodeError(f"an address of an unknown kind: {text[:80]!a}")
    binary += above
    match parts[6 if above else 5 :]:
        case [] | ["p2p", _]:
            pass
        case ["p2p", relay, "p2p-circuit"] | ["p2p", relay, "p2p-circuit", "p2p", _]:
            multihash = _multihash_of(relay)
            binary += _P2P + bytes((len(multihash),)) + multihash + _CIRCUIT
        case _:
            raise DecodeError(f"an address of an unknown kind: {text[:80]!a}")
    if len(binary) > limits.ADDRESS_BYTES_MAX:
        raise LimitExceeded(f"an address of {len(binary)} bytes; an offer holds {limits.ADDRESS_BYTES_MAX}")
    return binary


def _encode_host(kind: str, host: str) -> bytes:
    try:
        if kind == "ip4":
            return _IP4 + ipaddress.IPv4Address(host).packed
        if kind == "ip6":
            if "%" in host:
                raise DecodeError("an address with an interface name means nothing to others")
            return _IP6 + ipaddress.IPv6Address(host).packed
    except ipaddress.AddressValueError:
        raise DecodeError(f"not an {kind} address: {host[:80]!a}") from None
    if kind not in _NAMES or len(host) > _NAME_CHARS_MAX or not _NAME.match(host):
        raise DecodeError(f"not a host: {host[:80]!a}")
    return _NAMES[kind] + bytes((len(host),)) + host.encode()


def decode_address(binary: bytes) -> str:
    """The text of a binary multiaddr, without a peer id. Raises `DecodeError` on any form that is not known here."""
    if len(binary) > limits.ADDRESS_BYTES_MAX:
        raise LimitExceeded(f"an address of {len(binary)} bytes; an offer holds {limits.ADDRESS_BYTES_MAX}")
    code = binary[:1]
    if code == _IP4:
        host, rest = f"/ip4/{ipaddress.IPv4Address(_take(binary, 1, 4))}", binary[5:]
    elif code == _IP6:
        host, rest = f"/ip6/{ipaddress.IPv6Address(_take(binary, 1, 16))}", binary[17:]
    elif code in _KIND_OF_NAME:
        length = _take(binary, 1, 1)[0]
        name = _take(binary, 2, length).decode("ascii", "replace")
        if length > _NAME_CHARS_MAX or not _NAME.match(name):
            raise DecodeError("a host name with characters that no host name has")
        host, rest = f"/{_KIND_OF_NAME[code]}/{name}", binary[2 + length :]
    else:
        raise DecodeError("an address of an unknown kind")
    port, rest = _decode_port(rest)
    text = host + port
    if rest:
        head = _P2P + bytes((_PEER_ID_BYTES,))
        relay = rest[len(head) : len(head) + _PEER_ID_BYTES]
        if not rest.startswith(head) or rest[len(head) + _PEER_ID_BYTES :] != _CIRCUIT:
            raise DecodeError("an address of an unknown kind")
        if len(relay) != _PEER_ID_BYTES or not relay.startswith(_PEER_ID_PREFIX):
            raise DecodeError("a relay that is not an ed25519 peer")
        text += f"/p2p/{peer_id_of_key(relay[len(_PEER_ID_PREFIX) :])}/p2p-circuit"
    return text


def _decode_port(data: bytes) -> tuple[str, bytes]:
    """`/tcp/N`, `/tcp/N/ws` or `/udp/N/quic-v1` at the start of `data`, and the rest."""
    kind = next((kind for kind, code in _PORTS.items() if data.startswith(code)), None)
    if kind is None:
        raise DecodeError("an address that is neither over TCP nor UDP")
    data = data[len(_PORTS[kind]) :]
    port = int.from_bytes(_take(data, 0, 2), "big")
    if port == 0:
        raise DecodeError("port 0")
    for (below, above), code in _ABOVE.items():
        if below == kind and data[2:].startswith(code):
            return f"/{kind}/{port}/{above}", data[2 + len(code) :]
    if kind == "udp":
        raise DecodeError("an address of an unknown kind over UDP")
    return f"/{kind}/{port}", data[2:]


def _take(data: bytes, start: int, count: int) -> bytes:
    part = data[start : start + count]
    if len(part) != count:
        raise DecodeError("an address that ends early")
    return part
