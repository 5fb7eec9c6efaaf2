"""Our connection transport in libp2p's terms: an `ITransport` whose connections come ready-made.

The swarm skips its own security and muxer upgrade for a connection that is an `IMuxedConn` already (a public seam
of libp2p 0.8.1: `Swarm._dial_addr_single_attempt` and `_do_handle_inbound_connection`). So TCP connections run on
`p2p.transport` (Noise and yamux, our own), and the rest of libp2p sees nothing new.

    swarm = Swarm(…, transports=[NoiseYamuxTcp(seed, …)])
    muxed_stream.read_some(), .write_all(), …      # the direct path, without NetStream: see `LinkStream`

Not here: dial policy, choice of addresses, limits on connections in total (the swarm's).
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.abc import IListener, IMuxedConn, IMuxedStream, ITransport
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from libp2p.transport.exceptions import OpenConnectionError, SecurityUpgradeFailure
from multiaddr import Multiaddr

from p2p.errors import P2PError, PeerIdInvalid, StreamClosed, StreamReset
from p2p.identity import peer_id_to_bytes
from p2p.interface import Limits
from p2p.noise import PROTOCOL as NOISE
from p2p.noise import AnotherPeer, NoiseError, NoiseIdentity, ed25519_identity, verify_ed25519
from p2p.transport import Connection, Link, LinkClosed, LinkStream, open_link
from p2p.yamux import PROTOCOL as YAMUX
from p2p.yamux import SessionStream, YamuxSettings
from p2p.yamux.messages import DEFAULT_SETTINGS

log = logging.getLogger("p2p")

UPGRADE_TIMEOUT_S = 10.0  # Noise and yamux together: a stranger may not hold a socket longer unproven
UPGRADES_MAX = 256  # strangers in the handshake at one time, and per address:
UPGRADES_PER_HOST_MAX = 64
BACKLOG = 128
ACCEPT_PAUSE_S = 0.1  # when the process is out of file descriptors
NANOSECONDS = 1_000_000_000
SOURCE_TAKEN = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)  # the same two ends are, or were just now, connected

SOCKET_ERRORS = (P2PError, OSError, trio.TooSlowError)

ConnectionHandler = Callable[[Any], Awaitable[None]]


class MuxedStream(LinkStream, IMuxedStream):  # type: ignore[misc]
    """One stream, both as `LinkStream` (the direct path) and as libp2p's `IMuxedStream` (for its own parts)."""

    @property
    def state(self) -> SessionStream:
        """The stream as the yamux session sees it: for tests and statistics."""
        return self._stream

    @property
    def muxed_conn(self) -> MuxedConnection:
        link = self._link
        assert isinstance(link, MuxedConnection)
        return link

    async def read(self, n: int | None = None) -> bytes:
        try:
            data = await self.read_some(n) if n is not None and n > 0 else await self.read_some()
        except StreamReset as error:
            raise MuxedStreamReset(str(error)) from error
        if not data:
            raise MuxedStreamEOF("the remote closed its side")
        return data

    async def write(self, data: bytes) -> None:
        try:
            await self.write_all(data)
        except StreamReset as error:
            raise MuxedStreamReset(str(error)) from error
        except StreamClosed as error:
            raise MuxedStreamClosed(str(error)) from error

    async def close_write(self) -> None:
        """Say the end in a frame of its own, after all data has gone: js-yamux (8.0) drops what a frame with FIN
        carries when it has closed its own side. Cancelled, the end is said with the last data."""
        try:
            while self._stream.unsent and not self.is_closed:
                await self.muxed_conn.wait_pushed()
        finally:
            self._link.session.close_write(self._stream)
            self._link.flush()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def close(self) -> None:
        """libp2p's word for closing our side: reading goes on."""
        await self.close_write()

    def set_deadline(self, ttl: int) -> None:
        raise NotImplementedError("use trio's cancel scopes")

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.muxed_conn.get_remote_address()

    async def __aenter__(self) -> MuxedStream:
        return self


