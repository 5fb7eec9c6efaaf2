"""The contract of `p2p.interface`, as plain async functions: each takes something that opens nodes, and raises
AssertionError where a promise is broken. Every implementation passes all of `CHECKS`.

They run in real time and in virtual time, so they wait for conditions, never for a guess.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import trio

from p2p import errors
from p2p.identity import peer_id_of_seed
from p2p.interface import (
    DhtMode,
    GossipMessage,
    Limits,
    Node,
    NodeSettings,
    PeerConnected,
    PeerDisconnected,
    Stream,
    StreamHandler,
    Subscription,
    Verdict,
)

if TYPE_CHECKING:
    from trio_typing import TaskStatus

PROTOCOL = "/contract/1"
FRAME_MAX = 1 << 20
PATIENCE_S = 10.0  # for anything that should happen "soon"; loopback under load needs some
TOPIC = "contract"


class OpenNode(Protocol):
    def __call__(self, settings: NodeSettings, *, key: bytes) -> AbstractAsyncContextManager[Node]: ...


Check = Callable[[OpenNode], Awaitable[None]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


def key_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def settings(
    *bootstrap: Node,
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",),
    dht_mode: DhtMode = DhtMode.SERVER,
    gossip: bool = True,
    allow_private_addresses: bool = True,
    limits: Limits | None = None,
    bootstrap_addresses: tuple[str, ...] = (),
) -> NodeSettings:
    return NodeSettings(
        listen=listen,
        bootstrap=(*(address for node in bootstrap for address in node.addresses()), *bootstrap_addresses),
        dht_mode=dht_mode,
        gossip=gossip,
        allow_private_addresses=allow_private_addresses,
        limits=limits or Limits(),
    )


async def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = trio.current_time() + PATIENCE_S
    while not condition():
        assert trio.current_time() < deadline, f"did not happen within {PATIENCE_S:g} s: {what}"
        await trio.sleep(0.01)


@asynccontextmanager
async def raises(
    kind: type[BaseException] | tuple[type[BaseException], ...], *, within_s: float = PATIENCE_S
) -> AsyncIterator[list[BaseException]]:
    caught: list[BaseException] = []
    scope = trio.CancelScope(deadline=trio.current_time() + within_s)
    try:
        with scope:
            yield caught
    except kind as error:
        caught.append(error)
        return
    if scope.cancelled_caught:
        raise AssertionError(f"{kind} did not come within {within_s:g} s")
    raise AssertionError(f"{kind} was not raised")


@asynccontextmanager
async def pair(
    open_node: OpenNode, handler: StreamHandler | None = None, *, streams_per_peer_max: int = 64
) -> AsyncIterator[tuple[Node, Node]]:
    """A server that serves `handler` (an echo by default) and a client that is connected to it."""
    async with open_node(settings(), key=key_of("server")) as server:
        server.handle(PROTOCOL, handler or echo, frame_bytes_max=FRAME_MAX, streams_per_peer_max=streams_per_peer_max)
        async with open_node(settings(server), key=key_of("client")) as client:
            await client.wait_connected(timeout_s=PATIENCE_S)
            yield server, client


async def open_to(client: Node, server: Node, *, frame_bytes_max: int = FRAME_MAX) -> Stream:
    return await client.open_stream(server.peer, PROTOCOL, frame_bytes_max=frame_bytes_max)


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive())


async def sleep(stream: Stream) -> None:
    await trio.sleep_forever()


def accept_all(forwarder: str, data: bytes) -> Verdict:
    return Verdict.ACCEPT


# --- streams ---------------------------------------------------------------------------------------------


@check
async def frames_arrive_whole_and_in_order(open_node: OpenNode) -> None:
    frames = [b"", b"x", b"y" * 127, b"z" * 128, b"w" * 70_000, b"v" * FRAME_MAX]
    async with pair(open_node) as (server, client), await open_to(client, server) as stream:
        for frame in frames:
            await stream.send(frame)
            assert await stream.receive() == frame
        async with trio.open_nursery() as nursery:

            async def send_all() -> None:
                for number in range(300):
                    await stream.send(b"%d" % number)

            nursery.start_soon(send_all)
            assert [await stream.receive() for _ in range(300)] == [b"%d" % number for number in range(300)]
        assert stream.peer == server.peer
        assert stream.protocol == PROTOCOL


@check
async def a_frame_over_our_bound_is_not_sent_and_the_stream_goes_on(open_node: OpenNode) -> None:
    async with pair(open_node) as (server, client):
        async with await open_to(client, server, frame_bytes_max=100) as stream:
            async with raises(errors.MessageTooLarge):
                await stream.send(b"x" * 101)
            await stream.send(b"small")
            assert await stream.receive() == b"small"


@check
async def a_frame_over_the_receivers_bound_breaks_that_stream_only(open_node: OpenNode) -> None:
    seen: list[type[BaseException]] = []

    async def serve(stream: Stream) -> None:
        try:
            await echo(stream)
        except errors.StreamError as error:
            seen.append(type(error))
            raise

    async with pair(open_node, serve) as (server, client):
        good = await open_to(client, server)
        bad = await open_to(client, server, frame_bytes_max=FRAME_MAX * 4)
        async with raises(errors.StreamReset):
            await bad.send(b"x" * (FRAME_MAX + 1))
            await bad.receive()
        await eventually(lambda: errors.FrameTooLarge in seen, "the handler sees FrameTooLarge")
        assert server.statistics().frames_refused == 1
        await good.send(b"still here")
        assert await good.receive() == b"still here"
        await good.aclose()


@check
async def after_half_a_close_the_other_half_goes_on(open_node: OpenNode) -> None:
    async def answer_at_the_end(stream: Stream) -> None:
        asked = []
        try:
            while True:
                asked.append(await stream.receive())
        except errors.StreamClosed:
            await stream.send(b",".join(asked))

    async with pair(open_node, answer_at_the_end) as (server, client):
        async with await open_to(client, server) as stream:
            await stream.send(b"a")
            await stream.send(b"b")
            await stream.close_write()
            await stream.close_write()
            async with raises(errors.StreamClosed):
                await stream.send(b"c")
            assert await stream.receive() == b"a,b"
            for _ in range(2):
                async with raises(errors.StreamClosed):
                    await stream.receive()


@check
async def closing_never_fails_and_is_final(open_node: OpenNode) -> None:
    async with pair(open_node) as (server, client):
        stream = await open_to(client, server)
        for _ in range(3):
            await stream.aclose()
        async with raises(errors.StreamClosed):
            await stream.send(b"x")
        async with raises(errors.StreamClosed):
            await stream.receive()
        await eventually(lambda: server.statistics().streams_open == 0, "the server's side ends too")
        assert client.statistics().streams_open == 0
        broken = await open_to(client, server)
        for _ in range(2):
            await broken.reset()
        await broken.aclose()
        async with raises(errors.StreamReset):
            await broken.send(b"x")


@check
async def an_answer_survives_the_close_that_follows_it(open_node: OpenNode) -> None:
    async def answer_once(stream: Stream) -> None:
        await stream.receive()
        await stream.send(b"x" * 200_000)

    async with pair(open_node, answer_once) as (server, client):
        async with await open_to(client, server) as stream:
            await stream.send(b"one")
            await stream.send(b"two, which nobody reads")
            assert len(await stream.receive()) == 200_000
            async with raises(errors.StreamClosed):
                await stream.receive()


@check
async def a_reset_is_seen_by_the_peer_at_once(open_node: OpenNode) -> None:
    async def reset(stream: Stream) -> None:
        await stream.receive()
        await stream.reset()

    async with pair(open_node, reset) as (server, client):
        stream = await open_to(client, server)
        await stream.send(b"go")
        async with raises(errors.StreamReset, within_s=2):
            await stream.receive()
        async with raises(errors.StreamReset):
            await stream.send(b"x")
        await stream.aclose()


@check
async def an_error_in_a_handler_ends_its_stream_and_nothing_else(open_node: OpenNode) -> None:
    async def fail_on_request(stream: Stream) -> None:
        while True:
            frame = await stream.receive()
            if frame == b"fail":
                raise ValueError("a bug, or a trap")
            await stream.send(frame)

    async with pair(open_node, fail_on_request) as (server, client):
        good, bad = await open_to(client, server), await open_to(client, server)
        await bad.send(b"fail")
        async with raises(errors.StreamReset, within_s=2):
            await bad.receive()
        assert server.statistics().handler_errors == 1
        await good.send(b"fine")
        assert await good.receive() == b"fine"
        async with await open_to(client, server) as another:
            await another.send(b"also fine")
            assert await another.receive() == b"also fine"
        await good.aclose()


@check
async def a_reader_that_pauses_makes_the_writer_wait_and_loses_nothing(open_node: OpenNode) -> None:
    resume = trio.Event()
    received: list[bytes] = []
    frames = [bytes([number]) * 60_000 for number in range(40)]  # 2.4 MB, ten windows

    async def pause(stream: Stream) -> None:
        await resume.wait()
        while True:
            received.append(await stream.receive())

    async with pair(open_node, pause) as (server, client):
        stream = await open_to(client, server)
        sent = 0
        async with trio.open_nursery() as nursery:

            async def send_all() -> None:
                nonlocal sent
                for frame in frames:
                    await stream.send(frame)
                    sent += 1
                await stream.close_write()

            nursery.start_soon(send_all)
            await trio.sleep(1)
            assert 0 < sent < 20, f"{sent} frames of 60 kB were taken with nobody reading"
            resume.set()
        await eventually(lambda: len(received) == len(frames), "everything arrives")
        assert received == frames
        await stream.aclose()


@check
async def a_cancelled_receive_loses_nothing(open_node: OpenNode) -> None:
    async with pair(open_node) as (server, client), await open_to(client, server) as stream:
        for number in range(20):
            with trio.move_on_after(0.001):
                await stream.receive()
            await stream.send(b"%d" % number)
            got = None
            with trio.move_on_after(0.0005 * number):
                got = await stream.receive()
            assert (got or await stream.receive()) == b"%d" % number


@check
async def a_send_cancelled_inside_a_frame_breaks_the_stream_for_both(open_node: OpenNode) -> None:
    ends: list[type[BaseException]] = []

    async def watch(stream: Stream) -> None:
        await trio.sleep(0.5)
        try:
            while True:
                await stream.receive()
        except errors.StreamError as error:
            ends.append(type(error))

    async with pair(open_node, watch) as (server, client):
        stream = await open_to(client, server)
        with trio.move_on_after(0.2) as scope:
            await stream.send(b"x" * FRAME_MAX)
        assert scope.cancelled_caught, "a megabyte should not fit a window"
        async with raises(errors.StreamReset):
            await stream.send(b"more")
        await eventually(lambda: ends, "the peer sees an end")
        assert ends == [errors.StreamReset]


@check
async def two_senders_on_one_stream_do_not_mix_their_frames(open_node: OpenNode) -> None:
    async with pair(open_node) as (server, client), await open_to(client, server) as stream:
        async with trio.open_nursery() as nursery:
            for letter in (b"a", b"b", b"c"):
                nursery.start_soon(stream.send, letter * 100_000)
            got = {await stream.receive() for _ in range(3)}
        assert got == {letter * 100_000 for letter in (b"a", b"b", b"c")}


@check
async def sixty_four_streams_at_once_finish_correctly(open_node: OpenNode) -> None:
    async with pair(open_node) as (server, client):

        async def talk(number: int) -> None:
            async with await open_to(client, server) as stream:
                for turn in range(5):
                    await stream.send(b"%d/%d" % (number, turn))
                    assert await stream.receive() == b"%d/%d" % (number, turn)

        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(talk, number)
        assert client.statistics().streams_opened == 64
        await eventually(lambda: server.statistics().streams_open == 0, "all ended")


@check
async def a_peer_over_its_quota_is_refused_and_may_come_back(open_node: OpenNode) -> None:
    async with pair(open_node, streams_per_peer_max=2) as (server, client):
        first, second = await open_to(client, server), await open_to(client, server)
        for stream in (first, second):
            await stream.send(b"x")
            await stream.receive()
        async with raises((errors.OpenFailed, errors.StreamReset), within_s=2):
            third = await open_to(client, server)
            await third.receive()
        assert server.statistics().streams_refused == 1
        await first.aclose()
        await eventually(lambda: server.statistics().streams_open == 1, "a place is free")
        async with await open_to(client, server) as fourth:
            await fourth.send(b"welcome")
            assert await fourth.receive() == b"welcome"
        await second.aclose()


@check
async def opening_streams_without_end_is_refused_and_does_not_hang(open_node: OpenNode) -> None:
    many = Limits(streams_per_peer_max=1000)
    async with open_node(settings(limits=many), key=key_of("server")) as server:
        server.handle(PROTOCOL, echo, frame_bytes_max=FRAME_MAX, streams_per_peer_max=1000)
        async with open_node(settings(server, limits=many), key=key_of("client")) as client:
            await client.wait_connected(timeout_s=PATIENCE_S)
            opened = []
            async with raises(errors.StreamLimitReached, within_s=60):
                for _ in range(300):
                    opened.append(await open_to(client, server))  # noqa: PERF401 - counted when it fails
            assert len(opened) >= 200
            await opened.pop().reset()
            await eventually(lambda: server.statistics().streams_open == len(opened), "one has ended")
            opened.append(await open_to(client, server))
            for stream in opened:
                await stream.reset()


@check
async def a_protocol_that_nobody_serves_is_an_error_of_its_own(open_node: OpenNode) -> None:
    async with pair(open_node) as (server, client):
        async with raises(errors.ProtocolUnsupported):
            await client.open_stream(server.peer, "/nobody/1", frame_bytes_max=100)
        async with await open_to(client, server) as stream:
            await stream.send(b"the connection is fine")
            assert await stream.receive() == b"the connection is fine"


# --- connections -----------------------------------------------------------------------------------------


def bare(node: Node) -> str:
    """The node's first address without its peer id."""
    return node.addresses()[0].split("/p2p/")[0]


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


