"""The roles' network over a `p2p` node: same promises, errors in our words, and no foreign `p2p` unnoticed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import nacl.bindings
import pytest
import trio
from trio.testing import MockClock

import p2p
from cocoon.adapters.network import PeerNetwork, _translate, open_network, peer_of_seed
from cocoon.errors import (
    ConfigError,
    DecodeError,
    LimitExceeded,
    LocalProtocolError,
    StreamBroken,
    Unavailable,
)
from cocoon.ports import PeerAddresses, Stream, Verdict
from cocoon.types import Secret
from p2p.testing import MemoryNetwork

SEEDS = [Secret(bytes([number]) * 32) for number in (1, 2)]
PROTOCOL = "/cocoon/test/1"
FRAME_MAX = 1024


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[PeerNetwork, PeerNetwork, PeerAddresses]]:
    memory = MemoryNetwork()
    settings = p2p.NodeSettings(allow_private_addresses=True)
    async with (
        memory.open_node(settings, key=SEEDS[0].reveal()) as one,
        memory.open_node(settings, key=SEEDS[1].reveal()) as two,
    ):
        first, second = PeerNetwork(one, seed=SEEDS[0]), PeerNetwork(two, seed=SEEDS[1])
        yield first, second, PeerAddresses(peer=second.peer, addresses=second.addresses())


def play(story: Callable[[PeerNetwork, PeerNetwork, PeerAddresses], Awaitable[None]]) -> None:
    async def main() -> None:
        async with pair() as (one, two, target):
            await story(one, two, target)

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_peers_id_key_and_signature_belong_together() -> None:
    async def story(one: PeerNetwork, two: PeerNetwork, target: PeerAddresses) -> None:
        assert one.peer == peer_of_seed(SEEDS[0]) != two.peer
        signature = one.sign(b"message")
        assert nacl.bindings.crypto_sign_open(signature + b"message", one.peer_key) == b"message"

    play(story)


def test_frames_go_both_ways_and_a_clean_end_is_none() -> None:
    async def echo(stream: Stream) -> None:
        while (frame := await stream.receive()) is not None:
            await stream.send(frame.upper())
        await stream.aclose()

    async def story(one: PeerNetwork, two: PeerNetwork, target: PeerAddresses) -> None:
        two.handle(PROTOCOL, echo, frame_bytes_max=FRAME_MAX)
        stream = await one.open_stream(target, PROTOCOL, frame_bytes_max=FRAME_MAX)
        assert stream.peer == two.peer
        await stream.send(b"a")
        assert await stream.receive() == b"A"
        await stream.aclose()

    play(story)


def test_a_handler_that_returns_ends_the_stream_cleanly_and_one_that_fails_breaks_it() -> None:
    async def returns(stream: Stream) -> None:
        await stream.receive()

    async def fails(stream: Stream) -> None:
        await stream.receive()
        raise DecodeError("the peer's doing")

    async def story(one: PeerNetwork, two: PeerNetwork, target: PeerAddresses) -> None:
        two.handle(PROTOCOL, returns, frame_bytes_max=FRAME_MAX)
        stream = await one.open_stream(target, PROTOCOL, frame_bytes_max=FRAME_MAX)
        await stream.send(b"x")
        assert await stream.receive() is None

        two.handle(PROTOCOL, fails, frame_bytes_max=FRAME_MAX)
        stream = await one.open_stream(target, PROTOCOL, frame_bytes_max=FRAME_MAX)
        await stream.send(b"x")
        with pytest.raises(StreamBroken):
            await stream.receive()

    play(story)


def test_frames_over_the_bound_are_refused_at_both_ends() -> None:
    async def big(stream: Stream) -> None:
        await stream.send(b"x" * FRAME_MAX)

    async def story(one: PeerNetwork, two: PeerNetwork, target: PeerAddresses) -> None:
        two.handle(PROTOCOL, big, frame_bytes_max=FRAME_MAX)
        stream = await one.open_stream(target, PROTOCOL, frame_bytes_max=FRAME_MAX // 2)
        with pytest.raises(LocalProtocolError):
            await stream.send(b"x" * FRAME_MAX)
        with pytest.raises(LimitExceeded):
            await stream.receive()

    play(story)


def test_nobody_there_is_unavailable_and_says_what_was_tried() -> None:
    async def story(one: PeerNetwork, two: PeerNetwork, target: PeerAddresses) -> None:
        stranger = peer_of_seed(Secret(b"\x09" * 32))
        address = f"/ip4/10.9.9.9/tcp/1/p2p/{stranger}"
        with pytest.raises(Unavailable, match=r"10\.9\.9\.9") as failed:
            await one.connect(PeerAddresses(peer=stranger, addresses=(address,)))
        assert failed.value.retryable
        assert one.dial_failures()[0].peer == stranger
        with pytest.raises(Unavailable):
            await one.open_stream(target, "/cocoon/unheard-of/1", frame_bytes_max=FRAME_MAX)

    play(story)


def test_gossip_is_judged_before_it_is_delivered() -> None:
    async def story(one: PeerNetwork, two: PeerNetwork, target: PeerAddresses) -> None:
        judged: list[tuple[str, bytes]] = []

        def validator(forwarder: str, data: bytes) -> Verdict:
            judged.append((forwarder, data))
            return Verdict.ACCEPT if data == b"good" else Verdict.REJECT

        await one.connect(target)
        heard = await two.subscribe("topic", validator)
        await one.subscribe("topic", lambda forwarder, data: Verdict.ACCEPT)
        await trio.sleep(5)
        assert await one.publish("topic", b"bad") == 1
        assert await one.publish("topic", b"good") == 1
        message = await anext(aiter(heard))
        assert (message.data, message.topic, message.forwarder) == (b"good", "topic", one.peer)
        assert (one.peer, b"bad") in judged

    play(story)


def test_every_error_of_p2p_becomes_one_of_ours() -> None:
    for error in vars(p2p).values():
        if isinstance(error, type) and issubclass(error, p2p.P2PError) and error is not p2p.DialFailed:
            ours = _translate(error("text"))
            assert str(ours) == "text"
            assert isinstance(ours, (StreamBroken, LimitExceeded, LocalProtocolError, Unavailable))


@pytest.mark.parametrize("bootstrap", ["example.org:1", "/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1/p2p/nobody"])
def test_an_address_that_does_not_parse_is_the_persons_to_correct(bootstrap: str) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError) as refused:
            async with open_network(
                seed=SEEDS[0], bootstrap=[bootstrap], serves_dht=False, allow_private_addresses=True
            ):
                raise AssertionError("opened")
        assert "/p2p/12D3KooW" in refused.value.advice

    trio.run(main)


def test_a_foreign_p2p_is_noticed_and_named(tmp_path: Path) -> None:
    (tmp_path / "p2p.py").write_text("mine = True\n")
    ran = subprocess.run(
        [sys.executable, "-c", "import cocoon.adapters.network"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode != 0
    assert "another package named p2p" in ran.stderr
    assert str(tmp_path / "p2p.py") in ran.stderr
