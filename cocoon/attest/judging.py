"""What every policy object is, and how they compose.

A policy object judges verified facts by raising or returning; it never answers with a bool, and an empty
composition refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import AttestationError, TrustRefused
from .facts import Facts
from .tdx import VerifiedQuote
from .trail import Trail


class Policy(Protocol):
    """Judges verified facts at a time (ns)."""

    def judge(self, facts: Facts, *, now: int, trail: Trail) -> None:
        """Return when the facts are enough; raise an `AttestationError` that names what is not."""
        ...

    def explain(self) -> tuple[str, ...]:
        """What is demanded, in sentences."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AllOf:
    """Every one of these. None at all refuses."""

    policies: tuple[Policy, ...]

    def judge(self, facts: Facts, *, now: int, trail: Trail) -> None:
        """Raise the first refusal."""
        require_some(self.policies, trail)
        for policy in self.policies:
            policy.judge(facts, now=now, trail=trail)

    def explain(self) -> tuple[str, ...]:
        """All sentences."""
        return tuple(line for policy in self.policies for line in policy.explain())


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyOf:
    """At least one of these. None at all refuses."""

    policies: tuple[Policy, ...]

    def judge(self, facts: Facts, *, now: int, trail: Trail) -> None:
        """Raise the last refusal when all refuse."""
        require_some(self.policies, trail)
        refusal: AttestationError | None = None
        for policy in self.policies:
            attempt = Trail()
            try:
                policy.judge(facts, now=now, trail=attempt)
            except AttestationError as error:
                refusal = error
            else:
                trail.checks.extend(attempt.checks)
                return
        assert refusal is not None
        trail.failed(refusal.reason, str(refusal))
        raise refusal

    def explain(self) -> tuple[str, ...]:
        """The alternatives."""
        return tuple(f"either: {' '.join(policy.explain())}" for policy in self.policies)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptNothing:
    """What stands in for rules that cannot be read any more. `why` is for people."""

    why: str

    def judge(self, facts: Facts, *, now: int, trail: Trail) -> None:
        """Always refuse."""
        trail.fail("policy.unreadable", TrustRefused, f"the trust policy cannot be read: {self.why}")

    def explain(self) -> tuple[str, ...]:
        """Why nothing is accepted."""
        return (f"Nothing is accepted: the trust policy cannot be read ({self.why}).",)


def require_some(policies: Sequence[Policy], trail: Trail) -> None:
    trail.require(bool(policies), "policy.empty", TrustRefused, "an empty policy accepts nothing")


def quote_of(facts: Facts, trail: Trail) -> VerifiedQuote:
    if facts.quote is None:
        trail.fail("policy.no-quote", TrustRefused, "there is no TDX quote to judge")
    return facts.quote
