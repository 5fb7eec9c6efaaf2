"""A plain peer: carries the market for others. DHT server, gossip in every shard, answers about offers; no model.

It signs nothing of the market and needs no trust: offers carry their own signatures. Newly connected peers are asked
once for the offers that they know, so that a node that was just started knows what was said before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from ..errors import RemoteProtocolError, Unavailable
from ..exchange import OfferExchange
from ..market.book import ListedOffer
from ..ports import Clock, PeerAddresses, Store
from ..ports import Network as PeerNetwork
from ..types import Network, PeerId

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # what the stubs of trio know that libp2p brings

GREET_EVERY_S: Final = 2.0
GREETED_MAX: Final = 4_096


class PlainNode:
    """A running plain node. Made by `open_plain_node`."""

    def __init__(self, *, network: PeerNetwork, network_id: Network, clock: Clock, store: Store | None = None) -> None:
        self._network = network
        self._clock = clock
        self._exchange = OfferExchange(
            network=network,
            network_id=network_id,
            clock=clock,
            save_proof=store.save_proof if store is not None else None,
        )
        self._greeted: dict[PeerId, None] = {}

    def offers(self) -> tuple[ListedOffer, ...]:
        """Everything on offer that this node knows."""
        return self._exchange.book.listed(now=self._clock.now())

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """All tasks, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._exchange.run)
            await self._exchange.join_all()
            task_status.started()
            while True:
                await self._greet()
                await trio.sleep(GREET_EVERY_S)

    async def _greet(self) -> None:
        present = {connection.peer for connection in self._network.connections()}
        self._greeted = {peer: None for peer in self._greeted if peer in present}
        for peer in present - self._greeted.keys():
            if len(self._greeted) >= GREETED_MAX:
                return
            self._greeted[peer] = None
            try:
                await self._exchange.ask(PeerAddresses(peer=peer, addresses=()))
            except (Unavailable, RemoteProtocolError):
                continue  # a peer that speaks only libp2p is welcome too


@asynccontextmanager
async def open_plain_node(
    network: PeerNetwork, *, network_id: Network, clock: Clock, store: Store | None = None
) -> AsyncIterator[PlainNode]:
    """A plain node that is up until the block ends."""
    node = PlainNode(network=network, network_id=network_id, clock=clock, store=store)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        yield node
        nursery.cancel_scope.cancel()
