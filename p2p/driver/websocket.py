"""WebSocket (`/tcp/N/ws`): our Noise and yamux inside binary messages, for networks that let nothing else through.

The HTTP part and the framing are `wsproto`'s. A `Link` lives on a socket, so the messages are carried into one end of a
socket pair, as for relayed connections. Sealed by Noise as every other connection; TLS around it (`wss`) is for a
proxy in front. Source: libp2p/specs, websockets/README.md.
"""

from __future__ import annotations

import socket

import trio
from libp2p.abc import ITransport
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr
from wsproto import ConnectionType as WebSocketRole
from wsproto import WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, RejectConnection, Request
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from p2p.driver.transport import (
    SOCKET_ERRORS,
    UPGRADE_TIMEOUT_S,
    ConnectionHandler,
    MuxedConnection,
    NoiseYamuxListener,
    NoiseYamuxTcp,
    connect_tcp,
    peer_of,
)
from p2p.errors import P2PError

READ_BYTES_MAX = 64 * 1024
NAMES = (["ip4", "tcp", "ws"], ["ip6", "tcp", "ws"])


class WebSocketFailed(P2PError):
    """The other side does not speak WebSocket, or refused."""


class WebSocketTransport(ITransport):  # type: ignore[misc]
    """`nursery` must be set before the first connection: it keeps their bytes flowing."""

    provides_native_muxing = True
    share_listening_port = False
    address_suffix = "/ws"

    def __init__(self, inner: NoiseYamuxTcp) -> None:
        self._inner = inner
        self.nursery: trio.Nursery | None = None
        self.listening_ports: dict[socket.AddressFamily, int] = {}

    async def dial(self, maddr: Multiaddr) -> MuxedConnection:
        """Raises OpenConnectionError; its cause says why."""
        try:
            sock = await connect_tcp(maddr)
            try:
                return await self.upgrade(sock, is_dialer=True, expected_peer=peer_of(maddr))
            except BaseException:
                sock.close()
                raise
        except SOCKET_ERRORS as error:
            raise OpenConnectionError(f"dial failed: {error}") from error

    async def upgrade(self, sock: socket.socket, *, is_dialer: bool, expected_peer: bytes | None) -> MuxedConnection:
        """A connected, non-blocking socket becomes a connection. Raises what `NoiseYamuxTcp.upgrade` raises."""
        if self.nursery is None:
            raise WebSocketFailed("the node is not running")
        remote = sock.getpeername()[:2]
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        machine = WSConnection(WebSocketRole.CLIENT if is_dialer else WebSocketRole.SERVER)
        with trio.fail_after(UPGRADE_TIMEOUT_S):
            early = await _shake_hands(stream, machine, f"{remote[0]}:{remote[1]}" if is_dialer else None)
        near, far = socket.socketpair()
        near.setblocking(False)
        self.nursery.start_soon(_carry, stream, machine, early, trio.SocketStream(trio.socket.from_stdlib_socket(far)))
        try:
            link = await self._inner.upgrade(near, is_dialer=is_dialer, expected_peer=expected_peer)
        except BaseException:
            near.close()
            raise
        link.note_remote(remote)
        return link

    def create_listener(self, handler_function: ConnectionHandler) -> NoiseYamuxListener:
        return NoiseYamuxListener(self, handler_function)

    def can_dial(self, maddr: Multiaddr) -> bool:
        names = [protocol.name for protocol in maddr.protocols()]
        return names[:3] in NAMES and names[3:] in ([], ["p2p"])

    def can_listen(self, maddr: Multiaddr) -> bool:
        return self.can_dial(maddr)

    def protocols(self) -> list[str]:
        return ["ws"]


async def _shake_hands(stream: trio.SocketStream, machine: WSConnection, host: str | None) -> list[Event]:
    """Returns what has arrived behind the handshake. Raises WebSocketFailed, OSError."""
    try:
        if host is not None:
            await stream.send_all(machine.send(Request(host=host, target="/")))
        while True:
            data = await stream.receive_some(READ_BYTES_MAX)
            if not data:
                raise WebSocketFailed("the remote hung up during the handshake")
            machine.receive_data(data)
            events = list(machine.events())
            for number, event in enumerate(events):
                if isinstance(event, Request):
                    await stream.send_all(machine.send(AcceptConnection()))
                    return events[number + 1 :]
                if isinstance(event, AcceptConnection):
                    return events[number + 1 :]
                if isinstance(event, RejectConnection | CloseConnection):
                    raise WebSocketFailed("the remote refused a WebSocket")
    except (RemoteProtocolError, LocalProtocolError, trio.BrokenResourceError) as error:
        raise WebSocketFailed("the remote does not speak WebSocket") from error


async def _carry(stream: trio.SocketStream, machine: WSConnection, early: list[Event], far: trio.SocketStream) -> None:
    """Bytes both ways until either side has ended. Lets no error out, leaves nothing open."""
    gone = (trio.BrokenResourceError, trio.ClosedResourceError, RemoteProtocolError, LocalProtocolError)
    turn = trio.Lock()  # a pong and a message may not mix

    async def inwards(scope: trio.CancelScope) -> None:
        events = early
        try:
            while True:
                for event in events:
                    if isinstance(event, BytesMessage):
                        await far.send_all(bytes(event.data))
                    elif isinstance(event, Ping):
                        async with turn:
                            await stream.send_all(machine.send(event.response()))
                    elif isinstance(event, CloseConnection):
                        return
                data = await stream.receive_some(READ_BYTES_MAX)
                if not data:
                    return
                machine.receive_data(data)
                events = list(machine.events())
        except gone:
            pass
        finally:
            scope.cancel()

    async def outwards(scope: trio.CancelScope) -> None:
        try:
            while data := await far.receive_some(READ_BYTES_MAX):
                async with turn:
                    await stream.send_all(machine.send(BytesMessage(data=data)))
        except gone:
            pass
        finally:
            scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inwards, nursery.cancel_scope)
            nursery.start_soon(outwards, nursery.cancel_scope)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await far.aclose()
            await stream.aclose()
