"""Whether a request is admissible: first by what it declares in the clear, then by its seal (rule S6).

`admit` changes nothing. A slot in the engine is the role's business, and comes after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..errors import DecodeError, LimitExceeded, SealError
from ..types import Digest, Secret, due_nano
from ..wire import limits
from ..wire.codec import decode_as
from ..wire.messages import Open, OpenHeader, SealedRequest
from ..wire.signing import domain_hash
from . import bounds, sealing
from .chunks import chain_start
from .events import OfferFacts, RequestOpened
from .handshake import ProviderHandshake
from .outbox import ServedRequest
from .reasons import Reason


class UnservedRequests:
    """Counts what costs work and earns nothing: requests refused for what they are, or cancelled before any output.

    Refusals for our own state (busy, draining, a key of ours that is gone) are not counted: an honest client of an
    overloaded provider gets many.
    """

    __slots__ = ("_count", "_since_ns")

    def __init__(self, *, now: int) -> None:
        self._since_ns = now
        self._count = 0

    def add(self, reason: Reason, now: int) -> None:
        """One more. Raises `LimitExceeded` on a flood."""
        if reason in _OUR_STATE:
            return
        if now - self._since_ns >= bounds.UNSERVED_PERIOD_NS:
            self._since_ns, self._count = now, 0
        if self._count >= bounds.UNSERVED_PER_PERIOD_MAX:
            raise LimitExceeded("too many requests that cannot be served")
        self._count += 1


class HeldOpens:
    """Paid requests of a session whose account is being looked up, so that its client need not wait to open."""

    __slots__ = ("_bytes", "_opens")

    def __init__(self) -> None:
        self._opens: dict[int, tuple[Open, OpenHeader]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._opens)

    def add(self, message: Open, header: OpenHeader) -> bool:
        """Keep it; False when there is no room."""
        size = len(message.sealed)
        if len(self._opens) >= limits.REQUESTS_IN_FLIGHT_MAX or self._bytes + size > bounds.HELD_BYTES_MAX:
            return False
        self._opens[message.id] = (message, header)
        self._bytes += size
        return True

    def remove(self, request_id: int) -> bool:
        """Its client cancelled it; whether it was here."""
        held = self._opens.pop(request_id, None)
        if held is None:
            return False
        self._bytes -= len(held[0].sealed)
        return True

    def take_all(self) -> tuple[tuple[Open, OpenHeader], ...]:
        """All of them, in order; none is kept."""
        opens = tuple(self._opens.values())
        self._opens, self._bytes = {}, 0
        return opens


_OUR_STATE: Final = frozenset((Reason.BUSY, Reason.DRAINING, Reason.STALE_KEY))


def admit(
    message: Open,
    header: OpenHeader,
    *,
    handshake: ProviderHandshake,
    offers: Callable[[Digest], OfferFacts | None],
    crypto: sealing.Crypto,
    now: int,
) -> tuple[ServedRequest, RequestOpened] | Reason:
    """The request, opened, or the reason to refuse it. The seal is tried last, and fails in one way only."""
    found = handshake.find(message.session_prefix, now)
    if found is None:
        return Reason.STALE_KEY if handshake.has_context else Reason.UNKNOWN_SESSION
    context, key = found
    offer = offers(header.offer)
    reason = declared_refusal(header, offer, account=context.account, now=now)
    if reason is not None or offer is None:
        return reason or Reason.UNKNOWN_OFFER
    info = sealing.request_info(context.session, message.id, message.header)
    try:
        plaintext = sealing.unpad_request(crypto.open(key.private, message.sealed, info))
        request = decode_as(plaintext, SealedRequest, bytes_max=sealing.PLAINTEXT_BYTES_MAX)
    except (SealError, DecodeError, LimitExceeded):
        return Reason.SEAL
    served = ServedRequest(
        request_id=message.id,
        session=context.session,
        header=header,
        offer=offer,
        chain=chain_start(context.session, message.id, message.sealed),
        response_key=Secret(request.response_key),
        credit_bytes=message.credit_bytes,
    )
    opened = RequestOpened(
        id=message.id,
        session=context.session,
        header=header,
        offer=offer,
        wait_ms_max=message.wait_ms_max,
        endpoint=request.endpoint,
        body=request.body,
        cache_scope=domain_hash("cache-scope", bytes((len(header.account),)), header.account, request.cache_tag),
        voucher=message.voucher,
    )
    return served, opened


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
