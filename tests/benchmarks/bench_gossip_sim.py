"""Routers alone in virtual time: how many events a second one process can push through, and that all arrives.

    python tests/benchmarks/bench_gossip_sim.py NODES MESSAGES [signed | network]

An event is one RPC, one heartbeat or one publish. The digest is the same for every PYTHONHASHSEED. `network` runs the
same on `p2p.testing.virtual`, which adds sizes, faults, order per connection and a trace of everything.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

from p2p.gossip import Deliver, GossipSettings, Router, Send, is_signed_by_source, signer
from p2p.identity import peer_id_of_seed, peer_id_to_bytes
from p2p.testing.virtual import VirtualNetwork

SECOND = 1_000_000_000
TOPIC = "topic"
DEGREE = 10
RATE = 10  # messages per virtual second
WARM_S, TAIL_S = 8, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SimResult:
    nodes: int
    events_per_s: float
    cpu_us_per_delivery: float
    delivered_share: float
    duplicates_per_delivery: float
    peak_mb: float
    digest: str


def simulate(nodes: int, messages: int, *, signed: bool = False) -> SimResult:
    rng = random.Random(1)
    seeds = [number.to_bytes(32, "big") for number in range(nodes)]
    ids = [peer_id_to_bytes(peer_id_of_seed(seed)) for seed in seeds]
    index = {peer: number for number, peer in enumerate(ids)}
    settings = GossipSettings()
    routers = [
        Router(
            ids[number],
            settings=settings,
            rng=random.Random(number),
            now=0,
            sign=signer(seeds[number]) if signed else None,
            verify=is_signed_by_source if signed else None,
        )
        for number in range(nodes)
    ]
    heap: list[tuple[int, int, int, int, Any]] = []  # (at, order, node, from, rpc | None beat | b"" publish)
    order = delivered = events = 0
    digest = hashlib.sha256()
    now = 0

    def perform(node: int, effects: list[Any]) -> None:
        nonlocal order, delivered
        for effect in effects:
            if type(effect) is Send:
                for peer in effect.peers:
                    order += 1
                    delay = 20_000_000 + rng.randrange(10_000_000)
                    heapq.heappush(heap, (now + delay, order, index[peer], node, effect.rpc))
            elif type(effect) is Deliver:
                delivered += 1
                digest.update(b"%d %d;" % (node, now))

    links: list[dict[int, None]] = [{} for _ in range(nodes)]
    for node in range(nodes):
        while len(links[node]) < DEGREE:
            other = rng.randrange(nodes)
            if other != node and other not in links[node]:
                links[node][other] = links[other][node] = None
                for a, b, outbound in ((node, other, True), (other, node, False)):
                    perform(a, routers[a].peer_changed(ids[b], connected=True, now=now, is_outbound=outbound))
    for node in range(nodes):
        perform(node, routers[node].join(TOPIC, now=now))
        routers[node].state.next_heartbeat = first = rng.randrange(SECOND)
        heapq.heappush(heap, (first, -node, node, -1, None))
    for number in range(messages):
        at = WARM_S * SECOND + number * SECOND // RATE
        heapq.heappush(heap, (at, -nodes - number - 1, rng.randrange(nodes), -1, b""))
    end = (WARM_S + TAIL_S) * SECOND + messages * SECOND // RATE
    cpu = -1.0
    while heap and heap[0][0] < end:
        now, _, node, source, rpc = heapq.heappop(heap)
        if cpu < 0 and now >= WARM_S * SECOND:
            cpu, events = time.process_time(), 0
        events += 1
        router = routers[node]
        if rpc is None:
            perform(node, router.on_time(now=now))
            heapq.heappush(heap, (router.deadline(), -node, node, -1, None))
        elif rpc == b"":
            perform(node, router.publish(TOPIC, bytes(512), now=now))
        else:
            perform(node, router.receive(ids[source], rpc, now=now))
    cpu = time.process_time() - cpu
    duplicates = sum(router.counters.duplicates for router in routers)
    return SimResult(
        nodes=nodes,
        events_per_s=events / cpu,
        cpu_us_per_delivery=cpu / max(1, delivered) * 1e6,
        delivered_share=delivered / max(1, messages * (nodes - 1)),
        duplicates_per_delivery=duplicates / max(1, delivered),
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        digest=digest.hexdigest()[:12],
    )


def simulate_network(nodes: int, messages: int) -> SimResult:
    rng = random.Random(1)
    network = VirtualNetwork(seed=1, has_dht=False)
    peers = [network.add(str(number)) for number in range(nodes)]
    for peer in peers:
        for other in rng.sample(peers, DEGREE // 2):
            network.connect(peer, other)
    for peer in peers:
        peer.join(TOPIC)
    network.run(seconds=WARM_S)
    cpu, events = time.process_time(), network.events
    for number in range(messages):
        network.after(number / RATE, rng.choice(peers).publish, TOPIC, bytes(512))
    network.run(seconds=messages / RATE + TAIL_S)
    cpu, events = time.process_time() - cpu, network.events - events
    delivered = sum(len(peer.heard) for peer in peers)
    return SimResult(
        nodes=nodes,
        events_per_s=events / cpu,
        cpu_us_per_delivery=cpu / max(1, delivered) * 1e6,
        delivered_share=delivered / max(1, messages * (nodes - 1)),
        duplicates_per_delivery=sum(p.router.counters.duplicates for p in peers) / max(1, delivered),
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        digest=network.digest()[:12],
    )


if __name__ == "__main__":
    if "network" in sys.argv:
        print(simulate_network(int(sys.argv[1]), int(sys.argv[2])))
    else:
        print(simulate(int(sys.argv[1]), int(sys.argv[2]), signed="signed" in sys.argv))
