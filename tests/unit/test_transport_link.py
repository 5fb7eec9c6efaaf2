"""Links on real sockets: what a program sees of its streams when peers are slow, rude or gone."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from p2p.errors import OpenFailed, StreamClosed, StreamReset
from p2p.noise import ed25519_identity, verify_ed25519
from p2p.transport import Connection, Link, LinkClosed, open_link
from p2p.transport.signal import Signal
from p2p.yamux import YamuxSettings


def run(check: Callable[[], Awaitable[None]], **options: object) -> None:
    async def bounded() -> None:
        with trio.fail_after(20):
            await check()

    trio.run(bounded, **options)  # type: ignore[arg-type]


def connection(side: int, settings: YamuxSettings) -> Connection:
    return Connection(
        is_dialer=side == 0,
        identity=ed25519_identity(seed=bytes([side + 1]) * 32, static_private=os.urandom(32)),
        verify=verify_ed25519,
        ephemeral_private=os.urandom(32),
        now=0,
        settings=settings,
    )


@asynccontextmanager
async def links(settings: YamuxSettings | None = None, *, run_both: bool = True) -> AsyncIterator[list[Link]]:
    settings = settings or YamuxSettings()
    sockets = socket.socketpair()
    found: list[Link] = []

    async def upgrade(side: int) -> None:
        sockets[side].setblocking(False)
        found.append(await open_link(sockets[side], connection(side, settings), link_type=Link))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(upgrade, 0)
        nursery.start_soon(upgrade, 1)
    found.sort(key=lambda link: not link.is_dialer)
    async with trio.open_nursery() as nursery:
        for link in found if run_both else found[:1]:
            nursery.start_soon(link.run)
        yield found
        for link in found:
            link.close_nowait()
        nursery.cancel_scope.cancel()


def test_a_megabyte_goes_each_way_at_the_same_time_and_half_close_ends_each() -> None:
    async def check() -> None:
        async with links() as (one, two):
            ours = one.open_nowait()
            theirs = await two.accept()
            got: dict[str, bytes] = {}

            async def send(stream: object, data: bytes) -> None:
                await stream.write_all(data)  # type: ignore[attr-defined]
                await stream.close_write()  # type: ignore[attr-defined]

            async def receive(name: str, stream: object) -> None:
                data = b""
                while piece := await stream.read_some():  # type: ignore[attr-defined]
                    data += piece
                got[name] = data

            up, down = os.urandom(1_000_000), os.urandom(1_000_000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, ours, up)
                nursery.start_soon(send, theirs, down)
                nursery.start_soon(receive, "up", theirs)
                nursery.start_soon(receive, "down", ours)
            assert got == {"up": up, "down": down}
            assert ours.is_closed

    run(check)


def test_a_writer_waits_while_the_peer_does_not_read_and_nothing_breaks() -> None:
    async def check() -> None:
        async with links() as (one, two):
            ours = one.open_nowait()
            theirs = await two.accept()
            with trio.move_on_after(0.5) as scope:
                await ours.write_all(bytes(10_000_000))
            assert scope.cancelled_caught, "the writer waits"
            held = two.session.unread_bytes
            assert held <= 256 * 1024, "the reader's memory holds one window"
            assert await theirs.read_some() == bytes(64 * 1024)

    run(check)


def test_a_reader_that_is_cancelled_loses_nothing() -> None:
    async def check() -> None:
        async with links() as (one, two):
            ours = one.open_nowait()
            theirs = await two.accept()
            with trio.move_on_after(0.05):
                await theirs.read_some()
            await ours.write_all(b"later")
            assert await theirs.read_some() == b"later"

    run(check)


def test_a_peer_that_hangs_up_ends_reads_writes_accepts_and_opens() -> None:
    async def check() -> None:
        async with links() as (one, two):
            ours = one.open_nowait()
            await two.accept()
            errors: list[type] = []

            async def expect(call: Callable[[], Awaitable[object]]) -> None:
                try:
                    await call()
                except (StreamReset, LinkClosed) as error:
                    errors.append(type(error))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect, ours.read_some)
                nursery.start_soon(expect, lambda: ours.write_all(bytes(10_000_000)))
                nursery.start_soon(expect, one.accept)
                await trio.testing.wait_all_tasks_blocked(0.05)
                two.close_nowait()
            assert sorted(error.__name__ for error in errors) == ["LinkClosed", "StreamReset", "StreamReset"]
            await one.closed.wait()
            with pytest.raises(LinkClosed):
                one.open_nowait()

    run(check)


def test_writing_after_closing_our_side_says_so() -> None:
    async def check() -> None:
        async with links() as (one, two):
            ours = one.open_nowait()
            await two.accept()
            await ours.close_write()
            with pytest.raises(StreamClosed):
                await ours.write_all(b"more")

    run(check)


def test_a_reset_reaches_the_peers_reader_and_writer() -> None:
    async def check() -> None:
        async with links() as (one, two):
            ours = one.open_nowait()
            theirs = await two.accept()
            await ours.reset()
            with pytest.raises(StreamReset):
                await theirs.read_some()
            with pytest.raises(StreamReset):
                await theirs.write_all(b"x")

    run(check)


def test_the_stream_limit_is_an_error_at_once_and_not_a_wait() -> None:
    async def check() -> None:
        async with links(YamuxSettings(streams_outbound_max=3)) as (one, _):
            for _ in range(3):
                one.open_nowait()
            with pytest.raises(OpenFailed):
                one.open_nowait()

    run(check)


def test_a_stream_that_nobody_reads_any_more_takes_no_memory_and_is_reset_after_a_while() -> None:
    async def check() -> None:
        async with links() as (one, two):
            ours = one.open_nowait()
            theirs = await two.accept()
            await theirs.release()
            await ours.write_all(bytes(60_000))
            assert not ours.is_closed
            with pytest.raises(StreamReset):
                await ours.write_all(bytes(1_000_000))
            assert two.session.unread_bytes == 0

    run(check)


def test_a_silent_peer_is_given_up_after_the_keep_alive_runs_out() -> None:
    async def check() -> None:
        async with links(run_both=False) as (one, _):
            await one.closed.wait()
            assert one.error is not None

    async def bounded() -> None:
        with trio.fail_after(3600):
            await check()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_a_writer_that_never_has_to_wait_still_lets_other_tasks_run() -> None:
    async def check() -> None:
        async with links() as (one, two):
            ours = one.open_nowait()
            theirs = await two.accept()
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    await trio.lowlevel.checkpoint()
                    turns += 1

            async def drain() -> None:
                while True:
                    await theirs.read_some()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(count)
                nursery.start_soon(drain)
                for _ in range(6400):
                    await ours.write_all(b"x")
                nursery.cancel_scope.cancel()
            assert turns >= 50

    run(check)


def test_a_second_reader_on_one_stream_is_refused_rather_than_starved() -> None:
    async def check() -> None:
        signal = Signal()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(signal.wait)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await signal.wait()
            signal.notify()

    run(check)