# --- gossip ----------------------------------------------------------------------------------------------


async def next_message(subscription: Subscription) -> GossipMessage:
    with trio.fail_after(PATIENCE_S):
        return await anext(subscription)


@asynccontextmanager
async def chain(open_node: OpenNode, *, limits: Limits | None = None) -> AsyncIterator[tuple[Node, Node, Node]]:
    """a - b - c: what a says reaches c only through b."""
    async with open_node(settings(limits=limits), key=key_of("b")) as b:
        async with open_node(settings(b, limits=limits), key=key_of("a")) as a:
            async with open_node(settings(b, limits=limits), key=key_of("c")) as c:
                for node in (a, c):
                    await node.wait_connected(timeout_s=PATIENCE_S)
                yield a, b, c


async def publish_heard(node: Node, data: bytes, *, neighbours: int = 1) -> None:
    """Publish once the neighbours are known: right after joining nobody is."""
    with trio.fail_after(PATIENCE_S):
        while await node.publish(TOPIC, data) < neighbours:  # noqa: ASYNC110 - nothing to wait on
            await trio.sleep(0.05)


@check
async def gossip_travels_through_peers_that_accept_it(open_node: OpenNode) -> None:
    async with chain(open_node) as (a, b, c):
        subscriptions = {node.peer: await node.subscribe(TOPIC, accept_all) for node in (a, b, c)}
        await publish_heard(a, b"news")
        for node in (a, b, c):
            message = await next_message(subscriptions[node.peer])
            assert (message.topic, message.data, message.source) == (TOPIC, b"news", a.peer)
        assert subscriptions[a.peer].topic == TOPIC
        await publish_heard(a, b"more news")
        message = await next_message(subscriptions[c.peer])
        while message.data == b"news":  # published again while nobody was known
            message = await next_message(subscriptions[c.peer])
        assert message.forwarder == b.peer


