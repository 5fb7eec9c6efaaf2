"""The money rules S2, M1, M2 and M3, each as the attack that it stops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from cocoon.adapters.store import SqliteStore
from cocoon.errors import LocalProtocolError, SpendCapReached
from cocoon.pay.effects import ForeignClaim, PaymentStopped, RequestKey
from cocoon.pay.metering import most_nano, vested_due_nano
from cocoon.pay.payer import PayerTerms
from cocoon.pay.refusals import Fault, PaymentRefused
from cocoon.pay.voucher import Voucher, ledger_id, sign_voucher, signer_id
from cocoon.types import due_nano
from tests.fakes.market import CountingEntropy, FixedClock
from tests.fakes.pay import (
    NET,
    NOW,
    OTHER_PAYOUT,
    OTHER_V,
    PAYOUT,
    PRICES,
    TERMS,
    TON,
    Client,
    FakeAccount,
    Provider,
    V,
    payout_number,
    terms_of,
)


def signed_by(account: FakeAccount, cumulative: int, ceiling: int = 0, *, key=V, payout: bytes = PAYOUT):  # type: ignore[no-untyped-def]
    voucher = Voucher(
        network=NET,
        account=account.account,
        epoch=account.epoch,
        provider=payout,
        cumulative_nano=cumulative,
        ceiling_nano=ceiling,
    )
    return sign_voucher(voucher, key.sign)


# --- S2 --------------------------------------------------------------------------------------------------


def test_claimed_voucher_reused_by_stranger() -> None:
    """A claim makes a voucher public. Whoever read it on chain gets no service for it, from no provider."""
    victim = FakeAccount()
    provider = Provider()
    session = provider.open_session(victim)
    key = RequestKey(session=session, id=0)
    provider.did(provider.payee.admit(key, prices=PRICES, input_tokens=10, now=NOW))
    provider.serve(key, 64)
    voucher = signed_by(victim, 50_000)
    provider.take(session, voucher)
    victim.claim(voucher)
    provider.see(victim)
    paid = provider.payee.ledger(victim.account).paid_nano  # type: ignore[union-attr]

    stranger = b"x" * 32
    with pytest.raises(PaymentRefused) as no_session:
        provider.take(stranger, voucher)
    assert no_session.value.fault is Fault.UNAUTHENTICATED
    with pytest.raises(PaymentRefused) as other_key:
        provider.open_session(victim, stranger, key=OTHER_V)
    assert other_key.value.fault is Fault.UNAUTHENTICATED
    own = FakeAccount(salt=2, key=OTHER_V.public)
    provider.open_session(own, stranger, key=OTHER_V)
    with pytest.raises(PaymentRefused) as foreign:
        provider.take(stranger, voucher)
    assert foreign.value.fault is Fault.FOREIGN_VOUCHER
    with pytest.raises(PaymentRefused):
        provider.payee.admit(RequestKey(session=b"y" * 32, id=0), prices=PRICES, input_tokens=1, now=NOW)

    elsewhere = Provider(payout=OTHER_PAYOUT)
    elsewhere.see(victim)
    with pytest.raises(PaymentRefused):
        elsewhere.payee.authenticate(
            session, account=victim.account, voucher_key=V.public, payout=PAYOUT, now=NOW
        )  # the session was signed for the first provider's address
    elsewhere.open_session(own, stranger, key=OTHER_V)
    with pytest.raises(PaymentRefused):
        elsewhere.take(stranger, voucher)

    provider.take(session, voucher)  # and the victim's own session gains nothing by showing it again
    assert provider.payee.ledger(victim.account).paid_nano == paid  # type: ignore[union-attr]


# --- M1 --------------------------------------------------------------------------------------------------


def test_one_voucher_two_machines_served_once(tmp_path: Path) -> None:
    """Two machines of one payout address: the second gets no ledger, so nobody can show it the voucher."""

    async def main() -> None:
        path = tmp_path / "cocoon.db"
        async with await SqliteStore.open(path, clock=FixedClock(), entropy=CountingEntropy("a")) as first:
            await first.hold(ledger_id(NET, PAYOUT))
            async with await SqliteStore.open(path, clock=FixedClock(), entropy=CountingEntropy("b")) as second:
                with pytest.raises(LocalProtocolError) as held:
                    await second.hold(ledger_id(NET, PAYOUT))
                assert "own payout address" in held.value.diagnostics()
                await second.hold(ledger_id(NET, OTHER_PAYOUT))
                await second.hold(signer_id(NET, FakeAccount().account))
                with pytest.raises(LocalProtocolError):
                    await first.hold(signer_id(NET, FakeAccount().account))

    trio.run(main)
    account = FakeAccount()
    voucher = signed_by(account, 500_000)
    first = Provider()
    first.take(first.open_session(account), voucher)
    other = Provider(payout=OTHER_PAYOUT)
    session = other.open_session(account)
    with pytest.raises(PaymentRefused) as refused:
        other.take(session, voucher)
    assert refused.value.fault is Fault.FOREIGN_VOUCHER


def test_a_voucher_shown_to_a_ledger_that_does_not_know_it_buys_nothing_there() -> None:
    """Even where the lock cannot reach, a voucher pays for what was served before it and never buys ahead."""
    account = FakeAccount(bond_nano=0)
    provider = Provider()
    session = provider.open_session(account)
    provider.take(session, signed_by(account, 3 * TON))
    ledger = provider.payee.ledger(account.account)
    assert ledger is not None
    assert ledger.owed_nano == 0
    key = RequestKey(session=session, id=0)
    with pytest.raises(PaymentRefused):  # 3 TON are signed, unclaimed and not reserved: no more on credit
        provider.payee.admit(key, prices=PRICES, input_tokens=10, now=NOW)


def test_a_claim_that_this_machine_did_not_hold_is_told() -> None:
    account = FakeAccount()
    provider = Provider()
    session = provider.open_session(account)
    provider.take(session, signed_by(account, 100_000))
    account.claim(signed_by(account, 900_000))
    provider.now += 1_000_000_000
    provider.see(account)
    (told,) = provider.saw(ForeignClaim)
    assert (told.held_nano, told.claimed_nano) == (100_000, 900_000)
    assert provider.payee.ledger(account.account).owed_nano == 0  # type: ignore[union-attr]


# --- M2 --------------------------------------------------------------------------------------------------


def test_one_token_then_die_ten_times_within_max_cost() -> None:
    """Ten providers take the prompt, give one token and die: together they get a fraction, never more than the cap."""
    client = Client(FakeAccount())
    client.see_chain()
    most = most_nano(PRICES, input_tokens_max=10_000, output_tokens_max=1_000)
    budget = client.payer.begin(2 * most)
    opened = 0
    for n in range(10):
        terms = terms_of(payout_number(n))
        try:
            attempt = client.payer.attempt(budget, terms, input_tokens_max=10_000, output_tokens_max=1_000)
        except SpendCapReached:
            break
        opened += 1
        client.did(client.payer.received(attempt, prompt_tokens=10_000, completion_tokens=1, now=NOW))
        client.did(client.payer.close(attempt, now=NOW))
    client.did(client.payer.settle(budget, now=NOW))
    assert opened == 10
    signed = {send.payout: send.voucher.voucher.cumulative_nano for send in client.sent}
    one = vested_due_nano(PRICES, input_tokens=10_000, cached_tokens=0, output_tokens=1, is_ended=False)
    assert set(signed.values()) == {one}
    assert sum(signed.values()) == budget.spent_nano <= most // 6
    assert client.payer.available_nano + budget.spent_nano >= 3 * TON  # nothing stays set aside


def test_ten_attempts_that_each_run_to_the_end_cannot_pass_the_budget() -> None:
    client = Client(FakeAccount())
    client.see_chain()
    most = most_nano(PRICES, input_tokens_max=10_000, output_tokens_max=1_000)
    budget = client.payer.begin(3 * most + most // 2)
    for n in range(10):
        try:
            attempt = client.payer.attempt(
                budget, terms_of(payout_number(n)), input_tokens_max=10_000, output_tokens_max=1_000
            )
        except SpendCapReached:
            assert n == 3
            break
        for tokens in (1, 500, 5_000):  # more than it declared, which is not counted
            client.did(client.payer.received(attempt, prompt_tokens=99_999, completion_tokens=tokens, now=NOW))
        client.did(client.payer.ended(attempt, payable_nano=10 * most, now=NOW))
    signed = {send.payout: send.voucher.voucher.cumulative_nano for send in client.sent}
    assert sum(signed.values()) == 3 * most <= budget.cost_max_nano


def test_hedges_are_opened_only_when_both_worst_cases_fit() -> None:
    client = Client(FakeAccount())
    client.see_chain()
    most = most_nano(PRICES, input_tokens_max=100, output_tokens_max=1_000)
    budget = client.payer.begin(most)
    first = client.payer.attempt(budget, terms_of(), input_tokens_max=100, output_tokens_max=1_000)
    with pytest.raises(SpendCapReached):
        client.payer.attempt(budget, terms_of(OTHER_PAYOUT), input_tokens_max=100, output_tokens_max=1_000)
    client.did(client.payer.close(first, now=NOW))
    client.payer.attempt(budget, terms_of(OTHER_PAYOUT), input_tokens_max=100, output_tokens_max=1_000)


def test_a_hedges_loser_earns_only_what_came_before_cancel() -> None:
    client = Client(FakeAccount())
    client.see_chain()
    budget = client.payer.begin(TON)
    attempt = client.payer.attempt(budget, terms_of(), input_tokens_max=100, output_tokens_max=1_000)
    client.did(client.payer.received(attempt, prompt_tokens=100, completion_tokens=8, now=NOW))
    client.did(client.payer.close(attempt, now=NOW))
    client.did(client.payer.received(attempt, prompt_tokens=100, completion_tokens=40, now=NOW))
    client.did(client.payer.ended(attempt, payable_nano=TON, now=NOW))
    due = vested_due_nano(PRICES, input_tokens=100, cached_tokens=0, output_tokens=8, is_ended=False)
    assert client.sent[-1].voucher.voucher.cumulative_nano == due


# --- M3 --------------------------------------------------------------------------------------------------


def test_hundred_parallel_sessions_one_window() -> None:
    """An account that pays nothing gets 64 tokens in all, over however many sessions and requests."""
    account = FakeAccount()
    provider = Provider()
    keys = []
    for n in range(100):
        session = provider.open_session(account, bytes((n,)) * 32)
        key = RequestKey(session=session, id=n)
        provider.did(provider.payee.admit(key, prices=PRICES, input_tokens=20, now=NOW))
        keys.append(key)
    served = 0
    for _ in range(3):
        served += sum(provider.serve(key, 5) for key in keys)
    assert served == 64
    with pytest.raises(PaymentRefused) as refused:
        provider.payee.admit(RequestKey(session=keys[0].session, id=999), prices=PRICES, input_tokens=20, now=NOW)
    assert refused.value.fault is Fault.UNPAID
    provider.wait(40 * 1_000_000_000)
    stopped = provider.saw(PaymentStopped)
    assert {event.fault for event in stopped} == {Fault.OVERDUE}
    ledger = provider.payee.ledger(account.account)
    assert ledger is not None
    assert ledger.due_nano <= due_nano(PRICES, input_tokens=20 * 64, cached_tokens=0, output_tokens=64)


def test_unpaid_prompts_of_all_sessions_share_one_credit() -> None:
    """Prompts are admitted up to the bond's share; cancelling them makes no room until as much is paid."""
    account = FakeAccount()
    provider = Provider()
    limit = TON // 64
    prompt_tokens = 10_000  # 1 mTON each
    session = provider.open_session(account)
    for n in range(limit // 1_000_000):
        key = RequestKey(session=session, id=n)
        provider.did(provider.payee.admit(key, prices=PRICES, input_tokens=prompt_tokens, now=NOW))
        provider.did(provider.payee.ended(key, is_natural=False, now=NOW))
    key = RequestKey(session=session, id=99)
    with pytest.raises(PaymentRefused) as refused:
        provider.payee.admit(key, prices=PRICES, input_tokens=prompt_tokens, now=NOW)
    assert refused.value.fault is Fault.RESERVATION_NEEDED
    assert refused.value.ceiling_nano > limit
    provider.take(session, signed_by(account, 5_000_000))
    account.claim(signed_by(account, 5_000_000))
    provider.see(account)
    provider.did(provider.payee.admit(key, prices=PRICES, input_tokens=prompt_tokens, now=NOW))


def test_a_larger_prompt_is_admitted_once_its_reservation_is_proven() -> None:
    account = FakeAccount(bond_nano=0)
    provider = Provider()
    session = provider.open_session(account)
    key = RequestKey(session=session, id=0)
    with pytest.raises(PaymentRefused) as refused:
        provider.payee.admit(key, prices=PRICES, input_tokens=100_000, now=NOW)
    assert refused.value.fault is Fault.RESERVATION_NEEDED
    voucher = signed_by(account, 0, refused.value.ceiling_nano)
    provider.take(session, voucher)
    with pytest.raises(PaymentRefused):  # signed is not proven
        provider.payee.admit(key, prices=PRICES, input_tokens=100_000, now=NOW)
    account.claim(voucher)
    provider.see(account)
    provider.did(provider.payee.admit(key, prices=PRICES, input_tokens=100_000, now=NOW))


def test_the_providers_own_bound_on_the_window_holds() -> None:
    account = FakeAccount()
    provider = Provider(terms=replace(TERMS, window_tokens_max=16))
    key = RequestKey(session=provider.open_session(account), id=0)
    provider.did(provider.payee.admit(key, prices=PRICES, input_tokens=20, now=NOW))
    assert provider.serve(key, 1_000) == 16


def test_the_spending_cap_is_never_passed() -> None:
    client = Client(FakeAccount(), terms=PayerTerms(spend_max_nano=1_000_000))
    client.see_chain()
    budget = client.payer.begin(600_000)
    with pytest.raises(SpendCapReached):
        client.payer.begin(600_000)
    attempt = client.payer.attempt(budget, terms_of(), input_tokens_max=0, output_tokens_max=2_000)
    client.did(client.payer.received(attempt, prompt_tokens=0, completion_tokens=2_000, now=NOW))
    client.did(client.payer.settle(budget, now=NOW))
    assert client.sent[-1].voucher.voucher.cumulative_nano == 600_000
    with pytest.raises(SpendCapReached):
        client.payer.begin(400_001)
    client.payer.begin(400_000)
