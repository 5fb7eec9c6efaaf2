"""When a voucher goes on chain. Pure: one function that says at which moment, and why not earlier.

A claim costs its sender gas and a wallet message, so it is worth making seldom; a client that could take its money
away, or that has spent most of what secures its debt, is claimed from at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..types import NANO_PER_TON, SECOND_NS, Nano

CLAIM_COSTS_WORTH: Final = 100  # a claim of so many times its own cost is worth 1 % of itself
CLAIM_COSTS_RIDING: Final = 10  # and from here on it may ride along, or be made because the credit is used up
CLAIM_INTERVAL_NS: Final = 24 * 3_600 * SECOND_NS
CLAIMS_PER_MESSAGE_MAX: Final = 64  # W5 wallets take 255; each claim attaches 0.02 TON that is out for seconds
RETRY_NS: Final = 60 * SECOND_NS  # doubles with every attempt that did not show on chain
RETRY_MAX_NS: Final = 3_600 * SECOND_NS
RETRY_NOTICE_MAX_NS: Final = 300 * SECOND_NS  # the money is gone when the notice ends
CEILING_STEP_NANO: Final = NANO_PER_TON // 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimCase:
    """What the decision needs of one ledger, at a proven state."""

    claimable_nano: Nano  # voucher − claimed, as far as the account can pay it
    grantable_nano: Nano  # what the voucher's ceiling would add to the reserve
    needs_ceiling: bool  # half of the unsecured credit is used
    is_noticed: bool  # the owner may roll soon
    is_bond_falling: bool
    free_nano: Nano  # F
    exposure_nano: Nano  # U
    unclaimed_since_ns: int
    cost_nano: Nano  # of one claim, wallet included


def claim_at(case: ClaimCase, *, now: int) -> int | None:
    """When to submit, in ns: not later than `now` means at once; None means not for now."""
    if case.needs_ceiling and max(case.grantable_nano, case.claimable_nano) >= CLAIM_COSTS_RIDING * case.cost_nano:
        return now  # what it secures lets more leave; a client that reserves little makes us claim more often
    if case.claimable_nano <= case.cost_nano:
        return None  # dust: claiming it would lose money
    is_cornered = case.exposure_nano > 0 and case.free_nano < 2 * case.exposure_nano
    if case.is_noticed or case.is_bond_falling or is_cornered:
        return now
    if case.claimable_nano >= CLAIM_COSTS_WORTH * case.cost_nano:
        return now
    if case.claimable_nano >= 2 * case.cost_nano:
        return case.unclaimed_since_ns + CLAIM_INTERVAL_NS
    return None


def retry_ns(attempts: int, *, is_noticed: bool) -> int:
    """How long to wait for the chain to show attempt number `attempts` (1 is the first) before another one."""
    most = RETRY_NOTICE_MAX_NS if is_noticed else RETRY_MAX_NS
    return int(min(most, RETRY_NS << min(attempts - 1, 6)))


def ceiling_step_nano(cost_nano: Nano) -> Nano:
    """By how much a reservation goes beyond what is signed."""
    return max(CEILING_STEP_NANO, CLAIM_COSTS_WORTH * cost_nano)


def is_half_used(*, limit_nano: Nano, reserved_nano: Nano, unclaimed_nano: Nano) -> bool:
    """Whether it is time for a (higher) ceiling: half of the reserve and half of the unsecured credit are used.

    `unclaimed_nano` is everything due beyond what is claimed.
    """
    return 2 * unclaimed_nano > reserved_nano and 2 * unclaimed_nano - reserved_nano >= limit_nano
