"""What may go wrong between two peers of a virtual network. All of it drawn from the network's seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from p2p.randomness import Randomness

NANOSECONDS = 1_000_000_000
_FINE = 1 << 20  # steps in which chances and delays are drawn


@dataclass(slots=True, kw_only=True)
class Faults:
    """Change its fields while the network runs; they hold for what is sent from then on."""

    delay_s: float = 0.02  # one way, at least
    jitter_s: float = 0.01  # and up to so much more
    loss: float = 0.0  # the share of messages that vanish. Real streams end instead: this is harsher
    reorder: float = 0.0  # the share of messages that may overtake those sent before them
    bytes_per_s: float | None = None  # of each direction between two peers; None: no limit
    pair_delay_s: dict[tuple[bytes, bytes], float] = field(default_factory=dict)  # instead of delay_s, one direction
    _groups: list[dict[bytes, None]] = field(default_factory=list)

    def partition(self, *groups: Iterable[bytes]) -> None:
        """Nothing passes between the groups any more. A peer in no group reaches everyone."""
        self._groups = [dict.fromkeys(group) for group in groups]

    def heal(self) -> None:
        self._groups = []

    @property
    def is_fair(self) -> bool:
        """Nothing but delay and jitter: the ordinary case, which the network keeps short."""
        return not (self._groups or self.loss or self.reorder or self.bytes_per_s is not None or self.pair_delay_s)

    def can_reach(self, a: bytes, b: bytes) -> bool:
        if not self._groups:
            return True
        of_a = [group for group in self._groups if a in group]
        return not of_a or any(b in group for group in of_a) or not any(b in group for group in self._groups)

    def is_lost(self, rng: Randomness) -> bool:
        return self.loss > 0 and _chance(rng) < self.loss

    def may_overtake(self, rng: Randomness) -> bool:
        return self.reorder > 0 and _chance(rng) < self.reorder

    def delay(self, a: bytes, b: bytes, rng: Randomness) -> int:
        """ns on the way from `a` to `b`, without the time that the bytes take."""
        least = self.pair_delay_s.get((a, b), self.delay_s) if self.pair_delay_s else self.delay_s
        return int((least + self.jitter_s * _chance(rng)) * NANOSECONDS)


def _chance(rng: Randomness) -> float:
    drawn = rng.randbytes(3)
    return ((drawn[0] & 15) << 16 | drawn[1] << 8 | drawn[2]) / _FINE
