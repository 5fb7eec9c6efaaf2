"""What one account owes one payout address: due, paid, unpaid tokens, exposure. The payee keeps one per account.

Two sums move: `due_nano` rises as chunks leave, `paid_nano` is the highest voucher on disk. A voucher pays for what
was served before it; it never buys ahead, so a restart, which forgets what was due, gives nothing away but the window.
All sessions and requests of an account share the one ledger (rule M3).
"""

from __future__ import annotations

from typing import Final

from ..ports import StoredVoucher
from ..types import PRICE_UNIT_TOKENS, SECOND_NS, Digest, Nano
from .account import Standing
from .claims import ClaimCase, is_half_used
from .effects import RequestKey
from .metering import Meter
from .refusals import Fault
from .window import CLEAN_TOKENS, Forgiveness, UnpaidTokens, window_tokens

CREDIT_AGE_MAX_NS: Final = 3_600 * SECOND_NS  # without the chain: one hour of what the last proof allows,
RESERVED_AGE_MAX_NS: Final = 11 * 3_600 * SECOND_NS  # then only what is reserved, and 13 h are left of any notice
_NEVER: Final = 1 << 62


class ServedRequest:
    """One paid request in progress."""

    __slots__ = ("blocked_since_ns", "meter")

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.blocked_since_ns: int | None = None


