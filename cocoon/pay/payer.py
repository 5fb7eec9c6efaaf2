"""The client's side of money: one per spending account, over all providers, sessions and requests. Without I/O.

It counts what every attempt owes by our own count, signs one cumulative voucher per payout address, and never signs
more than the account can pay, the spending cap allows, or a request's budget has. A voucher is sent only once it is on
disk. See the README for who calls what, and when.

What it does not do: choose providers, hold keys or coins, send transactions (opening, depositing and rolling an
account are the wallet's), verify receipts (`cocoon.serve` does).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..errors import Blame, LocalProtocolError, PaymentError, SpendCapReached
from ..ports import PaymentRecord, StoredVoucher, VoucherSide
from ..ports.chain import SpendingAccount
from ..types import MILLISECOND_NS, NANO_PER_TON, SECOND_NS, Nano, Network, format_ton
from .account import RENT_NANO, AccountRules, check_proof, standing_of
from .budget import Attempt, AttemptTerms, Budget
from .claims import is_half_used
from .effects import Effect, Effects, Emit, EpochRolled, FundsShort, Persist, Prove, Send
from .refusals import Fault, PaymentRefused
from .voucher import Sign, SignedVoucher, Voucher, sign_voucher
from .window import window_tokens

PAYOUTS_MAX: Final = 512  # providers refuse accounts with more entries
BUDGETS_MAX: Final = 4_096  # requests at once
ROLL_ENTRIES: Final = 64  # from here on claims become noticeably dearer: roll when convenient
PAY_IDLE_NS: Final = 250 * MILLISECOND_NS  # after such a pause in the output, what is owed is paid, however little
WRITE_RETRY_NS: Final = SECOND_NS
PROVE_INTERVAL_NS: Final = 300 * SECOND_NS
PROVE_RETRY_NS: Final = 30 * SECOND_NS


@dataclass(frozen=True, slots=True, kw_only=True)
class PayerTerms:
    """What the user decides."""

    spend_max_nano: Nano  # signed in one epoch, over all providers
    reserve_max_nano: Nano = NANO_PER_TON  # held in ceilings at once, beyond what is signed
    reserve_step_nano: Nano = NANO_PER_TON // 5  # for one provider; it asks for 0.1 TON or a hundred claims


class PayoutLedger:
    """What one payout address got and is owed, this epoch."""

    __slots__ = (
        "ceiling_nano",
        "clean_tokens",
        "cumulative_nano",
        "is_short",
        "obliged_nano",
        "owed_at_ns",
        "owed_nano",
        "owed_tokens",
        "payout",
        "retry_write_ns",
        "sent",
        "terms",
        "wanted_ceiling_nano",
        "writing",
    )  # fmt: skip

    def __init__(self, payout: bytes) -> None:
        self.payout = payout
        self.cumulative_nano: Nano = 0  # signed; on disk or on its way
        self.ceiling_nano: Nano = 0
        self.obliged_nano: Nano = 0  # what the account must be able to pay it, beyond what it has claimed
        self.owed_nano: Nano = 0  # counted, not signed
        self.owed_tokens = 0
        self.owed_at_ns: int | None = None  # when it last grew; None also while it cannot be paid
        self.is_short = False  # the account does not cover what is owed
        self.wanted_ceiling_nano: Nano = 0
        self.clean_tokens = 0
        self.sent: SignedVoucher | None = None  # the newest on disk
        self.writing: StoredVoucher | None = None
        self.retry_write_ns: int | None = None
        self.terms: AttemptTerms | None = None  # of the latest attempt


class Payer:
    """See the file's head. Before making one, `store.hold(signer_id(network, account))`."""

    def __init__(
        self,
        *,
        network: Network,
        account: bytes,
        key: bytes,
        sign: Sign,
        rules: AccountRules,
        terms: PayerTerms,
        restored: tuple[StoredVoucher, ...] = (),
        now: int,
    ) -> None:
        self._network = network
        self._account = account
        self._key = key
        self._sign = sign
        self._rules = rules
        self._terms = terms
        self._state: SpendingAccount | None = None
        self._epoch = max((record.epoch for record in restored), default=0)
        self._ledgers: dict[bytes, PayoutLedger] = {}
        self._budgets: set[Budget] = set()
        self._obliged_nano: Nano = 0
        self._must_roll = False
        self._prove_ns = now
        for record in restored:
            if record.epoch == self._epoch:
                ledger = self._ledger(record.provider)
                ledger.cumulative_nano = record.cumulative_nano
                ledger.ceiling_nano = record.ceiling_nano
                ledger.clean_tokens = record.clean_tokens
                ledger.sent = self._signed(record)
                self._oblige(ledger)

    # --- what the driver asks ----------------------------------------------------------------------------

    @property
    def signed_nano(self) -> Nano:
        """Promised in this epoch, over all providers, what is about to be signed included."""
        return sum(each.cumulative_nano + each.owed_nano for each in self._ledgers.values())

    @property
    def available_nano(self) -> Nano:
        """What a new request may cost at most: neither spent, nor reserved, nor set aside, within cap and account."""
        owed = sum(each.owed_nano for each in self._ledgers.values())
        return max(0, min(self._room() - owed, self._terms.spend_max_nano - self.signed_nano) - self.held_nano)

    @property
    def held_nano(self) -> Nano:
        """Set aside for requests that run now."""
        return sum(each.cost_max_nano - each.spent_nano for each in self._budgets)

    @property
    def is_paying(self) -> bool:
        """Whether a voucher is about to be signed, or on its way to disk."""
        return any(
            each.writing is not None or (each.owed_nano > 0 and each.owed_at_ns is not None and self._can_sign)
            for each in self._ledgers.values()
        )

    @property
    def is_roll_advised(self) -> bool:
        """Whether rolling the account would make everybody's claims cheaper."""
        return self._must_roll or (self._state is not None and len(self._state.entries) > ROLL_ENTRIES)

    def ledger(self, payout: bytes) -> PayoutLedger | None:
        """What this address got and is owed, to be shown; never to be changed."""
        return self._ledgers.get(payout)

    def open_voucher(self, payout: bytes) -> bytes:
        """What goes into `Open.voucher`: the newest voucher on disk, or nothing."""
        ledger = self._ledgers.get(payout)
        return b"" if ledger is None or ledger.sent is None else ledger.sent.encode()

    # --- the account -------------------------------------------------------------------------------------

    def account_proven(self, state: SpendingAccount, *, now: int) -> Effects:
        """The chain's newest word on our account.

        Raises `PaymentRefused` for a proof that is old, not of our account or not of our key; nothing changes then.
        """
        check_proof(state, self._rules, now=now)
        if state.account != self._account:
            raise PaymentRefused(Fault.NOT_THIS_ACCOUNT, "the proof is of another account")
        if state.epoch and state.voucher_key != self._key:
            raise PaymentRefused(Fault.NOT_THIS_ACCOUNT, "the account's voucher key is not ours")
        if state.epoch < self._epoch or (self._state is not None and state.at_s < self._state.at_s):
            raise PaymentRefused(Fault.STALE_PROOF, "we know a newer state of the account")
        out: list[Effect] = []
        if state.epoch > self._epoch:
            if self._epoch:
                out.append(Emit(event=EpochRolled(account=self._account, epoch=state.epoch, lost_nano=0)))
            self._epoch = state.epoch
            self._must_roll = False
            for ledger in self._ledgers.values():
                ledger.cumulative_nano = ledger.ceiling_nano = 0
                ledger.sent = ledger.writing = ledger.retry_write_ns = None
        self._state = state
        self._prove_ns = now + PROVE_INTERVAL_NS
        for payout, entry in state.entries.items():
            known = self._ledgers.get(payout)
            if entry.claimed_nano > (0 if known is None else known.cumulative_nano):
                self._must_roll = True  # somebody holds vouchers of ours that we do not know: a restored backup
        for ledger in self._ledgers.values():
            self._oblige(ledger)
            if ledger.owed_nano:
                ledger.owed_at_ns = now
        return tuple(out)

    def account_unreachable(self, *, now: int) -> Effects:
        """The chain did not answer. It is our own money: the last proof stays good, and nothing stops."""
        self._prove_ns = now + PROVE_RETRY_NS
        return ()

    # --- requests ----------------------------------------------------------------------------------------

    def begin(self, cost_max_nano: Nano) -> Budget:
        """Set aside what one request may cost, all its attempts together.

        Raises `SpendCapReached` or `PaymentError`, with what to do; then nothing has changed.
        """
        state = self._state
        if state is None:
            raise _short("the account has not been seen on chain yet", "Wait for the chain.", retryable=True)
        if state.epoch == 0:
            raise _short("the account is not open", "Open it: cocoon account open")
        if state.unlock_at_s:
            raise _short("the account is being closed", "Cancel the notice, or wait until it has rolled.")
        if self._must_roll:
            raise _short(
                "more was claimed from the account than this ledger has signed: it is an old copy",
                "Roll the account before paying from it again; over-issued vouchers burn the bond.",
            )
        if len(self._budgets) >= BUDGETS_MAX:
            raise _short("too many requests at once", "Wait for running requests.", retryable=True)
        self._must_have(cost_max_nano)
        budget = Budget(cost_max_nano)
        self._budgets.add(budget)
        return budget

    def extend(self, budget: Budget, cost_max_nano: Nano) -> None:
        """Set more aside for a request that runs, up to this in all. Raises as `begin`; then nothing has changed."""
        more_nano = cost_max_nano - budget.cost_max_nano
        if budget.is_settled or more_nano <= 0:
            raise LocalProtocolError("a budget can only grow, and only while its request runs")
        self._must_have(more_nano)
        budget.cost_max_nano = cost_max_nano

    def attempt(self, budget: Budget, terms: AttemptTerms, *, input_tokens_max: int, output_tokens_max: int) -> Attempt:
        """One more provider for this request. Raises `SpendCapReached` or `PaymentError`; then nothing has changed."""
        if terms.payout not in self._ledgers and len(self._ledgers) >= PAYOUTS_MAX:
            raise _short("the account has paid too many providers in this epoch", "Roll it.")
        attempt = budget.attempt(terms, input_tokens_max=input_tokens_max, output_tokens_max=output_tokens_max)
        self._ledger(terms.payout).terms = terms
        return attempt

    def received(
        self, attempt: Attempt, *, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0, now: int
    ) -> Effects:
        """Genuine output came; the counts are cumulative. After `ended` or `close` it changes nothing."""
        if not attempt.is_open:
            return ()
        added, risen = attempt.count(
            prompt_tokens=prompt_tokens, cached_tokens=cached_tokens, completion_tokens=completion_tokens
        )
        return self._owe(attempt, added, risen, now, at_once=False)

    def receipt(self, attempt: Attempt, *, now: int) -> Effects:
        """A receipt that agrees with our counts came: pay what is owed (a voucher per receipt step)."""
        return self._owe(attempt, 0, 0, now, at_once=True)

    def ended(self, attempt: Attempt, *, payable_nano: Nano, now: int) -> Effects:
        """Sealed end and final receipt are here; `payable_nano` is the smaller of receipt and own count (M4)."""
        if not attempt.is_open:
            return ()
        return self._owe(attempt, 0, attempt.end(payable_nano), now, at_once=True)

    def close(self, attempt: Attempt, *, now: int) -> Effects:
        """It failed, or it is a hedge's loser and `Cancel` leaves now: what was received so far is paid, no more."""
        attempt.is_open = False
        return self._owe(attempt, 0, 0, now, at_once=True)

    def settle(self, budget: Budget, *, now: int) -> Effects:
        """The request is over; open attempts are closed, and what it did not cost is free again."""
        out: list[Effect] = []
        for attempt in budget.attempts:
            if attempt.is_open:
                out.extend(self.close(attempt, now=now))
        budget.is_settled = True
        self._budgets.discard(budget)
        return tuple(out)

    def ceiling_wanted(self, payout: bytes, ceiling_nano: Nano, *, now: int) -> Effects:
        """The provider asks for a reservation. Granted as far as the user's limits and the account allow."""
        ledger = self._ledgers.get(payout)
        if ledger is None or self._state is None:
            return ()
        ledger.wanted_ceiling_nano = max(ledger.wanted_ceiling_nano, ceiling_nano)
        return self._pay(ledger, now)

    # --- writing and time --------------------------------------------------------------------------------

    def persisted(self, records: tuple[PaymentRecord, ...], *, now: int) -> Effects:
        """These are on disk: now they may leave."""
        out: list[Effect] = []
        for record in records:
            ledger = self._ledgers.get(record.provider)
            if not isinstance(record, StoredVoucher) or ledger is None or ledger.writing != record:
                continue
            ledger.writing = None
            ledger.sent = self._signed(record)
            out.append(Send(payout=ledger.payout, voucher=ledger.sent))
            if self._is_due(ledger, now):
                out.extend(self._pay(ledger, now))
        return tuple(out)

    def persist_failed(self, records: tuple[PaymentRecord, ...], *, now: int) -> Effects:
        """They are not, and do not leave. The same bytes are tried again soon."""
        for record in records:
            ledger = self._ledgers.get(record.provider)
            if ledger is not None and ledger.writing == record:
                ledger.retry_write_ns = now + WRITE_RETRY_NS
        return ()

    def deadline(self) -> int | None:
        """When `on_time` has work, in ns."""
        moments = [self._prove_ns]
        for ledger in self._ledgers.values():
            if ledger.retry_write_ns is not None:
                moments.append(ledger.retry_write_ns)
            elif ledger.owed_at_ns is not None and ledger.writing is None and self._can_sign:
                moments.append(ledger.owed_at_ns + PAY_IDLE_NS)
        return min(moments)

    def on_time(self, *, now: int) -> Effects:
        """Do what is due: a voucher for what is owed, a write again, a proof of our own account."""
        out: list[Effect] = []
        for ledger in self._ledgers.values():
            if ledger.retry_write_ns is not None and ledger.retry_write_ns <= now and ledger.writing is not None:
                ledger.retry_write_ns = None
                out.append(Persist(records=(ledger.writing,)))
            elif self._is_due(ledger, now):
                out.extend(self._pay(ledger, now))
        if now >= self._prove_ns:
            self._prove_ns = now + PROVE_RETRY_NS
            out.append(Prove(account=self._account))
        return tuple(out)

    # --- helpers -----------------------------------------------------------------------------------------

    def _ledger(self, payout: bytes) -> PayoutLedger:
        ledger = self._ledgers.get(payout)
        if ledger is None:
            ledger = self._ledgers[payout] = PayoutLedger(payout)
        return ledger

    @property
    def _can_sign(self) -> bool:
        """Whether a voucher of ours would be worth anything, and hurt nobody."""
        return self._state is not None and self._epoch != 0 and not self._must_roll

    def _must_have(self, cost_nano: Nano) -> None:
        """Raise unless the cap and the account leave so much for a request."""
        if cost_nano <= self.available_nano:
            return
        if self._terms.spend_max_nano - self.signed_nano - self.held_nano < cost_nano:
            raise SpendCapReached(
                f"the spending cap of {format_ton(self._terms.spend_max_nano)} TON leaves no"
                f" {format_ton(cost_nano)} for this request",
                advice="Raise the cap, or allow this request less.",
            )
        raise _short(
            f"the account has {format_ton(self.available_nano)} TON to spend, and this request may cost"
            f" {format_ton(cost_nano)}",
            "Deposit more: cocoon account topup",
        )

    def _room(self) -> Nano:
        """What the account could still promise: not rent, not bond, not promised or reserved already."""
        if self._state is None:
            return 0
        rent_nano = RENT_NANO + self._rules.rent_30d_nano(len(self._state.entries))
        return max(0, self._state.balance_nano - rent_nano - self._state.bond_nano - self._obliged_nano)

    def _oblige(self, ledger: PayoutLedger) -> None:
        """Keep the sum of obligations in step with this ledger and the proven state."""
        entry = None if self._state is None else self._state.entries.get(ledger.payout)
        claimed, reserved = (0, 0) if entry is None else (entry.claimed_nano, entry.ceiling_nano)
        obliged = max(0, max(ledger.cumulative_nano, ledger.ceiling_nano, reserved) - claimed)
        self._obliged_nano += obliged - ledger.obliged_nano
        ledger.obliged_nano = obliged

    def _owe(self, attempt: Attempt, tokens: int, risen: Nano, now: int, *, at_once: bool) -> Effects:
        ledger = self._ledger(attempt.terms.payout)
        ledger.owed_nano += risen
        ledger.owed_tokens += tokens
        if risen:
            ledger.owed_at_ns = now
        return self._pay(ledger, now) if at_once or self._is_due(ledger, now) else ()

    def _is_due(self, ledger: PayoutLedger, now: int) -> bool:
        """Pay well before the provider's window closes; at the latest when the stream pauses."""
        terms = ledger.terms
        if not ledger.owed_nano or ledger.owed_at_ns is None or not self._can_sign:
            return False
        if now - ledger.owed_at_ns >= PAY_IDLE_NS or terms is None:
            return True
        window = min(window_tokens(ledger.clean_tokens), terms.unpaid_tokens_max)
        step = window // 4 if ledger.owed_nano >= terms.voucher_step_nano else window // 2
        return ledger.owed_tokens >= max(1, step)

    def _pay(self, ledger: PayoutLedger, now: int) -> Effects:
        """Sign what is owed, and a higher ceiling where one is wanted; one voucher at a time is on its way to disk."""
        if ledger.writing is not None or not self._can_sign:
            return ()
        covered = max(0, ledger.ceiling_nano - ledger.cumulative_nano)
        owed = ledger.owed_nano
        out: list[Effect] = []
        if owed > covered + self._room():
            if not ledger.is_short:
                out.append(Emit(event=FundsShort(payout=ledger.payout, owed_nano=owed)))
            owed = covered + self._room()
        ledger.is_short = owed < ledger.owed_nano
        cumulative = ledger.cumulative_nano + owed
        ceiling = max(ledger.ceiling_nano, self._next_ceiling(ledger, cumulative))
        ledger.owed_at_ns = None  # what is left waits for more output, or for a proof that shows more money
        if owed == 0 and ceiling == ledger.ceiling_nano:
            return tuple(out)
        ledger.owed_nano -= owed
        ledger.clean_tokens += ledger.owed_tokens
        ledger.owed_tokens = 0
        ledger.cumulative_nano, ledger.ceiling_nano = cumulative, ceiling
        ledger.wanted_ceiling_nano = 0
        self._oblige(ledger)
        signed = sign_voucher(
            Voucher(
                network=self._network,
                account=self._account,
                epoch=self._epoch,
                provider=ledger.payout,
                cumulative_nano=cumulative,
                ceiling_nano=ceiling,
            ),
            self._sign,
        )
        ledger.writing = StoredVoucher(
            side=VoucherSide.ISSUED,
            network=int(self._network),
            account=self._account,
            epoch=self._epoch,
            provider=ledger.payout,
            cumulative_nano=cumulative,
            ceiling_nano=ceiling,
            key=self._key,
            signature=signed.signature,
            clean_tokens=ledger.clean_tokens,
            at_ns=now,
        )
        out.append(Persist(records=(ledger.writing,)))
        return tuple(out)

    def _next_ceiling(self, ledger: PayoutLedger, cumulative: Nano) -> Nano:
        """A ceiling to sign now, or 0: when the provider asked, or will by the same sums as its own."""
        assert self._state is not None
        standing = standing_of(self._state, ledger.payout, self._rules)
        is_wanted = ledger.wanted_ceiling_nano > ledger.ceiling_nano or (
            ledger.ceiling_nano <= standing.ceiling_nano  # what was signed before is on chain
            and is_half_used(
                limit_nano=standing.limit_nano,
                reserved_nano=standing.reserved_nano,
                unclaimed_nano=cumulative - standing.claimed_nano,
            )
        )
        if not is_wanted:
            return 0
        held_elsewhere = sum(
            max(0, each.ceiling_nano - each.cumulative_nano) for each in self._ledgers.values() if each is not ledger
        )
        promised = max(cumulative, ledger.ceiling_nano)
        free = self._room() - (cumulative - ledger.cumulative_nano) - self._held_for_requests(ledger)
        step = min(
            self._terms.reserve_step_nano, self._terms.reserve_max_nano - held_elsewhere, promised - cumulative + free
        )
        wanted = ledger.wanted_ceiling_nano or cumulative + step
        granted = min(wanted, cumulative + max(0, step))
        return granted if granted > cumulative else 0

    def _held_for_requests(self, ledger: PayoutLedger) -> Nano:
        """Budgets and debts that a reservation must leave room for."""
        owed = sum(each.owed_nano for each in self._ledgers.values() if each is not ledger)
        return owed + self.held_nano

    def _signed(self, record: StoredVoucher) -> SignedVoucher:
        voucher = Voucher(
            network=self._network,
            account=record.account,
            epoch=record.epoch,
            provider=record.provider,
            cumulative_nano=record.cumulative_nano,
            ceiling_nano=record.ceiling_nano,
        )
        return SignedVoucher(voucher=voucher, signature=record.signature)


def _short(message: str, advice: str, *, retryable: bool = False) -> PaymentError:
    error = PaymentError(message, advice=advice, retryable=retryable)
    error.blame = Blame.LOCAL if retryable else Blame.USER
    return error
