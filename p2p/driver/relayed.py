"""Connections through a relay: a byte stream to the other peer, on which our own Noise and yamux run.

    dial:    /ip4/…/tcp/…/p2p/RELAY/p2p-circuit/p2p/PEER → HOP stream to the relay → CONNECT → secure, mux → swarm
    accept:  STOP stream from a relay that holds a reservation of ours → CONNECT → secure, mux → swarm

The relay sees sealed bytes only. A `Link` lives on a socket, so the stream is carried into one end of a socket pair:
one copy more each way, which a relayed connection, limited by its relay, never notices.
Source: libp2p/specs, relay/circuit-v2.md. Not here: reservations (`relay_client.py`), relaying (`relay.py`).
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import trio
from libp2p.abc import IListener, ITransport
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from p2p.addresses import Address, parse_address
from p2p.driver.exchange import MessageStream
from p2p.driver.negotiate import propose
from p2p.driver.streams import MuxedRawStream
from p2p.driver.swarm import RelayRefused
from p2p.driver.transport import MuxedConnection, NoiseYamuxTcp
from p2p.errors import DialFailed, P2PError, StreamReset
from p2p.identity import peer_id_to_bytes
from p2p.reach import HOP, HopKind, HopMessage, Status, decode_hop, encode_hop

if TYPE_CHECKING:
    from p2p.driver.host import GuardedHost

CARRY_BYTES_MAX = 64 * 1024


class RelayedConnection(MuxedConnection):
    """As any of ours; only that nobody can say where the other end is."""

    is_relayed = True

    def get_transport_addresses(self) -> list[Multiaddr]:
        return [Multiaddr("/p2p-circuit")]

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.RELAYED


async def carry(raw: MuxedRawStream, early: bytes, far: trio.SocketStream) -> None:
    """Bytes both ways, until both directions have ended or one has broken. Leaves nothing open."""
    async with trio.open_nursery() as nursery:

        async def inwards() -> None:
            data = early
            try:
                while data or (data := await raw.read_some()):
                    await far.send_all(data)
                    data = b""
                await far.send_eof()
            except (StreamReset, trio.BrokenResourceError, trio.ClosedResourceError):
                nursery.cancel_scope.cancel()

        async def outwards() -> None:
            try:
                while data := await far.receive_some(CARRY_BYTES_MAX):
                    await raw.write_all(data)
            except (StreamReset, trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            nursery.cancel_scope.cancel()  # the link is gone: nothing more can come of the other direction

        try:
            nursery.start_soon(inwards)
            nursery.start_soon(outwards)
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await far.aclose()
                await raw.reset()


async def secure(
    transport: NoiseYamuxTcp, stream: MessageStream, nursery: trio.Nursery, *, expected_peer: bytes | None
) -> MuxedConnection:
    """A relayed stream becomes a connection; `nursery` keeps its bytes flowing. We are the dialer if and only if we
    expect somebody. Raises what `NoiseYamuxTcp.upgrade` raises."""
    near, far = socket.socketpair()
    near.setblocking(False)
    nursery.start_soon(carry, stream.raw, stream.rest, trio.SocketStream(trio.socket.from_stdlib_socket(far)))
    try:
        return await transport.upgrade(
            near, is_dialer=expected_peer is not None, expected_peer=expected_peer, link_type=RelayedConnection
        )
    except BaseException:
        near.close()
        raise


class RelayTransport(ITransport):  # type: ignore[misc]
    """Dials `…/p2p-circuit/p2p/…` addresses. `attach` it to the host before the first dial."""

    provides_native_muxing = True

    def __init__(self, transport: NoiseYamuxTcp) -> None:
        self._transport = transport
        self._host: GuardedHost | None = None

    def attach(self, host: GuardedHost) -> None:
        self._host = host

    async def dial(self, maddr: Multiaddr) -> MuxedConnection:
        """Raises OpenConnectionError; its cause says why. The caller sets the deadline."""
        address = parse_address(str(maddr))
        host = self._host
        if host is None or host.nursery is None or address.relay is None or address.peer is None:
            raise OpenConnectionError(f"cannot dial {maddr}")
        try:
            return await self._dial(host, address, peer_id_to_bytes(address.peer), host.nursery)
        except (P2PError, OSError, trio.TooSlowError) as error:
            raise OpenConnectionError(f"dial failed: {error}") from error

    async def _dial(self, host: GuardedHost, address: Address, peer: bytes, nursery: trio.Nursery) -> MuxedConnection:
        assert address.relay is not None
        relay_id = ID(peer_id_to_bytes(address.relay))
        swarm = host.get_network()
        if not swarm.direct_connections(relay_id):
            direct = Address(kind=address.kind, host=address.host, port=address.port, transport=address.transport)
            try:
                await swarm.dial(relay_id, [direct])
            except DialFailed as error:
                raise RelayRefused("the relay cannot be reached") from error
        connections = swarm.direct_connections(relay_id)
        if not connections:
            raise RelayRefused("the relay is itself behind a relay")
        muxed = await connections[-1].muxed_conn.open_stream()
        connected = False
        try:
            await propose(muxed, HOP)
            stream = MessageStream(muxed)
            await stream.send(encode_hop(HopMessage(kind=HopKind.CONNECT, peer=peer)))
            answer = decode_hop(await stream.receive())
            if answer.kind is not HopKind.STATUS or answer.status != Status.OK:
                raise RelayRefused(REFUSALS.get(answer.status, "the relay refused"))
            link = await secure(self._transport, stream, nursery, expected_peer=peer)
            connected = True
        finally:
            if not connected:
                with trio.move_on_after(1) as scope:
                    scope.shield = True
                    await muxed.reset()
        return link

    def create_listener(self, handler_function: Any) -> IListener:
        raise NotImplementedError("reservations come from relay_client.py")

    def can_dial(self, maddr: Multiaddr) -> bool:
        return "p2p-circuit" in [protocol.name for protocol in maddr.protocols()]

    def can_listen(self, maddr: Multiaddr) -> bool:
        return False

    def protocols(self) -> list[str]:
        return ["p2p-circuit"]


REFUSALS: dict[int, str] = {
    Status.RESOURCE_LIMIT_EXCEEDED: "the relay is at its limit",
    Status.PERMISSION_DENIED: "the relay does not permit it",
    Status.CONNECTION_FAILED: "the relay could not reach the peer",
    Status.NO_RESERVATION: "the peer has no reservation at the relay",
}
