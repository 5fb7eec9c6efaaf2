"""What is due when (rule M2): output at once, the prompt in 64 equal steps with the first 64 output tokens.

Both ends compute it from the same counts, so they agree to the nanoTON. A natural end makes all of the prompt due;
a death or a cancellation leaves the rest of it unpaid for ever. `cocoon.types.due_nano` does the rounding.
"""

from __future__ import annotations

from typing import Final

from ..errors import LocalProtocolError
from ..types import Nano, Prices, due_nano

VESTING_TOKENS: Final = 64  # rule M2


def prompt_nano(prices: Prices, *, input_tokens: int, cached_tokens: int = 0) -> Nano:
    """The part of a request's price that vests: the prompt and the fee per request."""
    return due_nano(prices, input_tokens=input_tokens, cached_tokens=cached_tokens, output_tokens=0)


def vested_due_nano(
    prices: Prices, *, input_tokens: int, cached_tokens: int, output_tokens: int, is_ended: bool
) -> Nano:
    """What is due after so many output tokens. `is_ended`: naturally, by a sealed end.

    Equals `due_nano` from 64 tokens or the end on; before, it never falls with another output token, and is 0 at
    none.
    """
    full = due_nano(prices, input_tokens=input_tokens, cached_tokens=cached_tokens, output_tokens=output_tokens)
    if is_ended or output_tokens >= VESTING_TOKENS:
        return full
    prompt = prompt_nano(prices, input_tokens=input_tokens, cached_tokens=cached_tokens)
    return full - prompt * (VESTING_TOKENS - output_tokens) // VESTING_TOKENS


def most_nano(prices: Prices, *, input_tokens_max: int, output_tokens_max: int) -> Nano:
    """The most that an attempt of these declared sizes can cost, whatever turns out to be cached."""
    plain = due_nano(prices, input_tokens=input_tokens_max, cached_tokens=0, output_tokens=output_tokens_max)
    if prices.cached_input_nano <= prices.input_nano:
        return plain
    return due_nano(
        prices, input_tokens=input_tokens_max, cached_tokens=input_tokens_max, output_tokens=output_tokens_max
    )


def affordable_output_tokens(prices: Prices, *, input_tokens_max: int, budget_nano: Nano, most_tokens: int) -> int:
    """The longest output, up to `most_tokens`, whose attempt fits the budget; 0 when not even one token does."""
    low, high = 0, most_tokens
    while low < high:  # at most 21 rounds: outputs have at most 2²⁰ tokens
        middle = (low + high + 1) // 2
        if most_nano(prices, input_tokens_max=input_tokens_max, output_tokens_max=middle) <= budget_nano:
            low = middle
        else:
            high = middle - 1
    return low


class Meter:
    """One attempt's counts and what is due for them. Neither ever falls."""

    __slots__ = ("cached_tokens", "due_nano", "input_tokens", "is_ended", "output_tokens", "prices")

    def __init__(self, prices: Prices, *, input_tokens: int = 0) -> None:
        self.prices = prices
        self.input_tokens = input_tokens
        self.cached_tokens = 0
        self.output_tokens = 0
        self.is_ended = False
        self.due_nano: Nano = 0

    @property
    def unvested_nano(self) -> Nano:
        """The part of the prompt's price that is not due yet."""
        if self.is_ended or self.output_tokens >= VESTING_TOKENS:
            return 0
        prompt = prompt_nano(self.prices, input_tokens=self.input_tokens, cached_tokens=self.cached_tokens)
        return prompt * (VESTING_TOKENS - self.output_tokens) // VESTING_TOKENS

    def due_after(self, tokens: int) -> Nano:
        """What would be due with so many more output tokens."""
        return max(self.due_nano, self._due(self.output_tokens + tokens, self.cached_tokens, self.is_ended))

    def count(self, *, output_tokens: int, cached_tokens: int = 0, is_ended: bool = False) -> Nano:
        """Take new totals; what became due by them. Raises `LocalProtocolError` when a count falls."""
        if output_tokens < self.output_tokens or cached_tokens > self.input_tokens:
            raise LocalProtocolError("token counts that do not add up")
        self.output_tokens = output_tokens
        self.cached_tokens = cached_tokens
        self.is_ended = self.is_ended or is_ended
        due = max(self.due_nano, self._due(output_tokens, cached_tokens, self.is_ended))
        risen = due - self.due_nano
        self.due_nano = due
        return risen

    def _due(self, output_tokens: int, cached_tokens: int, is_ended: bool) -> Nano:
        return vested_due_nano(
            self.prices,
            input_tokens=self.input_tokens,
            cached_tokens=cached_tokens,
            output_tokens=output_tokens,
            is_ended=is_ended,
        )
