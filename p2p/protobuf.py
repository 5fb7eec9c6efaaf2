"""Strict protobuf wire reading and writing, as much of it as libp2p's messages need.

Reading yields fields in the order received, as slices of the input; nothing is copied before it is asked for.
Refused: truncated fields, varints over 64 bits or not in shortest form, groups, field number 0. Unknown fields
are the caller's to skip. Source: protobuf "Encoding" guide.

Not here: schemas. Each message module says by hand which fields it knows and what their bounds are.
"""

from __future__ import annotations

from collections.abc import Iterator

from p2p.errors import P2PError

VARINT = 0
FIXED64 = 1
BYTES = 2
FIXED32 = 5


class ProtobufInvalid(P2PError):
    """Bytes that are not the protobuf message they should be."""


def fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (tag, a, b, field_start) for each field of data[start:end]; tag = number << 3 | wire type.

    For BYTES the value is data[a:b]; for VARINT it is the integer a; for fixed types data[a:b].
    """
    while start < end:
        field_start = start
        tag = data[start]
        start += 1
        if tag > 127:
            tag, start = read_varint(data, start - 1, end)
        kind = tag & 7
        if tag < 8:
            raise ProtobufInvalid("field number 0")
        if kind == BYTES:
            if start >= end:
                raise ProtobufInvalid("truncated")
            size = data[start]
            start += 1
            if size > 127:
                size, start = read_varint(data, start - 1, end)
            stop = start + size
            if stop > end:
                raise ProtobufInvalid("truncated")
            yield tag, start, stop, field_start
            start = stop
        elif kind == VARINT:
            value, start = read_varint(data, start, end)
            yield tag, value, 0, field_start
        elif kind in (FIXED32, FIXED64):
            stop = start + (4 if kind == FIXED32 else 8)
            if stop > end:
                raise ProtobufInvalid("truncated")
            yield tag, start, stop, field_start
            start = stop
        else:
            raise ProtobufInvalid("unknown wire type")


def read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """The varint at `position` and the position after it. At most 64 bits, shortest form only."""
    value = shift = 0
    while True:
        if position >= end or shift > 63:
            raise ProtobufInvalid("varint truncated or too long")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if (byte == 0 and shift) or value >> 64:
                raise ProtobufInvalid("varint not in shortest form")
            return value, position
        shift += 7


def varint(value: int) -> bytes:
    if value < 128:
        return b"%c" % value
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def varint_bytes(value: int) -> int:
    """`len(varint(value))`."""
    return 1 if value < 128 else (value.bit_length() + 6) // 7


def bytes_field(number: int, value: bytes) -> bytes:
    return b"%b%b%b" % (varint(number << 3 | BYTES), varint(len(value)), value)


def varint_field(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)