class Ledger:
    """See the file's head."""

    __slots__ = (
        "account", "archive", "ceiling_asked_nano", "ceiling_asked_ns", "claim_again_ns", "claim_attempts",
        "claimed_voucher", "clean_tokens", "due_nano", "forfeited_nano", "forgiven_nano", "forgiveness", "grant",
        "held", "is_bond_falling", "is_unreachable", "key_sessions", "next", "paid_nano", "prove_at_ns",
        "prove_not_before_ns", "requests", "retry_write_ns", "standing", "touched_ns", "unclaimed_since_ns",
        "unpaid", "wake_ns", "window_tokens_max", "writing",
    )  # fmt: skip

    def __init__(self, account: bytes, *, window_tokens_max: int, now: int) -> None:
        self.account = account
        self.window_tokens_max = window_tokens_max
        self.standing: Standing | None = None
        self.archive: dict[int, StoredVoucher] = {}  # vouchers of epochs that are not the proven one
        self.held: StoredVoucher | None = None  # the highest on disk, this epoch
        self.writing: StoredVoucher | None = None  # on its way to disk
        self.next: StoredVoucher | None = None  # the highest that came meanwhile
        self.retry_write_ns: int | None = None
        self.key_sessions: set[Digest] = set()  # sessions that have proven V
        self.requests: dict[RequestKey, ServedRequest] = {}
        self.due_nano: Nano = 0
        self.paid_nano: Nano = 0
        self.forgiven_nano: Nano = 0  # written off, part of due
        self.forfeited_nano: Nano = 0  # prompts served for requests that ended before they vested
        self.clean_tokens = 0
        self.unpaid = UnpaidTokens()
        self.grant: tuple[ServedRequest, int, int] | None = None  # allowed last: request, tokens, when
        self.forgiveness = Forgiveness(now)
        self.is_bond_falling = False
        self.is_unreachable = False
        self.claimed_voucher: StoredVoucher | None = None  # submitted, not seen on chain yet
        self.claim_attempts = 0
        self.claim_again_ns = 0
        self.unclaimed_since_ns = now
        self.ceiling_asked_ns = -_NEVER
        self.ceiling_asked_nano: Nano = 0  # what a refused prompt would need, this epoch
        self.prove_at_ns: int | None = None  # an extra proof that something asked for
        self.prove_not_before_ns = 0
        self.touched_ns = now
        self.wake_ns: int | None = None

    # --- sums --------------------------------------------------------------------------------------------

    @property
    def newest(self) -> StoredVoucher | None:
        """The highest verified voucher, on disk or not."""
        return self.next or self.writing or self.held

    @property
    def owed_nano(self) -> Nano:
        """Due and not paid."""
        return self.due_nano - self.forgiven_nano - self.paid_nano

    @property
    def window_tokens(self) -> int:
        """W."""
        return min(window_tokens(self.clean_tokens), self.window_tokens_max)

    @property
    def unvested_nano(self) -> Nano:
        """Admitted prompts that are not due yet, and those that never will be."""
        return self.forfeited_nano + sum(each.meter.unvested_nano for each in self.requests.values())

    def exposure_nano(self, due_nano: Nano | None = None) -> Nano:
        """U: everything due that is neither claimed nor reserved; negative while the reserve is larger."""
        due = self.due_nano if due_nano is None else due_nano
        secured = 0 if self.standing is None else max(self.standing.claimed_nano, self.standing.ceiling_nano)
        return due - self.forgiven_nano - secured

    def limits(self, now: int) -> tuple[Nano, Nano] | None:
        """(L, F): how far U may go, and what there is to pay it with; None when no credit is given at all.

        Without the chain the last proof holds for an hour; then only what is reserved, until too little is left of
        the notice that its owner could have given meanwhile.
        """
        standing = self.standing
        if standing is None or self.stop_reason(now) is not None:
            return None
        if standing.age_ns(now) > CREDIT_AGE_MAX_NS:
            return 0, 0
        return standing.limit_nano, standing.free_nano

    def fits(self, due_nano: Nano, *, now: int) -> bool:
        """Whether this account may owe us so much in all: U ≤ min(F, B′/(2K) + 5 %), or only the window is open."""
        limits = self.limits(now)
        if limits is None:
            return False
        exposure = self.exposure_nano(due_nano)
        is_all_signed_secured = self.exposure_nano(self.paid_nano + self.forgiven_nano) <= 0
        return exposure <= limits[1] and (exposure <= limits[0] or is_all_signed_secured)

    def tokens_allowed(self, request: ServedRequest, wanted: int, *, now: int) -> int:
        """How many more output tokens of this request may leave now."""
        most = min(wanted, self.window_tokens - self.unpaid.count)
        if most <= 0:
            return 0
        meter = request.meter

        def fits(tokens: int) -> bool:
            return self.fits(self.due_nano + meter.due_after(tokens) - meter.due_nano, now=now)

        if fits(most):
            return most
        low, high = 0, most - 1
        while low < high:  # at most 12 rounds: the window has at most 2¹² tokens
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low

    def takes_prompt(self, prompt_nano: Nano, output_price_nano: Nano, *, now: int) -> bool:
        """Whether another prompt of this price may be unpaid: within the window's worth, or within the credit."""
        limits = self.limits(now)
        if limits is None or not self.fits(self.due_nano, now=now):
            return False
        waiting = self.unvested_nano + prompt_nano
        exposure = self.exposure_nano() + waiting
        is_small = waiting * PRICE_UNIT_TOKENS <= self.window_tokens * output_price_nano
        return exposure <= limits[1] and (exposure <= limits[0] or is_small)

    # --- changes -----------------------------------------------------------------------------------------

    def release(self, tokens: int, risen_nano: Nano) -> None:
        """A chunk leaves."""
        self.grant = None
        self.due_nano += risen_nano
        if tokens or risen_nano:
            self.unpaid.release(tokens, due_nano=self.due_nano)

    def forfeit(self, key: RequestKey) -> None:
        """A request ends before its prompt vested: the rest counts against the credit until as much is paid."""
        request = self.requests.pop(key)
        self.forfeited_nano += request.meter.unvested_nano

    def pay(self, paid_nano: Nano) -> Nano:
        """The highest voucher on disk, or claim on chain, is now this; how much more than before."""
        amount = paid_nano - self.paid_nano
        if amount <= 0:
            return 0
        self.paid_nano = paid_nano
        self.forgiven_nano = max(0, min(self.forgiven_nano, self.due_nano - paid_nano))
        self.due_nano = max(self.due_nano, paid_nano)
        self.forfeited_nano = max(0, self.forfeited_nano - amount)
        covered = self.unpaid.cover(self.paid_nano + self.forgiven_nano)
        self.clean_tokens += covered
        self.forgiveness.paid(covered)
        return amount

    def forgive(self, now: int) -> None:
        """Write off what lost frames left unpaid, once nothing is in flight and it is in the way, within the allowance.

        In the way is more than half of the window. It costs half of the window, for it was not clean, unless what stays
        unpaid would fill half of what is left: a write-off must not lock an honest client out.
        """
        if self.requests or 2 * self.unpaid.count <= self.window_tokens:
            return
        self.forgiveness.passed(now)
        upto = self.unpaid.price_of_oldest(self.forgiveness.tokens)
        if upto is None:
            return
        self.forgiven_nano = max(self.forgiven_nano, upto - self.paid_nano)
        self.forgiveness.use(self.unpaid.cover(self.paid_nano + self.forgiven_nano))
        clean_tokens = max(0, self.clean_tokens // CLEAN_TOKENS - 1) * CLEAN_TOKENS
        if min(window_tokens(clean_tokens), self.window_tokens_max) >= 2 * self.unpaid.count:
            self.clean_tokens = clean_tokens

    def prove(self, standing: Standing) -> Nano:
        """A newer proof of the same epoch; how much more it shows as claimed."""
        before = self.standing
        self.grant = None
        self.standing = standing
        self.is_unreachable = False
        if before is None:
            self.prove_at_ns = None
            return 0
        if standing.bond_nano < before.bond_nano:
            self.is_bond_falling = True
        return max(0, standing.claimed_nano - before.claimed_nano)

    def roll(self, standing: Standing) -> Nano:
        """Another epoch is proven: what its ledger begins with, and what the old one's vouchers are worth no more."""
        lost = 0
        if self.standing is not None and self.held is not None:
            lost = max(0, self.held.cumulative_nano - self.standing.claimed_nano)
        if self.held is not None:
            self.archive[self.held.epoch] = self.held
        owed, tokens = max(0, self.owed_nano), self.unpaid.count
        self.held = self.archive.pop(standing.epoch, None)
        self.writing = self.next = self.claimed_voucher = self.retry_write_ns = None
        self.claim_attempts = self.claim_again_ns = 0
        self.is_bond_falling = False
        self.standing = None
        self.paid_nano = self.due_nano = 0
        self.forgiven_nano = self.ceiling_asked_nano = 0
        self.unpaid = UnpaidTokens()
        if self.held is not None:
            self.clean_tokens = max(self.clean_tokens, self.held.clean_tokens)
            self.paid_nano = self.due_nano = self.held.cumulative_nano
        if owed or tokens:
            self.due_nano += owed
            self.unpaid.release(tokens, due_nano=self.due_nano)
        return lost

    # --- claims ------------------------------------------------------------------------------------------

    @property
    def claimable_nano(self) -> Nano:
        """On disk, and not claimed at the last proof."""
        if self.held is None or self.standing is None:
            return 0
        return max(0, self.held.cumulative_nano - self.standing.claimed_nano)

    @property
    def is_half_used(self) -> bool:
        """Whether a higher ceiling is wanted."""
        standing = self.standing
        return standing is not None and is_half_used(
            limit_nano=standing.limit_nano,
            reserved_nano=standing.reserved_nano,
            unclaimed_nano=self.due_nano - self.forgiven_nano - standing.claimed_nano,
        )

    @property
    def has_asked_ceiling(self) -> bool:
        """Whether the client has signed the reservation that we asked for, and the chain does not have it yet."""
        standing, held = self.standing, self.held
        return (
            standing is not None
            and held is not None
            and standing.ceiling_nano < self.ceiling_asked_nano <= held.ceiling_nano
        )

    def claim_case(self, cost_nano: Nano) -> ClaimCase | None:
        """What `claim_at` decides by; None without a voucher or a proof."""
        if self.held is None or self.standing is None:
            return None
        standing = self.standing
        payable = standing.reserved_nano + standing.free_nano + standing.bond_nano // 2
        return ClaimCase(
            claimable_nano=min(self.claimable_nano, payable),
            grantable_nano=min(self.held.ceiling_nano - standing.ceiling_nano, standing.free_nano),
            needs_ceiling=self.is_half_used or self.has_asked_ceiling,
            is_noticed=standing.unlock_at_s != 0,
            is_bond_falling=self.is_bond_falling,
            free_nano=standing.free_nano,
            exposure_nano=max(0, self.exposure_nano()),
            unclaimed_since_ns=self.unclaimed_since_ns,
            cost_nano=cost_nano,
        )

    @property
    def is_forgettable(self) -> bool:
        """Whether nothing would be lost with it: no session, no voucher that is worth anything, no debt in the window.

        A ledger that is made anew begins with what the chain shows as claimed.
        """
        return (
            not self.requests
            and not self.key_sessions
            and self.writing is None
            and not self.archive
            and self.unpaid.count == 0
            and (self.held is None or (self.standing is not None and self.claimable_nano == 0))
        )

    def stop_reason(self, now: int) -> Fault | None:
        """Why this account gets no credit at all now."""
        if self.standing is None or self.standing.age_ns(now) > RESERVED_AGE_MAX_NS:
            return Fault.UNPROVEN
        return self.standing.fault(now)
