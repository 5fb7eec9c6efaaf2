"""What the two session machines tell their drivers. Past tense, frozen; text, keys and bodies never show in a repr.

Every request that the client opened ends in exactly one of `RequestEnded`, `RequestRefused`, `RequestFailed`;
every request that the provider was told of by `RequestOpened` ends by the driver's own `refuse`, `finish` or
`fail`, or in `RequestCancelled`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import CocoonError
from ..ports.engine import Delta
from ..types import NO_DIGEST, Digest, FinishReason, Nano, Prices, Usage
from ..wire.messages import Hello, OpenHeader, ReceiptBody


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferFacts:
    """What a session needs to know of an offer that both ends have checked."""

    digest: Digest
    model: Digest
    prices: Prices
    context_tokens_max: int
    output_tokens_max: int
    payout: bytes
    consent: Digest  # digest of P's consent in the offer
    expiry_ns: int

    @property
    def is_paid(self) -> bool:
        """Whether it must be paid for: it has a price, and an address that payment can reach."""
        prices = self.prices
        return self.payout != NO_DIGEST and any(
            (prices.input_nano, prices.cached_input_nano, prices.output_nano, prices.request_nano)
        )


# --- at the provider -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class HelloReceived:
    """The client asks for fresh evidence. Answer with `evidence(…)`, or hang up."""

    hello: Hello


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationReceived:
    """V has signed the session for this account (S2). Call `authenticated` once V is proven to be the account's."""

    session: Digest
    account: bytes
    voucher_key: bytes
    payout: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOpened:
    """An admissible request, decrypted. Answer with `accept` or `refuse`.

    `body` is JSON from a stranger: `cocoon.serve.openai.generation_request` makes it safe. `cache_scope` is the
    account and the client's secret tag in one (S7). `session` is the id of the session that it was sealed for.
    """

    id: int
    session: Digest
    header: OpenHeader
    offer: OfferFacts
    wait_ms_max: int
    endpoint: str
    body: bytes = field(repr=False)
    cache_scope: bytes = field(repr=False)
    voucher: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCancelled:
    """Stop generating: nothing more of this request will be sent."""

    id: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDrained:
    """The buffer of a request that was full has room again."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VoucherReceived:
    """A voucher that rides along; `cocoon.pay` judges it."""

    voucher: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestClosed:
    """The last message of this request was handed over for sending; with the receipt that closed it, if any.

    `is_ended`: by its sealed end, so that the whole prompt is due.
    """

    id: int
    receipt: ReceiptBody | None
    is_ended: bool = False


# --- at the client ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceReceived:
    """The provider's statement and evidence for our `nonce`. Verify, then call `trust(…)`, or hang up."""

    nonce: bytes
    statement: bytes
    operator_signature: bytes
    peer_signature: bytes
    hardware: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAccepted:
    """The provider has admitted it."""

    id: int
    queue_position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputReceived:
    """Genuine output, in order and counted. Call `consumed(id, sealed_bytes)` when the reader has taken it."""

    id: int
    delta: Delta = field(repr=False)
    prompt_tokens: int
    completion_tokens: int
    sealed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptReceived:
    """A receipt that agrees with what we counted, and its exact signed bytes."""

    id: int
    body: ReceiptBody
    receipt: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    payable_nano: Nano


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEnded:
    """Complete: the sealed end and a matching final receipt are both here."""

    id: int
    finish_reason: FinishReason
    usage: Usage
    receipt: ReceiptReceived


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRefused:
    """Declined before anything was served, unbilled. `reason` is the wire name, `error` what to raise.

    `detail` is the provider's word: shown, never trusted.
    """

    id: int
    reason: str
    detail: str = ""
    retry_after_ms: int
    error: CocoonError


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFailed:
    """It will not be completed. What was received before stands; `error` is what to raise."""

    id: int
    reason: str
    error: CocoonError


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionDraining:
    """The other end takes no new requests; those in flight finish."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationWanted:
    """The provider asks that so much be reserved for it, in all. A wish: what is granted is the payer's decision."""

    ceiling_nano: Nano


ProviderEvent = (
    HelloReceived | AuthenticationReceived | RequestOpened | RequestCancelled | OutputDrained | VoucherReceived
    | RequestClosed | SessionDraining
)  # fmt: skip
ClientEvent = (
    EvidenceReceived | RequestAccepted | OutputReceived | ReceiptReceived | RequestEnded | RequestRefused
    | RequestFailed | SessionDraining | ReservationWanted
)  # fmt: skip
Event = ProviderEvent | ClientEvent
