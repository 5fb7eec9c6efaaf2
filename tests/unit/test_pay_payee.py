"""The provider's side of money: which accounts it takes, how far it goes, when it claims, and life without a chain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cocoon.errors import DecodeError, LocalProtocolError
from cocoon.pay.account import NOTICE_MIN_NS, check_proof, standing_of
from cocoon.pay.claims import ClaimCase, claim_at, retry_ns
from cocoon.pay.effects import (
    CeilingWanted,
    ClaimConfirmed,
    CreditChanged,
    EpochRolled,
    PaymentStopped,
    Persist,
    RequestKey,
    Submit,
    VoucherAccepted,
)
from cocoon.pay.ledger import Ledger
from cocoon.pay.payee import Payee
from cocoon.pay.refusals import Fault, PaymentRefused
from cocoon.pay.voucher import SignedVoucher, Voucher, sign_voucher
from cocoon.ports import StoredClaim, StoredReservation, StoredVoucher, VoucherSide
from cocoon.ports.chain import Entry
from cocoon.types import SECOND_NS, Network, Prices
from cocoon.wire.signing import verify
from tests.fakes.market import Key
from tests.fakes.pay import (
    NET,
    NOW,
    NOW_S,
    OTHER_PAYOUT,
    OTHER_V,
    PAYOUT,
    RULES,
    TERMS,
    TON,
    Disk,
    FakeAccount,
    Provider,
    V,
)  # fmt: skip

HOUR_NS = 3_600 * SECOND_NS
OUTPUT_ONLY = Prices(input_nano=0, cached_input_nano=0, output_nano=300_000_000)
LIMIT = TON // 64


def voucher_of(
    source: FakeAccount, cumulative: int, ceiling: int = 0, *, key: Key = V, **changes: Any
) -> SignedVoucher:
    voucher = Voucher(
        network=NET,
        account=source.account,
        epoch=source.epoch,
        provider=PAYOUT,
        cumulative_nano=cumulative,
        ceiling_nano=ceiling,
    )
    return sign_voucher(replace(voucher, **changes), key.sign)


def ledger_of(provider: Provider, account: FakeAccount) -> Ledger:
    ledger = provider.payee.ledger(account.account)
    assert ledger is not None
    return ledger


def begun(account: FakeAccount, prices: Prices = OUTPUT_ONLY, **changes: Any) -> tuple[Provider, bytes, RequestKey]:
    provider = Provider(**changes)
    session = provider.open_session(account)
    key = RequestKey(session=session, id=0)
    provider.did(provider.payee.admit(key, prices=prices, input_tokens=10, now=provider.now))
    return provider, session, key


def pay_all(provider: Provider, account: FakeAccount, session: bytes, ceiling: int = 0) -> None:
    ledger = ledger_of(provider, account)
    kept = 0 if ledger.newest is None else ledger.newest.ceiling_nano
    provider.take(session, voucher_of(account, ledger.due_nano, max(ceiling, kept)))


# --- accounts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"at_s": NOW_S - 61}, Fault.STALE_PROOF),
        ({"at_s": NOW_S + 61}, Fault.STALE_PROOF),
        ({"salt": 99}, Fault.NOT_THIS_ACCOUNT),
        ({"owner": b"\x66" * 32}, Fault.NOT_THIS_ACCOUNT),
        ({"owner_workchain": -1}, Fault.NOT_THIS_ACCOUNT),
    ],
)
def test_a_proof_that_is_old_or_of_an_invented_ledger_is_refused(changes: dict[str, Any], fault: Fault) -> None:
    provider = Provider()
    with pytest.raises(PaymentRefused) as refused:
        provider.payee.account_proven(FakeAccount().state(NOW, **changes), now=NOW)
    assert refused.value.fault is fault
    assert len(provider.payee) == 0
    check_proof(FakeAccount().state(NOW, at_s=NOW_S - 60), RULES, now=NOW)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"epoch": 0}, Fault.NOT_OPEN),
        ({"voucher_key": bytes(32)}, Fault.NOT_OPEN),
        ({"unlock_at_s": NOW_S + NOTICE_MIN_NS // SECOND_NS}, Fault.NOTICE),
        ({"unlock_at_s": 1}, Fault.NOTICE),
        (
            {"entries": {n.to_bytes(32, "big"): Entry(claimed_nano=1, ceiling_nano=1) for n in range(513)}},
            Fault.TOO_MANY_ENTRIES,
        ),
    ],
)
def test_an_account_that_is_not_good_for_credit_authenticates_nobody(changes: dict[str, Any], fault: Fault) -> None:
    provider = Provider()
    account = FakeAccount()
    provider.did(provider.payee.account_proven(account.state(NOW, **changes), now=NOW))
    with pytest.raises(PaymentRefused) as refused:
        provider.payee.authenticate(
            b"s" * 32, account=account.account, voucher_key=changes.get("voucher_key", V.public), payout=PAYOUT, now=NOW
        )
    assert refused.value.fault is fault


def test_the_numbers_of_an_account_follow_its_specification() -> None:
    account = FakeAccount(
        balance_nano=3 * TON, bond_nano=TON, reserved_nano=TON // 2,
        entries={PAYOUT: Entry(claimed_nano=200_000_000, ceiling_nano=500_000_000)},
    )  # fmt: skip
    standing = standing_of(account.state(NOW), PAYOUT, RULES)
    rent = TON // 20 + 660_000
    assert standing.bond_nano == TON
    assert standing.free_nano == 3 * TON - rent - TON - TON // 2
    assert standing.reserved_nano == 300_000_000
    assert standing.limit_nano == TON // 64 + 10_000_000
    poor = standing_of(account.state(NOW, balance_nano=TON // 2), PAYOUT, RULES)
    assert poor.bond_nano == TON // 2 - rent  # rent ate the bond; what is stored is not what is there
    assert poor.free_nano == 0 == poor.limit_nano
    assert standing_of(account.state(NOW, balance_nano=0), OTHER_PAYOUT, RULES).bond_nano == 0


# --- vouchers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"network": Network.TESTNET},
        {"account": FakeAccount(salt=2).account},
        {"epoch": NOW_S - 1_001},
        {"provider": OTHER_PAYOUT},
    ],
)
def test_a_voucher_for_another_ledger_is_refused_and_nothing_changes(changes: dict[str, Any]) -> None:
    account = FakeAccount()
    provider, session, _ = begun(account)
    with pytest.raises(PaymentRefused) as refused:
        provider.take(session, voucher_of(account, 1_000, **changes))
    assert refused.value.fault is Fault.FOREIGN_VOUCHER
    assert ledger_of(provider, account).newest is None


def test_forged_falling_and_malformed_vouchers_are_refused_and_nothing_changes() -> None:
    account = FakeAccount()
    provider, session, _ = begun(account)
    provider.take(session, voucher_of(account, 1_000, 500))
    before = ledger_of(provider, account).held
    with pytest.raises(PaymentRefused) as forged:
        provider.take(session, voucher_of(account, 2_000, 500, key=OTHER_V))
    assert forged.value.fault is Fault.BAD_VOUCHER
    for amounts in ((2_000, 499), (999, 501)):
        with pytest.raises(PaymentRefused) as fell:
            provider.take(session, voucher_of(account, *amounts))
        assert fell.value.fault is Fault.VOUCHER_FELL
    with pytest.raises(DecodeError):
        provider.payee.receive_voucher(session, b"junk", bytes(64), now=NOW)
    provider.take(session, voucher_of(account, 900, 400))  # late: it crossed another session's
    provider.take(session, voucher_of(account, 1_000, 500))
    assert ledger_of(provider, account).held is before


def test_a_voucher_opens_the_window_only_when_it_is_on_disk() -> None:
    account = FakeAccount()
    provider, session, key = begun(account)
    assert provider.serve(key, 1_000) == 64
    signed = voucher_of(account, ledger_of(provider, account).due_nano)
    (persist,) = provider.payee.receive_voucher(session, signed.voucher.encode(), signed.signature, now=NOW)
    assert isinstance(persist, Persist)
    assert provider.payee.tokens_allowed(key, 1, now=NOW) == 0
    higher = voucher_of(account, signed.voucher.cumulative_nano + 1)
    assert provider.payee.receive_voucher(session, higher.voucher.encode(), higher.signature, now=NOW) == ()
    told = provider.payee.persisted(persist.records, now=NOW)
    assert [type(effect) for effect in told] != []
    assert provider.payee.tokens_allowed(key, 1_000, now=NOW) == 64
    assert [effect.records[0].cumulative_nano for effect in told if isinstance(effect, Persist)] == [  # type: ignore[union-attr]
        signed.voucher.cumulative_nano + 1
    ]


def test_a_disk_that_fails_for_a_moment_costs_no_voucher() -> None:
    account = FakeAccount()
    provider, session, key = begun(account)
    provider.serve(key, 64)
    signed = voucher_of(account, ledger_of(provider, account).due_nano)
    (persist,) = provider.payee.receive_voucher(session, signed.voucher.encode(), signed.signature, now=NOW)
    assert isinstance(persist, Persist)
    provider.did(provider.payee.persist_failed(persist.records, now=NOW))
    assert provider.payee.tokens_allowed(key, 1, now=NOW) == 0
    provider.wait(2 * SECOND_NS)
    assert [event.paid_nano for event in provider.saw(VoucherAccepted)] == [signed.voucher.cumulative_nano]
    assert provider.payee.tokens_allowed(key, 1, now=provider.now) == 1


# --- how far it goes -------------------------------------------------------------------------------------


def serve_and_pay(provider: Provider, account: FakeAccount, session: bytes, key: RequestKey, tokens: int) -> int:
    served = 0
    while served < tokens:
        step = provider.serve(key, tokens - served)
        if step == 0:
            break
        served += step
        pay_all(provider, account, session)
    return served


def test_an_account_that_pays_is_served_until_its_unsecured_credit_is_used_up() -> None:
    account = FakeAccount()
    provider, session, key = begun(account)
    served = serve_and_pay(provider, account, session, key, 1_000_000)
    assert served == LIMIT // 300
    assert ledger_of(provider, account).exposure_nano() <= LIMIT
    (wanted,) = provider.saw(CeilingWanted)[:1]
    assert wanted.ceiling_nano > LIMIT // 2
    assert not provider.submitted  # claiming so little would cost 6 % of it


def test_a_ceiling_counts_once_it_is_proven_and_service_goes_on() -> None:
    account = FakeAccount()
    provider, session, key = begun(account)
    serve_and_pay(provider, account, session, key, 1_000_000)
    provider.take(session, voucher_of(account, ledger_of(provider, account).due_nano, TON // 10))
    assert provider.serve(key, 10) == 0
    provider.wait(SECOND_NS)
    (signed,) = provider.submitted
    assert account.claim(signed) > 0
    provider.wait(16 * SECOND_NS)  # it looks by itself
    assert provider.saw(ClaimConfirmed)
    assert provider.saw(CreditChanged)
    assert serve_and_pay(provider, account, session, key, 100_000) == 100_000
    claims = [record for record in provider.disk.records if isinstance(record, StoredClaim)]
    assert [bool(record.confirmed_ns) for record in claims] == [False, True]
    assert any(isinstance(record, StoredReservation) for record in provider.disk.records)


def test_without_a_bond_only_the_window_is_open_until_a_reservation_is_proven() -> None:
    account = FakeAccount(bond_nano=0)
    provider, session, key = begun(account)
    assert serve_and_pay(provider, account, session, key, 1_000) == 64
    assert provider.saw(CeilingWanted)
    pay_all(provider, account, session, ceiling=TON // 10)
    provider.wait(SECOND_NS)
    for signed in provider.submitted:
        account.claim(signed)
    provider.wait(16 * SECOND_NS)
    assert serve_and_pay(provider, account, session, key, 10_000) == 10_000


def test_an_account_with_nothing_to_pay_with_gets_nothing() -> None:
    account = FakeAccount(balance_nano=TON, bond_nano=TON)  # all of it is the bond
    provider, _, key = begun(account)
    assert provider.serve(key, 64) == 0


def test_what_was_paid_on_chain_earns_credit() -> None:
    account = FakeAccount(bond_nano=0)
    account.claim(voucher_of(account, TON))
    provider, session, key = begun(account)
    assert serve_and_pay(provider, account, session, key, 1_000_000) == TON * 5 // 100 // 300


def test_the_claims_of_others_shrink_what_may_leave() -> None:
    account = FakeAccount()
    provider, _, key = begun(account)
    others = voucher_of(account, 4 * TON, provider=OTHER_PAYOUT)
    account.claim(others)
    provider.now += SECOND_NS
    provider.see(account)
    assert provider.serve(key, 64) == 0


def test_a_cheating_client_costs_one_provider_no_more_than_the_stated_bound() -> None:
    """It signs the same money to many providers; the first ones to claim empty it, and our loss is what we let out."""
    account = FakeAccount()
    provider, session, key = begun(account)
    while provider.serve(key, 4_096):
        ledger = ledger_of(provider, account)
        provider.take(session, voucher_of(account, max(ledger.due_nano - 1, 0)))
    served = ledger_of(provider, account).due_nano
    for n in range(40):
        sybil = voucher_of(account, 5 * TON, provider=bytes((n,)) * 32)
        account.claim(sybil)
    got = account.claim(voucher_of(account, ledger_of(provider, account).paid_nano))
    window = 4_096 * 300
    assert served - got <= LIMIT + window
    assert got == 0  # the bond was gone: this is the worst case


def test_debts_that_no_frame_will_ever_pay_are_forgiven_within_the_allowance() -> None:
    account = FakeAccount()
    provider, session, key = begun(account)
    broken = 0
    for n in range(1, 20):
        if provider.serve(key, 64) < 64:
            break
        broken += 1
        provider.did(provider.payee.session_closed(session, now=provider.now))
        session = provider.open_session(account, bytes((n,)) * 32)
        key = RequestKey(session=session, id=n)
        try:
            provider.did(provider.payee.admit(key, prices=OUTPUT_ONLY, input_tokens=1, now=provider.now))
        except PaymentRefused:
            break
    assert broken == 5  # 256 tokens of allowance, and a full window
    provider.now += HOUR_NS
    provider.see(account)
    provider.did(provider.payee.admit(key, prices=OUTPUT_ONLY, input_tokens=1, now=provider.now))
    assert provider.serve(key, 100) >= 63


def test_a_late_payment_of_a_forgiven_debt_is_no_credit() -> None:
    account = FakeAccount()
    provider, session, key = begun(account)
    provider.serve(key, 64)
    due = ledger_of(provider, account).due_nano
    provider.did(provider.payee.ended(key, is_natural=False, now=NOW))
    again = RequestKey(session=session, id=1)
    provider.did(provider.payee.admit(again, prices=OUTPUT_ONLY, input_tokens=1, now=NOW))
    assert ledger_of(provider, account).forgiven_nano == due
    provider.take(session, voucher_of(account, due))
    ledger = ledger_of(provider, account)
    assert (ledger.forgiven_nano, ledger.owed_nano) == (0, 0)
    assert provider.serve(again, 1_000) == 64


def test_misuse_by_the_session_is_refused() -> None:
    account = FakeAccount()
    provider, session, key = begun(account)
    with pytest.raises(LocalProtocolError):
        provider.payee.release(key, 65, now=NOW)
    with pytest.raises(LocalProtocolError):
        provider.payee.admit(key, prices=OUTPUT_ONLY, input_tokens=1, now=NOW)
    with pytest.raises(LocalProtocolError):
        provider.payee.release(RequestKey(session=session, id=7), 1, now=NOW)
    other = FakeAccount(salt=2)
    provider.see(other)
    with pytest.raises(LocalProtocolError):
        provider.payee.authenticate(session, account=other.account, voucher_key=V.public, payout=PAYOUT, now=NOW)
    assert provider.payee.ended(RequestKey(session=session, id=7), is_natural=False, now=NOW) == ()
    assert provider.payee.tokens_allowed(RequestKey(session=b"?" * 32, id=7), 5, now=NOW) == 0


# --- claims ----------------------------------------------------------------------------------------------

COST = TERMS.claim_cost_nano
CASE = ClaimCase(
    claimable_nano=10 * COST, grantable_nano=0, needs_ceiling=False, is_noticed=False, is_bond_falling=False,
    free_nano=TON, exposure_nano=10 * COST, unclaimed_since_ns=NOW, cost_nano=COST,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "when"),
    [
        ({}, NOW + 24 * HOUR_NS),
        ({"is_noticed": True}, NOW),
        ({"is_bond_falling": True}, NOW),
        ({"free_nano": 19 * COST}, NOW),
        ({"free_nano": 20 * COST}, NOW + 24 * HOUR_NS),
        ({"claimable_nano": 100 * COST}, NOW),
        ({"claimable_nano": COST}, None),
        ({"claimable_nano": COST, "is_noticed": True}, None),  # dust: claiming loses money
        ({"needs_ceiling": True}, NOW),
        ({"needs_ceiling": True, "claimable_nano": 9 * COST}, NOW + 24 * HOUR_NS),
        ({"needs_ceiling": True, "claimable_nano": 2 * COST, "grantable_nano": 9 * COST}, NOW + 24 * HOUR_NS),
        ({"needs_ceiling": True, "claimable_nano": 2 * COST, "grantable_nano": 10 * COST}, NOW),
        ({"grantable_nano": TON}, NOW + 24 * HOUR_NS),
    ],
)
def test_claims_are_made_when_they_are_worth_it_or_cannot_wait(changes: dict[str, Any], when: int | None) -> None:
    assert claim_at(replace(CASE, **changes), now=NOW) == when


def test_retries_slow_down_but_not_during_a_notice() -> None:
    minutes = [retry_ns(n, is_noticed=False) // (60 * SECOND_NS) for n in (1, 2, 3, 6, 7, 99)]
    assert minutes == [1, 2, 4, 32, 60, 60]
    assert retry_ns(99, is_noticed=True) == 300 * SECOND_NS


def test_notice_makes_the_provider_claim_at_once_and_stop() -> None:
    account = FakeAccount()
    provider, session, key = begun(account)
    serve_and_pay(provider, account, session, key, 20_000)
    account.unlock_at_s = provider.now // SECOND_NS + 11 * 3_600
    provider.now += SECOND_NS
    provider.see(account)
    assert [event.fault for event in provider.saw(PaymentStopped)] == [Fault.NOTICE]
    provider.wait(SECOND_NS)
    (signed,) = provider.submitted
    assert signed.voucher.cumulative_nano == ledger_of(provider, account).paid_nano
    provider.wait(10 * HOUR_NS)
    assert len(provider.submitted) > 60  # it was never executed, so it is tried every five minutes
    account.claim(signed)
    provider.wait(HOUR_NS)
    count = len(provider.submitted)
    provider.wait(HOUR_NS)
    assert len(provider.submitted) == count
    account.roll(OTHER_V.public, now=provider.now)
    provider.now += SECOND_NS
    provider.see(account)
    (rolled,) = provider.saw(EpochRolled)
    assert rolled.lost_nano == 0


def test_small_sums_of_many_accounts_are_claimed_daily_in_one_message() -> None:
    provider = Provider()
    accounts = [FakeAccount(salt=n) for n in range(100)]
    for n, account in enumerate(accounts):
        session = provider.open_session(account, n.to_bytes(32, "big"))
        key = RequestKey(session=session, id=0)
        provider.did(provider.payee.admit(key, prices=OUTPUT_ONLY, input_tokens=1, now=provider.now))
        serve_and_pay(provider, account, session, key, 40_000)  # 12 mTON
        provider.did(provider.payee.session_closed(session, now=provider.now))
    messages: list[int] = []
    until = NOW + 25 * HOUR_NS
    while (when := provider.payee.deadline()) is not None and when < until:
        provider.now = max(provider.now, when)
        for effect in provider.payee.on_time(now=provider.now):
            if isinstance(effect, Submit):
                messages.append(len(effect.claims))
                for signed in effect.claims:
                    provider.chain[signed.voucher.account].claim(signed)
            provider.did((effect,))
    assert messages == [64, 36]
    assert all(account.entries[PAYOUT].claimed_nano == 12_000_000 for account in accounts)


def test_claim_all_claims_what_is_worth_its_cost() -> None:
    account = FakeAccount()
    provider, session, key = begun(account)
    serve_and_pay(provider, account, session, key, 3_000)
    assert provider.payee.claim_all(now=NOW) == ()
    serve_and_pay(provider, account, session, key, 3_000)
    provider.did(provider.payee.claim_all(now=NOW))
    assert len(provider.submitted) == 1


def test_an_account_that_cannot_pay_is_not_claimed_from_for_ever() -> None:
    account = FakeAccount()
    provider, session, key = begun(account)
    serve_and_pay(provider, account, session, key, 20_000)
    account.balance_nano, account.bond_nano = 0, 0
    provider.now += SECOND_NS
    provider.see(account)
    provider.wait(48 * HOUR_NS)
    assert provider.submitted == []


# --- restarts and outages --------------------------------------------------------------------------------


def test_after_a_restart_the_voucher_is_there_and_unknown_accounts_are_looked_up() -> None:
    account = FakeAccount()
    provider, session, key = begun(account)
    serve_and_pay(provider, account, session, key, 20_000)
    paid = ledger_of(provider, account).paid_nano
    again = Provider(disk=provider.disk, now=NOW + SECOND_NS, chain={account.account: account})
    again.wait(SECOND_NS)
    assert again.proven == [account.account]
    ledger = ledger_of(again, account)
    assert (ledger.paid_nano, ledger.owed_nano) == (paid, 0)
    assert ledger.clean_tokens > 15_000  # the window that it earned
    again.wait(25 * HOUR_NS)
    assert [signed.voucher.cumulative_nano for signed in again.submitted][:1] == [paid]


def test_ledgers_that_are_settled_on_chain_are_not_looked_up_at_every_start() -> None:
    disk = Disk()
    record = StoredVoucher(
        side=VoucherSide.HELD, network=int(NET),
        account=FakeAccount().account, epoch=5, provider=PAYOUT, cumulative_nano=100, ceiling_nano=0, key=V.public,
        signature=bytes(64), clean_tokens=0, at_ns=1,
    )  # fmt: skip
    disk.save((record,))

    def restart(claimed: int) -> int:
        settled = StoredReservation(
            network=int(NET), account=record.account, epoch=5, provider=PAYOUT, claimed_nano=claimed, ceiling_nano=100,
            proven_s=1, at_ns=1,
        )  # fmt: skip
        return len(
            Payee(
                network=NET, payout=PAYOUT, rules=RULES, verify=verify, terms=TERMS, restored=(record,),
                settled=(settled,), now=NOW,
            )
        )  # fmt: skip

    assert (restart(99), restart(100)) == (1, 0)


def test_the_market_goes_on_without_the_chain_within_signed_credit_and_settles_later() -> None:
    account = FakeAccount()
    provider, session, key = begun(account)
    provider.is_chain_up = False
    provider.wait(50 * 60 * SECOND_NS)
    assert provider.proven, "it keeps asking"
    assert not provider.payee.needs_proof(account.account, now=provider.now)  # it was just out of reach
    assert serve_and_pay(provider, account, session, key, 1_000) == 1_000
    another = RequestKey(session=session, id=1)
    provider.did(provider.payee.admit(another, prices=OUTPUT_ONLY, input_tokens=1, now=provider.now))
    provider.wait(20 * 60 * SECOND_NS)
    assert provider.serve(key, 10) == 0  # an hour is over, and nothing is reserved
    provider.is_chain_up = True
    provider.wait(60 * SECOND_NS)
    assert provider.saw(CreditChanged)


def test_without_the_chain_reserved_money_is_good_until_a_notice_could_run_out() -> None:
    account = FakeAccount(bond_nano=0)
    account.claim(voucher_of(account, 0, TON))
    provider, session, key = begun(account)
    provider.is_chain_up = False
    provider.wait(10 * HOUR_NS)
    assert serve_and_pay(provider, account, session, key, 10_000) == 10_000
    provider.wait(HOUR_NS + SECOND_NS)
    assert provider.serve(key, 1) == 0


def test_an_older_proof_changes_nothing_and_a_newer_one_that_shows_less_counts() -> None:
    """A reorganisation, or a server that lied before: the newest proof is the truth, and the claim is made again."""
    account = FakeAccount()
    provider, session, key = begun(account)
    serve_and_pay(provider, account, session, key, 20_000)
    before = account.state(provider.now)
    account.claim(voucher_of(account, ledger_of(provider, account).paid_nano))
    provider.now += 10 * SECOND_NS
    provider.see(account)
    assert ledger_of(provider, account).claimable_nano == 0
    provider.did(provider.payee.account_proven(before, now=provider.now))
    assert ledger_of(provider, account).claimable_nano == 0
    provider.now += 10 * SECOND_NS
    shows_less = replace(before, at_s=provider.now // SECOND_NS)
    provider.did(provider.payee.account_proven(shows_less, now=provider.now))
    assert ledger_of(provider, account).claimable_nano == 6_000_000
    provider.chain.clear()
    provider.wait(25 * HOUR_NS)
    assert provider.submitted


def test_an_epoch_that_was_a_lie_costs_no_voucher() -> None:
    account = FakeAccount()
    provider, session, key = begun(account)
    serve_and_pay(provider, account, session, key, 20_000)
    held = ledger_of(provider, account).held
    provider.now += SECOND_NS
    lie = account.state(provider.now, epoch=NOW_S, voucher_key=OTHER_V.public)
    provider.did(provider.payee.account_proven(lie, now=provider.now))
    assert provider.saw(PaymentStopped)
    assert provider.serve(key, 1) == 0
    with pytest.raises(PaymentRefused):
        provider.take(session, voucher_of(account, TON))
    provider.now += SECOND_NS
    provider.see(account)
    ledger = ledger_of(provider, account)
    assert ledger.held == held
    assert ledger.claimable_nano == 6_000_000


@pytest.mark.parametrize("is_written_during_the_lie", [True, False])
def test_a_voucher_that_was_being_written_when_the_lie_came_is_not_lost(is_written_during_the_lie: bool) -> None:
    account = FakeAccount()
    provider, session, _ = begun(account)
    provider.take(session, voucher_of(account, 1_000_000))
    signed = voucher_of(account, 6_000_000)
    (persist,) = provider.payee.receive_voucher(session, signed.voucher.encode(), signed.signature, now=NOW)
    assert isinstance(persist, Persist)
    provider.now += SECOND_NS
    provider.did(provider.payee.account_proven(account.state(provider.now, epoch=NOW_S), now=provider.now))
    if is_written_during_the_lie:
        provider.did(provider.payee.persisted(persist.records, now=provider.now))
    provider.now += SECOND_NS
    provider.see(account)
    if not is_written_during_the_lie:
        provider.did(provider.payee.persisted(persist.records, now=provider.now))
    assert ledger_of(provider, account).claimable_nano == 6_000_000


def test_rolling_carries_an_honest_debt_into_the_new_epoch() -> None:
    account = FakeAccount()
    provider, session, key = begun(account)
    provider.serve(key, 64)
    account.roll(V.public, now=NOW + SECOND_NS)
    provider.now += SECOND_NS
    provider.see(account)
    ledger = ledger_of(provider, account)
    assert (ledger.unpaid.count, ledger.owed_nano) == (64, 64 * 300)
    assert provider.serve(key, 1) == 0
    provider.take(session, voucher_of(account, 64 * 300))
    assert provider.serve(key, 64) == 64


def test_accounts_that_hold_money_of_ours_are_never_dropped_for_newcomers() -> None:
    provider = Provider(terms=replace(TERMS, accounts_max=2))
    rich, idle = FakeAccount(salt=1), FakeAccount(salt=2)
    session = provider.open_session(rich)
    provider.take(session, voucher_of(rich, 5_000_000))
    provider.did(provider.payee.session_closed(session, now=NOW))
    provider.see(idle)
    provider.see(FakeAccount(salt=3))
    assert provider.payee.ledger(idle.account) is None
    assert ledger_of(provider, rich).claimable_nano == 5_000_000
    provider.open_session(FakeAccount(salt=3), b"t" * 32)
    with pytest.raises(PaymentRefused) as refused:
        provider.see(FakeAccount(salt=4))
    assert refused.value.fault is Fault.BUSY
