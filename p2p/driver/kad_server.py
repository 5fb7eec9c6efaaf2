"""Inbound streams of the DHT: requests in, the machine's answers out, and what becomes of who sends nonsense.

Source: libp2p/specs, kad-dht/README.md, "RPC messages". What to answer is decided by `p2p.kad`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import trio
from libp2p.abc import INetStream
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset

from p2p.errors import FrameInvalid, FrameTooLarge, StreamReset
from p2p.framing import FrameReader, encode_frame
from p2p.kad import Effect, KadMessage, KadMessageInvalid, Refuse, Send, decode_message, encode_message
from p2p.kad.messages import MESSAGE_BYTES_MAX

SERVED_PER_PEER_MAX = 8  # inbound streams of one peer, and requests on one of them:
REQUESTS_PER_STREAM_MAX = 256
REQUEST_WAIT_S = 30.0  # for the next request on an inbound stream
BLAMED_MAX = 16  # requests of one peer that nobody honest sends, then it is thrown out
BLAMED_PEERS_MAX = 4096
READ_BYTES_MAX = 64 * 1024


class DhtServer:
    def __init__(self, receive: Callable[[ID, KadMessage], list[Effect]], throw_out: Callable[[ID], None]) -> None:
        """`throw_out`: called for a peer that has sent too much that nobody honest sends."""
        self._receive = receive
        self._throw_out = throw_out
        self._serving: Counter[ID] = Counter()
        self._blamed: Counter[ID] = Counter()

    async def serve(self, stream: INetStream) -> None:
        """ "Implementations must handle additional RPC request messages on an incoming stream." """
        peer_id = stream.muxed_conn.peer_id
        if self._serving[peer_id] >= SERVED_PER_PEER_MAX:
            await stream.reset()
            return
        self._serving[peer_id] += 1
        try:
            with trio.CancelScope() as scope:
                await self._answer_all(stream, peer_id, scope)
            if scope.cancelled_caught:
                await stream.reset()
        except (KadMessageInvalid, FrameTooLarge, FrameInvalid):
            await stream.reset()  # "On any error, the stream is reset."
            self._blame(peer_id)
        except StreamReset:
            await stream.reset()
        finally:
            self._serving[peer_id] -= 1
            if not self._serving[peer_id]:
                del self._serving[peer_id]

    async def _answer_all(self, stream: INetStream, peer_id: ID, scope: trio.CancelScope) -> None:
        muxed = stream.muxed_stream
        reader = FrameReader(frame_bytes_max=MESSAGE_BYTES_MAX)
        for _ in range(REQUESTS_PER_STREAM_MAX):
            scope.deadline = trio.current_time() + REQUEST_WAIT_S
            while (frame := reader.next_frame()) is None:
                try:
                    reader.feed(await muxed.read(READ_BYTES_MAX))
                except MuxedStreamEOF:
                    await stream.close()
                    return
                except (MuxedStreamReset, MuxedStreamError):
                    return
            for effect in self._receive(peer_id, decode_message(frame)):
                if isinstance(effect, Send):
                    await muxed.write(encode_frame(encode_message(effect.message)))
                elif isinstance(effect, Refuse):
                    await stream.reset()
                    if effect.is_hostile:
                        self._blame(peer_id)
                    return

    def _blame(self, peer_id: ID) -> None:
        if len(self._blamed) >= BLAMED_PEERS_MAX:
            self._blamed.clear()
        self._blamed[peer_id] += 1
        if self._blamed[peer_id] >= BLAMED_MAX:
            del self._blamed[peer_id]
            self._throw_out(peer_id)
