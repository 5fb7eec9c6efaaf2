"""Receipts (rule M4): built and signed by the provider, checked by the client against its own count, never trusted.

The client knows every field itself but `cached_tokens`, so checking is comparing: a receipt whose bytes differ from
what the client would have written is named by its first differing field. Exact sums leave nothing to argue about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..errors import CocoonError, StreamBroken
from ..types import Digest, Nano, Network, Prices
from ..wire.codec import decode_as, encode
from ..wire.messages import OpenHeader, Receipt, ReceiptBody
from ..wire.signing import Domain, signed_bytes
from . import bounds
from .chunks import ChunkSeal
from .events import OfferFacts

RECEIPT_VERSION = 1

Sign = Callable[[bytes], bytes]
"""P's signature over exactly these bytes."""

Verify = Callable[[bytes, bytes, bytes], None]
"""(key, signature, message): raises `BadSignature`; `cocoon.wire.signing.verify`."""


class DueRule(Protocol):
    """What is due for such counts (rule M2); both ends have the same: `cocoon.pay.metering.vested_due_nano`."""

    def __call__(
        self, prices: Prices, *, input_tokens: int, cached_tokens: int, output_tokens: int, is_ended: bool
    ) -> Nano:
        """`is_ended`: by a sealed end. Never falls as output grows."""
        ...


def cached_tokens_before_end(prices: Prices, prompt_tokens: int) -> int:
    """How many prompt tokens a bill counts as cached until the sealed end tells: whichever makes it smaller.

    So no later receipt asks for less, whatever the engine found in its cache.
    """
    return prompt_tokens if prices.cached_input_nano <= prices.input_nano else 0


def receipt_body(
    *,
    network: Network,
    session: Digest,
    request_id: int,
    number: int,
    header: OpenHeader,
    offer: OfferFacts,
    chunks: ChunkSeal,
    cached_tokens: int,
    final: bool,
    due: DueRule,
) -> ReceiptBody:
    """The receipt for everything in `chunks` so far, due at that offer's prices.

    `cached_tokens` is looked at only after the sealed end.
    """
    prompt_tokens = chunks.prompt_tokens or 0
    if not chunks.is_ended:
        cached_tokens = cached_tokens_before_end(offer.prices, prompt_tokens)
    return ReceiptBody(
        version=RECEIPT_VERSION,
        network=int(network),
        session=session,
        id=request_id,
        number=number,
        account=header.account,
        payout=offer.payout,
        offer=offer.digest,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        completion_tokens=chunks.completion_tokens,
        chain=chunks.chain,
        due_nano=due(
            offer.prices,
            input_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            output_tokens=chunks.completion_tokens,
            is_ended=chunks.is_ended,
        ),
        consent=offer.consent,
        final=final,
    )


def sign_receipt(body: ReceiptBody, network: Network, sign: Sign) -> Receipt:
    """The message to send."""
    data = encode(body)
    return Receipt(id=body.id, receipt=data, signature=sign(signed_bytes(Domain.RECEIPT, network, data)))


def decode_receipt(receipt: Receipt) -> ReceiptBody:
    """What it claims. Raises `DecodeError` or `LimitExceeded`."""
    return decode_as(receipt.receipt, ReceiptBody, bytes_max=bounds.RECEIPT_BYTES_MAX)


def check_receipt(
    receipt: Receipt, claimed: ReceiptBody, ours: ReceiptBody, *, network: Network, peer: bytes, verify: Verify
) -> None:
    """Raise `StreamBroken` unless the claimed body is, byte for byte, ours and signed by P."""
    if claimed.cached_tokens > claimed.prompt_tokens:
        raise StreamBroken("the receipt counts more cached tokens than prompt tokens")
    for name in ReceiptBody.__struct_fields__:
        if getattr(claimed, name) != getattr(ours, name):
            raise StreamBroken(f"the receipt's {name} is not what was received")
    try:
        verify(peer, receipt.signature, signed_bytes(Domain.RECEIPT, network, receipt.receipt))
    except CocoonError as error:
        raise StreamBroken("the receipt is not signed by the provider") from error


def payable_nano(
    claimed: ReceiptBody,
    offer: OfferFacts,
    *,
    own_completion_tokens: int,
    input_tokens_max: int,
    is_ended: bool,
    due: DueRule,
) -> Nano:
    """What the client pays: the smaller of the receipt and its own count at the offer's prices (M4).

    The client cannot count the prompt's tokens for every model; it pays for no more than it declared.
    """
    prompt_tokens = min(claimed.prompt_tokens, input_tokens_max)
    own = due(
        offer.prices,
        input_tokens=prompt_tokens,
        cached_tokens=min(claimed.cached_tokens, prompt_tokens),
        output_tokens=own_completion_tokens,
        is_ended=is_ended,
    )
    return min(claimed.due_nano, own)
