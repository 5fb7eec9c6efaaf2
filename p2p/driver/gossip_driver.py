"""Gossip over libp2p streams by our own router (`p2p.gossip`): four calls, and everything else is its own.

    gossip = Gossip(host, limits=…, counters=…)
    async with gossip.running(): …
    feed = await gossip.join(topic, validator)
    neighbours = await gossip.send(topic, data)

The router decides; this file carries. A peer is registered at the first stream of either direction, so that nothing
it says is lost, and when it is forgotten its streams end with it. `gossip_speaker.py` has our stream to each peer.
What waits for a peer is bounded in bytes; what finds no room is dropped, and counted.

Not here: peer exchange. The router offers it, and rule G4 (nobody is dialled unasked) keeps it off.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset

from p2p.counters import Counters
from p2p.driver.gossip_speaker import Speaker
from p2p.driver.host import GuardedHost
from p2p.errors import FrameInvalid, FrameTooLarge, MessageTooLarge, SettingsInvalid
from p2p.framing import FrameReader, encode_frame
from p2p.gossip import (
    PROTOCOL_V12,
    PROTOCOLS,
    Deliver,
    Disconnect,
    Effect,
    GossipSettings,
    Message,
    Router,
    Rpc,
    RpcDecoder,
    RpcInvalid,
    Send,
    encode_rpc,
    is_signed_by_source,
    signer,
)
from p2p.gossip import Verdict as RouterVerdict
from p2p.gossip.messages import RPC_BYTES_MAX
from p2p.identity import SEED_BYTES, peer_id_of_bytes
from p2p.interface import GossipMessage, Limits, PeerId, Validator, Verdict
from p2p.queues import BoundedFeed

log = logging.getLogger("p2p")

STREAMS_PER_PEER_MAX = 4  # inbound: one in use, and those of a peer that lost count
BANNED_S = 300.0  # for a score that is not worth a socket: until it has mended by itself
NONSENSE_PENALTY = 5.0  # P7 for bytes that are no RPC: out of the mesh at once, graylisted the second time
READ_BYTES_MAX = 64 * 1024
NAMES_MAX = 8192  # peer ids kept as text
NANOSECONDS = 1_000_000_000

_VERDICTS = {
    Verdict.ACCEPT: RouterVerdict.ACCEPT,
    Verdict.REJECT: RouterVerdict.REJECT,
    Verdict.IGNORE: RouterVerdict.IGNORE,
}


class TopicSubscription(BoundedFeed[GossipMessage]):
    topic: str = ""


class _Topic:
    def __init__(self, validator: Validator, feed: TopicSubscription) -> None:
        self.validator = validator
        self.feed = feed


class Gossip:
    def __init__(
        self, host: GuardedHost, *, limits: Limits, counters: Counters, settings: GossipSettings | None = None
    ) -> None:
        settings = replace(
            settings or GossipSettings(),
            message_bytes_max=limits.gossip_message_bytes_max,
        )
        settings = replace(settings, score=replace(settings.score, accept_px_threshold=math.inf))
        self._host = host
        self._swarm = host.get_network()
        self._limits = limits
        self._counters = counters
        self._me = host.get_id().to_bytes()
        self._clock_base = time.time_ns() - int(time.monotonic_ns())
        self._topics: dict[str, _Topic] = {}
        self._speakers: dict[bytes, Speaker] = {}
        self._names: dict[bytes, PeerId] = {}
        self._nursery: trio.Nursery | None = None
        self._decoder = RpcDecoder(message_bytes_max=settings.message_bytes_max)
        self._neighbours_reached = 0
        self.dropped_rpcs = 0  # found no room in a neighbour's queue
        self.router = Router(
            self._me,
            settings=settings,
            rng=random.Random(),  # noqa: S311 - spreads meshes, keeps no secret
            now=self._now(),
            sign=signer(bytes(host.get_private_key().to_bytes()[:SEED_BYTES])),
            verify=self._verify,
            validate=self._judge,
        )
        for protocol in PROTOCOLS:  # before anybody can connect: who hears "not supported" does not ask again soon
            host.set_stream_handler(TProtocol(protocol), self._listen)

    def _now(self) -> int:
        """Nanoseconds since the epoch that never run backwards."""
        return self._clock_base + time.monotonic_ns()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._swarm.register_notifee(_Notifee(self))
            nursery.start_soon(self._beat)
            for connection in list(self._swarm.get_connections()):
                self.connected(connection.muxed_conn.peer_id)
            try:
                yield
            finally:
                self._nursery = None
                for topic in self._topics.values():
                    topic.feed.close_nowait()
                nursery.cancel_scope.cancel()

    # --- what the node calls -----------------------------------------------------------------------------

    async def join(self, topic: str, validator: Validator) -> TopicSubscription:
        if topic in self._topics:
            raise SettingsInvalid(f"already subscribed to {topic}")

        async def leave() -> None:
            if self._topics.get(topic) is entry:
                del self._topics[topic]
                self._perform(self.router.leave(topic, now=self._now()))

        def count_drop() -> None:
            self._counters.gossip_dropped += 1

        feed = TopicSubscription(items_max=self._limits.gossip_queue_max, on_close=leave, on_drop=count_drop)
        feed.topic = topic
        entry = self._topics[topic] = _Topic(validator, feed)
        self._perform(self.router.join(topic, now=self._now()))
        await trio.lowlevel.checkpoint()
        return feed

    async def send(self, topic: str, data: bytes) -> int:
        """To how many neighbours the message was handed: one whose queue is full does not count."""
        if len(data) > self._limits.gossip_message_bytes_max:
            raise MessageTooLarge(
                f"a gossip message of {len(data)} bytes; the bound is {self._limits.gossip_message_bytes_max}"
            )
        self._neighbours_reached = 0
        self._perform(self.router.publish(topic, data, now=self._now()))
        reached = self._neighbours_reached
        self._counters.gossip_published += 1
        self._hand_over(topic, data, forwarder=self._me, source=self._me)
        await trio.lowlevel.checkpoint()
        return reached

    def needs(self, peer_id: ID) -> bool:
        """Whether the peer is in one of our meshes."""
        peer = peer_id.to_bytes()
        return any(peer in mesh for mesh in self.router.state.mesh.values())

    # --- peers -------------------------------------------------------------------------------------------

    def connected(self, peer_id: ID) -> None:
        """A connection stands: see whether the peer gossips, and whether older connections to it still live."""
        if self._nursery is None:
            return
        speaker = self._speakers.get(peer_id.to_bytes())
        if speaker is None:
            self._nursery.start_soon(self._speak, self._new_speaker(peer_id))
        else:
            self._nursery.start_soon(speaker.probe_carrier)

    def disconnected(self, peer_id: ID) -> None:
        speaker = self._speakers.get(peer_id.to_bytes())
        if speaker is not None and not self._swarm.live_connections(peer_id):
            self._forget(speaker)

    def _new_speaker(self, peer_id: ID) -> Speaker:
        speaker = self._speakers[peer_id.to_bytes()] = Speaker(
            peer_id, swarm=self._swarm, open_timeout_s=self._limits.open_timeout_s, greet=self._register
        )
        return speaker

    async def _speak(self, speaker: Speaker) -> None:
        await speaker.run()
        self._forget(speaker)

    def _forget(self, speaker: Speaker) -> None:
        speaker.end()
        peer = speaker.peer_id.to_bytes()
        if self._speakers.get(peer) is speaker:
            del self._speakers[peer]
            self._perform(self.router.peer_changed(peer, connected=False, now=self._now()))

    def _register(self, peer_id: ID, has_idontwant: bool) -> None:
        """At the first stream of either direction, and again at each new one: see `peer_changed`."""
        connections = self._swarm.live_connections(peer_id)
        remote = connections[0].muxed_conn.get_remote_address() if connections else None
        effects = self.router.peer_changed(
            peer_id.to_bytes(),
            connected=True,
            now=self._now(),
            address=_public_host(remote),
            is_outbound=any(connection.muxed_conn.is_initiator for connection in connections),
            has_idontwant=has_idontwant,
        )
        self._perform(effects)

    async def _listen(self, stream: INetStream) -> None:
        """One inbound stream. A frame that is no RPC ends it, and costs the peer."""
        peer_id = stream.muxed_conn.peer_id
        peer = peer_id.to_bytes()
        if peer not in self._speakers:
            self.connected(peer_id)
        speaker = self._speakers.get(peer)
        if speaker is None or len(speaker.inbound) >= STREAMS_PER_PEER_MAX:
            await stream.reset()
            return
        self._register(peer_id, str(stream.get_protocol()) == PROTOCOL_V12)
        speaker.try_now()
        scope = trio.CancelScope()
        speaker.inbound[scope] = None
        try:
            with scope:
                await self._read(stream, peer)
        except (RpcInvalid, FrameTooLarge, FrameInvalid):
            self._counters.frames_refused += 1
            self.router.misbehaved(peer, amount=NONSENSE_PENALTY)
            await stream.reset()
        finally:
            del speaker.inbound[scope]
        if scope.cancelled_caught:
            await stream.reset()

    async def _read(self, stream: INetStream, peer: bytes) -> None:
        muxed = stream.muxed_stream
        reader = FrameReader(frame_bytes_max=RPC_BYTES_MAX)
        while True:
            while (frame := reader.next_frame()) is not None:
                rpc = self._decoder.decode(frame)
                self._perform(self.router.receive(peer, rpc, now=self._now()))
            try:
                reader.feed(await muxed.read(READ_BYTES_MAX))
            except (MuxedStreamEOF, MuxedStreamError, MuxedStreamReset):
                return  # the peer opens another when it has more to say

    # --- the router --------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while True:
            await trio.sleep(max(0.0, (self.router.deadline() - self._now()) / NANOSECONDS))
            self._perform(self.router.on_time(now=self._now()))

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._enqueue(effect)
            elif isinstance(effect, Deliver):
                message = effect.message
                self._hand_over(message.topic, message.data, forwarder=effect.forwarder, source=message.source)
            elif isinstance(effect, Disconnect) and self._nursery is not None:
                self._nursery.start_soon(self._disconnect, ID(effect.peer), effect.why)

    def _enqueue(self, effect: Send) -> None:
        """One encoding for all. What the mesh needs has room of its own."""
        frame = encode_frame(encode_rpc(effect.rpc))
        is_control = _is_control(effect.rpc)
        for peer in effect.peers:
            speaker = self._speakers.get(peer)
            if speaker is not None and speaker.put(frame, is_control=is_control):
                self._neighbours_reached += 1
            else:
                self.dropped_rpcs += 1

    def _hand_over(self, topic: str, data: bytes, *, forwarder: bytes, source: bytes) -> None:
        entry = self._topics.get(topic)
        if entry is not None and entry.feed.put_nowait(
            GossipMessage(topic=topic, data=data, forwarder=self._name(forwarder), source=self._name(source))
        ):
            self._counters.gossip_received += 1

    def _verify(self, message: Message) -> bool:
        if is_signed_by_source(message):
            return True
        self._counters.gossip_rejected += 1
        return False

    def _judge(self, forwarder: bytes, message: Message) -> RouterVerdict:
        entry = self._topics.get(message.topic)
        if entry is None:
            return RouterVerdict.IGNORE
        try:
            verdict = entry.validator(self._name(forwarder), message.data)
        except Exception as error:  # a validator's bug must not blame a peer
            log.warning("gossip.validator_failed", extra={"error": type(error).__name__})
            verdict = Verdict.IGNORE
        if verdict is Verdict.REJECT:
            self._counters.gossip_rejected += 1
        elif verdict is Verdict.IGNORE:
            self._counters.gossip_ignored += 1
        return _VERDICTS[verdict]

    def _name(self, peer: bytes) -> PeerId:
        name = self._names.get(peer)
        if name is None:
            if len(self._names) >= NAMES_MAX:
                self._names.clear()
            name = self._names[peer] = peer_id_of_bytes(peer)
        return name

    async def _disconnect(self, peer_id: ID, why: str) -> None:
        log.debug("gossip.peer_dropped", extra={"peer": str(peer_id), "why": why})
        await self._swarm.send_away(peer_id, for_s=BANNED_S)


class _Notifee:
    """What the swarm tells of connections; everything else it tells is for others."""

    def __init__(self, gossip: Gossip) -> None:
        self._gossip = gossip

    async def connected(self, network: Any, connection: Any) -> None:
        self._gossip.connected(connection.muxed_conn.peer_id)

    async def disconnected(self, network: Any, connection: Any) -> None:
        self._gossip.disconnected(connection.muxed_conn.peer_id)

    async def _nothing(self, *_: Any) -> None:
        return None

    opened_stream = closed_stream = listen = listen_close = _nothing


def _is_control(rpc: Rpc) -> bool:
    return bool(rpc.subscriptions or rpc.graft or rpc.prune)


def _public_host(remote: tuple[str, int] | None) -> str | None:
    """The address for P6. Private ones (a development network, a NAT) say nothing about who shares them."""
    if remote is None:
        return None
    return remote[0] if ipaddress.ip_address(remote[0]).is_global else None
