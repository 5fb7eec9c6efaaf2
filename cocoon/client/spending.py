"""The client's money, driven: one `Payer` over all sessions, with the store and the chain behind it.

Requests ask it for a budget and for attempts within it (rule M2); links tell it what they received and carry its
vouchers. A voucher leaves only once it is on disk, on any link to that payout address.

Not here: what is owed when (`cocoon.pay`), the loop (`cocoon.paying`), choosing providers (`reply`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

import trio

from ..errors import Blame, LocalProtocolError, PaymentError, SpendCapReached
from ..market.offer import VerifiedOffer
from ..pay.budget import Attempt, AttemptTerms, Budget
from ..pay.effects import Effects, Emit, EpochRolled, FundsShort, Send
from ..pay.metering import most_nano
from ..pay.payer import Payer, PayerTerms
from ..pay.refusals import Fault, PaymentRefused
from ..pay.voucher import signer_id
from ..paying import PaymentDriver
from ..ports import Clock, Store, VoucherSide
from ..serve.receipts import cached_tokens_before_end
from ..types import SECOND_NS, Nano, Network, format_ton
from .settings import PaymentAccount

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # what the stubs of trio know that libp2p brings

log = logging.getLogger("cocoon.pay")

PROOF_PATIENCE_S: Final = 15.0  # the first request after the start waits so long for the chain
PAYING_POLL_S: Final = 0.05
PROOF_FRESH_NS: Final = 5 * SECOND_NS  # a younger proof is not asked for again: a deposit shows within a block or two


class VoucherCarrier(Protocol):
    """A link, as a voucher sees it."""

    def pay(self, voucher: bytes, signature: bytes) -> bool:
        """Send it; False when this link is over."""
        ...


class Spending:
    """One per spending account. `open` before `run`; requests come after."""

    def __init__(self, account: PaymentAccount, *, network_id: Network, store: Store, clock: Clock) -> None:
        self.account = account
        self._network_id = network_id
        self._store = store
        self._clock = clock
        self._payer: Payer | None = None
        self._driver: PaymentDriver | None = None
        self._links: dict[bytes, list[VoucherCarrier]] = {}
        self._over: set[Budget] = set()  # requests that are over but for the last word on an attempt
        self._proven_ns: int | None = None
        self._is_absent = False

    @property
    def payer(self) -> Payer:
        """The machine, to be looked at."""
        assert self._payer is not None, "open() comes first"
        return self._payer

    @property
    def _drive(self) -> PaymentDriver:
        assert self._driver is not None, "open() comes first"
        return self._driver

    async def open(self) -> None:
        """Become the one signer of this account. Raises `LocalProtocolError` when another client is."""
        account = self.account
        try:
            await self._store.hold(signer_id(self._network_id, account.account))
        except LocalProtocolError as error:
            raise LocalProtocolError(
                f"another client pays from account {account.account.hex()}: two signers would contradict each other",
                advice="Stop the other one, or give this one its own --home and its own account.",
            ) from error
        network = int(self._network_id)
        self._payer = Payer(
            network=self._network_id,
            account=account.account,
            key=account.voucher_key,
            sign=account.sign,
            rules=account.rules,
            terms=PayerTerms(spend_max_nano=account.spend_max_nano, reserve_max_nano=account.reserve_max_nano),
            restored=await self._store.vouchers(VoucherSide.ISSUED, network=network, party=account.account),
            now=self._clock.now(),
        )
        self._driver = PaymentDriver(
            self._payer,
            store=self._store,
            chain=account.chain,
            clock=self._clock,
            unreachable=lambda _: self.payer.account_unreachable(now=self._clock.now()),
            told=self._told,
        )

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep, prove, pay, until cancelled."""
        await self._drive.run(task_status)

    async def wait_sent(self) -> None:
        """Return once every voucher that is due is on disk and was given to its session. The caller bounds it."""
        await self._drive.wait_kept()
        while self.payer.is_paying:  # noqa: ASYNC110 - sums over ledgers
            await trio.sleep(PAYING_POLL_S)

    # --- requests ----------------------------------------------------------------------------------------

    async def begin(self) -> Budget:
        """A budget for one request; it grows with its attempts. Raises `PaymentError`, with what to do."""
        try:
            return self.payer.begin(0)
        except PaymentError:
            if not await self._look_again(PROOF_PATIENCE_S):
                raise
        return self.payer.begin(0)

    async def attempt(
        self,
        budget: Budget,
        offer: VerifiedOffer,
        *,
        cost_max_nano: Nano,
        input_tokens_max: int,
        output_tokens_max: int,
    ) -> Attempt:
        """One more provider for this request, whose attempts together may cost `cost_max_nano`.

        Raises `SpendCapReached` when its worst case does not fit, `PaymentError` when the account is too poor.
        """
        terms = AttemptTerms(
            payout=offer.offer.terms.payout,
            prices=offer.prices,
            unpaid_tokens_max=offer.offer.terms.unpaid_tokens_max,
            voucher_step_nano=offer.offer.terms.voucher_step_nano,
        )
        lacking_nano = (
            most_nano(offer.prices, input_tokens_max=input_tokens_max, output_tokens_max=output_tokens_max)
            - budget.left_nano
        )
        if lacking_nano > 0:
            wanted_nano = budget.cost_max_nano + lacking_nano
            if wanted_nano > cost_max_nano:
                raise SpendCapReached(
                    f"this request may cost {format_ton(cost_max_nano)} TON; with another attempt it could cost"
                    f" {format_ton(wanted_nano)}",
                    advice="Allow it more, or ask for a shorter answer.",
                )
            try:
                self.payer.extend(budget, wanted_nano)
            except SpendCapReached:
                raise
            except PaymentError:
                if not await self._look_again(PROOF_PATIENCE_S):
                    raise
                self.payer.extend(budget, wanted_nano)
        return self.payer.attempt(budget, terms, input_tokens_max=input_tokens_max, output_tokens_max=output_tokens_max)

    def received(self, attempt: Attempt, *, prompt_tokens: int, completion_tokens: int) -> None:
        """Genuine output came; the counts are cumulative."""
        effects = self.payer.received(
            attempt,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cached_tokens=cached_tokens_before_end(attempt.terms.prices, prompt_tokens),
            now=self._clock.now(),
        )
        if effects:
            self._drive.perform(effects)
        else:
            self._drive.touch()

    def receipt(self, attempt: Attempt) -> None:
        """A receipt that agrees with our counts came, before the end."""
        self._drive.perform(self.payer.receipt(attempt, now=self._clock.now()))

    def ended(self, attempt: Attempt, *, payable_nano: Nano) -> None:
        """Sealed end and final receipt are here."""
        self._did(attempt, self.payer.ended(attempt, payable_nano=payable_nano, now=self._clock.now()))

    def close(self, attempt: Attempt) -> None:
        """It failed, or was refused: what was received so far is paid, no more. Twice is harmless."""
        self._did(attempt, self.payer.close(attempt, now=self._clock.now()))

    def over(self, budget: Budget) -> None:
        """The request is over for its user. What an open attempt still brings to light is paid all the same."""
        self._over.add(budget)
        self._settle(budget)

    def ceiling_wanted(self, payout: bytes, ceiling_nano: Nano) -> None:
        """A provider asks for a reservation; granted as far as the user's limits allow."""
        self._drive.perform(self.payer.ceiling_wanted(payout, ceiling_nano, now=self._clock.now()))

    # --- links -------------------------------------------------------------------------------------------

    def joined(self, payout: bytes, link: VoucherCarrier) -> None:
        """Vouchers for this address may go here from now on."""
        links = self._links.setdefault(payout, [])
        if link not in links:
            links.append(link)

    def left(self, payout: bytes, link: VoucherCarrier) -> None:
        """That link is over."""
        links = self._links.get(payout, [])
        if link in links:
            links.remove(link)
        if not links:
            self._links.pop(payout, None)

    def open_voucher(self, payout: bytes) -> bytes:
        """What goes into an `Open`."""
        return self.payer.open_voucher(payout)

    # --- helpers -----------------------------------------------------------------------------------------

    def _did(self, attempt: Attempt, effects: Effects) -> None:
        self._drive.perform(effects)
        self._settle(attempt.budget)

    def _settle(self, budget: Budget) -> None:
        if budget in self._over and not any(attempt.is_open for attempt in budget.attempts):
            self._over.discard(budget)
            self._drive.perform(self.payer.settle(budget, now=self._clock.now()))

    async def _look_again(self, patience_s: float) -> bool:
        """See what the chain says now; False when that was done a moment ago."""
        now = self._clock.now()
        if self._proven_ns is not None and now - self._proven_ns < PROOF_FRESH_NS:
            return False
        with trio.move_on_after(patience_s):
            await self._drive.prove(self.account.account)
        self._proven_ns = self._clock.now()
        return True

    def _told(self, effect: Send | Emit) -> None:
        match effect:
            case Send(payout=payout, voucher=signed):
                encoded = signed.voucher.encode()
                for link in self._links.get(payout, ()):
                    if link.pay(encoded, signed.signature):
                        return
            case Emit(event=FundsShort() as event):
                log.warning("funds.short", extra={"payout": event.payout.hex(), "owed_nano": event.owed_nano})
            case Emit(event=EpochRolled() as event):
                log.info("account.rolled", extra={"epoch": event.epoch})
            case _:
                raise LocalProtocolError("an effect that a payer does not have")


