"""Client and provider roles over the memory network, under a mock clock: what a user of the market notices."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from cocoon.adapters.signer import KeyFileSigner
from cocoon.errors import InvalidRequest, ModelNotFound, NoProvider, PriceTooHigh, StreamBroken
from cocoon.market.book import OfferBook
from cocoon.ports import PeerAddresses
from cocoon.types import FinishReason, TrustLevel, ton
from tests.fakes.engine import ScriptedEngine
from tests.fakes.little_market import ask, open_market

TEXT = "the quick brown fox jumps over the lazy dog"
SPEND = ton("1")


def run(scenario):
    trio.run(scenario, clock=MockClock(autojump_threshold=0))


async def chat(client, body, spend=SPEND):
    async with client.generate("chat.completions", body, spend_max_nano=spend) as reply:
        text = "".join([delta.text async for delta in reply])
    return text, reply


def test_a_client_finds_a_provider_by_itself_and_gets_a_receipted_answer():
    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("alice")
            client = await market.add_client()
            text, reply = await chat(client, ask())
            assert text == TEXT
            assert reply.provider == provider.network.peer
            assert reply.trust is TrustLevel.OPEN
            assert reply.summary.finish_reason is FinishReason.STOP
            assert reply.summary.usage.completion_tokens == 9
            assert reply.summary.receipt.verified
            assert reply.summary.receipt.completion_tokens == 9
            assert reply.attempts == ()

    run(scenario)


def test_the_provider_only_ever_sees_the_request_inside_the_seal():
    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("alice")
            client = await market.add_client()
            await chat(client, ask("a secret question", temperature=0.5))
            [request] = provider.engine.seen
            assert request.body["messages"][0]["content"] == "a secret question"
            assert request.body["temperature"] == 0.5
            assert "model" not in request.body

    run(scenario)


def test_a_provider_that_dies_before_its_first_token_is_replaced_unnoticed():
    async def scenario():
        async with open_market() as market:
            slow = await market.add_provider("slow", ScriptedEngine(first_token_s=20.0))
            client = await market.add_client()

            async def kill() -> None:
                while not slow.engine.seen:
                    await trio.sleep(0.01)
                await market.add_provider("spare")
                await trio.sleep(3)
                market.wires.crash(slow.network.peer)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill)
                text, reply = await chat(client, ask())
            assert text == TEXT
            assert reply.provider != slow.network.peer
            assert len(reply.attempts) == 1

    run(scenario)


def test_a_provider_that_dies_mid_stream_gives_a_clear_error_and_the_next_request_works():
    async def scenario():
        async with open_market() as market:
            first = await market.add_provider("first", ScriptedEngine(token_s=0.5))
            client = await market.add_client()

            async def chat_until_the_crash() -> None:
                async with client.generate("chat.completions", ask(), spend_max_nano=SPEND) as reply:
                    async for _ in reply:
                        market.wires.crash(first.network.peer)

            with pytest.raises(StreamBroken):
                await chat_until_the_crash()
            await market.add_provider("second")
            await trio.sleep(5)  # until its offer has gone round
            text, _ = await chat(client, ask())
            assert text == TEXT

    run(scenario)


def test_an_engine_that_fails_before_any_output_is_retried_elsewhere():
    async def scenario():
        async with open_market() as market:
            await market.add_provider("broken", ScriptedEngine(fail_after=0))
            await market.add_provider("sound", output_nano=ton("0.5"))
            client = await market.add_client()
            for _ in range(6):
                text, reply = await chat(client, ask())
                assert text == TEXT
            assert reply.attempts == ()  # by now the breaker keeps it away

    run(scenario)


def test_leaving_a_reply_frees_the_slot_at_the_provider():
    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("alice", ScriptedEngine(token_s=5.0))
            client = await market.add_client()
            async with client.generate("chat.completions", ask(), spend_max_nano=SPEND) as reply:
                async for _ in reply:
                    break
            await trio.sleep(0.5)
            assert provider.engine.running == 0
            assert provider.role.record.running == 0

    run(scenario)


def test_sixty_four_streams_share_one_session_and_each_gets_its_own_text():
    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("alice", ScriptedEngine(slots=8, token_s=0.02))
            client = await market.add_client()
            texts = []

            async def one() -> None:
                texts.append((await chat(client, ask()))[0])

            async with trio.open_nursery() as nursery:
                for _ in range(64):
                    nursery.start_soon(one)
            assert texts == [TEXT] * 64
            assert provider.role.record.sessions == 1

    run(scenario)


def test_a_price_ceiling_below_every_offer_says_what_the_cheapest_asks():
    async def scenario():
        async with open_market() as market:
            await market.add_provider("dear", output_nano=ton("9"))
            client = await market.add_client()
            with pytest.raises(PriceTooHigh, match=r"\d"):
                await chat(client, ask(), spend=1)

    run(scenario)


def test_nobody_offering_the_model_says_where_it_looked():
    async def scenario():
        async with open_market() as market:
            client = await market.add_client(offers_wait_s=3.0)
            with pytest.raises(NoProvider) as caught:
                await chat(client, ask())
            said = caught.value.diagnostics()
            assert "DHT" in said
            assert "gossip: 0 current offers heard over 1" in said

    run(scenario)


def test_an_unknown_model_name_shows_near_matches():
    async def scenario():
        async with open_market() as market:
            client = await market.add_client()
            with pytest.raises(ModelNotFound) as caught:
                await chat(client, ask() | {"model": "tset-model"})
            assert "test-model" in caught.value.diagnostics()

    run(scenario)


def test_a_prompt_beyond_the_context_is_the_users_error_before_any_output():
    async def scenario():
        async with open_market() as market:
            await market.add_provider("alice", ScriptedEngine(context_tokens_max=64))
            client = await market.add_client()
            with pytest.raises(InvalidRequest) as caught:
                await chat(client, ask("word " * 70))
            assert caught.value.kind == "context_length_exceeded"

    run(scenario)


def test_a_long_reply_outlives_the_sealing_key_and_the_next_request_uses_the_new_one():
    async def scenario():
        async with open_market() as market:
            await market.add_provider("alice", ScriptedEngine("word " * 200, token_s=30.0))
            client = await market.add_client(stall_timeout_s=120.0)
            text, _ = await chat(client, ask())  # 200 tokens, 100 minutes: over an hourly rotation
            assert len(text.split()) == 200
            text, reply = await chat(client, ask(max_tokens=2))
            assert text.split() == ["word", "word"]
            assert reply.summary.finish_reason is FinishReason.LENGTH

    run(scenario)


def test_a_reader_that_stalls_for_a_minute_loses_nothing():
    async def scenario():
        async with open_market() as market:
            await market.add_provider("alice", ScriptedEngine("word " * 1_000, token_s=0.02))
            client = await market.add_client()
            words = 0
            async with client.generate("chat.completions", ask(max_tokens=1_000), spend_max_nano=SPEND) as reply:
                async for delta in reply:
                    if not words:
                        await trio.sleep(60)
                    words += len(delta.text.split())
            assert words == 1_000

    run(scenario)


async def drain(provider):
    assert await provider.role.drain(timeout_s=60)


def test_a_draining_provider_finishes_what_runs_and_takes_nothing_new():
    async def scenario():
        async with open_market() as market:
            old = await market.add_provider("old", ScriptedEngine(token_s=0.5))
            client = await market.add_client()
            async with client.generate("chat.completions", ask(), spend_max_nano=SPEND) as reply:
                seen = ""
                async with trio.open_nursery() as nursery:
                    async for delta in reply:
                        if not seen:
                            nursery.start_soon(drain, old)
                            await market.add_provider("new")
                        seen += delta.text
            assert seen == TEXT
            text, reply = await chat(client, ask())
            assert text == TEXT
            assert reply.provider != old.network.peer

    run(scenario)


def test_a_known_model_is_found_without_counting_the_whole_market(monkeypatch):
    async def scenario():
        async with open_market() as market:
            await market.add_provider("alice")
            client = await market.add_client()
            monkeypatch.setattr(OfferBook, "models", lambda book: pytest.fail("counted every offer"))
            text, _ = await chat(client, ask())
            assert text == TEXT

    run(scenario)


def test_an_offer_that_was_being_signed_when_the_provider_drained_is_not_answered_to_anybody(monkeypatch):
    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("alice")
            sign = KeyFileSigner.sign_offer

            async def slowly(signer, **fields):
                await trio.sleep(5)
                return await sign(signer, **fields)

            monkeypatch.setattr(KeyFileSigner, "sign_offer", slowly)
            role = provider.role
            while not any(  # its offer is renewed after half an hour or so
                line.preparing for line in role._publisher._lines.values()
            ):
                await trio.sleep(1)
            await role.drain(timeout_s=1)
            await trio.sleep(10)
            client = await market.add_client(offers_wait_s=1.0)
            assert (
                await client._exchange.ask(
                    PeerAddresses(peer=provider.network.peer, addresses=provider.network.addresses())
                )
                == 0
            )

    run(scenario)