@check
async def a_rejected_or_ignored_message_is_neither_delivered_nor_forwarded(open_node: OpenNode) -> None:
    def judge(forwarder: str, data: bytes) -> Verdict:
        if data == b"bug":
            raise RuntimeError("in the validator")
        return {b"bad": Verdict.REJECT, b"old": Verdict.IGNORE}.get(data, Verdict.ACCEPT)

    async with chain(open_node) as (a, b, c):
        await a.subscribe(TOPIC, accept_all)
        middle = await b.subscribe(TOPIC, judge)
        far = await c.subscribe(TOPIC, accept_all)
        await publish_heard(a, b"start")
        await publish_heard(b, b"start", neighbours=2)
        for data in (b"bad", b"old", b"bug", b"good"):
            await a.publish(TOPIC, data)
        for subscription in (middle, far):
            heard: list[bytes] = []
            while not heard or heard[-1] != b"good":
                heard.append((await next_message(subscription)).data)
            assert set(heard) == {b"start", b"good"}
        statistics = b.statistics()
        assert (statistics.gossip_rejected, statistics.gossip_ignored) == (1, 2)


@check
async def a_burst_of_gossip_arrives_whole(open_node: OpenNode) -> None:
    async with chain(open_node) as (a, b, c):
        for node in (a, b):
            await node.subscribe(TOPIC, accept_all)
        far = await c.subscribe(TOPIC, accept_all)
        await publish_heard(a, b"start")
        await publish_heard(b, b"start", neighbours=2)
        for number in range(200):
            await a.publish(TOPIC, b"%d" % number)
        heard: set[bytes] = set()
        while len(heard - {b"start"}) < 200:
            heard.add((await next_message(far)).data)


