"""What the spending account promises, one sentence per check: rules, boundaries, attacks."""

from __future__ import annotations

import hashlib

from nacl.bindings import crypto_scalarmult_ed25519_base_noclamp
from nacl.signing import SigningKey
from pytoniq_core import begin_cell

from cocoon.adapters.devnet.tvm import Tvm
from cocoon.adapters.ton import contracts
from cocoon.adapters.ton.cells import address, operation
from cocoon.adapters.ton.contracts import Code
from cocoon.ports.chain import Entry
from cocoon.types import Network
from tests.contracts.checks import Checks
from tests.contracts.world import (
    EVERYTHING,
    MILLI,
    NOTICE_S,
    OWNER,
    RENT,
    STRANGER,
    TON,
    V_KEY,
    AccountWorld,
    V,
    provider,
    voucher,
)

account_check = Checks()
YEAR_S = 365 * 86_400
LEFT_OVER = 10 * MILLI  # of the gas that was kept back


def owner_roll(
    world: AccountWorld,
    *,
    bond: int = TON,
    out: int = 0,
    key: bytes = V_KEY,
    source: bytes = OWNER,
    value: int = TON // 20,
) -> int | None:
    body = contracts.roll_body(key=key, bond_nano=bond, out_nano=out)
    return world.send(source, body, value).exit_code


def refused_unchanged(world: AccountWorld, exit_code: int | None, expected: int) -> None:
    """Refused with this code, the coins back at the sender, nothing changed."""
    assert exit_code == expected
    assert world.is_bounced


# --- opening, depositing, rolling --------------------------------------------------------------------------


