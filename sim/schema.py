"""The published JSON schema of scenario files, made from the dataclasses: editors complete and check with it.

`sim/scenarios/scenario.schema.json` is this, written out (`python -m sim list --schema`); a test holds the two
together. The loader does not use it: it knows lines, other units and what fields cannot know of one another.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from .checking import hints_of, keys_of
from .scenario import Axis, Scenario

SCALARS = {bool: "boolean", int: "integer", float: "number", str: "string"}


def json_schema() -> dict[str, Any]:
    made: dict[str, Any] = {}
    root = _object(Scenario, made, without=("folder",))
    root["properties"]["extends"] = {"type": "string", "description": "a shipped scenario, or a file relative to this"}
    root["required"] = []  # the name of the file is the default name
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A scenario of the Cocoon simulator",
        **root,
        "$defs": made,
    }


def _object(cls: type, made: dict[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required: list[str] = []
    for entry in fields(cls):
        if entry.name in without:
            continue
        one = _of(hints_of(cls)[entry.name], entry.metadata, made)
        if entry.metadata.get("doc"):
            one["description"] = entry.metadata["doc"]
        default = entry.default if entry.default is not MISSING else None
        if isinstance(default, (bool, int, float, str)) or (isinstance(default, tuple) and not _holds_objects(default)):
            one["default"] = list(default) if isinstance(default, tuple) else default
        elif default is None and entry.default_factory is MISSING and entry.default is MISSING:
            required.append(entry.name)
        properties[entry.name] = one
    result: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        result["required"] = required
    return result


def _of(hint: Any, bounds: Mapping[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        rest = [one for one in arguments if one is not type(None)]
        if len(rest) == 1:
            return _of(rest[0], bounds, made)
        return {"type": ["boolean", "number", "string"]}
    if is_dataclass(hint):
        cls = typing.cast("type", hint)
        if cls.__name__ not in made:
            made[cls.__name__] = {}
            made[cls.__name__] = _object(cls, made)
        reference = {"$ref": f"#/$defs/{cls.__name__}"}
        if cls is Axis:
            return {"anyOf": [reference, {"type": "array", "items": {"type": ["boolean", "number", "string"]}}]}
        return reference
    if origin is tuple:
        one = _of(arguments[0], bounds, made)
        result: dict[str, Any] = {"type": "array", "items": one}
        if arguments[-1] is not Ellipsis:
            result |= {"minItems": len(arguments), "maxItems": len(arguments)}
        return result
    if origin is not None:  # a mapping
        if bounds.get("keys_of"):
            keys = {key: {"type": SCALARS[kind]} for key, kind in keys_of(bounds["keys_of"]).items()}
            return {"type": "object", "properties": keys, "additionalProperties": False}
        return {"type": "object", "additionalProperties": _of(arguments[1], {}, made)}
    result = {"type": SCALARS[hint]}
    for word, bound in (("minimum", bounds.get("low")), ("maximum", bounds.get("high"))):
        if bound is not None:
            result[word] = bound
    if bounds.get("choices"):
        result["enum"] = list(bounds["choices"])
    return result


def _holds_objects(values: tuple[Any, ...]) -> bool:
    return any(is_dataclass(one) for one in values)
