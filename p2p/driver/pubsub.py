"""Gossip through libp2p's gossipsub 1.1, behind four calls: subscribe, publish, run, close.

Closed here: parse errors that end the node (trap 1), the limit of 10 messages/s per neighbour and the
heartbeat of two minutes (trap 6), queues of 32 that drop in silence (trap 7), score weights of zero, and a
validator that cannot say IGNORE. Message ids are hashes of the whole message, signature included, so that a
bad copy cannot suppress a good one (rule G1).

The router is libp2p's own. Nothing outside this file knows it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.score import ScoreParams, TopicScoreParams
from libp2p.pubsub.validators import signature_validator
from libp2p.tools.anyio_service import background_trio_service

from p2p.counters import Counters
from p2p.driver.host import GuardedHost
from p2p.errors import MessageTooLarge, SettingsInvalid
from p2p.interface import GossipMessage, Limits, Validator, Verdict
from p2p.queues import BoundedFeed

log = logging.getLogger("p2p")

HEARTBEAT_S = 1
DEGREE, DEGREE_LOW, DEGREE_HIGH = 6, 4, 12  # libp2p specs, gossipsub 1.0
SEEN_TTL_S = 120
TOPICS_PER_PEER_MAX = 256  # 64 offer shards and 64 load shards, twice
QUEUE_RPCS_MAX = 512  # to one neighbour; the library drops over 32. Half a MiB of offers
GRAYLIST_SCORE = -100.0  # ten invalid messages in short order
SCORES = ScoreParams(
    p1_time_in_mesh=TopicScoreParams(weight=0.01, cap=1.0, decay=0.99),
    p2_first_message_deliveries=TopicScoreParams(weight=0.5, cap=20.0, decay=0.95),
    p4_invalid_messages=TopicScoreParams(weight=10.0, cap=1000.0, decay=0.99),  # is subtracted
    p5_behavior_penalty_weight=1.0,
    p5_behavior_penalty_decay=0.95,
    p5_behavior_penalty_threshold=20.0,
    publish_threshold=GRAYLIST_SCORE,
    gossip_threshold=GRAYLIST_SCORE / 2,
    graylist_threshold=GRAYLIST_SCORE,
    accept_px_threshold=1000.0,  # never: peers come from the DHT
)


def message_id(message: rpc_pb2.Message) -> bytes:
    """SHA-256 of every field, each with its length."""
    digest = hashlib.sha256()
    for part in (
        message.from_id,
        message.seqno,
        *(topic.encode() for topic in message.topicIDs),
        message.data,
        message.signature,
        message.key,
    ):
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.digest()


class _Router(GossipSub):  # type: ignore[misc]
    def _check_equivocation(self, msg: rpc_pb2.Message) -> bool:
        """The library keeps every message for this, forever. Our validators detect equivocation."""
        return True


class _Topic:
    def __init__(self, validator: Validator, feed: BoundedFeed[GossipMessage]) -> None:
        self.validator = validator
        self.feed = feed


class TopicSubscription(BoundedFeed[GossipMessage]):
    topic: str = ""


class Gossip(Pubsub):  # type: ignore[misc]
    def __init__(self, host: GuardedHost, *, limits: Limits, counters: Counters) -> None:
        router = _Router(
            protocols=[PROTOCOL_ID_V11],
            degree=DEGREE,
            degree_low=DEGREE_LOW,
            degree_high=DEGREE_HIGH,
            heartbeat_interval=HEARTBEAT_S,
            score_params=SCORES,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,  # it drops in silence; rates are the validator's business
            eclipse_protection_enabled=False,  # by IP address, which a development network has one of
        )
        super().__init__(
            host,
            router,
            seen_ttl=SEEN_TTL_S,
            strict_signing=True,
            msg_id_constructor=message_id,
            max_subscriptions_per_rpc=TOPICS_PER_PEER_MAX,
            max_subscriptions_per_peer=TOPICS_PER_PEER_MAX,
        )
        self._limits = limits
        self._counters = counters
        self._topics: dict[str, _Topic] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        try:
            async with background_trio_service(self), background_trio_service(self.router):
                await self.wait_until_ready()
                yield
        finally:
            for topic in self._topics.values():
                topic.feed.close_nowait()
            self.seen_messages._stop_event.set()  # its thread; `stop()` would wait for it on this thread

    # --- what the node calls -----------------------------------------------------------------------------

    async def join(self, topic: str, validator: Validator) -> TopicSubscription:
        if topic in self._topics:
            raise SettingsInvalid(f"already subscribed to {topic}")

        async def leave() -> None:
            if self._topics.get(topic) is entry:
                del self._topics[topic]
                await self.unsubscribe(topic)

        def count_drop() -> None:
            self._counters.gossip_dropped += 1

        feed = TopicSubscription(items_max=self._limits.gossip_queue_max, on_close=leave, on_drop=count_drop)
        feed.topic = topic
        entry = self._topics[topic] = _Topic(validator, feed)
        await self.subscribe(topic)
        return feed

    async def send(self, topic: str, data: bytes) -> int:
        if len(data) > self._limits.gossip_message_bytes_max:
            raise MessageTooLarge(
                f"a gossip message of {len(data)} bytes; the bound is {self._limits.gossip_message_bytes_max}"
            )
        me = self.my_id
        neighbours = set(self.router._get_peers_to_send([topic], msg_forwarder=me, origin=me))
        await self.publish(topic, data)
        self._counters.gossip_published += 1
        return len(neighbours & self.peers.keys())

    # --- what the library calls --------------------------------------------------------------------------

    async def stream_handler(self, stream: INetStream) -> None:
        """A frame that is no RPC ends this stream and forgets the peer, who may start again."""
        try:
            await super().stream_handler(stream)
        except Exception as error:
            log.debug("gossip.stream_failed", extra={"error": type(error).__name__})
            self._counters.frames_refused += 1
            await stream.reset()
            self._handle_dead_peer(stream.muxed_conn.peer_id)

    async def _handle_new_peer(self, peer_id: ID) -> None:
        """The library writes its greeting before it registers the peer, so a topic joined in between would
        never be told. Telling the topics again costs one small message."""
        if peer_id in self.peers:
            return
        await super()._handle_new_peer(peer_id)
        queue = self.peer_queues.get(peer_id)
        if queue is not None:
            queue._queue.max_size = QUEUE_RPCS_MAX
            queue.push(self.get_hello_packet())

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Check in the order of rule G1, deliver, forward. Runs as a task of the service, which any error
        would end, so it lets none out."""
        try:
            await self._push(msg_forwarder, msg)
        except Exception as error:
            self._counters.gossip_ignored += 1
            log.warning("gossip.message_failed", extra={"error": type(error).__name__})

    async def _push(self, forwarder: ID, message: rpc_pb2.Message) -> None:
        own = forwarder == self.my_id
        topic = message.topicIDs[0] if len(message.topicIDs) == 1 else None
        if len(message.data) > self._limits.gossip_message_bytes_max or topic is None:
            self._reject(forwarder, topic or "")
            return
        identifier = message_id(message)
        if self.seen_messages.has(identifier):
            return
        source = ID(message.from_id)
        if not own:
            if source == self.my_id:
                return  # an echo of ours, or a lie
            if not self.router.scorer.allow_publish(forwarder, [topic]):
                return
            if not signature_validator(message):
                self._reject(forwarder, topic)
                return
            entry = self._topics.get(topic)
            verdict = Verdict.IGNORE if entry is None else self._judge(entry, forwarder, message)
            self.seen_messages.add(identifier)
            if verdict is Verdict.REJECT:
                self._reject(forwarder, topic)
            if verdict is Verdict.IGNORE:
                self._counters.gossip_ignored += 1
            if verdict is not Verdict.ACCEPT:
                return
            self.router.scorer.on_first_delivery(forwarder, topic)
        else:
            self.seen_messages.add(identifier)
        self._deliver(topic, forwarder, source, bytes(message.data))
        await self.router.publish(forwarder, message)

    def _judge(self, entry: _Topic, forwarder: ID, message: rpc_pb2.Message) -> Verdict:
        try:
            return entry.validator(str(forwarder), bytes(message.data))
        except Exception as error:  # a validator's bug must not blame a peer
            log.warning("gossip.validator_failed", extra={"error": type(error).__name__})
            return Verdict.IGNORE

    def _reject(self, forwarder: ID, topic: str) -> None:
        self._counters.gossip_rejected += 1
        self.router.scorer.on_invalid_message(forwarder, topic)

    def _deliver(self, topic: str, forwarder: ID, source: ID, data: bytes) -> None:
        entry = self._topics.get(topic)
        if entry is not None and entry.feed.put_nowait(
            GossipMessage(topic=topic, data=data, forwarder=str(forwarder), source=str(source))
        ):
            self._counters.gossip_received += 1


PROTOCOLS: tuple[TProtocol, ...] = (PROTOCOL_ID_V11,)
