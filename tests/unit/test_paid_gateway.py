"""What an app sees of payment: the cost in every answer, and 402 with a reason where money is missing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from cocoon.client import Client
from cocoon.ports import VoucherSide
from cocoon.types import NANO_PER_TON
from tests.fakes.engine import ScriptedEngine
from tests.fakes.gateway import Running, events, running_gateway
from tests.fakes.little_market import LittleMarket, Provider, ask, open_market
from tests.fakes.pay import PAYOUT

PRICE = 300_000_000
CAPS = {"spend_max_request_nano": NANO_PER_TON // 10, "spend_max_day_nano": NANO_PER_TON}


def with_gateway(
    story: Callable[[Running, Provider, LittleMarket], Awaitable[None]], *, has_account: bool = True
) -> None:
    """A paid provider, a client, and a gateway in front of it."""

    async def main() -> None:
        async with open_market() as market:
            provider = await market.add_provider(
                "provider", ScriptedEngine(" ".join(["word"] * 80)), output_nano=PRICE, payout=PAYOUT
            )
            client: Client = await market.add_client(account=market.open_account() if has_account else None)
            async with running_gateway(client, **CAPS) as running:
                await story(running, provider, market)

    trio.run(main)


async def paid_nano(provider: Provider) -> int:
    await trio.sleep(0.6)  # the last voucher follows within a quarter of a second
    (voucher,) = await provider.store.vouchers(VoucherSide.HELD, network=-217, party=PAYOUT)
    return voucher.cumulative_nano


def test_an_answer_says_what_it_cost_and_that_is_what_was_paid() -> None:
    async def story(running: Running, provider: Provider, market: LittleMarket) -> None:
        answer = (await running.http.post("/chat/completions", json=ask(max_tokens=80))).json()
        assert answer["usage"]["completion_tokens"] == 80
        cost = answer["x_cocoon"]["cost_nano"]
        assert cost == answer["x_cocoon"]["receipt"]["due_nano"] == await paid_nano(provider)
        streamed = await running.http.post("/chat/completions", json=ask(max_tokens=80, stream=True))
        last: Any = events(streamed.text)[-2]
        assert await paid_nano(provider) == cost + last["x_cocoon"]["cost_nano"]
        assert running.handle.ledger.spent_nano == await paid_nano(provider)

    with_gateway(story)


def test_without_an_account_the_app_gets_402_and_what_to_do() -> None:
    async def story(running: Running, provider: Provider, market: LittleMarket) -> None:
        answer = await running.http.post("/chat/completions", json=ask(max_tokens=80))
        assert answer.status_code == 402
        assert "no spending account" in answer.json()["error"]["message"]
        assert answer.headers["x-should-retry"] == "false"
        assert running.handle.ledger.spent_nano == 0

    with_gateway(story, has_account=False)


def test_an_account_that_a_provider_does_not_take_is_402_with_the_reason() -> None:
    async def story(running: Running, provider: Provider, market: LittleMarket) -> None:
        assert (await running.http.post("/chat/completions", json=ask(max_tokens=8))).status_code == 200
        (account,) = market.chain.accounts.values()
        account.unlock_at_s = market.clock.now() // 10**9 + 60  # its owner takes the money out in a minute
        earnings = provider.role._earnings
        assert earnings is not None
        await earnings._drive.prove(account.account)
        answer = await running.http.post("/chat/completions", json=ask(max_tokens=8))
        assert answer.status_code == 402
        assert "about to be closed" in answer.json()["error"]["message"]

    with_gateway(story)
