"""Whether a request is admissible by what it declares in the clear, before anything is decrypted (rule S6).

Pure: a slot in the engine is the role's business, and comes after.
"""

from __future__ import annotations

from ..types import due_nano
from ..wire.messages import OpenHeader
from .events import OfferFacts
from .reasons import Reason


def declared_refusal(header: OpenHeader, offer: OfferFacts | None, *, account: bytes | None, now: int) -> Reason | None:
    """The reason to refuse, or None. `account` is the one that this session has proven, or None."""
    if offer is None or now >= offer.expiry_ns:
        return Reason.UNKNOWN_OFFER
    if offer.is_paid and (account is None or header.account != account):
        return Reason.PAYMENT_REQUIRED
    if header.output_tokens_max == 0 or header.output_tokens_max > offer.output_tokens_max:
        return Reason.TOO_LARGE
    if header.input_tokens_max + header.output_tokens_max > offer.context_tokens_max:
        return Reason.CONTEXT_OVERFLOW
    most = due_nano(
        offer.prices,
        input_tokens=header.input_tokens_max,
        cached_tokens=0,
        output_tokens=header.output_tokens_max,
    )
    return Reason.PRICE if header.cost_max_nano < most else None
