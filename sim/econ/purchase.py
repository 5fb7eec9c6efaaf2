"""One request of a client, from the choice to its end: attempts, refusals, hedges, failover, and what is paid.

It plays the part of `cocoon.client`'s reply in virtual time: choose, open, wait; on a refusal or a failure choose
again, going on from the last received token; without a first token in time ask a second provider and keep who is
faster. Each attempt (`trying.py`) is an attempt of the real payer's budget, and each is paid for what was received.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cocoon.market.selection import Choice
from cocoon.pay.budget import Budget
from cocoon.types import MILLISECOND_NS, SECOND_NS, PeerId
from sim.econ.client import ClientPeer
from sim.econ.orders import Order, Record
from sim.econ.rules import Pick
from sim.econ.trying import Try

SHEDS_MAX: Final = 24  # refusals in one request before it is a failure
RETRY_NS: Final = 400 * MILLISECOND_NS  # nobody is left: look again


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
