"""Who is connected: what the swarm tells about connections, turned into peer events and something to wait on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio
from libp2p.abc import INetConn, INetStream, INetwork, INotifee

from p2p.driver.swarm import CocoonSwarm
from p2p.interface import PeerConnected, PeerDisconnected, PeerEvent, PeerId
from p2p.queues import BoundedFeed

if TYPE_CHECKING:
    from multiaddr import Multiaddr


class ConnectionWatch(INotifee):  # type: ignore[misc]
    def __init__(self, swarm: CocoonSwarm, *, queue_max: int) -> None:
        self._swarm = swarm
        self._queue_max = queue_max
        self._opened_at: dict[int, int] = {}  # by id() of a connection, which the swarm keeps alive
        self._feeds: list[BoundedFeed[PeerEvent]] = []
        self._changed = trio.Event()
        self.peers: set[PeerId] = set()

    async def wait_change(self) -> None:
        await self._changed.wait()

    def opened_at(self, connection: INetConn) -> int:
        return self._opened_at.get(id(connection), 0)

    def events(self) -> BoundedFeed[PeerEvent]:
        feed: BoundedFeed[PeerEvent]

        async def forget() -> None:
            self._feeds.remove(feed)

        feed = BoundedFeed(items_max=self._queue_max, on_close=forget)
        for peer in sorted(self.peers):
            feed.put_nowait(PeerConnected(peer=peer))
        self._feeds.append(feed)
        return feed

    def close(self) -> None:
        for feed in self._feeds:
            feed.close_nowait()
        self._feeds.clear()
        self._note_change()

    def _tell(self, event: PeerEvent) -> None:
        for feed in self._feeds:
            feed.put_nowait(event)

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- what the swarm calls ----------------------------------------------------------------------------

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        self._opened_at[id(conn)] = time.time_ns()
        peer = str(conn.muxed_conn.peer_id)
        if peer not in self.peers:
            self.peers.add(peer)
            self._tell(PeerConnected(peer=peer))
        self._note_change()

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        self._opened_at.pop(id(conn), None)
        peer = str(conn.muxed_conn.peer_id)
        if peer in self.peers and not self._swarm.live_connections(conn.muxed_conn.peer_id):
            self.peers.discard(peer)
            self._tell(PeerDisconnected(peer=peer))
        self._note_change()

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None: ...
    async def closed_stream(self, network: INetwork, stream: INetStream) -> None: ...
    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None: ...
    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None: ...
