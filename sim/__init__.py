"""The simulator: the shipped machines in virtual time, and fast models that are proven against them.

`python -m sim --help` is the way in; `sim.open(folder)` reads what a run left. Nothing heavy is imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from .opening import Opened


def open(folder: str | Path) -> Opened:  # noqa: A001 - `sim.open` reads well, and nothing here opens files
    """What `run --out` or `sweep --out` left, as pandas and Arrow. Raises `sim.errors.RunError`."""
    from .opening import Opened

    return Opened(folder)
