"""Our overlay against py-libp2p's own parts, in one run: connections, streams, gossip, and routers in virtual time.

    python tests/benchmarks/bench_overlay.py [--json] [--quick]

CPU is of the whole process, so both ends of a connection together, and all hosts of a gossip network. Wall times
depend on what else runs on the machine; CPU times hardly do. Targets are printed beside the figures.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import trio

import p2p.driver  # quiets the library before it is used here

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from libp2p import new_swarm
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.host.basic_host import BasicHost
    from libp2p.network.config import ConnectionConfig
    from libp2p.peer.peerinfo import PeerInfo, info_from_p2p_addr
    from libp2p.pubsub.gossipsub import GossipSub
    from libp2p.pubsub.pubsub import Pubsub
    from libp2p.tools.anyio_service import background_trio_service
    from multiaddr import Multiaddr

from p2p.driver.transport import NoiseYamuxTcp
from p2p.testing.contract.tools import accept_all, key_of, settings

LISTEN = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
ECHO, SINK = "/bench/echo/1", "/bench/sink/1"
TOPIC = "bench"
HOSTS, DEGREE, MESSAGE_BYTES = 20, 6, 512
TARGETS = {
    "dial_ms": "<= 15",
    "open_ms": "<= 2.5",
    "echo_p50_ms": "<= 0.25",
    "small_per_s": ">= 10,000 (direct: >= 100,000)",
    "bulk_mb_per_s": ">= 150",
    "gossip_cpu_ms_per_delivery": "<= 1.2",
    "sim_events_per_s": ">= 80,000 at 1,000 nodes, >= 50,000 at 10,000",
}


def raw(stream: Any, *, direct: bool) -> Any:
    """`direct` skips the library's NetStream."""
    return stream.muxed_stream if direct else stream


def make_host(*, ours: bool) -> BasicHost:
    keys = create_new_key_pair()
    transports = [NoiseYamuxTcp(keys.private_key.to_bytes()[:32])] if ours else None
    config = ConnectionConfig(max_connections_per_peer=1)
    return BasicHost(new_swarm(key_pair=keys, connection_config=config, transports=transports))


async def streams(*, ours: bool, direct: bool, scale: float) -> dict[str, float]:
    async def echo(stream: Any) -> None:
        stream = raw(stream, direct=direct)
        try:
            while True:
                await stream.write(await stream.read(65536))
        except Exception:
            await stream.close()

    async def sink(stream: Any) -> None:
        stream = raw(stream, direct=direct)
        count = 0
        try:
            while True:
                count += len(await stream.read(262144))
        except Exception:
            await stream.write(count.to_bytes(8, "big"))
            await stream.close()

    results: dict[str, float] = {}
    server, client = make_host(ours=ours), make_host(ours=ours)
    async with server.run(listen_addrs=LISTEN), client.run(listen_addrs=LISTEN):
        server.set_stream_handler(ECHO, echo)
        server.set_stream_handler(SINK, sink)
        address = server.get_addrs()[0]
        dials = []
        for _ in range(8):
            other = make_host(ours=ours)
            async with other.run(listen_addrs=[]):
                started = time.perf_counter()
                await other.connect(info_from_p2p_addr(address))
                dials.append((time.perf_counter() - started) * 1e3)
        results["dial_ms"] = median(dials)
        await client.connect(info_from_p2p_addr(address))
        await trio.sleep(0.5)
        opens = []
        for _ in range(100):
            started = time.perf_counter()
            stream = await client.new_stream(server.get_id(), [ECHO])
            opens.append((time.perf_counter() - started) * 1e3)
            await stream.close()
        results["open_ms"] = median(opens)
        stream = raw(await client.new_stream(server.get_id(), [ECHO]), direct=direct)
        message = bytes(200)
        echoes = []
        cpu = time.process_time()
        for _ in range(1500):
            started = time.perf_counter()
            await stream.write(message)
            got = 0
            while got < 200:
                got += len(await stream.read(200 - got))
            echoes.append((time.perf_counter() - started) * 1e3)
        results["echo_cpu_ms"] = (time.process_time() - cpu) / 1500 * 1e3
        echoes.sort()
        results["echo_p50_ms"], results["echo_p99_ms"] = echoes[750], echoes[1485]
        await stream.close()
        for name, size, total in (
            ("small", 64, int((50_000 if ours else 5_000) * scale)),
            ("bulk", 65536, int((1500 if ours else 400) * scale)),
        ):
            stream = raw(await client.new_stream(server.get_id(), [SINK]), direct=direct)
            piece = bytes(size)
            started, cpu = time.perf_counter(), time.process_time()
            for _ in range(total):
                await stream.write(piece)
            await (stream.close_write() if hasattr(stream, "close_write") else stream.close())
            assert int.from_bytes(await stream.read(8), "big") == total * size
            wall, cpu = time.perf_counter() - started, time.process_time() - cpu
            if name == "small":
                results["small_per_s"], results["small_cpu_us"] = total / wall, cpu / total * 1e6
            else:
                results["bulk_mb_per_s"] = total * size / wall / 1e6
    return results


