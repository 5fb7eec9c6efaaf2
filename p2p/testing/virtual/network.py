"""A network of gossip routers and DHT nodes in virtual time.

    network = VirtualNetwork(seed=1)
    peers = [network.add(f"node {number}") for number in range(1000)]
    network.connect(peers[0], peers[1]); peers[0].join("topic")
    network.run(seconds=10)
    network.faults.loss = 0.01; network.faults.partition([...], [...])
    network.digest()                # one hash of everything that happened

Messages are the machines' own values, charged with the size of their encoding; nothing is encoded or copied. One event
happens at a time, ordered by its time and then by when it was sent, and everything random is drawn from the seed: so a
seed gives one trace, in every process, whatever PYTHONHASHSEED is. Machines, settings and effects are those that the
libp2p driver runs.

What is simplified: a message is whole or lost; a connection stands at once, and when it is cut both sides see it; a DHT
question needs no connection, as if dialled and closed again, and takes two round trips.
Not here: queues and their bounds (the driver's), streams, relays, NATs.
"""

from __future__ import annotations

import gc
import hashlib
import heapq
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from p2p import gossip
from p2p.gossip import GossipSettings, Message, Rpc, rpc_bytes
from p2p.interface import RecordValidator
from p2p.kad import Ask, GroupsOf, KadMessage, KadSettings, message_bytes, network_groups
from p2p.testing.virtual.faults import NANOSECONDS, Faults
from p2p.testing.virtual.peer import VirtualPeer

EVENTS_PER_COLLECTION = 2_000_000  # machines make next to no garbage that counting references does not free
START = 1_700_000_000 * NANOSECONDS  # some time: machines take it for the time since the epoch


