"""Time and chance of whole nodes, from the simulation: what their modules get for `time`, `random`, `os`, `secrets`.

    with simulated_modules(kernel): ...

Nodes of level 0 are programs that read clocks and draw randomness. In modules of the packages below, the names that
are bound to these four standard modules are bound to others for the time of a run: clocks tell the kernel's time, and
every draw, ephemeral keys included, comes from a stream of the host whose task asks. So a run repeats to the byte. The
packages' own code is not changed, and names imported by `from` are not seen.
"""

from __future__ import annotations

import os
import random
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from sim.kernel import SECOND, Kernel
from sim.net.sockets import SocketModule, current_host
from sim.rng import Stream, stream

PACKAGES = ("p2p.", "libp2p.", "cocoon.")
SOCKET_MODULES = ("p2p.driver.transport", "p2p.driver.node")  # others join two ends within one process


class _TimeModule:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def time(self) -> float:
        return self._kernel.now / SECOND

    def time_ns(self) -> int:
        return self._kernel.now

    def monotonic(self) -> float:
        return (self._kernel.now - self._kernel.start_ns) / SECOND

    def monotonic_ns(self) -> int:
        return self._kernel.now - self._kernel.start_ns

    perf_counter, perf_counter_ns = monotonic, monotonic_ns

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class _Entropy:
    """One stream per host, and one for what runs on none."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._streams: dict[int, Stream] = {}

    def here(self) -> Stream:
        host = current_host()
        number = -1 if host is None else host.number
        found = self._streams.get(number)
        if found is None:
            found = self._streams[number] = stream(self._seed, "entropy", number)
        return found


class _OsModule:
    def __init__(self, entropy: _Entropy) -> None:
        self._entropy = entropy

    def urandom(self, size: int) -> bytes:
        return self._entropy.here().bytes(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


class _SecretsModule:
    def __init__(self, entropy: _Entropy) -> None:
        self._entropy = entropy

    def token_bytes(self, nbytes: int | None = None) -> bytes:
        return self._entropy.here().bytes(32 if nbytes is None else nbytes)

    def token_hex(self, nbytes: int | None = None) -> str:
        return self.token_bytes(nbytes).hex()

    def randbelow(self, exclusive_upper_bound: int) -> int:
        return self._entropy.here().below(exclusive_upper_bound)

    def choice(self, seq: Sequence[Any]) -> Any:
        return self._entropy.here().choice(seq)

    def __getattr__(self, name: str) -> Any:
        return getattr(secrets, name)


class _RandomModule:
    """`random.Random()` without a seed gets one of its host; the module's functions draw from the host's stream."""

    def __init__(self, entropy: _Entropy) -> None:
        class Random(random.Random):
            def __init__(self, x: Any = None) -> None:
                super().__init__(entropy.here().u64() if x is None else x)

        self.Random = self.SystemRandom = Random
        self._entropy = entropy

    def _drawn(self) -> random.Random:
        drawn: random.Random = self.Random()
        return drawn

    def __getattr__(self, name: str) -> Any:
        if name in ("random", "uniform", "shuffle", "sample", "choice", "choices", "randint", "randrange", "randbytes"):
            return getattr(self._drawn(), name)
        return getattr(random, name)


@contextmanager
def simulated_modules(kernel: Kernel) -> Iterator[None]:
    entropy = _Entropy(kernel.seed)
    stand_ins: dict[str, tuple[ModuleType, Any]] = {
        "time": (time, _TimeModule(kernel)),
        "os": (os, _OsModule(entropy)),
        "secrets": (secrets, _SecretsModule(entropy)),
        "random": (random, _RandomModule(entropy)),
    }
    changed: list[tuple[ModuleType, str, Any]] = []

    def put(module: ModuleType, name: str, stand_in: Any) -> None:
        changed.append((module, name, getattr(module, name)))
        setattr(module, name, stand_in)

    try:
        for module_name, module in sorted(sys.modules.items()):
            if not module_name.startswith(PACKAGES):
                continue
            for name, (real, stand_in) in stand_ins.items():
                if vars(module).get(name) is real:
                    put(module, name, stand_in)
            if module_name in SOCKET_MODULES:
                put(module, "socket", SocketModule())
        yield
    finally:
        for module, name, was in reversed(changed):
            setattr(module, name, was)