def random_links(rng: random.Random) -> list[tuple[int, int]]:
    edges: dict[tuple[int, int], None] = {}
    for number in range(HOSTS):
        while sum(number in edge for edge in edges) < DEGREE:
            other = rng.randrange(HOSTS)
            if other != number:
                edges[min(number, other), max(number, other)] = None
    return sorted(edges)


async def gossip(*, ours: bool, rate: float, count: int, figures: dict[str, float]) -> None:
    """20 hosts in one process, signed messages of 512 bytes."""
    rng = random.Random(1)
    delays: list[float] = []
    publishers: list[Callable[[bytes], Any]] = []

    def on(data: bytes) -> None:
        delays.append(time.perf_counter() - float(data[:20]))

    async def listen(feed: Any) -> None:
        if ours:
            async for message in feed:
                on(message.data)
        while True:
            on((await feed.get()).data)

    async with AsyncExitStack() as stack:
        start = _start_ours if ours else _start_library
        subscribe = await start(stack, random_links(rng))
        async with trio.open_nursery() as nursery:
            for feed, publish in await subscribe():
                nursery.start_soon(listen, feed)
                publishers.append(publish)
            await trio.sleep(5)
            idle = time.process_time()
            await trio.sleep(2)
            idle = (time.process_time() - idle) / 2
            started, cpu = time.perf_counter(), time.process_time()
            for number in range(count):
                await rng.choice(publishers)((b"%.9f" % time.perf_counter()).ljust(20) + bytes(MESSAGE_BYTES - 20))
                await trio.sleep(max(0.0, started + (number + 1) / rate - time.perf_counter()))
            with trio.move_on_after(15):
                while len(delays) < count * HOSTS:
                    await trio.sleep(0.02)
            cpu = time.process_time() - cpu - idle * (time.perf_counter() - started)
            delays.sort()
            figures["delivered_share"] = len(delays) / count / HOSTS
            figures["gossip_cpu_ms_per_delivery"] = cpu / len(delays) * 1e3
            figures["delay_p50_ms"] = delays[len(delays) // 2] * 1e3
            figures["delay_p99_ms"] = delays[int(len(delays) * 0.99)] * 1e3
            nursery.cancel_scope.cancel()


async def _start_ours(stack: AsyncExitStack, links: list[tuple[int, int]]) -> Any:
    nodes = [
        await stack.enter_async_context(p2p.open_node(settings(), key=key_of(f"g{number}"))) for number in range(HOSTS)
    ]
    for a, b in links:
        await nodes[a].connect(nodes[b].peer, nodes[b].addresses())

    async def subscribe() -> list[tuple[Any, Any]]:
        return [(await node.subscribe(TOPIC, accept_all), partial(node.publish, TOPIC)) for node in nodes]

    return subscribe


async def _start_library(stack: AsyncExitStack, links: list[tuple[int, int]]) -> Any:
    hosts, pubsubs = [], []
    for _ in range(HOSTS):
        host = make_host(ours=False)
        await stack.enter_async_context(host.run(listen_addrs=LISTEN))
        router = GossipSub(
            protocols=["/meshsub/1.1.0"],
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_interval=1,
            max_messages_per_topic_per_second=1e9,
        )
        pubsub = Pubsub(host, router)
        await stack.enter_async_context(background_trio_service(pubsub))
        await stack.enter_async_context(background_trio_service(router))
        hosts.append(host)
        pubsubs.append(pubsub)
    for a, b in links:
        await hosts[a].connect(PeerInfo(hosts[b].get_id(), hosts[b].get_addrs()))

    async def subscribe() -> list[tuple[Any, Any]]:
        return [(await pubsub.subscribe(TOPIC), partial(pubsub.publish, TOPIC)) for pubsub in pubsubs]

    return subscribe


async def memory(*, ours: bool) -> dict[str, float]:
    """Per connection, both ends in this process."""
    server = make_host(ours=ours)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(server.run(listen_addrs=LISTEN))
        clients = [make_host(ours=ours) for _ in range(40)]
        for client in clients:
            await stack.enter_async_context(client.run(listen_addrs=[]))
        before = _resident_bytes()
        for client in clients:
            await client.connect(info_from_p2p_addr(server.get_addrs()[0]))
        await trio.sleep(1)
        return {"memory_mb_per_connection": (_resident_bytes() - before) / len(clients) / 1e6}


def run_gossip(*, ours: bool, rate: float, count: int) -> dict[str, float]:
    """An overloaded network of the library may fail while it is taken down; its figures stand by then."""
    figures: dict[str, float] = {}
    try:
        trio.run(partial(gossip, ours=ours, rate=rate, count=count, figures=figures))
    except BaseException:
        if ours or not figures:
            raise
    return figures


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def simulate(nodes: int, messages: int) -> dict[str, float]:
    """In a process of its own, for its memory."""
    code = (
        "import sys, json, dataclasses; sys.path.insert(0, sys.argv[1]); from bench_gossip_sim import simulate; "
        "print(json.dumps(dataclasses.asdict(simulate(int(sys.argv[2]), int(sys.argv[3])))))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(nodes), str(messages)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"sim_events_per_s": found["events_per_s"], **{k: found[k] for k in ("delivered_share", "peak_mb")}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a tenth of the messages, no 10,000 nodes")
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    scale = 0.1 if options.quick else 1.0
    count = 20 if options.quick else 100
    results = {
        "streams, library": trio.run(lambda: streams(ours=False, direct=False, scale=scale)),
        "streams, ours": trio.run(lambda: streams(ours=True, direct=False, scale=scale)),
        "streams, ours, direct": trio.run(lambda: streams(ours=True, direct=True, scale=scale)),
        "memory, library": trio.run(lambda: memory(ours=False)),
        "memory, ours": trio.run(lambda: memory(ours=True)),
        "gossip 3/s, library": run_gossip(ours=False, rate=3, count=count // 4),
        "gossip 3/s, ours": run_gossip(ours=True, rate=3, count=count // 4),
        "gossip 10/s, library": run_gossip(ours=False, rate=10, count=count),
        "gossip 10/s, ours": run_gossip(ours=True, rate=10, count=count),
        "gossip 50/s, ours": run_gossip(ours=True, rate=50, count=count * 4),
        "routers alone, 1,000": simulate(1000, 5 if options.quick else 30),
    }
    if not options.quick:
        results["routers alone, 10,000"] = simulate(10_000, 10)
    if options.json:
        print(json.dumps({"results": results, "targets": TARGETS}))
        return
    for name, figures in results.items():
        print(f"{name:24}", "  ".join(f"{key} {value:,.3g}" for key, value in figures.items()))
    print("targets:", "; ".join(f"{key} {target}" for key, target in TARGETS.items()))


if __name__ == "__main__":
    main()
