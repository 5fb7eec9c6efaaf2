"""Units at the end of key names, and what to write when somebody used another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Suffix → (dimension, how many of the dimension's base unit). Longest suffixes first.
UNITS: dict[str, tuple[str, float]] = {
    "gbit_per_s": ("rate of data", 1e9),
    "mbit_per_s": ("rate of data", 1e6),
    "kbit_per_s": ("rate of data", 1e3),
    "bit_per_s": ("rate of data", 1.0),
    "mbytes_per_s": ("rate of data", 8e6),
    "bytes_per_s": ("rate of data", 8.0),
    "per_min": ("rate", 1 / 60),
    "per_h": ("rate", 1 / 3600),
    "per_s": ("rate", 1.0),
    "bytes": ("size", 1.0),
    "kib": ("size", 1024.0),
    "kb": ("size", 1e3),
    "mib": ("size", 1024.0**2),
    "mb": ("size", 1e6),
    "nano": ("money", 1.0),
    "ton": ("money", 1e9),
    "days": ("time", 86_400.0),
    "hours": ("time", 3_600.0),
    "minutes": ("time", 60.0),
    "seconds": ("time", 1.0),
    "min": ("time", 60.0),
    "ns": ("time", 1e-9),
    "us": ("time", 1e-6),
    "ms": ("time", 1e-3),
    "h": ("time", 3_600.0),
    "s": ("time", 1.0),
    "percent": ("share", 0.01),
    "pct": ("share", 0.01),
}


def unit_of(key: str) -> tuple[str, str]:
    """(stem, suffix); the suffix is empty when the name has none."""
    for suffix in UNITS:
        if key.endswith("_" + suffix):
            return key[: -len(suffix) - 1], suffix
    return key, ""


def without_unit(key: str) -> str:
    return unit_of(key)[0]


def other_unit(key: str, value: object, known: Mapping[str, Any]) -> str | None:
    """What to write when `key` is a known one with another unit, or without its unit; None when it is not."""
    stem, suffix = unit_of(key)
    for name in known:
        known_stem, known_suffix = unit_of(name)
        if known_stem != stem or name == key or not (suffix or known_suffix):
            continue
        if not suffix:
            return f"has no unit: write {name} = {_number(value)}"
        dimension, factor = UNITS[suffix]
        other, other_factor = UNITS.get(known_suffix, ("share", 1.0))
        if dimension == other:
            return f"has another unit: write {name} = {_number(value, factor / other_factor)}"
        return f"is unknown: write {name}, in another unit"
    return None


def _number(value: object, factor: float = 1.0) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value * factor:.12g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_number(one, factor) for one in value) + "]"
    return "…"
