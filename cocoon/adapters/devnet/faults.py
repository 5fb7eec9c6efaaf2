"""What a liteserver of the devnet can be told to do wrong, for tests. All off by default.

Values only; `queries` and `liteserver` act on them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Lie(Enum):
    """A false answer."""

    ABSENT = "absent"  # accounts that exist do not, without proof
    RICH = "rich"  # every account has a hundred times its balance, with the true state's proof
    OTHER = "other"  # another account's state, with its own true proof
    OLD_PROOF = "old_proof"  # today's state with the first block's proof
    HISTORY = "history"  # transactions are left out of the middle


@dataclass(slots=True)
class Faults:
    """Change the fields at any time; they hold for the queries that come after."""

    delay_s: float = 0.0  # before each answer
    drop_connections: bool = False  # close instead of answering
    silent: bool = False  # never answer
    error_code: int | None = None  # answer `liteServer.error`
    only: frozenset[str] = field(default_factory=frozenset)  # these queries only; empty: all
    stale_at: int | None = None  # pretend that this block is the newest
    lie: Lie | None = None

    def concern(self, query: str) -> bool:
        """Whether a query is to be spoilt."""
        return not self.only or query in self.only
