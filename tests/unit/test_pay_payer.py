"""The client's side of money: what it signs, when, and what it never signs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cocoon.errors import Blame, LocalProtocolError, PaymentError, SpendCapReached
from cocoon.pay.budget import ATTEMPTS_MAX, Attempt
from cocoon.pay.effects import EpochRolled, FundsShort, Persist, Send
from cocoon.pay.payer import PayerTerms
from cocoon.pay.refusals import Fault, PaymentRefused
from cocoon.pay.voucher import parse_open_voucher
from cocoon.ports import VoucherSide
from cocoon.ports.chain import Entry
from cocoon.types import SECOND_NS, Prices
from tests.fakes.pay import (
    NOW,
    NOW_S,
    OTHER_PAYOUT,
    OTHER_V,
    PAYOUT,
    SPENDING,
    TON,
    Client,
    Disk,
    FakeAccount,
    payout_number,
    terms_of,
)  # fmt: skip

OUTPUT_ONLY = Prices(input_nano=0, cached_input_nano=0, output_nano=300_000_000)


def streaming(account: FakeAccount | None = None, **changes: Any) -> tuple[Client, Attempt]:
    client = Client(account or FakeAccount(), **changes)
    client.see_chain()
    budget = client.payer.begin(TON // 10)
    return client, client.payer.attempt(
        budget, terms_of(prices=OUTPUT_ONLY), input_tokens_max=10, output_tokens_max=100_000
    )


def amounts(client: Client) -> list[int]:
    return [send.voucher.voucher.cumulative_nano for send in client.sent]


def test_it_pays_well_before_the_window_closes_and_in_fewer_vouchers_as_trust_grows() -> None:
    client, attempt = streaming()
    for tokens in range(1, 20_001):
        client.did(client.payer.received(attempt, prompt_tokens=10, completion_tokens=tokens, now=NOW))
        assert tokens * 300 - (amounts(client) or [0])[-1] <= 1_024 * 300
    first, last = amounts(client)[:3], amounts(client)[-2:]
    assert first == [16 * 300, 32 * 300, 48 * 300]
    assert last[1] - last[0] == 1_024 * 300


def test_a_pause_or_a_receipt_pays_whatever_is_owed() -> None:
    client, attempt = streaming()
    client.did(client.payer.received(attempt, prompt_tokens=10, completion_tokens=3, now=NOW))
    assert amounts(client) == []
    when = client.payer.deadline()
    client.now = when or 0
    client.did(client.payer.on_time(now=client.now))
    assert amounts(client) == [900]
    client.did(client.payer.received(attempt, prompt_tokens=10, completion_tokens=4, now=client.now))
    client.did(client.payer.receipt(attempt, now=client.now))
    assert amounts(client) == [900, 1_200]


def test_a_voucher_leaves_only_after_it_is_on_disk_and_one_at_a_time() -> None:
    client, attempt = streaming()
    effects = client.payer.received(attempt, prompt_tokens=10, completion_tokens=20, now=NOW)
    (persist,) = effects
    assert isinstance(persist, Persist)
    assert client.payer.received(attempt, prompt_tokens=10, completion_tokens=60, now=NOW) == ()
    assert client.payer.open_voucher(PAYOUT) == b""  # not on disk: not to be shown either
    sent, following = client.payer.persisted(persist.records, now=NOW)
    assert isinstance(sent, Send)
    assert sent.voucher.voucher.cumulative_nano == 20 * 300
    assert isinstance(following, Persist)
    client.did(client.payer.persist_failed(following.records, now=NOW))
    assert client.payer.received(attempt, prompt_tokens=10, completion_tokens=99, now=NOW) == ()
    client.now = NOW + SECOND_NS
    client.did(client.payer.on_time(now=client.now))  # the same bytes again, then what came meanwhile
    assert amounts(client) == [60 * 300, 99 * 300]
    shown = parse_open_voucher(client.payer.open_voucher(PAYOUT))
    assert shown is not None
    assert shown.voucher.cumulative_nano == 99 * 300


def test_after_a_restart_amounts_go_on_where_they_were() -> None:
    client, attempt = streaming()
    client.did(client.payer.received(attempt, prompt_tokens=10, completion_tokens=50, now=NOW))
    again, attempt = streaming(disk=client.disk)
    assert again.payer.open_voucher(PAYOUT) == client.payer.open_voucher(PAYOUT) != b""
    again.did(again.payer.received(attempt, prompt_tokens=10, completion_tokens=20, now=NOW))
    assert amounts(again) == [70 * 300]


def test_requests_that_run_at_once_share_account_and_cap() -> None:
    account = FakeAccount(balance_nano=2 * TON, bond_nano=TON)
    client = Client(account)
    client.see_chain()
    spendable = client.payer.available_nano
    assert 0.9 * TON < spendable < TON
    first = client.payer.begin(spendable)
    with pytest.raises(PaymentError) as poor:
        client.payer.begin(1)
    assert "topup" in poor.value.diagnostics()
    assert poor.value.blame is Blame.USER
    client.did(client.payer.settle(first, now=NOW))
    assert client.payer.available_nano == spendable
    with pytest.raises(LocalProtocolError):
        client.payer.attempt(first, terms_of(), input_tokens_max=1, output_tokens_max=1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epoch": 0}, "not open"),
        ({"unlock_at_s": NOW_S + 90_000}, "being closed"),
        ({"entries": {PAYOUT: Entry(claimed_nano=1, ceiling_nano=1)}}, "old copy"),
    ],
)
def test_an_account_that_no_provider_would_take_begins_nothing(changes: dict[str, Any], said: str) -> None:
    client = Client(FakeAccount())
    with pytest.raises(PaymentError, match="not been seen"):
        client.payer.begin(1)
    client.did(client.payer.account_proven(client.account.state(NOW, **changes), now=NOW))
    with pytest.raises(PaymentError, match=said) as refused:
        client.payer.begin(1)
    assert refused.value.advice


def test_it_believes_no_state_that_is_foreign_old_or_under_another_key() -> None:
    client, _ = streaming()
    account = client.account
    for bad, fault in (
        (FakeAccount(salt=2).state(NOW), Fault.NOT_THIS_ACCOUNT),
        (account.state(NOW, voucher_key=OTHER_V.public), Fault.NOT_THIS_ACCOUNT),
        (account.state(NOW, at_s=NOW_S - 1), Fault.STALE_PROOF),
        (account.state(NOW, at_s=NOW_S - 100), Fault.STALE_PROOF),
        (account.state(NOW, epoch=account.epoch - 1), Fault.STALE_PROOF),
        (account.state(NOW, salt=7), Fault.NOT_THIS_ACCOUNT),
    ):
        before = client.payer.available_nano
        with pytest.raises(PaymentRefused) as refused:
            client.payer.account_proven(bad, now=NOW)
        assert refused.value.fault is fault
        assert client.payer.available_nano == before


def test_a_new_epoch_begins_at_zero_and_carries_what_is_owed() -> None:
    client, attempt = streaming()
    client.did(client.payer.received(attempt, prompt_tokens=10, completion_tokens=20, now=NOW))
    client.did(client.payer.received(attempt, prompt_tokens=10, completion_tokens=30, now=NOW))
    client.account.roll(client.account.key, now=NOW + SECOND_NS)
    client.now += SECOND_NS
    client.see_chain()
    assert [type(event) for event in client.events] == [EpochRolled]
    assert client.payer.open_voucher(PAYOUT) == b""
    client.did(client.payer.receipt(attempt, now=client.now))
    newest = client.sent[-1].voucher.voucher
    assert (newest.epoch, newest.cumulative_nano) == (client.account.epoch, 10 * 300)
    stored = {record.epoch: record.cumulative_nano for record in client.disk.restored(VoucherSide.ISSUED)}
    assert stored == {NOW_S - 1_000: 20 * 300, NOW_S + 1: 10 * 300}


def test_a_voucher_of_the_old_epoch_that_is_still_being_written_never_leaves() -> None:
    client, attempt = streaming()
    (persist,) = client.payer.received(attempt, prompt_tokens=10, completion_tokens=20, now=NOW)
    assert isinstance(persist, Persist)
    client.account.roll(client.account.key, now=NOW + SECOND_NS)
    client.now += SECOND_NS
    client.see_chain()
    assert client.payer.persisted(persist.records, now=client.now) == ()


def test_money_that_is_gone_is_not_signed_away() -> None:
    """Somebody else's claims, or rent, took it: over-issuing would burn the bond."""
    client, attempt = streaming(FakeAccount(balance_nano=2 * TON, bond_nano=TON))
    client.account.balance_nano = TON + TON // 20 + 600_000 + 5_000
    client.now += SECOND_NS
    client.see_chain()
    for tokens in (100, 200, 300):
        client.did(client.payer.received(attempt, prompt_tokens=10, completion_tokens=tokens, now=client.now))
    for _ in range(10):
        client.now += SECOND_NS
        client.did(client.payer.on_time(now=client.now))
    assert amounts(client)[-1] == 5_000
    assert len([event for event in client.events if isinstance(event, FundsShort)]) == 1
    assert (client.payer.deadline() or 0) > client.now
    client.account.balance_nano += TON
    client.see_chain()
    client.now += SECOND_NS
    client.did(client.payer.on_time(now=client.now))
    assert amounts(client)[-1] == 300 * 300


