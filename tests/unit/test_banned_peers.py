"""Who was sent away may not come back at once: for a while, within a bound, and whatever we do ourselves is free."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import p2p
import p2p.driver.connections
import p2p.trimming
from p2p.banned import BanList
from p2p.driver.negotiate import propose
from p2p.driver.node import Libp2pNode
from p2p.framing import encode_frame
from p2p.testing.contract.tools import PROTOCOL, accept_all, echo, eventually, key_of, settings, sleep

LISTENS = ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"]


def test_a_ban_ends_by_itself_or_when_it_is_lifted() -> None:
    bans = BanList()
    assert not bans.is_banned("a", now=0)
    bans.add("a", now=10, for_s=5)
    bans.add("b", now=10, for_s=50)
    assert [bans.is_banned("a", now=now) for now in (10, 14.9, 15)] == [True, True, False]
    assert len(bans) == 1, "an ended ban is forgotten"
    bans.lift("b")
    bans.lift("nobody")
    assert not bans.is_banned("b", now=11)


def test_a_shorter_ban_does_not_end_a_longer_one() -> None:
    bans = BanList()
    bans.add("a", now=0, for_s=100)
    bans.add("a", now=1, for_s=1)
    assert bans.is_banned("a", now=50)


def test_the_table_is_bounded_and_the_longest_bans_stay() -> None:
    bans = BanList(peers_max=10)
    bans.add("old", now=0, for_s=1)
    for number in range(100):
        bans.add(f"{number}", now=5, for_s=100 + number)
    assert len(bans) == 10
    assert bans.is_banned("99", now=6)
    assert not bans.is_banned("0", now=6)


async def is_taken(node: p2p.Node, server: p2p.Node) -> bool:
    """Whether a dial leads to a connection that lasts."""
    try:
        await node.connect(server.peer, server.addresses())
        stream = await node.open_stream(server.peer, PROTOCOL, frame_bytes_max=100)
        await stream.send(b"?")
        return await stream.receive() == b"?"
    except (p2p.PeerUnreachable, p2p.StreamError):
        return False


@pytest.mark.parametrize("listen", LISTENS)
def test_a_peer_whose_score_threw_it_out_cannot_dial_back_until_its_time_is_over(
    listen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2p.driver.gossip_driver.BANNED_S", 3.0)

    async def main() -> None:
        with trio.fail_after(60):
            async with (
                p2p.open_node(settings(listen=(listen,)), key=key_of("victim")) as victim,
                p2p.open_node(settings(listen=(), gossip=False), key=key_of("bad")) as bad,
                p2p.open_node(settings(listen=()), key=key_of("good")) as good,
            ):
                victim.handle(PROTOCOL, echo, frame_bytes_max=100, streams_per_peer_max=4)
                await victim.subscribe("t", accept_all)
                await bad.connect(victim.peer, victim.addresses())
                muxed: Any = bad._swarm.get_connections()[0].muxed_conn  # type: ignore[attr-defined]
                with trio.move_on_after(20):
                    while bad.connections():
                        try:
                            stream = await muxed.open_stream()
                            await propose(stream, "/meshsub/1.1.0")
                            await stream.write(encode_frame(b"\xff\x13 no protobuf"))
                        except Exception:
                            await trio.sleep(0.01)
                        await trio.sleep(0.02)
                assert not bad.connections(), "it was not thrown out"
                thrown_out_at = trio.current_time()
                assert not await is_taken(bad, victim)
                assert await is_taken(good, victim)
                while not await is_taken(bad, victim):
                    await trio.sleep(0.2)
                assert 2 < trio.current_time() - thrown_out_at < 20

    trio.run(main)


def test_a_trimmed_peer_waits_and_one_that_we_protect_is_welcome_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p2p.trimming, "GRACE_NS", 0)

    async def main() -> None:
        limits = p2p.Limits(connections_high=1, connections_low=0)
        with trio.fail_after(60):
            async with (
                p2p.open_node(settings(limits=limits), key=key_of("hub")) as hub,
                p2p.open_node(settings(), key=key_of("a")) as a,
                p2p.open_node(settings(), key=key_of("b")) as b,
            ):
                assert isinstance(hub, Libp2pNode)
                hub.handle(PROTOCOL, echo, frame_bytes_max=100, streams_per_peer_max=4)
                for node in (a, b):
                    await node.connect(hub.peer, hub.addresses())
                await eventually(lambda: len(hub.connections()) == 2, "both are there")
                await hub.manager.trim()
                await eventually(lambda: not hub.connections(), "both are gone")
                assert not await is_taken(a, hub)
                await hub.connect(b.peer, b.addresses())
                await eventually(hub.connections, "what we dial ourselves is not asked")
                hub.protect(a.peer, ())
                assert await is_taken(a, hub)

    trio.run(main)


@pytest.mark.parametrize("listen", LISTENS)
def test_a_peer_that_was_cut_off_for_unread_bytes_cannot_fill_them_again_at_once(listen: str) -> None:
    async def main() -> None:
        limits = p2p.Limits(unread_bytes_total_max=300_000)
        with trio.fail_after(60):
            async with (
                p2p.open_node(settings(listen=(listen,), limits=limits), key=key_of("victim")) as victim,
                p2p.open_node(settings(), key=key_of("flood")) as flood,
            ):
                victim.handle(PROTOCOL, sleep, frame_bytes_max=1 << 20, streams_per_peer_max=8)
                await flood.connect(victim.peer, victim.addresses())
                async with trio.open_nursery() as nursery:

                    async def fill() -> None:
                        stream = await flood.open_stream(victim.peer, PROTOCOL, frame_bytes_max=1 << 20)
                        try:
                            await stream.send(bytes(1 << 20))
                        except p2p.StreamError:
                            pass

                    for _ in range(4):
                        nursery.start_soon(fill)
                await eventually(lambda: not victim.connections(), "it is cut off")
                assert not await is_taken(flood, victim)

    trio.run(main)


@pytest.mark.parametrize("listen", LISTENS)
def test_connections_that_end_as_soon_as_they_begin_leave_nothing_in_the_way_of_the_next(listen: str) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with (
                p2p.open_node(settings(listen=(listen,)), key=key_of("server")) as server,
                p2p.open_node(settings(listen=()), key=key_of("client")) as client,
            ):
                server.handle(PROTOCOL, echo, frame_bytes_max=100, streams_per_peer_max=4)
                swarm: Any = server._swarm  # type: ignore[attr-defined]
                swarm.bans.add(client.peer, now=trio.current_time(), for_s=3600)
                for _ in range(12):
                    assert not await is_taken(client, server)
                swarm.bans.lift(client.peer)
                assert await is_taken(client, server)
                await trio.sleep(0.3)
                for node in (client, server):
                    assert len(node._swarm.get_connections()) == 1  # type: ignore[attr-defined]
                    assert len(node.connections()) == 1

    trio.run(main)
