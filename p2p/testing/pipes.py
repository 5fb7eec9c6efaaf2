"""Byte pipes in memory: the `RawStream` of the memory network, with latency and a window."""

from __future__ import annotations

from collections import deque

import trio

from p2p.errors import StreamReset
from p2p.interface import KIB

READ_BYTES_MAX = 64 * KIB
RELEASED_BYTES_MAX = 64 * KIB


class _Direction:
    """One way of a stream. Pieces become readable at their due time, in order."""

    def __init__(self, window_bytes: int) -> None:
        self.pieces: deque[tuple[float, bytes]] = deque()  # (due, bytes); b"" is the orderly end
        self.free = window_bytes
        self.changed = trio.Event()
        self.discard_left: int | None = None  # set: nobody reads any more, and so much is dropped yet

    def note(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class MemoryStream:
    """One end. `peer_end` is set by `stream_pair`. `delay_s` is asked for at each write, so it may change."""

    def __init__(self, link: Link, incoming: _Direction, outgoing: _Direction) -> None:
        self._link = link
        self._in = incoming
        self._out = outgoing
        self._is_write_closed = False
        self._is_reset = False
        self._remote_ended = False
        self.peer_end: MemoryStream

    async def read_some(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            if self._is_reset:
                raise StreamReset("the stream was reset")
            if self._remote_ended:
                return b""
            if self._in.pieces:
                due, data = self._in.pieces[0]
                wait_s = due - trio.current_time()
                if wait_s <= 0:
                    return self._take(data)
                with trio.move_on_after(wait_s):
                    await self._in.changed.wait()
            else:
                await self._in.changed.wait()

    def _take(self, data: bytes) -> bytes:
        due, _ = self._in.pieces.popleft()
        if not data:
            self._remote_ended = True
            return b""
        if len(data) > READ_BYTES_MAX:
            self._in.pieces.appendleft((due, data[READ_BYTES_MAX:]))
            data = data[:READ_BYTES_MAX]
        self._in.free += len(data)
        self._in.note()
        return data

    async def write_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        while data:
            if self._is_reset:
                raise StreamReset("the stream was reset")
            if self._out.discard_left is not None:
                self._out.discard_left -= len(data)
                if self._out.discard_left < 0:
                    self.break_both()
                    continue
                return
            if not self._out.free:
                await self._out.changed.wait()
                continue
            piece, data = data[: self._out.free], data[self._out.free :]
            self._out.free -= len(piece)
            self._put(piece)

    def _put(self, piece: bytes) -> None:
        due = trio.current_time() + self._link.delay_s()
        if self._out.pieces:
            due = max(due, self._out.pieces[-1][0])
        self._out.pieces.append((due, piece))
        self._out.note()
        self._link.wrote(len(piece))

    async def close_write(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._is_reset:
            raise StreamReset("the stream was reset")
        if not self._is_write_closed:
            self._is_write_closed = True
            self._put(b"")

    async def reset(self) -> None:
        self.break_both()
        await trio.lowlevel.checkpoint()

    async def release(self) -> None:
        """What the peer still sends is dropped; if it goes on and on, the stream is reset."""
        self._in.pieces.clear()
        self._in.discard_left = RELEASED_BYTES_MAX
        self._in.note()
        await trio.lowlevel.checkpoint()

    def break_both(self) -> None:
        for end in (self, self.peer_end):
            if not end._is_reset:
                end._is_reset = True
                end._in.pieces.clear()
                end._in.note()
                end._out.note()


class Link:
    """What both ends of a connection share: its delay, and a count of what passed."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self.bytes_written = 0

    def delay_s(self) -> float:
        return self._delay_s

    def change_delay_s(self, delay_s: float) -> None:
        """For what is written from now on."""
        self._delay_s = delay_s

    def wrote(self, size: int) -> None:
        self.bytes_written += size


def stream_pair(link: Link, *, window_bytes: int) -> tuple[MemoryStream, MemoryStream]:
    forth, back = _Direction(window_bytes), _Direction(window_bytes)
    near, far = MemoryStream(link, back, forth), MemoryStream(link, forth, back)
    near.peer_end, far.peer_end = far, near
    return near, far
