"""Scenarios as plain values (for manifests) and as commented TOML (for `python -m sim new`)."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from .checking import hints_of
from .scenario import Scenario

HEAD = """\
# {title}
# Try it:     python -m sim run {file}
# Any number: python -m sim run {file} --set nodes.honest.count=500
# Keys end in their unit. What is commented out is off, or has the value that is shown. docs/simulation.md tells more.

"""


def plain(value: Any) -> Any:
    """Only what JSON has; `checking.build` reads it back. None and the folder are left out."""
    if is_dataclass(value) and not isinstance(value, type):
        made = {entry.name: plain(getattr(value, entry.name)) for entry in fields(value) if entry.name != "folder"}
        return {key: one for key, one in made.items() if one is not None}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    return value


def commented_toml(scenario: Scenario, *, name: str, file: str) -> str:
    """A whole scenario file: every key with its default and one line of what it is; sections that are off commented."""
    title = scenario.title or name
    lines = [f"name = {_toml(name)}", f"title = {_toml(title)}", f"doc = {_toml(scenario.doc)}"]
    for entry in fields(scenario):
        if entry.name in ("name", "title", "doc", "folder"):
            continue
        lines.append("")
        lines += _member(entry.name, hints_of(Scenario)[entry.name], getattr(scenario, entry.name))
    return HEAD.format(title=title, file=file) + "\n".join(lines) + "\n"


def _member(path: str, hint: Any, value: Any) -> Iterator[str]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        cls = next(one for one in arguments if one is not type(None))
        yield from _section(path, cls, value)
    elif is_dataclass(hint):
        yield from _section(path, typing.cast("type", hint), value)
    elif origin is tuple:  # of dataclasses: an array of tables
        for one in value or (None,):
            yield from _section(path, arguments[0], one, is_array=True)
    else:  # a mapping of dataclasses
        for key, one in value.items():
            yield from _section(f"{path}.{_key(key)}", type(one), one)


def _section(path: str, cls: type, value: Any, *, is_array: bool = False) -> Iterator[str]:
    """One table and those below it; all commented out when `value` is None."""
    off = "# " if value is None else ""
    if value is None:
        value = cls()
    documentation = (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ and "(" not in cls.__doc__[:30] else ""
    yield off + (f"[[{path}]]" if is_array else f"[{path}]") + (f"  # {documentation}" if documentation else "")
    below: list[tuple[str, Any, Any]] = []
    for entry in fields(value):
        hint, one = hints_of(cls)[entry.name], getattr(value, entry.name)
        if _is_table(hint):
            below.append((f"{path}.{entry.name}", hint, one))
            continue
        if isinstance(one, Mapping):
            text = "{ " + ", ".join(f"{_key(key)} = {_toml(part)}" for key, part in one.items()) + " }" if one else "{}"
        else:
            text = _toml(one)
        choices = entry.metadata.get("choices")
        note = entry.metadata.get("doc", "") + (f" ({' | '.join(choices)})" if choices else "")
        yield f"{off}{entry.name} = {text}" + (f"  # {note}" if note else "")
    for name, hint, one in below:
        if off or (typing.get_origin(hint) is tuple and not one):
            continue  # a list that is empty is told by its key's line in the schema
        yield from _member(name, hint, one)


def _is_table(hint: Any) -> bool:
    arguments = typing.get_args(hint)
    return is_dataclass(hint) or any(is_dataclass(one) for one in arguments)


def _key(key: str) -> str:
    is_bare = key.replace("-", "").replace("_", "").isalnum() and key.isascii()
    return key if is_bare else json.dumps(key)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:_}"
    if isinstance(value, Path):
        return json.dumps(str(value))
    return repr(value)
