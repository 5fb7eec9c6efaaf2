"""Who holds how many coins: wallets, accounts, stakes. Every nanoTON that is given is held, burnt, or a fee.

    ledger.give(wallet, 10 * TON)
    outcome = ledger.send(wallet, account, value, Claim(…), now_s=…)

One message at a time, as a shard does it; a refused one changes nothing but the sender's fee. `undo` takes back what a
journal of changes holds, which is how `chain` takes blocks back. Wallets are balances: what a wallet contract does
is in the fee. Not here: time, blocks, losses (`chain`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cocoon.types import Network
from cocoon.wire.signing import verify as verify_signature
from sim.chain import messages as m
from sim.chain.gas import Fees
from sim.chain.rules import OK, Account, Circumstances, Contract, Effect, Stake, Verify

NOWHERE: Final = bytes(32)  # burnt coins
TOO_POOR: Final = -1  # as an exit code: the wallet did not hold value and fee; nothing was sent
NO_VALUE: Final = -14  # as the TVM says it: out of gas, because too little value came along


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """Coins that arrived somewhere by a contract's doing."""

    source: bytes
    to: bytes
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one message led to."""

    exit_code: int
    effect: Effect
    fee_nano: int
    payments: tuple[Payment, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether the contract took it."""
        return self.exit_code == OK


@dataclass(slots=True)
class Journal:
    """What changed: coins by how much, contracts by what they were before (None: they were not there)."""

    balances: list[tuple[bytes, int]] = field(default_factory=list)
    contracts: list[tuple[bytes, Contract | None]] = field(default_factory=list)
    totals: tuple[int, int] = (0, 0)  # burnt and fees, before


