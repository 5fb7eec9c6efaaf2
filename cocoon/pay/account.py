"""A client's spending account as one provider sees it: is it acceptable, and how much of it is good for credit.

`Standing` is what remains of a proven state when all other providers' entries are summed away: 150 bytes instead of
up to 512 entries. The formulas are those of the account's specification (`contracts/account`). No I/O: the address
function and the rent estimate are passed in, and proving a state is the chain adapter's work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..ports.chain import SpendingAccount
from ..types import NANO_PER_TON, NO_DIGEST, SECOND_NS, Nano
from .refusals import Fault, PaymentRefused

RENT_NANO: Final = NANO_PER_TON // 20  # the contract keeps 0.05 TON for its storage
PROOF_AGE_MAX_NS: Final = 60 * SECOND_NS
CLOCK_SKEW_MAX_NS: Final = 60 * SECOND_NS  # a block from the future: one of the two clocks is wrong
NOTICE_MIN_NS: Final = 12 * 3_600 * SECOND_NS  # half of the contract's notice: time to claim
ENTRIES_MAX: Final = 512  # claims become dearer with each
SHARE: Final = 32  # K: a bond deters a client that cheats fewer than this many providers at once
EARNED_PERCENT: Final = 5  # of what an account has paid us on chain, it may owe us without security


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRules:
    """What a judge of accounts needs to know beside the state."""

    address_of: Callable[[int, bytes, int], bytes]
    """(owner's workchain, owner, salt) → the account id that our contract code and this initial data have."""

    rent_30d_nano: Callable[[int], Nano]
    """(entries) → thirty days of storage rent, rounded up."""


def rent_30d_bound_nano(entries: int) -> Nano:
    """Thirty days' rent at the highest storage prices known (December 2025): 0.6 mTON and 0.06 mTON per entry."""
    return 600_000 + 60_000 * entries


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """An account seen from one payout address, at one block."""

    account: bytes
    key: bytes  # V
    epoch: int
    unlock_at_s: int
    entries: int
    bond_nano: Nano  # B′: what is really there of the bond
    free_nano: Nano  # F: neither rent, nor bond, nor reserved for anybody
    claimed_nano: Nano  # ours, this epoch
    ceiling_nano: Nano  # ours
    at_s: int

    @property
    def reserved_nano(self) -> Nano:
        """G: ours, whatever others claim."""
        return self.ceiling_nano - self.claimed_nano

    @property
    def limit_nano(self) -> Nano:
        """The most that this account may owe beyond what is claimed and reserved: min(F, B′/(2K) + 5 % of claimed)."""
        return min(self.free_nano, self.bond_nano // (2 * SHARE) + self.claimed_nano * EARNED_PERCENT // 100)

    def age_ns(self, now: int) -> int:
        """How long ago the block was made."""
        return now - self.at_s * SECOND_NS

    def fault(self, now: int) -> Fault | None:
        """Why no credit is given on this account at all, or None."""
        if self.epoch == 0 or self.key == NO_DIGEST:
            return Fault.NOT_OPEN
        if self.unlock_at_s and self.unlock_at_s * SECOND_NS <= now + NOTICE_MIN_NS:
            return Fault.NOTICE
        if self.entries > ENTRIES_MAX:
            return Fault.TOO_MANY_ENTRIES
        return None


def standing_of(state: SpendingAccount, payout: bytes, rules: AccountRules) -> Standing:
    """The numbers of this state that concern `payout`. Judges nothing."""
    rent_nano = RENT_NANO + rules.rent_30d_nano(len(state.entries))
    usable = max(0, state.balance_nano - rent_nano)
    bond = min(state.bond_nano, usable)
    own = state.entries.get(payout)
    return Standing(
        account=state.account,
        key=state.voucher_key,
        epoch=state.epoch,
        unlock_at_s=state.unlock_at_s,
        entries=len(state.entries),
        bond_nano=bond,
        free_nano=max(0, usable - bond - state.reserved_nano),
        claimed_nano=0 if own is None else own.claimed_nano,
        ceiling_nano=0 if own is None else own.ceiling_nano,
        at_s=state.at_s,
    )


def check_proof(state: SpendingAccount, rules: AccountRules, *, now: int) -> None:
    """Raise `PaymentRefused` unless this state is recent, and its address follows from its own owner and salt.

    An invented ledger deploys fine under the right code; only the address shows that it began empty.
    """
    age_ns = now - state.at_s * SECOND_NS
    if not -CLOCK_SKEW_MAX_NS <= age_ns <= PROOF_AGE_MAX_NS:
        raise PaymentRefused(Fault.STALE_PROOF, f"the account's proof is {age_ns // SECOND_NS} s old")
    if rules.address_of(state.owner_workchain, state.owner, state.salt) != state.account:
        raise PaymentRefused(Fault.NOT_THIS_ACCOUNT, "the account's address does not follow from its state")
