"""Which connections to give up when there are too many. A pure function over what is known of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2p.interface import PeerId

GRACE_NS = 20 * 1_000_000_000  # a new connection has not had a chance to be of use yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One connection."""

    key: int  # whatever tells it apart
    peer: PeerId
    opened_at: int
    streams: int  # open now, both ways
    protected: bool
    inbound: bool


def choose_to_close(held: Sequence[Held], *, high: int, low: int, now: int) -> list[int]:
    """The keys of those to close, so that `low` stay; none while there are at most `high`.

    Never a protected one, nor one in its grace. Of the others first those that carry the fewest streams, then
    inbound before outbound (we chose the latter), then the youngest: who has been with us for long stays, so that
    a crowd of newcomers cannot push out the peers we know.
    """
    if len(held) <= high:
        return []
    candidates = [one for one in held if not one.protected and now - one.opened_at >= GRACE_NS]
    candidates.sort(key=lambda one: (one.streams, not one.inbound, -one.opened_at, one.key))
    return [one.key for one in candidates[: len(held) - low]]
