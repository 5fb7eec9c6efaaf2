"""libp2p's host, guarded (trap 1): whatever happens in the handler of a stream ends that stream, never the node.

Also: our own transports only (the library would offer plaintext, too), a bounded address book, and identify that
takes little from strangers.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.host.ping import ID as PING
from libp2p.host.ping import PingService
from libp2p.identity.identify import identify
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.io.exceptions import IOException
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from p2p.addresses import DialPolicy, parse_address
from p2p.counters import Counters
from p2p.driver.negotiate import answer, propose
from p2p.driver.quic import QuicTransport
from p2p.driver.quic_state import QuicSettings
from p2p.driver.relayed import RelayTransport
from p2p.driver.swarm import CocoonSwarm
from p2p.driver.transport import NoiseYamuxTcp, yamux_settings
from p2p.driver.websocket import WebSocketTransport
from p2p.errors import FrameInvalid, FrameTooLarge, OpenFailed
from p2p.framing import FrameReader, encode_frame
from p2p.interface import KIB, NodeSettings

log = logging.getLogger("p2p")

IDENTIFY = identify.ID
IDENTIFY_PUSH = TProtocol("/ipfs/id/push/1.0.0")
IDENTIFY_BYTES_MAX = 16 * KIB  # with a signed record and a hundred protocols: 8 KiB
IDENTIFY_TIMEOUT_S = 10.0
IDENTIFY_END_WAIT_S = 1.0
ADDRESSES_PER_PEER_MAX = 16
PROTOCOLS_PER_PEER_MAX = 128
AGENT_CHARS_MAX = 128
ADDRESS_TTL_S = 3600


class BoundedPeerStore(PeerStore):  # type: ignore[misc]
    """The library keeps any number of addresses per peer; the newest 16 are enough."""

    def add_addrs(self, peer_id: ID, addrs: Sequence[Multiaddr], ttl: int = 0) -> None:
        super().add_addrs(peer_id, list(addrs)[:ADDRESSES_PER_PEER_MAX], ttl)
        known = self.peer_data_map.get(peer_id)
        if known is not None and len(known.addrs) > ADDRESSES_PER_PEER_MAX:
            del known.addrs[:-ADDRESSES_PER_PEER_MAX]


class GuardedHost(BasicHost):  # type: ignore[misc]
    """`nursery` runs what the library would hand to trio's system nursery, where one error ends the program."""

    def __init__(
        self,
        network: CocoonSwarm,
        *,
        settings: NodeSettings,
        counters: Counters,
        transport: NoiseYamuxTcp,
        quic: QuicTransport,
    ) -> None:
        announce = [Multiaddr(address) for address in settings.announce]
        self.extra_addresses: dict[str, tuple[str, ...]] = {}  # by who found them: relays, the router, dial-backs
        super().__init__(
            network,
            default_protocols=OrderedDict(
                [
                    (IDENTIFY, self._answer_identify),
                    (IDENTIFY_PUSH, self._take_push),
                    (PING, PingService(self).handle_ping),
                ]
            ),
            announce_addrs=announce or None,
            disable_identify_address_discovery=True,
        )
        self.settings = settings
        self.counters = counters
        self.transport = transport
        self.quic = quic
        self.websocket: WebSocketTransport | None = None
        self.nursery: trio.Nursery | None = None
        self.agents: dict[ID, str] = {}
        self.observed: dict[ID, str] = {}  # our address as each connected peer sees it, by its own words
        self.on_identified: Callable[[ID], None] = lambda _: None
        self._identifying: set[ID] = set()

    def run_in(self, nursery: trio.Nursery) -> None:
        """Where its tasks live from now on."""
        self.nursery = nursery
        if self.websocket is not None:
            self.websocket.nursery = nursery

    # --- streams -----------------------------------------------------------------------------------------

    async def _swarm_stream_handler(self, net_stream: INetStream) -> None:
        """The supervision boundary of every inbound stream, the library's own protocols included."""
        ended = False
        try:
            with trio.move_on_after(self.settings.limits.handshake_timeout_s) as scope:
                protocol = await answer(net_stream, self.multiselect.handlers)
            if scope.cancelled_caught:
                raise OpenFailed("the peer did not name a protocol in time")
            net_stream.set_protocol(TProtocol(protocol))
            await self.multiselect.handlers[protocol](net_stream)
            ended = True
        except (OpenFailed, IOException):
            pass  # the peer's doing, and over
        except Exception as error:
            self.counters.handler_errors += 1
            log.debug("stream.failed", extra={"error": type(error).__name__})
        finally:
            if not ended:
                with trio.move_on_after(1) as scope:
                    scope.shield = True
                    await net_stream.reset()

    async def new_stream(self, peer_id: ID, protocol_ids: Sequence[TProtocol]) -> INetStream:
        """What the library's own parts call. All of them propose one protocol."""
        stream = await self._network.new_stream(peer_id)
        opened = False
        try:
            with trio.fail_after(self.settings.limits.open_timeout_s):
                await propose(stream, protocol_ids[0])
            opened = True
        except Exception as error:  # gossip tries again after a SwarmException, and only after that
            raise SwarmException(f"no {protocol_ids[0]} stream to {peer_id}") from error
        finally:
            if not opened:
                with trio.move_on_after(1) as scope:
                    scope.shield = True
                    await stream.reset()
        stream.set_protocol(protocol_ids[0])
        return stream

    # --- our addresses -----------------------------------------------------------------------------------

    def get_addrs(self) -> list[Multiaddr]:
        """What others may dial, relayed addresses last; each ends in /p2p/<our id>."""
        suffix = f"/p2p/{self.get_id()}"
        found = dict.fromkeys(str(address) for address in super().get_addrs())
        for texts in self.extra_addresses.values():
            found.update(dict.fromkeys(text + suffix for text in texts))
        return [Multiaddr(text) for text in sorted(found, key=lambda text: "/p2p-circuit" in text)]

    def direct_addresses(self) -> list[str]:
        return [text for text in map(str, self.get_addrs()) if "/p2p-circuit" not in text]

    def note_addresses(self, source: str, addresses: Sequence[str]) -> None:
        """`source` now knows these of our addresses (without our id), and no others. Tells connected peers."""
        if self.extra_addresses.get(source, ()) == tuple(addresses):
            return
        self.extra_addresses[source] = tuple(addresses)
        if self.nursery is not None:
            for peer_id in list(self.agents):
                self.nursery.start_soon(self._push_identify, peer_id)

    # --- identify ----------------------------------------------------------------------------------------

    def _identify_message(self, connection: Any) -> bytes:
        seen = [] if connection.is_relayed else connection.get_transport_addresses()
        message = identify._mk_identify_protobuf(self, seen[0] if seen else None)
        message.agent_version = self.settings.agent
        return bytes(encode_frame(message.SerializeToString()))

    async def _push_identify(self, peer_id: ID) -> None:
        """Tell a peer that knows us what has changed."""
        try:
            with trio.move_on_after(IDENTIFY_TIMEOUT_S):
                if IDENTIFY_PUSH in self.peerstore.get_protocols(peer_id):
                    stream = await self.new_stream(peer_id, [IDENTIFY_PUSH])
                    await stream.write(self._identify_message(stream.muxed_conn))
                    await stream.close()
        except Exception as error:  # it will hear when it connects again
            log.debug("identify.push_failed", extra={"error": type(error).__name__})

    async def _take_push(self, stream: INetStream) -> None:
        with trio.move_on_after(IDENTIFY_TIMEOUT_S):
            self._learn(stream.muxed_conn.peer_id, await self._read_identify(stream))
        await stream.reset()

    async def _answer_identify(self, stream: INetStream) -> None:
        await stream.write(self._identify_message(stream.muxed_conn))
        # js-libp2p 3.3 loses an answer whose end arrives together with the end of the negotiation, so a ping goes
        # back and forth in between.
        await stream.muxed_conn.is_alive(timeout_s=IDENTIFY_END_WAIT_S)
        await stream.close()

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        if self.nursery is None or peer_id in self._identifying or peer_id in self.agents:
            return
        self._identifying.add(peer_id)
        self.nursery.start_soon(self._identify, peer_id)

    async def _identify(self, peer_id: ID) -> None:
        try:
            with trio.move_on_after(IDENTIFY_TIMEOUT_S):
                self._learn(peer_id, await self._ask_identify(peer_id))
                self.on_identified(peer_id)
        except Exception as error:
            log.debug("identify.failed", extra={"peer": str(peer_id), "error": type(error).__name__})
        finally:
            self._identifying.discard(peer_id)

    async def _ask_identify(self, peer_id: ID) -> Identify:
        stream = await self.new_stream(peer_id, [IDENTIFY])
        try:
            return await self._read_identify(stream)
        except (FrameTooLarge, FrameInvalid) as error:
            raise OpenFailed("not an identify answer") from error
        finally:
            with trio.move_on_after(1) as scope:
                scope.shield = True
                await stream.reset()

    async def _read_identify(self, stream: INetStream) -> Identify:
        reader = FrameReader(frame_bytes_max=IDENTIFY_BYTES_MAX)
        while (frame := reader.next_frame()) is None:
            reader.feed(await stream.read(IDENTIFY_BYTES_MAX))
        message = Identify()
        message.ParseFromString(frame)
        return message

    def _learn(self, peer_id: ID, message: Identify) -> None:
        if not self._network.live_connections(peer_id):
            return
        self.agents[peer_id] = "".join(c for c in message.agent_version if c.isprintable())[:AGENT_CHARS_MAX]
        self.peerstore.set_protocols(peer_id, list(message.protocols)[:PROTOCOLS_PER_PEER_MAX])
        addresses = []
        for raw in list(message.listen_addrs)[:ADDRESSES_PER_PEER_MAX]:
            try:
                addresses.append(Multiaddr(bytes(raw)))
            except Exception as error:  # the library raises many kinds for bytes that are no address
                log.debug("identify.address_refused", extra={"error": type(error).__name__})
        if addresses:
            self.peerstore.add_addrs(peer_id, addresses, ADDRESS_TTL_S)
        if message.observed_addr and self._network.direct_connections(peer_id):
            try:
                self.observed[peer_id] = str(parse_address(str(Multiaddr(message.observed_addr))).without_peer)
            except Exception as error:  # as above
                log.debug("identify.address_refused", extra={"error": type(error).__name__})

    def _on_notifee_disconnected(self, conn: Any) -> None:
        if not self._network.live_connections(conn.muxed_conn.peer_id):
            self.agents.pop(conn.muxed_conn.peer_id, None)
            self.observed.pop(conn.muxed_conn.peer_id, None)


