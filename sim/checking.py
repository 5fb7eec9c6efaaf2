"""From plain values (what TOML or JSON gives) to a `Scenario`, with every mistake named at once.

The dataclasses of `scenario.py` are the schema: their types, and the bounds that `knob` carries. Unknown keys, other
units, wrong types and values out of bounds become `Problem`s that say what to write. What a single field cannot know
(a group that does not exist, a range upside down) is checked at the end.
"""

from __future__ import annotations

import difflib
import importlib
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any

from .consistency import contradictions
from .errors import Problem, ScenarioError
from .lines import Path
from .scenario import Axis, Scenario
from .units import other_unit, without_unit

PROBLEMS_MAX = 20  # named in one error
TEXT_MAX = 20_000  # characters of one string
LIST_MAX = 10_000  # members of one list or table

Where = Callable[[Path], str]


def build(data: Mapping[str, Any], *, where: Where, **known: Any) -> Scenario:
    """The scenario that `data` describes. `known`: fields that are not read, such as `folder`. Raises ScenarioError."""
    checker = _Checker(where)
    scenario = checker.dataclass(Scenario, data, (), known)
    if not checker.problems:
        checker.together(scenario)
    if checker.problems:
        raise ScenarioError(*checker.problems[:PROBLEMS_MAX])
    return typing.cast("Scenario", scenario)


