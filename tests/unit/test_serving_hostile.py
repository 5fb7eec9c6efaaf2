"""What a client can do to a provider that serves it, and what it cannot: cancels, floods, slow readers."""

from __future__ import annotations

import math

import trio
from trio.testing import MockClock

from cocoon.exchange import offer_facts
from cocoon.node.serving import ServedSession
from tests.fakes.engine import ScriptedEngine
from tests.fakes.little_market import ask, open_market


def run(scenario):
    trio.run(scenario, clock=MockClock(autojump_threshold=0))


class Pipe:
    """A stream of a session without a network, so that two frames sent together arrive together."""

    def __init__(self, peer, send, receive):
        self.peer = peer
        self._send = send
        self._receive = receive

    async def send(self, frame):
        await self._send.send(frame)

    async def receive(self):
        try:
            return await self._receive.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            return None

    async def aclose(self):
        self._send.close()
        self._receive.close()


async def linked(market, provider, nursery, name: str = "client", *, frames_max: float = math.inf):
    """A client's trusted session with this provider, and the offer behind it. `frames_max` fit into the wire."""
    client = await market.add_client(name)
    await client._wait_for_offers(provider.role.model.digest)
    offer = provider.role.offer
    to_provider, at_provider = trio.open_memory_channel(math.inf)
    to_client, at_client = trio.open_memory_channel(frames_max)
    served = ServedSession(Pipe(client.peer, to_client, at_provider), provider.role._serving)
    nursery.start_soon(served.run)

    async def open_stream(target, protocol, *, frame_bytes_max):
        return Pipe(target.peer, to_provider, at_client)

    client._network.open_stream = open_stream
    link, _ = await client.pool.trusted_link(offer, policy=client.settings.policy)
    return link, offer


def open_request(link, offer, **fields):
    from cocoon.serve.openai import encode_body, normalise

    body = dict(normalise("chat.completions", ask(**fields)).body)
    return link.open(
        endpoint="chat.completions",
        body=encode_body({**body, "max_tokens": 16}),
        cache_tag=bytes(16),
        offer=offer_facts(offer),
        input_tokens_max=512,
        output_tokens_max=16,
        cost_max_nano=0,
        wait_ms_max=1_000,
    )


def test_a_cancel_that_comes_with_its_open_frees_the_slot_at_once():
    async def scenario():
        async with open_market() as market, trio.open_nursery() as nursery:
            provider = await market.add_provider("alice", ScriptedEngine(token_s=10.0))
            link, offer = await linked(market, provider, nursery)
            for _ in range(40):  # which task runs first is drawn anew each time
                open_request(link, offer).cancel()
                await trio.sleep(0.1)
            assert provider.role.record.running == 0
            assert provider.engine.running == 0
            nursery.cancel_scope.cancel()

    run(scenario)
