"""What the stake promises, one sentence per check: rules, boundaries, attacks."""

from __future__ import annotations

from nacl.signing import SigningKey
from pytoniq_core import begin_cell

from cocoon.adapters.devnet.tvm import Tvm
from cocoon.adapters.ton import contracts
from cocoon.adapters.ton.cells import operation
from cocoon.adapters.ton.contracts import Code
from cocoon.types import Network
from tests.contracts.checks import Checks
from tests.contracts.world import (
    MILLI,
    NOWHERE,
    O_KEY,
    OWNER,
    RENT,
    STRANGER,
    TON,
    O,
    StakeWorld,
    provider,
)

stake_check = Checks()
A, B = b"\1" * 32, b"\2" * 32
YEAR_S = 365 * 86_400
NEXT = SigningKey(b"\x0a" * 32)


def refused(world: StakeWorld, exit_code: int | None, expected: int) -> None:
    """Refused with this code, and the coins are back at the sender."""
    assert exit_code == expected
    assert world.is_bounced


def unbond(world: StakeWorld, *, source: bytes = OWNER) -> int | None:
    return world.send(source, contracts.request_unbond_body()).exit_code


def withdraw(world: StakeWorld, *, source: bytes = OWNER) -> int | None:
    return world.send(source, contracts.withdraw_body()).exit_code


def deposit(world: StakeWorld, amount: int, *, source: bytes = OWNER) -> int | None:
    return world.send(source, contracts.deposit_body(), amount).exit_code


