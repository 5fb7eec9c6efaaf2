"""Why a request is refused or fails: the names on the wire, whose fault each is, and the error a caller sees.

A refusal is unbilled and comes before anything was served; a failure comes after `Accepted`. A name that we do
not know, from a newer peer, is treated as retryable elsewhere.
"""

from __future__ import annotations

from enum import Enum

from ..errors import (
    Blame,
    CocoonError,
    InvalidRequest,
    PaymentError,
    Refused,
    StreamBroken,
)

DETAIL_CHARS_SHOWN = 200


class Reason(Enum):
    """The `reason` of `Refused`, `Failed` and `Goodbye`."""

    BUSY = "busy"  # no slot within the wait that the client allows
    DRAINING = "draining"  # shutting down
    STALE_KEY = "stale_key"  # sealed to a session key that is gone: say Hello again (K5)
    UNKNOWN_SESSION = "unknown_session"  # an Open before any evidence
    UNKNOWN_OFFER = "unknown_offer"  # not an offer of this provider, or expired
    PRICE = "price"  # the cost limit does not cover the declared sizes at the offer's prices
    PAYMENT_REQUIRED = "payment_required"  # a paid offer without authentication, voucher or funds
    TOO_LARGE = "too_large"  # declared or real size beyond what was offered or declared
    CONTEXT_OVERFLOW = "context_overflow"  # prompt and output do not fit the model's context
    INVALID_REQUEST = "invalid_request"  # the body cannot be served as it stands
    SEAL = "seal"  # the sealed request does not open (S6)
    ENGINE_FAILED = "engine_failed"
    STALLED = "stalled"  # the reader took nothing for minutes
    CANCELLED = "cancelled"  # as the client asked
    TIMEOUT = "timeout"  # no answer in time

    @property
    def blame(self) -> Blame:
        """Who has to change something."""
        return _BLAME.get(self, Blame.REMOTE)

    @property
    def is_retryable(self) -> bool:
        """Whether another provider, or the same one later, may do it."""
        return self not in _FINAL


_BLAME = {
    Reason.CONTEXT_OVERFLOW: Blame.USER,
    Reason.INVALID_REQUEST: Blame.USER,
    Reason.CANCELLED: Blame.USER,
    Reason.PAYMENT_REQUIRED: Blame.LOCAL,
    Reason.PRICE: Blame.LOCAL,
    Reason.STALLED: Blame.LOCAL,
}
_FINAL = frozenset((
    Reason.CONTEXT_OVERFLOW, Reason.INVALID_REQUEST, Reason.CANCELLED, Reason.PAYMENT_REQUIRED, Reason.STALLED,
))  # fmt: skip


def reason_named(name: str) -> Reason | None:
    """The reason of that wire name, or None."""
    try:
        return Reason(name)
    except ValueError:
        return None


def refusal_error(name: str, detail: str, retry_after_ms: int) -> CocoonError:
    """What the caller of a refused request should see. `detail` is the provider's word: shown, never trusted."""
    reason = reason_named(name)
    said = printable(detail)
    error: CocoonError
    if reason is Reason.CONTEXT_OVERFLOW:
        message = said or "the prompt and the requested output do not fit the model's context"
        return InvalidRequest(message, param="messages", kind="context_length_exceeded")
    if reason is Reason.INVALID_REQUEST:
        return InvalidRequest(said or "the provider's engine does not accept this request")
    if reason is Reason.PAYMENT_REQUIRED:
        error = PaymentError(
            "the provider asks for payment before it serves" + (f" ({said})" if said else ""),
            advice="Fund an account, or choose a free offer.",
        )
    else:
        error = Refused(name, retry_after_ms=retry_after_ms)
        error.retryable = reason is None or reason.is_retryable
    if reason is not None:
        error.blame = reason.blame
    return error


def failure_error(name: str, detail: str) -> CocoonError:
    """What the caller of an accepted request that failed should see."""
    reason = reason_named(name)
    said = printable(detail)
    text = f"the provider stopped before the end: {name}" + (f" ({said})" if said else "")
    error = StreamBroken(text, retryable=reason is None or reason.is_retryable)
    if reason is not None:
        error.blame = reason.blame
    return error


def printable(detail: str) -> str:
    """A stranger's words, short and harmless to a terminal."""
    return "".join(c if c.isprintable() else " " for c in detail[:DETAIL_CHARS_SHOWN]).strip()
