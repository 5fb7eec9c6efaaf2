"""A peer in a process of its own is killed without a word: whoever talks to it knows within two seconds."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import trio

import p2p
from p2p.testing.contract.tools import PROTOCOL, key_of, settings

SERVER = """
import trio, p2p
from p2p.testing.contract.tools import PROTOCOL, echo, key_of, settings
async def main():
    async with p2p.open_node(settings(), key=key_of("server")) as node:
        node.handle(PROTOCOL, echo, frame_bytes_max=1 << 20, streams_per_peer_max=4)
        print(node.addresses()[0], flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


def test_a_stream_to_a_killed_process_is_reset_within_two_seconds() -> None:
    async def talk_and_kill(server: subprocess.Popen[str], address: str) -> None:
        peer = address.rpartition("/")[2]
        with trio.fail_after(30):
            async with p2p.open_node(settings(), key=key_of("client")) as client:
                stream = await client.open_stream(peer, PROTOCOL, addresses=[address], frame_bytes_max=1 << 20)
                await stream.send(b"x")
                assert await stream.receive() == b"x"
                server.kill()
                started = time.monotonic()
                with pytest.raises(p2p.StreamReset):
                    await stream.receive()
                assert time.monotonic() - started < 2
                with pytest.raises(p2p.DialFailed, match=r"connection (refused|reset)"):
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
