"""Our parts against py-libp2p's own, each dialling the other, on loopback."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p import new_swarm
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.basic_host import BasicHost
from libp2p.host.ping import PingService
from libp2p.network.config import ConnectionConfig
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

from p2p.driver.transport import MuxedConnection, NoiseYamuxTcp

LISTEN = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
ECHO = "/interop/echo/1"


@pytest.fixture(autouse=True)
def _forgive_libp2p_its_open_sockets() -> Iterator[None]:
    """libp2p 0.8.1 leaves sockets of its own transport to the garbage collector: collect them here, silently,
    so that they do not fail a later test. (Ours are closed: the tests of links run without this.)"""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


async def echo(stream: object) -> None:
    try:
        while True:
            await stream.write(await stream.read(65536))  # type: ignore[attr-defined]
    except StreamEOF:
        await stream.close()  # type: ignore[attr-defined]


def make_host(ours: bool) -> BasicHost:
    keys = create_new_key_pair(os.urandom(32))
    transports = [NoiseYamuxTcp(keys.private_key.to_bytes()[:32])] if ours else None
    config = ConnectionConfig(max_connections_per_peer=1)
    host = BasicHost(new_swarm(key_pair=keys, connection_config=config, transports=transports))
    host.set_stream_handler(ECHO, echo)
    return host


@asynccontextmanager
async def connected(dialer_is_ours: bool, listener_is_ours: bool) -> AsyncIterator[tuple[BasicHost, BasicHost]]:
    dialer, listener = make_host(dialer_is_ours), make_host(listener_is_ours)
    with trio.fail_after(30):
        async with listener.run(listen_addrs=LISTEN), dialer.run(listen_addrs=LISTEN):
            await dialer.connect(info_from_p2p_addr(listener.get_addrs()[0]))
            yield dialer, listener


DIRECTIONS = pytest.mark.parametrize(
    ("dialer_is_ours", "listener_is_ours"), [(True, False), (False, True), (True, True)]
)


@DIRECTIONS
def test_an_echo_of_a_megabyte_with_half_close(dialer_is_ours: bool, listener_is_ours: bool) -> None:
    async def check() -> None:
        async with connected(dialer_is_ours, listener_is_ours) as (dialer, listener):
            connection = dialer.get_network().get_connections()[0].muxed_conn
            assert isinstance(connection, MuxedConnection) == dialer_is_ours
            stream = await dialer.new_stream(listener.get_id(), [ECHO])
            data = os.urandom(1_000_000)
            got = bytearray()

            async def send() -> None:
                for start in range(0, len(data), 50_000):
                    await stream.write(data[start : start + 50_000])
                await stream.close_write()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while len(got) < len(data):
                    got += await stream.read(65536)
                with pytest.raises(StreamEOF):
                    await stream.read(1)
            assert bytes(got) == data

    trio.run(check)


@DIRECTIONS
def test_identify_and_ping(dialer_is_ours: bool, listener_is_ours: bool) -> None:
    async def check() -> None:
        async with connected(dialer_is_ours, listener_is_ours) as (dialer, listener):
            listener.set_stream_handler("/ipfs/ping/1.0.0", _pong)
            assert len(await PingService(dialer).ping(listener.get_id(), 3)) == 3
            while ECHO not in dialer.get_peerstore().get_protocols(listener.get_id()):
                await trio.sleep(0.02)

    trio.run(check)


async def _pong(stream: object) -> None:
    try:
        while True:
            await stream.write(await stream.read(32))  # type: ignore[attr-defined]
    except StreamEOF:
        await stream.close()  # type: ignore[attr-defined]


@DIRECTIONS
def test_a_hundred_streams_at_once(dialer_is_ours: bool, listener_is_ours: bool) -> None:
    async def check() -> None:
        async with connected(dialer_is_ours, listener_is_ours) as (dialer, listener):
            done = 0

            async def one(number: int) -> None:
                nonlocal done
                stream = await dialer.new_stream(listener.get_id(), [ECHO])
                message = b"%d" % number * 100
                await stream.write(message)
                got = b""
                while len(got) < len(message):
                    got += await stream.read(len(message) - len(got))
                assert got == message
                await stream.close()
                done += 1

            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(one, number)
            assert done == 100

    trio.run(check)


def test_a_peer_that_answers_for_another_is_refused() -> None:
    async def check() -> None:
        listener, stranger, dialer = make_host(False), make_host(False), make_host(True)
        async with listener.run(listen_addrs=LISTEN), dialer.run(listen_addrs=LISTEN):
            address = str(listener.get_addrs()[0]).split("/p2p/")[0]
            info = info_from_p2p_addr(Multiaddr(f"{address}/p2p/{stranger.get_id()}"))
            with trio.fail_after(20), pytest.raises(Exception, match=r"."):
                await dialer.connect(info)
            assert dialer.get_network().get_connections() == []

    trio.run(check)


def test_a_peer_that_ignores_the_window_is_cut_off_and_its_bytes_are_not_kept() -> None:
    async def check() -> None:
        async with connected(False, True) as (dialer, listener):
            held: list[object] = []

            async def never_read(stream: object) -> None:
                held.append(stream)
                await trio.sleep_forever()

            listener.set_stream_handler("/interop/never/1", never_read)
            stream = await dialer.new_stream(listener.get_id(), ["/interop/never/1"])
            (victim,) = [c.muxed_conn for c in listener.get_network().get_connections()]
            muxed = stream.muxed_stream
            peak = 0
            with trio.move_on_after(5):
                try:
                    while True:
                        muxed.send_window = 1 << 30
                        await muxed.write(bytes(32_000))
                        peak = max(peak, victim.session.unread_bytes)
                except Exception:
                    pass
            with trio.fail_after(5):
                await victim.closed.wait()
            assert 0 < peak <= 256 * 1024
            assert victim.session.unread_bytes == 0

    trio.run(check)
