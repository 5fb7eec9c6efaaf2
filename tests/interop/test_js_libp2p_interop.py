"""Our node and js-libp2p understand each other, whoever dials: streams, gossip and the DHT, on loopback."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

import p2p
from p2p.errors import StreamClosed
from p2p.interface import Stream
from p2p.kad import provider_key
from p2p.testing.contract.tools import accept_all, eventually, key_of
from tests.interop.js_peer import ECHO, JsPeer, js_folder, js_peer

pytestmark = pytest.mark.slow

FRAME_MAX = 4 * 1024 * 1024
FRAMES = [b"", b"small", os.urandom(70_000), os.urandom(1_000_000)]
KAD_PREFIX = "/interop/kad/1.0.0"

Scene = Callable[[p2p.Node, JsPeer], Awaitable[None]]


async def echo_and_last_word(stream: Stream) -> None:
    """As the js peer's: every frame back; after the end of the other half one frame more."""
    try:
        while True:
            await stream.send(await stream.receive())
    except StreamClosed:
        await stream.send(b"after your end")


@asynccontextmanager
async def two_peers(
    *, validators: dict[str, p2p.RecordValidator] | None = None, **js_settings: Any
) -> AsyncIterator[tuple[p2p.Node, JsPeer]]:
    js_folder()  # skips here, outside of any nursery
    ours = p2p.NodeSettings(allow_private_addresses=True, kad_prefix=KAD_PREFIX, validators=validators or {})
    with trio.fail_after(90):
        opened = p2p.open_node(ours, key=key_of("ours"))
        async with opened as node, js_peer(kadPrefix=KAD_PREFIX, **js_settings) as js:
            node.handle(ECHO, echo_and_last_word, frame_bytes_max=FRAME_MAX, streams_per_peer_max=16)
            yield node, js


def play(scene: Scene, *, js_dials: bool = False, **js_settings: Any) -> None:
    """One scene between connected peers."""

    async def main() -> None:
        async with two_peers(**js_settings) as (node, js):
            if js_dials:
                await js.ask("dial", address=node.addresses()[0])
            else:
                await node.connect(js.peer, js.addresses)
            await scene(node, js)

    js_folder()
    trio.run(main)


async def js_identified(js: JsPeer, peer: str, protocol: str) -> dict[str, Any]:
    """What js knows about `peer`, once it knows that it speaks `protocol`."""
    known: dict[str, Any] = {"protocols": []}
    with trio.move_on_after(20):
        while protocol not in known["protocols"]:
            known = await js.ask("known", peer=peer)
            await trio.sleep(0.05)
    assert protocol in known["protocols"]
    return known


WHO_DIALS = pytest.mark.parametrize("js_dials", [False, True], ids=["we dial", "js dials"])


@WHO_DIALS
def test_each_side_knows_who_the_other_is_and_pongs(js_dials: bool) -> None:
    async def scene(node: p2p.Node, js: JsPeer) -> None:
        known = await js_identified(js, node.peer, ECHO)
        assert known["agent"] == "cocoon"
        assert known["certified"], "js did not accept our signed peer record"
        assert node.addresses()[0].split("/p2p/")[0] in known["addresses"]
        await eventually(
            lambda: [c.agent or "" for c in node.connections() if "js-libp2p" in (c.agent or "")], "we identify js"
        )
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


def test_forty_streams_at_once_in_both_directions() -> None:
    async def scene(node: p2p.Node, js: JsPeer) -> None:
        async def ours(number: int) -> None:
            async with await node.open_stream(js.peer, ECHO, frame_bytes_max=FRAME_MAX) as stream:
                await stream.send(b"%d" % number)
                assert await stream.receive() == b"%d" % number

        async def theirs(number: int) -> None:
            assert await js.echo(node.peer, [b"%d" % number]) == [b"%d" % number, b"after your end"]

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ours, number)
            for number in range(10):
                nursery.start_soon(theirs, number)

    play(scene)


