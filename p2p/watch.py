"""Who is connected: a set of peers, the events of its changes, and something to wait on."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import trio

from p2p.errors import DialFailed
from p2p.interface import PeerConnected, PeerDisconnected, PeerEvent, PeerId
from p2p.queues import BoundedFeed

BOOTSTRAP_WAIT_FIRST_S = 0.5
BOOTSTRAP_WAIT_MAX_S = 30.0


class PeerWatch:
    def __init__(self, *, queue_max: int) -> None:
        self._queue_max = queue_max
        self._feeds: list[BoundedFeed[PeerEvent]] = []
        self._changed = trio.Event()
        self.peers: set[PeerId] = set()

    async def wait_change(self) -> None:
        """Until a connection came or went, or the node closed."""
        await self._changed.wait()

    def note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def add(self, peer: PeerId) -> None:
        if peer not in self.peers:
            self.peers.add(peer)
            self._tell(PeerConnected(peer=peer))
        self.note_change()

    def remove(self, peer: PeerId) -> None:
        if peer in self.peers:
            self.peers.discard(peer)
            self._tell(PeerDisconnected(peer=peer))
        self.note_change()

    def _tell(self, event: PeerEvent) -> None:
        for feed in self._feeds:
            feed.put_nowait(event)

    def events(self) -> BoundedFeed[PeerEvent]:
        feed: BoundedFeed[PeerEvent]

        async def forget() -> None:
            self._feeds.remove(feed)

        feed = BoundedFeed(items_max=self._queue_max, on_close=forget)
        for peer in sorted(self.peers):
            feed.put_nowait(PeerConnected(peer=peer))
        self._feeds.append(feed)
        return feed

    def close(self) -> None:
        for feed in self._feeds:
            feed.close_nowait()
        self._feeds.clear()
        self.note_change()


async def keep_connected(
    dial: Callable[[], Awaitable[object]], wait_lost: Callable[[], Awaitable[None]], randomness: random.Random
) -> None:
    """Dial, wait until the connection is lost, dial again; with a wait that grows while dialling fails, and
    is spread so that a thousand peers do not come back in one second. Ends by cancellation only."""
    wait_s = BOOTSTRAP_WAIT_FIRST_S
    while True:
        try:
            await dial()
            wait_s = BOOTSTRAP_WAIT_FIRST_S
            await wait_lost()
        except DialFailed:
            pass  # told by dial_failures()
        await trio.sleep(wait_s * randomness.uniform(0.8, 1.2))
        wait_s = min(wait_s * 2, BOOTSTRAP_WAIT_MAX_S)