class MuxedConnection(Link, IMuxedConn):  # type: ignore[misc]
    """One connection, both as `Link` and as libp2p's `IMuxedConn`. The swarm runs `start` in a task."""

    negotiated_security_protocol = NOISE
    negotiated_muxer_protocol = YAMUX
    on_close: Callable[[], Awaitable[None]] | None = None  # set by the swarm
    is_relayed = False

    def __init__(self, sock: socket.socket, connection: Connection, early_events: Any, **options: Any) -> None:
        self._remote_address: tuple[str, int] | None = None  # a relayed connection has none
        if sock.family != socket.AF_UNIX:
            host, port = sock.getpeername()[:2]
            self._remote_address = (host, port)
        self._pushed: trio.Event | None = None  # somebody waits for the next batch to go
        self.event_started = trio.Event()
        Link.__init__(self, sock, connection, early_events, **options)
        self.peer_id = ID(self.remote_peer)

    def note_remote(self, address: tuple[str, int]) -> None:
        """Where the other end is, for a connection whose socket cannot say."""
        self._remote_address = address

    @property
    def is_initiator(self) -> bool:
        return self.is_dialer

    @property
    def is_established(self) -> bool:
        return self.event_started.is_set() and not self.is_closed

    async def start(self) -> None:
        self.event_started.set()
        try:
            await self.run()
        finally:
            if self.on_close is not None:
                with trio.CancelScope(shield=True):
                    await self.on_close()

    def _push(self) -> None:
        Link._push(self)
        if self._pushed is not None:
            self._pushed.set()
            self._pushed = None

    async def wait_pushed(self) -> None:
        """Until a batch has been sent, or the connection has ended."""
        if self._is_closed:
            return
        if self._pushed is None:
            self._pushed = trio.Event()
        await self._pushed.wait()

    def _end(self, error: BaseException | None) -> None:
        Link._end(self, error)
        if self._pushed is not None:
            self._pushed.set()

    async def close(self) -> None:
        self.close_nowait()
        await trio.lowlevel.checkpoint()

    async def open_stream(self) -> IMuxedStream:
        """Raises StreamLimitReached (ours, at once), MuxedStreamError."""
        await trio.lowlevel.checkpoint()
        try:
            return self.open_nowait()
        except LinkClosed as error:
            raise MuxedStreamError(str(error)) from error

    async def accept_stream(self) -> IMuxedStream:
        try:
            return await self.accept()
        except LinkClosed as error:
            raise MuxedConnUnavailable(str(error)) from error

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._remote_address

    def get_transport_addresses(self) -> list[Multiaddr]:
        return [_multiaddr(*self._remote_address)] if self._remote_address is not None else []

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT


def yamux_settings(limits: Limits) -> YamuxSettings:
    return YamuxSettings(window_bytes=limits.stream_window_bytes, receive_total_bytes_max=limits.unread_bytes_max)


