"""The provider's money, driven: one `Payee` over all sessions, with the store, the chain and the wallet behind it.

Sessions ask it before they admit (`authenticate`, `admit`), while output leaves (it is their `TokenGate`), and tell it
of vouchers and endings. It tells them when payment has come or has been given up.

Not here: what a voucher is worth or when to claim (`cocoon.pay`), the loop (`cocoon.paying`), sessions (`serving`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from ..errors import ConfigError, LocalProtocolError
from ..market.catalogue import ModelRef
from ..pay.account import AccountRules
from ..pay.effects import (
    CeilingWanted,
    ClaimConfirmed,
    CreditChanged,
    Emit,
    EpochRolled,
    ForeignClaim,
    PaymentStopped,
    Persist,
    RequestKey,
    Send,
    VoucherAccepted,
)
from ..pay.metering import Meter
from ..pay.payee import Payee, PayeeTerms
from ..pay.refusals import Fault, PaymentRefused
from ..pay.voucher import VOUCHER_BYTES, SignedVoucher, ledger_id
from ..pay.window import WINDOW_TOKENS_MAX, WINDOW_TOKENS_MIN
from ..paying import PaymentDriver
from ..ports import Clock, Store, StoredEarning, VoucherSide
from ..ports.chain import Chain, Transfer, Wallet
from ..types import DIGEST_BYTES, NO_DIGEST, PRICE_UNIT_TOKENS, SECOND_NS, Digest, Nano, Network, Prices
from ..wire import limits
from ..wire.signing import verify

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # what the stubs of trio know that libp2p brings

log = logging.getLogger("cocoon.pay")

ADMIT_PATIENCE_NS: Final = 2 * SECOND_NS
"""A voucher for what came before may still be on its way, or on its way to disk, when the next request is here."""

DAY_NS: Final = 86_400 * SECOND_NS


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderPayments:
    """Where a provider is paid, and what it needs to be sure of it. Without this a provider serves unpaid."""

    payout: bytes  # account id in workchain 0; exactly one running provider each (rule M1)
    chain: Chain
    wallet: Wallet | None  # sends the claims and pays their gas; None: vouchers are kept, and claimed elsewhere
    claim_transfers: Callable[[tuple[SignedVoucher, ...]], tuple[Transfer, ...]]
    rules: AccountRules
    claim_cost_nano: Nano  # of one claim, its share of a wallet message included
    unpaid_tokens_max: int = WINDOW_TOKENS_MAX  # the ceiling of the window of unpaid tokens
    voucher_step_nano: Nano = 0  # a client need not pay earlier than this much is due

    def __post_init__(self) -> None:
        if len(self.payout) != DIGEST_BYTES or self.payout == NO_DIGEST:
            raise ConfigError("the payout address is not an account id of 32 bytes")
        if not WINDOW_TOKENS_MIN <= self.unpaid_tokens_max <= WINDOW_TOKENS_MAX:
            raise ConfigError(f"the window of unpaid tokens is from {WINDOW_TOKENS_MIN} to {WINDOW_TOKENS_MAX}")

    def reserve_threshold_nano(self, prices: Prices) -> Nano:
        """What a prompt may cost in the first window without a reservation: the window's worth. For the offer."""
        return WINDOW_TOKENS_MIN * prices.output_nano // PRICE_UNIT_TOKENS


@dataclass(slots=True, kw_only=True)
class EarnedRecord:
    """What has come in since the start."""

    vouchers: int = 0
    paid_nano: Nano = 0  # by vouchers
    claimed_nano: Nano = 0  # proven on chain
    refused: int = 0  # requests and sessions, for their payment


class PaidSession(Protocol):
    """What a session does when its money moves. Called from outside any step of its machine."""

    def credit_changed(self, session: Digest) -> None:
        """Output that waited for payment may be able to leave."""
        ...

    def payment_stopped(self, request_id: int, fault: Fault) -> None:
        """This request gets no more credit."""
        ...

    def reserve(self, ceiling_nano: Nano) -> None:
        """The client should sign a reservation."""
        ...


