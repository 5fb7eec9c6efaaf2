"""One request on its way: choose, open, wait, read; and choose again while nothing was shown yet.

Every attempt runs the same frozen request: its trust level, its price ceiling, its spending limit (rules S9, M2). An
attempt may be repeated elsewhere only until the first piece of output has been handed to the caller; after that
the death of a provider is an error that says so. The prompt leaves only for a session that was judged.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio

from ..attest.policy import TrustPolicy
from ..errors import (
    AttestationError,
    BadSignature,
    CocoonError,
    InvalidRequest,
    LocalProtocolError,
    Refused,
    RemoteProtocolError,
    StreamBroken,
    Unavailable,
)
from ..exchange import offer_facts
from ..market.book import ListedOffer
from ..market.offer import VerifiedOffer
from ..market.selection import Choice, Scored
from ..pay.budget import Attempt, Budget
from ..pay.refusals import PaymentRefused
from ..ports import Delta
from ..serve.events import OutputReceived, RequestAccepted, RequestEnded
from ..serve.openai import encode_body
from ..serve.reasons import Reason
from ..types import MILLISECOND_NS, SECOND_NS, Digest, Feature, Nano, PeerId, TrustLevel, due_nano
from .interface import OfferView, ReceiptView, ReplySummary
from .link import ProviderLink, RequestEvent, RunningRequest
from .views import offer_view

if TYPE_CHECKING:
    from .role import Client

log = logging.getLogger("cocoon.client")

STALE_KEY_RETRIES_MAX: Final = 2  # the same provider, with its new key
CACHE_TAG_BYTES: Final = 16
OUTPUT_SHARE: Final = 4  # without a limit in the request, at least a quarter of the context is left for the answer
RESERVATION_WAIT_S: Final = 3.0  # a claim with a reservation is on chain within some blocks
RESERVATION_WAITS_MAX: Final = 10
SPEED_TOKENS_MIN: Final = 8  # fewer tell nothing of a provider's speed


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenRequest:
    """What every attempt of a request is held to."""

    endpoint: str
    model: Digest
    body: Mapping[str, Any] = field(repr=False)  # normalised, without its output limit
    prompt_tokens_bound: int  # no tokenizer makes more of it
    output_tokens_max: int | None  # as the caller said
    features: Feature
    policy: TrustPolicy
    spend_max_nano: Nano


class RunningReply:
    """The `Reply` of `cocoon.client.interface`."""

    def __init__(self, client: Client, request: FrozenRequest) -> None:
        self._client = client
        self._request = request
        self._started_ns = client.clock.now()
        self._budget: Budget | None = None  # from the first paid attempt on
        self._attempt: Attempt | None = None  # the paid one that runs, or ran last
        self._refusal: PaymentRefused | None = None  # the last that was for our money
        self._reserved: set[PeerId] = set()  # who wanted a reservation, and got it signed
        self._reservation_waits = 0
        self._attempts: list[str] = []
        self._excluded: set[PeerId] = set()
        self._stale_keys = 0
        self._looked_again = False
        self._running: RunningRequest | None = None
        self._listed: ListedOffer | None = None
        self._view: OfferView | None = None
        self._trust: TrustLevel | None = None
        self._accepted_ns = 0
        self._first_ns = 0
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._summary: ReplySummary | None = None
        self.choices: list[Choice] = []

    # --- what the caller sees ----------------------------------------------------------------------------

    @property
    def provider(self) -> PeerId:
        """Who serves it."""
        return self._current.offer.provider

    @property
    def offer(self) -> OfferView:
        """Under which offer, as it stood when it was first asked for: making a view costs as much as half a token."""
        if self._view is None or self._view.digest != self._current.offer.digest:
            self._view = offer_view(self._current, now=self._client.clock.now())
        return self._view

    @property
    def trust(self) -> TrustLevel:
        """What was proven before the prompt left."""
        if self._trust is None:
            raise LocalProtocolError("no provider has been trusted yet")
        return self._trust

    @property
    def prompt_tokens(self) -> int:
        """As the provider counted."""
        return self._prompt_tokens

    @property
    def first_token_ms(self) -> float | None:
        """From the call to the first output."""
        return (self._first_ns - self._started_ns) / MILLISECOND_NS if self._first_ns else None

    @property
    def attempts(self) -> tuple[str, ...]:
        """What failed before, in words."""
        return tuple(self._attempts)

    @property
    def cost_nano(self) -> Nano:
        """Over all attempts so far, failed ones included; what asks for no payment is counted at its prices."""
        if self._summary is not None:
            return self._summary.cost_nano
        paid_nano = self._paid_nano
        if self._attempt is not None or not self._completion_tokens:
            return paid_nano
        return paid_nano + due_nano(
            self._current.offer.prices,
            input_tokens=self._prompt_tokens,
            cached_tokens=0,
            output_tokens=self._completion_tokens,
        )

    @property
    def _paid_nano(self) -> Nano:
        return 0 if self._budget is None else self._budget.spent_nano

    @property
    def summary(self) -> ReplySummary:
        """After the end."""
        if self._summary is None:
            raise LocalProtocolError("the reply has not ended")
        return self._summary

    @property
    def _current(self) -> ListedOffer:
        if self._listed is None:
            raise LocalProtocolError("no provider has been chosen yet")
        return self._listed

    # --- running -----------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Return once a provider has accepted. Raises the last attempt's error, or that there is nobody."""
        while True:
            choice = await self._client.choose(self._request, excluded=frozenset(self._excluded), spent=self._paid_nano)
            self.choices.append(choice)
            if choice.chosen is None and not self._looked_again:
                self._looked_again = True  # what we know may be old: ask once more before giving up
                await self._client.look_up(self._request.model)
                continue
            if choice.chosen is None and self._reserved and self._reservation_waits < RESERVATION_WAITS_MAX:
                self._reservation_waits += 1
                await trio.sleep(RESERVATION_WAIT_S)
                self._excluded -= self._reserved
                continue
            if choice.chosen is None:
                nobody = choice.error(tried=(*self._client.tried(self._request.model), *self._attempts))
                if self._refusal is not None:
                    raise self._refusal from nobody
                raise nobody
            limits = self._token_limits(choice.chosen.offer)
            attempt = await self._attempt_at(choice.chosen.offer, limits)  # our own money: no provider helps
            try:
                await self._open(choice.chosen, limits, attempt)
                return
            except CocoonError as error:
                self._failed(choice.chosen.candidate.listed, error)

    def __aiter__(self) -> AsyncIterator[Delta]:
        """Deltas until the end; another provider takes over while none was yielded."""
        return self

    async def __anext__(self) -> Delta:
        """The next delta."""
        while True:
            if self._summary is not None:
                raise StopAsyncIteration
            try:
                event = await self._next()
            except CocoonError as error:
                self._failed(self._current, error)  # raises, unless somebody else may try
                await self.begin()
                continue
            if isinstance(event, RequestEnded):
                self._end(event)
                continue
            self._prompt_tokens = event.prompt_tokens
            self._completion_tokens = event.completion_tokens
            self._first_ns = self._first_ns or self._client.clock.now()
            return event.delta

    def cancel(self) -> None:
        """Stop at the provider, if it still runs. What it sent before that stays billed."""
        if self._running is not None:
            self._running.cancel()
        if self._budget is not None and self._client.spending is not None:
            self._client.spending.over(self._budget)

    async def _open(self, scored: Scored, limits: tuple[int, int], attempt: Attempt | None) -> None:
        listed = scored.candidate.listed
        offer = listed.offer
        try:
            link, level = await self._client.pool.trusted_link(offer, policy=self._request.policy)
            running = self._send(link, offer, limits, attempt)
        except BaseException:
            if attempt is not None and self._client.spending is not None:
                self._client.spending.close(attempt)
            raise
        self._attempt = attempt
        try:
            await running.next_event()  # `RequestAccepted`, or it raises; the machine bounds the wait
        except BaseException:
            running.cancel()
            raise
        self._listed = listed
        self._running = running
        self._trust = level
        self._accepted_ns = self._client.clock.now()
        log.debug("request.accepted", extra={"provider": offer.provider, "offer": offer.digest.hex()})

    def _token_limits(self, offer: VerifiedOffer) -> tuple[int, int]:
        return token_limits(
            prompt_tokens_bound=self._request.prompt_tokens_bound,
            output_tokens_wanted=self._request.output_tokens_max,
            output_tokens_default=self._client.settings.output_tokens_default,
            context_tokens_max=offer.offer.context_tokens_max,
            output_tokens_offered=offer.offer.output_tokens_max,
        )

    async def _attempt_at(self, offer: VerifiedOffer, limits: tuple[int, int]) -> Attempt | None:
        """Set aside what this attempt may cost, within what the request may; None where nothing is to be paid.

        Raises `PaymentError` and `SpendCapReached`.
        """
        if not offer_facts(offer).is_paid:
            return None
        spending = self._client.spending
        assert spending is not None, "paid offers are only chosen by clients with an account"
        if self._budget is None:
            self._budget = await spending.begin()
        return await spending.attempt(
            self._budget,
            offer,
            cost_max_nano=self._request.spend_max_nano,
            input_tokens_max=limits[0],
            output_tokens_max=limits[1],
        )

    def _send(
        self, link: ProviderLink, offer: VerifiedOffer, limits: tuple[int, int], attempt: Attempt | None
    ) -> RunningRequest:
        request = self._request
        input_tokens_max, output_tokens_max = limits
        if attempt is not None:
            most_nano = attempt.most_nano
        else:
            most_nano = due_nano(
                offer.prices, input_tokens=input_tokens_max, cached_tokens=0, output_tokens=output_tokens_max
            )
        return link.open(
            offer=offer_facts(offer),
            endpoint=request.endpoint,
            body=encode_body({**request.body, "max_tokens": output_tokens_max}),
            cache_tag=self._client.entropy(CACHE_TAG_BYTES),
            input_tokens_max=input_tokens_max,
            output_tokens_max=output_tokens_max,
            cost_max_nano=min(most_nano, request.spend_max_nano - self._paid_nano),
            wait_ms_max=int(self._client.settings.queue_wait_s * 1_000),
            attempt=attempt,
        )

    async def _next(self) -> OutputReceived | RequestEnded:
        running = self._running
        assert running is not None
        settings = self._client.settings
        timeout_s = settings.stall_timeout_s
        if not self._completion_tokens:
            timeout_s = settings.first_token_timeout_s + settings.queue_wait_s
        event: RequestEvent
        with trio.move_on_after(timeout_s) as patience:
            event = await running.next_event()
        if patience.cancelled_caught:
            running.cancel()
            raise StreamBroken(f"the provider sent nothing for {timeout_s:.0f} s")
        if isinstance(event, RequestAccepted):
            raise StreamBroken("the provider accepted one request twice")
        return event

    # --- endings -----------------------------------------------------------------------------------------

    def _end(self, event: RequestEnded) -> None:
        now = self._client.clock.now()
        body = event.receipt.body
        self._summary = ReplySummary(
            finish_reason=event.finish_reason,
            usage=event.usage,
            receipt=ReceiptView(
                verified=True,  # the machine lets no other receipt end a request
                session=body.session,
                request_id=body.id,
                prompt_tokens=body.prompt_tokens,
                cached_tokens=body.cached_tokens,
                completion_tokens=body.completion_tokens,
                due_nano=body.due_nano,
                signature=event.receipt.signature,
                body=event.receipt.receipt,
            ),
            cost_nano=self._paid_nano + (event.receipt.payable_nano if self._attempt is None else 0),
        )
        tokens = event.usage.completion_tokens
        decode_ns = now - self._first_ns
        self._client.history.succeeded(
            self._current.reputation_key,
            model=self._request.model,
            first_token_ms=((self._first_ns or now) - self._accepted_ns) / MILLISECOND_NS,
            tokens_per_s=tokens * SECOND_NS / decode_ns if tokens >= SPEED_TOKENS_MIN and decode_ns > 0 else None,
            now=now,
        )

    def _failed(self, listed: ListedOffer, error: CocoonError) -> None:
        """Note the failure. Raises `error` unless another provider may be tried."""
        now = self._client.clock.now()
        provider = listed.offer.provider
        reason = error.reason if isinstance(error, Refused) else ""
        self._attempts.append(f"{provider}: {error}")
        log.info("request.attempt_failed", extra={"provider": provider, "error": error.code, "reason": reason})
        if isinstance(error, Refused):
            if reason == Reason.STALE_KEY.value and self._stale_keys < STALE_KEY_RETRIES_MAX:
                self._stale_keys += 1
                return
            self._client.history.refused(listed.reputation_key, retry_after_ms=error.retry_after_ms, now=now)
        elif isinstance(error, PaymentRefused):
            self._refusal = error
            self._reserve(listed.offer, error)
        elif _is_providers_fault(error):
            self._client.history.failed(listed.reputation_key, now=now)
        self._excluded.add(provider)
        is_shown = self._first_ns != 0
        if is_shown and isinstance(error, StreamBroken):
            raise StreamBroken(
                f"provider {provider} was lost in the middle of the answer: {error}",
                advice="What came so far is not the whole answer. Ask again: another provider will be chosen.",
            ) from error
        if is_shown or not _may_try_elsewhere(error) or len(self._excluded) >= self._client.settings.attempts_max:
            raise error

    def _reserve(self, offer: VerifiedOffer, refusal: PaymentRefused) -> None:
        """Sign the reservation that would let us in, as far as the user allows; it counts once it is on chain."""
        spending = self._client.spending
        if not refusal.ceiling_nano or spending is None:
            return
        payout = offer.offer.terms.payout
        spending.ceiling_wanted(payout, refusal.ceiling_nano)
        ledger = spending.payer.ledger(payout)
        if ledger is not None and ledger.ceiling_nano >= refusal.ceiling_nano:
            self._reserved.add(offer.provider)


def token_limits(
    *,
    prompt_tokens_bound: int,
    output_tokens_wanted: int | None,
    output_tokens_default: int,
    context_tokens_max: int,
    output_tokens_offered: int,
) -> tuple[int, int]:
    """How an `Open` splits the model's context into prompt and answer, without a tokenizer.

    A wanted output is kept as long as the context can hold it at all. Otherwise the default, or what the prompt
    may leave; at least a quarter of the context. Returns (input_tokens_max, output_tokens_max).
    """
    most = min(output_tokens_offered, context_tokens_max - 1)
    if output_tokens_wanted is not None:
        output = min(output_tokens_wanted, most)
    else:
        room = max(context_tokens_max - prompt_tokens_bound, context_tokens_max // OUTPUT_SHARE, 1)
        output = min(output_tokens_default, most, room)
    return min(prompt_tokens_bound, context_tokens_max - output), output


def _is_providers_fault(error: CocoonError) -> bool:
    return isinstance(error, (Unavailable, RemoteProtocolError, AttestationError, BadSignature))


def _may_try_elsewhere(error: CocoonError) -> bool:
    if isinstance(error, InvalidRequest):
        return False
    return error.retryable or _is_providers_fault(error)
