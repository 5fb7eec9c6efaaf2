"""A network in memory with the same interface: no sockets, no libp2p, and no clock but trio's, so it runs in
virtual time under `trio.testing.MockClock`.

    network = MemoryNetwork(delay_s=0.02)
    async with network.open_node(settings, key=seed) as node: ...

Faults are switched on the network while it runs: `set_delay_s`, `disconnect`, `reset_streams`, `partition`,
`heal`, `crash`. The times of a run follow from its seed alone; which of two tasks that wake at one instant goes
first is trio's choice, unless its scheduler is seeded, too.

What is simplified: gossip floods every subscribed neighbour instead of a mesh; the DHT's records lie at every
server that can be reached; connections need no handshake beyond a round trip. Addresses, the dial policy,
bounds, quotas and the ends of streams are those of the real driver, partly the same code.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager

import trio

from p2p.addresses import parse_address, parse_peer_address
from p2p.errors import ListenFailed, SettingsInvalid
from p2p.identity import SEED_BYTES, peer_id_of_seed
from p2p.interface import NodeSettings, PeerId
from p2p.testing.memory_node import MemoryConnection, MemoryNode
from p2p.testing.pipes import Link

FROZEN_S = 3_600.0
_FIRST_PORT = 20_000


class MemoryNetwork:
    def __init__(self, *, delay_s: float = 0.0, seed: int = 0) -> None:
        """`delay_s` is the way from one node to another; `seed` drives all randomness of the network."""
        self._seed = seed
        self.nodes: dict[PeerId, MemoryNode] = {}
        self.by_address: dict[str, MemoryNode] = {}
        self._delay_s = delay_s
        self._pair_delay_s: dict[frozenset[PeerId], float] = {}
        self._groups: list[frozenset[PeerId]] = []
        self._next_port = _FIRST_PORT

    @asynccontextmanager
    async def open_node(self, settings: NodeSettings, *, key: bytes) -> AsyncIterator[MemoryNode]:
        """As `p2p.open_node`."""
        if len(key) != SEED_BYTES:
            raise SettingsInvalid(f"a key seed has {SEED_BYTES} bytes")
        bootstrap = [parse_peer_address(address) for address in settings.bootstrap]
        peer = peer_id_of_seed(key)
        if peer in self.nodes:
            raise ListenFailed("a node with this key is open in this network")
        node = MemoryNode(self, peer=peer, settings=settings, listening=self._take_addresses(settings))
        self.nodes[peer] = node
        self.by_address.update(dict.fromkeys(node.listening, node))
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            node.start(nursery, bootstrap)
            try:
                yield node
            except BaseException as error:  # handed on below, outside of the nursery
                failure = error
            self._remove(node)
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def _take_addresses(self, settings: NodeSettings) -> tuple[str, ...]:
        taken = []
        for text in settings.listen:
            address = parse_address(text)
            port = address.port
            if not port:
                port, self._next_port = self._next_port, self._next_port + 1
            listening = f"/{address.kind.value}/{address.host}/tcp/{port}"
            if listening in self.by_address or listening in taken:
                raise ListenFailed(f"cannot listen on {listening}: address already in use")
            taken.append(listening)
        return tuple(taken)

    def _remove(self, node: MemoryNode) -> None:
        node.stop()
        if self.nodes.get(node.peer) is node:
            del self.nodes[node.peer]
        for address in node.listening:
            self.by_address.pop(address, None)

    # --- faults ------------------------------------------------------------------------------------------

    def set_delay_s(self, a: PeerId, b: PeerId, delay_s: float) -> None:
        """The way between two nodes, for connections made from now on."""
        self._pair_delay_s[frozenset((a, b))] = delay_s

    def disconnect(self, a: PeerId, b: PeerId) -> None:
        """Lose the connection between two nodes; they may dial each other again."""
        for connection in self._connections_between(a, b):
            connection.lose()

    def reset_streams(self, a: PeerId, b: PeerId) -> None:
        """Break every stream between two nodes; the connection stays."""
        for connection in self._connections_between(a, b):
            connection.reset_streams()

    def partition(self, *groups: Collection[PeerId]) -> None:
        """Cut the network between the groups: their connections are lost, and dials time out. A node in no
        group reaches everyone."""
        self._groups = [frozenset(group) for group in groups]
        for node in list(self.nodes.values()):
            for connection in node.live_connections():
                if not self.can_reach(connection.dialer.peer, connection.listener.peer):
                    connection.lose()

    def heal(self) -> None:
        self._groups = []

    def crash(self, peer: PeerId) -> None:
        """As kill -9: the node is gone for the others; its own tasks get NodeClosed and StreamReset."""
        self._remove(self.nodes[peer])

    def freeze(self, peer: PeerId) -> None:
        """As SIGSTOP: its connections stay, and what is sent from now on arrives in an hour. `crash` ends it."""
        for connection in self.nodes[peer].live_connections():
            connection.link.change_delay_s(FROZEN_S)
        for other in self.nodes:
            if other != peer:
                self._pair_delay_s[frozenset((peer, other))] = FROZEN_S

    # --- for the nodes -----------------------------------------------------------------------------------

    def randomness_of(self, *names: str) -> random.Random:
        """A source of its own for each use, so that the order of tasks does not matter."""
        return random.Random("/".join((str(self._seed), *names)))  # noqa: S311 - no secrets in a test network

    def can_reach(self, a: PeerId, b: PeerId) -> bool:
        of_a = [group for group in self._groups if a in group]
        of_b = [group for group in self._groups if b in group]
        return not of_a or not of_b or any(group in of_b for group in of_a)

    def link(self, a: PeerId, b: PeerId) -> Link:
        return Link(self._pair_delay_s.get(frozenset((a, b)), self._delay_s))

    def component(self, start: MemoryNode) -> list[MemoryNode]:
        """Every node that is connected to `start`, directly or through others, nearest first."""
        seen = {start.peer: start}
        for node in (queue := [start]):
            for neighbour in node.neighbours():
                if neighbour.peer not in seen:
                    seen[neighbour.peer] = neighbour
                    queue.append(neighbour)
        return list(seen.values())

    def _connections_between(self, a: PeerId, b: PeerId) -> Iterator[MemoryConnection]:
        node = self.nodes.get(a)
        if node is not None:
            yield from [c for c in node.live_connections() if c.other(node).peer == b]