@account_check
def opening_sets_key_bond_and_epoch(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    state = world.state
    assert state.voucher_key == V_KEY
    assert state.epoch == world.ledger.now_s
    assert state.bond_nano == TON
    assert (state.unlock_at_s, state.reserved_nano, dict(state.entries)) == (0, 0, {})


@account_check
def a_plain_transfer_and_a_comment_are_deposits(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    before, state = world.balance, world.state
    for body in (
        None,
        begin_cell().store_uint(0, 32).store_bytes(b"thanks").end_cell(),
        begin_cell().store_uint(1, 8).end_cell(),
    ):
        assert world.send(STRANGER, body, TON).is_done
    assert 3 * TON - MILLI < world.balance - before <= 3 * TON
    assert (world.state.bond_nano, world.state.epoch) == (state.bond_nano, state.epoch)


@account_check
def an_unknown_op_is_refused_and_the_coins_return(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    for op in (5, 0xACC00005, 0xACC000F1, 0x57A4E001):
        refused_unchanged(world, world.send(STRANGER, operation(op).end_cell()).exit_code, 0xFFFF)


@account_check
def a_body_cut_short_is_refused_and_what_follows_a_whole_one_is_ignored(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    good = world.signed_claim(provider(1), TON)
    bits = good.begin_parse().load_bits(len(good.bits))
    for broken in (bits[:-1], bits[:100]):
        refused_unchanged(world, world.send(provider(1), begin_cell().store_bits(broken).end_cell()).exit_code, 9)
    refused_unchanged(world, world.send(OWNER, operation(contracts.NOTICE).end_cell()).exit_code, 9)
    assert world.send(provider(1), begin_cell().store_bits(bits).store_bit(1).end_cell()).is_done
    assert world.entry(provider(1)).claimed_nano == TON


@account_check
def anybody_may_add_to_the_bond_and_its_gas_is_kept_back(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    before = world.balance
    assert world.send(STRANGER, contracts.add_bond_body(), TON).is_done
    added = world.state.bond_nano - TON
    assert TON - 10 * MILLI < added < TON
    assert world.balance - before >= added  # the bond is backed by coins that came with it


@account_check
def a_bond_too_small_to_pay_its_gas_is_refused(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    refused_unchanged(world, world.send(OWNER, contracts.add_bond_body(), MILLI).exit_code, 426)


@account_check
def only_the_owner_gives_notice_and_rolls(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    for source in (STRANGER, provider(1)):
        refused_unchanged(world, world.send(source, contracts.notice_body()).exit_code, 421)
        refused_unchanged(world, world.send(source, contracts.notice_body(cancel=True)).exit_code, 421)
        refused_unchanged(world, owner_roll(world, source=source), 421)
    fresh = AccountWorld(tvm, code=code, is_open=False)
    fresh.send(STRANGER, None, TON, init=fresh.init, bounce=False)
    refused_unchanged(fresh, owner_roll(fresh, source=STRANGER, bond=0), 421)


@account_check
def a_roll_needs_a_notice_that_has_run_out(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    refused_unchanged(world, owner_roll(world), 425)
    world.send(OWNER, contracts.notice_body())
    assert world.state.unlock_at_s == world.ledger.now_s + NOTICE_S
    world.wait(NOTICE_S - 1)
    refused_unchanged(world, owner_roll(world), 425)
    world.wait(1)
    assert owner_roll(world) == 0
    refused_unchanged(world, owner_roll(world), 425)


@account_check
def a_notice_called_off_opens_nothing(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    world.send(OWNER, contracts.notice_body())
    world.send(OWNER, contracts.notice_body(cancel=True))
    assert world.state.unlock_at_s == 0
    world.wait(NOTICE_S)
    refused_unchanged(world, owner_roll(world), 425)


@account_check
def a_second_notice_starts_the_clock_anew(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    world.send(OWNER, contracts.notice_body())
    world.wait(NOTICE_S // 2)
    world.send(OWNER, contracts.notice_body())
    world.wait(NOTICE_S // 2)
    refused_unchanged(world, owner_roll(world), 425)


@account_check
def a_roll_to_the_zero_key_is_refused(tvm: Tvm, code: Code) -> None:
    fresh = AccountWorld(tvm, code=code, is_open=False)
    fresh.send(STRANGER, None, TON, init=fresh.init, bounce=False)
    refused_unchanged(fresh, owner_roll(fresh, key=bytes(32), bond=0), 427)


@account_check
def a_bond_that_is_not_there_is_refused(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code, is_open=False)
    world.send(OWNER, None, TON, init=world.init, bounce=False)
    refused_unchanged(world, owner_roll(world, bond=TON + MILLI), 426)
    assert owner_roll(world, bond=TON - RENT) == 0


@account_check
def withdrawing_all_leaves_rent_and_bond(tvm: Tvm, code: Code) -> None:
    for bond in (0, TON):
        world = AccountWorld(tvm, code=code)
        world.send(OWNER, contracts.notice_body())
        world.wait(NOTICE_S)
        before = world.balance
        assert owner_roll(world, bond=bond, out=contracts.ALL_NANO) == 0
        assert RENT + bond <= world.balance < RENT + bond + LEFT_OVER
        assert world.received(OWNER) > before - RENT - bond - LEFT_OVER


@account_check
def withdrawing_a_part_leaves_the_rest(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    world.send(OWNER, contracts.notice_body())
    world.wait(NOTICE_S)
    before = world.balance
    assert owner_roll(world, bond=TON, out=TON) == 0
    assert TON - MILLI < world.received(OWNER) <= TON
    assert before - TON - MILLI < world.balance < before - TON + TON // 20


@account_check
def a_roll_wipes_entries_and_reserves(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    world.claim(provider(1), TON, 2 * TON)
    world.send(OWNER, contracts.notice_body())
    world.wait(NOTICE_S)
    assert owner_roll(world, bond=TON // 2) == 0
    state = world.state
    assert (dict(state.entries), state.reserved_nano, state.bond_nano, state.unlock_at_s) == ({}, 0, TON // 2, 0)


@account_check
def a_roll_changes_the_voucher_key(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    other = SigningKey(b"\x08" * 32)
    world.send(OWNER, contracts.notice_body())
    world.wait(NOTICE_S)
    assert owner_roll(world, key=bytes(other.verify_key)) == 0
    old = world.signed_claim(provider(1), TON)
    refused_unchanged(world, world.send(provider(1), old).exit_code, 423)
    new = world.signed_claim(provider(1), TON, key=other)
    assert world.send(provider(1), new).is_done


# --- claims ------------------------------------------------------------------------------------------------


@account_check
def a_claim_pays_its_provider_exactly(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    before = world.balance
    assert world.claim(provider(1), TON).is_done
    assert world.balance == before - TON
    assert TON < world.received(provider(1)) < TON + TON // 20
    assert world.entry(provider(1)) == Entry(claimed_nano=TON, ceiling_nano=TON)
    assert world.state.reserved_nano == 0


@account_check
def only_what_is_new_is_paid(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    world.claim(provider(1), TON)
    before = world.balance
    assert world.claim(provider(1), TON + 7).is_done
    assert world.balance == before - 7


@account_check
def a_claim_reserves_up_to_its_ceiling(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    before = world.balance
    assert world.claim(provider(1), TON, 3 * TON).is_done
    assert world.balance == before - TON
    assert world.entry(provider(1)) == Entry(claimed_nano=TON, ceiling_nano=3 * TON)
    assert world.state.reserved_nano == 2 * TON


@account_check
def a_reservation_is_limited_to_what_is_free(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    free = world.free
    assert world.claim(provider(1), 0, EVERYTHING).is_done
    assert world.state.reserved_nano == free
    refused_unchanged(world, world.claim(provider(2), 0, TON).exit_code, 424)


@account_check
def a_reservation_is_topped_up_when_money_comes(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    world.claim(provider(1), 0, 10 * TON)
    first = world.state.reserved_nano
    world.send(OWNER, None, TON, bounce=False)
    assert world.claim(provider(1), 0, 10 * TON).is_done
    assert TON - MILLI < world.state.reserved_nano - first <= TON


@account_check
def claiming_within_the_reserve_uses_the_reserve(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    world.claim(provider(1), 0, 2 * TON)
    free = world.free
    assert world.claim(provider(1), TON, 2 * TON).is_done
    assert world.free == free
    assert world.entry(provider(1)) == Entry(claimed_nano=TON, ceiling_nano=2 * TON)
    assert world.state.reserved_nano == TON


@account_check
def a_lower_ceiling_takes_nothing_back(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    world.claim(provider(1), 0, 2 * TON)
    assert world.claim(provider(1), TON, TON).is_done
    assert world.entry(provider(1)) == Entry(claimed_nano=TON, ceiling_nano=2 * TON)


@account_check
def unreserved_claims_never_touch_the_reserves_of_others(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code, bond=0)
    world.claim(provider(1), 0, 2 * TON)
    world.claim(provider(2), EVERYTHING)
    assert world.state.reserved_nano == 2 * TON
    assert world.claim(provider(1), 2 * TON).is_done
    assert world.entry(provider(1)).claimed_nano == 2 * TON


@account_check
def replaying_a_voucher_or_a_reservation_does_nothing(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    body = world.signed_claim(provider(1), TON, 2 * TON)
    assert world.send(provider(1), body).is_done
    state, before = world.state, world.balance
    refused_unchanged(world, world.send(provider(1), body).exit_code, 424)
    assert (world.state.entries, world.balance) == (state.entries, before)
    world.claim(provider(1), 2 * TON)
    refused_unchanged(world, world.send(provider(1), body).exit_code, 424)


@account_check
def an_older_voucher_is_refused_after_a_newer_one(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    world.claim(provider(1), TON)
    refused_unchanged(world, world.claim(provider(1), TON - 1).exit_code, 424)
    assert world.entry(provider(1)).claimed_nano == TON


@account_check
def a_stranger_may_submit_and_the_provider_is_paid(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    assert world.claim(provider(1), TON, source=STRANGER).is_done
    assert world.received(provider(1)) > TON
    assert world.received(STRANGER) == 0


@account_check
def a_voucher_is_good_for_nothing_else(tvm: Tvm, code: Code) -> None:
    """Another provider, network, account, epoch, tag, key, amount or ceiling: all the same refusal."""
    world = AccountWorld(tvm, code=code)
    p, q, epoch = provider(1), provider(2), world.state.epoch
    claims = {
        "provider": world.signed_claim(p, TON, sent_as=(q, TON, 0)),
        "amount": world.signed_claim(p, TON, sent_as=(p, TON + 1, 0)),
        "ceiling": world.signed_claim(p, TON, TON, sent_as=(p, TON, TON + 1)),
        "network": world.signed_claim(p, TON, network=Network.MAINNET),
        "testnet": world.signed_claim(p, TON, network=Network.TESTNET),
        "account": world.signed_claim(p, TON, account=provider(7)),
        "epoch": world.signed_claim(p, TON, epoch=epoch + 1),
        "earlier epoch": world.signed_claim(p, TON, epoch=epoch - 1),
        "tag": world.signed_claim(p, TON, tag=b"CSS1"),
        "key": world.signed_claim(p, TON, key=SigningKey(b"\x08" * 32)),
    }
    for name, body in claims.items():
        assert world.send(p, body).exit_code == 423, name
        assert world.is_bounced, name
    assert dict(world.state.entries) == {}


@account_check
def an_unopened_account_pays_nobody_not_even_with_a_forged_signature(tvm: Tvm, code: Code) -> None:
    """Its key is zero, a point of order four: for a quarter of all messages anybody can sign."""
    world = AccountWorld(tvm, code=code, is_open=False)
    world.send(STRANGER, None, 3 * TON, init=world.init, bounce=False)
    forged = contracts.claim_body(
        signed := voucher(world.contract, 0, provider(1), TON), forge_for_the_zero_key(signed)
    )
    refused_unchanged(world, world.send(provider(1), forged).exit_code, 422)


@account_check
def a_stranger_who_deploys_first_does_no_harm(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code, is_open=False)
    world.send(STRANGER, None, TON, init=world.init, bounce=False)
    assert world.state.epoch == 0
    assert owner_roll(world, bond=0) == 0
    assert world.claim(provider(1), TON // 2).is_done


@account_check
def claims_go_on_through_the_notice_until_the_roll(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    world.send(OWNER, contracts.notice_body())
    assert world.claim(provider(1), TON).is_done
    world.wait(NOTICE_S)
    assert world.claim(provider(1), TON + 1).is_done
    epoch = world.state.epoch
    late = world.signed_claim(provider(1), 2 * TON)
    assert owner_roll(world) == 0
    refused_unchanged(world, world.send(provider(1), late).exit_code, 423)
    assert world.state.epoch > epoch


@account_check
def old_vouchers_stay_void_after_the_account_is_wiped_and_deployed_anew(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    old = world.signed_claim(provider(1), TON)
    assert world.send(provider(1), old).is_done
    world.ledger.accounts.clear()
    world.wait(10)
    world.send(OWNER, contracts.roll_body(key=V_KEY, bond_nano=TON), 5 * TON, init=world.init)
    assert world.state.epoch == world.ledger.now_s
    refused_unchanged(world, world.send(provider(1), old).exit_code, 423)


@account_check
def two_claims_that_cannot_both_be_met_are_met_in_order(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    first, second = world.signed_claim(provider(1), 3 * TON), world.signed_claim(provider(2), 3 * TON)
    world.send(provider(1), first)
    world.send(provider(2), second)
    assert world.entry(provider(1)).claimed_nano == 3 * TON
    assert TON < world.entry(provider(2)).claimed_nano < 2 * TON


# --- the bond ----------------------------------------------------------------------------------------------


@account_check
def over_issuing_costs_the_whole_bond_and_pays_out_half(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    free, before = world.free, world.balance
    assert world.claim(provider(1), EVERYTHING).is_done
    assert world.burnt == TON // 2
    assert world.entry(provider(1)).claimed_nano == free + TON // 2
    assert world.balance == before - free - TON == RENT
    assert world.state.bond_nano == 0
    refused_unchanged(world, world.claim(provider(2), TON).exit_code, 424)


@account_check
def a_shortfall_is_met_from_the_bond_and_burns_as_much(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    world.claim(provider(1), 0, EVERYTHING)
    assert world.claim(provider(2), TON // 4).is_done
    assert world.entry(provider(2)) == Entry(claimed_nano=TON // 4, ceiling_nano=TON // 4)
    assert world.burnt == TON // 4
    assert world.state.bond_nano == TON // 2
    assert world.claim(provider(2), 3 * TON).is_done
    assert world.entry(provider(2)).claimed_nano == TON // 2
    assert world.state.bond_nano == 0


@account_check
def a_shortfall_of_ten_nanoton_burns_ten(tvm: Tvm, code: Code) -> None:
    """The burnt coins cannot pay their own way; the claimant does."""
    world = AccountWorld(tvm, code=code)
    assert world.claim(provider(1), world.free + 10).is_done
    assert world.burnt == 10
    assert world.state.bond_nano == TON - 20


@account_check
def an_odd_bond_leaves_one_nanoton(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code, bond=7)
    assert world.claim(provider(1), world.free + 100).is_done
    assert (world.state.bond_nano, world.burnt) == (1, 3)


@account_check
def a_later_deposit_pays_the_honest_rest(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    world.claim(provider(1), EVERYTHING)
    world.send(OWNER, None, TON, bounce=False)
    assert world.claim(provider(2), TON // 2).is_done
    assert world.entry(provider(2)).claimed_nano == TON // 2


@account_check
def a_reserve_survives_a_drain_by_another(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    world.claim(provider(1), 0, TON)
    world.claim(provider(3), EVERYTHING)
    assert world.state.reserved_nano == TON
    assert world.claim(provider(1), TON).is_done
    assert world.entry(provider(1)).claimed_nano == TON


# --- value, time, size -------------------------------------------------------------------------------------


@account_check
def a_message_too_poor_costs_the_client_nothing_but_what_is_paid(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    for value in (0, 10**5, 5 * 10**5, 540_000, 560_000, 580_000, 600_000, 700_000, MILLI, 3 * MILLI):
        before, claimed = world.balance, world.entry(provider(1)).claimed_nano
        done = world.claim(provider(1), claimed + TON // 10, value=value)
        paid = world.entry(provider(1)).claimed_nano - claimed
        assert before - world.balance <= paid, value
        assert paid == (TON // 10 if done.is_done else 0), value


@account_check
def a_claim_whose_payout_cannot_be_sent_is_undone(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    for value in range(460_000, 640_000, 20_000):
        claimed = world.entry(provider(1)).claimed_nano
        done = world.claim(provider(1), claimed + 1, value=value)
        is_sent = any(applied.account == provider(1) for applied in world.trace[1:])
        assert world.entry(provider(1)).claimed_nano - claimed == int(done.is_done and is_sent), value


@account_check
def a_payee_without_a_wallet_and_one_that_throws_are_paid(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    assert world.claim(provider(1), TON).is_done  # never deployed
    assert world.ledger.balance_nano(provider(1)) > TON
    thrower = AccountWorld(tvm, salt=9)  # refuses the op of `Paid`
    before = thrower.balance
    world.ledger.accounts[thrower.contract] = thrower.ledger.accounts[thrower.contract]
    assert world.claim(thrower.contract, TON, source=STRANGER).is_done
    assert world.trace[-1].exit_code == 0xFFFF
    assert world.ledger.balance_nano(thrower.contract) > before + TON - 10 * MILLI


@account_check
def a_bounced_message_is_only_a_deposit(tvm: Tvm, code: Code) -> None:
    from cocoon.adapters.ton.cells import internal_message

    world = AccountWorld(tvm, code=code)
    state = world.state
    body = begin_cell().store_uint(0xFFFFFFFF, 32).store_cell(contracts.notice_body()).end_cell()
    message = internal_message(address(OWNER), address(world.contract), TON, body)
    bits = message.begin_parse().load_bits(len(message.bits))
    bits[3] = 1  # int_msg_info$0 ihr_disabled bounce bounced
    bounced = begin_cell().store_bits(bits)
    for ref in message.refs:
        bounced.store_ref(ref)
    assert world.ledger.run(bounced.end_cell())[0].is_done
    assert (world.state.unlock_at_s, world.state.epoch) == (state.unlock_at_s, state.epoch)


@account_check
def twenty_years_of_rent_leave_a_reserve_short_by_the_rent_only(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    world.claim(provider(1), 0, 2 * TON)
    world.claim(provider(2), EVERYTHING)
    before = world.balance
    world.wait(20 * YEAR_S)
    assert world.claim(provider(1), 2 * TON).is_done
    assert 0 <= 2 * TON - world.entry(provider(1)).claimed_nano < 20 * 8 * MILLI
    assert before - world.balance <= 2 * TON + 20 * 8 * MILLI


@account_check
def a_reserve_that_rent_has_eaten_is_met_from_the_bond_and_not_reserved_twice(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code, bond=TON)
    world.claim(provider(1), 0, EVERYTHING)
    promised = world.entry(provider(1)).ceiling_nano
    world.wait(70 * YEAR_S)
    assert world.claim(provider(1), promised).is_done
    assert world.entry(provider(1)) == Entry(claimed_nano=promised, ceiling_nano=promised)
    assert world.burnt > 0
    assert world.state.reserved_nano == 0


@account_check
def rent_that_has_eaten_into_the_bond_leaves_a_smaller_one(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code, deposit=TON + 60 * MILLI)
    world.wait(70 * YEAR_S)
    assert world.claim(provider(1), 9 * TON).is_done
    assert 0 < world.burnt < TON // 2
    assert RENT <= world.balance < RENT + 10


@account_check
def thirty_years_and_an_over_issue_leave_nothing_stuck(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    world.wait(30 * YEAR_S)
    assert world.claim(provider(1), world.free + 2 * TON).is_done
    assert world.state.bond_nano == 0


@account_check
def a_hundred_dust_entries_keep_nobody_out(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code)
    world.fill(300, each=Entry(claimed_nano=1, ceiling_nano=1))
    assert world.claim(provider(9_999), TON).is_done
    assert world.trace[0].gas < 14_000
    assert len(world.state.entries) == 301


@account_check
def the_largest_numbers_are_no_trouble(tvm: Tvm, code: Code) -> None:
    world = AccountWorld(tvm, code=code, bond=0)
    free = world.free
    assert world.claim(provider(1), EVERYTHING, EVERYTHING).is_done
    assert world.entry(provider(1)) == Entry(claimed_nano=free, ceiling_nano=free)
    world.send(OWNER, None, TON, bounce=False)
    assert world.claim(provider(1), 0, EVERYTHING).is_done


def forge_for_the_zero_key(message: bytes) -> bytes:
    """A signature that verifies under the all-zero key, by trying nonces."""
    order = 2**252 + 27742317777372353535851937790883648493
    for nonce in range(1, 200):
        s = nonce.to_bytes(32, "little")
        point = crypto_scalarmult_ed25519_base_noclamp(s)
        if int.from_bytes(hashlib.sha512(point + bytes(32) + message).digest(), "little") % order % 4 == 0:
            return point + s
    raise AssertionError("a quarter of all nonces should do")


assert bytes(V.verify_key) == V_KEY