@contextmanager
def _collector_paused() -> Iterator[bool]:
    """Thousands of machines are millions of objects that live as long as the network, and the garbage collector would
    look at all of them again and again: a third of the time at 10,000 nodes. Yields whether it was on."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield was_enabled
    finally:
        if was_enabled:
            gc.enable()


class VirtualNetwork:
    def __init__(
        self,
        *,
        seed: object = 0,
        faults: Faults | None = None,
        gossip_settings: GossipSettings | None = None,
        kad_settings: KadSettings | None = None,
        validators: Mapping[str, RecordValidator] | None = None,
        groups_of: GroupsOf = network_groups,
        has_dht: bool = True,
    ) -> None:
        """The settings are those of every peer, unless `add` is told otherwise. `has_dht=False` leaves the DHT's upkeep
        out: in a network of thousands it is most of the work."""
        self.now = START
        self.faults = faults or Faults()
        self.peers: dict[bytes, VirtualPeer] = {}
        self.events = 0
        self._collect_at = EVENTS_PER_COLLECTION
        self.messages = 0
        self.bytes = 0
        self.lost = 0
        self._seed = seed
        self._gossip_settings = gossip_settings or GossipSettings()
        self._kad_settings = kad_settings or KadSettings()
        self._validators = validators or {}
        self._groups_of = groups_of
        self.has_dht = has_dht
        self._sized: tuple[Rpc, int] = (Rpc(), 0)  # the last one: it goes to several peers
        self._rng = random.Random(f"{seed}/network")  # noqa: S311 - no secrets in a simulation
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._timers: dict[bytes, int] = {}  # when each peer is woken next
        self._busy_until: dict[tuple[bytes, bytes], int] = {}  # of each direction: messages keep their order
        self._trace = hashlib.sha256()

    # --- the world ---------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        *,
        host: str | None = None,
        kind: type[VirtualPeer] = VirtualPeer,
        gossip_settings: GossipSettings | None = None,
        kad_settings: KadSettings | None = None,
        sign: Callable[[bytes], bytes] | None = None,
        verify: Callable[[Message], bool] | None = None,
        validate: gossip.Validate = gossip.accept_all,
        peer_id: bytes | None = None,
    ) -> VirtualPeer:
        """`host`: its IPv4 address; by default each peer has a /24 of its own."""
        number = len(self.peers)
        peer = kind(
            self,
            name,
            host=host or f"{11 + (number >> 16)}.{number >> 8 & 255}.{number & 255}.1",
            seed=self._seed,
            gossip_settings=gossip_settings or self._gossip_settings,
            kad_settings=kad_settings or self._kad_settings,
            validators=self._validators,
            groups_of=self._groups_of,
            sign=sign,
            verify=verify,
            validate=validate,
            peer_id=peer_id,
        )
        if peer.peer in self.peers:
            raise ValueError(f"{name} is in this network")
        self.peers[peer.peer] = peer
        # Heartbeats are spread over their interval, as those of machines that started at different times are.
        interval = int((gossip_settings or self._gossip_settings).heartbeat_s * NANOSECONDS)
        peer.router.state.next_heartbeat = self.now + self._rng.randrange(interval)
        self.reschedule(peer)
        return peer

    def connect(self, dialer: VirtualPeer, listener: VirtualPeer) -> bool:
        """False when that is impossible, or so already. Both know of it at once."""
        if (
            dialer is listener
            or listener.peer in dialer.links
            or not (dialer.is_up and listener.is_up)
            or not self.faults.can_reach(dialer.peer, listener.peer)
        ):
            return False
        self.note(b"connect", dialer.peer, listener.peer)
        dialer.on_connected(listener, is_outbound=True)
        listener.on_connected(dialer, is_outbound=False)
        return True

    def disconnect(self, a: bytes, b: bytes) -> None:
        one, other = self.peers[a], self.peers[b]
        if b in one.links:
            self.note(b"disconnect", a, b)
            one.on_disconnected(b)
            other.on_disconnected(a)

    def partition(self, *groups: list[VirtualPeer]) -> None:
        """`Faults.partition`, and connections between the groups end."""
        self.faults.partition(*([peer.peer for peer in group] for group in groups))
        for peer in list(self.peers.values()):
            for other in list(peer.links):
                if not self.faults.can_reach(peer.peer, other):
                    self.disconnect(peer.peer, other)

    def crash(self, peer: VirtualPeer) -> None:
        """Gone for good: it answers nothing, and its connections end."""
        peer.is_up = False
        for other in list(peer.links):
            self.disconnect(peer.peer, other)

    # --- time --------------------------------------------------------------------------------------------

    def after(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        self._push(self.now + int(seconds * NANOSECONDS), call, *arguments)

    def run(self, *, seconds: float) -> None:
        until = self.now + int(seconds * NANOSECONDS)
        with _collector_paused() as collects:
            heap = self._heap
            while heap and heap[0][0] <= until:
                self.now, _, call, arguments = heapq.heappop(heap)
                self.events += 1
                call(*arguments)
                if self.events >= self._collect_at:
                    self._collect_at = self.events + EVENTS_PER_COLLECTION
                    if collects:
                        gc.collect()
        self.now = until

    def reschedule(self, peer: VirtualPeer) -> None:
        """Its deadline may have come nearer."""
        at = max(self.now, peer.deadline())
        known = self._timers.get(peer.peer)
        if known is None or at < known:
            self._timers[peer.peer] = at
            self._push(at, self._wake, peer, at)

    def _wake(self, peer: VirtualPeer, at: int) -> None:
        if self._timers.get(peer.peer) != at or not peer.is_up:
            return  # an earlier wake-up has taken its place
        del self._timers[peer.peer]
        if self.now >= peer.deadline():
            self.note(b"time", peer.peer)
            peer.on_time()
        self.reschedule(peer)

    def _push(self, at: int, call: Callable[..., None], *arguments: Any) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at, self._order, call, arguments))

    # --- the trace ---------------------------------------------------------------------------------------

    def note(self, what: bytes, *parts: bytes) -> None:
        self._trace.update(b"%d %b %b\n" % (self.now, what, b" ".join(parts)))

    def digest(self) -> str:
        """Of every message, wake-up, delivery and connection so far, with its time."""
        return self._trace.hexdigest()

    # --- messages ----------------------------------------------------------------------------------------

    def send_rpc(self, source: VirtualPeer, target: bytes, rpc: Rpc) -> None:
        if target not in source.links:
            return
        sized, size = self._sized
        if sized is not rpc:
            size = rpc_bytes(rpc)
            self._sized = (rpc, size)
        faults = self.faults
        if faults.is_fair:  # `_arrival` without its questions: nearly every message goes this way
            self.messages += 1
            self.bytes += size
            at = self.now + faults.delay(source.peer, target, self._rng)
            pair = (source.peer, target)
            earliest = self._busy_until.get(pair, 0)
            if at < earliest:
                at = earliest
            self._busy_until[pair] = at
        else:
            arrival = self._arrival(source.peer, target, size)
            if arrival is None:
                return
            at = arrival
        self._order += 1
        heapq.heappush(self._heap, (at, self._order, self._deliver_rpc, (source.peer, target, rpc)))

    def _deliver_rpc(self, source: bytes, target: bytes, rpc: Rpc) -> None:
        peer = self.peers[target]
        if source in peer.links and peer.is_up:
            self._trace.update(b"%d rpc %b %b\n" % (self.now, source, target))
            peer.on_rpc(source, rpc)

    def ask(self, source: VirtualPeer, ask: Ask) -> None:
        """The asker hears of every question: an answer, or that there is none."""
        limit = self.now + int(source.kad.settings.request_timeout_s * NANOSECONDS)
        target = self.peers.get(ask.peer.peer)
        if target is None or not target.is_up:
            at = self.now + 2 * self.faults.delay(source.peer, ask.peer.peer, self._rng)
            self._push(min(at, limit), self._answer, source, ask.request_id, None)  # refused at once
            return
        at_target = self._arrival(source.peer, target.peer, message_bytes(ask.message), dials=True)
        if at_target is None or at_target >= limit:
            self._push(limit, self._answer, source, ask.request_id, None)
        else:
            self._push(at_target, self._deliver_question, source, target, ask, limit)

    def _deliver_question(self, source: VirtualPeer, target: VirtualPeer, ask: Ask, limit: int) -> None:
        answer = target.on_question(source.peer, ask.message) if target.is_up else None
        if target.is_up and not ask.has_answer:
            answer = KadMessage(kind=ask.message.kind, key=ask.message.key)  # it was delivered, and that is all
        self.reschedule(target)
        self.note(b"ask", source.peer, target.peer, b"%d" % ask.message.kind)
        size = 0 if answer is None else message_bytes(answer)
        at = self._arrival(target.peer, source.peer, size)
        if at is None or at >= limit:
            at, answer = limit, None
        self._push(at, self._answer, source, ask.request_id, answer)

    def _answer(self, source: VirtualPeer, request_id: int, answer: KadMessage | None) -> None:
        if source.is_up:
            self.note(b"answer", source.peer, b"%d" % (-1 if answer is None else len(answer.closer)))
            source.on_answer(request_id, answer)

    def _arrival(self, source: bytes, target: bytes, size: int, *, dials: bool = False) -> int | None:
        """When a message that is sent now arrives; None when it never does."""
        faults, rng = self.faults, self._rng
        self.messages += 1
        self.bytes += size
        if not faults.can_reach(source, target) or faults.is_lost(rng):
            self.lost += 1
            return None
        delay = faults.delay(source, target, rng)
        if dials:
            delay += faults.delay(source, target, rng) + faults.delay(target, source, rng)
        if faults.bytes_per_s is not None:
            delay += int(size / faults.bytes_per_s * NANOSECONDS)
        at = self.now + delay
        if dials or faults.may_overtake(rng):
            return at
        pair = (source, target)
        at = max(at, self._busy_until.get(pair, 0))
        self._busy_until[pair] = at
        return at
