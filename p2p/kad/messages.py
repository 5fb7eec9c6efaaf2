"""The DHT's messages and their strict codec. Schema: libp2p/specs, kad-dht/README.md, "RPC messages".

Addresses are multiaddrs in binary form and stay so: the machine compares and hands them on, drivers read them.
Every list and length has a bound. Unknown fields are read over (implementations add signed records).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum

from p2p.protobuf import BYTES, VARINT, ProtobufInvalid, bytes_field, fields, varint_bytes, varint_field

MESSAGE_BYTES_MAX = 64 * 1024  # 20 + 64 peers of 8 addresses fit twice
KEY_BYTES_MAX = 128
PEER_ID_BYTES_MAX = 64
ADDRESS_BYTES_MAX = 256  # a relayed address with two peer ids has 100
ADDRESSES_MAX = 8  # per peer; more are read over
PEERS_MAX = 64  # in one list
VALUE_BYTES_MAX = 16 * 1024
TIME_BYTES_MAX = 64


class KadMessageInvalid(ProtobufInvalid):
    """Bytes that are no DHT message, or over a bound of one."""


class Kind(IntEnum):
    PUT_VALUE = 0
    GET_VALUE = 1
    ADD_PROVIDER = 2
    GET_PROVIDERS = 3
    FIND_NODE = 4
    PING = 5


@dataclass(frozen=True, slots=True)
class KadPeer:
    peer: bytes
    addresses: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KadMessage:
    kind: Kind
    key: bytes = b""
    record: Record | None = None
    closer: tuple[KadPeer, ...] = ()
    providers: tuple[KadPeer, ...] = ()


def kad_id(key: bytes) -> int:
    """ "The distance between two keys is XOR(sha256(key1), sha256(key2))": the number that is XORed."""
    return int.from_bytes(hashlib.sha256(key).digest(), "big")


def encode_message(message: KadMessage) -> bytes:
    parts = [varint_field(1, message.kind)]
    if message.key:
        parts.append(bytes_field(2, message.key))
    if message.record is not None:
        record = bytes_field(1, message.record.key) + bytes_field(2, message.record.value)
        parts.append(bytes_field(3, record))
    parts += [bytes_field(8, _encode_peer(peer)) for peer in message.closer]
    parts += [bytes_field(9, _encode_peer(peer)) for peer in message.providers]
    return b"".join(parts)


def message_bytes(message: KadMessage) -> int:
    """`len(encode_message(message))` without encoding: what a simulation charges for it."""
    total = 2 + (_field_bytes(len(message.key)) if message.key else 0)
    if message.record is not None:
        total += _field_bytes(_field_bytes(len(message.record.key)) + _field_bytes(len(message.record.value)))
    for peer in (*message.closer, *message.providers):
        total += _field_bytes(_field_bytes(len(peer.peer)) + sum(_field_bytes(len(a)) for a in peer.addresses))
    return total


def _field_bytes(size: int) -> int:
    return 1 + varint_bytes(size) + size


def _encode_peer(peer: KadPeer) -> bytes:
    return bytes_field(1, peer.peer) + b"".join(bytes_field(2, address) for address in peer.addresses)


def decode_message(data: bytes) -> KadMessage:
    """Raises KadMessageInvalid."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise KadMessageInvalid("message too long")
    try:
        return _decode(data)
    except KadMessageInvalid:
        raise
    except ProtobufInvalid as error:
        raise KadMessageInvalid(str(error)) from error


def _decode(data: bytes) -> KadMessage:
    kind = 0  # a missing type is PUT_VALUE: protobuf leaves defaults out
    key = b""
    record: Record | None = None
    closer: list[KadPeer] = []
    providers: list[KadPeer] = []
    for tag, a, b, _ in fields(data, 0, len(data)):
        if tag == 1 << 3 | VARINT:
            kind = a
        elif tag == 2 << 3 | BYTES:
            if b - a > KEY_BYTES_MAX:
                raise KadMessageInvalid("key too long")
            key = data[a:b]
        elif tag == 3 << 3 | BYTES:
            record = _decode_record(data, a, b)
        elif tag in (8 << 3 | BYTES, 9 << 3 | BYTES):
            peers = closer if tag >> 3 == 8 else providers
            peers.append(_decode_peer(data, a, b))
            if len(peers) > PEERS_MAX:
                raise KadMessageInvalid("too many peers")
        elif tag >> 3 in (1, 2, 3, 8, 9):
            raise KadMessageInvalid("wrong wire type")
    try:
        known = Kind(kind)
    except ValueError:
        raise KadMessageInvalid("unknown message type") from None
    return KadMessage(kind=known, key=key, record=record, closer=tuple(closer), providers=tuple(providers))


def _decode_record(data: bytes, start: int, end: int) -> Record:
    key = value = b""
    for tag, a, b, _ in fields(data, start, end):
        if tag == 1 << 3 | BYTES and b - a <= KEY_BYTES_MAX:
            key = data[a:b]
        elif tag == 2 << 3 | BYTES and b - a <= VALUE_BYTES_MAX:
            value = data[a:b]
        elif tag >> 3 in (1, 2):
            raise KadMessageInvalid("a record field over its bound")
    return Record(key, value)


def _decode_peer(data: bytes, start: int, end: int) -> KadPeer:
    peer = b""
    addresses: list[bytes] = []
    for tag, a, b, _ in fields(data, start, end):
        if tag == 1 << 3 | BYTES:
            if not 0 < b - a <= PEER_ID_BYTES_MAX:
                raise KadMessageInvalid("a peer id over its bound")
            peer = data[a:b]
        elif tag == 2 << 3 | BYTES:
            if 0 < b - a <= ADDRESS_BYTES_MAX and len(addresses) < ADDRESSES_MAX:
                addresses.append(data[a:b])
        elif tag >> 3 in (1, 2):
            raise KadMessageInvalid("wrong wire type")
    if not peer:
        raise KadMessageInvalid("a peer without an id")
    return KadPeer(peer, tuple(addresses))