def build_host(settings: NodeSettings, *, key: bytes, counters: Counters) -> GuardedHost:
    """A host that is not running yet, with the identity that grows from the 32-byte seed `key`."""
    key_pair = create_new_key_pair(key)
    peer_id = ID.from_pubkey(key_pair.public_key)
    peerstore = BoundedPeerStore()
    peerstore.add_key_pair(peer_id, key_pair)
    transport = NoiseYamuxTcp(
        key,
        settings=yamux_settings(settings.limits),
        upgrade_timeout_s=settings.limits.handshake_timeout_s,
        share_listening_port=settings.reach.hole_punching,
    )
    websocket = WebSocketTransport(transport)
    quic = QuicTransport(
        key,
        settings=QuicSettings(
            window_bytes=settings.limits.stream_window_bytes, receive_total_bytes_max=settings.limits.unread_bytes_max
        ),
        handshake_timeout_s=settings.limits.handshake_timeout_s,
    )
    through_relay = RelayTransport(transport)
    swarm = CocoonSwarm(
        peer_id,
        peerstore,
        TransportUpgrader({}, {}),  # the swarm wants one; our connections come secured and muxed
        transports=[transport, websocket, quic, through_relay],
        limits=settings.limits,
        policy=DialPolicy(allow_private=settings.allow_private_addresses),
        counters=counters,
    )
    host = GuardedHost(swarm, settings=settings, counters=counters, transport=transport, quic=quic)
    through_relay.attach(host)
    host.websocket = websocket
    return host
