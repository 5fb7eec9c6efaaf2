"""One UDP socket on which many peers connect: datagrams to their connections by id, strangers through the door.

    Initial of a stranger ─ room among the half-open? ─ many already? ─ Retry: "say it again from there" (no state)
                                                    └─ few ─► handshake, within a time ─► the swarm

A stranger costs at most one place among `HALF_OPEN_MAX` until he has proved who he is, and one whose Initial makes no
sense keeps it for a second, so that a flood of them ends in Retry, which costs no memory and is bounded by a rate.
Source: RFC 9000, sections 5.2 (matching packets), 8.1 (address validation), 6 (versions). Not here: the connections.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # not named in its __all__
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler
from libp2p.abc import IListener
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from p2p.driver.quic_link import QuicLink, quic_multiaddr
from p2p.driver.quic_machine import Address, QuicMachine
from p2p.driver.quic_state import IdIssued, IdRetired
from p2p.driver.quic_tamed import CONNECTION_ID_BYTES
from p2p.errors import P2PError

log = logging.getLogger("p2p")

HALF_OPEN_MAX = 256  # strangers in the handshake at one time, and per address:
HALF_OPEN_PER_HOST_MAX = 64
RETRY_FROM = 32  # half-open ones, over which a stranger must show that he is where he says
NONSENSE_HELD_S = 1.0  # how long an Initial that cannot be decrypted keeps its place
ANSWERS_PER_S_MAX = 1000  # Retries and version negotiations: about a twentieth of a core
INITIAL_BYTES_MIN = 1200  # a smaller one is dropped: our answer must not be larger than the question (section 14.1)
DATAGRAM_BYTES_MAX = 2048  # of a peer that has searched a path for its MTU: Ethernet carries 1,472
BATCH_MAX = 64  # datagrams taken before the connections answer, and before others run: about 5 ms
SOCKET_BUFFER_BYTES = (
    4 * 1024 * 1024
)  # of all peers together, asked for; a burst that finds no room is lost, and costs a round trip

_LONG_HEADER = 0x80
_KNOWN_VERSIONS = [QuicProtocolVersion.VERSION_1]

MakeMachine = Callable[[bytes, bytes | None], QuicMachine]
"""(original destination connection id, the id in the Retry that we sent, if any) → our side of a connection."""

ConnectionHandler = Callable[[Any], Awaitable[None]]


def udp_socket(family: socket.AddressFamily, *, buffer_bytes: int = SOCKET_BUFFER_BYTES) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)
    return sock


class QuicListener(IListener):  # type: ignore[misc]
    background_nursery: trio.Nursery | None = None  # set by the swarm before `listen`

    def __init__(self, make_machine: MakeMachine, handler: ConnectionHandler, *, handshake_timeout_s: float) -> None:
        self._make_machine = make_machine
        self._handler = handler
        self._handshake_timeout_s = handshake_timeout_s
        self._doors: list[_Door] = []

    async def listen(self, maddr: Multiaddr) -> None:
        """Raises OpenConnectionError when the address cannot be bound."""
        family, host, port = quic_endpoint(maddr)
        sock = udp_socket(family)
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, port))
        except OSError as error:
            sock.close()
            raise OpenConnectionError(f"cannot listen on {maddr}: {error.strerror}") from error
        door = _Door(sock, self._make_machine, self._handler, self._handshake_timeout_s)
        self._doors.append(door)
        if self.background_nursery is not None:
            self.background_nursery.start_soon(door.serve)
        else:
            trio.lowlevel.spawn_system_task(door.serve)
        await trio.lowlevel.checkpoint()

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        return tuple(door.address for door in self._doors)

    async def close(self) -> None:
        for door in self._doors:
            door.scope.cancel()
        self._doors.clear()
        await trio.lowlevel.checkpoint()


class _Door:
    """The socket, and who is behind which connection id."""

    def __init__(
        self, sock: socket.socket, make_machine: MakeMachine, handler: ConnectionHandler, handshake_timeout_s: float
    ) -> None:
        self.address = quic_multiaddr(*sock.getsockname()[:2])
        self.scope = trio.CancelScope()
        self._sock = sock
        self._make_machine = make_machine
        self._handler = handler
        self._handshake_timeout_s = handshake_timeout_s
        self._links: dict[bytes, QuicLink] = {}  # at most 9 ids of each connection
        self._ids: dict[QuicLink, set[bytes]] = {}
        self._half_open: Counter[str] = Counter()
        self._half_open_total = 0
        self._tokens = QuicRetryTokenHandler()
        self._answers_left = float(ANSWERS_PER_S_MAX)
        self._answers_counted_at = trio.current_time()
        self._nursery: trio.Nursery | None = None

    async def serve(self) -> None:
        sock = self._sock
        try:
            with self.scope:
                async with trio.open_nursery() as self._nursery:
                    while True:
                        if not self._take_batch():
                            await trio.lowlevel.wait_readable(sock.fileno())
                        else:
                            await trio.lowlevel.checkpoint()
        finally:
            for link in list(self._ids):
                link.close_nowait()
            sock.close()

    def _take_batch(self) -> bool:
        """Whether there may be more."""
        touched: dict[QuicLink, None] = {}
        now = trio.current_time()
        is_full = True
        for _ in range(BATCH_MAX):
            try:
                data, address = self._sock.recvfrom(DATAGRAM_BYTES_MAX)
            except BlockingIOError:
                is_full = False
                break
            except OSError:
                continue  # about a datagram of ours that did not arrive
            link = self._find(data, address, now)
            if link is not None:
                link.receive(data, address, now)
                touched[link] = None
        for link in touched:
            link.settle()
            if not link.machine.has_understood:
                link.fail(P2PError("an Initial that makes no sense"))
        return is_full

    # --- who is it? ----------------------------------------------------------------------------------------

    def _find(self, data: bytes, address: Address, now: float) -> QuicLink | None:
        if not data:
            return None
        if not data[0] & _LONG_HEADER:
            return self._links.get(data[1 : 1 + CONNECTION_ID_BYTES])
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CONNECTION_ID_BYTES)
        except ValueError:
            return None
        link = self._links.get(header.destination_cid)
        if link is not None or len(data) < INITIAL_BYTES_MIN:
            return link
        if header.packet_type is QuicPacketType.VERSION_NEGOTIATION:
            return None  # answering it would start a dialogue between two machines
        if header.version not in _KNOWN_VERSIONS:
            self._offer_versions(header, address, now)
            return None
        return self._admit(header, address, now) if header.packet_type is QuicPacketType.INITIAL else None

    def _admit(self, header: QuicHeader, address: Address, now: float) -> QuicLink | None:
        host = address[0]
        if self._half_open_total >= HALF_OPEN_MAX or self._half_open[host] >= HALF_OPEN_PER_HOST_MAX:
            return None
        original, retried = header.destination_cid, None
        if header.token:
            try:
                original = self._tokens.validate_token(
                    address=address[:2], destination_cid=header.destination_cid, token=header.token, now=now
                )
                retried = header.destination_cid
            except ValueError:
                pass  # somebody else's, or too old: as good as none
        if retried is None and self._half_open_total >= RETRY_FROM:
            self._ask_again(header, address, now)
            return None
        link = QuicLink(
            self._make_machine(original, retried),
            self._transmit,
            is_dialer=False,
            on_end=self._forget,
            on_id=self._note_id,
        )
        self._ids[link] = {header.destination_cid, *link.machine.connection_ids}
        for connection_id in self._ids[link]:
            self._links[connection_id] = link
        assert self._nursery is not None
        self._hold(host, 1)
        self._nursery.start_soon(self._welcome, link, host)
        return link

    def _ask_again(self, header: QuicHeader, address: Address, now: float) -> None:
        if not self._may_answer(now):
            return
        source = os.urandom(CONNECTION_ID_BYTES)
        assert header.version is not None
        token = self._tokens.create_token(
            address=address[:2],
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=source,
            now=now,
        )
        retry = encode_quic_retry(
            version=header.version,
            source_cid=source,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )
        self._transmit(retry, address)

    def _offer_versions(self, header: QuicHeader, address: Address, now: float) -> None:
        if self._may_answer(now):
            answer = encode_quic_version_negotiation(
                source_cid=header.destination_cid,
                destination_cid=header.source_cid,
                supported_versions=list(_KNOWN_VERSIONS),
            )
            self._transmit(answer, address)

    def _may_answer(self, now: float) -> bool:
        self._answers_left = min(
            ANSWERS_PER_S_MAX, self._answers_left + (now - self._answers_counted_at) * ANSWERS_PER_S_MAX
        )
        self._answers_counted_at = now
        if self._answers_left < 1:
            return False
        self._answers_left -= 1
        return True

    # --- its life ------------------------------------------------------------------------------------------

    async def _welcome(self, link: QuicLink, host: str) -> None:
        try:
            with trio.fail_after(self._handshake_timeout_s):
                await link.shake_hands()
        except (P2PError, OSError, trio.TooSlowError) as error:
            log.debug("connection.refused", extra={"error": type(error).__name__})
            link.close_nowait()
            if not link.machine.has_understood:
                await trio.sleep(NONSENSE_HELD_S)
            return
        finally:
            self._hold(host, -1)
        try:
            await self._handler(link)
        except Exception as error:  # supervision boundary: the swarm's doings end this connection only
            log.warning("connection.handler_failed", extra={"error": type(error).__name__})
            await link.close()

    def _hold(self, host: str, places: int) -> None:
        self._half_open_total += places
        self._half_open[host] += places
        if not self._half_open[host]:
            del self._half_open[host]

    def _note_id(self, link: QuicLink, event: IdIssued | IdRetired) -> None:
        ids = self._ids.get(link)
        if ids is None:
            return
        if isinstance(event, IdIssued):
            ids.add(event.connection_id)
            self._links[event.connection_id] = link
        else:
            ids.discard(event.connection_id)
            self._links.pop(event.connection_id, None)

    def _forget(self, link: QuicLink) -> None:
        for connection_id in self._ids.pop(link, ()):
            self._links.pop(connection_id, None)

    def _transmit(self, data: bytes, address: Address) -> None:
        try:
            self._sock.sendto(data, address)
        except OSError:
            pass  # a full buffer, or no way to there: the datagram is lost, and QUIC repairs that


def quic_endpoint(maddr: Multiaddr) -> tuple[socket.AddressFamily, str, int]:
    """Raises OpenConnectionError."""
    names = [protocol.name for protocol in maddr.protocols()]
    if names[:3] not in (["ip4", "udp", "quic-v1"], ["ip6", "udp", "quic-v1"]):
        raise OpenConnectionError(f"{maddr} is no QUIC address")
    family = socket.AF_INET if names[0] == "ip4" else socket.AF_INET6
    return family, str(maddr.value_for_protocol(names[0])), int(maddr.value_for_protocol("udp"))
