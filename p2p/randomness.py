"""The randomness that machines are given: `random.Random(seed)` in a simulation, so that a seed replays a run."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Randomness(Protocol):
    """As much of `random.Random` as they use. Not for secrets."""

    def sample(self, population: Sequence[T], k: int) -> list[T]: ...
    def choice(self, seq: Sequence[T]) -> T: ...
    def shuffle(self, x: MutableSequence[Any]) -> None: ...
    def randbytes(self, n: int) -> bytes: ...
