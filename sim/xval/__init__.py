"""Cross-validation: the fast level held against the real machines. `python -m sim xval`; results: docs/xval.md."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """The command. What it needs is imported when it runs."""
    from sim.xval.command import main as run

    return run(argv)
