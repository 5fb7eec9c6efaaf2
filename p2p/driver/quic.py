"""QUIC (`/udp/N/quic-v1`) in libp2p's terms: an `ITransport` whose connections come ready-made.

On aioquic's sans-IO core only, under trio, with our own flow control, bounds and listener: the library's QUIC (0.8.1)
lends its connections to nobody else's driver. TLS 1.3 with libp2p's certificates on both sides (`quic_certificate`),
QUIC's own streams, no 0-RTT and no resumption.

    swarm = CocoonSwarm(…, transports=[…, QuicTransport(seed)])

A connection that we dial has a socket of its own, so that the system tells us when nobody listens there. Not here:
dial policy, choice of addresses (the swarm's), hole punching over UDP.
"""

from __future__ import annotations

import datetime
import socket

import trio
from aioquic.quic.configuration import QuicConfiguration
from libp2p.abc import ITransport
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.transport.exceptions import OpenConnectionError, SecurityUpgradeFailure
from multiaddr import Multiaddr

from p2p.driver.quic_certificate import CertificateRefused, make_certificate
from p2p.driver.quic_link import QuicLink
from p2p.driver.quic_listener import (
    BATCH_MAX,
    DATAGRAM_BYTES_MAX,
    ConnectionHandler,
    QuicListener,
    quic_endpoint,
    udp_socket,
)
from p2p.driver.quic_machine import Address, QuicMachine
from p2p.driver.quic_state import DEFAULT_SETTINGS, QuicSettings
from p2p.driver.quic_tamed import configuration
from p2p.driver.transport import UPGRADE_TIMEOUT_S, peer_of
from p2p.errors import P2PError
from p2p.noise import AnotherPeer

SOCKET_BUFFER_BYTES = 1024 * 1024  # of one connection: four windows
NAMES = (["ip4", "udp", "quic-v1"], ["ip6", "udp", "quic-v1"])


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class QuicTransport(ITransport):  # type: ignore[misc]
    """`seed`: the 32-byte ed25519 seed of the host's identity."""

    provides_native_muxing = True

    def __init__(
        self, seed: bytes, *, settings: QuicSettings = DEFAULT_SETTINGS, handshake_timeout_s: float = UPGRADE_TIMEOUT_S
    ) -> None:
        self._seed = seed
        self._settings = settings
        self._handshake_timeout_s = handshake_timeout_s
        self._configurations: dict[bool, QuicConfiguration] = {}  # by is_client; made when first needed

    def _configuration(self, *, is_client: bool) -> QuicConfiguration:
        if not self._configurations:
            certificate, key = make_certificate(self._seed, now=utc_now())
            for side in (True, False):
                self._configurations[side] = configuration(is_client=side, certificate=certificate, private_key=key)
        return self._configurations[is_client]

    async def dial(self, maddr: Multiaddr) -> QuicLink:
        """Raises OpenConnectionError; its cause says why (OSError, SecurityUpgradeFailure, TooSlowError …)."""
        family, host, port = quic_endpoint(maddr)
        sock = udp_socket(family, buffer_bytes=SOCKET_BUFFER_BYTES)
        link: QuicLink | None = None
        opened = False
        try:
            sock.connect((host, port))
            machine = QuicMachine(
                self._configuration(is_client=True),
                utc_now=utc_now,
                settings=self._settings,
                expected_peer=peer_of(maddr),
            )
            line = _Line(sock)
            link = QuicLink(machine, line.transmit, is_dialer=True, read=line.read, on_end=line.end)
            line.link = link
            machine.connect(line.address, now=trio.current_time())
            with trio.fail_after(self._handshake_timeout_s):
                await link.shake_hands()
            opened = True
        except (CertificateRefused, AnotherPeer) as error:
            raise OpenConnectionError(f"the secure handshake failed: {error}") from _security_failure(error)
        except (P2PError, OSError, trio.TooSlowError) as error:
            cause = SecurityUpgradeFailure(str(error)) if machine.is_refused else error
            raise OpenConnectionError(f"dial failed: {error}") from cause
        finally:
            if not opened and link is not None:
                link.close_nowait()  # tells the other side not to wait for the rest of the handshake
            if not opened:
                _close(sock)
        return link

    async def dial_afresh(self, maddr: Multiaddr) -> QuicLink:
        """`dial` from a port that the other side has never seen: every dial does."""
        return await self.dial(maddr)

    def create_listener(self, handler_function: ConnectionHandler) -> QuicListener:
        return QuicListener(self._accept, handler_function, handshake_timeout_s=self._handshake_timeout_s)

    def _accept(self, original_id: bytes, retried_id: bytes | None) -> QuicMachine:
        return QuicMachine(
            self._configuration(is_client=False),
            utc_now=utc_now,
            settings=self._settings,
            original_destination_connection_id=original_id,
            retry_source_connection_id=retried_id,
        )

    def can_dial(self, maddr: Multiaddr) -> bool:
        names = [protocol.name for protocol in maddr.protocols()]
        return names[:3] in NAMES and names[3:] in ([], ["p2p"])

    def can_listen(self, maddr: Multiaddr) -> bool:
        return self.can_dial(maddr)

    def protocols(self) -> list[str]:
        return ["quic-v1"]


class _Line:
    """The socket of one connection that we dialled."""

    link: QuicLink

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.address: Address = sock.getpeername()

    def transmit(self, data: bytes, address: Address) -> None:
        try:
            self._sock.send(data)
        except BlockingIOError:
            pass  # the system's buffer is full: the datagram is lost, and QUIC repairs that
        except OSError as error:
            self.link.note_refused(error)

    async def read(self, link: QuicLink) -> None:
        sock, address = self._sock, self.address
        while not link.is_closed:
            now = trio.current_time()
            taken = 0
            try:
                for _ in range(BATCH_MAX):
                    link.receive(sock.recv(DATAGRAM_BYTES_MAX), address, now)
                    taken += 1
                is_empty = False
            except BlockingIOError:
                is_empty = True
            except OSError as error:
                link.note_refused(error)
                is_empty = False
            if taken:
                link.settle()
            if link.closed.is_set():
                return
            if is_empty:
                try:
                    await trio.lowlevel.wait_readable(sock.fileno())
                except (OSError, trio.ClosedResourceError):
                    return
            else:
                await trio.lowlevel.checkpoint()

    def end(self, link: QuicLink) -> None:
        _close(self._sock)


def _close(sock: socket.socket) -> None:
    if sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock.fileno())
        sock.close()


def _security_failure(error: CertificateRefused | AnotherPeer) -> Exception:
    """In the words that the rest of the driver looks for."""
    failure: Exception
    if isinstance(error, AnotherPeer):
        failure = PeerIDMismatchesPubkey(str(error))
    else:
        failure = SecurityUpgradeFailure(str(error))
    failure.__cause__ = error
    return failure
