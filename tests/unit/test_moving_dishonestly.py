"""A stream that moves among providers who lie, stall or end at once: nothing is shown twice, counted twice or lost.

Whole roles over the memory network, in virtual time, as in `test_moving_streams`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cocoon.adapters.engines.paced import PacedEngine
from cocoon.errors import EngineError, StreamBroken
from cocoon.ports.engine import Delta, EngineEvent, Finished, GenerationRequest
from cocoon.types import FinishReason, Prices, TrustLevel, Usage, due_nano, ton
from tests.fakes.little_market import LittleMarket, ask, open_market
from tests.fakes.pay import payout_number

SPEND = ton("1")
PRICE = 300_000_000  # nanoTON per 10⁶ output tokens; input costs a quarter
TOKENS = 60


class Claims(PacedEngine):
    """Says of its prompt what it is told to."""

    def __init__(self, *, first: int = 0, keeps: bool = True, answer_tokens: int = TOKENS) -> None:
        super().__init__(tokens_per_s=20.0, first_token_s=0.05, answer_tokens=answer_tokens)
        self._more = first
        self._keeps = keeps

    def _prompt_tokens(self, request: GenerationRequest) -> int:
        if request.continued is None:
            return super()._prompt_tokens(request) + self._more
        return super()._prompt_tokens(request) if self._keeps else self._own_prompt_tokens(request)


class _End:
    def __init__(self, *events: EngineEvent, hangs: bool = False) -> None:
        self._events = [*events]
        self._hangs = hangs

    def __aiter__(self) -> _End:
        return self

    async def __anext__(self) -> EngineEvent:
        await trio.lowlevel.checkpoint()
        if not self._events:
            if self._hangs:
                await trio.sleep_forever()
            raise StopAsyncIteration
        return self._events.pop(0)


class EndsAtOnce(PacedEngine):
    """As a real model whose answer was whole: the next token is the end, which is neither shown nor billed."""

    def __init__(self, *, answer_tokens: int) -> None:
        super().__init__(tokens_per_s=20.0, first_token_s=0.05, answer_tokens=answer_tokens)

    @asynccontextmanager
    async def _generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        if request.continued is None or len(request.continued.token_ids) < self._answer_tokens:
            async with super()._generate(request) as stream:
                yield stream
            return
        usage = Usage(prompt_tokens=self._prompt_tokens(request), completion_tokens=0)
        yield _End(Finished(finish_reason=FinishReason.STOP, usage=usage))


class HoldsTheLast(PacedEngine):
    """The text of its last token comes a moment later, as when it might begin a stop word; then it is lost."""

    @asynccontextmanager
    async def _generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        async with super()._generate(request) as stream:
            if request.continued is not None:
                yield stream
                return
            events = [event async for event in stream]
            last = events[-2]
            assert isinstance(last, Delta)
            yield _End(*events[:-2], Delta(token_ids=last.token_ids), hangs=True)


class Mute(PacedEngine):
    """Text without its tokens, until it breaks."""

    @asynccontextmanager
    async def _generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        async def words() -> AsyncIterator[EngineEvent]:
            for number in range(5):
                await trio.sleep(0.05)
                yield Delta(text=f"free{number} ")
            raise EngineError("it breaks", retryable=True)

        yield words()


def run(scenario: Callable[[LittleMarket], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_market() as market:
            await scenario(market)

    trio.run(main, clock=MockClock(autojump_threshold=0))


class Asked:
    """One answer as it came."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.tokens = 0
        self.reply: Any = None

    async def run(
        self, client: Any, *, lose: Callable[[Any], None] = lambda reply: None, at: tuple[int, ...] = (),
        spend_nano: int = SPEND, **fields: Any,
    ) -> Asked:  # fmt: skip
        waiting = list(at)
        async with client.generate("chat.completions", ask(**fields), spend_max_nano=spend_nano) as self.reply:
            async for delta in self.reply:
                self.text.append(delta.text)
                self.tokens += len(delta.token_ids)
                if waiting and self.tokens >= waiting[0]:
                    waiting.pop(0)
                    lose(self.reply)
        return self


async def three(market: LittleMarket, make: Callable[[], PacedEngine], **more: Any) -> Any:
    for name in ("one", "two", "three"):
        await market.add_provider(name, make(), **more)
    return await market.add_client()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Claims(first=30),
        lambda: Claims(first=5),
        lambda: Claims(keeps=False),
        lambda: Claims(first=-1),
    ],
    ids=["first claims a longer prompt", "a little longer", "next claims to have kept nothing", "a shorter one"],
)
@pytest.mark.parametrize("fields", [{}, {"max_tokens": 40}])
def test_no_claim_about_prompts_changes_the_answer_or_its_length(
    make: Callable[[], PacedEngine], fields: dict[str, Any]
) -> None:
    async def scenario(market: LittleMarket) -> None:
        client = await three(market, make)
        whole = await Asked().run(client, **fields)
        moved = await Asked().run(client, at=(10, 25), lose=lambda it: market.wires.crash(it.provider), **fields)
        assert len(moved.reply.attempts) == 2
        assert moved.text and "".join(moved.text) == "".join(whole.text)
        assert moved.tokens == whole.tokens == fields.get("max_tokens", TOKENS)

    run(scenario)


