"""Streams: whole frames, bounds, quotas, and ends that are always clear."""

from __future__ import annotations

import trio

from p2p import errors
from p2p.interface import Limits, Stream
from p2p.testing.contract.tools import (
    FRAME_MAX,
    PATIENCE_S,
    PROTOCOL,
    OpenNode,
    check,
    echo,
    eventually,
    key_of,
    open_to,
    pair,
    raises,
    settings,
)


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
