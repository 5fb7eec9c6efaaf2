"""WebSocket, QUIC and IPv6 carry the same streams as TCP on IPv4."""

from __future__ import annotations

import socket

import pytest
import trio

import p2p
from p2p.testing.contract.tools import PROTOCOL, echo, key_of, settings

FRAME_MAX = 1 << 20


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "listen",
    [
        "/ip4/127.0.0.1/tcp/0/ws",
        "/ip4/127.0.0.1/udp/0/quic-v1",
        "/ip6/::1/tcp/0",
        "/ip6/::1/tcp/0/ws",
        "/ip6/::1/udp/0/quic-v1",
    ],
)
def test_frames_go_both_ways(listen: str) -> None:
    if "ip6" in listen and not has_ipv6():
        pytest.skip("no IPv6 on loopback here")

    async def main() -> None:
        with trio.fail_after(30):
            async with (
                p2p.open_node(settings(listen=(listen,)), key=key_of("server")) as server,
                p2p.open_node(settings(server, listen=()), key=key_of("client")) as client,
            ):
                server.handle(PROTOCOL, echo, frame_bytes_max=FRAME_MAX, streams_per_peer_max=8)
                assert server.addresses()[0].endswith(f"{listen.split('/0')[-1]}/p2p/{server.peer}")
                await client.wait_connected(timeout_s=10)
                stream = await client.open_stream(server.peer, PROTOCOL, frame_bytes_max=FRAME_MAX)
                for frame in (b"", b"hello", bytes(900_000)):
                    await stream.send(frame)
                    assert await stream.receive() == frame
                await stream.aclose()

    trio.run(main)


def test_a_stranger_who_speaks_http_or_nonsense_to_a_websocket_is_cut_off() -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with p2p.open_node(settings(listen=("/ip4/127.0.0.1/tcp/0/ws",)), key=key_of("server")) as server:
                port = int(server.addresses()[0].split("/")[4])
                for said in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\xff" * 100_000, b"\r\n\r\n"):
                    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                        try:
                            await stream.send_all(said)
                            while await stream.receive_some():
                                continue
                        except trio.BrokenResourceError:
                            pass
                server.handle(PROTOCOL, echo, frame_bytes_max=FRAME_MAX, streams_per_peer_max=8)
                async with p2p.open_node(settings(server, listen=()), key=key_of("client")) as client:
                    await client.wait_connected(timeout_s=10)

    trio.run(main)
