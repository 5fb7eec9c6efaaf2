"""Each op × caller × state: the exit code, as a table. 0 is done; everything else leaves the state as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from nacl.signing import SigningKey
from pytoniq_core import Cell

from cocoon.adapters.devnet.tvm import Tvm
from cocoon.adapters.ton import contracts
from tests.contracts.world import (
    NOTICE_S,
    OWNER,
    STRANGER,
    TON,
    V_KEY,
    AccountWorld,
    O,
    StakeWorld,
    V,
    provider,
    voucher,
)

P = provider(1)
NEXT = SigningKey(b"\x0a" * 32)


# --- the spending account ----------------------------------------------------------------------------------


def unopened(tvm: Tvm) -> AccountWorld:
    world = AccountWorld(tvm, is_open=False)
    world.send(STRANGER, None, 5 * TON, init=world.init, bounce=False)
    return world


def opened(tvm: Tvm) -> AccountWorld:
    return AccountWorld(tvm)


def noticed(tvm: Tvm) -> AccountWorld:
    world = AccountWorld(tvm)
    world.send(OWNER, contracts.notice_body())
    world.wait(NOTICE_S - 1)
    return world


def due(tvm: Tvm) -> AccountWorld:
    world = noticed(tvm)
    world.wait(1)
    return world


def drained(tvm: Tvm) -> AccountWorld:
    world = AccountWorld(tvm)
    world.claim(provider(9), 2**64 - 1)
    return world


def claim_of(world: AccountWorld, cumulative: int, ceiling: int = 0) -> Cell:
    signed = voucher(world.contract, world.state.epoch, P, cumulative, ceiling)
    return contracts.claim_body(signed, V.sign(signed).signature)


ACCOUNT_OPS: dict[str, Callable[[AccountWorld], Cell | None]] = {
    "deposit": lambda _: None,
    "bond": lambda _: contracts.add_bond_body(),
    "claim": lambda world: claim_of(world, TON),
    "reserve": lambda world: claim_of(world, 0, TON),
    "nothing": lambda world: claim_of(world, 0),
    "notice": lambda _: contracts.notice_body(),
    "cancel": lambda _: contracts.notice_body(cancel=True),
    "roll": lambda _: contracts.roll_body(key=V_KEY, bond_nano=0, out_nano=contracts.ALL_NANO),
    "bad roll": lambda _: contracts.roll_body(key=bytes(32), bond_nano=0),
    "dear roll": lambda _: contracts.roll_body(key=V_KEY, bond_nano=1_000 * TON),
}
ACCOUNT_STATES = {"unopened": unopened, "opened": opened, "noticed": noticed, "due": due, "drained": drained}
#            state:       unopened opened noticed due drained
ACCOUNT_BY_ANYBODY = {
    "deposit":  (0,   0,   0,   0,   0),
    "bond":     (0,   0,   0,   0,   0),
    "claim":    (422, 0,   0,   0,   424),
    "reserve":  (422, 0,   0,   0,   424),
    "nothing":  (422, 424, 424, 424, 424),
}  # fmt: skip
ACCOUNT_BY_OWNER = {
    "notice":   (0,   0,   0,   0,   0),
    "cancel":   (0,   0,   0,   0,   0),
    "roll":     (0,   425, 425, 0,   425),
    "bad roll": (427, 425, 425, 427, 425),
    "dear roll": (426, 425, 425, 426, 425),
}  # fmt: skip
CALLERS = {"owner": OWNER, "provider": P, "stranger": STRANGER}


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("state", ACCOUNT_STATES)
def test_the_account_answers_every_op_of_every_caller_in_every_state(tvm: Tvm, state: str, caller: str) -> None:
    column = list(ACCOUNT_STATES).index(state)
    for op, body in ACCOUNT_OPS.items():
        world = ACCOUNT_STATES[state](tvm)
        if op in ACCOUNT_BY_ANYBODY:
            expected = ACCOUNT_BY_ANYBODY[op][column]
        else:
            expected = ACCOUNT_BY_OWNER[op][column] if caller == "owner" else 421
        data, before = world.ledger.data(world.contract), world.balance
        done = world.send(CALLERS[caller], body(world), TON // 20)
        assert (done.exit_code or 0) == expected, (op, state, caller)
        assert world.is_bounced == (expected != 0), (op, state, caller)
        if expected:
            assert world.ledger.data(world.contract) == data, (op, state, caller)
            assert before - 10**5 < world.balance <= before, (op, state, caller)


# --- the stake ---------------------------------------------------------------------------------------------


def keyless(tvm: Tvm) -> StakeWorld:
    world = StakeWorld(tvm, is_open=False)
    world.send(STRANGER, None, TON, init=world.init, bounce=False)
    return world


def bonded(tvm: Tvm) -> StakeWorld:
    world = StakeWorld(tvm)
    world.wait(1)
    return world


def unbonding(tvm: Tvm) -> StakeWorld:
    world = bonded(tvm)
    world.send(OWNER, contracts.request_unbond_body())
    world.wait(StakeWorld.DELAY_S - 1)
    return world


def unbonded(tvm: Tvm) -> StakeWorld:
    world = unbonding(tvm)
    world.wait(1)
    return world


def slashed(tvm: Tvm) -> StakeWorld:
    world = bonded(tvm)
    world.slash(world.signed(b"\1" * 32), world.signed(b"\2" * 32))
    world.wait(1)
    return world


def proof_of(world: StakeWorld, first: bytes, second: bytes) -> Cell:
    epoch = world.state.epoch
    return contracts.slash_body(epoch=epoch, slot=b"\x05" * 32, first=world.signed(first), second=world.signed(second))


def key_body(world: StakeWorld, signer: SigningKey) -> Cell:
    key = bytes(NEXT.verify_key)
    signed = contracts.possession_bytes(b"\xff\xff\xff\x27", world.contract, key)
    return contracts.set_key_body(key=key, proof=signer.sign(signed).signature)


STAKE_OPS: dict[str, Callable[[StakeWorld], Cell | None]] = {
    "rent": lambda _: None,
    "deposit": lambda _: contracts.deposit_body(),
    "slash": lambda world: proof_of(world, b"\1" * 32, b"\2" * 32),
    "agreeing": lambda world: proof_of(world, b"\1" * 32, b"\1" * 32),
    "key": lambda world: key_body(world, NEXT),
    "foreign key": lambda world: key_body(world, O),
    "unbond": lambda _: contracts.request_unbond_body(),
    "withdraw": lambda _: contracts.withdraw_body(),
}
STAKE_STATES = {"keyless": keyless, "bonded": bonded, "unbonding": unbonding, "unbonded": unbonded, "slashed": slashed}
#            state:       keyless bonded unbonding unbonded slashed
STAKE_BY_ANYBODY = {
    "rent":        (0,   0,   0,   0,   0),
    "deposit":     (0,   0,   502, 502, 0),
    "slash":       (508, 0,   0,   0,   508),
    "agreeing":    (508, 506, 506, 506, 508),
}  # fmt: skip
STAKE_BY_OWNER = {
    "key":         (0,   0,   502, 502, 0),
    "foreign key": (504, 504, 502, 502, 504),
    "unbond":      (0,   0,   502, 502, 0),
    "withdraw":    (513, 513, 503, 0,   513),
}  # fmt: skip


@pytest.mark.parametrize("caller", ["owner", "stranger"])
@pytest.mark.parametrize("state", STAKE_STATES)
def test_the_stake_answers_every_op_of_every_caller_in_every_state(tvm: Tvm, state: str, caller: str) -> None:
    column = list(STAKE_STATES).index(state)
    for op, body in STAKE_OPS.items():
        world = STAKE_STATES[state](tvm)
        if op in STAKE_BY_ANYBODY:
            expected = STAKE_BY_ANYBODY[op][column]
        else:
            expected = STAKE_BY_OWNER[op][column] if caller == "owner" else 501
        data, before = world.ledger.data(world.contract), world.balance
        done = world.send(CALLERS[caller], body(world), TON // 10)
        assert (done.exit_code or 0) == expected, (op, state, caller)
        assert world.is_bounced == (expected != 0), (op, state, caller)
        if expected:
            assert world.ledger.data(world.contract) == data, (op, state, caller)
            assert before - 10**5 < world.balance <= before, (op, state, caller)
