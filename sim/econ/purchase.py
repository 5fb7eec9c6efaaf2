"""One request of a client, from the choice to its end: attempts, refusals, hedges, failover, and what is paid.

It plays the part of `cocoon.client`'s reply in virtual time: choose, open, wait; on a refusal or a failure choose
again, going on from the last received token; without a first token in time ask a second provider and keep who is
faster. Each attempt is an attempt of the real payer's budget, and each is paid for what was received.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from cocoon.errors import CocoonError, PaymentError, Refused, SpendCapReached
from cocoon.exchange import offer_facts
from cocoon.market.book import ListedOffer
from cocoon.market.selection import Choice
from cocoon.pay.budget import Attempt, AttemptTerms, Budget
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
from cocoon.types import MILLISECOND_NS, SECOND_NS, PeerId
from sim.econ.client import ClientPeer, Link
from sim.econ.provider import ProviderPeer
from sim.econ.rules import Pick

SHEDS_MAX: Final = 24  # refusals in one request before it is a failure
RETRY_NS: Final = 400 * MILLISECOND_NS  # nobody is left: look again
OUTPUT_HEADROOM: Final = 150  # percent: nobody knows beforehand how long the answer will be
PROMPT_SLACK: Final = 8  # the declared prompt is an estimate from above
SPEED_TOKENS_MIN: Final = 8  # fewer tell nothing of a provider's speed


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What somebody wants."""

    number: int
    model: bytes
    prompt_tokens: int
    tokens: int  # of the whole answer
    value_nano: int  # to the buyer, if it comes in time
    value_of_time_nano_per_s: int
    deadline_s: float
    at_ns: int
    only: int = -1  # the number of the one provider that may serve it


@dataclass(slots=True)
class Record:
    """What an order led to, for the tally."""

    first_ns: int | None = None
    end_ns: int = 0
    status: str = "failed"  # done, late, failed, declined, wrong, abandoned
    attempts: int = 0
    bad_attempts: int = 0
    refusals: int = 0
    hedges: int = 0
    failovers: int = 0
    paid_nano: int = 0
    wasted_nano: int = 0  # paid for attempts that were not the answer
    tokens: int = 0
    provider: int = -1
    gap_ns: int = 0  # longest silence between two pieces that a failover caused
    reasons: list[str] = field(default_factory=list)