def test_it_reserves_by_itself_before_the_provider_would_stop() -> None:
    client, attempt = streaming()
    for tokens in range(16, 40_000, 16):
        client.did(client.payer.received(attempt, prompt_tokens=10, completion_tokens=tokens, now=NOW))
    ceilings = {send.voucher.voucher.ceiling_nano for send in client.sent}
    assert len(ceilings) == 2  # none, and one that waits to be proven
    assert max(ceilings) == pytest.approx(TON // 128 + TON // 5, rel=0.05)


def test_a_provider_gets_no_more_reserved_than_the_user_allows() -> None:
    terms = replace(SPENDING, reserve_step_nano=TON // 10, reserve_max_nano=TON // 8)
    client, attempt = streaming(terms=terms)
    client.did(client.payer.received(attempt, prompt_tokens=10, completion_tokens=20, now=NOW))
    client.did(client.payer.ceiling_wanted(PAYOUT, 3 * TON, now=NOW))
    assert client.sent[-1].voucher.voucher.ceiling_nano == 6_000 + TON // 10
    other = client.payer.attempt(
        client.payer.begin(1_000), terms_of(OTHER_PAYOUT), input_tokens_max=0, output_tokens_max=1
    )
    assert other.is_open
    client.did(client.payer.ceiling_wanted(OTHER_PAYOUT, 3 * TON, now=NOW))
    reserved = sum(
        max(0, ledger.ceiling_nano - ledger.cumulative_nano)
        for ledger in (client.payer.ledger(PAYOUT), client.payer.ledger(OTHER_PAYOUT))
        if ledger is not None
    )
    assert reserved <= TON // 8
    assert client.payer.ceiling_wanted(payout_number(9), TON, now=NOW) == ()


def test_reservations_leave_running_requests_their_budget() -> None:
    client = Client(FakeAccount(balance_nano=TON + TON // 2, bond_nano=TON))
    client.see_chain()
    budget = client.payer.begin(client.payer.available_nano)
    client.payer.attempt(budget, terms_of(), input_tokens_max=0, output_tokens_max=10)
    client.did(client.payer.ceiling_wanted(PAYOUT, TON, now=NOW))
    assert client.sent == []


def test_a_request_has_a_bounded_number_of_attempts() -> None:
    client = Client(FakeAccount())
    client.see_chain()
    budget = client.payer.begin(TON)
    for n in range(ATTEMPTS_MAX):
        client.payer.attempt(budget, terms_of(payout_number(n)), input_tokens_max=1, output_tokens_max=1)
    with pytest.raises(SpendCapReached):
        client.payer.attempt(budget, terms_of(), input_tokens_max=1, output_tokens_max=1)


def test_an_output_can_be_shortened_to_what_is_left() -> None:
    client, _ = streaming()
    budget = client.payer.begin(1_000_000)
    tokens = budget.output_tokens_affordable(OUTPUT_ONLY, input_tokens_max=10, most_tokens=4_096)
    assert tokens == 3_333
    client.payer.attempt(budget, terms_of(prices=OUTPUT_ONLY), input_tokens_max=10, output_tokens_max=tokens)
    assert budget.output_tokens_affordable(OUTPUT_ONLY, input_tokens_max=10, most_tokens=4_096) == 0


def test_an_unreachable_chain_stops_no_payment() -> None:
    client, attempt = streaming()
    client.did(client.payer.account_unreachable(now=NOW))
    client.now += 7_200 * SECOND_NS
    client.did(client.payer.received(attempt, prompt_tokens=10, completion_tokens=20, now=client.now))
    assert amounts(client) == [6_000]


def test_rolling_is_advised_when_the_account_has_many_entries() -> None:
    client, _ = streaming(terms=PayerTerms(spend_max_nano=TON))
    assert not client.payer.is_roll_advised
    entries = {payout_number(n): Entry(claimed_nano=0, ceiling_nano=1) for n in range(65)}
    client.did(client.payer.account_proven(client.account.state(NOW, entries=entries), now=NOW))
    assert client.payer.is_roll_advised


def test_a_disk_from_another_epoch_is_not_added_to_this_one() -> None:
    client, attempt = streaming()
    client.did(client.payer.received(attempt, prompt_tokens=10, completion_tokens=20, now=NOW))
    disk = Disk()
    disk.save(client.disk.restored(VoucherSide.ISSUED))
    disk.save((replace(client.disk.restored(VoucherSide.ISSUED)[0], epoch=NOW_S, cumulative_nano=77),))
    again = Client(FakeAccount(epoch=NOW_S), disk=disk)
    again.see_chain()
    assert again.payer.signed_nano == 77
