"""What somebody wants, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field


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
