"""Hole punching (DCUtR): two peers that know each other through a relay dial each other at the same moment.

    called (has the reservation)                    caller
        CONNECT, our addresses  ─────────────────►
        ◄─────────────────  CONNECT, its addresses      the time between: one round trip
        SYNC  ───────────────────────────────────►      dials at once
        waits half a round trip, dials

Both dial from the port that they listen on, which is the one that their NATs have mapped. Of two TCP connections
that open at once, the caller takes the dialer's part in the handshake, the called the listener's.
Source: libp2p/specs, relay/DCUtR.md.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from p2p.addresses import Address, Transport, parse_address
from p2p.driver.exchange import MessageStream, open_exchange
from p2p.driver.host import GuardedHost
from p2p.driver.transport import MuxedConnection
from p2p.errors import AddressInvalid, AddressRefused
from p2p.reach import DCUTR, Punch, PunchKind, decode_punch, encode_punch

log = logging.getLogger("p2p")

ATTEMPTS_MAX = 3  # the specification's
MESSAGE_TIMEOUT_S = 10.0
DIAL_TIMEOUT_S = 4.0  # two retransmissions of a SYN
SETTLE_S = 0.2  # the relayed connection has just opened: let its own business go first
ADDRESSES_MAX = 4
SERVED_MAX = 16  # punches that others have asked for, at one time


class Puncher:
    def __init__(self, host: GuardedHost) -> None:
        self._host = host
        self._swarm = host.get_network()
        self._serving = 0
        self.attempts = 0
        self.successes = 0

    def start(self) -> None:
        self._host.set_stream_handler(TProtocol(DCUTR), self._handle)

    # --- the called side ---------------------------------------------------------------------------------

    async def punch(self, link: MuxedConnection) -> None:
        """Try to get a direct connection to the peer at the other end of a relayed one. Lets no error out."""
        peer = link.peer_id
        await trio.sleep(SETTLE_S)
        for _ in range(ATTEMPTS_MAX):
            if self._swarm.direct_connections(peer) or link.is_closed:
                return
            self.attempts += 1
            try:
                if await self._attempt(link):
                    self.successes += 1
                    log.info("punch.succeeded", extra={"peer": str(peer)})
                    return
            except Exception as error:  # the relayed connection, in whose task this runs, must not end with it
                log.debug("punch.failed", extra={"error": type(error).__name__})
                return  # the peer does not punch, or is gone: trying again would not change it

    async def _attempt(self, link: MuxedConnection) -> bool:
        connection = next((c for c in self._swarm.live_connections(link.peer_id) if c.muxed_conn is link), None)
        if connection is None:
            return False
        with trio.fail_after(MESSAGE_TIMEOUT_S):
            async with open_exchange(connection, DCUTR) as stream:
                await stream.send(encode_punch(Punch(kind=PunchKind.CONNECT, addresses=self._own())))
                sent_at = trio.current_time()
                theirs = decode_punch(await stream.receive())
                round_trip_s = trio.current_time() - sent_at
                await stream.send(encode_punch(Punch(kind=PunchKind.SYNC)))
        await trio.sleep(round_trip_s / 2)
        return await self._dial(link.peer_id, theirs.addresses, is_dialer=False)

    # --- the calling side --------------------------------------------------------------------------------

    async def _handle(self, net_stream: INetStream) -> None:
        stream = MessageStream(net_stream.muxed_stream)
        peer = net_stream.muxed_conn.peer_id
        if not net_stream.muxed_conn.is_relayed or self._serving >= SERVED_MAX:
            await stream.raw.reset()
            return
        self._serving += 1
        try:
            with trio.fail_after(MESSAGE_TIMEOUT_S):
                request = decode_punch(await stream.receive())
                if request.kind is not PunchKind.CONNECT:
                    await stream.raw.reset()
                    return
                await stream.send(encode_punch(Punch(kind=PunchKind.CONNECT, addresses=self._own())))
                if decode_punch(await stream.receive()).kind is not PunchKind.SYNC:
                    await stream.raw.reset()
                    return
            self.attempts += 1
            self.successes += await self._dial(peer, request.addresses, is_dialer=True)
        finally:
            self._serving -= 1

    # --- both --------------------------------------------------------------------------------------------

    def _own(self) -> tuple[bytes, ...]:
        """Where we may be: as peers see us, and as we see ourselves."""
        texts = [*self._host.observed.values(), *(text.split("/p2p/")[0] for text in self._host.direct_addresses())]
        addresses = [parse_address(text) for text in dict.fromkeys(texts)]
        tcp = [a for a in addresses if a.transport is Transport.TCP and not a.kind.is_name]
        return tuple(Multiaddr(str(address)).to_bytes() for address in tcp[:ADDRESSES_MAX])

    def _usable(self, raw_addresses: Sequence[bytes]) -> list[Address]:
        usable = []
        for raw in raw_addresses[: 2 * ADDRESSES_MAX]:
            try:
                address = parse_address(str(Multiaddr(raw))).without_peer
                self._swarm.policy.check(address)
            except (AddressInvalid, AddressRefused):
                continue
            except Exception as error:  # the library raises many kinds for bytes that are no address
                log.debug("punch.address_refused", extra={"error": type(error).__name__})
                continue
            if address.transport is Transport.TCP and address.relay is None and not address.kind.is_name:
                usable.append(address)
        return list(dict.fromkeys(usable))[:ADDRESSES_MAX]

    async def _dial(self, peer: ID, raw_addresses: Sequence[bytes], *, is_dialer: bool) -> bool:
        """All addresses at once; whether one of them led to a connection that stays."""
        links: list[MuxedConnection] = []
        with trio.move_on_after(DIAL_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for address in self._usable(raw_addresses):
                    nursery.start_soon(self._dial_one, peer, address, is_dialer, links, nursery.cancel_scope)
        for surplus in links[1:]:
            await surplus.close()
        if links:
            await self._swarm.add_conn(links[0], direction="outbound" if is_dialer else "inbound")
        return bool(self._swarm.direct_connections(peer))

    async def _dial_one(
        self, peer: ID, address: Address, is_dialer: bool, links: list[MuxedConnection], done: trio.CancelScope
    ) -> None:
        multiaddr = Multiaddr(f"{address}/p2p/{peer}")
        transport = self._host.transport
        source = transport.punching_source(multiaddr)
        dial: Any = transport.dial_with_source if is_dialer else transport.dial_as_responder
        try:
            links.append(await dial(multiaddr, source))
        except OpenConnectionError as error:
            log.debug("punch.dial_failed", extra={"address": str(address), "error": str(error)})
            return
        done.cancel()