@cache
def hints_of(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@cache
def keys_of(reference: str) -> dict[str, Any]:
    """The fields of "module:Class" and their types: what a free table may set."""
    module, _, name = reference.partition(":")
    cls = getattr(importlib.import_module(module), name)
    return {key: hint for key, hint in hints_of(cls).items() if hint in (bool, int, float, str)}


class _Checker:
    def __init__(self, where: Where) -> None:
        self.where = where
        self.problems: list[Problem] = []

    def wrong(self, path: Path, message: str) -> None:
        self.problems.append(Problem(self.where(path), key_text(path), message))

    # --- one value ---------------------------------------------------------------------------------------

    def dataclass(self, cls: type, data: object, path: Path, known: Mapping[str, Any] | None = None) -> Any:
        if cls is Axis and isinstance(data, list):
            data = {"values": data}
        if not isinstance(data, Mapping):
            self.wrong(path, f"is {_shown(data)}: write a table, [{key_text(path)}]")
            return None
        known = dict(known or {})
        by_name: dict[str, Field[Any]] = {entry.name: entry for entry in fields(cls) if entry.name not in known}
        values: dict[str, Any] = dict(known)
        for key, value in data.items():
            if key not in by_name:
                self.unknown((*path, str(key)), value, by_name)
                continue
            values[key] = self.value(hints_of(cls)[key], value, (*path, key), by_name[key].metadata)
        for entry in by_name.values():
            if entry.default is MISSING and entry.default_factory is MISSING and entry.name not in values:
                self.wrong(path, f'{entry.name} is missing: write {entry.name} = "…"')
                values[entry.name] = ""
        return cls(**values)

    def value(self, hint: Any, value: object, path: Path, bounds: Mapping[str, Any]) -> Any:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (types.UnionType, typing.Union):
            if type(None) in arguments:
                rest = next(one for one in arguments if one is not type(None))
                return None if value is None else self.value(rest, value, path, bounds)
            return self.scalar(type(value), value, path, bounds, allowed=(bool, int, float, str))
        if is_dataclass(hint):
            return self.dataclass(typing.cast("type", hint), value, path)
        if origin is tuple:
            return self.sequence(arguments, value, path, bounds)
        if origin is not None and issubclass(origin, Mapping):
            return self.table(arguments[1], value, path, bounds)
        return self.scalar(hint, value, path, bounds)

    def sequence(self, arguments: tuple[Any, ...], value: object, path: Path, bounds: Mapping[str, Any]) -> Any:
        if not isinstance(value, (list, tuple)):
            example = "[low, high]" if arguments[-1] is not Ellipsis else "[…]"
            self.wrong(path, f"is {_shown(value)}: write a list, {path[-1]} = {example}")
            return ()
        if len(value) > LIST_MAX:
            self.wrong(path, f"has {len(value):,} members: {LIST_MAX:,} at most")
            return ()
        if arguments[-1] is Ellipsis:
            return tuple(self.value(arguments[0], one, (*path, n), bounds) for n, one in enumerate(value))
        if len(value) != len(arguments):
            self.wrong(path, f"has {len(value)} numbers: write {len(arguments)}, {path[-1]} = [low, high]")
            return ()
        before = len(self.problems)
        both = [self.value(hint, one, (*path, n), bounds) for n, (hint, one) in enumerate(zip(arguments, value))]  # noqa: B905
        if len(self.problems) == before and both[0] > both[1]:
            self.wrong(path, f"goes from {both[0]} down to {both[1]}: write {path[-1]} = [{both[1]}, {both[0]}]")
        return tuple(both)

    def table(self, hint: Any, value: object, path: Path, bounds: Mapping[str, Any]) -> Any:
        if not isinstance(value, Mapping):
            self.wrong(path, f"is {_shown(value)}: write a table, [{key_text(path)}]")
            return {}
        if len(value) > LIST_MAX:
            self.wrong(path, f"has {len(value):,} keys: {LIST_MAX:,} at most")
            return {}
        allowed = keys_of(bounds["keys_of"]) if bounds.get("keys_of") else None
        made = {}
        for key, one in value.items():
            if allowed is not None and key not in allowed:
                self.unknown((*path, str(key)), one, allowed)
            else:
                made[str(key)] = self.value(hint if allowed is None else allowed[key], one, (*path, str(key)), {})
        return made

    def scalar(
        self, hint: Any, value: object, path: Path, bounds: Mapping[str, Any], allowed: tuple[type, ...] = ()
    ) -> Any:
        """A bool, int, float or str within its bounds; a whole float counts as an int."""
        if allowed and hint not in allowed:
            self.wrong(path, f"is {_shown(value)}: write a number, a text, true or false")
            return 0
        if hint is bool or hint is str:
            if type(value) is not hint:
                self.wrong(path, f"is {_shown(value)}: write {'true or false' if hint is bool else 'a text in quotes'}")
                return hint()
            if isinstance(value, str):
                self.text(value, path, bounds)
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.wrong(path, f"is {_shown(value)}: {_number_advice(hint, value, path)}")
            return 0
        if isinstance(value, int) and abs(value) > 2**63:
            self.wrong(path, "is beyond 64 bits")
            return 0
        if not math.isfinite(value) or (hint is int and int(value) != value):
            self.wrong(path, f"is {value}: write a {'whole' if hint is int else 'finite'} number")
            return 0
        low, high = bounds.get("low"), bounds.get("high")
        if (low is not None and value < low) or (high is not None and value > high):
            self.wrong(path, f"is {value}: write a {_kind(hint)} from {_plain(low)} to {_plain(high)}")
        return hint(value)

    def text(self, value: str, path: Path, bounds: Mapping[str, Any]) -> None:
        choices = bounds.get("choices")
        if len(value) > TEXT_MAX:
            self.wrong(path, f"has {len(value):,} characters: {TEXT_MAX:,} at most")
        elif choices and value not in choices:
            near = difflib.get_close_matches(value, choices, 1)
            hint = f'write "{near[0]}"' if near else "write one of"
            self.wrong(
                path, f'is "{value}": {hint}' + (f" (one of {', '.join(choices)})" if near else f" {list(choices)}")
            )

    def unknown(self, path: Path, value: object, known: Mapping[str, Any]) -> None:
        key = str(path[-1])
        if (advice := other_unit(key, value, known)) is not None:
            self.wrong(path, advice)
        elif near := difflib.get_close_matches(key, known, 1, 0.6):
            self.wrong(path, f"is unknown: did you mean {near[0]}?")
        else:
            stems = [name for name in known if without_unit(name) == without_unit(key)]
            names = ", ".join(stems or sorted(known)) or "nothing"
            self.wrong(path, f"is unknown: write one of {names}")

    # --- what one field cannot know ----------------------------------------------------------------------

    def together(self, scenario: Scenario) -> None:
        for path, message in contradictions(scenario):
            self.wrong(path, message)


def key_text(path: Path) -> str:
    """As it is written for `--set`."""
    return ".".join(f'"{part}"' if isinstance(part, str) and "." in part else str(part) for part in path)


def _number_advice(hint: Any, value: object, path: Path) -> str:
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(-?[\d_.]+(?:e\d+)?)\s*[a-zA-Z%/]*\s*", value)):
        return f"write {path[-1]} = {match[1]} (the unit is in the key's name)"
    return f"write a {_kind(hint)}"


def _kind(hint: Any) -> str:
    return "whole number" if hint is int else "number"


def _plain(bound: float | None) -> str:
    return "any" if bound is None else f"{bound:,.12g}" if abs(bound) < 1e12 else f"{bound:.3g}"


def _shown(value: object) -> str:
    text = f'"{value}"' if isinstance(value, str) else "a table" if isinstance(value, Mapping) else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
