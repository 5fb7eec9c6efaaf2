"""The reference ledger against the real contracts on the real TVM: the same random stories, step by step.

Every message goes to both as itself: to the TVM as its cell, to the ledger as the value that this cell is read back
into. Exit codes, states, payouts and burns must agree exactly; fees are the chain's own, so balances are compared
within what a message may cost, and then made equal again. Skips, with the reason, where Node.js or its packages are
missing.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from nacl.signing import SigningKey

from cocoon.adapters.devnet.tvm import Tvm
from cocoon.ports.chain import Entry
from sim.chain import gas
from sim.chain import messages as m
from sim.chain.ledger import NOWHERE, Ledger, Outcome
from sim.chain.rules import Account, Stake
from tests.conftest import HowFar
from tests.contracts.world import (
    NETWORK,
    NOTICE_S,
    OWNER,
    STRANGER,
    TON,
    V_KEY,
    AccountWorld,
    O,
    StakeWorld,
    V,
    World,
    config,
    open_tvm,
    provider,
    stake_statement,
    voucher,
)

EXAMPLES_SHORT, EXAMPLES_LONG, STEPS = 25, 2_000, 25
GAS_MAX = 40_000_000  # no message costs 0.04 TON
AMOUNTS = st.sampled_from([0, 1, 7, 10**6, 10**8, 5 * 10**8, 10**9, 3 * 10**9, 10**12])
VALUE = TON // 20


@pytest.fixture(scope="module")
def tvm() -> Iterator[Tvm]:
    with open_tvm() as process:
        process.set_config(config())
        yield process


class Both:
    """One contract in both worlds."""

    def __init__(self, world: World, state: Account | Stake) -> None:
        self.world = world
        self.ledger = Ledger(network=NETWORK)
        self.me = world.contract
        self.ledger.deploy(self.me, state)
        for wallet in (OWNER, STRANGER, *(provider(index) for index in range(4))):
            self.ledger.give(wallet, 1_000_000 * TON)
        self.equalise()

    def equalise(self) -> None:
        """Fees and rent are the chain's own: the balance is taken over from it."""
        difference = self.world.balance - self.ledger.balance(self.me)
        self.ledger.give(self.me, difference)

    def send(self, source: bytes, message: m.Message, value: int = VALUE, *, bounce: bool = True) -> Outcome:
        """To both; exit codes, what arrived elsewhere and what burnt are compared here."""
        body = m.body_of(message)
        read = m.message_of(b"" if body is None else body.to_boc())
        assert read == message
        before = self.ledger.balance(self.me)
        outcome = self.ledger.send(source, self.me, value, read, now_s=self.world.ledger.now_s)
        done = self.world.send(source, body, value, bounce=bounce)
        assert outcome.exit_code == (done.exit_code or 0), (message, outcome, done.exit_code)
        if outcome.is_done:
            burnt = sum(payment.amount for payment in outcome.payments if payment.to == NOWHERE)
            assert self.world.received(NOWHERE) == burnt
            if outcome.effect.to:
                here = sum(payment.amount for payment in outcome.payments if payment.to == outcome.effect.to)
                assert abs(self.world.received(outcome.effect.to) - here) < GAS_MAX
            if outcome.effect.keeps is not None:
                assert self.world.balance == self.ledger.balance(self.me)
            assert abs(self.world.balance - self.ledger.balance(self.me)) < GAS_MAX
        else:
            assert self.world.balance == before == self.ledger.balance(self.me)
        self.equalise()
        self.ledger.check()
        return outcome