class Ledger:
    """All coins and contracts."""

    def __init__(
        self, *, network: Network = Network.DEVNET, fees: Fees | None = None, verify: Verify = verify_signature
    ) -> None:
        self.network = network
        self.fees = fees or Fees()
        self.balances: dict[bytes, int] = {}
        self.contracts: dict[bytes, Contract] = {}
        self.given = self.burnt = self.paid_fees = 0
        self._verify = verify
        self._journal = Journal()

    # --- looking -----------------------------------------------------------------------------------------

    def balance(self, account: bytes) -> int:
        """What it holds."""
        return self.balances.get(account, 0)

    def check(self) -> None:
        """Raise `AssertionError` unless every coin is somewhere."""
        held = sum(self.balances.values())
        assert held + self.burnt + self.paid_fees == self.given, (held, self.burnt, self.paid_fees, self.given)
        assert all(amount >= 0 for amount in self.balances.values())
        for contract in self.contracts.values():
            if isinstance(contract, Account):
                reserved = sum(line.ceiling_nano - line.claimed_nano for line in contract.entries.values())
                assert reserved == contract.reserved

    # --- changing ----------------------------------------------------------------------------------------

    def give(self, account: bytes, amount: int) -> None:
        """Coins from outside."""
        self.balances[account] = self.balance(account) + amount
        self.given += amount

    def deploy(self, address: bytes, contract: Contract) -> None:
        """As deployed: it must be new. A second deployment changes nothing, as on the chain."""
        if address not in self.contracts:
            self._put(address, contract)

    def transfer(self, source: bytes, to: bytes, amount: int, *, fee: int) -> bool:
        """Coins between wallets. False: too poor, and nothing changed."""
        if self.balance(source) < amount + fee:
            return False
        self._set(source, self.balance(source) - amount - fee)
        self._set(to, self.balance(to) + amount)
        self.paid_fees += fee
        return True

    def send(self, source: bytes, to: bytes, value: int, message: m.Message, *, now_s: int) -> Outcome:
        """One message from a wallet. To an address without a contract it is a transfer."""
        contract = self.contracts.get(to)
        if contract is None:
            fee = self.fees.step_nano("account: deposit")
            if not self.transfer(source, to, value, fee=fee):
                return Outcome(exit_code=TOO_POOR, effect=Effect(), fee_nano=0)
            return Outcome(exit_code=OK, effect=Effect(), fee_nano=fee)
        if self.balance(source) < value:
            return Outcome(exit_code=TOO_POOR, effect=Effect(), fee_nano=0)
        before = self.balance(to)
        at = Circumstances(
            me=to,
            network=self.network,
            source=source,
            value=value,
            before=before,
            now_s=now_s,
            kept_back=self.fees.kept_back_nano(),
            verify=self._verify,
        )
        if isinstance(contract, Account):
            changed: Contract
            changed, effect = contract.apply(message, at)
        else:
            changed, effect = contract.apply(message, at)
        fee = self._fee(contract, message, effect)
        if effect.exit_code != OK or value < fee:
            code = effect.exit_code if effect.exit_code != OK else NO_VALUE
            lost = min(value, self.fees.refusal_nano)  # it bounces, less the gas and the way back
            self._set(source, self.balance(source) - lost)
            self.paid_fees += lost
            return Outcome(exit_code=code, effect=Effect(exit_code=code), fee_nano=lost)
        self._put(to, changed)
        return self._move(source, to, value, before, effect, fee)

    def _move(self, source: bytes, to: bytes, value: int, before: int, effect: Effect, fee: int) -> Outcome:
        self._set(source, self.balance(source) - value)
        self.paid_fees += fee
        payments: list[Payment] = []
        rest = value - fee
        if effect.carries_rest:
            assert effect.keeps is not None
            out = max(0, before + rest - effect.burnt - effect.keeps)
        else:
            out = effect.paid
        keeps = before + rest - effect.burnt - out
        self._set(to, keeps)
        if effect.burnt:
            self.burnt += effect.burnt
            payments.append(Payment(source=to, to=NOWHERE, amount=effect.burnt))
        if out:
            self._set(effect.to, self.balance(effect.to) + out)
            payments.append(Payment(source=to, to=effect.to, amount=out))
        return Outcome(exit_code=OK, effect=effect, fee_nano=fee, payments=tuple(payments))

    def _fee(self, contract: Contract, message: m.Message, effect: Effect) -> int:
        step = self.fees.step_nano
        match message, contract:
            case m.Claim(provider=provider), Account(entries=entries):
                fee = self.fees.claim_nano(entries=len(entries), is_own=provider in entries)
                return fee + (self.fees.burn_nano if effect.burnt else 0)
            case m.AddBond(), _:
                return step("account: add bond")
            case m.Notice(), _:
                return step("account: notice")
            case m.Roll(), _:
                return step("account: withdraw all, 128 entries" if effect.paid else "account: open")
            case m.Deposit(), _:
                return step("stake: deposit")
            case m.RequestUnbond(), _:
                return step("stake: request unbond")
            case m.Withdraw(), _:
                return step("stake: withdraw")
            case m.SetKey(), Stake(epoch=epoch):
                return step("stake: rotate key" if epoch else "stake: set first key")
            case m.Slash(), _:
                return step("stake: slash")
            case _:
                return step("account: deposit")

    # --- taking back -------------------------------------------------------------------------------------

    def begin(self) -> Journal:
        """From here on changes are journalled anew; the journal so far is returned."""
        done = self._journal
        self._journal = Journal(totals=(self.burnt, self.paid_fees))
        return done

    def undo(self, journal: Journal) -> None:
        """Take back what this journal holds; journals are undone newest first. Coins from outside stay given."""
        for account, change in journal.balances:
            self.balances[account] -= change
        for address, contract in reversed(journal.contracts):
            if contract is None:
                self.contracts.pop(address, None)
            else:
                self.contracts[address] = contract
        self.burnt, self.paid_fees = journal.totals

    def _set(self, account: bytes, amount: int) -> None:
        self._journal.balances.append((account, amount - self.balance(account)))
        self.balances[account] = amount

    def _put(self, address: bytes, contract: Contract) -> None:
        self._journal.contracts.append((address, self.contracts.get(address)))
        self.contracts[address] = contract
