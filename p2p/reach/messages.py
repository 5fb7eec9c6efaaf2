"""The messages of circuit relay v2 (hop and stop), AutoNAT v1 and DCUtR, with their bounds. Sans-IO.

Sources: libp2p/specs, relay/circuit-v2.md, autonat/autonat-v1.md, relay/DCUtR.md. Each message travels behind its
length as an unsigned varint. Unknown fields are skipped; what is over a bound is refused whole.

Not here: vouchers (optional in the specification, and nobody asks for ours), signed peer records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from p2p.errors import P2PError
from p2p.protobuf import BYTES, VARINT, ProtobufInvalid, bytes_field, fields, varint_field

HOP = "/libp2p/circuit/relay/0.2.0/hop"
STOP = "/libp2p/circuit/relay/0.2.0/stop"
AUTONAT = "/libp2p/autonat/1.0.0"
DCUTR = "/libp2p/dcutr"

MESSAGE_BYTES_MAX = 4096  # "implementations SHOULD refuse to read anything larger than 4 KiB" (circuit v2, DCUtR)
ADDRESSES_MAX = 16
ADDRESS_BYTES_MAX = 512
PEER_BYTES_MAX = 64

KindT = TypeVar("KindT", bound=IntEnum)


class ReachMessageInvalid(P2PError):
    """Bytes that are no message of these protocols, or are over a bound."""


class Status(IntEnum):
    """circuit v2, "Status codes"."""

    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


class HopKind(IntEnum):
    RESERVE = 0
    CONNECT = 1
    STATUS = 2


class StopKind(IntEnum):
    CONNECT = 0
    STATUS = 1


class PunchKind(IntEnum):
    CONNECT = 100
    SYNC = 300


class DialBackStatus(IntEnum):
    OK = 0
    DIAL_ERROR = 100
    DIAL_REFUSED = 101
    BAD_REQUEST = 200
    INTERNAL_ERROR = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class HopMessage:
    kind: HopKind
    peer: bytes = b""  # CONNECT: who is wanted
    status: int = 0
    expires_at_s: int = 0  # STATUS to RESERVE: seconds since the epoch
    addresses: tuple[bytes, ...] = ()  # the relay's, with its peer id
    duration_s: int = 0  # 0: no limit
    data_bytes: int = 0  # each way; 0: no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class StopMessage:
    kind: StopKind
    peer: bytes = b""  # CONNECT: who is calling
    status: int = 0
    duration_s: int = 0
    data_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DialBack:
    peer: bytes
    addresses: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DialBackAnswer:
    status: int
    text: str = ""
    address: bytes = b""  # OK: the one that worked


@dataclass(frozen=True, slots=True, kw_only=True)
class Punch:
    kind: PunchKind
    addresses: tuple[bytes, ...] = ()


# --- circuit v2 ----------------------------------------------------------------------------------------------


def encode_hop(message: HopMessage) -> bytes:
    out = varint_field(1, message.kind)
    if message.peer:
        out += bytes_field(2, bytes_field(1, message.peer))
    if message.expires_at_s:
        out += bytes_field(3, varint_field(1, message.expires_at_s) + _repeated(2, message.addresses))
    out += _limit(4, message.duration_s, message.data_bytes)
    return out + varint_field(5, message.status) if message.status else out


def decode_hop(data: bytes) -> HopMessage:
    """Raises ReachMessageInvalid."""
    numbers, parts = _read(data)
    reservation_numbers, reservation_parts = _read(_one(parts, 3))
    limit_numbers, _ = _read(_one(parts, 4))
    return HopMessage(
        kind=_kind(HopKind, numbers.get(1)),
        peer=_peer(_one(parts, 2)),
        status=numbers.get(5, 0),
        expires_at_s=reservation_numbers.get(1, 0),
        addresses=_addresses(reservation_parts.get(2, [])),
        duration_s=limit_numbers.get(1, 0),
        data_bytes=limit_numbers.get(2, 0),
    )


def encode_stop(message: StopMessage) -> bytes:
    out = varint_field(1, message.kind)
    if message.peer:
        out += bytes_field(2, bytes_field(1, message.peer))
    out += _limit(3, message.duration_s, message.data_bytes)
    return out + varint_field(4, message.status) if message.status else out


def decode_stop(data: bytes) -> StopMessage:
    """Raises ReachMessageInvalid."""
    numbers, parts = _read(data)
    limit_numbers, _ = _read(_one(parts, 3))
    return StopMessage(
        kind=_kind(StopKind, numbers.get(1)),
        peer=_peer(_one(parts, 2)),
        status=numbers.get(4, 0),
        duration_s=limit_numbers.get(1, 0),
        data_bytes=limit_numbers.get(2, 0),
    )


# --- AutoNAT v1 ----------------------------------------------------------------------------------------------

_DIAL, _DIAL_RESPONSE = 0, 1


def encode_dial_back(message: DialBack) -> bytes:
    peer = bytes_field(1, message.peer) + _repeated(2, message.addresses)
    return varint_field(1, _DIAL) + bytes_field(2, bytes_field(1, peer))


def decode_dial_back(data: bytes) -> DialBack:
    """Raises ReachMessageInvalid."""
    numbers, parts = _read(data)
    if numbers.get(1) != _DIAL:
        raise ReachMessageInvalid("not a request to be dialled")
    _, dial = _read(_one(parts, 2))
    _, peer = _read(_one(dial, 1))
    return DialBack(peer=_bounded(_one(peer, 1), PEER_BYTES_MAX), addresses=_addresses(peer.get(2, [])))


def encode_dial_back_answer(message: DialBackAnswer) -> bytes:
    answer = varint_field(1, message.status)
    if message.text:
        answer += bytes_field(2, message.text.encode()[:200])
    if message.address:
        answer += bytes_field(3, message.address)
    return varint_field(1, _DIAL_RESPONSE) + bytes_field(3, answer)


def decode_dial_back_answer(data: bytes) -> DialBackAnswer:
    """Raises ReachMessageInvalid."""
    numbers, parts = _read(data)
    if numbers.get(1) != _DIAL_RESPONSE or 3 not in parts:
        raise ReachMessageInvalid("not an answer about a dial")
    numbers, answer = _read(_one(parts, 3))
    text = _one(answer, 2)[:200].decode("utf-8", "replace")
    return DialBackAnswer(
        status=numbers.get(1, 0),
        text="".join(c for c in text if c.isprintable()),
        address=_bounded(_one(answer, 3), ADDRESS_BYTES_MAX),
    )


# --- DCUtR ---------------------------------------------------------------------------------------------------


def encode_punch(message: Punch) -> bytes:
    return varint_field(1, message.kind) + _repeated(2, message.addresses)


def decode_punch(data: bytes) -> Punch:
    """Raises ReachMessageInvalid."""
    numbers, parts = _read(data)
    return Punch(kind=_kind(PunchKind, numbers.get(1)), addresses=_addresses(parts.get(2, [])))


# --- reading -------------------------------------------------------------------------------------------------


def _read(data: bytes) -> tuple[dict[int, int], dict[int, list[bytes]]]:
    """Numbers (the last of each field) and byte strings (all of each field), by field number."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise ReachMessageInvalid(f"over {MESSAGE_BYTES_MAX} bytes")
    numbers: dict[int, int] = {}
    parts: dict[int, list[bytes]] = {}
    try:
        for tag, a, b, _ in fields(data, 0, len(data)):
            if tag & 7 == VARINT:
                numbers[tag >> 3] = a
            elif tag & 7 == BYTES:
                parts.setdefault(tag >> 3, []).append(data[a:b])
    except ProtobufInvalid as error:
        raise ReachMessageInvalid(str(error)) from error
    return numbers, parts


def _one(parts: dict[int, list[bytes]], number: int) -> bytes:
    return parts.get(number, [b""])[-1]


def _kind(kinds: type[KindT], number: int | None) -> KindT:
    try:
        return kinds(-1 if number is None else number)
    except ValueError:
        raise ReachMessageInvalid("a message of an unknown kind") from None


def _peer(data: bytes) -> bytes:
    _, parts = _read(data)
    return _bounded(_one(parts, 1), PEER_BYTES_MAX)


def _addresses(found: Sequence[bytes]) -> tuple[bytes, ...]:
    """The first so many; who offers more has had his chance."""
    return tuple(_bounded(address, ADDRESS_BYTES_MAX) for address in found[:ADDRESSES_MAX])


def _bounded(value: bytes, size_max: int) -> bytes:
    if len(value) > size_max:
        raise ReachMessageInvalid("a field over its bound")
    return value


def _repeated(number: int, values: Sequence[bytes]) -> bytes:
    return b"".join(bytes_field(number, value) for value in values[:ADDRESSES_MAX])


def _limit(number: int, duration_s: int, data_bytes: int) -> bytes:
    if not duration_s and not data_bytes:
        return b""
    return bytes_field(number, varint_field(1, duration_s) + varint_field(2, data_bytes))
