"""One node of the memory network."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from p2p.addresses import Address, DialPolicy, parse_addresses_of
from p2p.counters import Counters
from p2p.errors import (
    AddressRefused,
    DialFailed,
    GossipDisabled,
    NodeClosed,
    NotConnected,
    OpenFailed,
    ProtocolUnsupported,
    SettingsInvalid,
    StreamLimitReached,
)
from p2p.framed import FramedStream
from p2p.identity import peer_id_to_bytes
from p2p.interface import (
    ConnectionInfo,
    DialFailure,
    Direction,
    Node,
    NodeSettings,
    PeerEvents,
    PeerId,
    PeerInfo,
    Reach,
    Reachability,
    Statistics,
    StreamHandler,
    Subscription,
    Validator,
)
from p2p.serving import Service, Services
from p2p.testing.memory_overlay import MemoryDht, MemoryGossip
from p2p.testing.pipes import Link, MemoryStream, stream_pair
from p2p.trimming import Held, choose_to_close
from p2p.watch import PeerWatch, keep_connected

if TYPE_CHECKING:
    from p2p.testing.memory import MemoryNetwork

log = logging.getLogger("p2p")

STREAMS_PER_CONNECTION_MAX = 256  # outbound, as our yamux has it


class MemoryConnection:
    def __init__(self, dialer: MemoryNode, listener: MemoryNode, address: str, link: Link) -> None:
        self.dialer = dialer
        self.listener = listener
        self.address = address
        self.link = link
        self.opened_at = now_ns()
        self.is_lost = False
        self.streams: dict[MemoryStream, None] = {}  # the opener's ends, in the order of opening

    def other(self, node: MemoryNode) -> MemoryNode:
        return self.listener if node is self.dialer else self.dialer

    def is_lost_now(self) -> bool:
        return self.is_lost

    def reset_streams(self) -> None:
        for stream in list(self.streams):
            stream.break_both()
        self.streams.clear()

    def forget(self, stream: MemoryStream) -> None:
        self.streams.pop(stream, None)

    def lose(self) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        self.reset_streams()
        for node in (self.dialer, self.listener):
            node.connection_lost(self)


def now_ns() -> int:
    return int(trio.current_time() * 1e9)


class MemoryNode:
    def __init__(
        self, network: MemoryNetwork, *, peer: PeerId, settings: NodeSettings, listening: tuple[str, ...]
    ) -> None:
        self.peer = peer
        self.listening = listening
        self.settings = settings
        self._network = network
        self._policy = DialPolicy(allow_private=settings.allow_private_addresses)
        self._counters = Counters()
        self._services = Services(self._counters, streams_per_peer_max=settings.limits.streams_per_peer_max)
        self._watch = PeerWatch(queue_max=settings.limits.peer_event_queue_max)
        self._connections: list[MemoryConnection] = []
        self._failures: deque[DialFailure] = deque(maxlen=settings.limits.dial_failures_kept_max)
        self._known: dict[PeerId, tuple[Address, ...]] = {}
        self.gossip = MemoryGossip(self, limits=settings.limits, counters=self._counters)
        self.dht = MemoryDht(self)
        self._protected: dict[PeerId, trio.CancelScope] = {}
        self._closed = False
        self._nursery: trio.Nursery

    # --- life --------------------------------------------------------------------------------------------

    def start(self, nursery: trio.Nursery, bootstrap: Sequence[tuple[PeerId, Address]]) -> None:
        self._nursery = nursery
        nursery.start_soon(self.gossip.run)
        for peer in dict.fromkeys(peer for peer, _ in bootstrap):
            self.protect(peer, [str(a) for named, a in bootstrap if named == peer])

    def stop(self) -> None:
        if self._closed:
            return
        self._closed = True
        for connection in list(self._connections):
            connection.lose()
        self.gossip.close()
        self._watch.close()

    def _check_open(self) -> None:
        if self._closed:
            raise NodeClosed("this node has been closed")

    async def _keep_connected(self, peer: PeerId, addresses: Sequence[Address], scope: trio.CancelScope) -> None:
        async def wait_lost() -> None:
            while self._connection_to(peer) is not None:
                await self._watch.wait_change()

        with scope:
            await keep_connected(
                lambda: self._dial(peer, addresses or self._known.get(peer, ())),
                wait_lost,
                self._network.randomness_of(self.peer, peer),
            )

    # --- peers -------------------------------------------------------------------------------------------

    def addresses(self) -> tuple[str, ...]:
        return tuple(f"{address}/p2p/{self.peer}" for address in self.settings.announce or self.listening)

    def live_connections(self) -> list[MemoryConnection]:
        return list(self._connections)

    def neighbours(self) -> list[MemoryNode]:
        return list(dict.fromkeys(connection.other(self) for connection in self._connections))

    def _connection_to(self, peer: PeerId) -> MemoryConnection | None:
        return next((c for c in self._connections if c.other(self).peer == peer), None)

    def connection_lost(self, connection: MemoryConnection) -> None:
        self._connections.remove(connection)
        peer = connection.other(self).peer
        if self._connection_to(peer) is None:
            self._watch.remove(peer)

    def connection_made(self, connection: MemoryConnection) -> None:
        self._connections.append(connection)
        self._watch.add(connection.other(self).peer)
        self._trim()

    async def wait_connected(self, *, timeout_s: float, peers_min: int = 1) -> None:
        with trio.move_on_after(timeout_s):
            while len(self._watch.peers) < peers_min:
                self._check_open()
                await self._watch.wait_change()
            return
        raise NotConnected(
            f"{len(self._watch.peers)} of {peers_min} peers connected after {timeout_s:g} s", self.dial_failures()
        )

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> None:
        self._check_open()
        peer_id_to_bytes(peer)
        await self._dial(peer, parse_addresses_of(peer, addresses))

    async def _dial(self, peer: PeerId, addresses: Sequence[Address]) -> MemoryConnection:
        await trio.lowlevel.checkpoint()
        if (existing := self._connection_to(peer)) is not None:
            return existing
        won: list[MemoryConnection] = []
        failures: list[DialFailure] = []
        async with trio.open_nursery() as nursery:

            async def attempt(address: Address) -> None:
                reason = await self._attempt(peer, address, won)
                if reason is None:
                    nursery.cancel_scope.cancel()
                else:
                    failures.append(self._note_failure(peer, str(address), reason))

            for address in list(dict.fromkeys(addresses))[: self.settings.limits.addresses_per_dial_max]:
                nursery.start_soon(attempt, address)
        if won:
            self._known[peer] = tuple(addresses)
            return won[0]
        if not failures:
            failures.append(self._note_failure(peer, "", "no address known"))
        raise DialFailed(peer, failures)

    async def _attempt(self, peer: PeerId, address: Address, won: list[MemoryConnection]) -> str | None:
        """Why it failed; None when the connection stands."""
        try:
            self._policy.check(address)
        except AddressRefused as error:
            return str(error)
        if address.kind.is_name:
            return "the name does not resolve: unknown name"
        if address.relay is not None:
            return "relayed addresses are not supported yet"
        self._counters.dials += 1
        there = self._network.by_address.get(str(address))
        if there is not None and not self._network.can_reach(self.peer, there.peer):
            await trio.sleep(self.settings.limits.dial_timeout_s)
            return f"timed out after {self.settings.limits.dial_timeout_s:g} s"
        link = self._network.link(self.peer, peer)
        await trio.sleep(2 * link.delay_s())
        there = self._network.by_address.get(str(address))
        if there is None or self._closed:
            return "connection refused"
        if there.peer != peer:
            return "another peer answered"
        existing = self._connection_to(peer)
        if existing is not None:
            won.append(existing)  # another address was faster
            return None
        if len(there._connections) >= there.settings.limits.connections_max:
            return "the secure handshake failed"
        connection = MemoryConnection(self, there, str(address), link)
        for node in (self, there):
            node.connection_made(connection)
        won.append(connection)
        return None

    def _note_failure(self, peer: PeerId, address: str, reason: str) -> DialFailure:
        self._counters.dials_failed += 1
        failure = DialFailure(peer=peer, address=address, reason=reason, at=now_ns())
        self._failures.appendleft(failure)
        return failure

    async def disconnect(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        while (connection := self._connection_to(peer)) is not None:
            connection.lose()

    def protect(self, peer: PeerId, addresses: Sequence[str] = ()) -> None:
        self._check_open()
        peer_id_to_bytes(peer)
        given = parse_addresses_of(peer, addresses)
        if peer == self.peer:
            return
        if peer not in self._protected and len(self._protected) >= self.settings.limits.protected_peers_max:
            raise SettingsInvalid(f"at most {self.settings.limits.protected_peers_max} peers can be protected")
        self.unprotect(peer)
        scope = self._protected[peer] = trio.CancelScope()
        self._nursery.start_soon(self._keep_connected, peer, given, scope)

    def unprotect(self, peer: PeerId) -> None:
        scope = self._protected.pop(peer, None)
        if scope is not None:
            scope.cancel()

    def _trim(self) -> None:
        limits = self.settings.limits
        held = [
            Held(
                key=key,
                peer=connection.other(self).peer,
                opened_at=connection.opened_at,
                streams=len(connection.streams),
                protected=connection.other(self).peer in self._protected,
                inbound=connection.listener is self,
            )
            for key, connection in enumerate(self._connections)
        ]
        chosen = choose_to_close(held, high=limits.connections_high, low=limits.connections_low, now=now_ns())
        for connection in [self._connections[key] for key in chosen]:
            connection.lose()

    def connections(self) -> tuple[ConnectionInfo, ...]:
        return tuple(
            ConnectionInfo(
                peer=connection.other(self).peer,
                address=connection.address if connection.dialer is self else "",
                direction=Direction.OUTBOUND if connection.dialer is self else Direction.INBOUND,
                opened_at=connection.opened_at,
                agent=connection.other(self).settings.agent,
            )
            for connection in self._connections
        )

    def dial_failures(self) -> tuple[DialFailure, ...]:
        return tuple(self._failures)

    def peer_events(self) -> PeerEvents:
        self._check_open()
        return self._watch.events()

    def reachability(self) -> Reachability:
        """As if every connected peer had been asked: whoever can reach us would have got through."""
        asked = [node for node in self.neighbours() if node.settings.reach.check]
        reached = [node for node in asked if self._network.can_reach(node.peer, self.peer)]
        if not self.listening:
            reach, reason = Reach.NOT, "this node does not listen"
        elif not asked:
            reach, reason = Reach.UNKNOWN, "no peer has tried to dial us yet"
        else:
            reach, reason = Reach.DIRECT, f"{len(reached)} of {len(asked)} peers that we asked could dial us"
        return Reachability(
            reach=reach,
            reason=reason,
            addresses=self.addresses() if reach is Reach.DIRECT else (),
            observed=self.listening if asked else (),
            peers_asked=len(asked),
            peers_reached=len(reached),
        )

    def statistics(self) -> Statistics:
        return self._counters.snapshot(connections_open=len(self._connections))

    # --- streams -----------------------------------------------------------------------------------------

    async def open_stream(
        self, peer: PeerId, protocol: str, *, addresses: Sequence[str] = (), frame_bytes_max: int
    ) -> FramedStream:
        self._check_open()
        peer_id_to_bytes(peer)
        known = parse_addresses_of(peer, addresses) or self._known.get(peer, ())
        connection = await self._dial(peer, known)
        if len(connection.streams) >= STREAMS_PER_CONNECTION_MAX:
            raise StreamLimitReached(f"{len(connection.streams)} streams are open")
        await trio.sleep(2 * connection.link.delay_s())
        if connection.is_lost:
            raise OpenFailed("the connection was lost")
        remote = connection.other(self)
        service = remote._services.find(protocol)
        if service is None:
            raise ProtocolUnsupported(f"the peer does not speak {protocol}")
        near, far = stream_pair(connection.link, window_bytes=self.settings.limits.stream_window_bytes)
        connection.streams[near] = None
        remote._nursery.start_soon(remote._services.serve, service, far, self.peer)
        self._counters.streams_opened += 1
        return FramedStream(
            near,
            peer=peer,
            protocol=protocol,
            frame_bytes_max=frame_bytes_max,
            counters=self._counters,
            on_end=lambda: connection.forget(near),
        )

    def handle(
        self,
        protocol: str,
        handler: StreamHandler,
        *,
        frame_bytes_max: int,
        streams_per_peer_max: int,
        streams_max: int = 1024,
    ) -> None:
        self._check_open()
        self._services.add(
            Service(
                protocol=protocol,
                handler=handler,
                frame_bytes_max=frame_bytes_max,
                streams_per_peer_max=streams_per_peer_max,
                streams_max=streams_max,
            )
        )

    # --- gossip and DHT ----------------------------------------------------------------------------------

    def _gossip(self) -> MemoryGossip:
        self._check_open()
        if not self.settings.gossip:
            raise GossipDisabled("this node was opened without gossip")
        return self.gossip

    async def subscribe(self, topic: str, validator: Validator) -> Subscription:
        return await self._gossip().join(topic, validator)

    async def publish(self, topic: str, data: bytes) -> int:
        return await self._gossip().send(topic, data)

    async def provide(self, key: bytes) -> None:
        self._check_open()
        await self.dht.provide(key)

    async def find_providers(self, key: bytes, *, count_max: int) -> tuple[PeerInfo, ...]:
        self._check_open()
        return await self.dht.find_providers(key, count_max=count_max)

    async def find_peer(self, peer: PeerId) -> PeerInfo:
        self._check_open()
        peer_id_to_bytes(peer)
        return await self.dht.find_peer(peer)

    async def put_value(self, key: bytes, value: bytes) -> None:
        self._check_open()
        await self.dht.put_value(key, value)

    async def get_value(self, key: bytes) -> bytes | None:
        self._check_open()
        return await self.dht.get_value(key)

    def info(self) -> PeerInfo:
        return PeerInfo(peer=self.peer, addresses=self.settings.announce or self.listening)

    def component(self) -> list[MemoryNode]:
        return self._network.component(self)


if TYPE_CHECKING:

    def _keeps_the_interface(node: MemoryNode) -> Node:
        return node
