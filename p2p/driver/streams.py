"""A muxed libp2p stream as the `RawStream` that frames are put on."""

from __future__ import annotations

from typing import Protocol

from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset

from p2p.errors import StreamReset
from p2p.interface import KIB

READ_BYTES_MAX = 64 * KIB


class ReleasableStream(Protocol):
    """What every transport's streams can do beyond the library's `IMuxedStream`: be dropped by their reader."""

    async def read(self, n: int | None = None) -> bytes: ...
    async def write(self, data: bytes) -> None: ...
    async def close(self) -> None: ...
    async def reset(self) -> None: ...
    async def release(self) -> None: ...


class MuxedRawStream:
    def __init__(self, muxed: ReleasableStream) -> None:
        self._muxed = muxed
        self._remote_ended = False

    async def read_some(self) -> bytes:
        if self._remote_ended:
            return b""
        try:
            return await self._muxed.read(READ_BYTES_MAX)
        except MuxedStreamEOF:
            self._remote_ended = True
            return b""
        except MuxedStreamReset:
            raise StreamReset("the stream was reset") from None

    async def write_all(self, data: bytes) -> None:
        try:
            await self._muxed.write(data)
        except MuxedStreamError:
            raise StreamReset("the stream was reset") from None

    async def close_write(self) -> None:
        await self._muxed.close()

    async def reset(self) -> None:
        await self._muxed.reset()

    async def release(self) -> None:
        await self._muxed.release()
