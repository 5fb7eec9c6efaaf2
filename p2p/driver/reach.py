"""Whether others can reach this node, as they say themselves, and what is done when they cannot.

connected peers ─ "dial me" ─► tally of verdicts ─┬─ reachable ─────► our confirmed addresses are told
                                                  └─ not ───────────► places at relays, hole punching
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable

import trio
from libp2p.abc import INetConn
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from multiaddr import Multiaddr

from p2p.addresses import Address, Transport, parse_address
from p2p.driver.autonat import DialBackServer, ask_dial_back
from p2p.driver.host import GuardedHost
from p2p.driver.punching import Puncher
from p2p.driver.relay import Relay
from p2p.driver.relay_client import RelayClient
from p2p.driver.transport import MuxedConnection
from p2p.errors import AddressInvalid, AddressRefused
from p2p.interface import NodeSettings, Reach, Reachability, RelayUse
from p2p.reach import AUTONAT, DialBackStatus, VerdictTally

log = logging.getLogger("p2p")

SERVERS_PER_CHECK_MAX = 4  # the specification waits for more than three
CHECK_NEWS_S = 1.0  # how long after a change of connections a first check may wait
UNKNOWN_FRACTION = 0.1  # of the interval, while there is no answer


class Reacher:
    def __init__(self, host: GuardedHost, settings: NodeSettings) -> None:
        self._host = host
        self._swarm = host.get_network()
        self._settings = settings
        self._reach = settings.reach
        self.tally = VerdictTally()
        self.relay = Relay(host, limits=settings.relay_limits) if settings.relay else None
        self.client = RelayClient(host, settings.reach, self._relayed_in)
        self.puncher = Puncher(host)
        self._server = DialBackServer(host)
        self._is_listening = bool(settings.listen)

    # --- life --------------------------------------------------------------------------------------------

    def start(self, nursery: trio.Nursery) -> None:
        if self.relay is not None:
            self.relay.start()
        if self._reach.check and self._is_listening:
            self._server.start()
            nursery.start_soon(self._check_again_and_again)
        if self._reach.hole_punching and self._is_listening:
            self.puncher.start()
        if self._reach.relay_use is not RelayUse.NEVER and self._is_listening:
            self.client.start()
            self.client.want(self._reach.relay_use is RelayUse.ALWAYS)
            nursery.start_soon(self.client.run)

        if self._reach.mdns and self._swarm.policy.allow_private:
            nursery.start_soon(self._live_locally)
        if self._reach.upnp and self._is_listening:
            nursery.start_soon(self._keep_port_forwarded)

    async def _live_locally(self) -> None:
        from p2p.driver.local import LocalPeers  # its libraries are loaded by those only who ask for it

        try:
            await LocalPeers(self._host).run()
        except Exception as error:  # no multicast here, or a library at a loss: the node goes on without it
            log.warning("mdns.unavailable", extra={"error": type(error).__name__})

    async def _keep_port_forwarded(self) -> None:
        from p2p.driver.local import RouterPort

        await RouterPort(self._host).run()

    async def _relayed_in(self, link: MuxedConnection) -> None:
        if self._reach.hole_punching:
            await self.puncher.punch(link)

    # --- checking ----------------------------------------------------------------------------------------

    async def _check_again_and_again(self) -> None:
        while not self._servers():  # noqa: ASYNC110 - identify has many ends, and a second is soon enough
            await trio.sleep(CHECK_NEWS_S)
        await trio.sleep(self._reach.check_delay_s)
        while True:
            await self.check()
            known = self.tally.is_reachable is not None
            wait_s = self._reach.check_interval_s * (1.0 if known else UNKNOWN_FRACTION)
            await trio.sleep(wait_s * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, nothing secret

    async def check(self) -> None:
        """Ask some connected peers now."""
        addresses = self._candidates()
        servers = self._servers()
        random.shuffle(servers)
        if addresses:
            async with trio.open_nursery() as nursery:
                for connection in servers[:SERVERS_PER_CHECK_MAX]:
                    nursery.start_soon(self._ask, connection, addresses)
        self._conclude()

    async def _ask(self, connection: INetConn, addresses: list[str]) -> None:
        answer = await ask_dial_back(connection, me=self._host.get_id(), addresses=addresses)
        peer = str(connection.muxed_conn.peer_id)
        if answer is None:
            return
        if answer.status == DialBackStatus.OK:
            reached = self._named(answer.address, addresses)
            if reached is not None:
                self.tally.add(peer, address=reached)
        elif answer.status == DialBackStatus.DIAL_ERROR:
            self.tally.add(peer, address=None, reason=answer.text)
        # refused: it has not tried, so it has not seen anything

    @staticmethod
    def _named(raw: bytes, addresses: list[str]) -> str | None:
        """The address that the peer claims to have reached: one of those that we gave it, or its word is void."""
        if not raw:
            return addresses[0] if len(addresses) == 1 else None
        try:
            text = str(parse_address(str(Multiaddr(raw))).without_peer)
        except Exception as error:  # the library raises many kinds for bytes that are no address
            log.debug("autonat.address_refused", extra={"error": type(error).__name__})
            return None
        return text if text in addresses else None

    def _conclude(self) -> None:
        reachable = self.tally.is_reachable
        if self._reach.relay_use is RelayUse.WHEN_NEEDED and reachable is not None:
            self.client.want(not reachable)
        listed = {str(parse_address(str(address)).without_peer) for address in self._host.get_transport_addrs()}
        self._host.note_addresses(
            "dialled back", [address for address in self.tally.addresses if address not in listed] if reachable else ()
        )

    def _servers(self) -> list[INetConn]:
        """A direct connection to each peer that does dial-backs."""
        found = []
        for peer_id in list(self._host.agents):
            direct = self._swarm.direct_connections(peer_id)
            if direct and self._speaks(peer_id, AUTONAT):
                found.append(direct[0])
        return found

    def _speaks(self, peer_id: ID, protocol: str) -> bool:
        try:
            return protocol in self._host.peerstore.get_protocols(peer_id)
        except PeerStoreError:
            return False

    def _candidates(self) -> list[str]:
        """Where we might be: what we announce or listen on, and the IPs that peers see, with our own port."""
        texts = [text.split("/p2p/")[0] for text in self._host.direct_addresses()]
        own = [parse_address(text) for text in texts]
        ports = {a.port for a in own if a.transport is Transport.TCP}
        quic_ports = {a.port for a in own if a.transport is Transport.QUIC}
        for observed in self._observed():
            texts.append(str(observed))
            texts += [f"/{observed.kind.value}/{observed.host}/tcp/{port}" for port in sorted(ports)]
            texts += [f"/{observed.kind.value}/{observed.host}/udp/{port}/quic-v1" for port in sorted(quic_ports)]
        usable = []
        for text in dict.fromkeys(texts):
            try:
                address = parse_address(text)
                self._swarm.policy.check(address)
            except (AddressInvalid, AddressRefused):
                continue
            usable.append(str(address))
        return usable

    def _observed(self) -> Iterable[Address]:
        """Our address as peers see it, those that most of them see first."""
        texts = list(self._host.observed.values())
        return [parse_address(text) for text in sorted(dict.fromkeys(texts), key=texts.count, reverse=True)]

    # --- what is known -----------------------------------------------------------------------------------

    def reachability(self) -> Reachability:
        reach, reason, addresses = self._verdict()
        me = self._host.get_id()
        return Reachability(
            reach=reach,
            reason=reason,
            addresses=tuple(f"{address}/p2p/{me}" for address in addresses),
            observed=tuple(str(address) for address in self._observed()),
            peers_asked=self.tally.asked,
            peers_reached=self.tally.reached,
        )

    def _verdict(self) -> tuple[Reach, str, tuple[str, ...]]:
        tally, relayed = self.tally, self.client.addresses()
        counted = f"{tally.reached} of {tally.asked} peers that we asked could dial us"
        if tally.is_reachable:
            return Reach.DIRECT, counted, tally.addresses
        if relayed:
            why = f"{counted}; " if tally.asked else ""
            return Reach.RELAY, f"{why}{len(self.client.held)} relays hold a place for us", relayed
        if not self._is_listening:
            return Reach.NOT, "this node does not listen", ()
        if tally.is_reachable is None:
            return Reach.UNKNOWN, "no peer has tried to dial us yet", ()
        detail = f" ({tally.latest_reason})" if tally.latest_reason else ""
        if self._reach.relay_use is RelayUse.NEVER:
            return Reach.NOT, f"{counted}{detail}, and relays are switched off", ()
        return Reach.NOT, f"{counted}{detail}, and no relay has a place for us", ()
