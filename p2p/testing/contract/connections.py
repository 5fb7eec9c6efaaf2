"""Connections: dials and their reasons, restarts, events, and the life of a node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from p2p import errors
from p2p.identity import peer_id_of_seed
from p2p.interface import Limits, Node, PeerConnected, PeerDisconnected, Reach
from p2p.testing.contract.tools import (
    FRAME_MAX,
    PATIENCE_S,
    PROTOCOL,
    TOPIC,
    OpenNode,
    accept_all,
    bare,
    check,
    echo,
    eventually,
    key_of,
    open_to,
    pair,
    raises,
    settings,
    sleep,
)

if TYPE_CHECKING:
    from trio_typing import TaskStatus


@check
async def a_failed_dial_names_every_address_and_why(open_node: OpenNode) -> None:
    stranger = peer_id_of_seed(key_of("stranger"))
    async with pair(open_node) as (server, client):
        dead = ["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2"]
        async with raises(errors.DialFailed) as caught:
            await client.connect(stranger, [*dead, bare(server)])
        assert isinstance(caught[0], errors.DialFailed)
        reasons = {failure.address: failure.reason for failure in caught[0].failures}
        assert reasons == {
            dead[0]: "connection refused",
            dead[1]: "connection refused",
            bare(server): "another peer answered",
        }
        assert {failure.peer for failure in client.dial_failures()} == {stranger}
        assert client.statistics().dials_failed == 3
        async with raises(errors.DialFailed):
            await client.connect(stranger, [])
        for bad in ("", "/ip4/127.0.0.1", "/ip4/1.2.3/tcp/5", "/ip4/127.0.0.1/tcp/70000", server.addresses()[0]):
            async with raises(errors.AddressInvalid):
                await client.connect(stranger, [bad])
        async with raises(errors.PeerIdInvalid):
            await client.connect("nobody", dead)


@check
async def one_good_address_among_dead_ones_is_enough(open_node: OpenNode) -> None:
    async with open_node(settings(), key=key_of("server")) as server:
        server.handle(PROTOCOL, echo, frame_bytes_max=FRAME_MAX, streams_per_peer_max=8)
        async with open_node(settings(), key=key_of("client")) as client:
            dead = [f"/ip4/127.0.0.1/tcp/{port}" for port in range(1, 10)]
            async with raises(errors.DialFailed):
                await client.connect(server.peer, dead)
            await client.connect(server.peer, [*dead, "nonsense", bare(server)])
            async with await open_to(client, server) as stream:
                await stream.send(b"hello")
                assert await stream.receive() == b"hello"


@check
async def private_addresses_are_not_dialled_unless_allowed(open_node: OpenNode) -> None:
    async with open_node(settings(), key=key_of("server")) as server:
        async with open_node(settings(allow_private_addresses=False), key=key_of("client")) as client:
            async with raises(errors.DialFailed) as caught:
                await client.connect(server.peer, [bare(server), "/ip4/10.0.0.1/tcp/5", "/ip4/224.0.0.1/tcp/5"])
            assert isinstance(caught[0], errors.DialFailed)
            assert {failure.reason for failure in caught[0].failures} == {
                "refused by policy: loopback address",
                "refused by policy: private address",
                "refused by policy: multicast",
            }
            assert client.statistics().dials == 0
            assert server.connections() == ()


@check
async def a_peer_that_restarted_is_reached_by_the_next_open(open_node: OpenNode) -> None:
    async with open_node(settings(), key=key_of("client")) as client:
        listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
        for turn in range(3):
            async with open_node(settings(listen=listen), key=key_of("server")) as server:
                server.handle(PROTOCOL, echo, frame_bytes_max=FRAME_MAX, streams_per_peer_max=8)
                listen = (bare(server),)
                stream = await client.open_stream(
                    server.peer, PROTOCOL, addresses=server.addresses(), frame_bytes_max=FRAME_MAX
                )
                await stream.send(b"%d" % turn)
                assert await stream.receive() == b"%d" % turn


@check
async def when_a_peer_goes_its_streams_break_and_events_tell(open_node: OpenNode) -> None:
    async with open_node(settings(), key=key_of("client")) as client:
        events = client.peer_events()
        gone = trio.Event()
        async with trio.open_nursery() as nursery:

            async def live_until_gone(task_status: TaskStatus[Node]) -> None:
                async with open_node(settings(), key=key_of("server")) as server:
                    server.handle(PROTOCOL, sleep, frame_bytes_max=FRAME_MAX, streams_per_peer_max=8)
                    task_status.started(server)
                    await gone.wait()

            server: Node = await nursery.start(live_until_gone)
            await client.connect(server.peer, server.addresses())
            assert await anext(events) == PeerConnected(peer=server.peer)
            assert [info.peer for info in client.connections()] == [server.peer]
            stream = await open_to(client, server)
            gone.set()
            async with raises(errors.StreamReset, within_s=3):
                await stream.receive()
            with trio.fail_after(PATIENCE_S):
                assert await anext(events) == PeerDisconnected(peer=server.peer)
            assert client.connections() == ()
            async with raises(errors.PeerUnreachable):
                await open_to(client, server)
        await events.aclose()
        assert [event async for event in events] == []


@check
async def disconnecting_ends_the_streams_of_that_peer(open_node: OpenNode) -> None:
    async with pair(open_node, sleep) as (server, client):
        stream = await open_to(client, server)
        with trio.fail_after(PATIENCE_S):
            await client.disconnect(server.peer)
            await client.disconnect(server.peer)
        async with raises(errors.StreamReset, within_s=2):
            await stream.receive()


@check
async def dials_that_cross_leave_both_sides_connected(open_node: OpenNode) -> None:
    async with open_node(settings(), key=key_of("a")) as a, open_node(settings(), key=key_of("b")) as b:
        for node in (a, b):
            node.handle(PROTOCOL, echo, frame_bytes_max=FRAME_MAX, streams_per_peer_max=8)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(a.connect, b.peer, b.addresses())
                nursery.start_soon(b.connect, a.peer, a.addresses())
        await trio.sleep(0.3)
        for here, there in ((a, b), (b, a)):
            assert 1 <= len(here.connections()) <= 2
            async with await open_to(here, there) as stream:
                await stream.send(b"hello")
                assert await stream.receive() == b"hello"


@check
async def a_bootstrap_peer_that_comes_late_is_connected_by_itself(open_node: OpenNode) -> None:
    async with open_node(settings(), key=key_of("late")) as late:
        address, listen = late.addresses()[0], bare(late)
    async with open_node(settings(bootstrap_addresses=(address,)), key=key_of("early")) as early:
        async with raises(errors.NotConnected) as caught:
            await early.wait_connected(timeout_s=0.3)
        assert isinstance(caught[0], errors.NotConnected)
        assert [failure.reason for failure in caught[0].failures][:1] == ["connection refused"]
        async with open_node(settings(listen=(listen,)), key=key_of("late")) as again:
            await early.wait_connected(timeout_s=PATIENCE_S)
            assert [info.peer for info in early.connections()] == [again.peer]


@check
async def a_node_says_how_others_can_reach_it(open_node: OpenNode) -> None:
    async with open_node(settings(listen=()), key=key_of("dial only")) as node:
        assert node.reachability().reach is Reach.NOT
        assert node.reachability().reason == "this node does not listen"
    async with open_node(settings(check_delay_s=0.05), key=key_of("server")) as server:
        assert server.reachability().reach is Reach.UNKNOWN
        assert server.reachability().addresses == ()
        async with open_node(settings(server, check_delay_s=0.05), key=key_of("client")) as client:
            await client.wait_connected(timeout_s=PATIENCE_S)
            await eventually(lambda: client.reachability().reach is Reach.DIRECT, "the server has dialled back")
            assert client.reachability().addresses == client.addresses()
            assert (client.reachability().peers_asked, client.reachability().peers_reached) == (1, 1)
            assert client.reachability().observed


@check
async def a_protected_peer_is_dialled_again_until_it_is_protected_no_more(open_node: OpenNode) -> None:
    async with (
        open_node(settings(), key=key_of("server")) as server,
        open_node(settings(), key=key_of("client")) as client,
    ):
        client.protect(server.peer, server.addresses())
        for _ in range(2):
            await eventually(client.connections, "connected by itself")
            await eventually(server.connections, "the server knows it, too: a dialer may be done first")
            await server.disconnect(client.peer)
            await eventually(lambda: not client.connections(), "the connection is lost")
        await eventually(client.connections, "connected again")
        await eventually(server.connections, "on both sides")
        client.unprotect(server.peer)
        await server.disconnect(client.peer)
        await trio.sleep(1.5)
        assert client.connections() == ()
        async with raises(errors.PeerIdInvalid):
            client.protect("nobody", ())
    async with open_node(settings(limits=Limits(protected_peers_max=1)), key=key_of("client")) as client:
        client.protect(peer_id_of_seed(key_of("one")), ["/ip4/127.0.0.1/tcp/1"])
        async with raises(errors.SettingsInvalid):
            client.protect(peer_id_of_seed(key_of("two")), ["/ip4/127.0.0.1/tcp/1"])


@check
async def a_protocol_has_a_quota_for_all_peers_together(open_node: OpenNode) -> None:
    async with open_node(settings(), key=key_of("server")) as server:
        server.handle(PROTOCOL, sleep, frame_bytes_max=FRAME_MAX, streams_per_peer_max=2, streams_max=3)
        async with (
            open_node(settings(server), key=key_of("a")) as a,
            open_node(settings(server), key=key_of("b")) as b,
        ):
            for node in (a, b):
                await node.wait_connected(timeout_s=PATIENCE_S)
            streams = [await open_to(node, server) for node in (a, a, b)]
            await eventually(lambda: server.statistics().streams_accepted == 3, "three are served")
            async with raises((errors.StreamReset, errors.OpenFailed)):
                surplus = await open_to(b, server)
                await surplus.receive()
            assert server.statistics().streams_refused == 1
            for stream in streams:
                await stream.reset()


@check
async def a_port_in_use_is_an_error_and_not_shared(open_node: OpenNode) -> None:
    async with open_node(settings(), key=key_of("first")) as first:
        async with raises(errors.ListenFailed) as caught:
            async with open_node(settings(listen=(bare(first),)), key=key_of("second")) as second:
                assert not second, "two nodes on one port"
        assert "address already in use" in str(caught[0])


@check
async def a_closed_node_says_so(open_node: OpenNode) -> None:
    async with open_node(settings(), key=key_of("a")) as node:
        subscription = await node.subscribe(TOPIC, accept_all)
        events = node.peer_events()
    stranger = peer_id_of_seed(key_of("b"))
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: node.connect(stranger, ["/ip4/127.0.0.1/tcp/1"]),
        lambda: node.open_stream(stranger, PROTOCOL, frame_bytes_max=10),
        lambda: node.publish(TOPIC, b"x"),
        lambda: node.subscribe("another", accept_all),
        lambda: node.provide(b"k" * 32),
        lambda: node.find_providers(b"k" * 32, count_max=1),
        lambda: node.find_peer(stranger),
        lambda: node.wait_connected(timeout_s=5),
    ]
    for call in calls:
        async with raises(errors.NodeClosed):
            await call()
    with trio.fail_after(PATIENCE_S):
        assert [message async for message in subscription] == []
        assert [event async for event in events] == []


@check
async def an_error_of_the_block_comes_out_as_it_was(open_node: OpenNode) -> None:
    def fail() -> None:
        raise LookupError("mine")

    async with raises(LookupError):
        async with open_node(settings(), key=key_of("a")):
            fail()
    with trio.move_on_after(0.2) as scope:
        async with open_node(settings(), key=key_of("a")):
            await trio.Event().wait()
    assert scope.cancelled_caught