class Earnings:
    """One per payout address. `open` before `run`; sessions come after."""

    def __init__(
        self, payments: ProviderPayments, *, network_id: Network, model: ModelRef, store: Store, clock: Clock
    ) -> None:
        self.payments = payments
        self._model = model
        self.record = EarnedRecord()
        self._network_id = network_id
        self._store = store
        self._clock = clock
        self._payee: Payee | None = None
        self._driver: PaymentDriver | None = None
        self._sessions: dict[Digest, tuple[bytes, PaidSession]] = {}
        self._of_account: dict[bytes, set[Digest]] = {}
        self._changed: dict[bytes, trio.Event] = {}  # per account that somebody waits for

    @property
    def payee(self) -> Payee:
        """The machine, to be looked at."""
        assert self._payee is not None, "open() comes first"
        return self._payee

    @property
    def _drive(self) -> PaymentDriver:
        assert self._driver is not None, "open() comes first"
        return self._driver

    async def open(self) -> None:
        """Take the ledger of this payout address. Raises `LocalProtocolError` when another provider has it (M1)."""
        payments, network = self.payments, int(self._network_id)
        try:
            await self._store.hold(ledger_id(self._network_id, payments.payout))
        except LocalProtocolError as error:
            raise LocalProtocolError(
                f"another provider is paid to {payments.payout.hex()}: one address has one live ledger",
                advice="Stop the other one, or give this one its own --home and its own payout address.",
            ) from error
        cost_nano = payments.claim_cost_nano if payments.wallet is not None else limits.NANO_MAX  # then never worth it
        self._payee = Payee(
            network=self._network_id,
            payout=payments.payout,
            rules=payments.rules,
            verify=verify,
            terms=PayeeTerms(claim_cost_nano=cost_nano, window_tokens_max=payments.unpaid_tokens_max),
            restored=await self._store.vouchers(VoucherSide.HELD, network=network, party=payments.payout),
            settled=await self._store.reservations(network=network, provider=payments.payout),
            now=self._clock.now(),
        )
        payee = self._payee
        self._driver = PaymentDriver(
            payee,
            store=self._store,
            chain=payments.chain,
            clock=self._clock,
            unreachable=lambda account: payee.account_unreachable(account, now=self._clock.now()),
            told=self._told,
            submit=self._submit if payments.wallet is not None else None,
            submit_failed=lambda claims: payee.submit_failed(claims, now=self._clock.now()),
        )

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep, prove, claim, until cancelled."""
        await self._drive.run(task_status)

    def claim_all(self) -> None:
        """Submit everything that is worth its cost."""
        self._drive.perform(self.payee.claim_all(now=self._clock.now()))

    async def wait_paid(self) -> None:
        """Return once nobody who is connected owes anything, and every voucher is on disk. The caller bounds it."""
        for account in tuple(self._of_account):
            while (ledger := self.payee.ledger(account)) is not None and ledger.owed_nano > 0:
                await self._changed.setdefault(account, trio.Event()).wait()
        await self._drive.wait_kept()

    # --- sessions ----------------------------------------------------------------------------------------

    async def authenticate(
        self, owner: PaidSession, session: Digest, *, account: bytes, voucher_key: bytes, payout: bytes
    ) -> None:
        """V has signed this session for this account (S2): is it the account's key, and the account good for money?

        Raises `PaymentRefused`.
        """
        if self.payee.needs_proof(account, now=self._clock.now()):
            await self._drive.prove(account)
        try:
            self.payee.authenticate(
                session, account=account, voucher_key=voucher_key, payout=payout, now=self._clock.now()
            )
        except PaymentRefused:
            self.record.refused += 1
            raise
        self._sessions[session] = (account, owner)
        self._of_account.setdefault(account, set()).add(session)

    def session_closed(self, session: Digest) -> None:
        """It is over, and so are its requests. Harmless for one that was never authenticated."""
        found = self._sessions.pop(session, None)
        if found is None:
            return
        account, _ = found
        sessions = self._of_account[account]
        sessions.discard(session)
        if not sessions:
            del self._of_account[account]
            self._changed.pop(account, None)
        self._drive.perform(self.payee.session_closed(session, now=self._clock.now()))

    def receive_voucher(self, session: Digest, voucher: bytes, signature: bytes) -> None:
        """A voucher that came on this session. Raises `PaymentRefused` or `DecodeError`; then nothing was taken."""
        self._drive.perform(self.payee.receive_voucher(session, voucher, signature, now=self._clock.now()))

    def receive_open_voucher(self, session: Digest, signed: bytes) -> None:
        """The one that rode in an `Open`."""
        if signed:
            self.receive_voucher(session, signed[:VOUCHER_BYTES], signed[VOUCHER_BYTES:])

    async def admit(
        self, session: Digest, request_id: int, *, account: bytes, prices: Prices, input_tokens: int
    ) -> None:
        """Take a paid request, before it is accepted. Raises `PaymentRefused`.

        When nothing but a voucher on its way is missing, that is waited for, for two seconds.
        """
        key = RequestKey(session=session, id=request_id)
        until_ns = self._clock.now() + ADMIT_PATIENCE_NS
        while True:
            if self.payee.needs_proof(account, now=self._clock.now()):
                await self._drive.prove(account)
            now = self._clock.now()
            try:
                self._drive.perform(self.payee.admit(key, prices=prices, input_tokens=input_tokens, now=now))
                return
            except PaymentRefused as refusal:
                if refusal.fault is not Fault.UNPAID or now >= until_ns:
                    self.record.refused += 1
                    raise
            changed = self._changed.setdefault(account, trio.Event())
            with trio.move_on_after((until_ns - now) / SECOND_NS):
                await changed.wait()

    def ended(
        self, session: Digest, request_id: int, *, is_natural: bool, is_our_fault: bool = False, cached_tokens: int = 0
    ) -> None:
        """An admitted request is over. Twice is harmless."""
        key = RequestKey(session=session, id=request_id)
        meter = self.payee.meter(key)
        now = self._clock.now()
        effects = self.payee.ended(
            key, is_natural=is_natural, is_our_fault=is_our_fault, cached_tokens=cached_tokens, now=now
        )
        found = self._sessions.get(session)
        if meter is not None and meter.output_tokens and found is not None:
            effects = (*effects, Persist(records=(self._earning(found[0], meter, now),)))
        self._drive.perform(effects)

    def _earning(self, account: bytes, meter: Meter, now: int) -> StoredEarning:
        """What the operator is shown of this request."""
        return StoredEarning(
            network=int(self._network_id),
            provider=self.payments.payout,
            account=account,
            model=self._model.digest,
            model_name=self._model.name,
            day=now // DAY_NS,
            requests=1,
            prompt_tokens=meter.input_tokens,
            cached_tokens=meter.cached_tokens,
            completion_tokens=meter.output_tokens,
            due_nano=meter.due_nano,
        )

    # --- the gate ----------------------------------------------------------------------------------------

    def allowed(self, session: Digest, request_id: int, wanted: int, *, now: int) -> int:
        """How many of `wanted` tokens may leave now."""
        allowed = self.payee.tokens_allowed(RequestKey(session=session, id=request_id), wanted, now=now)
        if allowed < wanted:
            self._drive.touch()  # it does not wait for ever
        return allowed

    def released(self, session: Digest, request_id: int, tokens: int, *, cached_tokens: int, now: int) -> None:
        """So many leave now."""
        key = RequestKey(session=session, id=request_id)
        self._drive.perform_later(self.payee.release(key, tokens, cached_tokens=cached_tokens, now=now))

    # --- from the machine --------------------------------------------------------------------------------

    def _told(self, effect: Send | Emit) -> None:
        assert isinstance(effect, Emit), "a provider sends no vouchers"
        match effect.event:
            case VoucherAccepted(account=account, amount_nano=amount_nano):
                self.record.vouchers += 1
                self.record.paid_nano += amount_nano
                self._credit_changed(account)
            case CreditChanged(account=account):
                self._credit_changed(account)
            case PaymentStopped(fault=fault, requests=requests):
                for key in requests:
                    found = self._sessions.get(key.session)
                    if found is not None:
                        found[1].payment_stopped(key.id, fault)
            case ClaimConfirmed(account=account, amount_nano=amount_nano):
                self.record.claimed_nano += amount_nano
                log.info("claim.confirmed", extra={"account": account.hex(), "amount_nano": amount_nano})
            case ForeignClaim() as event:
                log.warning(
                    "claim.foreign",
                    extra={
                        "account": event.account.hex(),
                        "claimed_nano": event.claimed_nano,
                        "held_nano": event.held_nano,
                    },
                )
            case EpochRolled() as event:
                log.warning("account.rolled", extra={"account": event.account.hex(), "lost_nano": event.lost_nano})
            case CeilingWanted(account=account, ceiling_nano=ceiling_nano):
                for session in self._of_account.get(account, ()):
                    self._sessions[session][1].reserve(ceiling_nano)
                    break  # one client signs for an account, wherever it hears of it

    def _credit_changed(self, account: bytes) -> None:
        changed = self._changed.pop(account, None)
        if changed is not None:
            changed.set()
        for session in tuple(self._of_account.get(account, ())):
            found = self._sessions.get(session)
            if found is not None:
                found[1].credit_changed(session)

    async def _submit(self, claims: tuple[SignedVoucher, ...]) -> None:
        assert self.payments.wallet is not None
        await self.payments.wallet.send(self.payments.claim_transfers(claims))
