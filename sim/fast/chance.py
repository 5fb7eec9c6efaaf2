"""Random numbers inside kernels: splitmix64 over a one-word state, so a run is a function of its seed alone.

The state is an array of one uint64, seeded from `sim.rng` by purpose (`seeded`). Not for secrets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim import rng
from sim.fast.jit import inline

Words = NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_11, _27, _30, _31, _32 = (np.uint64(bits) for bits in (11, 27, 30, 31, 32))
_DOUBLE = 2.0**-53


def seeded(seed: int, purpose: str, number: int = 0) -> Words:
    return np.array([rng.stream(seed, purpose, number).u64()], dtype=np.uint64)


@inline
def mix(word: Any) -> Any:
    """A uint64 to a uint64 that looks unrelated (Stafford's mix 13)."""
    word = (word ^ (word >> _30)) * _MIX_1
    word = (word ^ (word >> _27)) * _MIX_2
    return word ^ (word >> _31)


@inline
def u64(state: Words) -> Any:
    state[0] += _GAMMA
    return mix(state[0])


@inline
def below(state: Words, n: int) -> int:
    """In [0, n), n < 2³²."""
    return int(((u64(state) >> _32) * np.uint64(n)) >> _32)


@inline
def uniform(state: Words) -> float:
    """In [0, 1)."""
    return float(u64(state) >> _11) * _DOUBLE
