"""Why money is refused: a stable name for each reason, on both ends.

The names travel in `Refused.detail` and show in logs; amounts are never secret to the two who share a ledger.
"""

from __future__ import annotations

from enum import Enum

from ..errors import Blame, PaymentError
from ..types import Nano


class Fault(Enum):
    """What is wrong, and whose doing it is."""

    # the account, as the chain proves it
    NOT_THIS_ACCOUNT = "not_this_account"  # the address does not follow from the proven state
    STALE_PROOF = "stale_proof"  # the block is too old, or ahead of our clock
    NOT_OPEN = "not_open"  # epoch or key is zero: anybody could forge a signature
    NOTICE = "notice"  # the owner may roll within twelve hours
    TOO_MANY_ENTRIES = "too_many_entries"  # claims would cost too much
    UNPROVEN = "unproven"  # no proof yet, or the chain has been out of reach for too long

    # the session and its vouchers
    UNAUTHENTICATED = "unauthenticated"  # this session has not proven V (rule S2)
    FOREIGN_VOUCHER = "foreign_voucher"  # another network, account, epoch or payout address
    VOUCHER_FELL = "voucher_fell"  # one amount rises, the other falls
    BAD_VOUCHER = "bad_voucher"  # the signature does not verify

    # the credit
    UNPAID = "unpaid"  # the window of unpaid tokens is used up (rule M3)
    RESERVATION_NEEDED = "reservation_needed"  # more than unsecured credit allows: sign a higher ceiling
    OVERDUE = "overdue"  # output waited for payment for too long
    BUSY = "busy"  # too many accounts or requests


_REMOTE = Blame.REMOTE


class PaymentRefused(PaymentError):
    """The other end's money or voucher is not good enough. After it nothing has changed.

    `fault` is the stable reason; `ceiling_nano` the reservation that would help, or 0.
    """

    blame = _REMOTE

    def __init__(self, fault: Fault, message: str, *, ceiling_nano: Nano = 0) -> None:
        super().__init__(message)
        self.fault = fault
        self.ceiling_nano = ceiling_nano
