"""`interface.Node` over libp2p: the parts of this package put together, and their lives bound to one block."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import trio
from libp2p.abc import INetConn, INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamReset
from multiaddr import Multiaddr

from p2p.addresses import Address, Transport, parse_address, parse_addresses_of, parse_peer_address
from p2p.counters import Counters
from p2p.driver.connections import ConnectionManager
from p2p.driver.gossip_driver import Gossip
from p2p.driver.host import GuardedHost, build_host
from p2p.driver.kad_driver import Dht
from p2p.driver.negotiate import propose
from p2p.driver.reach import Reacher
from p2p.driver.streams import MuxedRawStream
from p2p.driver.swarm import is_relayed
from p2p.driver.watch import ConnectionWatch
from p2p.errors import (
    GossipDisabled,
    ListenFailed,
    NodeClosed,
    NotConnected,
    OpenFailed,
    ProtocolUnsupported,
    SettingsInvalid,
    StreamLimitReached,
)
from p2p.framed import FramedStream
from p2p.identity import SEED_BYTES, peer_id_to_bytes
from p2p.interface import (
    ConnectionInfo,
    DialFailure,
    Direction,
    NodeSettings,
    PeerEvents,
    PeerId,
    PeerInfo,
    Reachability,
    Statistics,
    StreamHandler,
    Subscription,
    Validator,
)
from p2p.serving import Service, Services
from p2p.watch import PeerWatch

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # what trio's stubs, which libp2p brings, know

log = logging.getLogger("p2p")

CLOSE_TIMEOUT_S = 3.0
LIVENESS_TIMEOUT_S = 2.0


@asynccontextmanager
async def open_libp2p_node(settings: NodeSettings, *, key: bytes) -> AsyncIterator[Libp2pNode]:
    """See `p2p.open_node`. An exception of the block comes out as it was, not in a group."""
    if len(key) != SEED_BYTES:
        raise SettingsInvalid(f"a key seed has {SEED_BYTES} bytes")
    for address in (*settings.listen, *settings.announce):
        parse_address(address)
    bootstrap = [parse_peer_address(address) for address in settings.bootstrap]
    for address in settings.reach.relays:
        parse_peer_address(address)
    counters = Counters()
    host = build_host(settings, key=key, counters=counters)
    node = Libp2pNode(host, settings=settings, counters=counters)
    failure: BaseException | None = None
    listen_failure: list[ListenFailed] = []
    async with trio.open_nursery() as nursery:
        if await nursery.start(_run, node, bootstrap, listen_failure):
            try:
                yield node
            except BaseException as error:  # handed on below, outside of the nursery
                failure = error
        node.stop.set()
    if listen_failure:
        raise listen_failure[0]
    if failure is not None:
        raise failure


async def _run(
    node: Libp2pNode,
    bootstrap: Sequence[tuple[PeerId, Address]],
    listen_failure: list[ListenFailed],
    task_status: TaskStatus[bool] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Everything that lives as long as the node. Reports False when it could not listen."""
    async with node.host.run([]):
        try:
            await node.listen()
        except ListenFailed as error:
            listen_failure.append(error)
            await node.close()
            task_status.started(False)
            return
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            try:
                node.host.run_in(nursery)
                if node.gossip is not None:
                    await stack.enter_async_context(node.gossip.running())
                await stack.enter_async_context(node.dht.running())
                node.manager.start(nursery)
                node.reacher.start(nursery)
                for peer in dict.fromkeys(peer for peer, _ in bootstrap):
                    node.manager.protect(peer, [str(address) for named, address in bootstrap if named == peer])
                task_status.started(True)
                await node.stop.wait()
            finally:
                await node.close()
                nursery.cancel_scope.cancel()


