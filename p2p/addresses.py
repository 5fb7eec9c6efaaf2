"""Multiaddrs of this network, and the rule which of them may be dialled.

Known forms: `/ip4|ip6/ADDRESS` or `/dns4|dns6|dns/NAME`, then `/tcp/N`, `/tcp/N/ws` or `/udp/N/quic-v1`, each with
an optional `/p2p/PEER`, and through a relay `…/p2p/RELAY/p2p-circuit[/p2p/PEER]`. Everything else is refused, not
guessed. Which transports a node has is its driver's business.

Rule G4: outside a development network no private, loopback, link-local or multicast address is dialled, so
that nobody can use peers as a port scanner. A name is judged by the addresses that it resolves to; the driver
calls `DialPolicy.check_host` on each.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from p2p.errors import AddressInvalid, AddressRefused, PeerIdInvalid
from p2p.identity import peer_id_to_bytes
from p2p.interface import PeerId

ADDRESS_CHARS_MAX = 512  # a relayed DNS address with both peer ids needs about 400
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?\Z")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class HostKind(Enum):
    IP4 = "ip4"
    IP6 = "ip6"
    DNS = "dns"
    DNS4 = "dns4"
    DNS6 = "dns6"

    @property
    def is_name(self) -> bool:
        return self in (HostKind.DNS, HostKind.DNS4, HostKind.DNS6)


class Transport(Enum):
    TCP = "tcp"
    WEBSOCKET = "ws"
    QUIC = "quic-v1"


_PORT_KIND = {Transport.TCP: "tcp", Transport.WEBSOCKET: "tcp", Transport.QUIC: "udp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    kind: HostKind
    host: str
    port: int
    transport: Transport = Transport.TCP
    relay: PeerId | None = None  # set: the connection goes through this peer, which is at host:port
    peer: PeerId | None = None  # who should answer

    def __str__(self) -> str:
        text = f"/{self.kind.value}/{self.host}/{_PORT_KIND[self.transport]}/{self.port}"
        if self.transport is not Transport.TCP:
            text += f"/{self.transport.value}"
        if self.relay is not None:
            text += f"/p2p/{self.relay}/p2p-circuit"
        return text + (f"/p2p/{self.peer}" if self.peer is not None else "")

    @property
    def without_peer(self) -> Address:
        return replace(self, peer=None)


def parse_address(text: str) -> Address:
    """Raises AddressInvalid."""
    if len(text) > ADDRESS_CHARS_MAX:
        raise AddressInvalid(f"an address has at most {ADDRESS_CHARS_MAX} characters")
    parts = text.split("/")
    if len(parts) < 5 or parts[0] or parts[3] not in ("tcp", "udp"):
        raise AddressInvalid(f"not an address of the form /ip4/…/tcp/…: {_shown(text)}")
    try:
        kind = HostKind(parts[1])
    except ValueError:
        raise AddressInvalid(f"not an address of the form /ip4/…/tcp/…: {_shown(text)}") from None
    host = _parse_host(kind, parts[2])
    port = parts[4]
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise AddressInvalid(f"not a port in {_shown(text)}")
    transport, rest = _parse_transport(parts[3], parts[5:], text)
    relay: PeerId | None = None
    peer: PeerId | None = None
    match rest:
        case []:
            pass
        case ["p2p", peer]:
            pass
        case ["p2p", relay, "p2p-circuit"]:
            pass
        case ["p2p", relay, "p2p-circuit", "p2p", peer]:
            pass
        case _:
            raise AddressInvalid(f"an address of an unknown kind: {_shown(text)}")
    for named in (relay, peer):
        if named is not None:
            try:
                peer_id_to_bytes(named)
            except PeerIdInvalid as error:
                raise AddressInvalid(f"{error} in {_shown(text)}") from error
    return Address(kind=kind, host=host, port=int(port), transport=transport, relay=relay, peer=peer)


def parse_peer_address(text: str) -> tuple[PeerId, Address]:
    """An address that says who should answer, such as a bootstrap address. Raises AddressInvalid."""
    address = parse_address(text)
    if address.peer is None:
        raise AddressInvalid(f"an address without /p2p/<peer id>: {_shown(text)}")
    return address.peer, address.without_peer


def parse_addresses_of(peer: PeerId, texts: Sequence[str]) -> list[Address]:
    """The good ones among `texts`, without their peer. A mixture of good and bad is worth a try; when there
    are bad ones only, that is AddressInvalid."""
    parsed: list[Address] = []
    refused: AddressInvalid | None = None
    for text in texts:
        try:
            address = parse_address(text)
            if address.peer not in (None, peer):
                raise AddressInvalid(f"an address of {address.peer}, not of {peer}")
            parsed.append(address.without_peer)
        except AddressInvalid as error:
            refused = error
    if refused is not None and not parsed:
        raise refused
    return parsed


def _parse_transport(port_kind: str, rest: list[str], text: str) -> tuple[Transport, list[str]]:
    if port_kind == "udp":
        if rest[:1] != ["quic-v1"]:
            raise AddressInvalid(f"an address of an unknown kind: {_shown(text)}")
        return Transport.QUIC, rest[1:]
    if rest[:1] == ["ws"]:
        return Transport.WEBSOCKET, rest[1:]
    return Transport.TCP, rest


def _parse_host(kind: HostKind, host: str) -> str:
    try:
        if kind is HostKind.IP4:
            return str(ipaddress.IPv4Address(host))
        if kind is HostKind.IP6:
            if "%" in host:
                raise AddressInvalid("an address with an interface name means nothing to others")
            return str(ipaddress.IPv6Address(host))
    except ipaddress.AddressValueError:
        raise AddressInvalid(f"not an {kind.value} address: {_shown(host)}") from None
    if len(host) > 253 or not _NAME.match(host):
        raise AddressInvalid(f"not a host name: {_shown(host)}")
    return host.lower()


def _shown(text: str) -> str:
    return ascii(text[:80])


@dataclass(frozen=True, slots=True, kw_only=True)
class DialPolicy:
    """Which addresses this node will dial. `allow_private` is for development networks and tests."""

    allow_private: bool

    def check(self, address: Address) -> None:
        """Raises AddressRefused. A name passes here; check each of its addresses with `check_host`."""
        if address.port == 0:
            raise AddressRefused("refused by policy: port 0")
        if not address.kind.is_name:
            self.check_host(address.host)

    def check_host(self, host: str) -> None:
        """`host` is an IP address as text. Raises AddressRefused."""
        for ip in _meanings(ipaddress.ip_address(host)):
            if ip.is_multicast:
                raise AddressRefused("refused by policy: multicast")
            if ip.is_unspecified:
                raise AddressRefused("refused by policy: unspecified address")
            if not self.allow_private and not ip.is_global:
                kind = "loopback" if ip.is_loopback else "link-local" if ip.is_link_local else "private"
                raise AddressRefused(f"refused by policy: {kind} address")


def _meanings(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
    """The address and the IPv4 address that it may carry inside (mapped, 6to4, Teredo, NAT64)."""
    if isinstance(ip, ipaddress.IPv4Address):
        return (ip,)
    if ip.ipv4_mapped is not None:
        return (ip.ipv4_mapped,)
    if ip.sixtofour is not None:
        return (ip, ip.sixtofour)
    if ip.teredo is not None:
        return (ip, *ip.teredo)
    if ip in _NAT64:
        return (ip, ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return (ip,)
