"""Ways of lying as a server of the DHT, and what must hold among honest nodes meanwhile. For the attack suite."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.stream_muxer.exceptions import MuxedStreamEOF

import p2p
from p2p.driver.negotiate import propose
from p2p.framing import FrameReader, encode_frame
from p2p.identity import peer_id_to_bytes
from p2p.kad import KadMessage, KadPeer, Kind, Record, decode_message, encode_message
from p2p.testing.contract.tools import key_of, settings

KAD = p2p.NodeSettings().kad_prefix
HONEST = 6
LIARS_PER_LIE = 2
ROUNDS = 5  # of three lookups each by each asker
LIES_HEARD_MAX = 5  # by one asker from one liar: the third is one too many, and two may be under way by then
CLOSED_PORT = b"\x04\x7f\x00\x00\x01\x06\x00\x01"
PING = KadMessage(kind=Kind.PING)

Lie = Callable[[KadMessage, random.Random], bytes]
"""A question → what is written on the stream, framing included."""


class Good:
    """A value is good if it says so."""

    def validate(self, key: bytes, value: bytes) -> None:
        if not value.startswith(b"good"):
            raise p2p.RecordInvalid("not good")

    def select(self, key: bytes, values: list[bytes]) -> int:
        return max(range(len(values)), key=lambda place: values[place])


def framed(message: KadMessage) -> bytes:
    return encode_frame(encode_message(message))


def dead_peers(question: KadMessage, rng: random.Random) -> bytes:
    """Twenty peers that do not exist. Honest peers whose neighbours have died say the same: no offence."""
    closer = tuple(KadPeer(bytes.fromhex("002408011220") + rng.randbytes(32), (CLOSED_PORT,)) for _ in range(20))
    return framed(KadMessage(kind=question.kind, key=question.key, closer=closer))


def invented_providers(question: KadMessage, rng: random.Random) -> bytes:
    """Everything has twenty providers. Who is one shows only when they are asked for what they provide: no offence."""
    many = tuple(KadPeer(bytes.fromhex("002408011220") + rng.randbytes(32), (CLOSED_PORT,)) for _ in range(5))
    return framed(KadMessage(kind=question.kind, key=question.key, providers=many))


def garbage(question: KadMessage, rng: random.Random) -> bytes:
    return encode_frame(b"\x0f" + rng.randbytes(rng.randrange(1, 2000)))


def oversized(question: KadMessage, rng: random.Random) -> bytes:
    return b"\xff\xff\xff\x7f" + rng.randbytes(1000)


def another_kind(question: KadMessage, rng: random.Random) -> bytes:
    return framed(PING)


def another_question(question: KadMessage, rng: random.Random) -> bytes:
    return framed(KadMessage(kind=question.kind, key=rng.randbytes(34)))


def peers_that_are_none(question: KadMessage, rng: random.Random) -> bytes:
    return framed(KadMessage(kind=question.kind, key=question.key, closer=(KadPeer(rng.randbytes(20)),)))


def false_records(question: KadMessage, rng: random.Random) -> bytes:
    keys = (question.key, b"/v/another")
    record = Record(rng.choice(keys), b"bad") if question.kind is Kind.GET_VALUE else None
    return framed(KadMessage(kind=question.kind, key=question.key, record=record))


OFFENCES: list[Lie] = [garbage, oversized, another_kind, another_question, peers_that_are_none, false_records]
LIES: list[Lie] = [dead_peers, invented_providers, *OFFENCES]


def answer_with(lie: Lie, rng: random.Random, told: Counter[bytes]) -> Callable[[Any], Awaitable[None]]:
    """`told`: how often each asker was lied to, by this liar."""

    async def answer(stream: Any) -> None:
        reader = FrameReader(frame_bytes_max=1 << 17)
        while True:
            try:
                reader.feed(await stream.muxed_stream.read(1 << 16))
            except MuxedStreamEOF:
                await stream.close()  # an error here would reset the stream, and the lie with it
                return
            while (frame := reader.next_frame()) is not None:
                question = decode_message(frame)
                await stream.muxed_stream.write(lie(question, rng))
                if lie is not false_records or question.kind is Kind.GET_VALUE:
                    told[stream.muxed_conn.peer_id.to_bytes()] += 1

    return answer


async def ask(node: Any, target: Any, *questions: KadMessage) -> list[KadMessage]:
    """Raw questions on one stream, and a ping behind them; the answers until the stream ends. ADD_PROVIDER has none, so
    an empty list says that something was refused."""
    addresses = [p2p.addresses.parse_address(text).without_peer for text in target.addresses()]
    answers: list[KadMessage] = []
    stream = None
    try:
        connection = await node.host.get_network().dial(target.host.get_id(), addresses)
        stream = await connection.muxed_conn.open_stream()
        await propose(stream, KAD)
        reader = FrameReader(frame_bytes_max=1 << 17)
        for question in (*questions, PING):
            await stream.write(framed(question))
            while question.kind is not Kind.ADD_PROVIDER and len(answers) <= len(questions):
                if (frame := reader.next_frame()) is not None:
                    answers.append(decode_message(frame))
                    break
                reader.feed(await stream.read(1 << 16))
    except Exception:  # the stream was reset, or we were thrown out
        pass
    if stream is not None:
        await stream.reset()
    return answers


async def honest_and_liars(
    stack: AsyncExitStack, lies: Sequence[Lie], *, seed: int
) -> tuple[list[Any], list[tuple[Lie, Any, Counter[bytes]]]]:
    """Nodes that all know one of the honest; and the liars, with whom they lied to."""
    first = await stack.enter_async_context(
        p2p.open_node(settings(validators={"v": Good()}), key=key_of(f"dht {seed} first"))
    )
    honest: list[Any] = [first]
    known = settings(first, validators={"v": Good()})
    for number in range(HONEST):
        honest.append(await stack.enter_async_context(p2p.open_node(known, key=key_of(f"dht {seed} {number}"))))
    liars: list[tuple[Lie, Any, Counter[bytes]]] = []
    for lie in lies:
        for number in range(LIARS_PER_LIE):
            name = f"{lie.__name__} {seed} {number}"
            liar: Any = await stack.enter_async_context(p2p.open_node(settings(first), key=key_of(name)))
            told: Counter[bytes] = Counter()
            liar.host.set_stream_handler(TProtocol(KAD), answer_with(lie, random.Random(name), told))
            liars.append((lie, liar, told))
    for node in (*honest[1:], *(liar for _, liar, _ in liars)):
        await node.wait_connected(timeout_s=20)
    await trio.sleep(1)  # for identify
    return honest, liars


async def patiently(call: Callable[[], Awaitable[Any]]) -> Any:
    """A starved machine needs more than thirty seconds for a lookup now and then, whoever lies."""
    for _ in range(2):
        try:
            return await call()
        except p2p.DhtFailed as error:
            print(f"once more: {error}")
    return await call()


async def under_liars(lies: Sequence[Lie], *, seed: int) -> int:
    """Look things up while others lie. Asserts what must hold; returns how many lookups there were."""
    async with AsyncExitStack() as stack:
        honest, liars = await honest_and_liars(stack, lies, seed=seed)
        key = hashlib.sha256(b"a model %d" % seed).digest()
        await patiently(lambda: honest[1].provide(key))
        await patiently(lambda: honest[2].put_value(b"/v/x", b"good"))
        lookups = 0
        askers = honest[3:]
        for turn in range(ROUNDS):
            for node in askers:
                found = await patiently(lambda node=node: node.find_providers(key, count_max=64))
                assert honest[1].peer in {info.peer for info in found}, "a provider is hidden"
                value = await patiently(lambda node=node: node.get_value(b"/v/x"))
                assert value == b"good", "a value is hidden"
                nothing = await patiently(lambda node=node, turn=turn: node.get_value(b"/v/none %d" % turn))
                assert nothing is None, "a value is invented"
                lookups += 3
        honest_ids = {peer_id_to_bytes(node.peer) for node in honest}
        all_ids = honest_ids | {peer_id_to_bytes(liar.peer) for _, liar, _ in liars}
        blamed: set[bytes] = set()
        for node in honest:
            machine = node.dht.node
            banned = machine.offences.banned(now=node.dht._now())
            assert not banned & honest_ids, "an honest peer is blamed"
            in_table = {entry.peer for entry in machine.table}
            assert in_table <= all_ids, "hearsay is in the table"
            assert not in_table & banned, "who is banned is in the table"
            blamed |= banned | machine.offences._counts.keys()
        for lie, liar, told in liars:
            if lie in OFFENCES:
                assert peer_id_to_bytes(liar.peer) in blamed, f"{lie.__name__} goes unnoticed"
                assert max(told.values()) <= LIES_HEARD_MAX, f"{lie.__name__} is asked again and again"
        return lookups