@check
async def a_slow_subscriber_loses_the_newest_and_the_loss_is_counted(open_node: OpenNode) -> None:
    async with open_node(settings(limits=Limits(gossip_queue_max=5)), key=key_of("a")) as node:
        subscription = await node.subscribe(TOPIC, accept_all)
        for number in range(8):
            assert await node.publish(TOPIC, b"%d" % number) == 0
        assert subscription.dropped == 3
        assert node.statistics().gossip_dropped == 3
        assert [(await next_message(subscription)).data for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
        await subscription.aclose()
        await subscription.aclose()
        assert [message async for message in subscription] == []


@check
async def gossip_has_rules_for_the_local_program_too(open_node: OpenNode) -> None:
    async with open_node(settings(limits=Limits(gossip_message_bytes_max=100)), key=key_of("a")) as node:
        first = await node.subscribe(TOPIC, accept_all)
        async with raises(errors.SettingsInvalid):
            await node.subscribe(TOPIC, accept_all)
        async with raises(errors.MessageTooLarge):
            await node.publish(TOPIC, b"x" * 101)
        await first.aclose()
        await (await node.subscribe(TOPIC, accept_all)).aclose()
    async with open_node(settings(gossip=False), key=key_of("b")) as silent:
        async with raises(errors.GossipDisabled):
            await silent.publish(TOPIC, b"x")
        async with raises(errors.GossipDisabled):
            await silent.subscribe(TOPIC, accept_all)


# --- DHT -------------------------------------------------------------------------------------------------


@check
async def providers_are_found_through_a_third_peer(open_node: OpenNode) -> None:
    key = key_of("a model")
    async with open_node(settings(), key=key_of("server")) as server:
        async with (
            open_node(settings(server), key=key_of("provider")) as provider,
            open_node(settings(server, dht_mode=DhtMode.CLIENT), key=key_of("client")) as client,
        ):
            for node in (provider, client):
                await node.wait_connected(timeout_s=PATIENCE_S)
            assert await client.find_providers(key, count_max=10) == ()
            await provider.provide(key)
            (found,) = await client.find_providers(key, count_max=10)
            assert found.peer == provider.peer
            assert found.addresses == (bare(provider),)
            assert await provider.find_providers(key, count_max=10) == (), "a provider does not find itself"
            assert (await client.find_peer(provider.peer)).addresses == (bare(provider),)
            await client.connect(found.peer, found.addresses)
            async with raises(errors.PeerNotFound, within_s=40):
                await client.find_peer(peer_id_of_seed(key_of("stranger")))
            async with raises(errors.SettingsInvalid):
                await client.find_providers(b"short", count_max=1)
            await client.provide(key)
            both = await server.find_providers(key, count_max=10)
            assert {info.peer for info in both} == {provider.peer, client.peer}
            assert len(await server.find_providers(key, count_max=1)) == 1


@check
async def a_dht_without_peers_says_so(open_node: OpenNode) -> None:
    async with open_node(settings(), key=key_of("lonely")) as node:
        async with raises(errors.DhtFailed):
            await node.provide(key_of("k"))
        async with raises(errors.DhtFailed):
            await node.find_providers(key_of("k"), count_max=1)
