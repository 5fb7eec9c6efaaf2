"""A muxed libp2p stream as the `RawStream` that frames are put on."""

from __future__ import annotations

from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset

from p2p.driver.muxer import MuxedStream
from p2p.errors import StreamReset
from p2p.interface import KIB

READ_BYTES_MAX = 64 * KIB


class MuxedRawStream:
    def __init__(self, muxed: MuxedStream) -> None:
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
