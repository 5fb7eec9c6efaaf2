"""Gossip and DHT of the memory network: a flood and a shared table, with the promises of the real ones."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from p2p.counters import Counters
from p2p.errors import DhtFailed, MessageTooLarge, PeerNotFound, RecordInvalid, SettingsInvalid
from p2p.interface import DHT_KEY_BYTES, DhtMode, GossipMessage, Limits, PeerId, PeerInfo, Validator, Verdict
from p2p.kad import KadSettings, Record
from p2p.kad.store import ValueStore
from p2p.queues import BoundedFeed

if TYPE_CHECKING:
    from p2p.testing.memory_node import MemoryNode

log = logging.getLogger("p2p")

SEEN_MAX = 4096
RECORD_LIFE_S = 48 * 3600  # as kad-dht keeps a provider record
MessageId = tuple[PeerId, int]


class Topic(BoundedFeed[GossipMessage]):
    topic: str
    validator: Validator


class MemoryGossip:
    """Every subscribed neighbour is told once; who accepts a message tells it on."""

    def __init__(self, node: MemoryNode, *, limits: Limits, counters: Counters) -> None:
        self._node = node
        self._limits = limits
        self._counters = counters
        self.topics: dict[str, Topic] = {}
        self._seen: dict[MessageId, None] = {}
        self._published = 0
        self._inbox: list[tuple[float, int, Callable[[], None]]] = []  # due, order of arrival, delivery
        self._inbox_count = 0
        self._inbox_changed = trio.Event()

    def close(self) -> None:
        for topic in self.topics.values():
            topic.close_nowait()

    async def run(self) -> None:
        """Deliver what is on its way, at its due time and in order."""
        while True:
            wait_s = self._inbox[0][0] - trio.current_time() if self._inbox else float("inf")
            if wait_s <= 0:
                heapq.heappop(self._inbox)[2]()
                continue
            with trio.move_on_after(wait_s):
                await self._inbox_changed.wait()

    def _post(self, due: float, deliver: Callable[[], None]) -> None:
        self._inbox_count += 1
        heapq.heappush(self._inbox, (due, self._inbox_count, deliver))
        self._inbox_changed.set()
        self._inbox_changed = trio.Event()

    async def join(self, topic: str, validator: Validator) -> Topic:
        await trio.lowlevel.checkpoint()
        if topic in self.topics:
            raise SettingsInvalid(f"already subscribed to {topic}")

        async def leave() -> None:
            self.topics.pop(topic, None)

        def count_drop() -> None:
            self._counters.gossip_dropped += 1

        feed = Topic(items_max=self._limits.gossip_queue_max, on_close=leave, on_drop=count_drop)
        feed.topic = topic
        feed.validator = validator
        self.topics[topic] = feed
        return feed

    async def send(self, topic: str, data: bytes) -> int:
        await trio.lowlevel.checkpoint()
        if len(data) > self._limits.gossip_message_bytes_max:
            raise MessageTooLarge(
                f"a gossip message of {len(data)} bytes; the bound is {self._limits.gossip_message_bytes_max}"
            )
        self._published += 1
        self._counters.gossip_published += 1
        identifier = (self._node.peer, self._published)
        self._remember(identifier)
        self._deliver(topic, data, forwarder=self._node.peer, source=self._node.peer)
        return self._forward(topic, data, identifier, exclude=None)

    def _forward(self, topic: str, data: bytes, identifier: MessageId, *, exclude: PeerId | None) -> int:
        told: set[PeerId] = set()
        for connection in self._node.live_connections():
            there = connection.other(self._node)
            if there.peer == exclude or there.peer in told or topic not in there.gossip.topics:
                continue
            told.add(there.peer)

            def arrive(there: MemoryNode = there, is_lost: Callable[[], bool] = connection.is_lost_now) -> None:
                if not is_lost():
                    there.gossip.hear(topic, data, identifier, self._node.peer)

            there.gossip._post(trio.current_time() + connection.link.delay_s(), arrive)
        return len(told)

    def hear(self, topic: str, data: bytes, identifier: MessageId, forwarder: PeerId) -> None:
        feed = self.topics.get(topic)
        if feed is None or identifier in self._seen or identifier[0] == self._node.peer:
            return
        self._remember(identifier)
        try:
            verdict = feed.validator(forwarder, data)
        except Exception as error:  # a validator's bug must not blame a peer
            log.warning("gossip.validator_failed", extra={"error": type(error).__name__})
            verdict = Verdict.IGNORE
        if verdict is Verdict.ACCEPT:
            self._deliver(topic, data, forwarder=forwarder, source=identifier[0])
            self._forward(topic, data, identifier, exclude=forwarder)
        elif verdict is Verdict.REJECT:
            self._counters.gossip_rejected += 1
        else:
            self._counters.gossip_ignored += 1

    def _remember(self, identifier: MessageId) -> None:
        self._seen[identifier] = None
        if len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]

    def _deliver(self, topic: str, data: bytes, *, forwarder: PeerId, source: PeerId) -> None:
        feed = self.topics.get(topic)
        message = GossipMessage(topic=topic, data=data, forwarder=forwarder, source=source)
        if feed is not None and feed.put_nowait(message):
            self._counters.gossip_received += 1


class MemoryDht:
    """A record lies at every DHT server that could be reached when it was made."""

    def __init__(self, node: MemoryNode) -> None:
        self._node = node
        self.records: dict[bytes, dict[PeerId, tuple[PeerInfo, float]]] = {}
        self.values = ValueStore(KadSettings(), node.settings.validators)

    async def provide(self, key: bytes) -> None:
        servers = await self._servers(key)
        if not servers:
            raise DhtFailed("no peer of the DHT could be told")
        expires = trio.current_time() + RECORD_LIFE_S
        for server in servers:
            server.dht.records.setdefault(key, {})[self._node.peer] = (self._node.info(), expires)

    async def find_providers(self, key: bytes, *, count_max: int) -> tuple[PeerInfo, ...]:
        servers = await self._servers(key)
        if not servers:
            raise DhtFailed("no peer of the DHT is known")
        found: dict[PeerId, PeerInfo] = {}
        for server in (self._node, *servers):
            for peer, (info, expires) in server.dht.records.get(key, {}).items():
                if expires > trio.current_time() and peer != self._node.peer:
                    found[peer] = info
        return tuple(found.values())[:count_max]

    async def put_value(self, key: bytes, value: bytes) -> None:
        now, record = _now_ns(), Record(key, value)
        self.values.put(key, record, now=now)
        told = 0
        for server in await self._reach_servers():
            try:
                server.dht.values.put(key, record, now=now)
                told += 1
            except RecordInvalid:
                continue
        if not told:
            raise DhtFailed("no peer of the DHT took the value")

    async def get_value(self, key: bytes) -> bytes | None:
        self.values.validator(key)
        best = self.values.get(key, now=_now_ns())
        servers = await self._reach_servers()
        if best is None and not servers:
            raise DhtFailed("no peer of the DHT is known")
        for server in servers:
            found = server.dht.values.get(key, now=_now_ns())
            if found is not None and (best is None or self.values.better(key, best, found)):
                best = found
        return best

    async def _servers(self, key: bytes) -> list[MemoryNode]:
        if len(key) != DHT_KEY_BYTES:
            raise SettingsInvalid(f"a DHT key has {DHT_KEY_BYTES} bytes")
        return await self._reach_servers()

    async def _reach_servers(self) -> list[MemoryNode]:
        delays = [connection.link.delay_s() for connection in self._node.live_connections()]
        await trio.sleep(2 * max(delays, default=0.0))
        others = [node for node in self._node.component() if node is not self._node]
        return [node for node in others if node.settings.dht_mode is DhtMode.SERVER]

    async def find_peer(self, peer: PeerId) -> PeerInfo:
        await trio.lowlevel.checkpoint()
        for node in self._node.component():
            if node.peer == peer and node.listening:
                return node.info()
        raise PeerNotFound(f"the DHT knows no usable address of {peer}")


def _now_ns() -> int:
    return int(trio.current_time() * 1e9)
