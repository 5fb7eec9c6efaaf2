"""Scenario files: TOML, `extends`, and overrides from the command line. Every value remembers where it was written.

    extends = "gossip-v11"       # a shipped scenario, or a file relative to this one; tables are merged, lists replaced
    [nodes.honest]
    count = 500

An override is `PATH=VALUE`, the value as TOML (a bare word is a text), members of lists by their number:
`adversaries.0.share=0.2`. It may add a known section, never a new node group: a typing error must not run.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from .checking import build
from .errors import Problem, ScenarioError
from .lines import Path, line_map, line_of
from .scenario import Scenario
from .writing import plain

SHIPPED = FilePath(__file__).parent / "scenarios"
FILE_BYTES_MAX = 1024 * 1024
EXTENDS_MAX = 8  # files in one chain
DEPTH_MAX = 12  # of nested values: three more than the deepest field
_SET_PART = re.compile(r'"([^"]*)"|([^.="]+)')


@dataclass(slots=True)
class Document:
    """Plain values, and for each written path the place where it was written last."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, str] = field(default_factory=dict)
    name: str = ""
    folder: FilePath = field(default_factory=FilePath)

    def where(self, path: Path) -> str:
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.name)


def load(path_or_name: str | FilePath, *, overrides: Sequence[str] = ()) -> Scenario:
    document = read(find(path_or_name))
    scenario = finish(document)
    if not overrides:
        return scenario
    document.values = plain(scenario)  # with every default, so that members of lists can be set as well
    for override in overrides:
        apply(document, override)
    return finish(document)


def finish(document: Document) -> Scenario:
    values = {key: value for key, value in document.values.items() if key != "extends"}
    return build(values, where=document.where, folder=document.folder)


def shipped_names() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def find(path_or_name: str | FilePath, *, beside: FilePath | None = None) -> FilePath:
    """A file by its path, or a shipped scenario by its name. Raises ScenarioError with what is near."""
    given = FilePath(path_or_name)
    for candidate in (FilePath(beside, given) if beside else given, SHIPPED / f"{path_or_name}.toml"):
        if candidate.is_file():
            return candidate
    names = shipped_names()
    near = difflib.get_close_matches(str(path_or_name), names, 1)
    hint = f"did you mean {near[0]}?" if near else "shipped are " + ", ".join(names)
    raise ScenarioError(Problem(str(path_or_name), "", f"no such scenario: {hint}"))


def read(path: FilePath, *, chain: tuple[FilePath, ...] = ()) -> Document:
    """The file and everything that it extends, merged."""
    shown = str(path)
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ScenarioError(Problem(shown, "", f"is larger than {FILE_BYTES_MAX >> 20} MiB"))
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except OSError as problem:
        raise ScenarioError(Problem(shown, "", f"cannot be read: {problem.strerror}")) from problem
    except UnicodeDecodeError as problem:
        raise ScenarioError(Problem(shown, "", "is no UTF-8 text")) from problem
    except RecursionError as problem:
        raise ScenarioError(Problem(shown, "", "is nested too deeply")) from problem
    except tomllib.TOMLDecodeError as problem:
        line = re.search(r"at line (\d+)", str(problem))
        place = f"{shown}:{line[1]}" if line else shown
        raise ScenarioError(Problem(place, "", f"is no TOML: {problem}")) from problem
    if _depth(values) > DEPTH_MAX:
        raise ScenarioError(Problem(shown, "", f"is nested more than {DEPTH_MAX} deep"))
    lines = line_map(text)
    own = Document(values, {key: f"{shown}:{line}" for key, line in lines.items()}, shown, path.parent)
    if "extends" not in values:
        values.setdefault("name", path.stem)
        return own
    place = f"{shown}:{line_of(lines, ('extends',))}"
    if not isinstance(values["extends"], str):
        raise ScenarioError(Problem(place, "extends", 'write the name of one scenario, extends = "gossip-v11"'))
    try:
        base_path = find(values["extends"], beside=path.parent)
    except ScenarioError as problem:
        raise ScenarioError(Problem(place, "extends", problem.problems[0].message)) from problem
    chain = (*chain, path.resolve())
    if base_path.resolve() in chain:
        raise ScenarioError(Problem(place, "extends", "leads back to this file"))
    if len(chain) >= EXTENDS_MAX:
        raise ScenarioError(Problem(place, "extends", f"a chain of more than {EXTENDS_MAX} files"))
    base = read(base_path, chain=chain)
    values.setdefault("name", path.stem)
    _absolute_files(base)
    base.values = merged(base.values, values)
    _forget_replaced(base, values)
    base.places.update(own.places)
    base.name, base.folder = own.name, own.folder
    return base


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def apply(document: Document, override: str) -> None:
    """Sets one value; raises ScenarioError when the path makes no sense."""
    path, is_given, value = override.partition("=")
    place = f"--set {override}"
    if not is_given:
        raise ScenarioError(Problem(place, "", "write PATH=VALUE, such as nodes.honest.count=500"))
    assign(document, path, value_of(value), place=place)


def assign(document: Document, path_text: str, value: Any, *, place: str) -> None:
    """One value by its path, such as `adversaries.0.share`. `place` is what an error about it names."""
    path = tuple(quoted or plain.strip() for quoted, plain in _SET_PART.findall(path_text))
    if not path or not all(path):
        raise ScenarioError(Problem(place, "", "write a path, such as nodes.honest.count"))

    def wrong(message: str) -> ScenarioError:
        return ScenarioError(Problem(place, path_text, message))

    target: Any = document.values
    at: Path = ()
    for depth, part in enumerate(path):
        shown = ".".join(map(str, at))
        if isinstance(target, list):
            if not part.isdecimal() or int(part) >= len(target):
                raise wrong(f"{shown} has {len(target)} members, counted from 0")
            key: str | int = int(part)
        elif isinstance(target, dict):
            if at == ("nodes",) and part not in target:
                raise wrong(f"no such group of nodes: there is {', '.join(target) or 'none'}")
            key = part
        else:
            raise wrong(f"{shown} is a single value")
        at = (*at, key)
        if depth == len(path) - 1:
            target[key] = value
            document.places[at] = place
            return
        if isinstance(target, dict) and key not in target:
            if path[depth + 1].isdecimal():
                raise wrong(f"{'.'.join(map(str, at))} has no members")
            target[key] = {}
            document.places[at] = place
        target = target[key]


def value_of(text: str) -> Any:
    """As TOML; what is no TOML is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text.strip()


def _forget_replaced(document: Document, over: Mapping[str, Any], path: Path = ()) -> None:
    """Places of lists that were replaced: their members are written elsewhere now, or nowhere."""
    for key, value in over.items():
        here = (*path, key)
        if isinstance(value, Mapping):
            _forget_replaced(document, value, here)
        else:
            for known in [one for one in document.places if one[: len(here)] == here]:
                del document.places[known]


def _absolute_files(document: Document) -> None:
    """Names of files in a base are relative to the base, not to who extends it."""
    groups = document.values.get("nodes", {})
    churns = (
        [group.get("churn") for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    )
    for table in (document.values.get("net"), *churns):
        if isinstance(table, dict) and isinstance(table.get("file"), str) and table["file"]:
            table["file"] = str((document.folder / table["file"]).resolve())


def _depth(value: Any) -> int:
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max((_depth(one) for one in members), default=0)
