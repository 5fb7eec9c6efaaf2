"""The DHT over libp2p streams by our own node (`p2p.kad`): calls in, effects out, streams between.

    dht = Dht(host, protocol=…, mode=…, policy=…)
    async with dht.running(): …
    await dht.provide(key); await dht.find_providers(key, count_max=…); await dht.find_peer(peer)

The machine decides whom to ask; this file opens the streams. Each question has a stream of its own, as
libp2p/specs, kad-dht/README.md, "RPC messages" has it. Addresses that the dial policy forbids are not dialled,
whoever named them (rule G4), and connections that only a lookup needed are closed again.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from multiaddr import Multiaddr

from p2p.addresses import Address, DialPolicy, parse_address
from p2p.driver.host import GuardedHost
from p2p.driver.kad_server import DhtServer
from p2p.driver.negotiate import propose
from p2p.errors import (
    AddressInvalid,
    AddressRefused,
    DhtFailed,
    FrameInvalid,
    FrameTooLarge,
    P2PError,
    PeerNotFound,
    SettingsInvalid,
)
from p2p.framing import FrameReader, encode_frame
from p2p.identity import PEER_ID_BYTES, peer_id_of_bytes, peer_id_to_bytes
from p2p.interface import DHT_KEY_BYTES, DhtMode, PeerId, PeerInfo, RecordValidator
from p2p.kad import (
    Ask,
    Done,
    Effect,
    KadMessage,
    KadMessageInvalid,
    KadNode,
    KadPeer,
    KadSettings,
    PeerFound,
    Provided,
    ProvidersFound,
    Result,
    ValueFound,
    ValuePut,
    decode_message,
    encode_message,
    network_groups,
    no_groups,
)
from p2p.kad.messages import MESSAGE_BYTES_MAX

log = logging.getLogger("p2p")

OPERATION_TIMEOUT_S = 30.0
ASKS_PARALLEL_MAX = 32  # streams of ours at one time, over all lookups
IDLE_CLOSE_S = 60.0  # a connection that a lookup opened, once nothing runs on it
GOSSIP_STREAMS_MAX = 2  # every connection may carry gossip, one stream each way
REFRESH_FIRST_S = 60.0  # a node that has just started asks only for what its program wants
JUDGED_MAX = 4096
IDENTIFY_WAIT_S = 5.0  # for connected peers to say that they serve our DHT, when nobody else is known
READ_BYTES_MAX = 64 * 1024
ADDRESSES_PER_PEER_MAX = 8
NANOSECONDS = 1_000_000_000


class Dht:
    def __init__(
        self,
        host: GuardedHost,
        *,
        protocol: str,
        mode: DhtMode,
        policy: DialPolicy,
        settings: KadSettings | None = None,
        validators: Mapping[str, RecordValidator] | None = None,
    ) -> None:
        self._host = host
        self._swarm = host.get_network()
        self._protocol = protocol
        self._policy = policy
        self._is_server = mode is DhtMode.SERVER
        self._clock_base = time.time_ns() - time.monotonic_ns()
        self._nursery: trio.Nursery | None = None
        self._places = trio.CapacityLimiter(ASKS_PARALLEL_MAX)
        self._waiting: dict[int, tuple[trio.Event, list[Result]]] = {}
        self._opened: dict[ID, float] = {}  # peers that a lookup connected to, and when it last used them
        self._changed = trio.Event()
        self._identified = trio.Event()
        self._judged: dict[ID, None] = {}  # peers of whom it is known whether they serve our DHT
        self.keeps: Callable[[ID], bool] = lambda _: False  # who else needs the connection to a peer
        self.node = KadNode(
            host.get_id().to_bytes(),
            settings=replace(settings or KadSettings(refresh_first_s=REFRESH_FIRST_S), is_server=self._is_server),
            rng=random.Random(),  # noqa: S311 - spreads refreshes, keeps no secret
            now=self._now(),
            addresses=self._own_addresses,
            validators=validators,
            groups_of=no_groups if policy.allow_private else network_groups,
        )
        self._server = DhtServer(self._receive, self._throw_out)

    def _now(self) -> int:
        return self._clock_base + time.monotonic_ns()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if self._is_server:
                self._host.set_stream_handler(TProtocol(self._protocol), self._server.serve)
            nursery.start_soon(self._keep_time)
            nursery.start_soon(self._close_idle)
            try:
                yield
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    async def peer_identified(self, peer_id: ID) -> None:
        """Every connected peer that serves our DHT belongs into the routing table."""
        if len(self._judged) >= JUDGED_MAX:
            self._judged.clear()
        self._judged[peer_id] = None
        try:
            is_server = self._protocol in self._host.peerstore.get_protocols(peer_id)
            addresses = tuple(_binary(self._host.peerstore.addrs(peer_id))) if is_server else ()
        except PeerStoreError:
            return  # gone again
        effects = self.node.peer_changed(
            peer_id.to_bytes(), connected=True, is_server=is_server, addresses=addresses, now=self._now()
        )
        self._perform(effects)
        self._changed.set()
        self._identified.set()
        self._identified = trio.Event()

    # --- what the node calls -----------------------------------------------------------------------------

    async def provide(self, key: bytes) -> None:
        _check_key(key)
        await self._wait_known()
        result = await self._result(*self.node.provide(key, now=self._now()))
        if not isinstance(result, Provided) or not result.told:
            raise DhtFailed("no peer of the DHT could be told")

    async def find_providers(self, key: bytes, *, count_max: int) -> tuple[PeerInfo, ...]:
        _check_key(key)
        await self._wait_known()
        result = await self._result(*self.node.find_providers(key, count_max=count_max, now=self._now()))
        if not isinstance(result, ProvidersFound):
            raise DhtFailed(f"the DHT did not answer within {OPERATION_TIMEOUT_S:g} s")
        if not result.providers and not result.asked:
            raise DhtFailed("no peer of the DHT could be asked")
        return tuple(
            PeerInfo(peer=peer_id_of_bytes(found.peer), addresses=self._usable(found.addresses))
            for found in result.providers
            if len(found.peer) == PEER_ID_BYTES
        )

    async def find_peer(self, peer: PeerId) -> PeerInfo:
        await self._wait_known()
        result = await self._result(*self.node.find_peer(peer_id_to_bytes(peer), now=self._now()))
        if isinstance(result, PeerFound) and result.peer is not None:
            addresses = self._usable(result.peer.addresses)
            if addresses:
                return PeerInfo(peer=peer, addresses=addresses)
        raise PeerNotFound(f"the DHT knows no usable address of {peer}")

    async def put_value(self, key: bytes, value: bytes) -> None:
        await self._wait_known()
        result = await self._result(*self.node.put_value(key, value, now=self._now()))
        if not isinstance(result, ValuePut) or not result.told:
            raise DhtFailed("no peer of the DHT took the value")

    async def get_value(self, key: bytes) -> bytes | None:
        self.node.values.validator(key)
        await self._wait_known()
        is_alone = not len(self.node.table)
        result = await self._result(*self.node.get_value(key, now=self._now()))
        if not isinstance(result, ValueFound):
            raise DhtFailed(f"the DHT did not answer within {OPERATION_TIMEOUT_S:g} s")
        if result.value is None and is_alone:
            raise DhtFailed("no peer of the DHT could be asked")
        return result.value

    async def _wait_known(self) -> None:
        """Right after a connection stands nobody knows yet whether the peer serves the DHT."""
        with trio.move_on_after(IDENTIFY_WAIT_S):
            while not len(self.node.table) and self._is_identifying():
                await self._identified.wait()
        await trio.lowlevel.checkpoint()

    def _is_identifying(self) -> bool:
        connected = (connection.muxed_conn.peer_id for connection in self._swarm.get_connections())
        return any(peer_id not in self._judged for peer_id in connected)

    async def _result(self, operation: int, effects: list[Effect]) -> Result | None:
        """What an operation ends in; None when it takes too long. Cancelled, it is forgotten."""
        event, results = trio.Event(), list[Result]()
        self._waiting[operation] = (event, results)
        try:
            self._perform(effects)
            with trio.move_on_after(OPERATION_TIMEOUT_S):
                await event.wait()
            return results[0] if results else None
        finally:
            del self._waiting[operation]
            self.node.cancel(operation)

    # --- the machine -------------------------------------------------------------------------------------

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Ask):
                if self._nursery is not None:
                    self._nursery.start_soon(self._ask, effect)
            elif isinstance(effect, Done):
                waiting = self._waiting.get(effect.operation_id)
                if waiting is not None:
                    waiting[1].append(effect.result)
                    waiting[0].set()

    def _receive(self, peer_id: ID, question: KadMessage) -> list[Effect]:
        return self.node.receive(peer_id.to_bytes(), question, now=self._now())

    async def _keep_time(self) -> None:
        while True:
            self._changed = trio.Event()
            wait_s = (self.node.deadline() - self._now()) / NANOSECONDS
            with trio.move_on_after(max(0.0, wait_s)):
                await self._changed.wait()
            self._perform(self.node.on_time(now=self._now()))

    async def _ask(self, ask: Ask) -> None:
        answer: KadMessage | None = None
        is_sent = is_garbled = False
        async with self._places:
            with trio.move_on_after(self.node.settings.request_timeout_s):
                try:
                    answer = await self._exchange(ask)
                    is_sent = True
                except (KadMessageInvalid, FrameTooLarge, FrameInvalid):
                    is_garbled = True
                except (P2PError, MuxedStreamError, MuxedStreamEOF, MuxedStreamReset) as error:
                    log.debug("dht.ask_failed", extra={"error": type(error).__name__})
                except Exception as error:  # the library and the peer have many ways to end a stream
                    log.debug("dht.ask_failed", extra={"error": type(error).__name__})
        bans = self.node.offences.bans
        if is_garbled:
            effects = self.node.garbled(ask.request_id, now=self._now())
        elif is_sent and not ask.has_answer:
            effects = self.node.delivered(ask.request_id, now=self._now())
        elif answer is None:
            effects = self.node.failed(ask.request_id, now=self._now())
        else:
            effects = self.node.answered(ask.request_id, answer, now=self._now())
        if self.node.offences.bans > bans:
            log.info("dht.peer_banned", extra={"peer": str(ID(ask.peer.peer))})
        self._perform(effects)

    async def _exchange(self, ask: Ask) -> KadMessage | None:
        """One question and its answer on a stream of their own. None: sent, and there is no answer to this kind."""
        if len(ask.peer.peer) != PEER_ID_BYTES:
            raise AddressInvalid("not the id of an ed25519 peer key")
        peer_id = ID(ask.peer.peer)
        if not self._swarm.live_connections(peer_id):
            self._opened[peer_id] = trio.current_time()
        connection = await self._swarm.dial(peer_id, self._dialable(ask.peer))
        if peer_id in self._opened:
            self._opened[peer_id] = trio.current_time()
        muxed = await connection.muxed_conn.open_stream()
        ended = False
        try:
            await propose(muxed, self._protocol)
            await muxed.write(encode_frame(encode_message(ask.message)))
            answer = await self._read_answer(muxed) if ask.has_answer else None
            await muxed.close()  # not sooner: js, waiting for another question, takes an end for an error, and resets
            ended = True  # what is sent still arrives, and what still comes is dropped
            return answer
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                if ended:
                    await muxed.release()
                else:
                    await muxed.reset()

    async def _read_answer(self, muxed: Any) -> KadMessage:
        reader = FrameReader(frame_bytes_max=MESSAGE_BYTES_MAX)
        while (frame := reader.next_frame()) is None:
            reader.feed(await muxed.read(READ_BYTES_MAX))
        return decode_message(frame)

    def _throw_out(self, peer_id: ID) -> None:
        self.node.ban(peer_id.to_bytes(), now=self._now())
        if self._nursery is not None:
            self._nursery.start_soon(self._disconnect, peer_id)

    async def _disconnect(self, peer_id: ID) -> None:
        log.debug("dht.peer_dropped", extra={"peer": str(peer_id)})
        for connection in self._swarm.live_connections(peer_id):
            with trio.move_on_after(3):
                await connection.close()

    # --- connections and addresses -----------------------------------------------------------------------

    async def _close_idle(self) -> None:
        """What only a lookup needed goes again, unless something else has come to use it."""
        while True:
            await trio.sleep(IDLE_CLOSE_S / 2)
            oldest = trio.current_time() - IDLE_CLOSE_S
            for peer_id in [peer_id for peer_id, used_at in self._opened.items() if used_at < oldest]:
                del self._opened[peer_id]
                if self.keeps(peer_id):
                    continue
                for connection in self._swarm.live_connections(peer_id):
                    if len(connection.muxed_conn.session.streams) <= GOSSIP_STREAMS_MAX:
                        with trio.move_on_after(3):
                            await connection.close()

    def _own_addresses(self) -> tuple[bytes, ...]:
        return tuple(_binary(self._host.get_addrs()))[:ADDRESSES_PER_PEER_MAX]

    def _dialable(self, peer: KadPeer) -> list[Address]:
        known = self._swarm.known_addresses(ID(peer.peer))
        named = [parse_address(text) for text in self._usable(peer.addresses)]
        return list(dict.fromkeys([*named, *known]))

    def _usable(self, addresses: Iterable[bytes]) -> tuple[str, ...]:
        """The addresses that we could dial, as text; the others would be failures without a reason to try."""
        usable = []
        for raw in addresses:
            try:
                address = parse_address(str(Multiaddr(raw))).without_peer
                self._policy.check(address)
            except (AddressInvalid, AddressRefused):
                continue
            except Exception as error:  # the library raises many kinds for bytes that are no address
                log.debug("dht.address_refused", extra={"error": type(error).__name__})
                continue
            usable.append(str(address))
        return tuple(dict.fromkeys(usable))[:ADDRESSES_PER_PEER_MAX]


def _binary(multiaddrs: Iterable[Any]) -> Iterable[bytes]:
    """Without our own id at the end; a relayed address keeps the relay's in its middle."""
    return dict.fromkeys(
        Multiaddr(str(parse_address(str(multiaddr)).without_peer)).to_bytes() for multiaddr in multiaddrs
    )


def _check_key(key: bytes) -> None:
    if len(key) != DHT_KEY_BYTES:
        raise SettingsInvalid(f"a DHT key has {DHT_KEY_BYTES} bytes")
