"""What one request of a user may cost, shared by all its attempts, hedges and failovers included (rule M2).

An attempt is opened only while its worst case fits beside what the others have cost and may still cost. So no attempt
that was opened ever runs out of money, and all of them together never pass the budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..errors import LocalProtocolError, SpendCapReached
from ..types import Nano, Prices, format_ton
from .metering import Meter, affordable_output_tokens, most_nano

ATTEMPTS_MAX: Final = 64  # of one request; nobody fails over more often


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptTerms:
    """What an offer says about paying for it."""

    payout: bytes
    prices: Prices
    unpaid_tokens_max: int
    voucher_step_nano: Nano = 0


class Budget:
    """Made by `Payer.begin`, ended by `Payer.settle`."""

    __slots__ = ("attempts", "cost_max_nano", "is_settled", "spent_nano")

    def __init__(self, cost_max_nano: Nano) -> None:
        self.cost_max_nano = cost_max_nano
        self.spent_nano: Nano = 0  # due by our own count, over all attempts
        self.attempts: list[Attempt] = []
        self.is_settled = False

    @property
    def left_nano(self) -> Nano:
        """What a new attempt may cost at most: its `OpenHeader.cost_max_nano`."""
        committed = sum(each.most_nano - each.meter.due_nano for each in self.attempts if each.is_open)
        return max(0, self.cost_max_nano - self.spent_nano - committed)

    def output_tokens_affordable(self, prices: Prices, *, input_tokens_max: int, most_tokens: int) -> int:
        """The longest output an attempt could declare within what is left."""
        return affordable_output_tokens(
            prices, input_tokens_max=input_tokens_max, budget_nano=self.left_nano, most_tokens=most_tokens
        )

    def attempt(self, terms: AttemptTerms, *, input_tokens_max: int, output_tokens_max: int) -> Attempt:
        """Open one. Raises `SpendCapReached` when its worst case does not fit; then nothing has changed."""
        if self.is_settled:
            raise LocalProtocolError("an attempt of a request that is settled")
        if len(self.attempts) >= ATTEMPTS_MAX:
            raise SpendCapReached(f"{ATTEMPTS_MAX} attempts of one request")
        attempt = Attempt(self, terms, input_tokens_max=input_tokens_max, output_tokens_max=output_tokens_max)
        if attempt.most_nano > self.left_nano:
            raise SpendCapReached(
                f"another attempt may cost {format_ton(attempt.most_nano)} TON,"
                f" and {format_ton(self.left_nano)} of the request's {format_ton(self.cost_max_nano)} is left"
            )
        self.attempts.append(attempt)
        return attempt


class Attempt:
    """One opened request at one provider, as the client counts it."""

    __slots__ = ("budget", "input_tokens_max", "is_open", "meter", "most_nano", "output_tokens_max", "terms")

    def __init__(self, budget: Budget, terms: AttemptTerms, *, input_tokens_max: int, output_tokens_max: int) -> None:
        self.budget = budget
        self.terms = terms
        self.input_tokens_max = input_tokens_max
        self.output_tokens_max = output_tokens_max
        self.most_nano = most_nano(terms.prices, input_tokens_max=input_tokens_max, output_tokens_max=output_tokens_max)
        self.meter = Meter(terms.prices)
        self.is_open = True

    def count(self, *, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> tuple[int, Nano]:
        """Own counts so far; how many tokens and how much due they add. Nothing beyond what was declared is counted."""
        meter = self.meter
        meter.input_tokens = max(meter.input_tokens, min(prompt_tokens, self.input_tokens_max))
        tokens = max(meter.output_tokens, min(completion_tokens, self.output_tokens_max))
        added = tokens - meter.output_tokens
        risen = meter.count(output_tokens=tokens, cached_tokens=min(cached_tokens, meter.input_tokens))
        self.budget.spent_nano += risen
        return added, risen

    def end(self, payable_nano: Nano) -> Nano:
        """Ended naturally, with a final receipt that makes so much payable in all; how much that adds."""
        risen = max(0, min(payable_nano, self.most_nano) - self.meter.due_nano)
        self.meter.due_nano += risen
        self.budget.spent_nano += risen
        self.is_open = False
        return risen
