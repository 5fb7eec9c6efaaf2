"""Time and randomness, passed in so that the simulator can own both."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Wall time that never runs backwards."""

    def now(self) -> int:
        """Nanoseconds since the Unix epoch; never less than an earlier answer."""
        ...


class Entropy(Protocol):
    """Randomness fit for keys."""

    def __call__(self, count: int, /) -> bytes:
        """`count` fresh bytes."""
        ...
