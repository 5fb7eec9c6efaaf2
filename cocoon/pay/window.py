"""The window of unpaid tokens W (rule M3), and which tokens are unpaid, over all sessions of one account.

Payment is in nanoTON and tokens of different offers cost different amounts, so tokens are paid in the order in which
they left: a chunk's tokens count as unpaid until the money that had become due with it is there.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ..types import SECOND_NS, Nano

WINDOW_TOKENS_MIN: Final = 64  # design §5
WINDOW_TOKENS_MAX: Final = 4_096
CLEAN_TOKENS: Final = 1_000  # the window doubles with each

FORGIVEN_TOKENS_MAX: Final = 256  # four broken streams in a row; opening an account costs more than these tokens
FORGIVEN_TOKENS_PER_CLEAN: Final = WINDOW_TOKENS_MIN  # per CLEAN_TOKENS paid: 6 % for lost frames and crashes
FORGIVEN_INTERVAL_NS: Final = 3_600 * SECOND_NS // WINDOW_TOKENS_MIN  # one more token each: 64 an hour


def window_tokens(clean_tokens: int) -> int:
    """W after so many tokens paid without a write-off."""
    doublings = min(clean_tokens // CLEAN_TOKENS, 6)  # 64 · 2⁶ is the ceiling
    return min(WINDOW_TOKENS_MIN << doublings, WINDOW_TOKENS_MAX)


class UnpaidTokens:
    """Tokens that left and are not covered, with the amount due that each chunk brought the ledger to.

    At most one mark per token of the window, because nothing leaves beyond it.
    """

    __slots__ = ("_covered", "_marks", "_released")

    def __init__(self) -> None:
        self._marks: deque[tuple[Nano, int]] = deque()  # (due, tokens released) after each chunk
        self._released = 0
        self._covered = 0

    @property
    def count(self) -> int:
        """How many."""
        return self._released - self._covered

    def release(self, tokens: int, *, due_nano: Nano) -> None:
        """These left; the ledger's due is now `due_nano`."""
        self._released += tokens
        if tokens == 0 and self._marks:
            self._marks[-1] = (due_nano, self._released)
        else:
            self._marks.append((due_nano, self._released))

    def cover(self, paid_nano: Nano) -> int:
        """Money came: how many tokens it newly covers."""
        before = self._covered
        while self._marks and self._marks[0][0] <= paid_nano:
            _, self._covered = self._marks.popleft()
        return self._covered - before

    def price_of_oldest(self, tokens: int) -> Nano | None:
        """The ledger's due up to which the oldest `tokens` (at most) are covered, or None when no chunk fits."""
        found: Nano | None = None
        for due_nano, released in self._marks:
            if released - self._covered > tokens:
                break
            found = due_nano
        return found


class Forgiveness:
    """How many unpaid tokens may be written off: frames that a broken stream lost, which no client will ever pay."""

    __slots__ = ("_clean_rest", "_since_ns", "tokens")

    def __init__(self, now: int) -> None:
        self.tokens = FORGIVEN_TOKENS_MAX
        self._since_ns = now
        self._clean_rest = 0

    def paid(self, tokens: int) -> None:
        """So many tokens were paid."""
        earned, self._clean_rest = divmod(self._clean_rest + tokens * FORGIVEN_TOKENS_PER_CLEAN, CLEAN_TOKENS)
        self.tokens = min(FORGIVEN_TOKENS_MAX, self.tokens + earned)

    def passed(self, now: int) -> None:
        """Time passed."""
        earned, rest_ns = divmod(max(0, now - self._since_ns), FORGIVEN_INTERVAL_NS)
        self.tokens = min(FORGIVEN_TOKENS_MAX, self.tokens + earned)
        self._since_ns = now - rest_ns

    def use(self, tokens: int) -> None:
        """Write off so many."""
        assert tokens <= self.tokens
        self.tokens -= tokens