@WHO_DIALS
def test_signed_gossip_goes_both_ways(js_dials: bool) -> None:
    async def scene(node: p2p.Node, js: JsPeer) -> None:
        await js.ask("subscribe", topic="t")
        subscription = await node.subscribe("t", accept_all)
        await both_hear(node, js, "t")
        for number in range(10):
            assert await node.publish("t", b"ours %d" % number) == 1
            await js.ask("publish", topic="t", data=base64.b64encode(b"theirs %d" % number).decode())
        expected = {b"theirs %d" % number for number in range(10)}
        received = set()
        with trio.fail_after(10):
            while not expected <= received:
                message = await anext(subscription)
                received.add(message.data)
                assert message.source == (js.peer if message.data.startswith(b"theirs") else node.peer)
        expected = {b"ours %d" % number for number in range(10)}
        await eventually(lambda: expected <= set(js.heard("t")), "js hears ours")
        ours = [data for data in js.heard("t") if data in expected]
        assert len(ours) == len(expected), "js got something twice"
        assert node.statistics().gossip_rejected == 0

    play(scene, js_dials=js_dials)


async def both_hear(node: p2p.Node, js: JsPeer, topic: str) -> None:
    with trio.fail_after(15):
        while node.peer not in (await js.ask("subscribers", topic=topic))["peers"]:
            await trio.sleep(0.05)
        while not await node.publish(topic, b"is js there?"):
            await trio.sleep(0.05)


def test_a_message_that_only_gossip_offers_is_asked_for_once_because_ids_agree() -> None:
    """js has no mesh and sends nothing unasked, so its message comes by IHAVE and IWANT only. If the two sides
    computed different ids, ours would ask again with every heartbeat, for what it has already."""

    async def scene(node: p2p.Node, js: JsPeer) -> None:
        await js.ask("subscribe", topic="t")
        subscription = await node.subscribe("t", accept_all)
        with trio.fail_after(15):
            while node.peer not in (await js.ask("subscribers", topic="t"))["peers"]:
                await trio.sleep(0.05)
        await js.ask("publish", topic="t", data=base64.b64encode(b"by gossip").decode())
        with trio.fail_after(15):
            message = await anext(subscription)
        assert message.data == b"by gossip"
        assert message.source == js.peer
        await trio.sleep(4)  # three heartbeats more offer it again
        assert (await js.ask("gossip"))["wantedFromUs"] == 1

        assert await node.publish("t", b"by flood, and offered again") == 1
        await eventually(lambda: js.heard("t"), "js hears it")
        await trio.sleep(4)
        assert (await js.ask("gossip"))["weWanted"] == 0
        assert len(js.heard("t")) == 1

    degrees = {"D": 0, "Dlo": 0, "Dhi": 0, "Dout": 0, "Dscore": 0, "Dlazy": 6}
    play(scene, gossip=degrees, gossipOnly=True)


def test_either_side_finds_the_addresses_of_the_other() -> None:
    async def scene(node: p2p.Node, js: JsPeer) -> None:
        await js_identified(js, node.peer, KAD_PREFIX)
        await trio.sleep(0.5)  # for the routing tables
        assert (await node.find_peer(js.peer)).addresses
        assert (await js.ask("findPeer", peer=node.peer))["addresses"]

    play(scene)


def test_provider_records_are_found_by_either_side() -> None:
    async def scene(node: p2p.Node, js: JsPeer) -> None:
        ours, theirs = key_of("ours is here"), key_of("theirs is here")
        await js_identified(js, node.peer, KAD_PREFIX)
        await trio.sleep(0.5)  # for the routing tables
        await node.provide(ours)
        found: dict[str, list[str]] = {}
        with trio.move_on_after(10):  # a record is sent, not acknowledged
            while not found:
                found = (await js.ask("findProviders", key=multihash(ours)))["providers"]
        assert list(found) == [node.peer]
        assert node.addresses()[0].split("/p2p/")[0] in found[node.peer]
        assert (await js.ask("provide", key=multihash(theirs)))["told"] == 1
        (provider,) = await node.find_providers(theirs, count_max=8)
        assert provider.peer == js.peer
        assert provider.addresses

    play(scene)


def multihash(key: bytes) -> str:
    return base64.b64encode(provider_key(key)).decode()


