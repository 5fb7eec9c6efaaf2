"""CPU of the gateway per server-sent event, on each server. Run it: `python -m tests.benchmarks.bench_gateway_events`.

One process holds the gateway and a scripted role that emits a token every 20 ms on each of 16 streams; another reads.
The cost of the role's own timers, iterated without HTTP, is measured alone and subtracted. `flat` emits without
pauses, which shows the lowest cost per event when work comes in bursts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import httpx
import trio

from cocoon.gateway.server import open_gateway
from cocoon.gateway.settings import GatewaySettings
from cocoon.ports import Delta
from cocoon.types import Secret
from tests.fakes.client_role import FakeClientRole, Script

KEY = "benchmark-key"
STREAMS = 16
TOKENS_PER_S = 50


class WallClock:
    """The system's."""

    def now(self) -> int:
        return time.time_ns()


def script(tokens: int, pause_s: float) -> Script:
    steps: list[Delta | float] = []
    for index in range(tokens):
        if pause_s:
            steps.append(pause_s)
        steps.append(Delta(text=" word", token_ids=(index,)))
    return Script(steps=steps)


async def read_streams(base_url: str) -> None:
    """The reading side, in a process of its own."""

    async def one() -> None:
        body = {"model": "cocoon-tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}
        headers = {"authorization": f"Bearer {KEY}"}
        async with client.stream("POST", f"{base_url}/chat/completions", json=body, headers=headers) as response:
            end = b""
            async for piece in response.aiter_raw():
                end = (end + piece)[-32:]
            assert end.endswith(b"data: [DONE]\n\n"), end

    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=STREAMS)) as client:
        async with trio.open_nursery() as nursery:
            for _ in range(STREAMS):
                nursery.start_soon(one)


async def measure(server: str, tokens: int, pause_s: float) -> float:
    """CPU µs per token in this process."""
    role = FakeClientRole(script(tokens, pause_s))
    if server == "none":
        started = time.process_time()

        async def drain() -> None:
            async with role.generate("chat.completions", {}, spend_max_nano=0) as reply:
                async for _ in reply:
                    pass

        async with trio.open_nursery() as nursery:
            for _ in range(STREAMS):
                nursery.start_soon(drain)
        return (time.process_time() - started) * 1e6 / (STREAMS * tokens)
    settings = GatewaySettings(
        api_keys=(Secret(KEY.encode()),), spend_max_request_nano=0, spend_max_day_nano=0, port=0, server=server
    )
    async with open_gateway(role, settings, WallClock()) as gateway:
        started = time.process_time()
        await trio.run_process([sys.executable, "-m", __spec__.name, "read", gateway.base_url], env=os.environ)
        return (time.process_time() - started) * 1e6 / (STREAMS * tokens)


def main() -> None:
    if sys.argv[1:2] == ["read"]:
        trio.run(read_streams, sys.argv[2])
        return
    rows = {}
    for name, tokens, pause_s in (("paced", 400, 1 / TOKENS_PER_S), ("flat", 1_000, 0.0)):
        for server in ("none", "h11", "hypercorn"):
            command = [sys.executable, "-m", __spec__.name, "measure", server, str(tokens), str(pause_s)]
            cost = [float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(2)]
            rows[f"{name} {server}"] = round(min(cost), 1)
            print(name, server, [round(one, 1) for one in cost], "CPU µs per event", flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(trio.run(measure, sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
    else:
        main()
