"""AutoNAT v1: asks peers to dial us back, and does it for them.

Own rather than the library's, whose server takes the connection that the request came on for a successful dial, and
so tells everybody that he is reachable. Ours dials afresh, from a port that the asker has not seen, and only addresses
on the IP that the request came from ("to prevent amplification attacks"), within the dial policy and a rate.
Source: libp2p/specs, autonat/autonat-v1.md.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from p2p.addresses import Address, Transport, parse_address
from p2p.driver.exchange import MessageStream, open_exchange
from p2p.driver.host import GuardedHost
from p2p.errors import AddressInvalid, AddressRefused, P2PError
from p2p.identity import PEER_ID_BYTES
from p2p.reach import (
    AUTONAT,
    DialBack,
    DialBackAnswer,
    DialBackStatus,
    decode_dial_back,
    decode_dial_back_answer,
    encode_dial_back,
    encode_dial_back_answer,
)

log = logging.getLogger("p2p")

REQUEST_TIMEOUT_S = 10.0
DIAL_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 20.0  # what a server may need for all addresses
ADDRESSES_DIALLED_MAX = 4  # for one request
REQUESTS_PER_MINUTE_MAX = 30  # of all peers together
REQUESTS_PER_PEER_PER_MINUTE_MAX = 3
DIALS_AT_ONCE_MAX = 4
MINUTE_S = 60.0


class DialBackServer:
    def __init__(self, host: GuardedHost) -> None:
        self._host = host
        self._recent: deque[tuple[float, ID]] = deque()  # bounded by the rate
        self._dialling = 0

    def start(self) -> None:
        self._host.set_stream_handler(TProtocol(AUTONAT), self._handle)

    async def _handle(self, net_stream: INetStream) -> None:
        stream = MessageStream(net_stream.muxed_stream)
        with trio.fail_after(REQUEST_TIMEOUT_S):
            request = decode_dial_back(await stream.receive())
        answer = await self._answer(request, net_stream.muxed_conn)
        with trio.fail_after(REQUEST_TIMEOUT_S):
            await stream.send(encode_dial_back_answer(answer))
            await stream.raw.close_write()
            await stream.raw.release()

    async def _answer(self, request: DialBack, connection: Any) -> DialBackAnswer:
        peer = connection.peer_id
        remote = connection.get_remote_address()
        if request.peer != peer.to_bytes() or len(request.peer) != PEER_ID_BYTES:
            return _refusal(DialBackStatus.BAD_REQUEST, "not your own id")
        if remote is None or connection.is_relayed:
            return _refusal(DialBackStatus.DIAL_REFUSED, "you came through a relay")
        if not self._has_room_for(peer):
            return _refusal(DialBackStatus.DIAL_REFUSED, "too many requests")
        usable = self._usable(request.addresses, remote[0])
        if not usable:
            return _refusal(DialBackStatus.DIAL_REFUSED, "none of these addresses is where you are")
        self._recent.append((trio.current_time(), peer))
        self._dialling += 1
        try:
            return await self._dial(peer, usable)
        finally:
            self._dialling -= 1

    def _has_room_for(self, peer: ID) -> bool:
        since = trio.current_time() - MINUTE_S
        while self._recent and self._recent[0][0] < since:
            self._recent.popleft()
        of_peer = sum(who == peer for _, who in self._recent)
        return (
            len(self._recent) < REQUESTS_PER_MINUTE_MAX
            and of_peer < REQUESTS_PER_PEER_PER_MINUTE_MAX
            and self._dialling < DIALS_AT_ONCE_MAX
        )

    def _usable(self, raw_addresses: Sequence[bytes], observed_host: str) -> list[Address]:
        observed = _plain(observed_host)
        usable = []
        for raw in raw_addresses:
            try:
                address = parse_address(str(Multiaddr(raw))).without_peer
                self._host.get_network().policy.check(address)
            except (AddressInvalid, AddressRefused):
                continue
            except Exception as error:  # the library raises many kinds for bytes that are no address
                log.debug("autonat.address_refused", extra={"error": type(error).__name__})
                continue
            is_plain = address.transport in (Transport.TCP, Transport.QUIC) and address.relay is None
            if is_plain and not address.kind.is_name and _plain(address.host) == observed:
                usable.append(address)
        return list(dict.fromkeys(usable))[:ADDRESSES_DIALLED_MAX]

    async def _dial(self, peer: ID, addresses: Sequence[Address]) -> DialBackAnswer:
        """All addresses side by side; the first that leads to the peer is the answer."""
        reached: list[Address] = []
        reasons: list[str] = []
        async with trio.open_nursery() as nursery:

            async def attempt(address: Address) -> None:
                try:
                    with trio.fail_after(DIAL_TIMEOUT_S):
                        is_quic = address.transport is Transport.QUIC
                        transport = self._host.quic if is_quic else self._host.transport
                        link = await transport.dial_afresh(Multiaddr(f"{address}/p2p/{peer}"))
                except OpenConnectionError as error:
                    reasons.append(str(error.__cause__ or error))
                except trio.TooSlowError:
                    reasons.append(f"no answer within {DIAL_TIMEOUT_S:g} s")
                else:
                    reached.append(address)
                    await link.close()
                    nursery.cancel_scope.cancel()

            for address in addresses:
                nursery.start_soon(attempt, address)
        if not reached:
            return _refusal(DialBackStatus.DIAL_ERROR, reasons[-1])
        return DialBackAnswer(status=DialBackStatus.OK, address=Multiaddr(str(reached[0])).to_bytes())


async def ask_dial_back(connection: Any, *, me: ID, addresses: Sequence[str]) -> DialBackAnswer | None:
    """What the peer at the other end says about reaching us; None when it does not answer properly."""
    request = DialBack(peer=me.to_bytes(), addresses=tuple(Multiaddr(address).to_bytes() for address in addresses))
    try:
        with trio.fail_after(ANSWER_TIMEOUT_S):
            async with open_exchange(connection, AUTONAT) as stream:
                await stream.send(encode_dial_back(request))
                return decode_dial_back_answer(await stream.receive())
    except (P2PError, MuxedStreamError, MuxedStreamReset, MuxedStreamEOF, trio.TooSlowError) as error:
        log.debug("autonat.no_answer", extra={"error": type(error).__name__})
        return None


def _refusal(status: DialBackStatus, text: str) -> DialBackAnswer:
    return DialBackAnswer(status=status, text=text)


def _plain(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(host.split("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
