"""Deterministic CBOR (RFC 8949 §4.2.1) for the messages of `cocoon.wire.messages`.

`encode` gives the one encoding of a message; `decode` takes that encoding and nothing else. Before anything is
allocated, `_scan` walks the bytes once and refuses: too long, too deep, too many items, tags, floats, indefinite
lengths, non-shortest integers and lengths, unsorted or duplicate map keys, map keys other than unsigned integers,
simple values other than false, true and null, and trailing bytes. Only then do cbor2 and msgspec see it.

Arrays carry the fields, so there is no key order to get wrong; maps occur only as extension maps {uint: bytes}.
Floats never travel: they have several encodings of one value.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import cbor2
import msgspec

from ..errors import DecodeError, LimitExceeded

T = TypeVar("T")

DEPTH_MAX: Final = 8
"""Deepest nesting of arrays and maps; the deepest message we define needs 5."""

ITEMS_MAX: Final = 64 * 1024
"""Most array items and map pairs in one message: walking an item costs 0.2 µs, so a junk message costs 15 ms."""

_ONE_BYTE, _TWO_BYTES, _FOUR_BYTES, _EIGHT_BYTES = 24, 25, 26, 27
_SIMPLE = frozenset((0xF4, 0xF5, 0xF6))  # false, true, null


def encode(message: msgspec.Struct) -> bytes:
    """The canonical bytes of a message. Canonical, because arrays, ints, bytes and text have one shortest form."""
    builtins = msgspec.to_builtins(message, builtin_types=(bytes,), str_keys=False)
    return cbor2.dumps(builtins, canonical=True)


def decode(data: bytes, kind: Any, *, bytes_max: int, depth_max: int = DEPTH_MAX, items_max: int = ITEMS_MAX) -> Any:
    """The message that `data` is the canonical encoding of.

    `kind` is a message class or a union of them. Raises `LimitExceeded` (too long, too deep, too many items) or
    `DecodeError`; never anything else, whatever the bytes.
    """
    if len(data) > bytes_max:
        raise LimitExceeded(f"message of {len(data)} bytes; at most {bytes_max}")
    _scan(data, depth_max, items_max)
    try:
        # Without `builtin_types` msgspec would take base64 text where bytes belong: a second encoding.
        return msgspec.convert(cbor2.loads(data), kind, strict=True, builtin_types=(bytes,))
    except msgspec.ValidationError as error:  # its text names a path and a type, never content
        raise DecodeError(f"not a message of this protocol: {str(error)[:200]}") from None
    except (cbor2.CBORDecodeError, UnicodeDecodeError):
        raise DecodeError("text that is not UTF-8") from None


def decode_as(data: bytes, kind: type[T], *, bytes_max: int, depth_max: int = DEPTH_MAX) -> T:
    """`decode` for one class, typed."""
    message: T = decode(data, kind, bytes_max=bytes_max, depth_max=depth_max)
    return message


def _scan(data: bytes, depth_max: int, items_max: int = ITEMS_MAX) -> None:
    """Refuse everything but one canonical item that fills `data` exactly."""
    end = len(data)
    at = 0
    # One entry per open array or map: [items left, last map key or -1, is_map, next item is a key].
    left = 1
    stack: list[tuple[int, int, bool]] = []
    in_map = False
    last_key = -1
    while True:
        if left == 0:
            if not stack:
                break
            left, last_key, in_map = stack.pop()
            continue
        left -= 1
        if at >= end:
            raise DecodeError("ends in the middle of an item")
        head = data[at]
        at += 1
        major, info = head >> 5, head & 0x1F
        if major == 7:
            if head not in _SIMPLE:
                raise DecodeError("a float or an undefined simple value")
            if in_map and left & 1:
                raise DecodeError("a map key that is not an unsigned integer")
            continue
        if info < _ONE_BYTE:
            value = info
        elif info > _EIGHT_BYTES:
            raise DecodeError("an indefinite length or a reserved form")
        else:
            width = 1 << (info - _ONE_BYTE)
            if at + width > end:
                raise DecodeError("ends in the middle of an item")
            value = int.from_bytes(data[at : at + width], "big")
            at += width
            if value < (_ONE_BYTE if width == 1 else 1 << (4 * width)):
                raise DecodeError("not the shortest form of an integer or length")
        if in_map and left & 1:  # keys and values alternate; an odd count left behind means this is a key
            if major != 0:
                raise DecodeError("a map key that is not an unsigned integer")
            if value <= last_key:
                raise DecodeError("map keys out of order or twice")
            last_key = value
        elif major <= 1:
            pass
        elif major <= 3:
            if value > end - at:
                raise DecodeError("a string longer than the message")
            at += value
        elif major <= 5:
            count = value if major == 4 else 2 * value
            if count > end - at:
                raise DecodeError("an array or map longer than the message")
            items_max -= value
            if items_max < 0:
                raise LimitExceeded("too many items in one message")
            if len(stack) >= depth_max:
                raise LimitExceeded(f"nested deeper than {depth_max}")
            stack.append((left, last_key, in_map))
            left, last_key, in_map = count, -1, major == 5
        else:
            raise DecodeError("a tag")
    if at != end:
        raise DecodeError("bytes after the message")
