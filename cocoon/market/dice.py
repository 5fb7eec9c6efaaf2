"""Randomness that can be replayed: uniform, normal, gamma and beta numbers from a 32-byte seed.

SHA-256 in counter mode gives the bits, so a seed in a log gives the same draws on every machine and version (the
standard library promises that only for some of its generators). For choosing among offers; never for keys.
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Final

SEED_BYTES: Final = 32
_FOUR_WORDS: Final = struct.Struct(">4Q")
_SCALE: Final = 2.0**-53


class Dice:
    """A stream of draws."""

    __slots__ = ("_block", "_pool", "_seed", "_spare")

    def __init__(self, seed: bytes) -> None:
        assert len(seed) == SEED_BYTES
        self._seed = seed
        self._block = 0
        self._pool: list[float] = []
        self._spare: float | None = None

    def uniform(self) -> float:
        """In [0, 1)."""
        if not self._pool:
            digest = hashlib.sha256(self._seed + self._block.to_bytes(8, "big")).digest()
            self._block += 1
            self._pool = [(word >> 11) * _SCALE for word in _FOUR_WORDS.unpack(digest)]
        return self._pool.pop()

    def normal(self) -> float:
        """Mean 0, deviation 1 (Box–Muller, both halves used)."""
        if self._spare is not None:
            spare, self._spare = self._spare, None
            return spare
        radius = math.sqrt(-2.0 * math.log(1.0 - self.uniform()))
        angle = 2.0 * math.pi * self.uniform()
        self._spare = radius * math.sin(angle)
        return radius * math.cos(angle)

    def gamma(self, shape: float) -> float:
        """Gamma(shape, 1) by Marsaglia and Tsang (ACM TOMS 26, 2000); `shape` > 0."""
        if shape < 1.0:
            return self.gamma(shape + 1.0) * math.pow(1.0 - self.uniform(), 1.0 / shape)
        d = shape - 1.0 / 3.0
        c = 1.0 / math.sqrt(9.0 * d)
        while True:  # accepts at least 95 % of the draws
            x = self.normal()
            v = (1.0 + c * x) ** 3
            if v > 0.0 and math.log(1.0 - self.uniform()) < 0.5 * x * x + d - d * v + d * math.log(v):
                return d * v

    def beta(self, a: float, b: float) -> float:
        """Beta(a, b)."""
        x = self.gamma(a)
        y = self.gamma(b)
        return x / (x + y) if x + y > 0.0 else 0.5

    def pick(self, weights: list[float]) -> int:
        """An index, with odds by weight; weights are finite, at least one is above zero."""
        target = self.uniform() * math.fsum(weights)
        for index, weight in enumerate(weights):
            target -= weight
            if target < 0.0:
                return index
        return max(range(len(weights)), key=weights.__getitem__)  # rounding ate the last one
