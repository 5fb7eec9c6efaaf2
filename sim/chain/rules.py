"""The rules of the spending account and of the stake, in plain Python: the reference that the real contracts are
compared with on the real TVM (`tests/sim/test_sim_chain_contracts.py`).

    state, effect = account.apply(message, source=…, value=…, before=…, now_s=…, …)

Written from the specification pages (`contracts/*/README.md`), not from the Tolk. States are frozen, so a block can be
undone by putting the old one back. What a step does to coins is said in `Effect` and done by `ledger`; fees are
outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from cocoon.errors import BadSignature
from cocoon.pay.voucher import Voucher
from cocoon.ports.chain import Entry, OperatorKey, SpendingAccount, StakeState
from cocoon.types import NO_DIGEST, Network
from cocoon.wire.signing import stake_statement
from sim.chain import messages as m

RENT: Final = 50_000_000
NOTICE_S: Final = 86_400
KEYS_MAX: Final = 4
OK: Final = 0

Verify = Callable[[bytes, bytes, bytes], None]
"""(key, signature, message): raises `BadSignature`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a contract sees beside its own state. `before` is its balance without the message's value."""

    me: bytes
    network: Network
    source: bytes
    value: int
    before: int
    now_s: int
    kept_back: int  # 20,000 gas at the chain's prices
    verify: Verify


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a message did. With an exit code other than 0 nothing changed and the value goes back."""

    exit_code: int = OK
    paid: int = 0  # leaves to `to`, beside the rest of the message's value when `carries_rest`
    to: bytes = b""
    burnt: int = 0
    carries_rest: bool = False  # the payout takes what is left of the message's value with it
    keeps: int | None = None  # the balance afterwards, exactly; None: before + value − paid − burnt − fees


def refused(exit_code: int) -> Effect:
    """Nothing changed."""
    return Effect(exit_code=exit_code)


NO_ENTRY: Final = Entry(claimed_nano=0, ceiling_nano=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A spending account's data."""

    owner: bytes
    salt: int
    key: bytes = NO_DIGEST
    epoch: int = 0
    unlock_at: int = 0
    bond: int = 0
    reserved: int = 0
    entries: Mapping[bytes, Entry] = field(default_factory=dict)

    def apply(self, message: m.Message, at: Circumstances) -> tuple[Account, Effect]:
        """The state afterwards, and what happens to coins."""
        match message:
            case m.Plain():
                return self, Effect()
            case m.AddBond():
                added = at.value - at.kept_back
                return (replace(self, bond=self.bond + added), Effect()) if added > 0 else (self, refused(426))
            case m.Claim():
                return self._claim(message, at)
            case m.Notice(cancel):
                if at.source != self.owner:
                    return self, refused(421)
                return replace(self, unlock_at=0 if cancel else at.now_s + NOTICE_S), Effect()
            case m.Roll():
                return self._roll(message, at)
            case _:
                return self, refused(0xFFFF)

    def _claim(self, claim: m.Claim, at: Circumstances) -> tuple[Account, Effect]:
        if self.epoch == 0:
            return self, refused(422)
        voucher = Voucher(
            network=at.network,
            account=at.me,
            epoch=self.epoch,
            provider=claim.provider,
            cumulative_nano=claim.cumulative,
            ceiling_nano=claim.ceiling,
        )
        try:
            at.verify(self.key, claim.signature, voucher.encode())
        except BadSignature:
            return self, refused(423)
        line = self.entries.get(claim.provider, NO_ENTRY)
        bond = min(self.bond, max(0, at.before - RENT))
        funds = max(0, at.before - RENT - bond)
        free = max(0, funds - self.reserved)
        own = line.ceiling_nano - line.claimed_nano
        due = max(0, claim.cumulative - line.claimed_nano)
        from_own = min(due, own, funds)
        from_free = min(due - from_own, free)
        half = min(due - from_own - from_free, bond // 2)
        paid = from_own + from_free + half
        claimed = line.claimed_nano + paid
        kept = max(line.ceiling_nano, claimed)
        grant = min(max(0, claim.ceiling - kept), free - from_free)
        if paid + grant == 0:
            return self, refused(424)
        changed = replace(
            self,
            bond=bond - 2 * half,
            reserved=self.reserved + kept + grant - claimed - own,
            entries={**self.entries, claim.provider: Entry(claimed_nano=claimed, ceiling_nano=kept + grant)},
        )
        keeps = at.before - paid - half
        return changed, Effect(paid=paid, to=claim.provider, burnt=half, carries_rest=True, keeps=keeps)

    def _roll(self, roll: m.Roll, at: Circumstances) -> tuple[Account, Effect]:
        if at.source != self.owner:
            return self, refused(421)
        if self.epoch != 0 and (self.unlock_at == 0 or at.now_s < self.unlock_at):
            return self, refused(425)
        if roll.key == NO_DIGEST:
            return self, refused(427)
        room = at.before + at.value - RENT - at.kept_back - roll.bond
        if room < 0:
            return self, refused(426)
        rolled = Account(owner=self.owner, salt=self.salt, key=roll.key, epoch=at.now_s, bond=roll.bond)
        return rolled, Effect(paid=min(roll.out, room), to=self.owner)

    def proven(self, account: bytes, *, balance: int, at_s: int) -> SpendingAccount:
        """As the chain port shows it."""
        return SpendingAccount(
            account=account,
            owner=self.owner,
            owner_workchain=0,
            salt=self.salt,
            voucher_key=self.key,
            epoch=self.epoch,
            unlock_at_s=self.unlock_at,
            bond_nano=self.bond,
            reserved_nano=self.reserved,
            balance_nano=balance,
            entries=self.entries,
            at_s=at_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stake:
    """A stake's data."""

    owner: bytes
    unbond_delay_s: int
    stake: int = 0
    unlock_at: int = 0
    epoch: int = 0
    keys: Mapping[int, OperatorKey] = field(default_factory=dict)

    def apply(self, message: m.Message, at: Circumstances) -> tuple[Stake, Effect]:
        """The state afterwards, and what happens to coins."""
        match message:
            case m.Plain():
                return self, Effect()
            case m.Deposit():
                if self.unlock_at:
                    return self, refused(502)
                added = at.value - at.kept_back - (0 if self.stake else RENT)
                return (replace(self, stake=self.stake + added), Effect()) if added > 0 else (self, refused(509))
            case m.RequestUnbond():
                if at.source != self.owner:
                    return self, refused(501)
                if self.unlock_at:
                    return self, refused(502)
                return replace(self, unlock_at=at.now_s + self.unbond_delay_s), Effect()
            case m.Withdraw():
                return self._withdraw(at)
            case m.SetKey():
                return self._set_key(message, at)
            case m.Slash():
                return self._slash(message, at)
            case _:
                return self, refused(0xFFFF)

    def _withdraw(self, at: Circumstances) -> tuple[Stake, Effect]:
        if at.source != self.owner:
            return self, refused(501)
        if not self.unlock_at:
            return self, refused(513)
        if at.now_s < self.unlock_at:
            return self, refused(503)
        keeps = min(RENT, at.before + at.value)
        effect = Effect(paid=max(0, at.before - keeps), to=self.owner, carries_rest=True, keeps=keeps)
        return replace(self, stake=0, unlock_at=0), effect

    def _set_key(self, message: m.SetKey, at: Circumstances) -> tuple[Stake, Effect]:
        if at.source != self.owner:
            return self, refused(501)
        if self.unlock_at:
            return self, refused(502)
        if message.key == NO_DIGEST:
            return self, refused(512)
        if at.now_s <= self.epoch:
            return self, refused(503)
        try:
            at.verify(message.key, message.proof, b"CSP1" + at.network.wire + at.me + message.key)
        except BadSignature:
            return self, refused(504)
        keys = dict(self.keys)
        if self.epoch:
            keys[self.epoch] = replace(keys[self.epoch], retired_at_s=at.now_s)
        keys = {epoch: key for epoch, key in keys.items() if key.retired_at_s + self.unbond_delay_s >= at.now_s}
        if len(keys) >= KEYS_MAX:
            return self, refused(510)
        keys[at.now_s] = OperatorKey(key=message.key, retired_at_s=0)
        return replace(self, epoch=at.now_s, keys=keys), Effect()

    def _slash(self, message: m.Slash, at: Circumstances) -> tuple[Stake, Effect]:
        stake = min(self.stake, at.before - RENT)
        if stake <= 0:
            return self, refused(508)
        key = self.keys.get(message.epoch)
        if key is None:
            return self, refused(505)
        if message.first[0] == message.second[0]:
            return self, refused(506)
        try:
            for digest, signature in (message.first, message.second):
                statement = stake_statement(at.network, at.me, message.epoch, message.slot, digest)
                at.verify(key.key, signature, statement)
        except BadSignature:
            return self, refused(504)
        half = stake // 2
        new = Stake(owner=self.owner, unbond_delay_s=self.unbond_delay_s)
        effect = Effect(paid=half, to=at.source, burnt=stake - half, carries_rest=True, keeps=at.before - stake)
        return new, effect

    def proven(self, stake: bytes, *, balance: int, at_s: int) -> StakeState:
        """As the chain port shows it."""
        return StakeState(
            stake=stake,
            owner=self.owner,
            owner_workchain=0,
            unbond_delay_s=self.unbond_delay_s,
            staked_nano=max(0, min(self.stake, balance - RENT)),
            unlock_at_s=self.unlock_at,
            epoch=self.epoch,
            keys=self.keys,
            balance_nano=balance,
            at_s=at_s,
        )


Contract = Account | Stake
