"""What a caller of the client role sees: replies, listings, and the terms under which a request may run.

The gateway, the CLI and the Python API all use just this. `trust` and `spend_max_nano` have no default anywhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..attest.evidence import SavedEvidence
from ..market.selection import Choice
from ..ports import Connection, Delta, DialFailure
from ..types import Digest, FinishReason, Nano, PeerId, Prices, TrustLevel, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptView:
    """A receipt that was checked against what we received and counted."""

    verified: bool
    session: Digest
    request_id: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    due_nano: Nano
    signature: bytes
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferView:
    """One current offer, as ranked by this client."""

    digest: Digest
    model: Digest
    model_name: str
    provider: PeerId
    operator: bytes
    addresses: tuple[str, ...]
    prices: Prices
    context_tokens_max: int
    output_tokens_max: int
    first_token_p50_ms: int
    tokens_per_s_p50: int
    slots: int
    running: int | None  # from a beacon not older than 30 s
    queued: int | None
    features: tuple[str, ...]
    trust: TrustLevel  # the level that the offer claims; what is proven is in the reply
    region: str
    age_s: float
    expires_in_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplySummary:
    """Known once a reply has ended. `cost_nano` is what all attempts cost, the receipt what the last one asks."""

    finish_reason: FinishReason
    usage: Usage
    receipt: ReceiptView
    cost_nano: Nano


class Reply(Protocol):
    """A running generation. Iterate for deltas; `summary` is there afterwards.

    Errors before the first delta leave nothing shown; `StreamBroken` after it means that the provider died.
    Leaving the context early cancels at the provider.
    """

    @property
    def provider(self) -> PeerId:
        """Who serves it (the one that was accepted last)."""
        ...

    @property
    def offer(self) -> OfferView:
        """Under which offer."""
        ...

    @property
    def trust(self) -> TrustLevel:
        """What was proven of the provider before the prompt left."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """As the provider counted; 0 before the first chunk."""
        ...

    @property
    def first_token_ms(self) -> float | None:
        """From the call to the first delta."""
        ...

    @property
    def cost_nano(self) -> Nano:
        """Over all attempts so far, failed ones included; what asks for no payment is counted at its prices."""
        ...

    @property
    def attempts(self) -> tuple[str, ...]:
        """What was tried before, in words: "12D3…: refused: busy"."""
        ...

    @property
    def decisions(self) -> Sequence[Choice]:
        """How its providers were chosen, one for each attempt."""
        ...

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    @property
    def summary(self) -> ReplySummary:
        """After the iteration ended; raises `LocalProtocolError` before."""
        ...


class ClientRole(Protocol):
    """The client peer."""

    @property
    def peer(self) -> PeerId:
        """Our peer id: fresh for every run (rule H2)."""
        ...

    def generate(
        self, endpoint: str, body: Mapping[str, Any], *, spend_max_nano: Nano
    ) -> AbstractAsyncContextManager[Reply]:
        """Run one request, choosing the provider. `body` is OpenAI's, `endpoint` "chat.completions" or "completions".

        Entering the context returns once a provider has accepted. Raises `InvalidRequest`, `ModelNotFound`,
        `NoProvider`, `PriceTooHigh`, `AttestationError`, `Refused`, `Unavailable`; while iterating, `StreamBroken`.
        """
        ...

    async def offers(self, model: str | None = None, *, wait_s: float = 0.0) -> tuple[OfferView, ...]:
        """Current offers, cheapest first; waits up to `wait_s` for the first."""
        ...

    async def examine(self, provider: str, *, wait_s: float) -> SavedEvidence:
        """A provider's evidence, complete and unverified, for a fresh nonce of ours. Raises `NoProvider`."""
        ...

    @property
    def account_left_nano(self) -> Nano | None:
        """What the spending account holds and is promised to nobody; None without an account."""
        ...

    def connections(self) -> tuple[Connection, ...]:
        """Live connections."""
        ...

    def dial_failures(self) -> tuple[DialFailure, ...]:
        """Why others could not be reached."""
        ...
