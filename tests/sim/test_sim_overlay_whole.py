"""Level 0: whole nodes, the shipped driver with its handshakes and bytes, in virtual time."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

import p2p.driver.node
import p2p.driver.transport
from sim.clock import SimClock, run_trio
from sim.errors import WorldInvalid
from sim.kernel import MILLISECOND, SECOND, Kernel
from sim.levels.entropy import simulated_modules
from sim.levels.machines import run_level as run_machines
from sim.levels.whole import run_level
from sim.net import Network, UniformLatency
from sim.net.sockets import SimHosts, SimSocket
from sim.out import NullSink
from sim.result import LevelResult
from sim.rng import stream
from sim.scenario import (
    ChurnSpec,
    DhtSpec,
    GossipSpec,
    MarketSpec,
    NetSpec,
    NodeGroup,
    PartitionSpec,
    RunSpec,
    Scenario,
)

ROOT = Path(__file__).parents[2]

SMALL = Scenario(
    name="small",
    run=RunSpec(until_s=14.0),
    nodes={"honest": NodeGroup(count=12, roles=("gossip", "dht"))},
    gossip=GossipSpec(protocol="v1.1", dials=4, publishers=2, rate_per_s=0.5, publish_from_s=5.0, publish_until_s=11.0),
    dht=DhtSpec(lookups=5, lookups_from_s=6.0, lookups_until_s=11.0),
)


def _run(scenario: Scenario, seed: int = 1) -> LevelResult:
    return run_level(scenario, seed=seed, sink=NullSink(), progress=lambda share, note: None)


def test_whole_nodes_gossip_and_look_up_in_virtual_time():
    began = time.monotonic()
    summary = _run(SMALL).summary
    assert summary["gossip"]["published"] == 6
    assert summary["gossip"]["delivered_share"] == 1.0
    assert summary["gossip"]["deliveries"] == 6 * 11
    assert summary["dht"]["found_closest_share"] == 1.0
    assert summary["network"]["failures"] == {}
    assert time.monotonic() - began < 14 * 3  # it is no real-time run, even on a busy machine


REPEATED = """
import json, sys
sys.path.insert(0, {root!r})
from tests.sim.test_sim_overlay_whole import SMALL, _run
result = _run(SMALL)
print(json.dumps([result.trace_hash, result.events, result.checkpoints, result.summary], sort_keys=True))
"""


def test_two_processes_with_different_hash_seeds_send_the_same_bytes():
    told = []
    for hash_seed in ("1", "2"):
        ended = subprocess.run(
            [sys.executable, "-c", REPEATED.format(root=str(ROOT))],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 0, ended.stderr
        told.append(json.loads(ended.stdout))
    assert told[0] == told[1]
    assert _run(SMALL, seed=2).trace_hash != told[0][0]


def test_both_levels_send_about_as_many_messages_of_each_kind():
    scenario = replace(SMALL, nodes={"honest": NodeGroup(count=24, roles=("gossip",))}, dht=None)
    zero = _run(scenario).summary["gossip"]
    one = run_machines(scenario, seed=1, sink=NullSink(), progress=lambda share, note: None).summary["gossip"]
    for kind in ("message", "ihave", "graft"):
        assert zero["sent"][kind] == pytest.approx(one["sent"][kind], rel=0.25)
    assert zero["delay_ms"]["p50"] == pytest.approx(one["delay_ms"]["p50"], rel=0.3)
    assert zero["delivered_share"] == one["delivered_share"] == 1.0


def test_lost_segments_are_sent_again_and_a_partition_heals():
    net = NetSpec(loss=0.02, partitions=(PartitionSpec(at_s=6.0, for_s=2.0, share=0.4),))
    summary = _run(replace(SMALL, net=net, dht=None)).summary
    assert summary["network"]["lost"] > 5
    assert summary["network"]["blocked"] > 5
    assert summary["gossip"]["delivered_share"] == 1.0


def test_nodes_that_come_and_go_leave_a_network_that_still_delivers():
    nodes = {
        "stable": NodeGroup(count=8, roles=("gossip",)),
        "churning": NodeGroup(
            count=6, roles=("gossip",), churn=ChurnSpec(model="weibull", scale_s=8.0, off_mean_s=3.0)
        ),
    }
    summary = _run(replace(SMALL, nodes=nodes, dht=None)).summary
    assert summary["gossip"]["delivered_share"] > 0.8


def test_what_this_level_cannot_do_is_refused_or_said():
    with pytest.raises(WorldInvalid, match="--level 1"):
        _run(replace(SMALL, nodes={"honest": NodeGroup(count=201, roles=("gossip",))}))
    brief = replace(SMALL, run=RunSpec(until_s=1.0), nodes={"honest": NodeGroup(count=2)}, market=MarketSpec())
    assert any("market" in warning for warning in _run(brief).warnings)


def test_after_a_run_the_driver_has_its_clocks_sockets_and_settings_back():
    names = [
        (p2p.driver.transport, "socket"),
        (p2p.driver.transport, "os"),
        (p2p.driver.node, "Gossip"),
        (p2p.driver.node, "Dht"),
    ]
    before = [getattr(module, name) for module, name in names]
    _run(replace(SMALL, run=RunSpec(until_s=1.0)))
    assert [getattr(module, name) for module, name in names] == before


def test_a_run_that_fails_gives_them_back_too():
    before = p2p.driver.transport.socket

    def fail() -> None:
        with simulated_modules(Kernel(1)):
            assert p2p.driver.transport.socket.socket is SimSocket
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert p2p.driver.transport.socket is before


# --- sockets ---------------------------------------------------------------------------------------------


def _with_hosts(count: int, work: Any, *, loss: float = 0.0, until_s: float = 100.0) -> tuple[Kernel, Network]:
    kernel = Kernel(1)
    network = Network(kernel, UniformLatency(10.0, 10.0), loss=loss)
    for number in range(count):
        network.add(stream(1, "key", number).u64())

    async def main(clock: SimClock) -> None:
        hosts = SimHosts(network, clock)
        for number in range(count):
            hosts.add(f"11.0.{number}.1", number)
        await work(hosts, [hosts.by_address[f"11.0.{number}.1"] for number in range(count)])
        assert hosts.open_sockets == 0

    run_trio(kernel, main, until_ns=kernel.start_ns + int(until_s * SECOND))
    return kernel, network


def _socket(hosts: SimHosts, host: Any) -> SimSocket:
    with hosts.as_host(host):
        return SimSocket()


async def _connected(sock: SimSocket, address: tuple[str, int]) -> int:
    with pytest.raises(BlockingIOError):
        sock.connect(address)
    await trio.lowlevel.wait_writable(sock.fileno())
    return sock.getsockopt(1, 4)  # SOL_SOCKET, SO_ERROR


async def _pair(hosts: SimHosts, a: Any, b: Any) -> tuple[SimSocket, SimSocket, SimSocket]:
    listener = _socket(hosts, b)
    listener.bind(("0.0.0.0", 4001))
    listener.listen(16)
    near = _socket(hosts, a)
    assert await _connected(near, (b.address, 4001)) == 0
    await trio.lowlevel.wait_readable(listener.fileno())
    far, address = listener.accept()
    assert address == near.getsockname()
    return listener, near, far


async def _read(sock: SimSocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        try:
            piece = sock.recv(65536)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock.fileno())
            continue
        if not piece:
            break
        data += piece
    return data


def test_a_simulated_connection_takes_a_round_trip_and_bytes_a_latency():
    times: list[float] = []

    async def work(hosts: SimHosts, machines: list[Any]) -> None:
        listener, near, far = await _pair(hosts, *machines)
        times.append(trio.current_time())
        near.send(b"hello")
        assert await _read(far, 5) == b"hello"
        times.append(trio.current_time())
        for sock in (listener, near, far):
            sock.close()

    _with_hosts(2, work)
    assert times == [pytest.approx(0.020), pytest.approx(0.030)]


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_bytes_arrive_whole_and_in_order_and_then_the_end(loss: float):
    sent = bytes(range(256)) * 2000

    async def work(hosts: SimHosts, machines: list[Any]) -> None:
        listener, near, far = await _pair(hosts, *machines)
        view = memoryview(sent)
        while view:
            view = view[near.send(view[:5000]) :]
        near.close()
        assert await _read(far, len(sent) + 1) == sent
        for sock in (listener, far):
            sock.close()

    _, network = _with_hosts(2, work, loss=loss)
    assert (network.lost > 5) == (loss > 0)


def test_nobody_listening_is_refused_after_a_round_trip_and_nobody_there_times_out():
    async def work(hosts: SimHosts, machines: list[Any]) -> None:
        near = _socket(hosts, machines[0])
        assert await _connected(near, (machines[1].address, 9)) == errno.ECONNREFUSED
        assert trio.current_time() == pytest.approx(0.020)
        near.close()
        near = _socket(hosts, machines[0])
        assert await _connected(near, ("11.9.9.9", 9)) == errno.ETIMEDOUT
        assert 30 < trio.current_time() < 60
        near.close()

    _with_hosts(2, work)


def test_a_long_partition_ends_a_connection_on_both_sides():
    async def work(hosts: SimHosts, machines: list[Any]) -> None:
        listener, near, far = await _pair(hosts, *machines)
        hosts.network.partition([0])
        near.send(b"into the void")
        for sock in (near, far):
            await trio.lowlevel.wait_readable(sock.fileno())
            with pytest.raises(TimeoutError):
                sock.recv(100)
        assert 30 < trio.current_time() < 60
        for sock in (listener, near, far):
            sock.close()

    _with_hosts(2, work)


def test_sending_to_a_closed_end_resets_the_connection():
    async def work(hosts: SimHosts, machines: list[Any]) -> None:
        listener, near, far = await _pair(hosts, *machines)
        far.close()
        assert await _read(near, 1) == b""
        near.send(b"late")
        await trio.sleep(0.1)
        with pytest.raises(ConnectionResetError):
            near.send(b"later")
        with pytest.raises(OSError, match="Bad file descriptor"):
            far.recv(1)
        for sock in (listener, near):
            sock.close()

    kernel, _ = _with_hosts(2, work)
    assert kernel.elapsed_s < 1 and kernel.now % MILLISECOND == 0


def test_two_listeners_on_one_port_of_one_host_are_refused_and_on_two_hosts_are_not():
    async def work(hosts: SimHosts, machines: list[Any]) -> None:
        sockets = [_socket(hosts, machines[number]) for number in (0, 1, 0)]
        for sock in sockets[:2]:
            sock.bind(("0.0.0.0", 4001))
            sock.listen(16)
        with pytest.raises(OSError, match="in use"):
            sockets[2].bind(("0.0.0.0", 4001))
        for sock in sockets:
            sock.close()

    _with_hosts(2, work)
