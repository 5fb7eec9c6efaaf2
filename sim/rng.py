"""Random streams that depend on nothing but (seed, purpose, node).

    churn = stream(seed, "churn", node)      # the same draws whoever else exists, in whatever order streams are made
    churn.weibull(0.608, 3.66)

Block number i of a stream is BLAKE2b(key, i) with key = BLAKE2b(seed ‖ purpose ‖ node): counter-based, so a stream has
no hidden state but its position. Adding a node, or a purpose, changes no other stream's draws: that is what makes two
runs comparable that differ in one thing.

The algorithms are written out here instead of taken from `random`, whose draws may change from one Python to the next.
Not for secrets.
"""

from __future__ import annotations

import math
from collections.abc import MutableSequence, Sequence
from hashlib import blake2b
from struct import Struct
from typing import Any, TypeVar

T = TypeVar("T")
_Bytes = bytes  # `Stream.bytes` hides the name

_WORDS = Struct("<8Q")  # one block: 64 bytes
_DOUBLE = 2.0**-53
_POOL_SHARE = 4  # sample by a shuffled copy when more than one in so many is taken; else by a set of indices


def _key(seed: int, purpose: str, node: int) -> bytes:
    return blake2b(b"%d/%d/%b" % (seed, node, purpose.encode()), digest_size=32, person=b"sim stream").digest()


def stream(seed: int, purpose: str, node: int = 0) -> Stream:
    """The stream of that name. Two calls with the same arguments give two streams with the same draws."""
    return Stream(_key(seed, purpose, node))


def draw_u64(seed: int, purpose: str, *numbers: int) -> int:
    """One number for a tuple of integers, such as the latency of a pair of nodes: nothing is stored."""
    name = b"%d/%b/%b" % (seed, purpose.encode(), b"/".join([b"%d" % number for number in numbers]))
    return int.from_bytes(blake2b(name, digest_size=8, person=b"sim draw").digest(), "little")


def draw_uniform(seed: int, purpose: str, *numbers: int) -> float:
    """`draw_u64` as a float in [0, 1)."""
    return (draw_u64(seed, purpose, *numbers) >> 11) * _DOUBLE


class Stream:
    """Draws of one stream. Satisfies `p2p.randomness.Randomness`, so machines take it as their source of chance."""

    __slots__ = ("_block", "_key", "_words")

    def __init__(self, key: _Bytes) -> None:
        self._key = key
        self._block = 0  # the number of the next block
        self._words: list[int] = []  # of the last block, from its end

    def u64(self) -> int:
        words = self._words
        if not words:
            block = blake2b(self._block.to_bytes(8, "little"), key=self._key, digest_size=64).digest()
            self._block += 1
            words.extend(_WORDS.unpack(block))
        return words.pop()

    def below(self, n: int) -> int:
        """An integer in [0, n), n ≤ 2⁶³. The bias is at most n / 2⁶⁴."""
        if n <= 0:
            raise ValueError("below() needs a positive bound")
        return self.u64() % n

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + self.below(high - low + 1)

    def random(self) -> float:
        """A float in [0, 1)."""
        return (self.u64() >> 11) * _DOUBLE

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * ((self.u64() >> 11) * _DOUBLE)

    def chance(self, probability: float) -> bool:
        return (self.u64() >> 11) * _DOUBLE < probability

    def normal(self, mean: float = 0.0, deviation: float = 1.0) -> float:
        """Box and Muller's; one of the pair is thrown away, so that a draw has no memory."""
        radius = math.sqrt(-2.0 * math.log(1.0 - self.random()))
        return mean + deviation * radius * math.cos(2.0 * math.pi * self.random())

    def lognormal(self, median: float, sigma: float) -> float:
        return median * math.exp(self.normal(0.0, sigma))

    def exponential(self, mean: float) -> float:
        return -mean * math.log(1.0 - self.random())

    def weibull(self, shape: float, scale: float) -> float:
        return float(scale * (-math.log(1.0 - self.random())) ** (1.0 / shape))

    def choice(self, seq: Sequence[T]) -> T:
        """Raises IndexError on an empty sequence, as `random.choice` does."""
        if not seq:
            raise IndexError("cannot choose from an empty sequence")
        return seq[self.u64() % len(seq)]

    def weighted(self, weights: Sequence[float]) -> int:
        """An index, with a chance in proportion to its weight."""
        at = self.random() * math.fsum(weights)
        for index, weight in enumerate(weights):
            at -= weight
            if at < 0:
                return index
        return max(index for index, weight in enumerate(weights) if weight > 0)  # the last rounding error

    def shuffle(self, x: MutableSequence[Any]) -> None:
        for i in range(len(x) - 1, 0, -1):
            j = self.u64() % (i + 1)
            x[i], x[j] = x[j], x[i]

    def sample(self, population: Sequence[T], k: int) -> list[T]:
        """`k` different elements in random order. Raises ValueError when there are fewer."""
        count = len(population)
        if not 0 <= k <= count:
            raise ValueError("a sample larger than its population")
        if k * _POOL_SHARE > count:
            pool = list(population)
            for i in range(k):
                j = i + self.u64() % (count - i)
                pool[i], pool[j] = pool[j], pool[i]
            return pool[:k]
        taken: dict[int, None] = {}
        while len(taken) < k:
            taken[self.u64() % count] = None
        return [population[index] for index in taken]

    def bytes(self, n: int) -> _Bytes:
        return b"".join([self.u64().to_bytes(8, "little") for _ in range((n + 7) // 8)])[:n]

    def randbytes(self, n: int) -> _Bytes:
        return self.bytes(n)
