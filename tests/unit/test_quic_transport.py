"""QUIC under a whole node, on loopback: many streams, many peers, dead peers, bad lines, and TCP beside it."""

from __future__ import annotations

import errno
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import trio

import p2p
from p2p.driver import quic_link, quic_tamed, swarm
from p2p.errors import StreamClosed
from p2p.identity import peer_id_of_seed
from p2p.interface import PeerInfo
from p2p.testing.contract.tools import PROTOCOL, echo, eventually, key_of, open_to, settings

LISTEN = "/ip4/127.0.0.1/udp/0/quic-v1"
FRAME_MAX = 1 << 20


@asynccontextmanager
async def server_and_client(
    *, listen: tuple[str, ...] = (LISTEN,), handler: Any = echo, streams: int = 200
) -> AsyncIterator[tuple[p2p.Node, p2p.Node]]:
    limits = p2p.Limits(streams_per_peer_max=streams)
    with trio.fail_after(60):
        async with (
            p2p.open_node(settings(listen=listen, limits=limits), key=key_of("server")) as server,
            p2p.open_node(settings(listen=(), limits=limits), key=key_of("client")) as client,
        ):
            server.handle(PROTOCOL, handler, frame_bytes_max=FRAME_MAX, streams_per_peer_max=streams)
            yield server, client


# --- streams -------------------------------------------------------------------------------------------------


def test_a_hundred_streams_at_once_each_get_their_own_bytes_back() -> None:
    async def main() -> None:
        async with server_and_client() as (server, client):
            await client.connect(server.peer, server.addresses())

            async def talk(number: int) -> None:
                async with await open_to(client, server) as stream:
                    for turn in range(3):
                        frame = random.Random(number * 10 + turn).randbytes(20_000)
                        await stream.send(frame)
                        assert await stream.receive() == frame

            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(talk, number)
            await eventually(lambda: server.statistics().streams_open == 0, "all ended")
            assert len(server.connections()) == 1

    trio.run(main)


