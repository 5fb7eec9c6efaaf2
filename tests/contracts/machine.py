"""Random stories for the spending account, compared step by step with the Python model and the laws of money."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cocoon.adapters.devnet.tvm import Tvm
from cocoon.adapters.ton import contracts
from cocoon.adapters.ton.contracts import Code
from tests.contracts.world import NOTICE_S, OWNER, RENT, STRANGER, TON, V_KEY, AccountWorld, provider
from tests.fakes.ledger_model import Line, Model

PROVIDERS = 4
GAS_LEFT_MAX = 40_000_000  # what an owner's message of 0.05 TON may leave behind
AMOUNTS = st.sampled_from([0, 1, 7, 10, 10**6, 10**8, 5 * 10**8, 10**9, 3 * 10**9, 10**12])


def machine_for(tvm: Tvm, code: Code) -> type[RuleBasedStateMachine]:
    """A machine class over this TVM and this code."""

    class AccountMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.world = AccountWorld(tvm, code=code, deposit=3 * TON, bond=TON // 2)
            self.model = Model().roll(self.world.ledger.now_s, TON // 2)
            self.given = 3 * TON  # to whomever, from outside
            self.taken = self._fees()
            self.highest: dict[bytes, int] = {}

        def _fees(self) -> int:
            """What the network took in the last trace, and what its messages paid to travel."""
            return sum(
                applied.fees_nano + sum(message.info.fwd_fee for message in applied.parsed.out_msgs)
                for applied in self.world.trace
            )

        def _send(self, *args: object, **kwargs: object) -> object:
            done = self.world.send(*args, **kwargs)  # type: ignore[arg-type]
            self.taken += self._fees()
            return done

        @rule(
            index=st.integers(0, PROVIDERS - 1),
            more=AMOUNTS,
            above=AMOUNTS,
            is_lower=st.booleans(),
            by_stranger=st.booleans(),
        )
        def claim(self, index: int, more: int, above: int, is_lower: bool, by_stranger: bool) -> None:
            payee = provider(index)
            line = self.model.lines.get(payee, Line())
            cumulative = max(0, line.claimed - more) if is_lower else line.claimed + more
            ceiling = max(line.ceiling, cumulative) + above if above else 0
            before = self.world.balance
            expected = self.model.claim(before, payee, cumulative, ceiling)
            body = self.world.signed_claim(payee, cumulative, ceiling)
            done = self._send(STRANGER if by_stranger else payee, body)
            self.given += TON // 20
            if expected is None:
                assert done.exit_code == 424
                assert self.world.balance == before
                return
            self.model, paid, burnt = expected
            assert done.is_done
            assert self.world.balance == before - paid - burnt
            assert self.world.burnt == burnt
            assert paid <= self.world.received(payee) < paid + TON // 20
            assert self.model.lines[payee].claimed >= self.highest.get(payee, 0)
            self.highest[payee] = self.model.lines[payee].claimed

        @rule(index=st.integers(0, PROVIDERS - 1))
        def claim_what_is_reserved(self, index: int) -> None:
            """A reservation that was honoured is always payable, whatever else happened."""
            payee = provider(index)
            line = self.model.lines.get(payee, Line())
            if line.ceiling == line.claimed:
                return
            before = self.world.balance
            done = self._send(payee, self.world.signed_claim(payee, line.ceiling))
            self.given += TON // 20
            assert done.is_done
            assert self.world.balance == before - (line.ceiling - line.claimed)
            assert self.world.burnt == 0
            self.model = self.model.claim(before, payee, line.ceiling, 0)[0]  # type: ignore[index]
            self.highest[payee] = line.ceiling

        @rule(amount=st.sampled_from([10**6, 10**8, TON]))
        def deposit(self, amount: int) -> None:
            before = self.world.balance
            self._send(STRANGER, None, amount, bounce=False)
            self.given += amount
            assert before < self.world.balance <= before + amount

        @rule()
        def add_bond(self) -> None:
            before = self.world.state.bond_nano
            done = self._send(OWNER, contracts.add_bond_body(), TON // 10)
            self.given += TON // 10
            assert done.is_done
            added = self.world.state.bond_nano - before
            assert TON // 10 - 10**7 < added < TON // 10
            self.model = Model(self.model.epoch, self.model.unlock_at, self.model.bond + added, self.model.lines)

        @rule(cancel=st.booleans(), by_owner=st.booleans())
        def notice(self, cancel: bool, by_owner: bool) -> None:
            done = self._send(OWNER if by_owner else STRANGER, contracts.notice_body(cancel=cancel))
            self.given += TON // 20
            if not by_owner:
                assert done.exit_code == 421
                return
            self.model = self.model.notice(self.world.ledger.now_s, cancel=cancel)

        @rule(seconds=st.sampled_from([1, 3_600, NOTICE_S - 1, NOTICE_S]))
        def wait(self, seconds: int) -> None:
            self.world.wait(seconds)
            self._send(STRANGER, None, 10**6, bounce=False)  # rent is taken here, not from what is measured next
            self.given += 10**6

        @rule(bond=st.sampled_from([0, TON // 4]), out=st.sampled_from([0, 10**8, 2**90]), by_owner=st.booleans())
        def roll(self, bond: int, out: int, by_owner: bool) -> None:
            before, now = self.world.balance, self.world.ledger.now_s
            body = contracts.roll_body(key=V_KEY, bond_nano=bond, out_nano=out)
            done = self._send(OWNER if by_owner else STRANGER, body)
            self.given += TON // 20
            if not by_owner:
                assert done.exit_code == 421
            elif not self.model.may_roll(now):
                assert done.exit_code == 425
            elif before + TON // 20 < RENT + bond + GAS_LEFT_MAX:
                assert done.exit_code in (0, 426)
                if done.exit_code == 0:
                    self._rolled(now, bond)
            else:
                assert done.is_done
                self._rolled(now, bond)
                assert self.world.balance >= RENT + bond
                if out > before:
                    assert self.world.balance < RENT + bond + GAS_LEFT_MAX

        def _rolled(self, now: int, bond: int) -> None:
            self.model = self.model.roll(now, bond)
            self.highest = {}

        @invariant()
        def contract_and_model_agree(self) -> None:
            state = self.world.state
            lines = {payee: Line(entry.claimed_nano, entry.ceiling_nano) for payee, entry in state.entries.items()}
            assert lines == self.model.lines
            assert (state.epoch, state.unlock_at_s, state.reserved_nano) == (
                self.model.epoch,
                self.model.unlock_at,
                self.model.reserved,
            )
            assert state.bond_nano == self.model.bond

        @invariant()
        def sum_in_is_sum_out_and_fees(self) -> None:
            held = sum(self.world.ledger.balance_nano(account) for account in self.world.ledger.accounts)
            assert held + self.taken == self.given

    return AccountMachine