@stake_check
def a_first_key_and_a_deposit_make_a_stake(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    state = world.state
    assert state.epoch == world.ledger.now_s
    assert {epoch: key.key for epoch, key in state.keys.items()} == {state.epoch: O_KEY}
    assert 10 * TON - RENT - 10 * MILLI < state.staked_nano < 10 * TON - RENT
    assert world.balance >= state.staked_nano + RENT


@stake_check
def rent_and_comments_are_taken_and_unknown_ops_refused(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    before, state = world.balance, world.state
    assert world.send(STRANGER, None, TON).is_done
    assert world.send(STRANGER, begin_cell().store_uint(0, 32).store_bytes(b"rent").end_cell(), TON).is_done
    assert world.balance > before + 2 * TON - MILLI
    assert world.state.staked_nano == state.staked_nano
    for op in (7, 0x57A4E006, 0xACC00002):
        refused(world, world.send(STRANGER, operation(op).end_cell()).exit_code, 0xFFFF)
    refused(world, world.send(STRANGER, begin_cell().store_uint(0x57A4E005, 32).end_cell()).exit_code, 9)


@stake_check
def anybody_may_deposit_and_rent_is_kept_once(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    before = world.state.staked_nano
    assert deposit(world, TON, source=STRANGER) == 0
    assert TON - 10 * MILLI < world.state.staked_nano - before < TON
    refused(world, deposit(world, MILLI), 509)
    fresh = StakeWorld(tvm, code=code, is_open=False)
    fresh.send(OWNER, None, TON // 10, init=fresh.init, bounce=False)
    refused(fresh, deposit(fresh, RENT), 509)
    assert deposit(fresh, RENT + 20 * MILLI) == 0


@stake_check
def only_the_owner_sets_keys_unbonds_and_withdraws(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    world.wait(1)
    refused(world, world.set_key(NEXT, source=STRANGER).exit_code, 501)
    refused(world, unbond(world, source=STRANGER), 501)
    assert unbond(world) == 0
    world.wait(world.DELAY_S)
    refused(world, withdraw(world, source=STRANGER), 501)


@stake_check
def withdrawing_needs_a_request_and_the_whole_delay(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    refused(world, withdraw(world), 513)
    assert unbond(world) == 0
    assert world.state.unlock_at_s == world.ledger.now_s + world.DELAY_S
    world.wait(world.DELAY_S - 1)
    refused(world, withdraw(world), 503)
    world.wait(1)
    before = world.balance
    assert withdraw(world) == 0
    assert RENT - MILLI < world.balance <= RENT
    assert world.received(OWNER) > before - RENT - 10 * MILLI
    assert (world.stake_on_paper, world.state.unlock_at_s) == (0, 0)
    refused(world, withdraw(world), 513)


@stake_check
def unbonding_closes_deposits_keys_and_second_requests(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    assert unbond(world) == 0
    world.wait(1)
    refused(world, unbond(world), 502)
    refused(world, deposit(world, TON), 502)
    refused(world, world.set_key(NEXT).exit_code, 502)


@stake_check
def a_withdrawn_stake_can_be_bonded_again(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    unbond(world)
    world.wait(world.DELAY_S)
    withdraw(world)
    assert deposit(world, 2 * TON) == 0
    assert 2 * TON - RENT - 10 * MILLI < world.state.staked_nano < 2 * TON


# --- keys --------------------------------------------------------------------------------------------------


@stake_check
def a_key_needs_a_proof_of_possession_for_this_stake_and_network(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    world.wait(1)
    refused(world, world.set_key(NEXT, signed_by=O).exit_code, 504)
    refused(world, world.set_key(NEXT, network=Network.MAINNET).exit_code, 504)
    refused(world, world.set_key(NEXT, stake=provider(3)).exit_code, 504)
    zero = contracts.set_key_body(key=bytes(32), proof=bytes(64))
    refused(world, world.send(OWNER, zero).exit_code, 512)
    assert world.set_key(NEXT).is_done


@stake_check
def two_keys_in_one_second_are_refused(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    refused(world, world.set_key(NEXT).exit_code, 503)
    world.wait(1)
    assert world.set_key(NEXT).is_done
    assert world.state.epoch == world.ledger.now_s


@stake_check
def at_most_four_keys_and_a_retired_one_is_forgotten_after_the_delay(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    first = world.state.epoch
    for index in range(3):
        world.wait(1)
        assert world.set_key(SigningKey(bytes([30 + index]) * 32)).is_done
    retired = world.state.keys[first].retired_at_s
    assert retired == first + 1
    world.wait(1)
    refused(world, world.set_key(NEXT).exit_code, 510)
    world.ledger.now_s = retired + world.DELAY_S
    refused(world, world.set_key(NEXT).exit_code, 510)
    world.ledger.now_s += 1
    assert world.set_key(NEXT).is_done
    assert first not in world.state.keys
    assert len(world.state.keys) == 4
    assert max(world.state.keys) == world.state.epoch


# --- slashing ----------------------------------------------------------------------------------------------


@stake_check
def two_digests_for_one_slot_burn_half_and_pay_half(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    stake, before = world.state.staked_nano, world.balance
    assert world.slash(world.signed(A), world.signed(B)).is_done
    assert world.received(NOWHERE) == stake - stake // 2
    assert stake // 2 < world.received(STRANGER) < stake // 2 + TON // 10
    assert world.balance == before - stake


@stake_check
def after_a_slash_the_contract_is_as_deployed(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    unbond(world)
    assert world.slash(world.signed(A), world.signed(B)).is_done
    assert world.ledger.data(world.contract) == world.init.data


@stake_check
def a_slashed_owner_withdraws_nothing_of_what_burnt(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    world.slash(world.signed(A), world.signed(B))
    left = world.balance
    assert left < RENT + TON // 10 + 10 * MILLI  # rent, and what setting the key brought along
    unbond(world)
    world.wait(world.DELAY_S)
    withdraw(world)
    assert world.received(OWNER) < left - RENT + TON // 10  # with what came with the two messages


@stake_check
def a_proof_is_good_once_and_never_against_the_next_stake(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    epoch = world.state.epoch
    proof = (world.signed(A), world.signed(B))
    assert world.slash(*proof).is_done
    refused(world, world.slash(*proof, epoch=epoch).exit_code, 508)
    world.wait(1)
    world.set_key(NEXT)
    deposit(world, 5 * TON)
    refused(world, world.slash(*proof, epoch=epoch).exit_code, 505)
    refused(world, world.slash(*proof).exit_code, 504)


@stake_check
def unbonding_does_not_save_from_a_slash_until_the_withdrawal(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    unbond(world)
    world.wait(world.DELAY_S)
    stake = world.state.staked_nano
    assert world.slash(world.signed(A), world.signed(B)).is_done
    assert world.received(NOWHERE) == stake - stake // 2


@stake_check
def a_retired_key_still_slashes(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    old = world.state.epoch
    world.wait(1)
    world.set_key(NEXT)
    assert world.slash(world.signed(A, epoch=old), world.signed(B, epoch=old), epoch=old).is_done


@stake_check
def nothing_less_than_two_contradicting_statements_slashes(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    epoch = world.state.epoch
    slot = b"\x06" * 32
    cases = {
        "same digest": (world.signed(A), world.signed(A), 506),
        "foreign key": (world.signed(A, key=NEXT), world.signed(B, key=NEXT), 504),
        "second foreign": (world.signed(A), world.signed(B, key=NEXT), 504),
        "first foreign": (world.signed(A, key=NEXT), world.signed(B), 504),
        "two slots": (world.signed(A), world.signed(B, slot=slot), 504),
        "network": (world.signed(A, network=Network.MAINNET), world.signed(B, network=Network.MAINNET), 504),
        "stake": (world.signed(A, stake=provider(1)), world.signed(B, stake=provider(1)), 504),
        "epoch": (world.signed(A, epoch=epoch - 1), world.signed(B, epoch=epoch - 1), 504),
    }
    for name, (first, second, code_expected) in cases.items():
        assert world.slash(first, second).exit_code == code_expected, name
        assert world.is_bounced, name
    refused(world, world.slash(world.signed(A), world.signed(B), epoch=epoch + 1).exit_code, 505)
    assert world.state.staked_nano > 9 * TON


@stake_check
def nothing_staked_means_nothing_to_slash(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code, is_open=False)
    world.set_key(O, init=world.init)
    refused(world, world.slash(world.signed(A), world.signed(B)).exit_code, 508)


@stake_check
def a_poor_report_changes_nothing(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code)
    before = world.state.staked_nano
    done = world.slash(world.signed(A), world.signed(B), value=MILLI // 5)
    assert not done.is_done
    assert world.state.staked_nano == before


@stake_check
def ten_years_of_rent_leave_a_stake_that_can_be_slashed_and_withdrawn(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code, deposit=RENT + 20 * MILLI)
    world.wait(10 * YEAR_S)
    before = world.balance
    done = world.slash(world.signed(A), world.signed(B))
    assert done.is_done or done.exit_code == 508  # rent has taken it all
    assert world.balance <= before
    unbond(world)
    world.wait(world.DELAY_S)
    assert withdraw(world) == 0


@stake_check
def rent_that_has_eaten_into_the_stake_makes_it_smaller_not_unslashable(tvm: Tvm, code: Code) -> None:
    world = StakeWorld(tvm, code=code, is_open=False)
    world.set_key(O, init=world.init, value=6 * MILLI)
    assert deposit(world, TON) == 0
    promised = world.state.staked_nano
    world.wait(70 * YEAR_S)
    assert world.slash(world.signed(A), world.signed(B)).is_done
    assert 0 < world.received(NOWHERE) < promised - promised // 2
    assert world.balance == RENT
