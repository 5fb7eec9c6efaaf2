"""One attempt of a purchase at one provider: a request on its session, an attempt of its budget, and patience.

It hears of its request (`heard`), tells the real payer what was received, and the purchase what that means. Silence
after `first_token_ms` or `stall_ms` is a failure; so is a prompt that is billed longer than it was.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from cocoon.errors import CocoonError, PaymentError, Refused, SpendCapReached
from cocoon.exchange import offer_facts
from cocoon.market.book import ListedOffer
from cocoon.pay.budget import Attempt, AttemptTerms
from cocoon.pay.metering import most_nano
from cocoon.serve.events import (
    OutputReceived,
    ReceiptReceived,
    RequestAccepted,
    RequestEnded,
    RequestFailed,
    RequestRefused,
)
from cocoon.serve.reasons import Reason
from cocoon.serve.receipts import cached_tokens_before_end
from cocoon.types import MILLISECOND_NS, SECOND_NS
from sim.econ.client import Link
from sim.econ.provider import ProviderPeer
from sim.econ.served import WRONG_WORD

if TYPE_CHECKING:
    from sim.econ.purchase import Purchase

OUTPUT_HEADROOM: Final = 150  # percent: nobody knows beforehand how long the answer will be
PROMPT_SLACK: Final = 8  # the declared prompt is an estimate from above
SPEED_TOKENS_MIN: Final = 8  # fewer tell nothing of a provider's speed


class Try:
    """One attempt at one provider."""

    def __init__(self, purchase: Purchase, listed: ListedOffer, provider: ProviderPeer, *, is_hedge: bool) -> None:
        self.purchase = purchase
        self.listed = listed
        self.provider = provider
        self.is_hedge = is_hedge
        self.attempt: Attempt | None = None
        self.is_over = False
        self._client = purchase.client
        self._link: Link | None = None
        self._id = -1
        self.began_ns = self._client.env.now
        self.ended_ns = 0
        self._accepted_ns = 0
        self._first_ns = 0
        self._tokens = 0
        self._prompt = purchase.prompt_tokens
        self._heard = 0  # of the newest output, so that an old timer means nothing
        self._is_wrong = False

    def start(self) -> None:
        """Through a session that is open, or is opened now."""
        counts = self._client.inflight
        counts[self.provider.number] = counts.get(self.provider.number, 0) + 1
        self._client.link(self.provider).when_ready(self._open)

    def _open(self, link: Link | None) -> None:
        if self.is_over:
            return
        if link is None:
            self._fail("unreachable")
            return
        purchase, client = self.purchase, self._client
        setup = client.setup
        offer = self.listed.offer
        terms = offer.offer.terms
        self._prompt = purchase.prompt_tokens
        input_max = self._prompt + PROMPT_SLACK
        output_max = min(purchase.tokens_left * OUTPUT_HEADROOM // 100, offer.offer.output_tokens_max)
        payer = client.purse.payer
        try:
            budget = purchase.budget()
            output_max = budget.output_tokens_affordable(
                offer.prices, input_tokens_max=input_max, most_tokens=output_max
            )
            if output_max < purchase.tokens_left:
                raise SpendCapReached("the rest of the answer does not fit the budget")
            self.attempt = payer.attempt(
                budget,
                AttemptTerms(
                    payout=terms.payout,
                    prices=offer.prices,
                    unpaid_tokens_max=terms.unpaid_tokens_max,
                    voucher_step_nano=terms.voucher_step_nano,
                ),
                input_tokens_max=input_max,
                output_tokens_max=output_max,
            )
        except (SpendCapReached, PaymentError) as error:
            self._fail("budget" if isinstance(error, SpendCapReached) else "account", is_their_fault=False)
            return
        is_patient = not client.rule.has_care or purchase.record.refusals >= setup.sheds_max
        body = {
            "prompt": self._prompt,
            "tokens": min(purchase.tokens_left, output_max),
            "request": purchase.order.number,
        }
        filler = "x" * (4 * self._prompt)
        self._link = link
        try:
            self._id = link.open(
                self,
                offer=offer_facts(offer),
                endpoint="chat.completions",
                body=json.dumps({**body, "filler": filler}).encode(),
                cache_tag=bytes(16),
                input_tokens_max=input_max,
                output_tokens_max=output_max,
                cost_max_nano=most_nano(offer.prices, input_tokens_max=input_max, output_tokens_max=output_max),
                wait_ms_max=setup.queue_wait_ms if is_patient else setup.shed_wait_ms,
                account=client.purse.account,
                voucher=payer.open_voucher(terms.payout),
            )
        except (Refused, CocoonError):
            self._fail("link", is_their_fault=False)
            return
        if client.rule.has_care and setup.hedge_ms and not self.is_hedge:
            client.env.kernel.after(setup.hedge_ms * MILLISECOND_NS, purchase.hedge, self)

    # --- events ------------------------------------------------------------------------------------------

    def heard(self, event: Any) -> None:
        """Of the session's machine."""
        match event:
            case RequestAccepted():
                self._accepted_ns = self._client.env.now
                self._watch(self._client.setup.first_token_ms + self._client.setup.queue_wait_ms)
            case OutputReceived():
                self._output(event)
            case ReceiptReceived():
                self._receipt(event)
            case RequestEnded():
                self._ended(event)
            case RequestRefused():
                self._refused(event)
            case RequestFailed():
                self._fail(event.reason)

    def _output(self, event: OutputReceived) -> None:
        if self.is_over or self.attempt is None:
            return
        client, purse = self._client, self._client.purse
        if event.prompt_tokens > self._prompt:  # we have counted the prompt ourselves
            if self._link is not None:
                self._link.cancel(self._id)
            client.mark(self.provider.number)
            self._fail("over-billed")
            return
        now = client.env.now
        added = event.completion_tokens - self._tokens
        self._tokens = event.completion_tokens
        self._heard += 1
        self._first_ns = self._first_ns or now
        self._is_wrong = self._is_wrong or event.delta.text.startswith(WRONG_WORD)
        if self.purchase.is_taken(self):
            return  # a hedge's loser, whose Cancel is on its way
        purse.did(
            purse.payer.received(
                self.attempt,
                prompt_tokens=event.prompt_tokens,
                completion_tokens=event.completion_tokens,
                cached_tokens=cached_tokens_before_end(self.attempt.terms.prices, event.prompt_tokens),
                now=purse.now,
            )
        )
        self.purchase.output(self, added)
        self._watch(client.setup.stall_ms)

    def _receipt(self, event: ReceiptReceived) -> None:
        """Its counts are our own, and after a cancel the only ones that we are told."""
        if self.attempt is None:
            return
        purse, body = self._client.purse, event.body
        purse.did(
            purse.payer.received(
                self.attempt,
                prompt_tokens=min(body.prompt_tokens, self._prompt),
                completion_tokens=body.completion_tokens,
                cached_tokens=cached_tokens_before_end(self.attempt.terms.prices, body.prompt_tokens),
                now=purse.now,
            )
        )
        if not body.final:
            purse.did(purse.payer.receipt(self.attempt, now=purse.now))

    def _ended(self, event: RequestEnded) -> None:
        if self.attempt is not None:
            purse = self._client.purse
            purse.did(purse.payer.ended(self.attempt, payable_nano=event.receipt.payable_nano, now=purse.now))
        if self.is_over:
            return
        self._close()
        client = self._client
        now = client.env.now
        is_noticed = self._is_wrong and client.chance.chance(client.setup.notices)
        if is_noticed:
            client.mark(self.provider.number)
            client.history.failed(self.listed.reputation_key, now=client.now)
        else:
            decode_ns = now - self._first_ns
            enough = self._tokens >= SPEED_TOKENS_MIN and decode_ns > 0
            client.history.succeeded(
                self.listed.reputation_key,
                model=self.purchase.order.model,
                first_token_ms=((self._first_ns or now) - self._accepted_ns) / MILLISECOND_NS,
                tokens_per_s=self._tokens * SECOND_NS / decode_ns if enough else None,
                now=client.now,
            )
        self._note(is_good=not is_noticed)
        if self.purchase.received < self.purchase.order.tokens:
            self.purchase.failed(self, "short", is_refusal=False)
            return
        self.purchase.finished(self, is_wrong=self._is_wrong)

    def _refused(self, event: RequestRefused) -> None:
        if self.attempt is not None:
            purse = self._client.purse
            purse.did(purse.payer.close(self.attempt, now=purse.now))
            if event.reason == Reason.PAYMENT_REQUIRED.value:
                ceiling = event.detail.rpartition(" ")[2]
                if ceiling.isdigit() and int(ceiling):
                    payout = self.listed.offer.offer.terms.payout
                    purse.did(purse.payer.ceiling_wanted(payout, int(ceiling), now=purse.now))
        if self.is_over:
            return
        self._close()
        client = self._client
        client.history.refused(self.listed.reputation_key, retry_after_ms=event.retry_after_ms, now=client.now)
        self._note(is_good=True)
        self.purchase.failed(self, f"refused {event.reason}", is_refusal=True)

    def _fail(self, why: str, *, is_their_fault: bool = True) -> None:
        if self.is_over:
            return
        self._close()
        client = self._client
        if self.attempt is not None:
            purse = client.purse
            purse.did(purse.payer.close(self.attempt, now=purse.now))
        if is_their_fault:
            client.history.failed(self.listed.reputation_key, now=client.now)
            self._note(is_good=False)
        self.purchase.failed(self, why, is_refusal=False)

    def lose(self) -> None:
        """Another attempt was faster, or the request is over: stop this one, and pay what came."""
        self._close()
        purse = self._client.purse
        if self.attempt is not None:
            purse.did(purse.payer.close(self.attempt, now=purse.now))
        if self._link is not None and self._id >= 0:
            self._link.cancel(self._id)

    def _close(self) -> None:
        self.is_over = True
        self.ended_ns = self._client.env.now
        counts = self._client.inflight
        counts[self.provider.number] = max(0, counts.get(self.provider.number, 0) - 1)

    def _note(self, *, is_good: bool) -> None:
        now = self._client.env.now
        first_s = (self._first_ns - self.began_ns) / SECOND_NS if self._first_ns else None
        total_s = (now - self.began_ns) / SECOND_NS
        self._client.rule.noted(self.provider.number, first_s=first_s, total_s=total_s, is_good=is_good, now=now)

    # --- patience ----------------------------------------------------------------------------------------

    def _watch(self, wait_ms: int) -> None:
        self._client.env.kernel.after(wait_ms * MILLISECOND_NS, self._silent, self._heard)

    def _silent(self, heard: int) -> None:
        if self.is_over or heard != self._heard:
            return
        if self._link is not None:
            self._link.cancel(self._id)
        self._fail("stalled")