def account_machine(tvm: Tvm) -> type[RuleBasedStateMachine]:
    class AccountStory(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.world = AccountWorld(tvm, deposit=3 * TON, bond=TON // 2)
            real = self.world.state
            state = Account(
                owner=OWNER, salt=real.salt, key=real.voucher_key, epoch=real.epoch, bond=real.bond_nano
            )  # fmt: skip
            self.both = Both(self.world, state)

        @property
        def state(self) -> Account:
            state = self.both.ledger.contracts[self.both.me]
            assert isinstance(state, Account)
            return state

        @rule(
            index=st.integers(0, 3),
            more=AMOUNTS,
            above=AMOUNTS,
            is_lower=st.booleans(),
            source=st.sampled_from([STRANGER, provider(0)]),
            forged=st.sampled_from([None, None, None, None, "key", "epoch", "amount"]),
        )
        def claim(self, index: int, more: int, above: int, is_lower: bool, source: bytes, forged: str | None) -> None:
            payee = provider(index)
            line = self.state.entries.get(payee, Entry(claimed_nano=0, ceiling_nano=0))
            cumulative = max(0, line.claimed_nano - more) if is_lower else line.claimed_nano + more
            ceiling = max(line.ceiling_nano, cumulative) + above if above else 0
            epoch = self.state.epoch - (forged == "epoch")
            key = SigningKey(b"\x55" * 32) if forged == "key" else V
            signature = key.sign(voucher(self.both.me, epoch, payee, cumulative, ceiling)).signature
            self.both.send(source, m.Claim(payee, cumulative + (forged == "amount"), ceiling, signature))

        @rule(amount=st.sampled_from([10**6, 10**8, TON]))
        def deposit(self, amount: int) -> None:
            self.both.send(STRANGER, m.PLAIN, amount, bounce=False)

        @rule(value=st.sampled_from([10**6, TON // 10]), source=st.sampled_from([OWNER, STRANGER]))
        def add_bond(self, value: int, source: bytes) -> None:
            self.both.send(source, m.AddBond(), value)

        @rule(cancel=st.booleans(), source=st.sampled_from([OWNER, OWNER, STRANGER]))
        def notice(self, cancel: bool, source: bytes) -> None:
            self.both.send(source, m.Notice(cancel))

        @rule(seconds=st.sampled_from([1, 3_600, NOTICE_S - 1, NOTICE_S]))
        def wait(self, seconds: int) -> None:
            self.world.wait(seconds)
            self.world.send(STRANGER, None, 10**6, bounce=False)  # rent is taken here, not from what is compared next
            self.both.equalise()

        @rule(
            bond=st.sampled_from([0, TON // 4, 10 * TON]),
            out=st.sampled_from([0, 10**8, 2**90]),
            key=st.sampled_from([V_KEY, V_KEY, bytes(32)]),
            source=st.sampled_from([OWNER, OWNER, STRANGER]),
        )
        def roll(self, bond: int, out: int, key: bytes, source: bytes) -> None:
            self.both.send(source, m.Roll(key, bond, out))

        @rule(op=st.sampled_from([7, 0x57A4E001]))
        def unknown(self, op: int) -> None:
            body = m.Unknown(op)
            assert self.world.send(STRANGER, m.body_of(body)).exit_code == 0xFFFF
            outcome = self.both.ledger.send(STRANGER, self.both.me, VALUE, body, now_s=self.world.ledger.now_s)
            assert outcome.exit_code == 0xFFFF

        @invariant()
        def both_hold_the_same_state(self) -> None:
            real, state = self.world.state, self.state
            mine = state.proven(self.both.me, balance=real.balance_nano, at_s=real.at_s)
            assert mine == real

    return AccountStory


def stake_machine(tvm: Tvm) -> type[RuleBasedStateMachine]:
    keys = [O, *(SigningKey(bytes([40 + index]) * 32) for index in range(3))]

    class StakeStory(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.world = StakeWorld(tvm, is_open=False)
            self.world.send(OWNER, None, TON // 10, init=self.world.init, bounce=False)
            self.both = Both(self.world, Stake(owner=OWNER, unbond_delay_s=StakeWorld.DELAY_S))
            self.known: dict[int, SigningKey] = {}

        @property
        def state(self) -> Stake:
            state = self.both.ledger.contracts[self.both.me]
            assert isinstance(state, Stake)
            return state

        @rule(index=st.integers(0, 3), by=st.integers(0, 4), source=st.sampled_from([OWNER, OWNER, OWNER, STRANGER]))
        def set_key(self, index: int, by: int, source: bytes) -> None:
            key = keys[index]
            public = bytes(key.verify_key)
            signer = keys[by] if by < 4 else key
            signer = key if by != 0 else signer
            proof = signer.sign(b"CSP1" + NETWORK.wire + self.both.me + public).signature
            if self.both.send(source, m.SetKey(public, proof), TON // 10).is_done:
                self.known[self.world.ledger.now_s] = key

        @rule(value=st.sampled_from([10**6, TON // 10, 3 * TON]))
        def deposit(self, value: int) -> None:
            self.both.send(STRANGER, m.Deposit(), value)

        @rule(source=st.sampled_from([OWNER, STRANGER]))
        def unbond(self, source: bytes) -> None:
            self.both.send(source, m.RequestUnbond())

        @rule(source=st.sampled_from([OWNER, STRANGER]))
        def withdraw(self, source: bytes) -> None:
            self.both.send(source, m.Withdraw())

        @rule(seconds=st.sampled_from([1, 86_400, StakeWorld.DELAY_S]))
        def wait(self, seconds: int) -> None:
            self.world.wait(seconds)
            self.world.send(STRANGER, None, 10**6, bounce=False)
            self.both.equalise()

        @precondition(lambda self: self.known)
        @rule(data=st.data(), is_same=st.booleans(), is_forged=st.booleans())
        def slash(self, data: st.DataObject, is_same: bool, is_forged: bool) -> None:
            epoch = data.draw(st.sampled_from(sorted(self.known)))
            slot = b"\x05" * 32
            signed = []
            for digest in (b"\x01" * 32, b"\x01" * 32 if is_same else b"\x02" * 32):
                statement = stake_statement(NETWORK, self.both.me, epoch, slot, digest)
                key = SigningKey(b"\x66" * 32) if is_forged else self.known[epoch]
                signed.append((digest, key.sign(statement).signature))
            self.both.send(STRANGER, m.Slash(epoch, slot, signed[0], signed[1]), TON // 10)

        @invariant()
        def both_hold_the_same_state(self) -> None:
            real, state = self.world.state, self.state
            mine = state.proven(self.both.me, balance=real.balance_nano, at_s=real.at_s)
            assert mine == real

    return StakeStory


def run(machine: type[RuleBasedStateMachine], examples: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_reference_account_does_what_the_contract_does(tvm: Tvm, how_far: HowFar) -> None:
    run(account_machine(tvm), EXAMPLES_SHORT)
    how_far("reference account against the contract", EXAMPLES_SHORT, EXAMPLES_LONG, "stories of 25 steps")


def test_the_reference_stake_does_what_the_contract_does(tvm: Tvm, how_far: HowFar) -> None:
    run(stake_machine(tvm), EXAMPLES_SHORT)
    how_far("reference stake against the contract", EXAMPLES_SHORT, EXAMPLES_LONG, "stories of 25 steps")


@pytest.mark.long
@pytest.mark.parametrize("make", [account_machine, stake_machine])
def test_the_reference_ledger_does_what_the_contracts_do_over_many_stories(tvm: Tvm, make: object) -> None:
    run(make(tvm), EXAMPLES_LONG)  # type: ignore[operator]


def test_what_a_contract_keeps_back_for_gas_is_the_chains_own_price(tvm: Tvm) -> None:
    world = AccountWorld(tvm)
    before = world.state.bond_nano
    world.send(OWNER, m.body_of(m.AddBond()), TON // 10)
    assert world.state.bond_nano - before == TON // 10 - gas.Fees().kept_back_nano()
