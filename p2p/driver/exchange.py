"""Short messages on a stream that may turn into something else: a length, the bytes, and nothing read too far.

What has arrived behind the last message is in `rest`: it belongs to whoever takes the stream over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from p2p.driver.negotiate import propose
from p2p.driver.streams import MuxedRawStream
from p2p.errors import StreamReset
from p2p.framing import FrameReader, encode_frame
from p2p.reach import MESSAGE_BYTES_MAX


class MessageStream:
    def __init__(self, muxed: Any) -> None:
        self.raw = MuxedRawStream(muxed)
        self._reader = FrameReader(frame_bytes_max=MESSAGE_BYTES_MAX)

    @property
    def rest(self) -> bytes:
        return self._reader.unread

    async def send(self, message: bytes) -> None:
        """Raises StreamReset."""
        await self.raw.write_all(encode_frame(message))

    async def receive(self) -> bytes:
        """Raises StreamReset (an end counts as one), FrameTooLarge, FrameInvalid."""
        while (frame := self._reader.next_frame()) is None:
            data = await self.raw.read_some()
            if not data:
                raise StreamReset("the stream ended before the message did")
            self._reader.feed(data)
        return frame


@asynccontextmanager
async def open_exchange(connection: Any, protocol: str) -> AsyncIterator[MessageStream]:
    """A stream on one given connection, for the block. Closed when the block ends well, else reset.
    Raises OpenFailed, ProtocolUnsupported, MuxedStreamError, StreamReset."""
    muxed = await connection.muxed_conn.open_stream()
    ended = False
    try:
        await propose(muxed, protocol)
        yield MessageStream(muxed)
        ended = True
    finally:
        with trio.move_on_after(1) as scope:
            scope.shield = True
            if ended:
                await muxed.close()
                await muxed.release()
            else:
                await muxed.reset()
