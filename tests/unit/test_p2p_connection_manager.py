"""Which connections go when there are too many, and what is remembered from one run to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio

import p2p
import p2p.driver.connections
import p2p.trimming
from p2p.driver.node import Libp2pNode
from p2p.identity import peer_id_of_seed
from p2p.testing.contract.tools import PROTOCOL, eventually, key_of, open_to, settings, sleep
from p2p.trimming import GRACE_NS, Held, choose_to_close

NOW = 10**18


def held(key: int, **given: Any) -> Held:
    defaults: dict[str, Any] = {
        "peer": str(key),
        "opened_at": NOW - GRACE_NS - key,
        "streams": 0,
        "protected": False,
        "inbound": True,
    }
    return Held(key=key, **{**defaults, **given})


def test_nothing_is_closed_up_to_the_high_mark() -> None:
    assert choose_to_close([held(key) for key in range(10)], high=10, low=2, now=NOW) == []


def test_over_the_high_mark_the_young_idle_and_inbound_go_first_down_to_the_low_mark() -> None:
    many = [held(1), held(2), held(3, inbound=False), held(4, streams=5), held(5)]
    assert choose_to_close(many, high=4, low=2, now=NOW) == [1, 2, 5]
    assert choose_to_close(many, high=4, low=1, now=NOW) == [1, 2, 5, 3]
    assert choose_to_close(many, high=4, low=0, now=NOW) == [1, 2, 5, 3, 4]


def test_protected_and_new_ones_stay_even_over_the_mark() -> None:
    many = [held(1, protected=True), held(2, opened_at=NOW - 1), held(3)]
    assert choose_to_close(many, high=1, low=0, now=NOW) == [3]


def test_a_crowd_of_idle_strangers_is_sent_away_and_friends_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        limits = p2p.Limits(connections_high=6, connections_low=3)
        async with p2p.open_node(settings(limits=limits), key=key_of("hub")) as hub, trio.open_nursery() as nursery:
            assert isinstance(hub, Libp2pNode)
            hub.handle(PROTOCOL, sleep, frame_bytes_max=100, streams_per_peer_max=2)
            peers: list[str] = []

            async def live(name: str, busy: bool) -> None:
                async with p2p.open_node(settings(gossip=False), key=key_of(name)) as node:
                    await node.connect(hub.peer, hub.addresses())
                    if busy:
                        await open_to(node, hub)
                        peers.append(node.peer)
                    await trio.sleep_forever()

            nursery.start_soon(live, "busy", True)
            await eventually(lambda: peers, "the busy one is there")
            for number in range(7):
                nursery.start_soon(live, f"idle {number}", False)
            await eventually(lambda: len(hub.connections()) == 8, "all are connected")
            await trio.sleep(0.3)
            monkeypatch.setattr(p2p.trimming, "GRACE_NS", 0)
            await hub.manager.trim()
            await eventually(lambda: len(hub.connections()) == 3, "down to the low mark")
            assert peers[0] in {info.peer for info in hub.connections()}
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_all_connections_together_may_not_hold_too_much_unread() -> None:
    async def main() -> None:
        limits = p2p.Limits(unread_bytes_total_max=300_000)
        async with p2p.open_node(settings(limits=limits), key=key_of("victim")) as victim:
            victim.handle(PROTOCOL, sleep, frame_bytes_max=1 << 20, streams_per_peer_max=8)
            async with (
                p2p.open_node(settings(victim), key=key_of("greedy")) as greedy,
                p2p.open_node(settings(victim), key=key_of("modest")) as modest,
            ):
                small = await modest.open_stream(
                    victim.peer, PROTOCOL, addresses=victim.addresses(), frame_bytes_max=1 << 20
                )
                await small.send(bytes(1000))
                streams = [
                    await greedy.open_stream(
                        victim.peer, PROTOCOL, addresses=victim.addresses(), frame_bytes_max=1 << 20
                    )
                    for _ in range(3)
                ]
                async with trio.open_nursery() as nursery:
                    for stream in streams:
                        nursery.start_soon(flood, stream)
                assert modest.peer in {info.peer for info in victim.connections()}
                await small.send(b"still here")

    async def flood(stream: p2p.Stream) -> None:
        with pytest.raises(p2p.StreamReset), trio.fail_after(10):
            await stream.send(bytes(900_000))

    trio.run(main)


class Book:
    def __init__(self, *peers: p2p.PeerInfo) -> None:
        self.peers: Sequence[p2p.PeerInfo] = peers
        self.saves = 0

    def load(self) -> Sequence[p2p.PeerInfo]:
        return self.peers

    def save(self, peers: Sequence[p2p.PeerInfo]) -> None:
        self.peers = peers
        self.saves += 1


def test_peers_of_the_last_run_help_when_no_bootstrap_peer_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p2p.driver.connections, "CACHED_WAIT_S", 0.2)

    async def main() -> None:
        nonsense = p2p.PeerInfo(peer="nobody", addresses=("nowhere",))
        book = Book(nonsense)
        async with p2p.open_node(settings(), key=key_of("server")) as server:
            first = replace(settings(server), address_book=book)
            async with p2p.open_node(first, key=key_of("client")) as client:
                await client.wait_connected(timeout_s=10)
                assert book.saves == 0
            assert book.saves == 1
            assert [info.peer for info in book.peers] == [server.peer]
            assert f"{book.peers[0].addresses[0]}/p2p/{server.peer}" in server.addresses()
            again = replace(settings(bootstrap_addresses=()), address_book=book)
            async with p2p.open_node(again, key=key_of("client")) as client:
                await client.wait_connected(timeout_s=10)

    trio.run(main)


def test_cached_peers_are_tried_a_few_at_a_time_until_one_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty are gone, and the one that lives stands anywhere among them."""
    monkeypatch.setattr(p2p.driver.connections, "CACHED_WAIT_S", 0.1)

    async def main(place: int) -> None:
        gone = [
            p2p.PeerInfo(peer=peer_id_of_seed(key_of(f"gone {number}")), addresses=("/ip4/127.0.0.1/tcp/1",))
            for number in range(30)
        ]
        async with p2p.open_node(settings(), key=key_of("server")) as server:
            address = server.addresses()[0].split("/p2p/")[0]
            gone.insert(place, p2p.PeerInfo(peer=server.peer, addresses=(address,)))
            alone = replace(settings(bootstrap_addresses=()), address_book=Book(*gone))
            async with p2p.open_node(alone, key=key_of("client")) as client:
                await client.wait_connected(timeout_s=10)
                (first,) = client.connections()
                await server.disconnect(client.peer)
                await eventually(
                    lambda: any(found.opened_at > first.opened_at for found in client.connections()),
                    "a lost connection is no end",
                )

    for place in (0, 15, 30):
        trio.run(main, place)


def test_peers_are_written_down_while_the_node_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is killed has no last word; and a connection that is closed again has left an address."""
    monkeypatch.setattr(p2p.driver.connections, "NOTE_S", 0.05)
    monkeypatch.setattr(p2p.driver.connections, "SAVE_FIRST_S", 0.5)

    async def main() -> None:
        book = Book()
        async with (
            p2p.open_node(settings(), key=key_of("server")) as server,
            p2p.open_node(replace(settings(), address_book=book), key=key_of("client")) as client,
        ):
            await client.connect(server.peer, server.addresses())
            await trio.sleep(0.2)
            await client.disconnect(server.peer)
            await eventually(lambda: book.saves, "the book is told")
            assert [info.peer for info in book.peers] == [server.peer]

    trio.run(main)