class Purchase:
    """See the file's head. `done(purchase)` is called once."""

    def __init__(self, client: ClientPeer, order: Order, done: Callable[[Purchase], None]) -> None:
        self.client = client
        self.order = order
        self.record = Record()
        self.excluded: set[int] = set()
        self.excluded_peers: set[PeerId] = set()
        self.received = 0
        self.is_over = False
        self.choices: list[Choice] = []
        self._done = done
        self._budget: Budget | None = None
        self._tries: list[Try] = []
        self._winner: Try | None = None
        self._last_output_ns = 0
        self._failures = 0
        self._exclude_others()

    def _exclude_others(self) -> None:
        """Nobody is tried twice before everybody was; of an order for one provider, nobody else is tried at all."""
        self.excluded.clear()
        self.excluded_peers.clear()
        if self.order.only >= 0:
            others = [each for each in self.client.directory.values() if each.number != self.order.only]
            self.excluded.update(each.number for each in others)
            self.excluded_peers.update(each.peer for each in others)

    # --- what rules ask ----------------------------------------------------------------------------------

    @property
    def tokens_left(self) -> int:
        """Of the answer."""
        return max(1, self.order.tokens - self.received)

    @property
    def prompt_tokens(self) -> int:
        """The prompt of another attempt: what came so far is part of it."""
        return self.order.prompt_tokens + self.received

    @property
    def spent_nano(self) -> int:
        """By our own count, over all attempts."""
        return 0 if self._budget is None else self._budget.spent_nano

    @property
    def is_first(self) -> bool:
        """Nobody was asked yet."""
        return self.record.attempts == 0

    # --- choosing ----------------------------------------------------------------------------------------

    def go(self) -> None:
        """Start, and give up at the deadline."""
        kernel = self.client.env.kernel
        kernel.after(int(self.order.deadline_s * SECOND_NS), self._deadline)
        self._next()

    def _next(self) -> None:
        if self.is_over:
            return
        client = self.client
        if self._failures >= client.setup.attempts_max or self.record.refusals >= SHEDS_MAX:
            self._end("failed")
            return
        pick = client.rule.choose(client, self)
        if pick is None:
            is_open = self.order.only < 0 and client.offers(self.order.model)
            if self.is_first and not self.record.refusals and is_open:
                self._end("declined")  # nobody is worth it, or nobody may be asked
                return
            self._exclude_others()  # better somebody who refused before than nobody
            client.env.kernel.after(RETRY_NS, self._next)
            return
        self._ask(pick, is_hedge=False)

    def _ask(self, pick: Pick, *, is_hedge: bool) -> None:
        self.excluded.add(pick.provider.number)
        self.excluded_peers.add(pick.provider.peer)
        self.record.attempts += 1
        self.record.bad_attempts += not pick.provider.setup.is_honest
        self.record.hedges += is_hedge
        attempt = Try(self, pick.listed, pick.provider, is_hedge=is_hedge)
        self._tries.append(attempt)
        attempt.start()

    def hedge(self, slow: Try) -> None:
        """No first token in time: ask somebody else as well, while the budget for hedges allows."""
        client = self.client
        if self.is_over or slow.is_over or self._winner is not None or self.record.hedges:
            return
        if client.hedged_nano > client.setup.hedge_share * max(1, client.spent_nano):
            return
        pick = client.rule.choose(client, self)
        if pick is not None:
            self._ask(pick, is_hedge=True)

    def budget(self) -> Budget:
        """Set aside at the first attempt. Raises `SpendCapReached` or `PaymentError`."""
        if self._budget is None:
            self._budget = self.client.purse.payer.begin(self.order.value_nano)
        return self._budget

    # --- what tries tell ---------------------------------------------------------------------------------

    def is_taken(self, one: Try) -> bool:
        """Whether another attempt gives the answer."""
        return self._winner is not None and self._winner is not one

    def output(self, one: Try, tokens: int) -> None:
        """More of the answer came from this attempt."""
        now = self.client.env.now
        if self._winner is None:
            self._winner = one
            if self.record.first_ns is None:
                self.record.first_ns = now
            elif self._last_output_ns:
                self.record.gap_ns = max(self.record.gap_ns, now - self._last_output_ns)
            for other in self._tries:
                if other is not one and not other.is_over:
                    other.lose()
        self._last_output_ns = now
        self.received += tokens

    def finished(self, one: Try, *, is_wrong: bool) -> None:
        """The whole answer is here."""
        self.record.provider = one.provider.number
        elapsed_s = (self.client.env.now - self.order.at_ns) / SECOND_NS
        if is_wrong:
            self._end("wrong")
        else:
            self._end("done" if elapsed_s <= self.order.deadline_s else "late")

    def failed(self, one: Try, why: str, *, is_refusal: bool) -> None:
        """This attempt will give nothing more."""
        if self.is_over:
            return
        self.record.reasons.append(why)
        if is_refusal:
            self.record.refusals += 1
            self.record.attempts -= 1
            self.record.bad_attempts -= not one.provider.setup.is_honest
        else:
            self._failures += 1
        if self._winner is one:
            self._winner = None
            self.record.failovers += 1
        if any(not other.is_over for other in self._tries):
            return  # a hedge still runs
        self._next()

    def _deadline(self) -> None:
        if not self.is_over:
            self._end("late" if self.received else "failed")

    def _end(self, status: str) -> None:
        self.is_over = True
        for one in self._tries:
            if not one.is_over:
                one.lose()
        self.record.status = status
        self.record.end_ns = self.client.env.now
        self.record.tokens = self.received
        self._settle()
        self.client.purchases.remove(self)
        self._done(self)

    def abandon(self) -> None:
        """The client's process is gone."""
        self.is_over = True
        for one in self._tries:
            one.is_over = True
        self.record.status = "abandoned"
        self.record.end_ns = self.client.env.now
        self.client.purchases.remove(self)
        self._done(self)

    def _settle(self) -> None:
        if self._budget is None:
            return
        purse = self.client.purse
        purse.did(purse.payer.settle(self._budget, now=purse.now))
        self.record.paid_nano = self._budget.spent_nano
        self.record.wasted_nano = sum(
            each.attempt.meter.due_nano
            for each in self._tries
            if each.attempt is not None and each.provider.number != self.record.provider
        )
        self.client.spent_nano += self.record.paid_nano
        self.client.hedged_nano += sum(
            each.attempt.meter.due_nano for each in self._tries if each.is_hedge and each.attempt is not None
        )


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
        self._is_wrong = self._is_wrong or event.delta.text.startswith("WRNG")
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
