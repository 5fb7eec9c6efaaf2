"""Nobody is left deaf: in every start of a network, every node hears every message of the topics it joined.

Real nodes on loopback that start, dial and join at random times, so that streams of both directions cross in every
order. The long form repeats it a hundred times.
"""

from __future__ import annotations

import random

import pytest
import trio

import p2p
import p2p.driver  # before any clock runs: importing libp2p takes seconds
from p2p.errors import DialFailed
from p2p.testing.contract.tools import accept_all, key_of, settings

TOPIC = "deaf"
NODES = 20
LINKS = 3
START_S = 120.0  # for twenty nodes to have dialled and joined; one second where nothing else runs
SILENCE_S = 15.0  # no node has heard anything new for so long: what is missing now will not come


async def start_once(seed: int) -> list[int]:
    """How many of the messages each node has heard."""
    rng = random.Random(seed)
    nodes: list[p2p.Node | None] = [None] * NODES
    heard: list[set[bytes]] = [set() for _ in range(NODES)]
    joined: list[int] = []
    stop = trio.Event()

    async def live(number: int) -> None:
        async with p2p.open_node(settings(), key=key_of(f"{seed} {number}")) as node:
            nodes[number] = node
            await trio.sleep(rng.uniform(0, 0.3))
            if rng.random() < 0.5:
                feed = await node.subscribe(TOPIC, accept_all)
                await dial(number, node)
            else:
                await dial(number, node)
                await trio.sleep(rng.uniform(0, 0.3))
                feed = await node.subscribe(TOPIC, accept_all)
            joined.append(number)
            async with trio.open_nursery() as inner:

                async def listen() -> None:
                    async for message in feed:
                        heard[number].add(message.data)

                inner.start_soon(listen)
                await stop.wait()
                inner.cancel_scope.cancel()

    async def dial(number: int, node: p2p.Node) -> None:
        others = [number - 1 if number else NODES - 1, *rng.sample(range(NODES), LINKS)]
        for other in dict.fromkeys(others):
            while (target := nodes[other]) is None:
                await trio.sleep(0.01)
            if other != number:
                await dial_one(node, target)

    async def dial_one(node: p2p.Node, target: p2p.Node) -> None:
        while True:
            try:
                await node.connect(target.peer, target.addresses())
                return
            except DialFailed:
                await trio.sleep(0.1)  # until START_S is over

    async with trio.open_nursery() as nursery:
        for number in range(NODES):
            nursery.start_soon(live, number)
        with trio.fail_after(START_S):
            while len(joined) < NODES:
                await trio.sleep(0.05)
        await trio.sleep(4)  # meshes form at heartbeats, one a second
        expected = set()
        for number, node in enumerate(nodes):
            assert node is not None
            data = b"from %d" % number
            expected.add(data)
            await node.publish(TOPIC, data)
        total, patience = -1, trio.CancelScope()
        with patience:
            while any(not expected <= got for got in heard):
                if sum(map(len, heard)) > total:
                    total = sum(map(len, heard))
                    patience.deadline = trio.current_time() + SILENCE_S
                await trio.sleep(0.05)
        stop.set()
    return [len(expected & got) for got in heard]


@pytest.mark.parametrize("seed", range(5))
def test_every_node_hears_everybody(seed: int) -> None:
    assert trio.run(start_once, seed) == [NODES] * NODES


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5, 105))
def test_every_node_hears_everybody_in_a_hundred_more_starts(seed: int) -> None:
    assert trio.run(start_once, seed) == [NODES] * NODES
