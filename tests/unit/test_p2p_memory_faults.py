"""The faults of the memory network do what they say, in virtual time, and the same run gives the same story."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

import p2p
from p2p.testing import MemoryNetwork
from p2p.testing.contract.tools import PROTOCOL, accept_all, echo, key_of, settings


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_round_trip_takes_twice_the_delay() -> None:
    async def main() -> None:
        network = MemoryNetwork(delay_s=0.05)
        async with (
            network.open_node(settings(), key=key_of("server")) as server,
            network.open_node(settings(), key=key_of("client")) as client,
        ):
            server.handle(PROTOCOL, echo, frame_bytes_max=100, streams_per_peer_max=1)
            network.set_delay_s(server.peer, client.peer, 0.2)
            await client.connect(server.peer, server.addresses())
            stream = await client.open_stream(server.peer, PROTOCOL, frame_bytes_max=100)
            started = trio.current_time()
            await stream.send(b"x")
            assert await stream.receive() == b"x"
            assert trio.current_time() - started == pytest.approx(0.4)

    run(main)


def test_a_partition_cuts_streams_gossip_and_dials_until_it_heals() -> None:
    async def main() -> None:
        network = MemoryNetwork(delay_s=0.01)
        async with (
            network.open_node(settings(), key=key_of("a")) as a,
            network.open_node(settings(), key=key_of("b")) as b,
            network.open_node(settings(a, b), key=key_of("c")) as c,
        ):
            for node in (a, b):
                node.handle(PROTOCOL, echo, frame_bytes_max=100, streams_per_peer_max=1)
            await c.wait_connected(timeout_s=1, peers_min=2)
            heard = await b.subscribe("t", accept_all)
            await c.subscribe("t", accept_all)
            to_a = await c.open_stream(a.peer, PROTOCOL, frame_bytes_max=100)
            to_b = await c.open_stream(b.peer, PROTOCOL, frame_bytes_max=100)

            network.partition({a.peer, c.peer}, {b.peer})
            with pytest.raises(p2p.StreamReset):
                await to_b.receive()
            await to_a.send(b"still here")
            assert await to_a.receive() == b"still here"
            assert await c.publish("t", b"lost") == 0
            started = trio.current_time()
            with pytest.raises(p2p.DialFailed, match="timed out after 5 s"):
                await c.connect(b.peer, b.addresses())
            assert trio.current_time() - started == pytest.approx(5)

            network.heal()
            await c.wait_connected(timeout_s=60, peers_min=2)  # its bootstrap peers, by itself
            assert await c.publish("t", b"found") == 1
            assert (await anext(heard)).data == b"found"

    run(main)


def test_a_crashed_node_is_gone_for_the_others_and_knows_it() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with (
            network.open_node(settings(), key=key_of("server")) as server,
            network.open_node(settings(), key=key_of("client")) as client,
        ):
            server.handle(PROTOCOL, echo, frame_bytes_max=100, streams_per_peer_max=1)
            await client.connect(server.peer, server.addresses())
            stream = await client.open_stream(server.peer, PROTOCOL, frame_bytes_max=100)
            network.crash(server.peer)
            with pytest.raises(p2p.StreamReset):
                await stream.receive()
            with pytest.raises(p2p.DialFailed, match="connection refused"):
                await client.open_stream(server.peer, PROTOCOL, frame_bytes_max=100)
            with pytest.raises(p2p.NodeClosed):
                await server.publish("t", b"x")

    run(main)


def test_streams_can_be_reset_while_the_connection_stays() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with (
            network.open_node(settings(), key=key_of("server")) as server,
            network.open_node(settings(server), key=key_of("client")) as client,
        ):
            server.handle(PROTOCOL, echo, frame_bytes_max=100, streams_per_peer_max=1)
            await client.wait_connected(timeout_s=1)
            opened_at = client.connections()[0].opened_at
            stream = await client.open_stream(server.peer, PROTOCOL, frame_bytes_max=100)
            network.reset_streams(client.peer, server.peer)
            with pytest.raises(p2p.StreamReset):
                await stream.receive()
            assert [info.opened_at for info in client.connections()] == [opened_at]
            network.disconnect(client.peer, server.peer)
            assert client.connections() == ()
            await client.wait_connected(timeout_s=10)

    run(main)


def test_gossip_on_its_way_is_lost_with_the_connection() -> None:
    async def main() -> None:
        network = MemoryNetwork(delay_s=1)
        async with (
            network.open_node(settings(), key=key_of("a")) as a,
            network.open_node(settings(), key=key_of("b")) as b,
        ):
            await b.connect(a.peer, a.addresses())
            await a.subscribe("t", accept_all)
            await b.subscribe("t", accept_all)
            assert await a.publish("t", b"x") == 1
            network.disconnect(a.peer, b.peer)
            await trio.sleep(10)
            assert b.statistics().gossip_received == 0

    run(main)


def story(seed: int) -> list[tuple[float, str, bytes]]:
    heard: list[tuple[float, str, bytes]] = []

    async def main() -> None:
        network = MemoryNetwork(delay_s=0.02, seed=seed)
        async with trio.open_nursery() as nursery:
            hub_open = trio.Event()
            hub: list[p2p.Node] = []

            async def live(name: str) -> None:
                bootstrap = [] if name == "0" else hub
                async with network.open_node(settings(*bootstrap), key=key_of(name)) as node:
                    if name == "0":
                        hub.append(node)
                        hub_open.set()
                    subscription = await node.subscribe("t", accept_all)
                    async for message in subscription:
                        heard.append((trio.current_time(), name, message.data))

            nursery.start_soon(live, "0")
            await hub_open.wait()
            for number in range(1, 6):
                nursery.start_soon(live, str(number))
                await trio.sleep(0.1)
            network.partition({node.peer for node in network.nodes.values() if node is not hub[0]}, {hub[0].peer})
            network.heal()
            for number in range(20):
                await hub[0].publish("t", b"%d" % number)
                await trio.sleep(0.3)
            nursery.cancel_scope.cancel()

    run(main)
    start = heard[0][0]
    return sorted((round(at - start, 6), name, data) for at, name, data in heard)


def test_one_seed_tells_one_story_and_another_seed_another() -> None:
    assert story(1) == story(1)
    assert story(1) != story(2), "reconnecting is spread by the seed"