_WORDS: Final = {
    Fault.NOT_THIS_ACCOUNT: "what the chain shows under this account's address is no account of ours",
    Fault.STALE_PROOF: "its view of the chain is too old",
    Fault.NOT_OPEN: "the account is not open",
    Fault.NOTICE: "the account is about to be closed",
    Fault.TOO_MANY_ENTRIES: "the account has paid too many providers since it was rolled",
    Fault.UNPROVEN: "it cannot find the account on chain now",
    Fault.UNAUTHENTICATED: "the session's key is not the account's voucher key",
    Fault.FOREIGN_VOUCHER: "the voucher is for somebody else",
    Fault.VOUCHER_FELL: "the voucher is smaller than an earlier one",
    Fault.BAD_VOUCHER: "the voucher's signature is wrong",
    Fault.UNPAID: "what it served before is not paid yet",
    Fault.RESERVATION_NEEDED: "this request needs more credit than the account's free balance and bond give",
    Fault.OVERDUE: "it waited too long for payment",
    Fault.BUSY: "it serves too many paying clients now",
}
_ACCOUNTS_OWN: Final = frozenset((
    Fault.NOT_THIS_ACCOUNT, Fault.NOT_OPEN, Fault.NOTICE, Fault.TOO_MANY_ENTRIES, Fault.UNAUTHENTICATED,
))  # fmt: skip
"""No other provider would say otherwise."""

OF_THE_REQUEST: Final = frozenset((Fault.UNPAID, Fault.RESERVATION_NEEDED, Fault.OVERDUE, Fault.BUSY))
"""The session stays good for other requests."""


def refusal_of(detail: str) -> PaymentRefused | None:
    """A provider's `payment_required`, in our own words; None when it gives no reason that we know."""
    name, _, amount = detail.partition(" ")
    try:
        fault = Fault(name)
    except ValueError:
        return None
    ceiling_nano = int(amount) if amount.isascii() and amount.isdigit() and len(amount) <= 19 else 0
    error = PaymentRefused(
        fault, f"the provider does not take this account's payment: {_WORDS[fault]}", ceiling_nano=ceiling_nano
    )
    error.blame = Blame.LOCAL
    error.retryable = fault not in _ACCOUNTS_OWN
    error.advice = "`cocoon account status` shows the account." if fault in _ACCOUNTS_OWN else ""
    return error