class NoiseYamuxTcp(ITransport):  # type: ignore[misc]
    """TCP with our Noise and yamux. `seed`: the 32-byte ed25519 seed of the host's identity."""

    provides_native_muxing = True
    address_suffix = ""

    def __init__(
        self,
        seed: bytes,
        *,
        settings: YamuxSettings = DEFAULT_SETTINGS,
        upgrade_timeout_s: float = UPGRADE_TIMEOUT_S,
        share_listening_port: bool = False,
    ) -> None:
        """`share_listening_port`: dial from the port that we listen on, so that a NAT gives both one address and
        hole punching has something to aim at."""
        self.share_listening_port = share_listening_port
        self.listening_ports: dict[socket.AddressFamily, int] = {}
        self._identity: NoiseIdentity = ed25519_identity(seed=seed, static_private=os.urandom(32))
        self._settings = settings
        self._upgrade_timeout_s = upgrade_timeout_s

    async def dial(self, maddr: Multiaddr) -> MuxedConnection:
        """Raises OpenConnectionError; its cause says why (OSError, SecurityUpgradeFailure, NoiseError …)."""
        source = self.punching_source(maddr)
        if source is not None:
            try:
                return await self._dial(maddr, source)
            except OpenConnectionError as error:
                if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in SOURCE_TAKEN:
                    raise
        return await self._dial(maddr, None)

    async def dial_afresh(self, maddr: Multiaddr) -> MuxedConnection:
        """`dial` from a port that the other side has never seen, as a dial-back must be."""
        return await self._dial(maddr, None)

    def punching_source(self, maddr: Multiaddr) -> tuple[str, int] | None:
        """Where to dial from, when ports are shared; None for one's own machine, which has no NAT."""
        family, host, _ = _endpoint(maddr)
        port = self.listening_ports.get(family)
        if not self.share_listening_port or port is None or ipaddress.ip_address(host).is_loopback:
            return None
        return ("::" if family == socket.AF_INET6 else "0.0.0.0", port)  # noqa: S104 - any source, not a listener

    async def dial_with_source(self, maddr: Multiaddr, source: tuple[str, int] | None) -> MuxedConnection:
        """`dial` from a given local address and port, as hole punching needs."""
        return await self._dial(maddr, source)

    async def dial_as_responder(self, maddr: Multiaddr, source: tuple[str, int] | None = None) -> MuxedConnection:
        """`dial`, then take the listener's part in the handshakes: the other side of a simultaneous open."""
        return await self._dial(maddr, source, is_dialer=False)

    async def _dial(
        self, maddr: Multiaddr, source: tuple[str, int] | None, *, is_dialer: bool = True
    ) -> MuxedConnection:
        family, host, port = _endpoint(maddr)
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            _prepare(sock)
            if source is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if hasattr(socket, "SO_REUSEPORT"):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind(source)
            await _connect(sock, (host, port))
            link = await self.upgrade(sock, is_dialer=is_dialer, expected_peer=peer_of(maddr))
        except NoiseError as error:
            sock.close()
            raise OpenConnectionError(f"the secure handshake failed: {error}") from _security_failure(error)
        except (P2PError, OSError, trio.TooSlowError) as error:
            sock.close()
            raise OpenConnectionError(f"dial failed: {error}") from error
        except BaseException:
            sock.close()
            raise
        return link

    async def upgrade(
        self,
        sock: socket.socket,
        *,
        is_dialer: bool,
        expected_peer: bytes | None,
        link_type: type[MuxedConnection] | None = None,
    ) -> MuxedConnection:
        """A connected, non-blocking socket becomes a connection, within the upgrade time-out."""
        connection = Connection(
            is_dialer=is_dialer,
            identity=self._identity,
            verify=verify_ed25519,
            ephemeral_private=os.urandom(32),
            expected_peer=expected_peer,
            settings=self._settings,
            now=int(trio.current_time() * NANOSECONDS),
        )
        with trio.fail_after(self._upgrade_timeout_s):
            return await open_link(sock, connection, link_type=link_type or MuxedConnection, stream_type=MuxedStream)

    def create_listener(self, handler_function: ConnectionHandler) -> NoiseYamuxListener:
        return NoiseYamuxListener(self, handler_function)

    def can_dial(self, maddr: Multiaddr) -> bool:
        names = [protocol.name for protocol in maddr.protocols()]
        return names[:2] in (["ip4", "tcp"], ["ip6", "tcp"]) and (names[2:] in ([], ["p2p"]))

    def can_listen(self, maddr: Multiaddr) -> bool:
        return self.can_dial(maddr)

    def protocols(self) -> list[str]:
        return ["tcp"]


