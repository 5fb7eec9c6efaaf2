"""A dozen lines of DER writing, for the one certificate extension that no library builds."""

from __future__ import annotations


def tlv(tag: int, body: bytes) -> bytes:
    """Tag, length, body."""
    size = len(body)
    if size < 0x80:
        return bytes((tag, size)) + body
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + body


def sequence(*parts: bytes) -> bytes:
    """SEQUENCE."""
    return tlv(0x30, b"".join(parts))


def octets(data: bytes) -> bytes:
    """OCTET STRING."""
    return tlv(0x04, data)


def boolean(value: bool) -> bytes:
    """BOOLEAN."""
    return tlv(0x01, b"\xff" if value else b"\x00")


def enumerated(value: int) -> bytes:
    """ENUMERATED, small."""
    return tlv(0x0A, bytes((value,)))


def integer(value: int) -> bytes:
    """INTEGER, not negative."""
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    """OBJECT IDENTIFIER."""
    first, second, *rest = (int(part) for part in dotted.split("."))
    body = bytearray((first * 40 + second,))
    for value in rest:
        chunk = [value & 0x7F]
        while value := value >> 7:
            chunk.append(0x80 | (value & 0x7F))
        body += bytes(reversed(chunk))
    return tlv(0x06, bytes(body))
