"""multistream-select 1.0 on one muxed stream: how two peers agree on its protocol.

Written anew because the library's version costs two round trips, does not say which of two failures happened,
and reads lines whose number it does not bound. Source: libp2p specs, multistream-select.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Protocol

from p2p.errors import OpenFailed, ProtocolUnsupported
from p2p.framing import encode_frame

HELLO = "/multistream/1.0.0"
REFUSAL = "na"
LINE_BYTES_MAX = 1024  # protocol names have a few dozen
PROPOSALS_MAX = 16  # a peer that proposes more is not looking for a protocol


class ByteStream(Protocol):
    async def read(self, n: int | None = None) -> bytes: ...
    async def write(self, data: bytes) -> None: ...


def encode_line(text: str) -> bytes:
    return encode_frame(text.encode() + b"\n")


async def read_line(stream: ByteStream) -> str:
    """Reads exactly one line and not a byte more: what follows belongs to the protocol. Raises OpenFailed
    for what is no line; the stream's own errors pass."""
    size = (await _read_exactly(stream, 1))[0]
    if size & 0x80:
        high = (await _read_exactly(stream, 1))[0]
        if high & 0x80 or not high:
            raise OpenFailed("a negotiation line over its bound")
        size = size & 0x7F | high << 7
    if not 0 < size <= LINE_BYTES_MAX:
        raise OpenFailed("a negotiation line over its bound")
    line = await _read_exactly(stream, size)
    try:
        text = line.decode("ascii")
    except UnicodeDecodeError:
        raise OpenFailed("a negotiation line that is not text") from None
    if not text.endswith("\n"):
        raise OpenFailed("a negotiation line without an end")
    return text[:-1]


async def _read_exactly(stream: ByteStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await stream.read(size - len(data))
        if not piece:
            raise OpenFailed("the stream ended during the negotiation")
        data += piece
    return data


async def propose(stream: ByteStream, protocol: str) -> None:
    """Agree with the peer on `protocol`, in one round trip. Raises ProtocolUnsupported, OpenFailed."""
    await stream.write(encode_line(HELLO) + encode_line(protocol))
    if await read_line(stream) != HELLO:
        raise OpenFailed("the peer does not negotiate as libp2p does")
    answer = await read_line(stream)
    if answer == REFUSAL:
        raise ProtocolUnsupported(f"the peer does not speak {protocol}")
    if answer != protocol:
        raise OpenFailed("the peer answered with another protocol")


async def answer(stream: ByteStream, known: Container[str]) -> str:
    """The protocol that the peer proposed and we know. Raises OpenFailed."""
    await stream.write(encode_line(HELLO))
    if await read_line(stream) != HELLO:
        raise OpenFailed("the peer does not negotiate as libp2p does")
    for _ in range(PROPOSALS_MAX):
        proposed = await read_line(stream)
        if proposed in known:
            await stream.write(encode_line(proposed))
            return proposed
        await stream.write(encode_line(REFUSAL))
    raise OpenFailed("too many proposals")
