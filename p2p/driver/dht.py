"""Provider records and peer lookup through libp2p's kad-dht, under our own protocol prefix.

The library's protocol name is a constant in six of its modules, so it gets a host that translates the name.
Its `find_providers` answers from its own cache alone when that knows anyone; here the local records are one
voice among those of the closest peers.

The router is libp2p's own. Nothing outside this file knows it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.custom_types import StreamHandlerFn, TProtocol
from libp2p.kad_dht.common import PROTOCOL_ID as LIBRARY_PROTOCOL
from libp2p.kad_dht.kad_dht import DHTMode as LibraryMode
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo as LibraryPeerInfo
from libp2p.peer.peerstore import PeerStoreError
from libp2p.tools.anyio_service import background_trio_service

from p2p.addresses import Address, DialPolicy, parse_address
from p2p.driver.host import GuardedHost
from p2p.errors import AddressInvalid, AddressRefused, DhtFailed, PeerNotFound, SettingsInvalid
from p2p.identity import PEER_ID_BYTES, peer_id_to_bytes
from p2p.interface import DHT_KEY_BYTES, DhtMode, PeerId, PeerInfo

log = logging.getLogger("p2p")

OPERATION_TIMEOUT_S = 30.0
QUERY_TIMEOUT_S = 5.0  # one peer, dial included
QUERY_PARALLEL_MAX = 10
PEERS_ASKED_MAX = 20  # k of the paper: those who keep the record
ADDRESSES_PER_PROVIDER_MAX = 8


class _RenamedHost:
    """The host as the library's DHT sees it: the same, but its protocol has our name."""

    def __init__(self, host: GuardedHost, protocol: str) -> None:
        self._host = host
        self._names = {LIBRARY_PROTOCOL: TProtocol(protocol)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def set_stream_handler(self, protocol_id: TProtocol, stream_handler: StreamHandlerFn) -> None:
        self._host.set_stream_handler(self._names.get(protocol_id, protocol_id), stream_handler)

    async def new_stream(self, peer_id: ID, protocol_ids: Sequence[TProtocol]) -> Any:
        return await self._host.new_stream(peer_id, [self._names.get(p, p) for p in protocol_ids])


class Dht:
    def __init__(self, host: GuardedHost, *, protocol: str, mode: DhtMode, policy: DialPolicy) -> None:
        self._host = host
        self._protocol = protocol
        self._policy = policy
        library_mode = LibraryMode.SERVER if mode is DhtMode.SERVER else LibraryMode.CLIENT
        self._kad = KadDHT(_RenamedHost(host, protocol), library_mode, enable_values=False)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with background_trio_service(self._kad):
            yield

    async def peer_identified(self, peer_id: ID) -> None:
        """Every connected peer that serves our DHT belongs into the routing table."""
        try:
            if self._protocol in self._host.peerstore.get_protocols(peer_id):
                await self._kad.add_peer(peer_id, skip_server_mode_check=True)
        except PeerStoreError:
            pass  # gone again

    async def provide(self, key: bytes) -> None:
        _check_key(key)
        with trio.move_on_after(OPERATION_TIMEOUT_S):
            if await self._kad.provider_store.provide(key):
                return
        raise DhtFailed("no peer of the DHT could be told")

    async def find_providers(self, key: bytes, *, count_max: int) -> tuple[PeerInfo, ...]:
        _check_key(key)
        found: dict[PeerId, PeerInfo] = {}
        self._collect(found, self._kad.provider_store.get_providers(key))
        with trio.move_on_after(OPERATION_TIMEOUT_S) as scope:
            closest = await self._kad.peer_routing.find_closest_peers_network(key, PEERS_ASKED_MAX)
            others = [peer for peer in closest if peer != self._host.get_id()]
            if not others and not found:
                raise DhtFailed("no peer of the DHT is known")
            await self._ask_all(others, key, found, count_max)
        if scope.cancelled_caught and not found:
            raise DhtFailed(f"the DHT did not answer within {OPERATION_TIMEOUT_S:g} s")
        return tuple(found.values())[:count_max]

    async def _ask_all(self, peers: Sequence[ID], key: bytes, found: dict[PeerId, PeerInfo], count_max: int) -> None:
        places = trio.CapacityLimiter(QUERY_PARALLEL_MAX)
        async with trio.open_nursery() as nursery:

            async def ask(peer: ID) -> None:
                async with places:
                    with trio.move_on_after(QUERY_TIMEOUT_S):
                        providers, _ = await self._kad.provider_store._get_providers_from_peer_with_closers(peer, key)
                        self._collect(found, providers)
                if len(found) >= count_max:
                    nursery.cancel_scope.cancel()

            for peer in peers:
                nursery.start_soon(ask, peer)

    def _collect(self, found: dict[PeerId, PeerInfo], providers: Iterable[LibraryPeerInfo]) -> None:
        for provider in providers:
            raw = provider.peer_id.to_bytes()
            if provider.peer_id == self._host.get_id() or len(raw) != PEER_ID_BYTES:
                continue
            peer = str(provider.peer_id)
            addresses = self._usable(provider.addrs)
            known = found.get(peer)
            if known is not None:
                addresses = tuple(dict.fromkeys(known.addresses + addresses))
            found[peer] = PeerInfo(peer=peer, addresses=addresses[:ADDRESSES_PER_PROVIDER_MAX])

    def _usable(self, multiaddrs: Iterable[Any]) -> tuple[str, ...]:
        """The addresses that we could dial; the others would be failures without a reason to try."""
        usable = []
        for multiaddr in multiaddrs:
            try:
                address: Address = parse_address(str(multiaddr)).without_peer
                self._policy.check(address)
            except (AddressInvalid, AddressRefused):
                continue
            usable.append(str(address))
        return tuple(dict.fromkeys(usable))

    async def find_peer(self, peer: PeerId) -> PeerInfo:
        with trio.move_on_after(OPERATION_TIMEOUT_S):
            info = await self._kad.peer_routing.find_peer(ID(peer_id_to_bytes(peer)))
            if info is not None and (addresses := self._usable(info.addrs)):
                return PeerInfo(peer=peer, addresses=addresses)
        raise PeerNotFound(f"the DHT knows no usable address of {peer}")


def _check_key(key: bytes) -> None:
    if len(key) != DHT_KEY_BYTES:
        raise SettingsInvalid(f"a DHT key has {DHT_KEY_BYTES} bytes")
