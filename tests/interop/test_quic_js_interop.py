"""Our QUIC and js-libp2p's (quinn, in Rust) understand each other, whoever dials: streams, gossip, ends, refusals."""

from __future__ import annotations

import base64
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio

import p2p
from p2p.errors import DialFailed, StreamClosed
from p2p.identity import peer_id_of_seed
from p2p.interface import Stream
from p2p.testing.contract.tools import accept_all, eventually, key_of, settings
from tests.interop.js_peer import ECHO, JsError, JsPeer, js_folder, js_peer, js_quic

pytestmark = pytest.mark.slow

LISTEN = "/ip4/127.0.0.1/udp/0/quic-v1"
FRAME_MAX = 4 * 1024 * 1024
FRAMES = [b"", b"small", os.urandom(70_000), os.urandom(1_000_000)]

Scene = Callable[[p2p.Node, JsPeer], Awaitable[None]]
WHO_DIALS = pytest.mark.parametrize("js_dials", [False, True], ids=["we dial", "js dials"])


async def echo_and_last_word(stream: Stream) -> None:
    try:
        while True:
            await stream.send(await stream.receive())
    except StreamClosed:
        await stream.send(b"after your end")


def play(scene: Scene, *, js_dials: bool) -> None:
    """One scene between two peers that have nothing but QUIC."""

    async def main() -> None:
        with trio.fail_after(90):
            async with (
                p2p.open_node(settings(listen=(LISTEN,)), key=key_of("ours")) as node,
                js_peer(listen=[LISTEN], quic=js_quic()) as js,
            ):
                node.handle(ECHO, echo_and_last_word, frame_bytes_max=FRAME_MAX, streams_per_peer_max=64)
                if js_dials:
                    await js.ask("dial", address=node.addresses()[0])
                else:
                    await node.connect(js.peer, js.addresses)
                await scene(node, js)

    js_folder()  # these two skip here, outside of any nursery
    js_quic()
    trio.run(main)


@WHO_DIALS
def test_each_side_knows_who_the_other_is_and_pongs(js_dials: bool) -> None:
    async def scene(node: p2p.Node, js: JsPeer) -> None:
        await eventually(node.connections, "we have heard its last word")  # a dialer is done before the listener
        assert "/quic-v1" in node.connections()[0].address
        known: dict[str, list[str]] = {"protocols": []}
        with trio.fail_after(20):
            while ECHO not in known["protocols"]:
                with suppress(JsError):  # it has not heard of us yet
                    known = await js.ask("known", peer=node.peer)
                await trio.sleep(0.05)
        assert node.addresses()[0].split("/p2p/")[0] in known["addresses"]
        await eventually(lambda: "js-libp2p" in (node.connections()[0].agent or ""), "we identify js")
        assert (await js.ask("ping", peer=node.peer))["ms"] < 5_000

    play(scene, js_dials=js_dials)


@WHO_DIALS
def test_frames_go_both_ways_and_each_half_ends_by_itself(js_dials: bool) -> None:
    async def scene(node: p2p.Node, js: JsPeer) -> None:
        stream = await node.open_stream(js.peer, ECHO, frame_bytes_max=FRAME_MAX)
        for frame in FRAMES:
            await stream.send(frame)
            assert await stream.receive() == frame
        await stream.close_write()
        assert await stream.receive() == b"after your end"
        with pytest.raises(StreamClosed):
            await stream.receive()
        await stream.aclose()
        assert await js.echo(node.peer, FRAMES) == [*FRAMES, b"after your end"]

    play(scene, js_dials=js_dials)


@WHO_DIALS
def test_three_hundred_streams_one_after_the_other_and_forty_at_once(js_dials: bool) -> None:
    """More than either side allows to be open at one time: places are given back."""

    async def scene(node: p2p.Node, js: JsPeer) -> None:
        for number in range(300):
            async with await node.open_stream(js.peer, ECHO, frame_bytes_max=FRAME_MAX) as stream:
                await stream.send(b"%d" % number)
                assert await stream.receive() == b"%d" % number

        async def ours(number: int) -> None:
            async with await node.open_stream(js.peer, ECHO, frame_bytes_max=FRAME_MAX) as stream:
                await stream.send(b"%d" % number)
                assert await stream.receive() == b"%d" % number

        async def theirs(number: int) -> None:
            assert await js.echo(node.peer, [b"%d" % number]) == [b"%d" % number, b"after your end"]

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ours, number)
                nursery.start_soon(theirs, number)

    play(scene, js_dials=js_dials)


@WHO_DIALS
def test_signed_gossip_goes_both_ways(js_dials: bool) -> None:
    async def scene(node: p2p.Node, js: JsPeer) -> None:
        await js.ask("subscribe", topic="t")
        subscription = await node.subscribe("t", accept_all)
        with trio.fail_after(15):
            while node.peer not in (await js.ask("subscribers", topic="t"))["peers"]:
                await trio.sleep(0.05)
            while not await node.publish("t", b"ours"):
                await trio.sleep(0.05)
        await js.ask("publish", topic="t", data=base64.b64encode(b"theirs").decode())
        with trio.fail_after(10):
            while (await anext(subscription)).data != b"theirs":
                continue
        await eventually(lambda: b"ours" in js.heard("t"), "js hears ours")

    play(scene, js_dials=js_dials)


def test_neither_takes_the_other_for_somebody_else() -> None:
    stranger = peer_id_of_seed(key_of("stranger"))

    async def scene(node: p2p.Node, js: JsPeer) -> None:
        await node.disconnect(js.peer)
        with pytest.raises(DialFailed, match="another peer answered"):
            await node.connect(stranger, [address.split("/p2p/")[0] for address in js.addresses])
        with pytest.raises(JsError):
            await js.ask("dial", address=node.addresses()[0].split("/p2p/")[0] + f"/p2p/{stranger}")

    play(scene, js_dials=False)
