"""The node under attack, in a process of its own so that its memory can be told: lines of JSON in and out.

python -m tests.fuzz.hostile_victim
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from typing import Any

import trio

import p2p
from p2p.testing.contract.tools import accept_all, echo, key_of

ECHO = "/hostile/echo/1"
TOPIC = "hostile"
FRAME_MAX = 10_000


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Let the allocator return what it keeps for later, so that what remains is held by somebody."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; elsewhere the figure includes the free lists
    if trim is not None:
        trim(0)


async def main() -> None:
    settings = p2p.NodeSettings(
        allow_private_addresses=True,
        relay=True,
        limits=p2p.Limits(handshake_timeout_s=2.0),
        reach=p2p.ReachSettings(check_delay_s=3600.0),
    )
    async with p2p.open_node(settings, key=key_of("victim")) as node:
        node.handle(ECHO, echo, frame_bytes_max=FRAME_MAX, streams_per_peer_max=32)
        await node.subscribe(TOPIC, accept_all)
        say({"ready": node.peer, "addresses": node.addresses()})
        async for _ in trio.wrap_file(sys.stdin):
            resident = resident_bytes()
            gc.collect()
            give_back()
            numbers = node.statistics()
            say(
                {
                    "resident_bytes": resident,
                    "held_bytes": resident_bytes(),
                    "streams_open": numbers.streams_open,
                    "connections": len(node.connections()),
                    "peers": [info.peer for info in node.connections()],
                    "handler_errors": numbers.handler_errors,
                }
            )


if __name__ == "__main__":
    trio.run(main)
