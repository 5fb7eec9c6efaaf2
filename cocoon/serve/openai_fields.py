"""Small checks for fields of a JSON object from a stranger: type, range, size; and nested JSON within bounds.

Every failure is an `InvalidRequest` that names the field and what is allowed, never the value: values are private.
A field that is null counts as absent, as OpenAI's SDKs mean it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from ..errors import InvalidRequest

JSON_DEPTH_MAX: Final = 32  # of a schema; deeper ones make grammars that no engine finishes building
JSON_NODES_MAX: Final = 4_096
JSON_CHARS_MAX: Final = 64 * 1024  # text in one schema, keys included
INT_MAX: Final = (1 << 63) - 1


def invalid(message: str, param: str, kind: str | None = None) -> InvalidRequest:
    """The error for a field."""
    return InvalidRequest(message, param=param, kind=kind)


def text(value: object, param: str, *, chars_max: int, chars_min: int = 0) -> str:
    """A string of bounded length that UTF-8 can say."""
    if not isinstance(value, str):
        raise invalid(f"{param} must be a string", param)
    if not chars_min <= len(value) <= chars_max:
        raise invalid(f"{param} must have {chars_min} to {chars_max} characters", param)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise invalid(f"{param} holds half a surrogate pair", param) from None
    return value


def flag(value: object, param: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise invalid(f"{param} must be true or false", param)
    return value


def integer(value: object, param: str, *, low: int, high: int) -> int:
    """A whole number in range; 3.0 counts as 3."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(f"{param} must be a whole number", param)
    if not low <= value <= high:
        raise invalid(f"{param} must be between {low} and {high}", param)
    return value


def number(value: object, param: str, *, low: float, high: float) -> float:
    """A finite number in range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid(f"{param} must be a number", param)
    if isinstance(value, float) and not math.isfinite(value):
        raise invalid(f"{param} must be a finite number", param)
    if not low <= value <= high:
        raise invalid(f"{param} must be between {low:g} and {high:g}", param)
    return float(value)


def mapping(value: object, param: str) -> Mapping[str, Any]:
    """A JSON object."""
    if not isinstance(value, Mapping):
        raise invalid(f"{param} must be an object", param)
    return value


def sequence(value: object, param: str, *, items_max: int, items_min: int = 0) -> list[Any]:
    """A JSON array of bounded length."""
    if not isinstance(value, (list, tuple)):
        raise invalid(f"{param} must be an array", param)
    if not items_min <= len(value) <= items_max:
        raise invalid(f"{param} must have {items_min} to {items_max} items", param)
    return list(value)


def bounded_json(value: object, param: str) -> Any:
    """The same JSON value, copied, when its depth, size and numbers are within bounds."""
    budget = [JSON_NODES_MAX, JSON_CHARS_MAX]
    return _copy(value, param, JSON_DEPTH_MAX, budget)


def _copy(value: object, param: str, depth: int, budget: list[int]) -> Any:
    budget[0] -= 1
    if isinstance(value, str):
        budget[1] -= len(text(value, param, chars_max=JSON_CHARS_MAX))
    if depth == 0 or min(budget) < 0:
        raise invalid(
            f"{param} is too large or too deep (at most {JSON_DEPTH_MAX} levels, {JSON_NODES_MAX} values, "
            f"{JSON_CHARS_MAX} characters)",
            param,
        )
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return integer(value, param, low=-INT_MAX, high=INT_MAX)
    if isinstance(value, float):
        return number(value, param, low=-math.inf, high=math.inf)
    if isinstance(value, Mapping):
        copied = {}
        for key, item in value.items():
            budget[1] -= len(text(key, param, chars_max=JSON_CHARS_MAX))
            copied[key] = _copy(item, param, depth - 1, budget)
        return copied
    if isinstance(value, (list, tuple)):
        return [_copy(item, param, depth - 1, budget) for item in value]
    raise invalid(f"{param} holds something that is not JSON", param)
