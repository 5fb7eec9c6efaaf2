"""What the network layer costs on loopback: open, dial, stream open, echo, one-way frames, bulk, gossip.

    .venv/bin/python tests/benchmarks/bench_p2p.py [--json]

Both ends share one process and one core, so CPU is both ends together. Wall times depend on what else runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Awaitable, Callable

import trio

import p2p
from p2p.testing.contract.tools import accept_all, echo, key_of, settings

PROTOCOL = "/bench/1"
FRAME_MAX = 1 << 20


def summary(samples_ms: list[float]) -> dict[str, float]:
    ordered = sorted(samples_ms)
    return {
        "p50_ms": round(statistics.median(ordered), 3),
        "p99_ms": round(ordered[int(len(ordered) * 0.99) - 1], 3),
    }


async def timed(times: int, action: Callable[[], Awaitable[object]]) -> dict[str, float]:
    samples = []
    cpu = time.process_time()
    for _ in range(times):
        started = time.perf_counter()
        await action()
        samples.append((time.perf_counter() - started) * 1e3)
    return summary(samples) | {"cpu_ms": round((time.process_time() - cpu) * 1e3 / times, 3)}


async def sink(stream: p2p.Stream) -> None:
    while True:
        frame = await stream.receive()
        if frame == b"end":
            await stream.send(b"done")


async def main() -> dict[str, object]:
    results: dict[str, object] = {}
    started = time.perf_counter()
    async with p2p.open_node(settings(), key=key_of("warm")):
        results["first_open_ms"] = round((time.perf_counter() - started) * 1e3, 1)
    started = time.perf_counter()
    async with p2p.open_node(settings(), key=key_of("server")) as server:
        results["open_ms"] = round((time.perf_counter() - started) * 1e3, 1)
        for protocol, handler in ((PROTOCOL, echo), (PROTOCOL + "/sink", sink)):
            server.handle(protocol, handler, frame_bytes_max=FRAME_MAX, streams_per_peer_max=64)
        async with p2p.open_node(settings(), key=key_of("client")) as client:
            await bench_pair(server, client, results)
    await bench_gossip(results)
    return results


async def bench_pair(server: p2p.Node, client: p2p.Node, results: dict[str, object]) -> None:
    dials = []
    for _ in range(20):
        started = time.perf_counter()
        await client.connect(server.peer, server.addresses())
        dials.append((time.perf_counter() - started) * 1e3)
        await client.disconnect(server.peer)
    results["dial"] = summary(dials)
    await client.connect(server.peer, server.addresses())
    await trio.sleep(0.5)  # identify

    async def open_and_close() -> None:
        stream = await client.open_stream(server.peer, PROTOCOL, frame_bytes_max=FRAME_MAX)
        await stream.aclose()

    results["stream_open"] = await timed(200, open_and_close)
    stream = await client.open_stream(server.peer, PROTOCOL, frame_bytes_max=FRAME_MAX)

    async def echo_once() -> None:
        await stream.send(b"x" * 200)
        await stream.receive()

    results["echo_200_bytes"] = await timed(2000, echo_once)
    await stream.aclose()
    one_way = await client.open_stream(server.peer, PROTOCOL + "/sink", frame_bytes_max=FRAME_MAX)
    for name, size, count in (("frames_1_kib", 1024, 20_000), ("bulk_64_kib", 65_536, 2_000)):
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            await one_way.send(b"x" * size)
        await one_way.send(b"end")
        await one_way.receive()
        seconds = time.perf_counter() - started
        results[name] = {
            "per_s": round(count / seconds),
            "mb_per_s": round(count * size / seconds / 1e6, 1),
            "cpu_us": round((time.process_time() - cpu) * 1e6 / count, 1),
        }
    await one_way.aclose()


async def bench_gossip(results: dict[str, object]) -> None:
    """Eight nodes around one hub, one message every 50 ms: CPU per delivery, forwarding included."""
    async with p2p.open_node(settings(), key=key_of("hub")) as hub:
        async with trio.open_nursery() as nursery:
            ready: list[trio.Event] = [trio.Event() for _ in range(8)]
            heard = [0]

            async def listen(number: int) -> None:
                async with p2p.open_node(settings(hub), key=key_of(f"n{number}")) as node:
                    await node.wait_connected(timeout_s=10)
                    subscription = await node.subscribe("bench", accept_all)
                    ready[number].set()
                    async for _ in subscription:
                        heard[0] += 1

            for number in range(8):
                nursery.start_soon(listen, number)
            for event in ready:
                await event.wait()
            await hub.subscribe("bench", accept_all)
            await trio.sleep(2)
            cpu = time.process_time()
            for number in range(100):
                await hub.publish("bench", b"%d" % number * 100)
                await trio.sleep(0.05)
            await trio.sleep(1)
            results["gossip"] = {
                "delivered": heard[0] / 800,
                "cpu_ms_per_delivery": round((time.process_time() - cpu) * 1e3 / max(1, heard[0]), 2),
            }
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    arguments = parser.parse_args()
    measured = trio.run(main)
    if arguments.json:
        print(json.dumps(measured))
    else:
        for name, value in measured.items():
            print(f"{name:16} {value}")
