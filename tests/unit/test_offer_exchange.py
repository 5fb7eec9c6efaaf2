"""The offer exchange over the memory network: what strangers, and a full disk, can and cannot do to it."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from cocoon.errors import StoreError
from cocoon.exchange import OFFERS_PROTOCOL, OfferExchange
from cocoon.ports import PeerAddresses
from cocoon.types import Network
from cocoon.wire import limits
from cocoon.wire.codec import encode
from cocoon.wire.messages import OffersReply
from tests.fakes.little_market import START_NS, VirtualClock, open_market
from tests.fakes.market import offer

NOW_S = START_NS // 10**9


def run(scenario):
    trio.run(scenario, clock=MockClock(autojump_threshold=0))


def at(network) -> PeerAddresses:
    return PeerAddresses(peer=network.peer, addresses=network.addresses())


def test_a_proof_that_cannot_be_kept_does_not_stop_the_node(caplog):
    async def full(slot, proof):
        raise StoreError("the disk is full")

    async def scenario():
        async with open_market() as market, trio.open_nursery() as nursery:
            network = await market.network("node")
            exchange = OfferExchange(network=network, network_id=Network.DEVNET, clock=VirtualClock(), save_proof=full)
            await nursery.start(exchange.run)
            liar = await market.network("liar")

            async def equivocate(stream):
                await stream.receive()
                offers = [offer(now_s=NOW_S, seq=5, region=region).message for region in ("DE", "FR")]
                await stream.send(encode(OffersReply(offers=offers, beacons=[])))

            liar.handle(OFFERS_PROTOCOL, equivocate, frame_bytes_max=limits.OFFERS_MESSAGE_BYTES_MAX)
            await exchange.ask(at(liar))
            await trio.sleep(1)
            assert await exchange.ask(PeerAddresses(peer=market.plain._network.peer, addresses=())) == 0
            nursery.cancel_scope.cancel()

    run(scenario)
    assert "proof.unsaved" in caplog.text
