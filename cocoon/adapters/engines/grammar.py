"""Grammars that hold a model to JSON: from JSON schemas and tools to llguidance's Lark dialect.

llama.cpp here is built with llguidance, a Rust engine that compiles JSON schemas itself. Two of its habits decide
what this file does:

- A grammar it cannot compile is reported on stderr only, and the model then runs *unconstrained*. So schemas are
  copied keyword by keyword, and only what llguidance is known to compile goes through. What is left out is either
  harmless (titles, defaults) or narrows a value that stays of the right shape (`uniqueItems`, `not`); what cannot
  work is refused with `InvalidRequest`.
- It compiles on the thread that decodes for everybody: `minItems: 100000000` took 80 s. Counts and patterns are
  bounded here, beyond the bounds on size and depth that `cocoon.serve.openai` sets.

Whitespace is fixed to what `json.dumps` writes: a small model left free can emit spaces until its tokens run out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...errors import InvalidRequest

COUNT_MAX: Final = 1_000  # items, characters or properties a schema may demand; each is a state of the grammar
PATTERN_CHARS_MAX: Final = 256
REPEAT_MAX: Final = 1_000  # {m,n} in a pattern; the product of all of them
DEPTH_MAX: Final = 32
NODES_MAX: Final = 4_096

HEADER: Final = "%llguidance {}\n"
_SPACING: Final = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}

_TYPES: Final = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_FORMATS: Final = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
_COUNTS: Final = (
    ("minItems", "maxItems"),
    ("minLength", "maxLength"),
    ("minProperties", "maxProperties"),
)
_RANGES: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_LOOKS: Final = re.compile(r"\(\?[=!<]|\\[1-9]|\(\?P")  # lookaround, back-references, named groups
_REPEAT: Final = re.compile(r"\{(\d*),?(\d*)\}")


def json_grammar(schema: Mapping[str, Any], param: str) -> str:
    """A grammar for one JSON value under `schema`. Raises `InvalidRequest` naming `param`."""
    return f"{HEADER}start: json\njson: {_json_rule(schema, param)}\n"


ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}


def literal(text: str) -> str:
    """A Lark string literal."""
    return json.dumps(text)


def choice_rule(name: str, alternatives: Sequence[str]) -> str:
    """`name: a | b`."""
    return f"{name}: {' | '.join(alternatives)}\n"


def json_rule(name: str, schema: Mapping[str, Any] | None, param: str) -> str:
    """A rule for one JSON value; without a schema, any object."""
    return f"{name}: {_json_rule(schema or ANY_OBJECT, param)}\n"


def text_without(name: str, words: Sequence[str]) -> str:
    """A terminal for text of at least one character in which none of `words` occurs."""
    banned = "|".join(re.escape(word).replace("/", r"\/") for word in words)
    return f"{name}: /(?s:.+)/ & ~/(?s:.*)({banned})(?s:.*)/\n"


def _json_rule(schema: Mapping[str, Any], param: str) -> str:
    kept = _Copy(schema, param).top()
    kept["x-guidance"] = _SPACING
    return "%json " + json.dumps(kept)


class _Copy:
    """One schema on its way through the list of known keywords."""

    def __init__(self, schema: Mapping[str, Any], param: str) -> None:
        self._root = schema
        self._param = param
        self._nodes = 0

    def top(self) -> dict[str, Any]:
        kept = self._schema(self._root, DEPTH_MAX)
        if not isinstance(kept, dict):
            raise self._refuse("must be an object")
        return kept

    def _refuse(self, why: str) -> InvalidRequest:
        return InvalidRequest(f"{self._param}: {why}", param=self._param, kind="invalid_schema")

    def _schema(self, node: object, depth: int) -> dict[str, Any] | bool:
        self._nodes += 1
        if depth == 0 or self._nodes > NODES_MAX:
            raise self._refuse("the schema is too large or too deep")
        if node is True:
            return True
        if not isinstance(node, Mapping):
            raise self._refuse("a schema must be an object")
        out: dict[str, Any] = {}
        self._kinds(node, out)
        self._numbers(node, out)
        self._text(node, out)
        self._nested(node, out, depth - 1)
        return out

    def _kinds(self, node: Mapping[str, Any], out: dict[str, Any]) -> None:
        if "type" in node:
            kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
            if not kinds or any(not isinstance(kind, str) or kind not in _TYPES for kind in kinds):
                raise self._refuse("unknown type in the schema")
            out["type"] = node["type"]
        if "enum" in node:
            if not isinstance(node["enum"], list) or not node["enum"]:
                raise self._refuse("enum must be a list with at least one value")
            out["enum"] = node["enum"]
        if "const" in node:
            out["const"] = node["const"]
        reference = node.get("$ref")
        if reference is not None:
            self._resolve(reference)
            out["$ref"] = reference
        required = node.get("required")
        if required is not None:
            if not isinstance(required, list) or any(not isinstance(name, str) for name in required):
                raise self._refuse("required must be a list of names")
            out["required"] = required

    def _resolve(self, reference: object) -> None:
        """Only references inside the same schema, and only into what is copied."""
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise self._refuse("$ref may only point inside the same schema")
        target: Any = self._root
        for part in reference[2:].split("/") if reference != "#" else ():
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, Mapping) and part in target:
                target = target[part]
            elif isinstance(target, list) and part.isdecimal() and len(part) < 5 and int(part) < len(target):
                target = target[int(part)]
            else:
                raise self._refuse("$ref points to nothing")

    def _numbers(self, node: Mapping[str, Any], out: dict[str, Any]) -> None:
        for low_name, high_name in _COUNTS:
            low, high = node.get(low_name), node.get(high_name)
            for count in (low, high):
                if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
                    raise self._refuse(f"{low_name} and {high_name} must be whole numbers")
            if low is not None:
                if low > COUNT_MAX:
                    raise self._refuse(f"{low_name} may be at most {COUNT_MAX}")
                out[low_name] = low
            if high is not None:
                if low is not None and high < low:
                    raise self._refuse(f"{high_name} is below {low_name}")
                if high <= COUNT_MAX:  # a higher ceiling is no ceiling for one answer
                    out[high_name] = high
        for name in _RANGES:
            value = node.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise self._refuse(f"{name} must be a number")
            if name == "multipleOf" and value <= 0:
                raise self._refuse("multipleOf must be above zero")
            out[name] = value
        lows = [out[name] for name in ("minimum", "exclusiveMinimum") if name in out]
        highs = [out[name] for name in ("maximum", "exclusiveMaximum") if name in out]
        if lows and highs and max(lows) > min(highs):
            raise self._refuse("the smallest number allowed is above the largest")

    def _text(self, node: Mapping[str, Any], out: dict[str, Any]) -> None:
        pattern = node.get("pattern")
        if pattern is not None:
            self._check_pattern(pattern)
            out["pattern"] = pattern
        if node.get("format") in _FORMATS:
            out["format"] = node["format"]

    def _check_pattern(self, pattern: object) -> None:
        if not isinstance(pattern, str) or len(pattern) > PATTERN_CHARS_MAX:
            raise self._refuse(f"a pattern must be a string of at most {PATTERN_CHARS_MAX} characters")
        if _LOOKS.search(pattern):
            raise self._refuse("patterns with lookaround, back-references or named groups are not supported")
        product = 1
        for low, high in _REPEAT.findall(pattern):
            product *= max(int(low or 0), int(high or 0), 1)
            if product > REPEAT_MAX:
                raise self._refuse(f"the repetitions of a pattern may multiply to at most {REPEAT_MAX}")
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError):
            raise self._refuse("a pattern is not a regular expression") from None

    def _nested(self, node: Mapping[str, Any], out: dict[str, Any], depth: int) -> None:
        for name in ("properties", "$defs", "definitions"):
            if name in node:
                if not isinstance(node[name], Mapping):
                    raise self._refuse(f"{name} must be an object")
                out[name] = {key: self._schema(value, depth) for key, value in node[name].items()}
        for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
            if name in node:
                if not isinstance(node[name], list) or not node[name]:
                    raise self._refuse(f"{name} must be a list with at least one schema")
                into = "anyOf" if name == "oneOf" else name  # exclusiveness cannot be generated, only checked
                if into in out:
                    raise self._refuse("anyOf and oneOf together are not supported")
                out[into] = [self._schema(value, depth) for value in node[name]]
        for name in ("items", "additionalProperties"):
            if name in node:
                value = node[name]
                out[name] = value if isinstance(value, bool) else self._schema(value, depth)
