"""How offers, replies and peers look: as JSON objects with units in their names, and in short for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..types import format_ton

if TYPE_CHECKING:
    from ..api import Reply
    from ..client.interface import OfferView, ReceiptView
    from ..ports import Connection, DialFailure
    from ..types import Usage


def brief_peer(peer: str) -> str:
    """A peer id that fits a line: all ed25519 ids start alike, so its end tells them apart."""
    return f"{peer[:8]}…{peer[-6:]}" if len(peer) > 20 else peer


def offer_object(offer: OfferView) -> dict[str, Any]:
    """An offer for programs."""
    return {
        "digest": offer.digest.hex(),
        "model": offer.model_name,
        "model_digest": offer.model.hex(),
        "provider": offer.provider,
        "operator": offer.operator.hex(),
        "addresses": list(offer.addresses),
        "price_input_nano": offer.prices.input_nano,
        "price_cached_input_nano": offer.prices.cached_input_nano,
        "price_output_nano": offer.prices.output_nano,
        "price_request_nano": offer.prices.request_nano,
        "context_tokens_max": offer.context_tokens_max,
        "output_tokens_max": offer.output_tokens_max,
        "first_token_p50_ms": offer.first_token_p50_ms,
        "tokens_per_s_p50": offer.tokens_per_s_p50,
        "slots": offer.slots,
        "running": offer.running,
        "queued": offer.queued,
        "features": list(offer.features),
        "trust_claimed": offer.trust.value,
        "region": offer.region,
        "age_s": round(offer.age_s, 1),
        "expires_in_s": round(offer.expires_in_s, 1),
    }


def offer_row(offer: OfferView) -> list[str]:
    """An offer for people; see `OFFER_HEADINGS`."""
    load = "?" if offer.running is None else f"{offer.running}+{offer.queued or 0}/{offer.slots}"
    speed = f"{offer.first_token_p50_ms} ms, {offer.tokens_per_s_p50}/s" if offer.tokens_per_s_p50 else "-"
    return [
        f"{offer.model_name}@{offer.model.hex()[:8]}",
        brief_peer(offer.provider),
        format_ton(offer.prices.input_nano),
        format_ton(offer.prices.output_nano),
        str(offer.context_tokens_max),
        speed,
        load,
        f"{offer.age_s:.0f} s",
        offer.trust.value,
    ]


OFFER_HEADINGS = ("MODEL", "PROVIDER", "IN TON/M", "OUT TON/M", "CONTEXT", "SPEED", "LOAD", "AGE", "TRUST CLAIMED")
OFFER_RIGHT = (2, 3, 4, 7)


def usage_object(usage: Usage) -> dict[str, int]:
    """OpenAI's three numbers."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def receipt_object(receipt: ReceiptView) -> dict[str, Any]:
    """A receipt for programs."""
    return {
        "verified": receipt.verified,
        "session": receipt.session.hex(),
        "request_id": receipt.request_id,
        "prompt_tokens": receipt.prompt_tokens,
        "cached_tokens": receipt.cached_tokens,
        "completion_tokens": receipt.completion_tokens,
        "due_nano": receipt.due_nano,
        "signature": receipt.signature.hex(),
        "body": receipt.body.hex(),
    }


def answer_object(reply: Reply) -> dict[str, Any]:
    """A finished answer for programs."""
    return {
        "answer": reply.text,
        "model": reply.offer.model_name,
        "provider": reply.provider,
        "offer": offer_object(reply.offer),
        "usage": usage_object(reply.usage),
        "receipt": receipt_object(reply.receipt),
        "cost_nano": reply.cost,
        "finish_reason": reply.finish_reason.value,
        "ttft_ms": None if reply.first_token_ms is None else round(reply.first_token_ms, 1),
        "trust": reply.trust.value,
        "attempts": list(reply.attempts),
    }


def connection_object(connection: Connection) -> dict[str, Any]:
    """A live connection for programs."""
    return {
        "peer": connection.peer,
        "address": connection.address,
        "direction": "outbound" if connection.outbound else "inbound",
        "opened_ns": connection.opened_ns,
        "agent": connection.agent,
    }


def failure_object(failure: DialFailure) -> dict[str, Any]:
    """A failed dial for programs."""
    return {
        "peer": failure.peer,
        "address": failure.address,
        "reason": failure.reason,
        "at_ns": failure.at_ns,
    }
