"""The record of what was checked: one line per check, in order, so a person can read a verdict.

Every check has a stable dotted name ("tdx.trailing-bytes"). A check that fails is recorded and raises a typed
error whose `reason` is that name; so no caller can overlook it, and nothing after it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from ..errors import AttestationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check and how it went. `detail` is for people: what was seen, or why it fails."""

    name: str
    passed: bool
    detail: str = ""


@dataclass(slots=True)
class Trail:
    """Checks in the order they ran, and the names of those that could not run because nothing was given."""

    checks: list[Check] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)

    def require(self, ok: bool, name: str, error: type[AttestationError], failure: str, *, success: str = "") -> None:
        """Record the check; raise `error` with `failure` unless `ok`."""
        if not ok:
            self.fail(name, error, failure)
        self.checks.append(Check(name=name, passed=True, detail=success))

    def fail(self, name: str, error: type[AttestationError], failure: str) -> NoReturn:
        """Record a failed check and raise it."""
        self.checks.append(Check(name=name, passed=False, detail=failure))
        raise error(failure, reason=name)

    def passed(self, name: str, detail: str = "") -> None:
        """Record a check that a called function has already made."""
        self.checks.append(Check(name=name, passed=True, detail=detail))

    def failed(self, name: str, detail: str) -> None:
        """Record a refusal that was raised outside any check here."""
        self.checks.append(Check(name=name, passed=False, detail=detail))

    def skipped(self, name: str) -> None:
        """Record that nothing was given for this check."""
        self.not_checked.append(name)

    @contextmanager
    def step(self, name: str, detail: str = "") -> Iterator[None]:
        """A group of checks inside a function that raises by itself: recorded as one line."""
        try:
            yield
        except AttestationError as error:
            self.checks.append(Check(name=error.reason, passed=False, detail=str(error)))
            raise
        self.checks.append(Check(name=name, passed=True, detail=detail))
