"""What one session has to do with money: its client's account, vouchers, and the paid requests on it.

Stands between the session's machine and the provider's `Earnings`. A voucher that is not what it should be ends the
session; whatever else is wrong with the money is a refusal that says why.

Not here: running requests (`serving`), what money is worth (`cocoon.pay`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from ..errors import DecodeError
from ..pay.refusals import Fault, PaymentRefused
from ..ports import Clock
from ..pump import SessionPump
from ..serve.events import AuthenticationReceived, RequestClosed, RequestOpened, VoucherReceived
from ..serve.provider_session import ProviderSession
from ..serve.reasons import Reason
from ..types import Digest, Nano
from .earning import Earnings

log = logging.getLogger("cocoon.pay")

FORGERIES: Final = frozenset((Fault.BAD_VOUCHER, Fault.FOREIGN_VOUCHER, Fault.VOUCHER_FELL))
"""No honest client sends these: its stream ends, and nothing of them was taken."""


class PayingClient:
    """The money of one session."""

    def __init__(
        self,
        machine: ProviderSession,
        pump: SessionPump,
        earnings: Earnings,
        clock: Clock,
        *,
        stop: Callable[[int], None],
    ) -> None:
        """`stop` ends the engine's work for a request."""
        self._stop = stop
        self._machine = machine
        self._pump = pump
        self._earnings = earnings
        self._clock = clock
        self._sessions: dict[Digest, int] = {}  # authenticated session ids, and how many requests each has
        self._current: Digest | None = None  # the newest of them: vouchers come on it
        self._requests: dict[int, Digest] = {}  # admitted ones
        self._our_fault: set[int] = set()
        self._early: VoucherReceived | None = None  # came while the account was being looked up

    async def authenticate(self, event: AuthenticationReceived) -> None:
        """Look the account up, and let the session's paid requests in, or say why not."""
        try:
            await self._earnings.authenticate(
                self, event.session, account=event.account, voucher_key=event.voucher_key, payout=event.payout
            )
        except PaymentRefused as refusal:
            log.info("session.unpaid", extra={"account": event.account.hex(), "reason": refusal.fault.value})
            now = self._clock.now()
            detail = words_of(refusal)
            self._pump.perform(self._machine.unauthenticated(session=event.session, detail=detail, now=now))
            return
        if self._pump.is_ended:
            self._earnings.session_closed(event.session)
            return
        self._sessions[event.session] = 0
        self._current = event.session
        for session in [each for each, count in self._sessions.items() if not count and each != event.session]:
            self._close(session)
        early, self._early = self._early, None
        if early is not None:
            self.voucher(early)
        now = self._clock.now()
        self._pump.perform(self._machine.authenticated(session=event.session, account=event.account, now=now))

    def voucher(self, event: VoucherReceived) -> None:
        """Take it, for whatever this account owes us."""
        if self._current is None:
            self._early = event  # the newest is all that counts
            return
        try:
            self._earnings.receive_voucher(self._current, event.voucher, event.signature)
        except (PaymentRefused, DecodeError) as error:
            self._refused(error)

    async def admit(self, event: RequestOpened, *, prompt_tokens: int) -> None:
        """Admit a paid request. Raises `PaymentRefused`; on a forged voucher the session ends as well."""
        try:
            self._earnings.receive_open_voucher(event.session, event.voucher)
        except (PaymentRefused, DecodeError) as error:
            self._refused(error)
            if isinstance(error, PaymentRefused):
                raise
            raise PaymentRefused(Fault.BAD_VOUCHER, "what should be a voucher is none") from error
        await self._earnings.admit(
            event.session,
            event.id,
            account=event.header.account,
            prices=event.offer.prices,
            input_tokens=prompt_tokens,
        )
        self._requests[event.id] = event.session
        self._sessions[event.session] = self._sessions.get(event.session, 0) + 1

    def failed(self, request_id: int) -> None:
        """Its end will be our own fault: the prompt is not held against the client."""
        self._our_fault.add(request_id)

    def cancelled(self, request_id: int) -> None:
        """The client gave it up, or has gone."""
        self._ended(request_id, is_natural=False, cached_tokens=0)

    def closed(self, event: RequestClosed) -> None:
        """Its last message is on its way."""
        cached_tokens = 0 if event.receipt is None else event.receipt.cached_tokens
        self._ended(event.id, is_natural=event.is_ended, cached_tokens=cached_tokens)

    def left(self) -> None:
        """The stream is over."""
        for session in tuple(self._sessions):
            self._close(session)

    # --- `PaidSession` -----------------------------------------------------------------------------------

    def credit_changed(self, session: Digest) -> None:
        """Try again what waited for payment."""
        if not self._pump.is_ended:
            self._pump.perform(self._machine.paid(session, now=self._clock.now()))

    def payment_stopped(self, request_id: int, fault: Fault) -> None:
        """Fail it, and say why."""
        if not self._pump.is_ended and request_id in self._requests:
            log.info("request.unpaid", extra={"reason": fault.value})
            self._stop(request_id)
            now = self._clock.now()
            self._pump.perform(self._machine.fail(request_id, Reason.PAYMENT_REQUIRED, detail=fault.value, now=now))

    def reserve(self, ceiling_nano: Nano) -> None:
        """Ask the client for it."""
        if not self._pump.is_ended:
            self._pump.perform(self._machine.reserve(ceiling_nano))

    # --- helpers -----------------------------------------------------------------------------------------

    def _ended(self, request_id: int, *, is_natural: bool, cached_tokens: int) -> None:
        session = self._requests.pop(request_id, None)
        if session is None:
            return
        is_our_fault = request_id in self._our_fault
        self._our_fault.discard(request_id)
        self._earnings.ended(
            session, request_id, is_natural=is_natural, is_our_fault=is_our_fault, cached_tokens=cached_tokens
        )
        self._sessions[session] -= 1
        if not self._sessions[session] and session != self._current:
            self._close(session)

    def _close(self, session: Digest) -> None:
        del self._sessions[session]
        self._earnings.session_closed(session)

    def _refused(self, error: PaymentRefused | DecodeError) -> None:
        fault = error.fault if isinstance(error, PaymentRefused) else Fault.BAD_VOUCHER
        log.warning("voucher.refused", extra={"reason": fault.value})
        if fault in FORGERIES:
            self._pump.end(error)


def words_of(refusal: PaymentRefused) -> str:
    """How a refusal travels: its name, and the reservation that would help."""
    return f"{refusal.fault.value} {refusal.ceiling_nano}" if refusal.ceiling_nano else refusal.fault.value
