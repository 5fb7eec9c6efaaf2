"""What the swarm tells about connections, as changes of a `PeerWatch`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from libp2p.abc import INetConn, INetStream, INetwork, INotifee

from p2p.driver.swarm import CocoonSwarm
from p2p.watch import PeerWatch

if TYPE_CHECKING:
    from multiaddr import Multiaddr


class ConnectionWatch(INotifee):  # type: ignore[misc]
    def __init__(self, swarm: CocoonSwarm, watch: PeerWatch) -> None:
        self._swarm = swarm
        self._watch = watch
        self._opened_at: dict[int, int] = {}  # by id() of a connection, which the swarm keeps alive

    def opened_at(self, connection: INetConn) -> int:
        return self._opened_at.get(id(connection), 0)

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        self._opened_at[id(conn)] = time.time_ns()
        self._watch.add(str(conn.muxed_conn.peer_id))

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        self._opened_at.pop(id(conn), None)
        peer_id = conn.muxed_conn.peer_id
        if self._swarm.live_connections(peer_id):
            self._watch.note_change()
        else:
            self._watch.remove(str(peer_id))

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None: ...
    async def closed_stream(self, network: INetwork, stream: INetStream) -> None: ...
    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None: ...
    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None: ...