def test_our_server_keeps_and_gives_what_one_js_peer_provides_and_another_looks_for() -> None:
    async def main() -> None:
        async with two_peers() as (node, js), js_peer(kadPrefix=KAD_PREFIX, kadClient=True) as client:
            await node.connect(js.peer, js.addresses)
            await client.ask("dial", address=node.addresses()[0])
            await js_identified(client, node.peer, KAD_PREFIX)
            await js_identified(js, node.peer, KAD_PREFIX)
            await trio.sleep(0.5)
            key = multihash(key_of("somewhere"))
            assert (await js.ask("provide", key=key))["told"] >= 1
            providers = (await client.ask("findProviders", key=key))["providers"]
            assert list(providers) == [js.peer]

    js_folder()
    trio.run(main)


class Number:
    """As `peer.mjs` judges them: decimal numbers, the largest is the newest."""

    def validate(self, key: bytes, value: bytes) -> None:
        if not (value.isdigit() and len(value) <= 15):
            raise p2p.RecordInvalid("not a number")

    def select(self, key: bytes, values: list[bytes]) -> int:
        return max(range(len(values)), key=lambda place: int(values[place]))


def test_values_are_put_and_got_both_ways_and_the_newer_one_wins_everywhere() -> None:
    async def value_at(js: JsPeer, key: str) -> bytes:
        return base64.b64decode((await js.ask("get", key=key))["value"] or "")

    async def put(js: JsPeer, key: str, value: bytes) -> None:
        await js.ask("put", key=key, value=base64.b64encode(value).decode())

    async def main() -> None:
        async with (
            two_peers(validators={"cocoontest": Number()}) as (node, js),
            js_peer(kadPrefix=KAD_PREFIX, kadClient=True) as client,
        ):
            await node.connect(js.peer, js.addresses)
            await client.ask("dial", address=node.addresses()[0])
            for peer in (js, client):
                await js_identified(peer, node.peer, KAD_PREFIX)
            await trio.sleep(0.5)  # for the routing tables

            await node.put_value(b"/cocoontest/ours", b"1")
            assert await value_at(js, "/cocoontest/ours") == b"1"
            await put(js, "/cocoontest/theirs", b"10")
            assert await node.get_value(b"/cocoontest/theirs") == b"10"
            assert await value_at(client, "/cocoontest/theirs") == b"10", "through our server, or found through it"

            await put(client, "/cocoontest/ours", b"2")
            assert await node.get_value(b"/cocoontest/ours") == b"2"
            with pytest.raises(p2p.RecordInvalid):
                await node.put_value(b"/cocoontest/ours", b"1")
            await put(js, "/cocoontest/stale", b"5")
            await put(client, "/cocoontest/stale", b"7")
            assert await node.get_value(b"/cocoontest/stale") == b"7"
            assert await value_at(js, "/cocoontest/stale") == b"7"

            with pytest.raises(p2p.RecordInvalid):
                await node.put_value(b"/cocoontest/bad", b"not a number")
            await put(js, "/cocoontest/bad", b"not a number")  # js asks its own validator at no time
            assert await node.get_value(b"/cocoontest/bad") is None

    js_folder()
    trio.run(main)


def test_the_bounds_hold_against_js_too() -> None:
    async def scene(node: p2p.Node, js: JsPeer) -> None:
        node.handle(ECHO, echo_and_last_word, frame_bytes_max=1_000, streams_per_peer_max=16)
        with pytest.raises(Exception, match="echo"):
            await js.echo(node.peer, [bytes(2_000)])
        assert node.statistics().frames_refused == 1
        assert await js.echo(node.peer, [b"fine"]) == [b"fine", b"after your end"]

    play(scene)


NO_CHECKS = p2p.ReachSettings(check=False, hole_punching=False, relay_use=p2p.RelayUse.NEVER)


