"""A muxed libp2p stream as the `RawStream` that frames are put on."""

from __future__ import annotations

from libp2p.abc import IMuxedStream
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset

from p2p.errors import StreamReset
from p2p.interface import KIB

READ_BYTES_MAX = 64 * KIB


class MuxedRawStream:
    def __init__(self, muxed: IMuxedStream) -> None:
        self._muxed = muxed
        self._remote_ended = False

    async def read_some(self) -> bytes:
        if self._remote_ended:
            return b""
        try:
            return bytes(await self._muxed.read(READ_BYTES_MAX))
        except MuxedStreamEOF:
            # yamux of libp2p 0.8.1 says "EOF" of a lost connection too; only a FIN is an orderly end
            if self._muxed.muxed_conn.is_closed or not self._muxed.muxed_conn.is_established:
                raise StreamReset("the connection was lost") from None
            self._remote_ended = True
            return b""
        except MuxedStreamReset:
            raise StreamReset("the stream was reset") from None
        except Exception as error:
            raise StreamReset(f"the connection failed: {type(error).__name__}") from error

    async def write_all(self, data: bytes) -> None:
        try:
            await self._muxed.write(data)
        except MuxedStreamError:
            raise StreamReset("the stream was reset") from None
        except Exception as error:
            raise StreamReset(f"the connection failed: {type(error).__name__}") from error

    async def close_write(self) -> None:
        try:
            await self._muxed.close()
        except Exception as error:
            raise StreamReset(f"the connection failed: {type(error).__name__}") from error

    async def reset(self) -> None:
        try:
            await self._muxed.reset()
        except Exception as error:
            raise StreamReset(f"the connection failed: {type(error).__name__}") from error

    async def release(self) -> None:
        return None
