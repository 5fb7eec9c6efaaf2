"""Being reached through relays: holds reservations, and takes the connections that come through them.

A reservation lasts as long as the relay says and as our connection to it stands; it is renewed at two thirds of its
time, and looked for elsewhere when it is lost. A relay that refuses or fails is left alone for a while that doubles.
Source: libp2p/specs, relay/circuit-v2.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from multiaddr import Multiaddr

from p2p.addresses import Address, parse_address, parse_peer_address
from p2p.driver.exchange import MessageStream, open_exchange
from p2p.driver.host import GuardedHost
from p2p.driver.relayed import secure
from p2p.driver.transport import MuxedConnection
from p2p.errors import AddressInvalid, AddressRefused, DialFailed, P2PError
from p2p.identity import peer_id_to_bytes
from p2p.interface import ReachSettings
from p2p.reach import (
    HOP,
    STOP,
    HopKind,
    HopMessage,
    Status,
    StopKind,
    StopMessage,
    decode_hop,
    decode_stop,
    encode_hop,
    encode_stop,
)

log = logging.getLogger("p2p")

RESERVE_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0
RENEW_S_MIN = 5.0  # however short a relay's promise is
RETRY_S_FIRST, RETRY_S_MAX = 5.0, 600.0
LOOK_S = 5.0  # how often to look for relays when there is no news
ADDRESSES_PER_RELAY_MAX = 4
FAILURES_MAX = 256  # relays whose failures are remembered
INBOUND_MAX = 64  # relayed connections at one time; the relay decides who comes, so it is our bound


@dataclass(slots=True, kw_only=True)
class _Held:
    renew_at_s: float
    addresses: tuple[str, ...]


@dataclass(slots=True)
class _Failure:
    until_s: float
    wait_s: float


@dataclass(slots=True)
class RelayClient:
    host: GuardedHost
    settings: ReachSettings
    on_inbound: Callable[[MuxedConnection], Awaitable[None]]  # a relayed connection stands: a chance to punch
    is_wanted: bool = False
    held: dict[ID, _Held] = field(default_factory=dict)
    _failures: dict[ID, _Failure] = field(default_factory=dict)
    _news: trio.Event = field(default_factory=trio.Event)
    _inbound: int = 0

    def start(self) -> None:
        self.host.set_stream_handler(TProtocol(STOP), self._handle_stop)

    def want(self, wanted: bool) -> None:
        if wanted != self.is_wanted:
            self.is_wanted = wanted
            self._news.set()

    def addresses(self) -> tuple[str, ...]:
        """Without our id."""
        return tuple(dict.fromkeys(address for held in self.held.values() for address in held.addresses))

    # --- reservations ------------------------------------------------------------------------------------

    async def run(self) -> None:
        while True:
            self._news = trio.Event()
            await self._look_after()
            with trio.move_on_after(LOOK_S):
                await self._news.wait()

    async def _look_after(self) -> None:
        swarm = self.host.get_network()
        now = trio.current_time()
        for peer in list(self.held):
            is_lost = not self.is_wanted or not swarm.direct_connections(peer)
            if is_lost or (self.held[peer].renew_at_s <= now and not await self._reserve(peer, ())):
                del self.held[peer]
        if self.is_wanted:
            for peer, addresses in self._candidates():
                if len(self.held) >= self.settings.reservations_max:
                    break
                if peer not in self.held:
                    await self._reserve(peer, addresses)
        self.host.note_addresses("relay", self.addresses())

    def _candidates(self) -> Iterable[tuple[ID, tuple[Address, ...]]]:
        """Those that the settings name first, then connected peers that relay."""
        now = trio.current_time()
        found: dict[ID, tuple[Address, ...]] = {}
        for text in self.settings.relays:
            peer, address = parse_peer_address(text)
            peer_id = ID(peer_id_to_bytes(peer))
            found[peer_id] = (*found.get(peer_id, ()), address)
        for peer_id in list(self.host.agents):
            try:
                if HOP in self.host.peerstore.get_protocols(peer_id):
                    found.setdefault(peer_id, ())
            except PeerStoreError:
                continue  # gone again
        found.pop(self.host.get_id(), None)
        return [
            (peer, addresses)
            for peer, addresses in found.items()
            if (failure := self._failures.get(peer)) is None or failure.until_s <= now
        ]

    async def _reserve(self, relay: ID, addresses: tuple[Address, ...]) -> bool:
        try:
            with trio.fail_after(RESERVE_TIMEOUT_S):
                self.held[relay] = await self._ask(relay, addresses)
        except (P2PError, MuxedStreamError, MuxedStreamReset, MuxedStreamEOF, trio.TooSlowError, _Refused) as error:
            log.info("relay.reservation_failed", extra={"relay": str(relay), "error": type(error).__name__})
            earlier = self._failures.pop(relay, None)
            wait_s = min(RETRY_S_MAX, earlier.wait_s * 2) if earlier else RETRY_S_FIRST
            self._failures[relay] = _Failure(trio.current_time() + wait_s, wait_s)
            while len(self._failures) > FAILURES_MAX:
                del self._failures[next(iter(self._failures))]
            return False
        self._failures.pop(relay, None)
        return True

    async def _ask(self, relay: ID, addresses: tuple[Address, ...]) -> _Held:
        swarm = self.host.get_network()
        if not swarm.direct_connections(relay):
            await swarm.dial(relay, addresses or swarm.known_addresses(relay))
        direct = swarm.direct_connections(relay)
        if not direct:
            raise DialFailed(str(relay), [])
        connection = direct[-1]
        async with open_exchange(connection, HOP) as stream:
            await stream.send(encode_hop(HopMessage(kind=HopKind.RESERVE)))
            answer = decode_hop(await stream.receive())
        if answer.kind is not HopKind.STATUS or answer.status != Status.OK:
            raise _Refused
        remaining_s = max(0.0, answer.expires_at_s - time.time())
        return _Held(
            renew_at_s=trio.current_time() + max(RENEW_S_MIN, remaining_s * 2 / 3),
            addresses=self._through(relay, connection, answer.addresses),
        )

    def _through(self, relay: ID, connection: Any, named: Iterable[bytes]) -> tuple[str, ...]:
        """Where others find the relay: as it says itself, or where we have found it."""
        texts = []
        for raw in named:
            try:
                texts.append(str(Multiaddr(raw)))
            except Exception as error:  # the library raises many kinds for bytes that are no address
                log.debug("relay.address_refused", extra={"error": type(error).__name__})
        texts += [str(address) for address in connection.muxed_conn.get_transport_addresses()]
        usable = []
        for text in texts:
            try:
                address = parse_address(text)
                self.host.get_network().policy.check(address)
            except (AddressInvalid, AddressRefused):
                continue
            if address.relay is None:
                usable.append(f"{address.without_peer}/p2p/{relay}/p2p-circuit")
        return tuple(dict.fromkeys(usable))[:ADDRESSES_PER_RELAY_MAX]

    # --- connections that come through -------------------------------------------------------------------

    async def _handle_stop(self, net_stream: INetStream) -> None:
        """Lives as long as the connection that the stream becomes."""
        stream = MessageStream(net_stream.muxed_stream)
        relay = net_stream.muxed_conn.peer_id
        with trio.fail_after(STOP_TIMEOUT_S):
            request = decode_stop(await stream.receive())
            is_welcome = request.kind is StopKind.CONNECT and relay in self.held and self._inbound < INBOUND_MAX
            status = Status.OK if is_welcome else Status.PERMISSION_DENIED
            await stream.send(encode_stop(StopMessage(kind=StopKind.STATUS, status=status)))
        if not is_welcome:
            await stream.raw.close_write()
            return
        self._inbound += 1
        try:
            async with trio.open_nursery() as nursery:
                link = await secure(self.host.transport, stream, nursery, expected_peer=None)
                nursery.start_soon(self.on_inbound, link)
                await self.host.get_network()._handle_inbound_connection(link, Multiaddr("/p2p-circuit"))
                nursery.cancel_scope.cancel()
        finally:
            self._inbound -= 1


class _Refused(Exception):
    """The relay said no."""
