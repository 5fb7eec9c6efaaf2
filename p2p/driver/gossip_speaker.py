"""Our gossip stream to one peer: opened, watched, and opened again for as long as a connection stands.

The peer knows of us what this stream has told it, so a stream that has died must be noticed at once and not when the
next message is due: a peer that has forgotten us (it saw the connection end, we did not) may never send that message,
and would never hear our topics. Hence somebody reads from the stream, although nothing is ever said there.

Whatever is lost here is made good by the greeting (`Router.peer_changed`): topics, grafts, and what was heard lately.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset

from p2p.driver.negotiate import propose
from p2p.driver.swarm import CocoonSwarm
from p2p.errors import ProtocolUnsupported
from p2p.gossip import PROTOCOL_V11, PROTOCOL_V12

log = logging.getLogger("p2p")

QUEUE_BYTES_MAX = 2 * 1024 * 1024  # waiting for one neighbour: 2,000 offers
CONTROL_BYTES_MAX = 256 * 1024  # beyond it, for what the mesh itself needs
OPEN_WAIT_FIRST_S, OPEN_WAIT_MAX_S = 0.2, 30.0
LIVED_S = 10.0  # a stream that lived so long starts the waiting times anew
UNSUPPORTED_WAIT_S = 300.0  # a peer that does not gossip may be asked again after an upgrade
PROBE_TIMEOUT_S = 5.0  # for an old connection to answer once a newer one stands


class Speaker:
    """What waits to be sent to one peer, and the task (`run`) that sends it."""

    def __init__(
        self,
        peer_id: ID,
        *,
        swarm: CocoonSwarm,
        open_timeout_s: float,
        greet: Callable[[ID, bool], None],
    ) -> None:
        """`greet(peer, has_idontwant)` puts the greeting into this speaker's queue, by way of the router."""
        self.peer_id = peer_id
        self.scope = trio.CancelScope()
        self.inbound: dict[trio.CancelScope, None] = {}  # the peer's streams to us
        self._swarm = swarm
        self._open_timeout_s = open_timeout_s
        self._greet = greet
        self._waiting = bytearray()
        self._has_news = trio.Event()
        self._try_now = trio.Event()
        self._owes_greeting = False  # something that the mesh needs found no room
        self._carrier: Any = None  # the connection that our stream runs on
        self._has_idontwant = False

    def put(self, frame: bytes, *, is_control: bool) -> bool:
        """False when there is no room; what the mesh needs has room of its own, and is made good later."""
        bound = QUEUE_BYTES_MAX + (CONTROL_BYTES_MAX if is_control else 0)
        if len(self._waiting) + len(frame) > bound:
            if is_control:
                self._owes_greeting = True
                self._has_news.set()
            return False
        self._waiting += frame
        self._has_news.set()
        return True

    def try_now(self) -> None:
        """The peer shows that it gossips: no long wait before it is asked again."""
        self._try_now.set()

    def end(self) -> None:
        """The peer is forgotten. What its streams told us is forgotten with it, so they end too, and the peer, if it
        is there, opens others and begins from the start."""
        self.scope.cancel()
        for scope in list(self.inbound):
            scope.cancel()

    async def probe_carrier(self) -> None:
        """A newer connection stands: does the older one, which our stream uses, still live? A peer that was killed
        and came back has not closed it, and keep-alive would take a minute to find out."""
        carrier = self._carrier
        if carrier is not None and not await carrier.is_alive(timeout_s=PROBE_TIMEOUT_S):
            await carrier.close()

    async def run(self) -> None:
        """Until no connection to the peer is left, or `end`."""
        wait_s = OPEN_WAIT_FIRST_S
        with self.scope:
            while self._swarm.live_connections(self.peer_id):
                opened_at = trio.current_time()
                self._try_now = trio.Event()
                try:
                    stream, protocol = await self._open()
                    self._has_idontwant = protocol == PROTOCOL_V12
                    self._greet(self.peer_id, self._has_idontwant)
                    await self._use(stream)
                except ProtocolUnsupported:
                    wait_s = UNSUPPORTED_WAIT_S
                except Exception as error:  # the library and the peer have many ways to end a stream
                    log.debug("gossip.stream_failed", extra={"error": type(error).__name__})
                if trio.current_time() - opened_at > LIVED_S:
                    wait_s = OPEN_WAIT_FIRST_S
                await trio.sleep(OPEN_WAIT_FIRST_S)  # also when asked to hurry: a stranger must not make us spin
                with trio.move_on_after(wait_s - OPEN_WAIT_FIRST_S):
                    await self._try_now.wait()
                wait_s = min(wait_s * 2, OPEN_WAIT_MAX_S)

    async def _open(self) -> tuple[Any, str]:
        for protocol in (PROTOCOL_V12, PROTOCOL_V11):
            with trio.fail_after(self._open_timeout_s):
                connection = self._swarm.live_connections(self.peer_id)[-1]
                muxed = await connection.muxed_conn.open_stream()
                opened = False
                try:
                    await propose(muxed, protocol)
                    opened = True
                    self._carrier = connection.muxed_conn
                    return muxed, protocol
                except ProtocolUnsupported:
                    if protocol == PROTOCOL_V11:
                        raise
                finally:
                    if not opened:
                        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                            await muxed.reset()
        raise ProtocolUnsupported("no gossip")

    async def _use(self, stream: Any) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, stream, nursery.cancel_scope)
                await self._write(stream)
        finally:
            self._carrier = None
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await stream.reset()

    async def _watch(self, stream: Any, scope: trio.CancelScope) -> None:
        """Ends the use of a stream that the peer has reset, or that has lost its connection. A peer that merely says
        that it will not talk back is taken by its word."""
        try:
            while True:
                await stream.read(1024)  # nothing belongs here
        except MuxedStreamEOF:
            await stream.muxed_conn.closed.wait()
        except (MuxedStreamError, MuxedStreamReset):
            pass
        scope.cancel()

    async def _write(self, stream: Any) -> None:
        while True:
            if not self._waiting:
                if self._owes_greeting:
                    self._owes_greeting = False
                    self._greet(self.peer_id, self._has_idontwant)
                    if not self._waiting:
                        await trio.sleep(1)  # larger than the whole queue: not in a circle
                    continue
                self._has_news = trio.Event()
                await self._has_news.wait()
            batch = bytes(self._waiting)
            self._waiting.clear()
            taken = False
            try:
                await stream.write(batch)
                taken = True
            finally:
                if not taken:  # whole frames, once more on the next stream: twice is harmless, never is not
                    self._waiting[:0] = batch
