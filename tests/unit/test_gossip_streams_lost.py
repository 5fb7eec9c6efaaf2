"""Whatever happens to connections and streams, two connected nodes soon know each other's topics again, although
neither has anything to say. Real nodes on loopback."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

import p2p
import p2p.driver  # before any clock runs: importing libp2p takes seconds
from p2p.driver import gossip_speaker
from p2p.driver.gossip_speaker import Speaker
from p2p.identity import peer_id_to_bytes
from p2p.testing.contract.tools import accept_all, eventually, key_of, settings

TOPIC = "streams lost"
LIMIT_S = 60
Scenario = Callable[[Any, Any], Awaitable[None]]


def knows(node: Any, other: Any) -> bool:
    return peer_id_to_bytes(other.peer) in node.gossip.router.state.topics.get(TOPIC, {})


def speaker(node: Any, other: Any) -> Speaker:
    found: Speaker = node.gossip._speakers[peer_id_to_bytes(other.peer)]
    return found


async def know_each_other(one: Any, other: Any) -> None:
    await eventually(lambda: knows(one, other) and knows(other, one), "each knows that the other is in the topic")


def with_two_nodes(scenario: Scenario) -> None:
    async def main() -> None:
        with trio.fail_after(LIMIT_S):
            async with (
                p2p.open_node(settings(), key=key_of("one")) as one,
                p2p.open_node(settings(), key=key_of("other")) as other,
            ):
                await one.connect(other.peer, other.addresses())
                for node in (one, other):
                    await node.subscribe(TOPIC, accept_all)
                await know_each_other(one, other)
                await scenario(one, other)

    trio.run(main)


def test_a_peer_that_has_forgotten_us_is_told_our_topics_again_without_a_message_being_due() -> None:
    async def scenario(one: Any, other: Any) -> None:
        other.gossip._forget(speaker(other, one))  # as when only one side saw the connection end
        assert not knows(other, one)
        other.gossip.connected(one.host.get_id())
        await know_each_other(one, other)

    with_two_nodes(scenario)


def test_a_stream_that_the_peer_resets_is_opened_again_without_a_message_being_due() -> None:
    async def scenario(one: Any, other: Any) -> None:
        old = list(speaker(other, one).inbound)
        for scope in old:
            scope.cancel()
        await eventually(lambda: not any(scope in speaker(other, one).inbound for scope in old), "the stream ended")
        await eventually(lambda: speaker(other, one).inbound, "another came")

    with_two_nodes(scenario)


@pytest.mark.parametrize("which", [0, 1])
def test_of_two_crossing_connections_either_may_go(which: int) -> None:
    async def scenario(one: Any, other: Any) -> None:
        swarm = other.host.get_network()
        (address,) = map(p2p.addresses.parse_address, one.addresses())
        await swarm._dial_all(one.host.get_id(), [address.without_peer])  # as when two dials cross
        await eventually(lambda: len(one.connections()) == len(other.connections()) == 2, "both see two")
        await one.host.get_network().live_connections(other.host.get_id())[which].close()
        await eventually(lambda: len(one.connections()) == len(other.connections()) == 1, "both see one")
        await other.subscribe("another", accept_all)
        await one.subscribe("yet another", accept_all)
        await eventually(lambda: "another" in one.gossip.router.state.topics, "one hears")
        await eventually(lambda: "yet another" in other.gossip.router.state.topics, "the other hears")
        await know_each_other(one, other)

    with_two_nodes(scenario)


def test_a_topic_that_found_no_room_in_the_queue_is_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(one: Any, other: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(gossip_speaker, "QUEUE_BYTES_MAX", 0)
            patch.setattr(gossip_speaker, "CONTROL_BYTES_MAX", 0)
            await one.subscribe("another", accept_all)
            assert one.gossip.dropped_rpcs >= 1
        await eventually(lambda: "another" in other.gossip.router.state.topics, "the topic is known")

    with_two_nodes(scenario)


def test_a_topic_left_while_the_stream_was_broken_is_left_for_the_peer_too() -> None:
    async def scenario(one: Any, other: Any) -> None:
        feed = await one.subscribe("short", accept_all)
        await eventually(lambda: "short" in other.gossip.router.state.topics, "the topic is known")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gossip_speaker, "QUEUE_BYTES_MAX", 0)
            patch.setattr(gossip_speaker, "CONTROL_BYTES_MAX", 0)
            await feed.aclose()
        await eventually(lambda: "short" not in other.gossip.router.state.topics, "the topic is forgotten")

    with_two_nodes(scenario)


def test_a_killed_peer_that_comes_back_is_heard_although_its_old_connection_never_ended() -> None:
    """The old connection runs through a proxy that goes silent, as a cut cable does: nobody gets a FIN."""

    async def main() -> None:
        with trio.fail_after(LIMIT_S):
            async with p2p.open_node(settings(), key=key_of("stays")) as stays, trio.open_nursery() as nursery:
                await stays.subscribe(TOPIC, accept_all)
                silent = trio.Event()
                async with p2p.open_node(settings(), key=key_of("killed")) as killed:
                    port = await nursery.start(proxy, p2p.addresses.parse_address(killed.addresses()[0]).port, silent)
                    await killed.subscribe(TOPIC, accept_all)
                    await stays.connect(killed.peer, [f"/ip4/127.0.0.1/tcp/{port}"])
                    await know_each_other(stays, killed)
                    silent.set()
                async with p2p.open_node(settings(), key=key_of("killed")) as again:
                    await again.subscribe(TOPIC, accept_all)
                    await again.connect(stays.peer, stays.addresses())
                    await know_each_other(stays, again)
                nursery.cancel_scope.cancel()

    trio.run(main)


async def proxy(target: int, silent: trio.Event, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
    async def serve(near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", target)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(pump, near, far)
            nursery.start_soon(pump, far, near)

    async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            async for data in source:
                if not silent.is_set():
                    await sink.send_all(data)
        except trio.BrokenResourceError:
            pass  # our end of the cut cable
        await trio.sleep_forever()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(serve, listeners)
