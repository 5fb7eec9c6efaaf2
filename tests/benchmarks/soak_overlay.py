"""A long run of real nodes with churn: is memory flat, does everybody still hear everything?

    python -m tests.benchmarks.soak_overlay [--minutes 60] [--hosts 20] [--out soak.csv]

Hosts live in one process on loopback sockets. Every second two of them publish; every `CHURN_S` one host is closed and
a new one takes its place; every host echoes a frame with a random other one now and then. Each minute a line is
written: resident memory, open files, messages due and delivered (a message counts for the hosts that were up from
two seconds before it until it arrived or ten seconds passed), echoes failed. The file is appended to, so a run that
was stopped can be read, and gone on with.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

import p2p
from p2p.errors import P2PError

TOPIC = "/soak/1"
ECHO = "/soak/echo/1"
CHURN_S = 20.0
SETTLE_S = 12.0
DUE_S = 10.0


@dataclass
class Host:
    node: p2p.Node
    scope: trio.CancelScope
    up_since: float
    heard: dict[bytes, None] = field(default_factory=dict)


class Soak:
    def __init__(self, hosts: int, out: Path) -> None:
        self.count = hosts
        self.out = out
        self.hosts: dict[int, Host] = {}
        self.dice = random.Random(7)
        self.due = self.delivered = self.echoes = self.echoes_failed = self.restarts = 0

    async def run(self, seconds: float) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(self.count):
                await nursery.start(self.host, number)
            nursery.start_soon(self.churn, nursery)
            nursery.start_soon(self.publish, nursery)
            nursery.start_soon(self.echo)
            nursery.start_soon(self.report)
            await trio.sleep(seconds)
            nursery.cancel_scope.cancel()

    async def host(self, number: int, task_status=trio.TASK_STATUS_IGNORED) -> None:
        others = self.dice.sample(sorted(self.hosts), min(4, len(self.hosts)))
        bootstrap = tuple(self.hosts[other].node.addresses()[0] for other in others)
        settings = p2p.NodeSettings(bootstrap=bootstrap, allow_private_addresses=True)
        with trio.CancelScope() as scope:
            async with p2p.open_node(settings, key=os.urandom(32)) as node:
                node.handle(ECHO, _echo, frame_bytes_max=1_024, streams_per_peer_max=8)
                subscription = await node.subscribe(TOPIC, lambda _peer, _data: p2p.Verdict.ACCEPT)
                host = self.hosts[number] = Host(node=node, scope=scope, up_since=trio.current_time())
                task_status.started()
                async for message in subscription:
                    host.heard[message.data] = None
                    while len(host.heard) > 1_000:
                        del host.heard[next(iter(host.heard))]

    async def churn(self, nursery: trio.Nursery) -> None:
        while True:
            await trio.sleep(CHURN_S)
            number = self.dice.choice(sorted(self.hosts))
            self.hosts.pop(number).scope.cancel()
            await nursery.start(self.host, number)
            self.restarts += 1

    async def publish(self, nursery: trio.Nursery) -> None:
        while True:
            await trio.sleep(0.5)
            host = self.hosts[self.dice.choice(sorted(self.hosts))]
            data = os.urandom(512)
            now = trio.current_time()
            settled = [each for each in self.hosts.values() if each is not host and now - each.up_since > SETTLE_S]
            if now - host.up_since > SETTLE_S:
                with suppress(P2PError):
                    await host.node.publish(TOPIC, data)
                    nursery.start_soon(self.count_delivery, data, settled)

    async def count_delivery(self, data: bytes, settled: list[Host]) -> None:
        await trio.sleep(DUE_S)
        alive = [each for each in settled if not each.scope.cancel_called]
        self.due += len(alive)
        self.delivered += sum(data in each.heard for each in alive)

    async def echo(self) -> None:
        while True:
            await trio.sleep(1)
            first, second = self.dice.sample(sorted(self.hosts), 2)
            one, other = self.hosts[first], self.hosts[second]
            self.echoes += 1
            try:
                with trio.fail_after(10):
                    stream = await one.node.open_stream(
                        other.node.peer, ECHO, addresses=other.node.addresses(), frame_bytes_max=1_024
                    )
                    await stream.send(b"hello")
                    assert await stream.receive() == b"hello"
                    await stream.aclose()
            except (P2PError, trio.TooSlowError):
                if not other.scope.cancel_called and not one.scope.cancel_called:
                    self.echoes_failed += 1

    async def report(self) -> None:
        started, minute = time.monotonic(), 0
        if not self.out.exists():
            self.out.write_text("minute,rss_mib,files,restarts,due,delivered,share,echoes,echoes_failed,cpu_s\n")
        while True:
            line = (
                f"{minute},{_rss_mib():.1f},{len(os.listdir('/proc/self/fd'))},{self.restarts},{self.due},"
                f"{self.delivered},{self.delivered / max(1, self.due):.5f},{self.echoes},{self.echoes_failed},"
                f"{time.process_time():.1f}"
            )
            with self.out.open("a") as file:
                file.write(line + "\n")
            print(line, flush=True)
            minute += 1
            await trio.sleep(max(0.0, started + 60 * minute - time.monotonic()))


async def _echo(stream: p2p.Stream) -> None:
    await stream.send(await stream.receive())


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024 / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--hosts", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("soak.csv"))
    args = parser.parse_args()
    trio.run(Soak(args.hosts, args.out).run, args.minutes * 60)


if __name__ == "__main__":
    main()
