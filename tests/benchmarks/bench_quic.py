"""QUIC beside TCP with Noise and yamux, in one run on loopback: what a connection costs in time, CPU and memory.

    .venv/bin/python tests/benchmarks/bench_quic.py [--json]

Both ends share one process, so CPU is both ends together. Wall times depend on what else runs on the machine; CPU times
hardly do. Each transport has a process of its own, for its memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio

import p2p
from p2p.testing.contract.tools import echo, key_of, settings

TRANSPORTS = {"tcp": "/ip4/127.0.0.1/tcp/0", "quic": "/ip4/127.0.0.1/udp/0/quic-v1"}
ECHO, SINK = "/bench/echo/1", "/bench/sink/1"
FRAME_MAX = 1 << 20
CLIENTS = 40
IDLE_S = 30


def percentiles(samples: list[float]) -> dict[str, float]:
    ordered = sorted(samples)
    return {"p50": round(statistics.median(ordered) * 1e3, 3), "p99": round(ordered[int(len(ordered) * 0.99)] * 1e3, 3)}


async def sink(stream: p2p.Stream) -> None:
    while True:
        if await stream.receive() == b"end":
            await stream.send(b"done")


class Timer:
    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> Timer:
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self.wall
        self.cpu = time.process_time() - self.cpu

    @property
    def cpu_ms(self) -> float:
        return round(self.cpu * 1e3 / self.count, 3)


def serve(server: p2p.Node) -> None:
    for protocol, handler in ((ECHO, echo), (SINK, sink)):
        server.handle(protocol, handler, frame_bytes_max=FRAME_MAX, streams_per_peer_max=64)


async def pair(listen: str) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    async with (
        p2p.open_node(settings(listen=(listen,)), key=key_of("server")) as server,
        p2p.open_node(settings(listen=()), key=key_of("client")) as client,
    ):
        serve(server)
        samples = []
        with Timer(40) as timer:
            for _ in range(40):
                started = time.perf_counter()
                await client.connect(server.peer, server.addresses())
                samples.append(time.perf_counter() - started)
                await client.disconnect(server.peer)
        figures["dial_ms"] = percentiles(samples) | {"cpu": timer.cpu_ms}
        await client.connect(server.peer, server.addresses())
        await trio.sleep(0.5)  # identify
        samples = []
        with Timer(200) as timer:
            for _ in range(200):
                started = time.perf_counter()
                stream = await client.open_stream(server.peer, ECHO, frame_bytes_max=FRAME_MAX)
                samples.append(time.perf_counter() - started)
                await stream.aclose()
        figures["stream_open_ms"] = percentiles(samples) | {"cpu": timer.cpu_ms}
        stream = await client.open_stream(server.peer, ECHO, frame_bytes_max=FRAME_MAX)
        samples = []
        with Timer(2000) as timer:
            for _ in range(2000):
                started = time.perf_counter()
                await stream.send(b"x" * 200)
                await stream.receive()
                samples.append(time.perf_counter() - started)
        figures["echo_200_bytes_ms"] = percentiles(samples) | {"cpu": timer.cpu_ms}
        one_way = await client.open_stream(server.peer, SINK, frame_bytes_max=FRAME_MAX)
        with Timer(100) as timer:
            for _ in range(100):  # as tokens go: a frame every 20 ms
                await one_way.send(b"x" * 300)
                await trio.sleep(0.02)
        figures["paced_frame_cpu_ms"] = timer.cpu_ms
        for name, size, count in (("frames_1_kib", 1024, 10_000), ("bulk_64_kib", 65_536, 500)):
            with Timer(count) as timer:
                for _ in range(count):
                    await one_way.send(b"x" * size)
                await one_way.send(b"end")
                await one_way.receive()
            megabytes = count * size / 1e6
            figures[name] = {
                "per_s": round(count / timer.wall),
                "mb_per_s": round(megabytes / timer.wall, 1),
                "cpu_ms_per_mb": round(timer.cpu * 1e3 / megabytes, 2),
            }
    return figures


async def crowd(listen: str) -> dict[str, Any]:
    """Memory of a connection, both ends, with what the swarm and identify keep of it; and of keeping it alive."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            p2p.open_node(settings(listen=(listen,), gossip=False), key=key_of("server"))
        )
        clients = [
            await stack.enter_async_context(
                p2p.open_node(settings(listen=(), gossip=False), key=key_of(f"client {number}"))
            )
            for number in range(CLIENTS)
        ]
        before = resident_bytes()
        for client in clients:
            await client.connect(server.peer, server.addresses())
        await trio.sleep(2)
        memory = (resident_bytes() - before) / CLIENTS / 1e3
        with Timer(1) as timer:
            await trio.sleep(IDLE_S)
        assert len(server.connections()) == CLIENTS
        return {"memory_kb": round(memory, 1), "idle_cpu_percent_of_40": round(timer.cpu / IDLE_S * 100, 2)}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--only", choices=[f"{kind} {name}" for kind in ("pair", "crowd") for name in TRANSPORTS])
    options = parser.parse_args()
    if options.only is not None:
        kind, name = options.only.split()
        print(json.dumps(trio.run({"pair": pair, "crowd": crowd}[kind], TRANSPORTS[name])))
        return
    figures: dict[str, dict[str, Any]] = {}
    for name in TRANSPORTS:
        figures[name] = {}
        for kind in ("pair", "crowd"):
            command = [sys.executable, __file__, "--only", f"{kind} {name}"]
            figures[name] |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if options.json:
        print(json.dumps(figures))
        return
    for key, value in figures["tcp"].items():
        print(f"{key:24} tcp {value!s:60} quic {figures['quic'][key]}")


if __name__ == "__main__":
    main()