class NoiseYamuxListener(IListener):  # type: ignore[misc]
    """Accepts, upgrades, and hands each finished connection to the swarm. Whatever a stranger does before that
    costs him his socket and nobody else anything."""

    background_nursery: trio.Nursery | None = None  # set by the swarm before `listen`

    def __init__(self, transport: Any, handler: ConnectionHandler) -> None:
        """`transport`: whose `upgrade` makes a connection of a socket."""
        self._transport = transport
        self._handler = handler
        self._addresses: list[Multiaddr] = []
        self._scopes: list[trio.CancelScope] = []
        self._upgrading: Counter[str] = Counter()

    async def listen(self, maddr: Multiaddr) -> None:
        """Raises OpenConnectionError when the address cannot be bound."""
        family, host, port = _endpoint(maddr)
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if self._transport.share_listening_port and hasattr(socket, "SO_REUSEPORT"):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((host, port))
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise OpenConnectionError(f"cannot listen on {maddr}: {error.strerror}") from error
        bound = _multiaddr(*sock.getsockname()[:2])
        self._addresses.append(Multiaddr(f"{bound}{self._transport.address_suffix}"))
        self._transport.listening_ports.setdefault(family, sock.getsockname()[1])
        scope = trio.CancelScope()
        self._scopes.append(scope)
        if self.background_nursery is not None:
            self.background_nursery.start_soon(self._serve, sock, scope)
        else:
            trio.lowlevel.spawn_system_task(self._serve, sock, scope)
        await trio.lowlevel.checkpoint()

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        return tuple(self._addresses)

    async def close(self) -> None:
        for scope in self._scopes:
            scope.cancel()
        self._addresses.clear()
        await trio.lowlevel.checkpoint()

    async def _serve(self, sock: socket.socket, scope: trio.CancelScope) -> None:
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    while True:
                        try:
                            accepted, address = sock.accept()
                        except BlockingIOError:
                            await trio.lowlevel.wait_readable(sock.fileno())
                            continue
                        except OSError as error:
                            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                                log.warning("listener.out_of_sockets")
                                await trio.sleep(ACCEPT_PAUSE_S)
                            continue  # the connection was gone before it was accepted
                        nursery.start_soon(self._welcome, accepted, address[0])
        finally:
            sock.close()

    async def _welcome(self, sock: socket.socket, host: str) -> None:
        if self._upgrading.total() >= UPGRADES_MAX or self._upgrading[host] >= UPGRADES_PER_HOST_MAX:
            sock.close()
            return
        self._upgrading[host] += 1
        try:
            _prepare(sock)
            link = await self._transport.upgrade(sock, is_dialer=False, expected_peer=None)
        except (P2PError, OSError, trio.TooSlowError) as error:
            log.debug("connection.refused", extra={"error": type(error).__name__})
            sock.close()
            return
        except BaseException:
            sock.close()
            raise
        finally:
            self._upgrading[host] -= 1
            if not self._upgrading[host]:
                del self._upgrading[host]
        try:
            await self._handler(link)
        except Exception as error:  # supervision boundary: the swarm's doings end this connection only
            log.warning("connection.handler_failed", extra={"error": type(error).__name__})
            await link.close()


# --- sockets and addresses -----------------------------------------------------------------------------------


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def _connect(sock: socket.socket, address: tuple[str, int]) -> None:
    try:
        sock.connect(address)
    except BlockingIOError:
        await trio.lowlevel.wait_writable(sock.fileno())
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


async def connect_tcp(maddr: Multiaddr) -> socket.socket:
    """Raises OSError, OpenConnectionError."""
    family, host, port = _endpoint(maddr)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        _prepare(sock)
        await _connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _endpoint(maddr: Multiaddr) -> tuple[socket.AddressFamily, str, int]:
    names = [protocol.name for protocol in maddr.protocols()]
    if names[:2] not in (["ip4", "tcp"], ["ip6", "tcp"]):
        raise OpenConnectionError(f"{maddr} is no TCP address")
    family = socket.AF_INET if names[0] == "ip4" else socket.AF_INET6
    return family, str(maddr.value_for_protocol(names[0])), int(maddr.value_for_protocol("tcp"))


def peer_of(maddr: Multiaddr) -> bytes | None:
    """The peer that the address names, who alone may answer."""
    if "p2p" not in [protocol.name for protocol in maddr.protocols()]:
        return None
    try:
        return peer_id_to_bytes(str(maddr.value_for_protocol("p2p")))
    except PeerIdInvalid as error:
        raise OpenConnectionError(str(error)) from error


def _multiaddr(host: str, port: int) -> Multiaddr:
    return Multiaddr(f"/ip{ipaddress.ip_address(host).version}/{host}/tcp/{port}")


def _security_failure(error: NoiseError) -> Exception:
    """In the words that the rest of the driver looks for."""
    failure: Exception
    if isinstance(error, AnotherPeer):
        failure = PeerIDMismatchesPubkey(str(error))
    else:
        failure = SecurityUpgradeFailure(str(error))
    failure.__cause__ = error
    return failure
