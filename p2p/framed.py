"""`interface.Stream` over any ordered byte stream: frames, bounds, turns, and an end that is always clear.

The byte stream below (`RawStream`) belongs to the implementation: a muxed libp2p stream, or a pipe in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol

import trio

from p2p.counters import Counters
from p2p.errors import FrameInvalid, FrameTooLarge, MessageTooLarge, StreamClosed, StreamReset
from p2p.framing import FrameReader, encode_frame
from p2p.interface import PeerId

CLOSE_TIMEOUT_S = 1.0  # after which an end that was asked for is a break


class RawStream(Protocol):
    """Bytes both ways. One reader and one writer at a time."""

    async def read_some(self) -> bytes:
        """At least one byte, at most 64 KiB or so; b"" at the peer's orderly end. Raises StreamReset."""

    async def write_all(self, data: bytes) -> None:
        """Raises StreamReset. Cancelled, it may have written a part."""

    async def close_write(self) -> None: ...

    async def reset(self) -> None: ...

    async def release(self) -> None:
        """We are done with both directions: what still arrives is for nobody."""


class FramedStream:
    """One stream. `on_end` is called once, when our side is done with it."""

    def __init__(
        self,
        raw: RawStream,
        *,
        peer: PeerId,
        protocol: str,
        frame_bytes_max: int,
        counters: Counters,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self._raw = raw
        self._peer = peer
        self._protocol = protocol
        self._frame_bytes_max = frame_bytes_max
        self._reader = FrameReader(frame_bytes_max=frame_bytes_max)
        self._counters = counters
        self._on_end = on_end
        self._send_turn = trio.Lock()
        self._receive_turn = trio.Lock()
        self._write_closed = False
        self._remote_ended = False
        self._broken = False
        self._ended = False
        counters.streams_open += 1

    @property
    def peer(self) -> PeerId:
        return self._peer

    @property
    def protocol(self) -> str:
        return self._protocol

    def __repr__(self) -> str:
        return f"<Stream {self._protocol} {self._peer}>"

    async def send(self, frame: bytes) -> None:
        if len(frame) > self._frame_bytes_max:
            raise MessageTooLarge(
                f"a frame of {len(frame)} bytes on {self._protocol}, whose bound is {self._frame_bytes_max}"
            )
        async with self._send_turn:
            self._check_writable()
            written = False
            try:
                await self._raw.write_all(encode_frame(frame))
                written = True
            except StreamReset:
                self._broken = True
                raise
            finally:
                if not written and not self._broken:  # cancelled: what lies on the wire may be half a frame
                    await self.reset()
            self._counters.frames_sent += 1
            self._counters.bytes_sent += len(frame)

    async def receive(self) -> bytes:
        async with self._receive_turn:
            while True:
                if self._broken:
                    raise StreamReset(f"stream {self._protocol} with {self._peer} was reset")
                if self._ended:
                    raise StreamClosed(f"stream {self._protocol} with {self._peer} was closed here")
                try:
                    frame = self._reader.next_frame()
                except (FrameTooLarge, FrameInvalid):
                    self._counters.frames_refused += 1
                    await self.reset()
                    raise
                if frame is not None:
                    self._counters.frames_received += 1
                    self._counters.bytes_received += len(frame)
                    return frame
                if self._remote_ended:
                    raise StreamClosed(f"stream {self._protocol} was closed by {self._peer}")
                await self._read_more()

    async def _read_more(self) -> None:
        try:
            data = await self._raw.read_some()
        except StreamReset:
            self._broken = True
            raise
        if data:
            self._reader.feed(data)
        elif self._reader.is_between_frames:
            self._remote_ended = True
        else:
            self._counters.frames_refused += 1
            await self.reset()
            raise StreamReset(f"stream {self._protocol} with {self._peer} ended inside a frame")

    def _check_writable(self) -> None:
        if self._broken:
            raise StreamReset(f"stream {self._protocol} with {self._peer} was reset")
        if self._write_closed or self._ended:
            raise StreamClosed(f"stream {self._protocol} with {self._peer} was closed here")

    async def close_write(self) -> None:
        if self._write_closed or self._broken or self._ended:
            return
        self._write_closed = True
        with trio.move_on_after(CLOSE_TIMEOUT_S):
            try:
                await self._raw.close_write()
            except StreamReset:
                self._broken = True

    async def aclose(self) -> None:
        if self._ended:
            return
        if self._broken:
            await self.reset()
            return
        self._end()
        with trio.move_on_after(CLOSE_TIMEOUT_S) as scope:
            scope.shield = True
            try:
                if not self._write_closed:
                    self._write_closed = True
                    await self._raw.close_write()
                await self._raw.release()
            except StreamReset:
                self._broken = True
        if scope.cancelled_caught:
            await self._break()

    async def reset(self) -> None:
        self._broken = True
        self._end()
        await self._break()

    async def _break(self) -> None:
        with trio.move_on_after(CLOSE_TIMEOUT_S) as scope:
            scope.shield = True
            try:
                await self._raw.reset()
            except StreamReset:
                pass

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._counters.streams_open -= 1
        if self._on_end is not None:
            self._on_end()

    async def __aenter__(self) -> FramedStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.aclose()
        else:
            await self.reset()
