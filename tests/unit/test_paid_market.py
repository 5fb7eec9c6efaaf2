"""Whole paid markets in virtual time: real roles, machines, sessions and signatures; the chain is a small ledger."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio
import trio.testing

from cocoon.adapters.engines.paced import PacedEngine
from cocoon.client import Client, Reply
from cocoon.errors import (
    CocoonError,
    LocalProtocolError,
    NoProvider,
    PaymentError,
    SpendCapReached,
    StreamBroken,
    Unavailable,
)
from cocoon.pay.ledger import Ledger
from cocoon.pay.refusals import Fault, PaymentRefused
from cocoon.pay.voucher import TAG, Voucher
from cocoon.ports import StoredVoucher, VoucherSide
from cocoon.types import Network, Prices, due_nano
from tests.fakes.engine import ScriptedEngine
from tests.fakes.ledger_chain import LedgerChain
from tests.fakes.little_market import LittleMarket, Provider, ask, open_market
from tests.fakes.pay import OTHER_PAYOUT, OTHER_V, PAYOUT, TON, FakeAccount, V, payout_number

PRICE = 300_000_000  # nanoTON per 10⁶ output tokens; input costs a quarter
WINDOW = 64
PIECE = 8  # tokens that may wait as one


def run(scenario: Callable[[LittleMarket], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_market() as market:
            await scenario(market)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def engine_of(tokens: int, *, token_s: float = 0.002, **more: object) -> ScriptedEngine:
    return ScriptedEngine(
        " ".join(f"w{n}" for n in range(tokens)),
        token_s=token_s,
        context_tokens_max=100_000,
        **more,  # type: ignore[arg-type]
    )


async def paid_provider(
    market: LittleMarket, tokens: int = 600, *, name: str = "provider", payout: bytes = PAYOUT, **more: object
) -> Provider:
    engine = more.pop("engine", None) or engine_of(tokens)
    return await market.add_provider(name, engine, output_nano=PRICE, payout=payout, **more)  # type: ignore[arg-type]


async def receive(client: Client, tokens: int = 600, *, spend_max_nano: int = TON) -> tuple[int, int]:
    """Tokens that came, and what the reply says it cost; raises what the reply raises."""
    came = 0
    async with client.generate("chat.completions", ask(max_tokens=tokens), spend_max_nano=spend_max_nano) as reply:
        async for delta in reply:
            came += len(delta.token_ids)
        assert reply.cost_nano == reply.summary.cost_nano
        return came, reply.summary.cost_nano


async def receive_until_broken(
    client: Client,
    tokens: int,
    error: type[Exception] | tuple[type[Exception], ...] = StreamBroken,
    on_token: Callable[[int], None] = lambda came: None,
) -> tuple[int, Reply, CocoonError]:
    """Tokens that came, the reply, and what ended it; an error of another kind passes. Nobody goes on elsewhere."""
    client.settings = replace(client.settings, resumes_max=0)
    came = 0
    reply = None
    try:
        async with client.generate("chat.completions", ask(max_tokens=tokens), spend_max_nano=TON) as reply:
            async for delta in reply:
                came += len(delta.token_ids)
                on_token(came)
    except CocoonError as broken:
        if isinstance(broken, error):
            return came, reply, broken
        raise
    raise AssertionError("it was not broken")


async def held(provider: Provider, payout: bytes = PAYOUT) -> StoredVoucher | None:
    kept = await provider.store.vouchers(VoucherSide.HELD, network=-217, party=payout)
    assert len(kept) <= 1
    return kept[0] if kept else None


def ledger_at(provider: Provider, account: FakeAccount) -> Ledger:
    earnings = provider.role._earnings
    assert earnings is not None
    ledger = earnings.payee.ledger(account.account)
    assert ledger is not None
    return ledger


def stop_paying(client: Client) -> None:
    """From now on no voucher reaches a session that is open."""
    assert client.spending is not None
    client.spending._links.clear()
    client.spending.joined = lambda payout, link: None  # type: ignore[method-assign]


# --- a good market ---------------------------------------------------------------------------------------


def test_a_stream_is_paid_to_the_nano_ton_of_its_receipt() -> None:
    async def scenario(market: LittleMarket) -> None:
        provider = await paid_provider(market)
        client = await market.add_client(account=market.open_account())
        async with client.generate("chat.completions", ask(max_tokens=600), spend_max_nano=TON) as reply:
            words = [delta.text async for delta in reply]
            summary = reply.summary
        assert "".join(words) == " ".join(f"w{n}" for n in range(600))
        prices = Prices(input_nano=PRICE // 4, cached_input_nano=0, output_nano=PRICE)
        due = due_nano(prices, input_tokens=2, cached_tokens=0, output_tokens=600)
        assert summary.receipt.due_nano == summary.cost_nano == due
        await trio.sleep(1)
        voucher = await held(provider)
        assert voucher is not None
        assert voucher.cumulative_nano == due
        assert provider.role.earned is not None
        assert provider.role.earned.paid_nano == due

    run(scenario)


def test_sums_of_many_requests_at_once_and_their_receipts_agree_with_one_voucher() -> None:
    async def scenario(market: LittleMarket) -> None:
        provider = await paid_provider(market, engine=engine_of(300, slots=8))
        client = await market.add_client(account=market.open_account())
        costs: list[int] = []

        async def one(tokens: int) -> None:
            costs.append((await receive(client, tokens))[1])

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(one, 1 + 7 * number)
        await trio.sleep(1)
        voucher = await held(provider)
        assert voucher is not None
        assert len(costs) == 40
        assert voucher.cumulative_nano == sum(costs)

    run(scenario)


def test_two_providers_are_each_paid_their_own() -> None:
    async def scenario(market: LittleMarket) -> None:
        account = market.open_account()
        first = await paid_provider(market, name="first")
        second = await paid_provider(market, name="second", payout=OTHER_PAYOUT)
        client = await market.add_client(account=account)
        costs = [(await receive(client, 50))[1] for _ in range(12)]
        await trio.sleep(1)
        vouchers = [await held(first), await held(second, OTHER_PAYOUT)]
        assert sum(voucher.cumulative_nano for voucher in vouchers if voucher is not None) == sum(costs)

    run(scenario)


def test_the_window_of_unpaid_tokens_doubles_with_every_clean_thousand() -> None:
    async def scenario(market: LittleMarket) -> None:
        account = market.open_account()
        provider = await paid_provider(market, engine=engine_of(3_200, token_s=0.001))
        client = await market.add_client(account=account)
        seen = set()
        async with client.generate("chat.completions", ask(max_tokens=3_200), spend_max_nano=TON) as reply:
            async for _ in reply:
                seen.add(ledger_at(provider, account).window_tokens)
        assert seen == {64, 128, 256, 512}

    run(scenario)


def test_a_stream_that_outlives_its_session_key_goes_on_being_paid() -> None:
    """After ten minutes a new Hello makes a new session id, and the client shows V again for the next request."""

    async def scenario(market: LittleMarket) -> None:
        provider = await paid_provider(market, engine=engine_of(400, token_s=3.0))
        client = await market.add_client(account=market.open_account())
        costs = []

        async def one() -> None:
            costs.append((await receive(client, 400))[1])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await trio.sleep(700)
            nursery.start_soon(one)
        await trio.sleep(1)
        voucher = await held(provider)
        assert voucher is not None
        assert voucher.cumulative_nano == sum(costs)
        earnings = provider.role._earnings
        assert earnings is not None
        assert len(earnings._sessions) == 1  # what is over is forgotten

    run(scenario)


def test_claims_reach_the_chain_and_the_balances_agree() -> None:
    async def scenario(market: LittleMarket) -> None:
        account = market.open_account()
        before = account.balance_nano
        provider = await paid_provider(market, claim_cost_nano=1_000)  # so that a few thousand tokens are worth it
        client = await market.add_client(account=account)
        costs = [(await receive(client))[1] for _ in range(3)]
        await trio.sleep(60)
        assert provider.role.earned is not None
        assert market.chain.paid[PAYOUT] == provider.role.earned.claimed_nano > 0
        assert market.chain.paid[PAYOUT] <= sum(costs)
        provider.role.claim_all()
        await trio.sleep(60)
        assert market.chain.paid[PAYOUT] == before - account.balance_nano == sum(costs)

    run(scenario)


def test_a_cancelled_request_pays_for_what_was_sent_and_no_more() -> None:
    async def scenario(market: LittleMarket) -> None:
        provider = await paid_provider(market, engine=engine_of(5_000, token_s=0.01))
        client = await market.add_client(account=market.open_account())
        came = 0
        async with client.generate("chat.completions", ask(max_tokens=5_000), spend_max_nano=TON) as reply:
            async for delta in reply:
                came += len(delta.token_ids)
                if came >= 100:
                    break
        await trio.sleep(2)
        voucher = await held(provider)
        assert voucher is not None
        assert voucher.cumulative_nano == reply.cost_nano
        assert came * PRICE // 10**6 <= reply.cost_nano <= (came + 16) * PRICE // 10**6
        assert provider.engine.running == 0

    run(scenario)


def test_what_is_owed_when_the_client_closes_is_paid_before_it_goes() -> None:
    async def scenario(market: LittleMarket) -> None:
        provider = await paid_provider(market)
        client = await market.add_client(account=market.open_account())
        _, cost = await receive(client, 33)
        market.kill(client)
        await trio.sleep(1)
        voucher = await held(provider)
        assert voucher is not None
        assert voucher.cumulative_nano == cost

    run(scenario)


# --- who is not served -----------------------------------------------------------------------------------


def test_a_client_without_an_account_is_told_when_everybody_asks_for_payment() -> None:
    async def scenario(market: LittleMarket) -> None:
        await paid_provider(market)
        client = await market.add_client()
        with pytest.raises(PaymentError, match="no spending account") as caught:
            await receive(client)
        assert caught.value.exit_code == 4
        free = await market.add_provider("free", output_nano=PRICE)  # a price, and no address to pay it to
        await trio.sleep(3)
        async with client.generate("chat.completions", ask(max_tokens=5), spend_max_nano=TON) as reply:
            assert reply.provider == free.network.peer
            assert [delta async for delta in reply]

    run(scenario)


def test_an_account_that_is_not_open_is_refused_before_anything_is_sent() -> None:
    async def scenario(market: LittleMarket) -> None:
        provider = await paid_provider(market)
        client = await market.add_client(account=FakeAccount(salt=9))
        with pytest.raises(PaymentError, match="not been seen on chain"):
            await receive(client)
        account = market.open_account()
        account.epoch = 0
        other = await market.add_client("other", account=account)
        with pytest.raises(PaymentError, match="not open"):
            await receive(other)
        assert provider.role.record.requests == 0

    run(scenario)


def test_a_provider_says_why_it_does_not_take_an_account() -> None:
    """The client's servers show it money, the provider's do not: nobody is served, and the reason arrives."""

    async def scenario(market: LittleMarket) -> None:
        provider = await paid_provider(market)
        account = market.open_account()
        lying = LedgerChain(market.clock)
        lying.accounts[account.account] = account
        del market.chain.accounts[account.account]
        client = await market.add_client(payment=market.payment(account, chain=lying))
        with pytest.raises(PaymentRefused, match="cannot find the account on chain") as caught:
            await receive(client)
        assert caught.value.fault is Fault.UNPROVEN
        assert caught.value.exit_code == 4
        market.chain.accounts[account.account] = account  # and when they do, the next request is served
        assert (await receive(client, 20))[0] == 20
        assert provider.role.record.requests == 1

    run(scenario)


def test_a_session_key_that_is_not_the_accounts_buys_nothing() -> None:
    async def scenario(market: LittleMarket) -> None:
        await paid_provider(market)
        account = market.open_account()
        believing = LedgerChain(market.clock)
        believing.accounts[account.account] = FakeAccount(salt=account.salt, key=OTHER_V.public, epoch=account.epoch)
        client = await market.add_client(payment=market.payment(account, key=OTHER_V, chain=believing))
        with pytest.raises(PaymentRefused) as caught:
            await receive(client)
        assert caught.value.fault is Fault.UNAUTHENTICATED
        assert not caught.value.retryable

    run(scenario)


def test_a_request_never_costs_more_than_its_user_allows() -> None:
    async def scenario(market: LittleMarket) -> None:
        await paid_provider(market)
        client = await market.add_client(payment=market.payment(market.open_account(), spend_max_nano=100_000))
        with pytest.raises(SpendCapReached):
            await receive(client, 600)
        assert (await receive(client, 100))[0] == 100

    run(scenario)


def test_a_second_provider_with_the_same_payout_does_not_start_on_the_same_store() -> None:
    async def scenario(market: LittleMarket) -> None:
        provider = await paid_provider(market)
        with pytest.raises(LocalProtocolError, match="one address has one live ledger") as caught:
            await paid_provider(market, name="second", store=provider.store)
        assert "payout" in caught.value.diagnostics()

    run(scenario)


def test_a_second_client_does_not_sign_for_the_same_account_on_the_same_store() -> None:
    async def scenario(market: LittleMarket) -> None:
        account = market.open_account()
        client = await market.add_client(account=account)
        with pytest.raises(LocalProtocolError, match="two signers"):
            await market.add_client("second", account=account, store=client._store)

    run(scenario)


# --- attacks ---------------------------------------------------------------------------------------------


def test_a_client_that_never_pays_is_stopped_within_the_first_window() -> None:
    async def scenario(market: LittleMarket) -> None:
        provider = await paid_provider(market, engine=engine_of(5_000))
        client = await market.add_client(account=market.open_account())
        stop_paying(client)
        came, _, error = await receive_until_broken(client, 5_000)
        assert WINDOW - PIECE < came <= WINDOW
        assert "payment_required (overdue)" in str(error.__cause__)
        await trio.sleep(1)
        assert provider.engine.running == 0
        assert await held(provider) is None

    run(scenario)


def test_a_client_that_stops_paying_gets_one_window_more_and_the_engine_waits_with_it() -> None:
    async def scenario(market: LittleMarket) -> None:
        account = market.open_account()
        provider = await paid_provider(market, engine=engine_of(8_000))
        client = await market.add_client(account=account)
        paid_tokens = 0

        def stop(came: int) -> None:
            nonlocal paid_tokens
            if came >= 1_500 and not paid_tokens:
                stop_paying(client)
                paid_tokens = came - ledger_at(provider, account).unpaid.count

        came, _, _ = await receive_until_broken(client, 8_000, on_token=stop)
        assert came <= paid_tokens + 2 * 128  # the window, and one voucher that was on its way
        voucher = await held(provider)
        assert voucher is not None
        assert ledger_at(provider, account).unpaid.count <= 128

    run(scenario)


def test_sessions_of_one_account_share_one_window() -> None:
    """Twelve clients with one account and one key, none of which pays: together they get what one would get."""

    async def scenario(market: LittleMarket) -> None:
        account = market.open_account()
        await paid_provider(market, engine=engine_of(2_000, slots=16))
        came = 0

        async def one(client: Client) -> None:
            nonlocal came
            got, _, _ = await receive_until_broken(client, 2_000, (StreamBroken, PaymentRefused))
            came += got

        async with trio.open_nursery() as nursery:
            for number in range(12):
                client = await market.add_client(f"client {number}", account=account)
                stop_paying(client)
                nursery.start_soon(one, client)
        assert WINDOW - PIECE < came <= WINDOW

    run(scenario)


def test_a_forged_voucher_ends_the_session_and_nothing_of_it_is_kept() -> None:
    async def scenario(market: LittleMarket) -> None:
        provider = await paid_provider(market, engine=engine_of(2_000))
        account = market.open_account()

        def sign(message: bytes) -> bytes:
            return (OTHER_V if message.startswith(TAG) else V).sign(message)

        client = await market.add_client(payment=market.payment(account, sign=sign))
        came, _, _ = await receive_until_broken(client, 2_000)
        assert came <= WINDOW
        await trio.sleep(1)
        assert provider.role.sessions_open == 0
        assert await held(provider) is None

    run(scenario)


def test_a_restored_backup_of_a_client_begins_nothing_until_its_account_has_rolled() -> None:
    async def scenario(market: LittleMarket) -> None:
        account = market.open_account()
        provider = await paid_provider(market, claim_cost_nano=100)
        client = await market.add_client(account=account)
        await receive(client)
        provider.role.claim_all()
        await trio.sleep(30)
        assert market.chain.paid[PAYOUT]
        old = await market.add_client("old copy", account=account)  # its store knows of no voucher
        with pytest.raises(PaymentError, match="old copy"):
            await receive(old)

    run(scenario)


# --- things that break -----------------------------------------------------------------------------------


def test_a_provider_that_is_killed_in_the_stream_has_every_voucher_that_it_acknowledged() -> None:
    async def scenario(market: LittleMarket) -> None:
        account = market.open_account()
        provider = await paid_provider(market, engine=engine_of(2_000))
        client = await market.add_client(account=account)
        acknowledged = 0

        def kill(came: int) -> None:
            nonlocal acknowledged
            if came >= 700 and not acknowledged:
                assert provider.role.earned is not None
                acknowledged = provider.role.earned.paid_nano
                market.kill(provider.role)
                market.kill(provider.network._node)

        _, reply, _ = await receive_until_broken(client, 2_000, on_token=kill)
        voucher = await held(provider)
        assert voucher is not None
        assert voucher.cumulative_nano >= acknowledged > 0
        assert reply.cost_nano - voucher.cumulative_nano <= WINDOW * PRICE // 10**6
        provider.store._held.clear()  # the kernel frees its locks
        again = await paid_provider(market, name="again", engine=engine_of(50), store=provider.store)
        await trio.sleep(5)
        _, cost = await receive(client, 50)
        await trio.sleep(1)
        newest = await held(again)
        assert newest is not None
        assert newest.cumulative_nano == reply.cost_nano + cost

    run(scenario)


def test_when_a_provider_fails_both_are_paid_their_share_and_the_reply_says_what_it_cost() -> None:
    async def scenario(market: LittleMarket) -> None:
        account = market.open_account()
        broken = await paid_provider(market, name="broken", engine=engine_of(600, fail_after=100))
        client = await market.add_client(account=account)
        _, reply, _ = await receive_until_broken(client, 600)
        lost = reply.cost_nano
        prices = Prices(input_nano=PRICE // 4, cached_input_nano=0, output_nano=PRICE)
        assert lost == due_nano(prices, input_tokens=2, cached_tokens=2, output_tokens=100)
        await trio.sleep(1)
        market.kill(broken.role)
        good = await paid_provider(market, name="good", payout=OTHER_PAYOUT)
        await trio.sleep(3)
        _, cost = await receive(client, 600)
        await trio.sleep(1)
        first, second = await held(broken), await held(good, OTHER_PAYOUT)
        assert first is not None
        assert second is not None
        assert (first.cumulative_nano, second.cumulative_nano) == (lost, cost)

    run(scenario)


def test_a_provider_that_fails_before_the_first_token_costs_nothing() -> None:
    async def scenario(market: LittleMarket) -> None:
        account = market.open_account()
        for number in range(2):
            await paid_provider(
                market,
                name=f"broken {number}",
                payout=payout_number(number),
                engine=engine_of(600, fail_after=0),
            )
        await paid_provider(market, name="good", engine=engine_of(600, first_token_s=1.0))
        client = await market.add_client(account=account)
        await trio.sleep(3)
        for _ in range(3):
            came, cost = await receive(client, 100)
            assert came == 100
            prices = Prices(input_nano=PRICE // 4, cached_input_nano=0, output_nano=PRICE)
            assert cost == due_nano(prices, input_tokens=2, cached_tokens=0, output_tokens=100)

    run(scenario)


def test_without_the_chain_the_market_goes_on_within_signed_credit_and_settles_later() -> None:
    async def scenario(market: LittleMarket) -> None:
        account = market.open_account()
        provider = await paid_provider(market, claim_cost_nano=1_000)
        client = await market.add_client(account=account)
        costs = [(await receive(client, 100))[1]]
        market.chain.failure = Unavailable("no server answers")
        for _ in range(5):
            costs.append((await receive(client))[1])
            await trio.sleep(300)
        await trio.sleep(3_600)
        with pytest.raises(PaymentRefused) as caught:  # an hour blind is enough
            await receive(client)
        assert caught.value.fault is Fault.UNPROVEN
        market.chain.failure = None
        await trio.sleep(3_700)
        provider.role.claim_all()
        await trio.sleep(60)
        assert market.chain.paid[PAYOUT] == sum(costs)
        costs.append((await receive(client))[1])

    run(scenario)


def test_a_prompt_beyond_the_credit_is_served_once_its_reservation_is_on_chain() -> None:
    async def scenario(market: LittleMarket) -> None:
        account = market.open_account(bond_nano=0)
        provider = await paid_provider(market)
        client = await market.add_client(account=account)
        words = " ".join(["word"] * 20_000)
        body = ask(words, max_tokens=70)
        async with client.generate("chat.completions", body, spend_max_nano=TON) as reply:
            came = [delta async for delta in reply]
        assert came
        assert account.entries[PAYOUT].ceiling_nano > 0
        assert reply.summary.usage.prompt_tokens == 20_000
        await trio.sleep(1)
        voucher = await held(provider)
        assert voucher is not None
        assert voucher.cumulative_nano == reply.summary.cost_nano

    run(scenario)


def test_a_client_that_spends_fast_reserves_as_it_is_asked_and_is_never_cut_off() -> None:
    """3 TON in one answer, from an account with a bond of one: the credit is renewed on chain while it runs."""

    async def scenario(market: LittleMarket) -> None:
        account = market.open_account(balance_nano=20 * TON)
        provider = await market.add_provider(
            "dear", engine_of(3_000, token_s=0.02), output_nano=1_000 * TON, payout=PAYOUT
        )
        client = await market.add_client(payment=market.payment(account, spend_max_nano=10 * TON))
        async with client.generate("chat.completions", ask(max_tokens=3_000), spend_max_nano=5 * TON) as reply:
            assert sum([len(delta.token_ids) async for delta in reply]) == 3_000
        assert reply.summary.cost_nano > 3 * TON
        await trio.sleep(1)  # the last voucher
        provider.role.claim_all()
        await trio.sleep(60)
        assert market.chain.paid[PAYOUT] == reply.summary.cost_nano
        claims_nano = len(provider.wallet.messages) * 1_000_000  # what one costs here
        assert claims_nano * 20 <= reply.summary.cost_nano  # a twentieth at most goes into claiming

    run(scenario)


@pytest.mark.parametrize("how", ["crash", "freeze"])
def test_an_answer_that_moved_pays_each_provider_its_own_part_out_of_one_budget(how: str) -> None:
    async def scenario(market: LittleMarket) -> None:
        payouts = [payout_number(number) for number in range(3)]
        providers = [
            await market.add_provider(
                f"provider {number}",
                PacedEngine(tokens_per_s=50.0, first_token_s=0.05, answer_tokens=200),
                output_nano=PRICE,
                payout=payout,
            )
            for number, payout in enumerate(payouts)
        ]
        client = await market.add_client(account=market.open_account())
        await trio.sleep(3)
        prices = Prices(input_nano=PRICE // 4, cached_input_nano=0, output_nano=PRICE)
        most = due_nano(prices, input_tokens=2_000, cached_tokens=0, output_tokens=600)
        came, waiting = 0, [40, 120]
        async with client.generate("chat.completions", ask(max_tokens=200), spend_max_nano=most) as reply:
            async for delta in reply:
                came += len(delta.token_ids)
                if waiting and came >= waiting[0]:
                    waiting.pop(0)
                    getattr(market.wires, how)(reply.provider)
        assert came == 200
        assert len(reply.attempts) == 2
        await trio.sleep(1)
        assert client.spending is not None
        kept = await client.spending._store.vouchers(
            VoucherSide.ISSUED, network=-217, party=client.spending.account.account
        )
        signed = {voucher.provider: voucher.cumulative_nano for voucher in kept}
        assert sum(signed.values()) == reply.summary.cost_nano <= most
        assert len(signed) == 3
        for provider, payout in zip(providers, payouts, strict=True):
            voucher = await held(provider, payout)
            got = 0 if voucher is None else voucher.cumulative_nano
            assert signed[payout] - got <= WINDOW * PRICE // 10**6
        assert client.spending.payer.held_nano == 0  # nothing stays set aside

    run(scenario)


# --- the money rules, at the level of sessions -----------------------------------------------------------


@pytest.mark.parametrize("whose", ["another account's", "another provider's"])
def test_a_voucher_that_was_made_for_somebody_else_ends_the_session(whose: str) -> None:
    """Claims make vouchers public (S2), and one voucher pays one ledger (M1): showing it elsewhere buys nothing."""

    async def scenario(market: LittleMarket) -> None:
        victim = market.open_account(1)
        first = await paid_provider(market, name="first")
        payer = await market.add_client("victim", account=victim)
        await receive(payer, 200)
        await trio.sleep(1)
        voucher = await held(first)
        assert voucher is not None
        public = Voucher(
            network=Network.DEVNET,
            account=voucher.account,
            epoch=voucher.epoch,
            provider=voucher.provider,
            cumulative_nano=voucher.cumulative_nano,
        )
        stolen = public.encode() + voucher.signature
        market.kill(payer)
        payout = PAYOUT
        if whose == "another provider's":
            market.kill(first.role)
            payout = OTHER_PAYOUT
            await paid_provider(market, name="second", payout=OTHER_PAYOUT)
        own = market.open_account(2) if whose == "another account's" else victim
        thief = await market.add_client("thief", account=own)
        assert thief.spending is not None
        thief.spending.open_voucher = lambda payout: stolen  # type: ignore[method-assign]
        stop_paying(thief)
        await trio.sleep(3)
        count = len(first.engine.seen)
        with pytest.raises(NoProvider):  # the only one has hung up
            await receive(thief, 200)
        if payout == PAYOUT:
            assert len(first.engine.seen) == count  # nothing was computed for it
            kept = await held(first)
            assert kept is not None
            assert kept.cumulative_nano == voucher.cumulative_nano

    run(scenario)


def test_ten_providers_that_each_give_one_token_and_die_stay_within_what_was_allowed() -> None:
    """Rule M2: the prompt vests over 64 tokens, so one token costs a sixty-fourth of it, ten times over."""

    async def scenario(market: LittleMarket) -> None:
        for number in range(10):
            await market.add_provider(
                f"dying {number}",
                engine_of(600, fail_after=1),
                output_nano=PRICE,
                payout=payout_number(number),
            )
        client = await market.add_client(account=market.open_account(), attempts_max=12, resumes_max=12)
        await trio.sleep(3)
        words = " ".join(["word"] * 640)
        prices = Prices(input_nano=PRICE // 4, cached_input_nano=0, output_nano=PRICE)
        allowed = 2 * due_nano(prices, input_tokens=len(words), cached_tokens=0, output_tokens=600)
        reply = None
        with pytest.raises((StreamBroken, PaymentError)):
            async with client.generate("chat.completions", ask(words, max_tokens=600), spend_max_nano=allowed) as reply:
                await receive_all(reply)
        assert reply is not None
        assert 0 < reply.cost_nano <= allowed
        prompt = due_nano(prices, input_tokens=660, cached_tokens=0, output_tokens=0)
        assert reply.cost_nano <= 10 * (prompt // 64 + PRICE // 10**6 + 2)

    run(scenario)


async def receive_all(reply: Reply) -> None:
    async for _ in reply:
        pass
