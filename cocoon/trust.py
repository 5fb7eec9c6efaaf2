"""What a client asks a provider to prove before it sends a prompt. Public names; use as `trust.Open()`.

There is no default: a program says which level it wants, in words that a reviewer can find.

    from cocoon import Client, ton, trust
    Client.open(bootstrap=[...], trust=trust.Open())

Not here: how evidence is verified (`cocoon.attest`). Levels that need evidence join this module together with
the code that verifies it, never before.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ConfigError
from .types import TrustLevel

__all__ = ["Open", "TrustPolicy", "from_label"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Accept providers that prove nothing: **the operator of a provider can read the prompt and the answer**.

    The session is still sealed on the way and the receipts are still signed. For development, test models and
    public text.
    """

    @property
    def level(self) -> TrustLevel:
        """The weakest level that this policy accepts."""
        return TrustLevel.OPEN


TrustPolicy = Open
"""Every policy that a client can be opened with."""

LABELS = (TrustLevel.OPEN.value,)
"""What `--trust` accepts today."""


def from_label(label: str | None) -> TrustPolicy:
    """The policy for a word of the command line or the configuration. Raises `ConfigError`, also for None."""
    if label == TrustLevel.OPEN.value:
        return Open()
    advice = (
        "Choose with --trust open: there is no hardware evidence at this level, so the provider's operator can read "
        "the prompt and the answer."
    )
    if label is None:
        raise ConfigError("no trust level was chosen, and there is no default", advice=advice)
    raise ConfigError(f"no such trust level: {label[:32]!r}", advice=advice)
