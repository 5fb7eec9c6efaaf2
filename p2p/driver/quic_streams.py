"""One stream of a QUIC connection under trio, both for our own parts (`read_some` …) and as libp2p's `IMuxedStream`.

Not here: the connection (`quic_link.py`), windows and limits (`quic_machine.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from libp2p.abc import IMuxedStream
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

from p2p.driver.quic_state import StreamState
from p2p.errors import StreamClosed, StreamReset
from p2p.transport.signal import Signal

if TYPE_CHECKING:
    from p2p.driver.quic_link import QuicLink

READ_BYTES_MAX = 64 * 1024
WRITES_PER_TURN_MAX = 16  # a writer that never has to wait still lets others run: about 2 ms


class QuicStream(IMuxedStream):  # type: ignore[misc]
    """One stream, both for our own parts (`read_some` …) and as libp2p's `IMuxedStream` (`read` …). One reader and
    one writer at a time.

    Cancelled, a read loses nothing; a write may have handed over a part.
    """

    def __init__(self, link: QuicLink, state: StreamState) -> None:
        self.muxed_conn = link
        self.state = state
        self._readable = Signal()
        self._room = Signal()
        self._writes = 0
        state.owner = self

    async def read_some(self, size_max: int = READ_BYTES_MAX) -> bytes:
        """At least one byte; b"" at the peer's orderly end. Raises StreamReset."""
        await trio.lowlevel.checkpoint_if_cancelled()
        state, link = self.state, self.muxed_conn
        while not state.unread:
            if state.is_reset:
                raise StreamReset("the stream was reset")
            if state.is_ended:
                return b""
            if link.is_closed:
                raise StreamReset("the connection was lost")
            await self._readable.wait()
        data = link.machine.read(state, size_max)
        link.flush_credit()
        return data

    async def write_all(self, data: bytes) -> None:
        """Returns when the machine has taken all of it, waiting for the peer as long as it takes. Raises StreamReset,
        StreamClosed (we closed this side)."""
        await trio.lowlevel.checkpoint_if_cancelled()
        state, link = self.state, self.muxed_conn
        offset = 0
        while True:
            if state.is_reset or state.is_stopped or link.is_closed:
                raise StreamReset("the connection was lost" if link.is_closed else "the stream was reset")
            if state.is_write_closed:
                raise StreamClosed("this side was closed")
            offset = link.machine.write(state, data, offset)
            link.flush()
            if offset >= len(data):
                break
            if state.is_blocked:
                self._writes = 0
                await self._room.wait()
        self._writes += 1
        if self._writes >= WRITES_PER_TURN_MAX:
            self._writes = 0
            await trio.lowlevel.checkpoint()

    async def close_write(self) -> None:
        link = self.muxed_conn
        if not link.is_closed:
            link.machine.close_write(self.state, now=trio.current_time())
            link.flush()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        self.muxed_conn.machine.reset(self.state)
        self.wake()
        self.muxed_conn.flush()
        await trio.lowlevel.checkpoint()

    async def release(self) -> None:
        """We are done reading: what still arrives is dropped, and a peer that goes on and on is told to stop."""
        self.muxed_conn.machine.release(self.state)
        await trio.lowlevel.checkpoint()

    @property
    def is_closed(self) -> bool:
        return self.state.is_done_here or self.muxed_conn.is_closed

    def wake(self) -> None:
        self._readable.notify()
        self._room.notify()

    def wake_writer(self) -> None:
        self._room.notify()

    # --- libp2p's words ------------------------------------------------------------------------------------

    async def read(self, n: int | None = None) -> bytes:
        try:
            data = await self.read_some(n) if n is not None and n > 0 else await self.read_some()
        except StreamReset as error:
            raise MuxedStreamReset(str(error)) from error
        if not data:
            raise MuxedStreamEOF("the remote closed its side")
        return data

    async def write(self, data: bytes) -> None:
        try:
            await self.write_all(data)
        except StreamReset as error:
            raise MuxedStreamReset(str(error)) from error
        except StreamClosed as error:
            raise MuxedStreamClosed(str(error)) from error

    async def close(self) -> None:
        """libp2p's word for closing our side: reading goes on."""
        await self.close_write()

    def set_deadline(self, ttl: int) -> None:
        raise NotImplementedError("use trio's cancel scopes")

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.muxed_conn.get_remote_address()

    async def __aenter__(self) -> QuicStream:
        return self
