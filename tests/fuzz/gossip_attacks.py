"""Ways of being a bad gossip peer, each as an endless task on a raw stream to one victim. For the attack suite."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import trio
from libp2p.custom_types import TProtocol

import p2p
from p2p.driver.negotiate import propose
from p2p.framing import FrameReader, encode_frame
from p2p.gossip import PROTOCOL_V11, PROTOCOL_V12, PROTOCOLS, Message, Prune, Rpc, RpcDecoder, encode_rpc, signer
from p2p.gossip.messages import SIGN_PREFIX, new_message, with_signature
from p2p.identity import peer_id_to_bytes
from p2p.testing.contract.tools import key_of, settings

TOPIC = "attacked"
PAUSE_S = 0.02  # between writes: attackers and attacked share one processor here
HEARD_MAX = 1000
NEVER_S = 3600.0  # nobody asks to be dialled back: a dial of the victim's is to be somebody's doing


class Attacker:
    """A node without gossip of its own, that says whatever it likes on a gossip stream."""

    def __init__(self, node: Any, seed: bytes, victim: Any, rng: random.Random) -> None:
        self.node = node
        self.me = peer_id_to_bytes(node.peer)
        self.victim = victim
        self.rng = rng
        self.sign = signer(seed)
        self.heard: list[bytes] = []  # ids of what the victim sent us
        self.ihave: list[bytes] = []
        self.seqno = rng.getrandbits(60)
        for protocol in PROTOCOLS:
            node.host.set_stream_handler(TProtocol(protocol), self._listen)

    async def _listen(self, stream: Any) -> None:
        reader, decoder = FrameReader(frame_bytes_max=1 << 20), RpcDecoder(message_bytes_max=1 << 16)
        while len(self.heard) < HEARD_MAX:
            reader.feed(await stream.muxed_stream.read(1 << 16))
            while (frame := reader.next_frame()) is not None:
                self.heard += [self._id(message) for message in decoder.decode(frame).messages]

    @staticmethod
    def _id(message: Message) -> bytes:
        return p2p.gossip.id_of_whole_message(message)

    async def open(self) -> Any:
        peer_id = self.victim.host.get_id()
        addresses = [p2p.addresses.parse_address(text).without_peer for text in self.victim.addresses()]
        connection = await self.node.host.get_network().dial(peer_id, addresses)
        stream = await connection.muxed_conn.open_stream()
        await propose(stream, self.rng.choice((PROTOCOL_V11, PROTOCOL_V12)))
        return stream

    def message(self, data: bytes, *, is_good: bool) -> Message:
        self.seqno += 1
        message = new_message(source=self.me, data=data, seqno=self.seqno.to_bytes(8, "big"), topic=TOPIC)
        return with_signature(message, self.sign(SIGN_PREFIX + message.signed) if is_good else bytes(64))

    def ids(self, count: int) -> tuple[bytes, ...]:
        return tuple(self.rng.randbytes(32) for _ in range(count))


def score_of(victim: Any, peer: str) -> float:
    """What the victim thinks of a peer, also after it has gone."""
    router = victim.gossip.router
    raw = peer_id_to_bytes(peer)
    retained = router.state.scores._retained.get(raw)
    return float(router.score(raw) if retained is None else retained.value)


Speak = Callable[[Attacker, int], Rpc | bytes | None]
"""What to say in one turn: an RPC, bytes that are none, or nothing."""


def graft_flood(attacker: Attacker, turn: int) -> Rpc:
    return Rpc(graft=(TOPIC, *(f"{turn} {number}" for number in range(300))))


def grafts_in_the_backoff(attacker: Attacker, turn: int) -> Rpc:
    return Rpc(graft=(TOPIC,)) if turn % 2 else Rpc(prune=(Prune(TOPIC),))


def ihave_spam(attacker: Attacker, turn: int) -> Rpc:
    return Rpc(ihave=((TOPIC, attacker.ids(500)),))


def broken_promises(attacker: Attacker, turn: int) -> Rpc | None:
    return Rpc(ihave=((TOPIC, attacker.ids(2)),)) if turn % 10 == 0 else None


def iwant_flood(attacker: Attacker, turn: int) -> Rpc | None:
    known = attacker.heard[-50:]
    return Rpc(iwant=tuple(known) + attacker.ids(500)) if known else None


def fake_peer_exchange(attacker: Attacker, turn: int) -> Rpc:
    peers = tuple((attacker.rng.randbytes(38), attacker.rng.randbytes(200)) for _ in range(16))
    return Rpc(prune=tuple(Prune(TOPIC, 1, peers) for _ in range(64)))


def too_many_topics(attacker: Attacker, turn: int) -> Rpc:
    return Rpc(subscriptions=tuple((True, f"{turn} {number}") for number in range(100)))


def topics_that_come_and_go(attacker: Attacker, turn: int) -> Rpc:
    return Rpc(subscriptions=tuple((number % 2 == 0, TOPIC) for number in range(500)))


def oversized_subscriptions(attacker: Attacker, turn: int) -> Rpc:
    return Rpc(subscriptions=tuple((True, "x" * 200 + str(number)) for number in range(600)))


def forged_messages(attacker: Attacker, turn: int) -> Rpc:
    return Rpc(messages=tuple(attacker.message(attacker.rng.randbytes(100), is_good=False) for _ in range(20)))


def refused_messages(attacker: Attacker, turn: int) -> Rpc:
    return Rpc(messages=tuple(attacker.message(b"refuse me %d" % number, is_good=True) for number in range(20)))


def nonsense(attacker: Attacker, turn: int) -> bytes:
    return attacker.rng.randbytes(50)


ATTACKS: tuple[Speak, ...] = (
    graft_flood,
    grafts_in_the_backoff,
    ihave_spam,
    broken_promises,
    iwant_flood,
    fake_peer_exchange,
    too_many_topics,
    topics_that_come_and_go,
    oversized_subscriptions,
    forged_messages,
    refused_messages,
    nonsense,
)


async def attack(
    speak: Speak, victim: Any, *, seed: int, on_open: Callable[[Any], Awaitable[None] | None] = lambda _: None
) -> None:
    """Until cancelled, or thrown out."""
    name = f"attacker {speak.__name__} {seed}"
    rng = random.Random(name)
    key = hashlib.sha256(key_of(name)).digest()
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(p2p.open_node(settings(gossip=False, check_delay_s=NEVER_S), key=key))
        on_open(node)
        attacker = Attacker(node, key, victim, rng)
        stream: Any = None
        turn = 0
        while True:
            try:
                if stream is None:
                    stream = await attacker.open()
                    await stream.write(encode_frame(encode_rpc(Rpc(subscriptions=((True, TOPIC),), graft=(TOPIC,)))))
                said = speak(attacker, turn)
                turn += 1
                if said is not None:
                    await stream.write(encode_frame(said if isinstance(said, bytes) else encode_rpc(said)))
            except Exception:  # whatever ends the stream; an attacker that was thrown out stays out, to be counted
                stream = None
                worst = victim.gossip.router.state.settings.score.graylist_threshold
                if not node.connections() and score_of(victim, node.peer) < worst:
                    await trio.sleep_forever()
            await trio.sleep(PAUSE_S)