def test_js_reaches_us_and_we_reach_js_through_our_relay() -> None:
    """A relay of ours; behind it one node of each kind, each dialled by the other."""

    async def main() -> None:
        relaying = p2p.NodeSettings(allow_private_addresses=True, relay=True, reach=NO_CHECKS)
        with trio.fail_after(90):
            async with p2p.open_node(relaying, key=key_of("relay")) as relay:
                hiding = replace(NO_CHECKS, relay_use=p2p.RelayUse.ALWAYS, relays=tuple(relay.addresses()))
                ours = p2p.NodeSettings(allow_private_addresses=True, reach=hiding)
                through = f"{relay.addresses()[0]}/p2p-circuit"
                async with p2p.open_node(ours, key=key_of("ours")) as node, js_peer(listen=[through]) as js:
                    await talk_through_a_relay(node, js, relay.peer)

    js_folder()
    trio.run(main)


def test_js_reaches_us_and_we_reach_js_through_a_relay_of_js() -> None:
    async def main() -> None:
        with trio.fail_after(90):
            async with js_peer(relay=True) as relay:
                hiding = replace(NO_CHECKS, relay_use=p2p.RelayUse.ALWAYS, relays=tuple(relay.addresses))
                ours = p2p.NodeSettings(allow_private_addresses=True, reach=hiding)
                through = f"{relay.addresses[0]}/p2p-circuit"
                async with p2p.open_node(ours, key=key_of("ours")) as node, js_peer(listen=[through]) as js:
                    await talk_through_a_relay(node, js, relay.peer)

    js_folder()
    trio.run(main)


async def talk_through_a_relay(node: p2p.Node, js: JsPeer, relay: str) -> None:
    node.handle(ECHO, echo_and_last_word, frame_bytes_max=FRAME_MAX, streams_per_peer_max=16)
    await eventually(lambda: node.reachability().reach is p2p.Reach.RELAY, "the relay holds a place for us")
    (ours,) = [address for address in node.addresses() if "/p2p-circuit" in address]
    assert f"/p2p/{relay}/" in ours
    theirs: list[str] = []
    with trio.fail_after(20):
        while not theirs:
            theirs = [a for a in (await js.ask("addresses"))["addresses"] if "/p2p-circuit" in a]
            await trio.sleep(0.1)

    size = 20_000  # js relays 128 KiB of one connection, both ways together
    assert await js.ask("dial", address=ours) == {"peer": node.peer, "limited": True}
    # js may dial us directly now, because it has learned where we are; the frames must pass either way
    assert await js.echo(node.peer, [b"through", bytes(size)]) == [b"through", bytes(size), b"after your end"]
    assert True in [c.relayed for c in node.connections() if c.peer == js.peer]

    dial_only = p2p.NodeSettings(allow_private_addresses=True, listen=(), reach=NO_CHECKS)
    async with p2p.open_node(dial_only, key=key_of("another")) as another:  # whom js cannot know how to dial
        stream = await another.open_stream(js.peer, ECHO, addresses=theirs, frame_bytes_max=FRAME_MAX)
        await stream.send(bytes(size))
        assert await stream.receive() == bytes(size)
        await stream.aclose()
        assert [c.relayed for c in another.connections() if c.peer == js.peer] == [True]


def test_a_websocket_carries_it_all_in_both_directions() -> None:
    async def main() -> None:
        listening = ("/ip4/127.0.0.1/tcp/0/ws",)
        ours = p2p.NodeSettings(allow_private_addresses=True, listen=listening, reach=NO_CHECKS)
        with trio.fail_after(60):
            async with p2p.open_node(ours, key=key_of("ours")) as node, js_peer(listen=list(listening)) as js:
                node.handle(ECHO, echo_and_last_word, frame_bytes_max=FRAME_MAX, streams_per_peer_max=16)
                assert "/ws/" in js.addresses[0]
                async with await node.open_stream(
                    js.peer, ECHO, addresses=js.addresses, frame_bytes_max=FRAME_MAX
                ) as stream:
                    for frame in FRAMES:
                        await stream.send(frame)
                        assert await stream.receive() == frame
            async with p2p.open_node(ours, key=key_of("ours")) as node, js_peer() as js:
                node.handle(ECHO, echo_and_last_word, frame_bytes_max=FRAME_MAX, streams_per_peer_max=16)
                await js.ask("dial", address=node.addresses()[0])
                assert await js.echo(node.peer, FRAMES) == [*FRAMES, b"after your end"]

    js_folder()
    trio.run(main)
