"""Two peers behind NATs of their own find each other through a public node, talk through its relay, and punch.

Everything runs in network namespaces that the test makes and removes; no packet leaves them. Needs root, `ip` and
`nft`; skipped with a reason elsewhere.

    peer a ── nat a ──┐
    192.168.1.2       ├── 10.77.0.0/24 ── public node, 10.77.0.1: bootstrap, DHT, relay, dial-backs
    peer b ── nat b ──┘
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PORT = 4001
ATTEMPTS = 5
PROBE = "add table ip t; add chain ip t c { type nat hook postrouting priority 0; }"
PATIENCE_S = 40.0
REMEMBERED_PORTS = "masquerade"  # Linux keeps the source port where it can, as most home routers do
RANDOM_PORTS = "masquerade random,fully-random"  # another port for every connection ("symmetric")


def why_not() -> str | None:
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    missing = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    if missing:
        return f"needs {' and '.join(missing)} (Debian: iproute2, nftables)"
    name = f"cocoon{os.getpid()}x"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return "network namespaces may not be made here"
    probe = subprocess.run(
        [
            "ip",
            "netns",
            "exec",
            name,
            "nft",
            "add table ip t; add chain ip t c { type nat hook postrouting priority 0; }",
        ],
        capture_output=True,
    )
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return "NAT rules may not be made here" if probe.returncode else None


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


class World:
    """The namespaces. All names carry our process id, so two runs do not meet."""

    def __init__(self) -> None:
        self.prefix = f"cocoon{os.getpid()}"
        self._made: list[str] = []

    def name(self, part: str) -> str:
        return f"{self.prefix}{part}"

    def within(self, part: str, *command: str) -> None:
        run("ip", "netns", "exec", self.name(part), *command)

    def make(self, nat_rule: str) -> None:
        for part in ("net", "pub", "na", "nb", "a", "b"):
            run("ip", "netns", "add", self.name(part))
            self._made.append(part)
            self.within(part, "ip", "link", "set", "lo", "up")
        self.within("net", "ip", "link", "add", "br0", "type", "bridge")
        self.within("net", "ip", "link", "set", "br0", "up")
        for part, address in (("pub", "10.77.0.1/24"), ("na", "10.77.0.11/24"), ("nb", "10.77.0.12/24")):
            self._link(part, "out", "net", f"to{part}")
            self.within(part, "ip", "address", "add", address, "dev", "out")
            self.within("net", "ip", "link", "set", f"to{part}", "master", "br0")
        for peer, nat, net in (("a", "na", "192.168.1"), ("b", "nb", "192.168.2")):
            self._link(peer, "eth0", nat, "in")
            self.within(peer, "ip", "address", "add", f"{net}.2/24", "dev", "eth0")
            self.within(nat, "ip", "address", "add", f"{net}.1/24", "dev", "in")
            self.within(peer, "ip", "route", "add", "default", "via", f"{net}.1")
            self._nat(nat, nat_rule)

    def _link(self, one: str, one_device: str, other: str, other_device: str) -> None:
        self.within(
            one, "ip", "link", "add", one_device, "type", "veth", "peer", other_device, "netns", self.name(other)
        )
        self.within(one, "ip", "link", "set", one_device, "up")
        self.within(other, "ip", "link", "set", other_device, "up")

    def _nat(self, nat: str, rule: str) -> None:
        """A home router: what was not asked for from inside is dropped, not refused."""
        self.within(nat, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        self.within(
            nat,
            "nft",
            f"""
            add table ip router
            add chain ip router post {{ type nat hook postrouting priority 100; }}
            add rule ip router post oifname "out" {rule}
            add chain ip router input {{ type filter hook input priority 0; }}
            add rule ip router input iifname "out" ct state new drop
            add chain ip router forward {{ type filter hook forward priority 0; }}
            add rule ip router forward iifname "out" ct state new drop
            """,
        )

    def remove(self) -> None:
        for part in self._made:
            subprocess.run(["ip", "netns", "del", self.name(part)], capture_output=True)


@pytest.fixture
def world() -> Iterator[World]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    made = World()
    try:
        yield made
    finally:
        made.remove()


class Peer:
    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._rest = b""
        self.peer = ""
        self.addresses: list[str] = []

    async def line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            data = await self._process.stdout.receive_some(65536)
            assert data, "a peer's process has ended"
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        found: dict[str, Any] = json.loads(line)
        return found

    async def ask(self, command: str, **given: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps({"command": command, **given}).encode() + b"\n")
        answer = await self.line()
        if "error" in answer:
            raise LookupError(answer["error"])
        result: dict[str, Any] = answer["ok"]
        return result

    async def wait_reach(self, wanted: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with trio.move_on_after(PATIENCE_S):
            while True:
                found = await self.ask("reachability")
                if found["reach"] == wanted:
                    return found
                await trio.sleep(0.1)
        raise AssertionError(f"reachable {wanted} was wanted: {found}")

    async def is_direct_to(self, peer: str) -> bool:
        return any(who == peer and not relayed for who, relayed, _ in (await self.ask("connections"))["to"])


@asynccontextmanager
async def open_peer(world: World, part: str, **given: Any) -> AsyncIterator[Peer]:
    settings = json.dumps({"name": part, **given})
    process = await trio.lowlevel.open_process(
        ["ip", "netns", "exec", world.name(part), sys.executable, "-m", "tests.e2e.nat_peer", settings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    peer = Peer(process)
    try:
        with trio.fail_after(PATIENCE_S):
            ready = await peer.line()
        peer.peer, peer.addresses = ready["ready"], ready["addresses"]
        yield peer
    finally:
        with trio.CancelScope(shield=True):
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.aclose()
            with trio.move_on_after(5):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.stdout.aclose()


@asynccontextmanager
async def three_peers(world: World, **given: Any) -> AsyncIterator[tuple[Peer, Peer, Peer]]:
    with trio.fail_after(180):
        async with open_peer(world, "pub", listen=[f"/ip4/10.77.0.1/tcp/{PORT}"], relay=True) as public:
            bootstrap = {"bootstrap": public.addresses, **given}
            async with (
                open_peer(world, "a", listen=[f"/ip4/192.168.1.2/tcp/{PORT}"], **bootstrap) as a,
                open_peer(world, "b", listen=[f"/ip4/192.168.2.2/tcp/{PORT}"], **bootstrap) as b,
            ):
                yield public, a, b


def test_two_peers_behind_nats_find_each_other_and_talk_through_the_relay(world: World) -> None:
    async def main() -> None:
        async with three_peers(world, hole_punching=False) as (public, a, b):
            found_a, found_b = await a.wait_reach("by relay"), await b.wait_reach("by relay")
            for found, seen in ((found_a, "/ip4/10.77.0.11/"), (found_b, "/ip4/10.77.0.12/")):
                assert "0 of 1 peers" in found["reason"]
                assert all("/p2p-circuit/" in address for address in found["addresses"])
                assert found["observed"][0].startswith(seen)
            addresses = found_a["addresses"]  # as an offer would carry them
            await a.ask("provide", key="what a has")
            assert list((await b.ask("find", key="what a has"))["providers"]) == [a.peer]
            figures = await b.ask("echo", peer=a.peer, addresses=addresses, size=100_000)
            again = await b.ask("echo", peer=a.peer, size=100)
            assert not await b.is_direct_to(a.peer)
            print(f"\nthrough the relay: open {figures['open_ms']:.0f} ms, echo of 100 kB {figures['echo_ms']:.1f} ms, "
                  f"next stream {again['open_ms']:.1f} ms, echo of 100 B {again['echo_ms']:.1f} ms")  # fmt: skip
            assert (await public.ask("reachability"))["reach"] != "by relay"

    world.make(REMEMBERED_PORTS)
    trio.run(main)


@pytest.mark.parametrize("rule", [REMEMBERED_PORTS, RANDOM_PORTS], ids=["ports kept", "ports at random"])
def test_where_the_nats_allow_it_the_relayed_connection_becomes_direct(world: World, rule: str) -> None:
    async def main() -> None:
        waits_s: list[float] = []
        async with three_peers(world) as (_, a, b):
            found = await a.wait_reach("by relay")
            await b.wait_reach("by relay")
            addresses = [address for address in found["addresses"] if "p2p-circuit" in address]
            attempts = ATTEMPTS if rule == REMEMBERED_PORTS else 1
            for _ in range(attempts):
                started = time.perf_counter()
                await b.ask("echo", peer=a.peer, addresses=addresses)
                with trio.move_on_after(8):
                    while not await b.is_direct_to(a.peer):
                        await trio.sleep(0.05)
                    waits_s.append(time.perf_counter() - started)
                figures = await b.ask("echo", peer=a.peer)
                await b.ask("disconnect", peer=a.peer)
                await a.ask("disconnect", peer=b.peer)
                await trio.sleep(0.5)
            shown = ", ".join(f"{wait_s:.1f}" for wait_s in sorted(waits_s))
            print(f"\n{rule}: {len(waits_s)} of {attempts} punched, after [{shown}] s; "
                  f"then a stream in {figures['open_ms']:.1f} ms")  # fmt: skip
        if rule == REMEMBERED_PORTS:
            assert len(waits_s) >= attempts - 1
        else:
            assert waits_s == []  # nobody can guess the port: the relay stays

    world.make(rule)
    trio.run(main)


def test_peers_on_one_network_find_each_other_without_a_bootstrap_peer(world: World) -> None:
    """mDNS, on the bridge between the routers, where `pub` and one router's namespace sit side by side."""

    async def main() -> None:
        with trio.fail_after(60):
            async with (
                open_peer(world, "pub", listen=[f"/ip4/10.77.0.1/tcp/{PORT}"], mdns=True) as one,
                open_peer(world, "net", listen=[f"/ip4/10.77.0.2/tcp/{PORT}"], mdns=True) as other,
            ):
                started = time.perf_counter()
                while other.peer not in {who for who, _, _ in (await one.ask("connections"))["to"]}:
                    await trio.sleep(0.1)
                print(f"\nfound on the local network after {time.perf_counter() - started:.1f} s")

    world.make(REMEMBERED_PORTS)
    world.within("net", "ip", "address", "add", "10.77.0.2/24", "dev", "br0")
    trio.run(main)
