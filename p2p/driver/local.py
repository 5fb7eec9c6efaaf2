"""The local network: peers that announce themselves on it (mDNS), and a router that forwards our port (UPnP).

Both are off unless the settings ask for them. mDNS works only where private addresses may be dialled, since there are
no others on a local network. Sources: libp2p/specs, discovery/mdns.md; UPnP IGD through the library's `UpnpManager`.
What a local network says is as much a stranger's word as any: addresses pass the dial policy, numbers are bounded.
"""

from __future__ import annotations

import logging
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import trio
from libp2p.discovery.upnp.upnp import UpnpManager
from libp2p.peer.id import ID
from zeroconf import ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from p2p.addresses import Address, Transport, parse_address, parse_peer_address
from p2p.driver.host import GuardedHost
from p2p.errors import AddressInvalid, DialFailed
from p2p.identity import peer_id_to_bytes
from p2p.interface import PeerId

log = logging.getLogger("p2p")

SERVICE = "_p2p._udp.local."
TXT_BYTES_MAX = 255  # of one string of a TXT record
RECORDS_MAX = 16  # addresses in one announcement
FOUND_MAX = 64  # announcements waiting to be looked at; more are dropped
PEERS_MAX = 256  # remembered, so that one announcement is one dial
INFO_TIMEOUT_MS = 2_000
MAPPING_RENEW_S = 1800.0  # routers forget
ROUTER_RETRY_S = 600.0


class LocalPeers(ServiceListener):
    """Announces us and connects to those who announce themselves. zeroconf calls back on threads of its own."""

    def __init__(self, host: GuardedHost) -> None:
        self._host = host
        self._swarm = host.get_network()
        self._send, self._receive = trio.open_memory_channel[str](FOUND_MAX)
        self._name = f"{secrets.token_hex(20)}.{SERVICE}"  # "a random string": it must not name the peer
        self._seen: OrderedDict[PeerId, None] = OrderedDict()
        self._token = trio.lowlevel.current_trio_token()

    async def run(self) -> None:
        zeroconf = await trio.to_thread.run_sync(Zeroconf)
        try:
            info = self._announcement()
            if info is not None:
                await trio.to_thread.run_sync(zeroconf.register_service, info)
            browser = await trio.to_thread.run_sync(lambda: ServiceBrowser(zeroconf, SERVICE, listener=self))
            async for name in self._receive:
                await self._look_at(zeroconf, name)
            assert browser is not None
        finally:
            with trio.move_on_after(3) as scope:
                scope.shield = True
                await trio.to_thread.run_sync(zeroconf.close)

    def _announcement(self) -> ServiceInfo | None:
        addresses = [text.split("/p2p/")[0] for text in self._host.direct_addresses()][:RECORDS_MAX]
        if not addresses:
            return None
        me = self._host.get_id()
        entries = [f"dnsaddr={address}/p2p/{me}".encode() for address in addresses]
        text = b"".join(bytes([len(entry)]) + entry for entry in entries if len(entry) <= TXT_BYTES_MAX)
        parsed = [parse_address(address) for address in addresses]
        return ServiceInfo(
            SERVICE,
            self._name,
            port=parsed[0].port,
            properties=text,
            parsed_addresses=[a.host for a in parsed if not a.kind.is_name][:1],
            server=f"{self._name.split('.')[0]}.local.",
        )

    # --- zeroconf's threads ------------------------------------------------------------------------------

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        if name != self._name:
            self._token.run_sync_soon(self._note, name)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Whoever is gone will be noticed by his connection."""

    # --- ours --------------------------------------------------------------------------------------------

    def _note(self, name: str) -> None:
        try:
            self._send.send_nowait(name)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("mdns.dropped")

    async def _look_at(self, zeroconf: Zeroconf, name: str) -> None:
        try:
            info: Any = await trio.to_thread.run_sync(zeroconf.get_service_info, SERVICE, name, INFO_TIMEOUT_MS)
        except Exception as error:  # the library has many words for records that are none
            log.debug("mdns.record_refused", extra={"error": type(error).__name__})
            return
        by_peer = announced(info.text) if info is not None else {}
        for peer, addresses in by_peer.items():
            if peer in self._seen or peer == str(self._host.get_id()):
                continue
            self._seen[peer] = None
            if len(self._seen) > PEERS_MAX:
                self._seen.popitem(last=False)
            try:
                await self._swarm.dial(ID(peer_id_to_bytes(peer)), addresses)
            except DialFailed:
                self._seen.pop(peer, None)  # told by dial_failures(); it may announce itself again


def announced(text: bytes) -> dict[PeerId, list[Address]]:
    """The peers and addresses of one TXT record: strings of the form `dnsaddr=/ip4/…/p2p/PEER`."""
    found: dict[PeerId, list[Address]] = {}
    position = 0
    for _ in range(RECORDS_MAX):
        if position >= len(text):
            break
        size = text[position]
        entry = text[position + 1 : position + 1 + size]
        position += 1 + size
        if len(entry) < size or not entry.startswith(b"dnsaddr="):
            continue
        try:
            peer, address = parse_peer_address(entry[len(b"dnsaddr=") :].decode("ascii"))
        except (AddressInvalid, UnicodeDecodeError):
            continue
        found.setdefault(peer, []).append(address)
    return found


class RouterPort:
    """Keeps our listening port forwarded by the local router, and tells others the address that this gives us."""

    def __init__(self, host: GuardedHost, manager: Any = None) -> None:
        self._host = host
        self._manager = manager if manager is not None else UpnpManager()
        self._mapped: list[int] = []

    async def run(self) -> None:
        try:
            while True:
                mapped = await self._map()
                await trio.sleep(MAPPING_RENEW_S if mapped else ROUTER_RETRY_S)
        finally:
            with trio.move_on_after(3) as scope:
                scope.shield = True
                for port in self._mapped:
                    await self._manager.remove_port_mapping(port, "TCP")

    async def _map(self) -> bool:
        ports = self._ports()
        if not ports or not await self._manager.discover():
            log.info("router.not_found")
            return False
        self._mapped = [port for port in ports if await self._manager.add_port_mapping(port, "TCP")]
        host = self._manager.get_external_ip()
        self._host.note_addresses("router", [f"/ip4/{host}/tcp/{port}" for port in self._mapped] if host else [])
        return bool(self._mapped)

    def _ports(self) -> Sequence[int]:
        addresses = [parse_address(str(address)) for address in self._host.get_transport_addrs()]
        return sorted({a.port for a in addresses if a.transport is Transport.TCP and "." in a.host})