class Libp2pNode:
    def __init__(self, host: GuardedHost, *, settings: NodeSettings, counters: Counters) -> None:
        self.host = host
        self._swarm = host.get_network()
        self.settings = settings
        self._counters = counters
        self._services = Services(counters, streams_per_peer_max=settings.limits.streams_per_peer_max)
        self.gossip = Gossip(host, limits=settings.limits, counters=counters) if settings.gossip else None
        self.dht = Dht(
            host,
            protocol=settings.kad_prefix,
            mode=settings.dht_mode,
            policy=self._swarm.policy,
            validators=settings.validators,
        )
        if self.gossip is not None:
            self.dht.keeps = self.gossip.needs
        self.reacher = Reacher(host, settings)
        self._closed = False
        self.stop = trio.Event()
        self._watch = PeerWatch(queue_max=settings.limits.peer_event_queue_max)
        self._connections = ConnectionWatch(self._swarm, self._watch)
        self.manager = ConnectionManager(
            self._swarm,
            watch=self._watch,
            connections=self._connections,
            limits=settings.limits,
            book=settings.address_book,
        )
        host.on_identified = self._identified
        self._swarm.register_notifee(self._connections)

    # --- life --------------------------------------------------------------------------------------------

    async def listen(self) -> None:
        for text in self.settings.listen:
            _check_free(parse_address(text))
            if not await self._swarm.listen(Multiaddr(text)):
                raise ListenFailed(f"cannot listen on {text}")

    async def close(self) -> None:
        """End every stream, connection and subscription; also when cancelled, within CLOSE_TIMEOUT_S."""
        if not self._closed:
            self.manager.close()
        self._closed = True
        self._watch.close()
        with trio.move_on_after(CLOSE_TIMEOUT_S) as scope:
            scope.shield = True
            async with trio.open_nursery() as nursery:
                for connection in list(self._swarm.get_connections()):
                    nursery.start_soon(_close_connection, connection)
            for listener in list(self._swarm.listeners.values()):
                await listener.close()

    def _check_open(self) -> None:
        if self._closed:
            raise NodeClosed("this node has been closed")

    # --- peers -------------------------------------------------------------------------------------------

    @property
    def peer(self) -> PeerId:
        return str(self.host.get_id())

    def addresses(self) -> tuple[str, ...]:
        return tuple(str(address) for address in self.host.get_addrs())

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
        await self._swarm.dial(ID(peer_id_to_bytes(peer)), parse_addresses_of(peer, addresses))

    async def disconnect(self, peer: PeerId) -> None:
        for connection in self._swarm.live_connections(ID(peer_id_to_bytes(peer))):
            await _close_connection(connection)

    def protect(self, peer: PeerId, addresses: Sequence[str] = ()) -> None:
        self._check_open()
        self.manager.protect(peer, addresses)

    def unprotect(self, peer: PeerId) -> None:
        self.manager.unprotect(peer)

    def connections(self) -> tuple[ConnectionInfo, ...]:
        return tuple(self._info(connection) for connection in self._swarm.get_connections() if not connection.is_closed)

    def _info(self, connection: INetConn) -> ConnectionInfo:
        peer_id = connection.muxed_conn.peer_id
        addresses = [] if is_relayed(connection) else connection.muxed_conn.get_transport_addresses()
        inbound = connection.direction.name == "INBOUND"
        return ConnectionInfo(
            peer=str(peer_id),
            address=str(addresses[0]) if addresses else "",
            direction=Direction.INBOUND if inbound else Direction.OUTBOUND,
            opened_at=self._connections.opened_at(connection),
            agent=self.host.agents.get(peer_id),
            relayed=is_relayed(connection),
        )

    def dial_failures(self) -> tuple[DialFailure, ...]:
        return tuple(self._swarm.failures)

    def peer_events(self) -> PeerEvents:
        self._check_open()
        return self._watch.events()

    def reachability(self) -> Reachability:
        return self.reacher.reachability()

    def statistics(self) -> Statistics:
        return self._counters.snapshot(connections_open=len(self._swarm.get_connections()))

    # --- streams -----------------------------------------------------------------------------------------

    async def open_stream(
        self, peer: PeerId, protocol: str, *, addresses: Sequence[str] = (), frame_bytes_max: int
    ) -> FramedStream:
        self._check_open()
        peer_id = ID(peer_id_to_bytes(peer))
        known = parse_addresses_of(peer, addresses) or list(self._swarm.known_addresses(peer_id))
        fresh = not self._swarm.live_connections(peer_id)
        connection = await self._swarm.dial(peer_id, known)
        try:
            raw = await self._open_on(connection, protocol)
        except (ProtocolUnsupported, StreamLimitReached):
            raise
        except OpenFailed:
            if fresh or await connection.muxed_conn.is_alive(timeout_s=LIVENESS_TIMEOUT_S):
                raise
            await _close_connection(connection)  # stale: the peer restarted, or the line is dead (trap 9)
            connection = await self._swarm.dial(peer_id, known or self._addresses_of(connection))
            raw = await self._open_on(connection, protocol)
        self._counters.streams_opened += 1
        return FramedStream(raw, peer=peer, protocol=protocol, frame_bytes_max=frame_bytes_max, counters=self._counters)

    def _addresses_of(self, connection: INetConn) -> list[Address]:
        """Where an outbound connection went: good for dialling again."""
        info = self._info(connection)
        return [parse_address(info.address)] if info.address and info.direction is Direction.OUTBOUND else []

    async def _open_on(self, connection: INetConn, protocol: str) -> MuxedRawStream:
        muxed = None
        opened = False
        try:
            with trio.fail_after(self.settings.limits.open_timeout_s):
                muxed = await connection.muxed_conn.open_stream()
                await propose(muxed, protocol)
            opened = True
        except OpenFailed:
            raise
        except trio.TooSlowError:
            raise OpenFailed(f"the peer did not answer within {self.settings.limits.open_timeout_s:g} s") from None
        except MuxedStreamReset:
            raise OpenFailed("the peer refused the stream, or the connection was lost") from None
        except Exception as error:
            raise OpenFailed(f"the connection failed: {type(error).__name__}") from error
        finally:
            if muxed is not None and not opened:
                with trio.move_on_after(1) as scope:
                    scope.shield = True
                    await muxed.reset()
        return MuxedRawStream(muxed)

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
        self.host.set_stream_handler(TProtocol(protocol), self._serve)

    async def _serve(self, stream: INetStream) -> None:
        service = self._services.find(str(stream.get_protocol()))
        if service is not None:
            peer = str(stream.muxed_conn.peer_id)
            await self._services.serve(service, MuxedRawStream(stream.muxed_stream), peer)

    # --- gossip and DHT ----------------------------------------------------------------------------------

    def _gossip(self) -> Gossip:
        self._check_open()
        if self.gossip is None:
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
        return await self.dht.find_peer(peer)

    async def put_value(self, key: bytes, value: bytes) -> None:
        self._check_open()
        await self.dht.put_value(key, value)

    async def get_value(self, key: bytes) -> bytes | None:
        self._check_open()
        return await self.dht.get_value(key)

    def _identified(self, peer_id: ID) -> None:
        if self.host.nursery is not None and not self._closed:
            self.host.nursery.start_soon(self.dht.peer_identified, peer_id)


async def _close_connection(connection: INetConn) -> None:
    try:
        with trio.move_on_after(CLOSE_TIMEOUT_S):
            await connection.close()
    except Exception as error:
        log.debug("connection.close_failed", extra={"error": type(error).__name__})


def _check_free(address: Address) -> None:
    """libp2p listens with SO_REUSEPORT, so two programs on one port would share its connections instead of
    one being told. Raises ListenFailed."""
    if address.kind.is_name or address.relay is not None:
        raise ListenFailed(f"cannot listen on {address}: not an IP address")
    if not address.port:
        return
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    is_datagrams = address.transport is Transport.QUIC
    with socket.socket(family, socket.SOCK_DGRAM if is_datagrams else socket.SOCK_STREAM) as probe:
        if not is_datagrams:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
            if not is_datagrams:
                probe.listen(1)
        except OSError as error:
            raise ListenFailed(f"cannot listen on {address}: {(error.strerror or 'refused').lower()}") from error