def test_tokens_that_were_shown_are_counted_though_the_next_provider_has_nothing_to_add() -> None:
    async def scenario(market: LittleMarket) -> None:
        client = await three(market, lambda: EndsAtOnce(answer_tokens=12))
        whole = await Asked().run(client)
        moved = await Asked().run(client, at=(12,), lose=lambda it: market.wires.crash(it.provider))
        assert "".join(moved.text) == "".join(whole.text)
        assert len(moved.reply.attempts) == 1
        assert moved.reply.summary.usage == whole.reply.summary.usage
        assert moved.reply.summary.usage.completion_tokens == 12

    run(scenario)


def test_the_last_words_are_not_lost_when_all_tokens_were_shown_and_not_their_text() -> None:
    async def scenario(market: LittleMarket) -> None:
        for name in ("one", "two"):
            await market.add_provider(name, HoldsTheLast(tokens_per_s=20.0, first_token_s=0.05, answer_tokens=TOKENS))
        whole = PacedEngine(tokens_per_s=20.0, answer_tokens=TOKENS)
        request = GenerationRequest(endpoint="chat.completions", body={**ask(), "max_tokens": 12})
        async with whole.generate(request) as stream:
            text = "".join([event.text async for event in stream if isinstance(event, Delta)])
        client = await market.add_client()
        moved = await Asked().run(client, at=(12,), lose=lambda it: market.wires.crash(it.provider), max_tokens=12)
        assert "".join(moved.text) == text
        assert moved.reply.summary.usage.completion_tokens == 12 == moved.tokens
        assert moved.reply.summary.finish_reason is FinishReason.LENGTH

    run(scenario)


def test_text_that_came_without_tokens_is_never_followed_by_the_answer_from_its_beginning() -> None:
    async def scenario(market: LittleMarket) -> None:
        client = await three(market, Mute)
        asked = Asked()
        with pytest.raises((StreamBroken, EngineError)):
            await asked.run(client)
        assert "".join(asked.text).count("free0") == 1

    run(scenario)


def test_a_provider_that_does_not_take_an_answer_over_in_time_holds_none_of_its_money() -> None:
    """Else one silent provider uses up what the request may cost, and the next one is not asked."""

    async def scenario(market: LittleMarket) -> None:
        account = market.open_account()
        for number in range(3):
            await market.add_provider(f"p{number}", Claims(), output_nano=PRICE, payout=payout_number(number))
        client = await market.add_client(account=account)
        await trio.sleep(3)
        prices = Prices(input_nano=PRICE // 4, cached_input_nano=0, output_nano=PRICE)
        most_nano = due_nano(prices, input_tokens=400, cached_tokens=0, output_tokens=TOKENS)
        first = True

        def lose(reply: Any) -> None:
            nonlocal first
            lost = reply.provider
            opened = client.pool.trusted_link

            async def slow(offer: Any, **fields: Any) -> Any:
                nonlocal first
                link = await opened(offer, **fields)
                if first:
                    first = False
                    market.wires.freeze(offer.provider)  # alive a moment ago, silent from now on
                return link

            client.pool.trusted_link = slow
            market.wires.crash(lost)

        asked = await Asked().run(client, at=(20,), lose=lose, spend_nano=most_nano * 3 // 2, max_tokens=TOKENS)
        assert len(asked.reply.attempts) == 2
        assert "take the answer over" in asked.reply.attempts[1]
        assert asked.tokens == TOKENS

    run(scenario)


def test_a_moved_answer_claims_no_more_trust_than_its_weakest_provider_proved() -> None:
    async def scenario(market: LittleMarket) -> None:
        client = await three(market, Claims)
        opened, levels = client.pool.trusted_link, [TrustLevel.OPEN, TrustLevel.SIMULATED]

        async def proven(offer: Any, **fields: Any) -> Any:
            link, _ = await opened(offer, **fields)
            return link, levels.pop(0)

        client.pool.trusted_link = proven
        moved = await Asked().run(client, at=(10,), lose=lambda it: market.wires.crash(it.provider))
        assert levels == []
        assert moved.reply.trust is TrustLevel.OPEN

    run(scenario)


def test_a_silent_provider_is_waited_for_when_all_others_ask_for_money_that_there_is_not() -> None:
    async def scenario(market: LittleMarket) -> None:
        only = await market.add_provider("free", Claims())
        client = await market.add_client()
        listed = client._listed
        paid = await market.add_provider("paid", Claims(), output_nano=PRICE, payout=payout_number(1))

        def pause(reply: Any) -> None:
            for connection in market.wires.nodes[only.network.peer].live_connections():
                connection.link.change_delay_s(3.0)
            client._listed = lambda model: tuple(
                one for one in listed(model) if one.offer.provider == paid.network.peer
            )

        await Asked().run(client)
        assert len(listed(None)) == 2
        asked = await Asked().run(client, at=(20,), lose=pause)
        assert asked.tokens == TOKENS
        assert asked.reply.attempts == ()

    run(scenario)
