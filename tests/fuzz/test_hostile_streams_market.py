"""Two hundred malformed streams on each of Cocoon's own protocols, against nodes that serve a good client meanwhile.

Random bytes, truncated messages, wrong order, floods, and streams that are left open: the nodes stay up, keep no state
of it, and the good client's answers are right.
"""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from cocoon.errors import CocoonError
from cocoon.exchange import OFFERS_PROTOCOL
from cocoon.ports import PeerAddresses
from cocoon.pump import SESSION_PROTOCOL
from cocoon.types import ton
from cocoon.wire.codec import encode
from cocoon.wire.messages import (
    Accepted,
    Cancel,
    Credit,
    Goodbye,
    Hello,
    OffersQuery,
    OffersReply,
    Open,
    Ping,
    Pong,
    Refused,
    Reserve,
)
from tests.fakes.engine import ScriptedEngine
from tests.fakes.little_market import ask, open_market

STREAMS = 200
TEXT = "the quick brown fox jumps over the lazy dog"

HELLO = Hello(version=1, network=-217, nonce=bytes(32), client_nonce=bytes(32))
GOOD = [
    HELLO,
    Open(
        id=1,
        session_prefix=bytes(8),
        header=b"\x80",
        wait_ms_max=1,
        credit_bytes=1 << 20,
        sealed=bytes(64),
        voucher=b"",
    ),
    Accepted(id=1, salt=bytes(32), queue_position=0),
    Refused(id=1, reason="busy", retry_after_ms=0, detail=""),
    Credit(id=9, total_bytes=1 << 40),
    Cancel(id=3),
    Ping(token=1),
    Pong(token=2),
    Goodbye(reason="draining"),
    Reserve(ceiling_nano=1),
    OffersQuery(model=bytes(32)),
    OffersReply(offers=[bytes(10)] * 3, beacons=[]),
]


def malformed(dice: random.Random) -> list[bytes]:
    """The frames of one hostile stream."""
    kind = dice.randrange(6)
    valid = [encode(message) for message in GOOD]
    if kind == 0:
        return [dice.randbytes(dice.randrange(0, 3_000)) for _ in range(dice.randrange(1, 4))]
    if kind == 1:
        whole = dice.choice(valid)
        return [whole[: dice.randrange(len(whole))]]
    if kind == 2:
        flipped = bytearray(dice.choice(valid))
        for _ in range(dice.randrange(1, 4)):
            flipped[dice.randrange(len(flipped))] ^= 1 << dice.randrange(8)
        return [bytes(flipped)]
    if kind == 3:
        return [dice.choice(valid) for _ in range(dice.randrange(1, 12))]
    if kind == 4:
        return [encode(HELLO)] * dice.randrange(2, 30)
    return [encode(Ping(token=n)) for n in range(300)] + [b""]


@pytest.mark.parametrize("protocol", [SESSION_PROTOCOL, OFFERS_PROTOCOL])
def test_two_hundred_malformed_streams_leave_the_nodes_alive_and_a_good_client_served(protocol):
    async def scenario():
        dice = random.Random(protocol)
        async with open_market() as market:
            provider = await market.add_provider("provider", ScriptedEngine(token_s=0.05))
            client = await market.add_client()
            attacker = await market.network("attacker")
            target = PeerAddresses(peer=provider.network.peer, addresses=provider.network.addresses())
            at_once = trio.CapacityLimiter(4)
            answers = 0
            attacked = False

            async def attack(frames: list[bytes]) -> None:
                async with at_once:
                    try:
                        stream = await attacker.open_stream(target, protocol, frame_bytes_max=1 << 20)
                    except CocoonError:
                        return  # over its quota
                    try:
                        for frame in frames:
                            await stream.send(frame)
                        with trio.move_on_after(dice.choice([0, 0.01, 0.5])):
                            while await stream.receive() is not None:
                                pass
                    except CocoonError:
                        pass
                    finally:
                        with trio.CancelScope(shield=True):
                            await stream.aclose()

            async def good_client() -> None:
                nonlocal answers
                while not attacked or answers < 3:
                    async with client.generate("chat.completions", ask(), spend_max_nano=ton("1")) as reply:
                        assert "".join([delta.text async for delta in reply]) == TEXT
                    answers += 1

            async with trio.open_nursery() as outer:
                outer.start_soon(good_client)
                async with trio.open_nursery() as nursery:
                    for _ in range(STREAMS):
                        nursery.start_soon(attack, malformed(dice))
                attacked = True
            assert answers >= 3
            await trio.sleep(60)
            assert provider.role.sessions_open == 1  # the good client's; nothing of the attacker's is kept
            assert provider.role.record.running == 0
            print(f"{STREAMS} malformed streams on {protocol}; {answers} good answers meanwhile")

    trio.run(scenario, clock=MockClock(autojump_threshold=0))
