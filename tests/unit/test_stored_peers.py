"""A node that is started again finds the others by its own database, when its bootstrap peers are gone."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import p2p
import p2p.driver.connections
from cocoon.adapters.clock import SystemClock, entropy
from cocoon.adapters.network import PeerNetwork, StoredPeers, open_network, peer_of_seed
from cocoon.adapters.store import SqliteStore
from cocoon.adapters.store_memory import MemoryStore
from cocoon.errors import StoreError, Unavailable
from cocoon.ports import KnownPeer
from cocoon.types import Secret

SEEDS = [Secret(hashlib.sha256(b"stored peers %d" % number).digest()) for number in range(3)]
LISTEN = ("/ip4/127.0.0.1/tcp/0",)


@asynccontextmanager
async def peer(
    number: int, *, bootstrap: tuple[str, ...] = (), store: SqliteStore | None = None
) -> AsyncIterator[PeerNetwork]:
    async with open_network(
        seed=SEEDS[number],
        listen=LISTEN,
        bootstrap=bootstrap,
        serves_dht=True,
        allow_private_addresses=True,
        store=store,
        clock=SystemClock(),
    ) as network:
        yield network


@pytest.mark.parametrize("is_killed", [False, True], ids=["ended in order", "killed"])
def test_a_node_whose_bootstrap_peer_is_gone_joins_by_the_peers_in_its_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    monkeypatch.setattr(p2p.driver.connections, "CACHED_WAIT_S", 0.3)
    monkeypatch.setattr(p2p.driver.connections, "NOTE_S", 0.1)
    monkeypatch.setattr(p2p.driver.connections, "SAVE_FIRST_S", 0.1 if is_killed else 3600.0)
    database = tmp_path / "node.sqlite"
    clock = SystemClock()

    async def open_store(path: Path = database) -> SqliteStore:
        return await SqliteStore.open(path, clock=clock, entropy=entropy)

    async def first_run(bootstrap: str, other: PeerNetwork) -> Path:
        """The database as it is afterwards, or in the midst of it."""
        async with await open_store() as store, peer(2, bootstrap=(bootstrap,), store=store) as node:
            await node.wait_connected(timeout_s=10)
            while other.peer not in {known.peer for known in node.connections()}:
                await node.provide(hashlib.sha256(b"key").digest())  # a look-up meets the others
                await trio.sleep(0.1)
            if not is_killed:
                return database
            while other.peer not in {known.peer for known in await store.known_peers(count_max=9)}:
                await trio.sleep(0.05)
            copy = tmp_path / "killed.sqlite"
            for suffix in ("", "-wal"):
                Path(f"{copy}{suffix}").write_bytes(Path(f"{database}{suffix}").read_bytes())
            return copy

    async def main() -> None:
        ending, ended = trio.Event(), trio.Event()

        async def be_bootstrap(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            async with peer(0) as bootstrap:
                task_status.started(bootstrap.addresses()[0])
                await ending.wait()
            ended.set()

        async with trio.open_nursery() as nursery:
            bootstrap = await nursery.start(be_bootstrap)
            async with peer(1, bootstrap=(bootstrap,)) as other:
                await other.wait_connected(timeout_s=10)
                with trio.fail_after(20):
                    left = await first_run(bootstrap, other)
                ending.set()
                await ended.wait()
                async with peer(2, bootstrap=(bootstrap,)) as stranger:
                    with pytest.raises(Unavailable):
                        await stranger.wait_connected(timeout_s=2)
                async with await open_store(left) as store, peer(2, bootstrap=(bootstrap,), store=store) as node:
                    await node.wait_connected(timeout_s=20)
                    assert [known.peer for known in node.connections()] == [other.peer]

    trio.run(main)


def test_a_store_that_fails_takes_no_network_with_it_and_the_peers_are_not_lost() -> None:
    class Failing(MemoryStore):
        is_broken = True

        async def remember_peers(self, peers: tuple[KnownPeer, ...]) -> None:
            if self.is_broken:
                raise StoreError("disk full")
            await super().remember_peers(peers)

    async def main() -> None:
        clock = SystemClock()
        store = Failing(clock=clock, entropy=entropy)
        book = StoredPeers(store, clock, ())
        found = [
            p2p.PeerInfo(peer=peer_of_seed(seed), addresses=(f"/ip4/192.0.2.{number}/tcp/1",))
            for number, seed in enumerate(SEEDS)
        ]
        book.save(found)
        await book.flush()
        store.is_broken = False
        await book.flush()
        again = StoredPeers(store, clock, await store.known_peers(count_max=9))
        assert again.load() == found, "in the same order"

    trio.run(main)


def test_an_error_of_the_program_comes_out_of_the_network_as_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        async with await SqliteStore.open(tmp_path / "x.sqlite", clock=SystemClock(), entropy=entropy) as store:
            with pytest.raises(ZeroDivisionError):
                async with peer(0, store=store):
                    raise ZeroDivisionError
            with trio.move_on_after(0.1) as scope:
                async with peer(0, store=store):
                    await trio.sleep_forever()
            assert scope.cancelled_caught

    trio.run(main)
