"""The offer exchange over the memory network: what strangers, and a full disk, can and cannot do to it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from cocoon.errors import NoProvider, RemoteProtocolError, StoreError
from cocoon.exchange import ASKED_PER_LOOKUP_MAX, OFFERS_PROTOCOL, OfferExchange
from cocoon.market.keys import lookup_keys
from cocoon.ports import PeerAddresses
from cocoon.types import Network
from cocoon.wire import limits
from cocoon.wire.codec import encode
from cocoon.wire.messages import OffersReply
from tests.fakes.little_market import MODEL, START_NS, VirtualClock, ask, open_market
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


def test_a_peer_that_asks_without_end_is_cut_off_and_others_are_still_answered():
    async def scenario():
        async with open_market() as market, trio.open_nursery() as nursery:
            node = PeerAddresses(peer=market.plain._network.peer, addresses=market.bootstrap)
            exchanges = []
            for name in ("flooder", "friend"):
                network = await market.network(name)
                exchanges.append(OfferExchange(network=network, network_id=Network.DEVNET, clock=VirtualClock()))
                await nursery.start(exchanges[-1].run)
            flooder, friend = exchanges

            async def flood():
                for _ in range(1_000):
                    await flooder.ask(node)

            with pytest.raises(RemoteProtocolError):
                await flood()
            assert await friend.ask(node) == 0
            await trio.sleep(60)
            assert await flooder.ask(node) == 0
            nursery.cancel_scope.cancel()

    run(scenario)


def test_providers_invented_under_one_dht_key_do_not_crowd_out_those_under_the_others():
    async def scenario():
        async with open_market() as market, trio.open_nursery() as nursery:
            network = await market.network("node")
            honest = PeerAddresses(peer="honest", addresses=())
            keys = lookup_keys(Network.DEVNET, MODEL.digest, now=START_NS)
            asked = []

            async def find_providers(key, *, count_max):
                if key == keys[3]:
                    await trio.sleep(2)  # honest records are the last to come
                    return (honest,)
                return tuple(PeerAddresses(peer=f"{key.hex()}{n}", addresses=()) for n in range(count_max))

            async def open_stream(target, protocol, *, frame_bytes_max):
                asked.append(target.peer)
                raise RemoteProtocolError("nobody there")

            network.find_providers, network.open_stream = find_providers, open_stream
            exchange = OfferExchange(network=network, network_id=Network.DEVNET, clock=VirtualClock())
            await nursery.start(exchange.run)
            await trio.sleep(1)
            await exchange.look_up(MODEL.digest)
            assert len(asked) == ASKED_PER_LOOKUP_MAX
            assert "honest" in asked
            assert market.plain._network.peer in asked  # nor the peers that we are connected to
            nursery.cancel_scope.cancel()

    run(scenario)


def test_requests_that_wait_for_one_model_share_one_look_up(monkeypatch):
    counted = []
    real = OfferExchange.look_up

    async def count(exchange, model):
        counted.append(model)
        return await real(exchange, model)

    monkeypatch.setattr(OfferExchange, "look_up", count)

    async def scenario():
        async with open_market() as market:
            client = await market.add_client(offers_wait_s=0.5)

            async def request():
                with pytest.raises(NoProvider):
                    async with client.generate("chat.completions", ask(), spend_max_nano=0):
                        pass

            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(request)
            assert 1 <= len(counted) <= 10  # one by one they would be forty

    run(scenario)
