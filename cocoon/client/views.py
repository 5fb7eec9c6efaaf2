"""Offers as callers see them."""

from __future__ import annotations

from ..market.book import ListedOffer
from ..types import SECOND_NS, Feature
from .interface import OfferView


def offer_view(listed: ListedOffer, *, now: int) -> OfferView:
    """A listed offer, with what its beacon says."""
    verified = listed.offer
    offer = verified.offer
    beacon = listed.beacon.beacon if listed.beacon is not None else None
    return OfferView(
        digest=verified.digest,
        model=verified.model,
        model_name=offer.model_name,
        provider=verified.provider,
        operator=offer.operator,
        addresses=verified.addresses,
        prices=verified.prices,
        context_tokens_max=offer.context_tokens_max,
        output_tokens_max=offer.output_tokens_max,
        first_token_p50_ms=offer.speed.first_token_p50_ms,
        tokens_per_s_p50=offer.speed.tokens_per_s_p50,
        slots=offer.slots,
        running=beacon.running if beacon is not None else None,
        queued=beacon.queued if beacon is not None else None,
        features=tuple(each.name.lower() for each in Feature if each & verified.features and each.name),
        trust=verified.claimed_trust,
        region=offer.region,
        age_s=max(0.0, now / SECOND_NS - offer.not_before_s),
        expires_in_s=max(0.0, offer.expiry_s - now / SECOND_NS),
    )
