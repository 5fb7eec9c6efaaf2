"""What a level hands back: the parts of the summary, and what proves that a run was repeated exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelResult:
    events: int
    trace_hash: str
    checkpoints: Sequence[tuple[int, str]] = ()  # (virtual ns, hash), each virtual second
    summary: Mapping[str, Any] = field(default_factory=dict)  # "gossip", "dht", "market", "payments", ...
    warnings: tuple[str, ...] = ()  # such as: outside the region where this level was validated
