"""How far two nodes are from each other: one way, in ns, the same in every run of a seed, and never stored.

A node is known here by its key: 64 random bits that depend on the seed, its group and its number in the group, and on
nothing else. A pair's latency is a function of its two keys, so that a node more changes no distance between others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sim.errors import WorldInvalid
from sim.net.regions import RegionSet
from sim.rng import stream

_MASK = (1 << 64) - 1
_DOUBLE = 2.0**-53
_MS = 1_000_000


class Latency(Protocol):
    def add(self, key: int, region: str) -> None:
        """The next node. Raises WorldInvalid."""

    def between(self, a: int, b: int) -> int:
        """From node `a` to node `b`, by their numbers."""


def pair_uniform(key_a: int, key_b: int) -> float:
    """A float in [0, 1) for an unordered pair of keys: the finaliser of SplitMix64 over their exclusive or."""
    x = key_a ^ key_b
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return ((x ^ (x >> 31)) >> 11) * _DOUBLE


class UniformLatency:
    """Each pair has a latency of its own, uniform between two bounds, the same in both directions."""

    def __init__(self, low_ms: float, high_ms: float) -> None:
        if not 0 <= low_ms <= high_ms:
            raise WorldInvalid("net.latency_ms: the first bound must not exceed the second")
        self._low = low_ms * _MS
        self._range = (high_ms - low_ms) * _MS
        self._keys: list[int] = []

    def add(self, key: int, region: str) -> None:
        self._keys.append(key)

    def between(self, a: int, b: int) -> int:
        return int(self._low + self._range * pair_uniform(self._keys[a], self._keys[b]))


class RegionLatency:
    """The latency of two nodes is that of their regions; a node's region is given, or drawn by the weights."""

    def __init__(self, regions: RegionSet) -> None:
        self.regions = regions
        self.region_of: list[int] = []

    def add(self, key: int, region: str) -> None:
        if region:
            self.region_of.append(self.regions.index(region))
        else:
            self.region_of.append(stream(key, "region").weighted(self.regions.weights))

    def between(self, a: int, b: int) -> int:
        return self.regions.latency_ns[self.region_of[a]][self.region_of[b]]


class MatrixLatency:
    """Measured latencies between real hosts. Each node stands for one of them, drawn at random when there are more
    nodes than hosts, and then two nodes of one host are as far apart as that host from itself."""

    def __init__(self, matrix: Sequence[Sequence[int]]) -> None:
        self._matrix = matrix
        self._host_of: list[int] = []

    def add(self, key: int, region: str) -> None:
        number = len(self._host_of)
        self._host_of.append(number if number < len(self._matrix) else key % len(self._matrix))

    def between(self, a: int, b: int) -> int:
        return self._matrix[self._host_of[a]][self._host_of[b]]
