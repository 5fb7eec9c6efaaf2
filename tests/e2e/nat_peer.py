"""One node in a process of its own, for tests that put processes into network namespaces: lines of JSON in and out.

python -m tests.e2e.nat_peer '{"name": "a", "listen": ["/ip4/192.168.1.2/tcp/4001"], "bootstrap": […]}'
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import trio

import p2p
from p2p.testing.contract.tools import echo, key_of

ECHO = "/nat/echo/1"
FRAME_MAX = 1 << 20


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def settings_of(given: dict[str, Any]) -> p2p.NodeSettings:
    reach = p2p.ReachSettings(
        check_delay_s=0.3,
        check_interval_s=10.0,
        hole_punching=given.get("hole_punching", True),
        mdns=given.get("mdns", False),
        relay_use=p2p.RelayUse(given.get("relay_use", "when needed")),
    )
    return p2p.NodeSettings(
        listen=tuple(given["listen"]),
        bootstrap=tuple(given.get("bootstrap", ())),
        relay=given.get("relay", False),
        allow_private_addresses=True,
        gossip=False,
        reach=reach,
    )


async def answer(node: p2p.Node, command: str, given: dict[str, Any]) -> dict[str, Any]:
    match command:
        case "reachability":
            found = node.reachability()
            return {
                "reach": found.reach.value,
                "reason": found.reason,
                "addresses": found.addresses,
                "observed": found.observed,
            }
        case "connections":
            return {"to": [[c.peer, c.relayed, c.address] for c in node.connections()]}
        case "provide":
            await node.provide(key_of(given["key"]))
        case "find":
            found = await node.find_providers(key_of(given["key"]), count_max=8)
            return {"providers": {info.peer: info.addresses for info in found}}
        case "find_peer":
            return {"addresses": (await node.find_peer(given["peer"])).addresses}
        case "echo":
            started = time.perf_counter()
            stream = await node.open_stream(
                given["peer"], ECHO, addresses=given.get("addresses", ()), frame_bytes_max=FRAME_MAX
            )
            opened = time.perf_counter()
            frame = bytes(given.get("size", 100))
            await stream.send(frame)
            assert await stream.receive() == frame
            echoed = time.perf_counter()
            await stream.aclose()
            return {"open_ms": (opened - started) * 1e3, "echo_ms": (echoed - opened) * 1e3}
        case "disconnect":
            await node.disconnect(given["peer"])
        case "addresses":
            return {"addresses": node.addresses()}
        case "failures":
            return {"failures": [[f.address, f.reason] for f in node.dial_failures()]}
    return {}


async def main() -> None:
    given = json.loads(sys.argv[1])
    async with p2p.open_node(settings_of(given), key=key_of(given["name"])) as node:
        node.handle(ECHO, echo, frame_bytes_max=FRAME_MAX, streams_per_peer_max=16)
        say({"ready": node.peer, "addresses": node.addresses()})
        lines = trio.wrap_file(sys.stdin)
        async for line in lines:
            request = json.loads(line)
            try:
                with trio.fail_after(30):
                    say({"ok": await answer(node, request.pop("command"), request)})
            except (p2p.P2PError, trio.TooSlowError) as error:
                say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    trio.run(main)
