"""Routers over a wire that cuts, delays and reorders between peers: laws that hold whatever happens."""

from __future__ import annotations

import random

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2p.framing import FrameReader, encode_frame
from p2p.gossip import Deliver, Effect, GossipSettings, Router, RpcDecoder, Send, encode_rpc

SECOND = 1_000_000_000
TOPIC = "t"
COUNT = 5
PEERS = [b"peer-%d" % number for number in range(COUNT)]
SETTINGS = GossipSettings(degree=3, degree_low=2, degree_high=4, degree_out=1, degree_score=1)


class Routers(RuleBasedStateMachine):
    """Five routers, real encodings, one ordered byte stream per direction and pair."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000 * SECOND
        self.routers = [
            Router(PEERS[n], settings=SETTINGS, rng=random.Random(n), now=self.now, sign=None, verify=None)
            for n in range(COUNT)
        ]
        self.decoders = [RpcDecoder(message_bytes_max=1000) for _ in range(COUNT)]
        self.wires: dict[tuple[int, int], bytearray] = {}
        self.readers: dict[tuple[int, int], FrameReader] = {}
        self.links: set[frozenset[int]] = set()
        self.delivered: list[list[bytes]] = [[] for _ in range(COUNT)]
        self.published: set[bytes] = set()

    def perform(self, number: int, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                frame = encode_frame(encode_rpc(effect.rpc))
                for peer in effect.peers:
                    self.wires.setdefault((number, PEERS.index(peer)), bytearray()).extend(frame)
            elif isinstance(effect, Deliver):
                self.delivered[number].append(effect.message.data)

    @rule(a=st.integers(0, COUNT - 1), b=st.integers(0, COUNT - 1))
    def connect(self, a: int, b: int) -> None:
        if a != b and frozenset((a, b)) not in self.links:
            self.links.add(frozenset((a, b)))
            for one, other in ((a, b), (b, a)):
                effects = self.routers[one].peer_changed(
                    PEERS[other], connected=True, now=self.now, is_outbound=one == a
                )
                self.perform(one, effects)

    @rule(a=st.integers(0, COUNT - 1), b=st.integers(0, COUNT - 1))
    def disconnect(self, a: int, b: int) -> None:
        if frozenset((a, b)) in self.links and a != b:
            self.links.discard(frozenset((a, b)))
            for one, other in ((a, b), (b, a)):
                self.wires.pop((one, other), None)
                self.readers.pop((one, other), None)
                self.perform(one, self.routers[one].peer_changed(PEERS[other], connected=False, now=self.now))

    @rule(number=st.integers(0, COUNT - 1))
    def join(self, number: int) -> None:
        self.perform(number, self.routers[number].join(TOPIC, now=self.now))

    @rule(number=st.integers(0, COUNT - 1))
    def leave(self, number: int) -> None:
        self.perform(number, self.routers[number].leave(TOPIC, now=self.now))

    @rule(number=st.integers(0, COUNT - 1))
    def publish(self, number: int) -> None:
        data = b"%d of %d" % (len(self.published), number)
        self.published.add(data)
        self.perform(number, self.routers[number].publish(TOPIC, data, now=self.now))

    @rule(pick=st.integers(0, 99), size=st.integers(1, 300))
    def carry(self, pick: int, size: int) -> None:
        full = [pair for pair, wire in self.wires.items() if wire]
        if not full:
            return
        source, target = pair = full[pick % len(full)]
        wire = self.wires[pair]
        reader = self.readers.setdefault(pair, FrameReader(frame_bytes_max=1 << 20))
        reader.feed(bytes(wire[:size]))
        del wire[:size]
        while (frame := reader.next_frame()) is not None:
            rpc = self.decoders[target].decode(frame)
            self.perform(target, self.routers[target].receive(PEERS[source], rpc, now=self.now))

    @rule(milliseconds=st.integers(1, 3000))
    def pass_time(self, milliseconds: int) -> None:
        self.now += milliseconds * 1_000_000
        for number, router in enumerate(self.routers):
            self.perform(number, router.on_time(now=self.now))

    @invariant()
    def nobody_hears_twice_or_what_nobody_said(self) -> None:
        for heard in self.delivered:
            assert len(heard) == len(set(heard))
            assert set(heard) <= self.published

    @invariant()
    def meshes_hold_connected_members_only_and_honest_peers_are_not_blamed(self) -> None:
        for number, router in enumerate(self.routers):
            state = router.state
            for topic, mesh in state.mesh.items():
                for peer, neighbour in mesh.items():
                    assert frozenset((number, PEERS.index(peer))) in self.links
                    assert topic in neighbour.topics
            assert state.counters.invalid_signatures == state.counters.rejected == 0
            assert set(state.scores._peers) == set(state.neighbours)

    def teardown(self) -> None:
        """Connected and joined, everybody hears the next message."""
        for a in range(COUNT):
            self.join(a)
            for b in range(a):
                self.connect(a, b)
        for _ in range(80):
            self.pass_time(1000)
            for _ in range(60):
                self.carry(0, 1 << 16)
        self.publish(0)
        last = b"%d of 0" % (len(self.published) - 1)
        for _ in range(4):
            for _ in range(60):
                self.carry(0, 1 << 16)
            self.pass_time(1000)
        for number in range(1, COUNT):
            assert last in self.delivered[number], f"{number} is deaf"


TestRouters = Routers.TestCase
TestRouters.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
