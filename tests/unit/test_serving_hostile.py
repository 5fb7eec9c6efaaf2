"""What a client can do to a provider that serves it, and what it cannot: cancels, floods, slow readers."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock

from cocoon.errors import Refused
from cocoon.exchange import offer_facts
from cocoon.node.serving import ADMITTING_MAX, ServedSession
from cocoon.serve.events import OutputReceived, RequestEnded
from tests.fakes.engine import ScriptedEngine
from tests.fakes.little_market import ask, open_market


def run(scenario):
    trio.run(scenario, clock=MockClock(autojump_threshold=0))


class Pipe:
    """A stream of a session without a network, so that two frames sent together arrive together."""

    def __init__(self, peer, send, receive, *, frame_s: float = 0.0):
        self.peer = peer
        self._send = send
        self._receive = receive
        self._frame_s = frame_s  # what a frame takes on a slow wire

    async def send(self, frame):
        await self._send.send(frame)

    async def receive(self):
        await trio.sleep(self._frame_s)
        try:
            return await self._receive.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            return None

    async def aclose(self):
        self._send.close()
        self._receive.close()


async def linked(market, provider, nursery, *, frame_s: float = 0.0):
    """A client's trusted session with this provider, and the offer behind it."""
    client = await market.add_client()
    await client._wait_for_offers(provider.role.model.digest)
    offer = provider.role.offer
    to_provider, at_provider = trio.open_memory_channel(math.inf)
    to_client, at_client = trio.open_memory_channel(4 if frame_s else math.inf)
    served = ServedSession(Pipe(client.peer, to_client, at_provider), provider.role._serving)
    nursery.start_soon(served.run)

    async def open_stream(target, protocol, *, frame_bytes_max):
        return Pipe(target.peer, to_provider, at_client, frame_s=frame_s)

    client._network.open_stream = open_stream
    link, _ = await client.pool.trusted_link(offer, policy=client.settings.policy)
    return link, offer


def open_request(link, offer, *, output_tokens_max: int = 16, **fields):
    from cocoon.serve.openai import encode_body, normalise

    body = dict(normalise("chat.completions", ask(**fields)).body)
    return link.open(
        endpoint="chat.completions",
        body=encode_body({**body, "max_tokens": output_tokens_max}),
        cache_tag=bytes(16),
        offer=offer_facts(offer),
        input_tokens_max=512,
        output_tokens_max=output_tokens_max,
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


def test_on_a_wire_slower_than_the_engine_nothing_is_lost_and_what_waits_goes_together():
    words = " ".join(str(n) for n in range(1_500))

    async def scenario():
        async with open_market() as market, trio.open_nursery() as nursery:
            provider = await market.add_provider("alice", ScriptedEngine(words, token_s=0.02))
            link, offer = await linked(market, provider, nursery, frame_s=1.0)
            request = open_request(link, offer, output_tokens_max=1_500)
            pieces = []
            while not isinstance(event := await request.next_event(), RequestEnded):
                if isinstance(event, OutputReceived):
                    pieces.append(event.delta.text)
            assert "".join(pieces) == words
            assert len(pieces) < 200
            nursery.cancel_scope.cancel()

    run(scenario)


def test_a_full_queue_refuses_at_once_and_counts_no_tokens_for_it():
    class Counting(ScriptedEngine):
        counted = 0

        async def count_prompt_tokens(self, request):
            Counting.counted += 1
            return await super().count_prompt_tokens(request)

    async def scenario():
        async with open_market() as market, trio.open_nursery() as nursery:
            provider = await market.add_provider("alice", Counting(token_s=10.0, slots=1), queue_max=1)
            link, offer = await linked(market, provider, nursery)
            for _ in range(2):
                open_request(link, offer)
                await trio.sleep(0.1)
            for _ in range(20):
                with pytest.raises(Refused, match="busy"):
                    await open_request(link, offer).next_event()
            assert Counting.counted == 2
            nursery.cancel_scope.cancel()

    run(scenario)


def test_requests_that_wait_for_a_slow_tokenizer_are_bounded():
    class Slow(ScriptedEngine):
        async def count_prompt_tokens(self, request):
            await trio.sleep(10)
            return await super().count_prompt_tokens(request)

    async def scenario():
        async with open_market() as market, trio.open_nursery() as nursery:
            provider = await market.add_provider("alice", Slow(slots=4), queue_max=8)
            link, offer = await linked(market, provider, nursery)
            requests = [open_request(link, offer) for _ in range(ADMITTING_MAX + 10)]
            await trio.sleep(1)
            assert sum(request.is_over for request in requests) == 10  # refused as busy, at once
            nursery.cancel_scope.cancel()

    run(scenario)


def test_strangers_that_hold_idle_sessions_do_not_lock_others_out(monkeypatch):
    monkeypatch.setattr("cocoon.node.provider.SESSIONS_MAX", 3)

    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("alice", ScriptedEngine(token_s=1.0))
            working = await market.add_client("working")
            texts = []

            async def chat(client):
                async with client.generate("chat.completions", ask(), spend_max_nano=0) as reply:
                    texts.append("".join([delta.text async for delta in reply]))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(chat, working)
                await trio.sleep(1)
                for name in ("idle 1", "idle 2"):
                    idle = await market.add_client(name)
                    await idle._wait_for_offers(provider.role.model.digest)
                    await idle.pool.trusted_link(provider.role.offer, policy=idle.settings.policy)
                assert provider.role.sessions_open == 3
                late = await market.add_client("late")
                nursery.start_soon(chat, late)
            assert len(texts) == 2
            assert texts[0] == texts[1] == "".join(provider.engine.pieces)
            assert provider.role.sessions_open <= 3

    run(scenario)
