"""The models that this machine has pinned (rule G5): those that ship with the program."""

from __future__ import annotations

from ..market.catalogue import Catalogue


def pinned_catalogue() -> Catalogue:
    """Names that may be used without a digest."""
    return Catalogue()
