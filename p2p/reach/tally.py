"""What peers said when we asked them to dial us, and what follows from it. Sans-IO.

A peer that got through proves that an address works; a peer that did not proves little alone (its own network may
be at fault, and it may lie). So we count as reachable while at least as many of the latest verdicts say yes as no.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

VERDICTS_MAX = 16  # the latest of so many peers; an attacker needs as many neighbours of ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    address: str | None  # where the peer reached us; None: it did not
    reason: str


class VerdictTally:
    def __init__(self) -> None:
        self._verdicts: OrderedDict[str, Verdict] = OrderedDict()

    def add(self, peer: str, *, address: str | None, reason: str = "") -> None:
        """The latest word of `peer` replaces its earlier one."""
        self._verdicts.pop(peer, None)
        self._verdicts[peer] = Verdict(address=address, reason=reason)
        if len(self._verdicts) > VERDICTS_MAX:
            self._verdicts.popitem(last=False)

    def clear(self) -> None:
        """Our addresses have changed: old words are about others."""
        self._verdicts.clear()

    @property
    def asked(self) -> int:
        return len(self._verdicts)

    @property
    def reached(self) -> int:
        return sum(verdict.address is not None for verdict in self._verdicts.values())

    @property
    def is_reachable(self) -> bool | None:
        """None while nobody has said anything."""
        if not self._verdicts:
            return None
        return 2 * self.reached >= self.asked

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(v.address for v in self._verdicts.values() if v.address is not None))

    @property
    def latest_reason(self) -> str:
        return next((v.reason for v in reversed(self._verdicts.values()) if v.address is None), "")
