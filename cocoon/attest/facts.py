"""What verification established, free of any judgement: kept under H(S) for ten minutes (rule S8).

Facts are not a verdict. Every request judges them afresh under its own policy and its own `now`; that costs
microseconds, and a policy that got stricter in between is obeyed at once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from ..types import Digest, Network, TrustLevel
from . import limits
from .eventlog import Event
from .gpu.verify import VerifiedGpu
from .statement import Statement
from .tdx import VerifiedQuote
from .trail import Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Verified facts of one session. Only `cocoon.attest.verifier` makes them."""

    network: Network
    digest: Digest  # H(S)
    statement: Statement
    level: TrustLevel  # what the evidence could prove at most; the policy decides
    quote: VerifiedQuote | None
    runtime: tuple[Event, ...]  # what was measured into RTMR3, every payload recomputed
    gpus: tuple[VerifiedGpu, ...]
    checks: tuple[Check, ...] = field(repr=False)
    ratchet: dict[str, int] = field(repr=False)  # entries to persist
    verified_ns: int
    expires_ns: int  # at most ten minutes on, and never after anything that the facts rest on

    @property
    def is_hardware(self) -> bool:
        """Whether real roots vouch for it."""
        return self.level in (TrustLevel.CONFIDENTIAL, TrustLevel.CPU_CONFIDENTIAL)


class FactsCache:
    """Facts under H(S), bounded; the oldest go first."""

    def __init__(self, *, entries_max: int = limits.FACTS_CACHE_MAX) -> None:
        self._entries: OrderedDict[Digest, Facts] = OrderedDict()
        self._entries_max = entries_max

    def get(self, digest: Digest, *, now: int) -> Facts | None:
        """Facts that still hold, or None. A clock that stands before their making gets None as well."""
        facts = self._entries.get(digest)
        if facts is None:
            return None
        if not facts.verified_ns <= now < facts.expires_ns:
            del self._entries[digest]
            return None
        return facts

    def put(self, facts: Facts) -> None:
        """Keep facts under their digest."""
        self._entries[facts.digest] = facts
        self._entries.move_to_end(facts.digest)
        while len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)

    def flush(self) -> None:
        """Forget everything: a policy list changed (rule S8)."""
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)
