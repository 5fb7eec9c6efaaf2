"""One request on its way: choose, open, wait, read; and when a provider is lost, go on at another one.

Every attempt runs the same frozen request: its trust level, its price ceiling, its spending limit (rules S9, M2). The
prompt leaves only for a session that was judged. Once output has been shown, the next provider of the same model gets
the tokens so far as the beginning of its answer, and checks them itself (`cocoon.ports.engine.Continued`): the caller
sees one answer without a gap. Greedy output is the same as without the loss; sampled output goes on with a seed made
of the old one and the place. Answers with tools or a schema cannot be continued, because a grammar cannot be entered
in the middle: once a part was shown, the loss of their provider is an error.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from ..serve.openai import encode_body, with_beginning
from ..serve.reasons import Reason
from ..types import (
    MILLISECOND_NS,
    SECOND_NS,
    Digest,
    Feature,
    FinishReason,
    Nano,
    PeerId,
    TrustLevel,
    Usage,
    due_nano,
)
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
FIRST_TOKEN_PATIENCE: Final = 4  # times as long before the first token: a long prompt keeps a machine busy
_WITH_GRAMMAR: Final = Feature.TOOLS | Feature.JSON_SCHEMA
PROBE_EVERY_S: Final = 1.5  # while a provider is silent; well under what it takes for a flood of pings


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
        self._first_ns = 0  # of the whole answer
        self._began_ns = 0  # of this attempt's output
        self._prompt_tokens = 0  # without what was continued
        self._shown_ids: list[int] = []  # what the caller has, to be continued from
        self._shown_text: list[str] = []
        self._textless_tokens = 0  # of them, the last ones that may have no text yet, stop words apart
        self._made_again = 0  # tokens that the caller has, and whose text this attempt still has to bring
        self._kept_tokens = 0  # of it, what this attempt goes on from
        self._output_tokens_max = 0  # of the whole answer, as the first provider was asked
        self._is_all_shown = False  # only the end was lost: what comes now is one token too many
        self._attempt_tokens = (0, 0)  # prompt and completion, as this attempt's provider counts
        self._free_nano = 0  # lost attempts that ask for no payment, at their prices
        self._failed_since: set[PeerId] = set()  # since output was last seen
        self._resumes = 0
        self._summary: ReplySummary | None = None
        self._decisions: list[Choice] = []

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
        """What was proven before the prompt left: by the weakest of those who got it."""
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
    def decisions(self) -> Sequence[Choice]:
        """How its providers were chosen, one for each attempt."""
        return self._decisions

    @property
    def cost_nano(self) -> Nano:
        """Over all attempts so far, failed ones included; what asks for no payment is counted at its prices."""
        return self._spent_nano if self._summary is not None else self._spent_nano + self._unpaid_nano

    @property
    def _spent_nano(self) -> Nano:
        """Of attempts that are over, and what was signed."""
        return self._free_nano + (0 if self._budget is None else self._budget.spent_nano)

    @property
    def _unpaid_nano(self) -> Nano:
        """What the running attempt would cost, if it asks for no payment."""
        prompt_tokens, completion_tokens = self._attempt_tokens
        if self._attempt is not None or not completion_tokens:
            return 0
        return due_nano(
            self._current.offer.prices,
            input_tokens=prompt_tokens,
            cached_tokens=0,
            output_tokens=completion_tokens,
        )

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
            choice = await self._client.choose(
                self._request, excluded=frozenset(self._excluded), spent=self._spent_nano
            )
            self._decisions.append(choice)
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
                await self._open_in_time(choice.chosen, limits, attempt)
                return
            except CocoonError as error:
                self._failed(choice.chosen.candidate.listed, error)

    def __aiter__(self) -> AsyncIterator[Delta]:
        """Deltas until the end; another provider takes over when one is lost."""
        return self

    async def __anext__(self) -> Delta:
        """The next delta."""
        while True:
            if self._summary is not None:
                raise StopAsyncIteration
            try:
                event = await self._next()
            except CocoonError as error:
                await self._move(error)
                continue
            if isinstance(event, RequestEnded):
                self._end(event)
            elif (delta := self._taken(event)) is not None:
                return delta

    def _taken(self, event: OutputReceived) -> Delta | None:
        now = self._client.clock.now()
        self._failed_since.clear()
        if not self._began_ns:
            self._began_ns = now
            self._first_ns = self._first_ns or now
            self._joined(event.prompt_tokens)
        self._attempt_tokens = (event.prompt_tokens, event.completion_tokens)
        if self._is_all_shown:
            return None
        delta = event.delta
        self._shown_ids += delta.token_ids
        self._shown_text.append(delta.text)
        count = len(delta.token_ids)
        self._textless_tokens = max(0, count - 1) if delta.text else self._textless_tokens + count
        if self._made_again and count:  # the caller has had them, with their log-probabilities: none comes twice
            known = min(self._made_again, count)
            self._made_again -= known
            delta = replace(delta, token_ids=delta.token_ids[known:], logprobs=delta.logprobs[known:])
            if not (delta.text or delta.token_ids):
                return None
        return delta

    def _joined(self, prompt_tokens: int) -> None:
        """An attempt's first words. Its prompt was ours and the beginning: the difference is what it goes on from.

        Either provider may lie about its prompt. What no honest two could say is not believed: then all was kept, so
        that no lie makes room for more tokens than were asked for, or takes shown ones out of the count.
        """
        if not self._shown_ids:
            self._prompt_tokens = prompt_tokens
            return
        shown, kept = len(self._shown_ids), prompt_tokens - self._prompt_tokens
        held_back = max((len(word.encode()) for word in self._request.body.get("stop") or ()), default=0)
        least = max(shown - held_back - self._textless_tokens, 1 if any(self._shown_text) else 0)
        self._kept_tokens = kept if least <= kept <= shown else shown
        del self._shown_ids[self._kept_tokens :]
        self._made_again += shown - self._kept_tokens  # what the attempt before did not get to make again counts, too
        self._is_all_shown = self._is_all_shown and self._kept_tokens == shown  # or the last words are still to come

    async def _move(self, error: CocoonError) -> None:
        """Another provider goes on with the answer. Raises what the caller must know when nobody can."""
        lost = self._current
        if self._attempt is not None and self._client.spending is not None:
            self._client.spending.close(self._attempt)  # what a silent provider sends now, nobody waits for (M2)
        try:
            self._failed(lost, error)
            await self.begin()
        except CocoonError as final:
            if not self._first_ns or (final is error and not isinstance(error, StreamBroken)):
                raise
            nobody = "" if final is error else f"; and nobody could go on: {final}"
            raise StreamBroken(
                f"provider {lost.offer.provider} was lost in the middle of the answer: {error}{nobody}",
                advice="What came so far is not the whole answer. Ask again: another provider will be chosen.",
            ) from error

    def cancel(self) -> None:
        """Stop at the provider, if it still runs. What it sent before that stays billed."""
        if self._running is not None:
            self._running.cancel()
        if self._budget is not None and self._client.spending is not None:
            self._client.spending.over(self._budget)

    async def _open_in_time(self, scored: Scored, limits: tuple[int, int], attempt: Attempt | None) -> None:
        """`_open`; when an answer is to go on, whoever is slow to take it is passed over."""
        if not self._first_ns:
            await self._open(scored, limits, attempt)
            return
        patience_s = self._client.settings.move_timeout_s
        with trio.move_on_after(patience_s) as patience:
            await self._open(scored, limits, attempt)
        if patience.cancelled_caught:
            if attempt is not None and self._client.spending is not None:
                self._client.spending.close(attempt)  # or its worst case would stay set aside, and stop the next one
            raise Unavailable(f"did not take the answer over within {patience_s:g} s")

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
        if self._trust is None or level.rank < self._trust.rank:
            self._trust = level  # it has left, whatever comes of it
        try:
            await running.next_event()  # `RequestAccepted`, or it raises; the machine bounds the wait
        except BaseException:
            running.cancel()
            raise
        self._listed = listed
        self._running = running
        self._began_ns = 0
        self._attempt_tokens = (0, 0)
        if not self._shown_ids:
            self._output_tokens_max = limits[1]
        self._accepted_ns = self._client.clock.now()
        log.debug("request.accepted", extra={"provider": offer.provider, "offer": offer.digest.hex()})

    def _token_limits(self, offer: VerifiedOffer) -> tuple[int, int]:
        shown = len(self._shown_ids)
        return token_limits(
            prompt_tokens_bound=self._request.prompt_tokens_bound + shown,
            output_tokens_wanted=max(1, self._output_tokens_max - shown) if shown else self._request.output_tokens_max,
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
            cost_max_nano=self._request.spend_max_nano - self._free_nano,
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
            body=encode_body(self._body(output_tokens_max)),
            cache_tag=self._client.entropy(CACHE_TAG_BYTES),
            input_tokens_max=input_tokens_max,
            output_tokens_max=output_tokens_max,
            cost_max_nano=min(most_nano, request.spend_max_nano - self._spent_nano),
            wait_ms_max=int(self._client.settings.queue_wait_s * 1_000),
            attempt=attempt,
        )

    def _body(self, output_tokens_max: int) -> dict[str, Any]:
        """What is sealed: the request, and the beginning of the answer where there is one."""
        body = {**self._request.body, "max_tokens": output_tokens_max}
        if not self._shown_ids:
            return body
        seed = body.get("seed")
        if isinstance(seed, int) and body.get("temperature") != 0:
            body["seed"] = seed_at(seed, len(self._shown_ids))
        return with_beginning(body, self._shown_ids, "".join(self._shown_text))

    async def _next(self) -> OutputReceived | RequestEnded:
        running = self._running
        assert running is not None
        settings = self._client.settings
        is_streaming = self._began_ns != 0
        timeout_s = settings.stall_timeout_s
        if not is_streaming:
            timeout_s = settings.first_token_timeout_s + settings.queue_wait_s
        event: RequestEvent | None = running.event_nowait()
        if event is None:
            quiet_s = settings.quiet_s if is_streaming else min(timeout_s, settings.quiet_s * FIRST_TOKEN_PATIENCE)
            event = await self._wait(running, timeout_s=timeout_s, quiet_s=quiet_s)
        if isinstance(event, RequestAccepted):
            raise StreamBroken("the provider accepted one request twice")
        return event

    async def _wait(self, running: RunningRequest, *, timeout_s: float, quiet_s: float) -> RequestEvent:
        """The next event. A provider that is silent is asked whether it lives; a slow engine may take its time."""
        settings = self._client.settings
        give_up = trio.current_time() + timeout_s
        patience_s = quiet_s
        while True:
            event = await _event_within(running, min(patience_s, max(0.0, give_up - trio.current_time())))
            if event is not None:
                return event
            if trio.current_time() >= give_up:
                running.cancel()
                raise StreamBroken(f"the provider sent nothing for {timeout_s:.0f} s")
            asked_ns = running.probe()
            event = await _event_within(running, settings.probe_timeout_s)
            if event is not None:
                return event
            if running.heard_ns < asked_ns and await self._has_another():
                running.cancel()
                silent_s = patience_s + settings.probe_timeout_s
                raise StreamBroken(f"the provider has been silent for {silent_s:.1f} s and does not answer")
            patience_s = PROBE_EVERY_S

    async def _has_another(self) -> bool:
        """Whether somebody else could take over. With nobody else, waiting is better than giving up."""
        excluded = frozenset((*self._excluded, self._current.offer.provider))
        try:
            choice = await self._client.choose(self._request, excluded=excluded, spent=self._spent_nano)
        except CocoonError:  # only paid offers are left, say: nobody, either
            return False
        return choice.chosen is not None

    # --- endings -----------------------------------------------------------------------------------------

    def _end(self, event: RequestEnded) -> None:
        now = self._client.clock.now()
        body = event.receipt.body
        if not self._began_ns:
            self._joined(event.usage.prompt_tokens)  # it had nothing to add
        self._summary = ReplySummary(
            finish_reason=FinishReason.LENGTH if self._is_all_shown else event.finish_reason,
            usage=self._usage(event.usage),
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
            cost_nano=self._spent_nano + (event.receipt.payable_nano if self._attempt is None else 0),
        )
        self._free_nano += event.receipt.payable_nano if self._attempt is None else 0
        tokens = event.usage.completion_tokens
        decode_ns = now - self._began_ns
        self._client.history.succeeded(
            self._current.reputation_key,
            model=self._request.model,
            first_token_ms=((self._began_ns or now) - self._accepted_ns) / MILLISECOND_NS,
            tokens_per_s=tokens * SECOND_NS / decode_ns
            if tokens >= SPEED_TOKENS_MIN and self._began_ns and decode_ns > 0
            else None,
            now=now,
        )

    def _usage(self, usage: Usage) -> Usage:
        """Of the whole answer: the prompt once, and every token that was shown."""
        if not self._resumes:
            return usage
        shown = self._output_tokens_max if self._is_all_shown else self._kept_tokens + usage.completion_tokens
        return Usage(prompt_tokens=self._prompt_tokens, completion_tokens=shown)

    def _failed(self, listed: ListedOffer, error: CocoonError) -> None:
        """Note the failure. Raises `error` unless another provider may be tried."""
        now = self._client.clock.now()
        provider = listed.offer.provider
        self._free_nano += self._unpaid_nano
        self._attempt_tokens = (0, 0)
        self._failed_since.add(provider)
        self._reserved.discard(provider)  # a reservation lets nobody back in who failed for another reason
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
        may_go_on = _may_try_elsewhere(error) or (self._shown_ids and isinstance(error, InvalidRequest))
        settings = self._client.settings
        tries = settings.moves_max if self._first_ns else settings.attempts_max
        if not may_go_on or len(self._failed_since) >= tries:
            raise error
        if self._first_ns and self._began_ns:
            if self._request.features & _WITH_GRAMMAR or self._resumes >= settings.resumes_max:
                raise error
            if not self._shown_ids and any(self._shown_text):
                raise error  # text without tokens: whoever went on would begin anew, and the user see it twice
            self._resumes += 1
            self._began_ns = 0
            self._is_all_shown = len(self._shown_ids) >= self._output_tokens_max > 0

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


async def _event_within(running: RunningRequest, seconds: float) -> RequestEvent | None:
    event: RequestEvent | None = None
    with trio.move_on_after(seconds):
        event = await running.next_event()
    return event  # noqa: RET504 None when the time is over


def seed_at(seed: int, position: int) -> int:
    """The seed with which a sampled answer goes on after so many tokens. It is continuous, not the same."""
    digest = hashlib.sha256(b"cocoon/seed/v1\0" + seed.to_bytes(9, "big", signed=True) + position.to_bytes(8, "big"))
    return int.from_bytes(digest.digest()[:4], "big")


def _is_providers_fault(error: CocoonError) -> bool:
    return isinstance(error, (Unavailable, RemoteProtocolError, AttestationError, BadSignature))


def _may_try_elsewhere(error: CocoonError) -> bool:
    if isinstance(error, InvalidRequest):
        return False
    return error.retryable or _is_providers_fault(error)
