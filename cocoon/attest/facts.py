"""What verification established, free of any judgement: kept by the session for ten minutes at most (rule S8).

A session has one S, so its facts are those under H(S). There is no cache over sessions: a new one sends a new nonce,
and gets another S. Closing a session forgets them.

Facts are not a verdict. Every request judges them afresh under its own policy and its own `now`; that costs
microseconds, and a policy that got stricter in between is obeyed at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..types import Digest, Network, TrustLevel
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