def test_megabytes_arrive_whole_while_a_small_stream_is_answered_beside_them() -> None:
    async def main() -> None:
        async with server_and_client() as (server, client):
            await client.connect(server.peer, server.addresses())
            bulk, small = await open_to(client, server), await open_to(client, server)
            frame = random.Random(1).randbytes(FRAME_MAX)
            waits: list[float] = []
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    for _ in range(8):
                        await bulk.send(frame)

                async def receive() -> None:
                    for _ in range(8):
                        assert await bulk.receive() == frame
                    nursery.cancel_scope.cancel()

                nursery.start_soon(send)
                nursery.start_soon(receive)
                while True:
                    started = time.monotonic()
                    await small.send(b"ping")
                    await small.receive()
                    waits.append(time.monotonic() - started)
            assert len(waits) > 5
            assert sorted(waits)[len(waits) // 2] < 0.5

    trio.run(main)


def test_what_was_sent_before_the_node_closed_arrives() -> None:
    got: list[bytes] = []

    async def keep(stream: p2p.Stream) -> None:
        try:
            while True:
                got.append(await stream.receive())
        except StreamClosed:
            pass

    async def main() -> None:
        async with server_and_client(handler=keep) as (server, _):
            async with p2p.open_node(settings(listen=()), key=key_of("in a hurry")) as node:
                stream = await node.open_stream(
                    server.peer, PROTOCOL, addresses=server.addresses(), frame_bytes_max=FRAME_MAX
                )
                for number in range(4):
                    await stream.send(bytes([number]) * 60_000)
                await stream.aclose()
            await eventually(lambda: len(got) == 4, "all four")

    trio.run(main)


# --- peers that go -------------------------------------------------------------------------------------------

SERVER = f"""
import trio, p2p
from p2p.testing.contract.tools import PROTOCOL, echo, key_of, settings
async def main():
    async with p2p.open_node(settings(listen=({LISTEN!r},)), key=key_of("server")) as node:
        node.handle(PROTOCOL, echo, frame_bytes_max=1 << 20, streams_per_peer_max=4)
        print(node.addresses()[0], flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


def test_a_stream_to_a_killed_process_is_reset_soon_after_the_next_word() -> None:
    async def talk_and_kill(server: subprocess.Popen[str], address: str) -> None:
        peer = address.rpartition("/")[2]
        with trio.fail_after(30):
            async with p2p.open_node(settings(listen=()), key=key_of("client")) as client:
                stream = await client.open_stream(peer, PROTOCOL, addresses=[address], frame_bytes_max=1 << 20)
                await stream.send(b"x")
                assert await stream.receive() == b"x"
                server.kill()
                server.wait(10)
                started = time.monotonic()
                await stream.send(b"are you there?")  # nobody says goodbye for a killed process, so nothing comes
                with pytest.raises(p2p.StreamReset):
                    await stream.receive()
                assert time.monotonic() - started < 4
                with pytest.raises(p2p.DialFailed, match="connection refused"):
                    await client.open_stream(peer, PROTOCOL, addresses=[address], frame_bytes_max=1 << 20)

    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        assert address, "the server did not start"
        trio.run(talk_and_kill, server, address)
    finally:
        server.kill()
        server.wait(10)
        if server.stdout is not None:
            server.stdout.close()


def test_a_forged_word_that_nobody_listens_there_does_not_end_a_connection() -> None:
    async def main() -> None:
        async with server_and_client() as (server, client):
            stream = await client.open_stream(
                server.peer, PROTOCOL, addresses=server.addresses(), frame_bytes_max=FRAME_MAX
            )
            link: Any = client._swarm.get_connections()[0].muxed_conn  # type: ignore[attr-defined]
            link.note_refused(OSError(errno.ECONNREFUSED, "forged"))
            await trio.sleep(quic_link.SUSPECT_S + 0.5)
            await stream.send(b"x")
            assert await stream.receive() == b"x"

    trio.run(main)


def test_a_quiet_connection_is_kept_and_a_dead_line_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_tamed, "IDLE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(quic_link, "KEEPALIVE_S", 0.3)

    async def main() -> None:
        async with server_and_client() as (server, client), Line() as line:
            await line.forward_to(server)
            await client.connect(server.peer, [line.address])
            (before,) = client.connections()
            await trio.sleep(3)
            (after,) = client.connections()
            assert before.opened_at == after.opened_at, "idle for three times the idle time"
            line.loses = 1.0
            await eventually(lambda: not client.connections() and not server.connections(), "both notice")

    trio.run(main)


def test_a_dead_port_is_refused_at_once_and_a_deaf_one_after_its_time() -> None:
    stranger = peer_id_of_seed(key_of("stranger"))

    async def main() -> None:
        limits = p2p.Limits(dial_timeout_s=0.5)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
            deaf.bind(("127.0.0.1", 0))
            async with p2p.open_node(settings(listen=(), limits=limits), key=key_of("client")) as client:
                with pytest.raises(p2p.DialFailed, match="connection refused"):
                    await client.connect(stranger, ["/ip4/127.0.0.1/udp/1/quic-v1"])
                with pytest.raises(p2p.DialFailed, match=r"timed out after 0\.5 s"):
                    await client.connect(stranger, [f"/ip4/127.0.0.1/udp/{deaf.getsockname()[1]}/quic-v1"])

    trio.run(main)


# --- beside TCP ----------------------------------------------------------------------------------------------


def test_tcp_is_taken_when_there_is_both_and_quic_when_tcp_fails() -> None:
    async def main() -> None:
        async with server_and_client(listen=("/ip4/127.0.0.1/tcp/0", LISTEN)) as (server, client):
            tcp, quic = server.addresses()
            await client.connect(server.peer, [quic, tcp])
            assert "/tcp/" in client.connections()[0].address
            await client.disconnect(server.peer)
            started = time.monotonic()
            await client.connect(server.peer, ["/ip4/127.0.0.1/tcp/1", quic])
            assert "/quic-v1" in client.connections()[0].address
            assert time.monotonic() - started < swarm.QUIC_WAIT_S, "nothing to wait for once TCP has failed"

    trio.run(main)


def test_quic_is_tried_when_tcp_keeps_silent() -> None:
    async def main() -> None:
        with socket.socket() as full:  # accepts by the system, and never answers
            full.bind(("127.0.0.1", 0))
            full.listen(1)
            async with server_and_client() as (server, client):
                await client.connect(server.peer, [f"/ip4/127.0.0.1/tcp/{full.getsockname()[1]}", *server.addresses()])
                assert "/quic-v1" in client.connections()[0].address

    trio.run(main)


def test_a_name_leads_to_quic_and_both_sides_see_quic_addresses() -> None:
    class Book:
        def __init__(self) -> None:
            self.saved: list[PeerInfo] = []

        def load(self) -> list[PeerInfo]:
            return []

        def save(self, peers: Any) -> None:
            self.saved = list(peers)

    async def main() -> None:
        book = Book()
        async with server_and_client() as (server, _):
            port = server.addresses()[0].split("/")[4]
            mine = replace(settings(listen=()), address_book=book)
            async with p2p.open_node(mine, key=key_of("third")) as node:
                await node.connect(server.peer, [f"/dns4/localhost/udp/{port}/quic-v1"])
                await eventually(lambda: node.reachability().observed, "the server says where we are")
                assert all("/udp/" in seen and "/quic-v1" in seen for seen in node.reachability().observed)
                await eventually(lambda: server.connections()[0].agent, "identified")
                assert server.connections()[0].address == node.reachability().observed[0]
            (known,) = book.saved
            assert known.addresses == (f"/ip4/127.0.0.1/udp/{port}/quic-v1",)

    trio.run(main)


def test_a_port_can_be_tcp_and_quic_but_not_quic_twice() -> None:
    async def main() -> None:
        async with server_and_client() as (server, _):
            port = server.addresses()[0].split("/")[4]
            async with p2p.open_node(settings(listen=(f"/ip4/127.0.0.1/tcp/{port}",)), key=key_of("other")):
                pass
            with pytest.raises(p2p.ListenFailed, match="address already in use"):
                async with p2p.open_node(settings(listen=(f"/ip4/127.0.0.1/udp/{port}/quic-v1",)), key=key_of("o")):
                    pass

    trio.run(main)


def test_thirty_peers_share_one_socket_and_a_relay_works_over_it() -> None:
    no_checks = p2p.ReachSettings(check=False, hole_punching=False, relay_use=p2p.RelayUse.NEVER)

    async def main() -> None:
        relaying = replace(settings(listen=(LISTEN,)), relay=True, reach=no_checks)
        with trio.fail_after(60):
            async with p2p.open_node(relaying, key=key_of("relay")) as relay, trio.open_nursery() as nursery:
                relay.handle(PROTOCOL, echo, frame_bytes_max=FRAME_MAX, streams_per_peer_max=8)
                served: list[int] = []

                async def guest(number: int) -> None:
                    async with p2p.open_node(settings(listen=(), gossip=False), key=key_of(f"g{number}")) as node:
                        stream = await node.open_stream(
                            relay.peer, PROTOCOL, addresses=relay.addresses(), frame_bytes_max=FRAME_MAX
                        )
                        await stream.send(b"%d" % number)
                        assert await stream.receive() == b"%d" % number
                        served.append(number)
                        await trio.sleep_forever()

                for number in range(30):
                    nursery.start_soon(guest, number)
                await eventually(lambda: len(served) == 30, "all are served")
                assert len(relay.connections()) == 30
                nursery.cancel_scope.cancel()
            async with p2p.open_node(relaying, key=key_of("relay")) as relay:
                held = replace(no_checks, relay_use=p2p.RelayUse.ALWAYS, relays=tuple(relay.addresses()))
                async with (
                    p2p.open_node(replace(settings(listen=(LISTEN,)), reach=held), key=key_of("hidden")) as hidden,
                    p2p.open_node(replace(settings(listen=()), reach=no_checks), key=key_of("guest")) as visitor,
                ):
                    hidden.handle(PROTOCOL, echo, frame_bytes_max=FRAME_MAX, streams_per_peer_max=8)
                    await eventually(lambda: hidden.reachability().reach is p2p.Reach.RELAY, "a place at the relay")
                    (address,) = [text for text in hidden.addresses() if "/p2p-circuit" in text]
                    assert "/quic-v1/p2p/" in address
                    stream = await visitor.open_stream(
                        hidden.peer, PROTOCOL, addresses=[address], frame_bytes_max=FRAME_MAX
                    )
                    await stream.send(bytes(200_000))
                    assert await stream.receive() == bytes(200_000)
                    await stream.aclose()

    trio.run(main)


# --- bad lines -----------------------------------------------------------------------------------------------


class Line:
    """A forwarder of datagrams between one client and a server, as a NAT is one: it may lose some, turn their order,
    and change the port that the server sees."""

    loses = 0.0
    turns = 0.0
    deaf_outwards = False  # nothing of the server's arrives

    async def __aenter__(self) -> Line:
        self.chance = random.Random(7)
        self.near = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        await self.near.bind(("127.0.0.1", 0))
        self.address = f"/ip4/127.0.0.1/udp/{self.near.getsockname()[1]}/quic-v1"
        self.client: Any = None
        self.nursery_manager = trio.open_nursery()
        self.nursery = await self.nursery_manager.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.near.close()
        self.far.close()
        self.nursery.cancel_scope.cancel()
        await self.nursery_manager.__aexit__(*error)

    async def forward_to(self, server: p2p.Node) -> None:
        self.where = ("127.0.0.1", int(server.addresses()[0].split("/")[4]))
        await self.change_port()
        self.nursery.start_soon(self.inwards)

    async def change_port(self) -> None:
        far = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        await far.bind(("127.0.0.1", 0))
        if hasattr(self, "far"):
            self.far.close()
        self.far = far
        self.nursery.start_soon(self.outwards, far)

    async def inwards(self) -> None:
        held = b""
        with suppress(trio.ClosedResourceError, OSError):
            while True:
                data, self.client = await self.near.recvfrom(2048)
                if self.chance.random() < self.loses:
                    continue
                if not held and self.chance.random() < self.turns:
                    held = data
                    continue
                for one in (data, held) if held else (data,):
                    await self.far.sendto(one, self.where)
                held = b""

    async def outwards(self, far: Any) -> None:
        with suppress(trio.ClosedResourceError, OSError):
            while True:
                data, _ = await far.recvfrom(2048)
                if self.chance.random() >= self.loses and not self.deaf_outwards:
                    await self.near.sendto(data, self.client)


def test_a_line_that_loses_and_turns_datagrams_delivers_all_the_same() -> None:
    async def main() -> None:
        async with server_and_client() as (server, client), Line() as line:
            await line.forward_to(server)
            line.loses, line.turns = 0.03, 0.05
            await client.connect(server.peer, [line.address])
            async with await open_to(client, server) as stream:
                for number in range(10):
                    frame = random.Random(number).randbytes(40_000)
                    await stream.send(frame)
                    assert await stream.receive() == frame

    trio.run(main)


def test_a_connection_survives_a_nat_that_gives_it_another_port() -> None:
    async def main() -> None:
        async with server_and_client() as (server, client), Line() as line:
            await line.forward_to(server)
            await client.connect(server.peer, [line.address])
            async with await open_to(client, server) as stream:
                await stream.send(b"before")
                assert await stream.receive() == b"before"
                (before,) = server.connections()
                await line.change_port()
                await stream.send(b"after" * 10_000)
                assert await stream.receive() == b"after" * 10_000
                (after,) = server.connections()
                assert (before.peer, before.opened_at) == (after.peer, after.opened_at)
                assert before.address != after.address

    trio.run(main)


def test_a_dial_that_is_given_up_does_not_leave_the_other_side_waiting() -> None:
    async def main() -> None:
        async with server_and_client() as (server, client), Line() as line:
            await line.forward_to(server)
            door: Any = next(iter(server._swarm.listeners.values()))._doors[0]  # type: ignore[attr-defined]
            line.deaf_outwards = True
            with trio.move_on_after(0.2):
                await client.connect(server.peer, [line.address])
                assert door._half_open_total <= 1
            with trio.fail_after(5):  # half of the time that a handshake may take
                while door._half_open_total:
                    await trio.sleep(0.02)

    trio.run(main)
