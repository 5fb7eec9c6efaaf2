"""The one place that knows numba. `@kernel` and `@njit` compile where it is installed, and elsewhere change nothing.

Kernels are written in the part of Python that both understand, so the same source gives the same numbers either way:
without numba a thousand times slower, which is for checking and for small networks only (`require_speed`).

numba's cache on disk does not notice when a function that a kernel calls has changed in another file. So the cache has
a folder of its own per content of this package; an edit compiles anew, everything else loads in a moment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from sim.errors import SimError

F = TypeVar("F", bound=Callable[..., Any])

WITHOUT_NUMBA_NODES_MAX = 2_000  # a minute or so of pure Python
DISABLED_BY = "SIM_WITHOUT_NUMBA"  # set to 1: run the kernels as plain Python
_KEPT_CACHES = 2  # this version's and the one before


class NumbaMissing(SimError):
    """The network is too large for uncompiled kernels."""


def _cache_folder() -> Path:
    here = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for source in sorted(here.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    root = here / "__pycache__" / "numba"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f"probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError:  # a checkout that we may not write to
        root = Path(tempfile.gettempdir()) / f"cocoon-sim-numba-{os.getuid() if hasattr(os, 'getuid') else 0}"
    folder = root / digest.hexdigest()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        older = sorted((each for each in root.iterdir() if each.is_dir()), key=lambda each: each.stat().st_mtime)
        for stale in [each for each in older if each != folder][: 1 - _KEPT_CACHES or None]:
            shutil.rmtree(stale, ignore_errors=True)
    return folder


def _is_wanted() -> bool:
    return os.environ.get(DISABLED_BY, "") != "1"


try:
    if not _is_wanted():
        raise ImportError(f"{DISABLED_BY} is set")
    import numba
except ImportError:
    HAS_NUMBA = False
else:
    HAS_NUMBA = True
    numba.config.CACHE_DIR = str(_cache_folder())


# Kernels allocate nothing, so numba's reference counts (an atomic operation per array and call) are left out: `_nrt`.
# What only kernels call needs no entry from Python, and no file in the cache: it is in that of its caller.
_INSIDE = {"nogil": True, "error_model": "numpy", "_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def kernel(function: F) -> F:
    """A kernel's entry, called from Python: compiled on its first call, kept on disk; releases the GIL. No fast-math:
    floats are IEEE's. It must not allocate."""
    if not HAS_NUMBA:
        return function
    compiled: F = numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False)(function)
    return compiled


def njit(function: F) -> F:
    """A function that kernels call. Compiled, it has no entry from Python: call it from a kernel only."""
    if not HAS_NUMBA:
        return function
    compiled: F = numba.njit(**_INSIDE)(function)
    return compiled


def inline(function: F) -> F:
    """The same, small and called for every event: its body goes where it is called."""
    if not HAS_NUMBA:
        return function
    compiled: F = numba.njit(forceinline=True, **_INSIDE)(function)
    return compiled


def require_speed(nodes: int) -> None:
    """Raises NumbaMissing where plain Python would take for ever."""
    if not HAS_NUMBA and nodes > WITHOUT_NUMBA_NODES_MAX:
        raise NumbaMissing(
            f"{nodes:,} nodes need compiled kernels, and numba is not here: install the group `sim` "
            f"(uv sync --group sim), or simulate at most {WITHOUT_NUMBA_NODES_MAX:,} nodes"
        )
