"""The parts of an OpenAI request that have a shape of their own: messages, tools, response format.

Each function takes what a stranger wrote and gives a fresh value with known fields only, in one spelling.
"""

from __future__ import annotations

import re
from typing import Any, Final

from .openai_fields import bounded_json, flag, invalid, mapping, sequence, text

MESSAGES_MAX: Final = 4_096  # an agent's longest conversations have hundreds
PARTS_MAX: Final = 256
TEXT_CHARS_MAX: Final = 1024 * 1024  # the sealed body holds no more
NAME_CHARS_MAX: Final = 64
ID_CHARS_MAX: Final = 128
TOOLS_MAX: Final = 128  # OpenAI's own limit
DESCRIPTION_CHARS_MAX: Final = 8_192
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_ROLES: Final = {
    "system": "system",
    "developer": "system",  # OpenAI's newer word for it; open models' templates know only the older
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def messages(value: object) -> list[dict[str, Any]]:
    """`messages` of a chat request."""
    given = sequence(value, "messages", items_max=MESSAGES_MAX, items_min=1)
    return [_message(one, f"messages[{index}]") for index, one in enumerate(given)]


def _message(value: object, param: str) -> dict[str, Any]:
    given = mapping(value, param)
    role = _ROLES.get(given["role"]) if isinstance(given.get("role"), str) else None
    if role is None:
        raise invalid(f"{param}.role must be one of system, developer, user, assistant, tool", f"{param}.role")
    message: dict[str, Any] = {"role": role}
    calls = given.get("tool_calls")
    content = given.get("content")
    if role == "assistant" and content is None and given.get("refusal") is not None:
        content = given["refusal"]
    if content is None:
        if role != "assistant" or not calls:
            raise invalid(f"{param}.content is missing", f"{param}.content")
        message["content"] = None
    else:
        message["content"] = _content(content, f"{param}.content")
    if given.get("name") is not None:
        message["name"] = text(given["name"], f"{param}.name", chars_max=NAME_CHARS_MAX, chars_min=1)
    if role == "tool":
        message["tool_call_id"] = text(
            given.get("tool_call_id"), f"{param}.tool_call_id", chars_max=ID_CHARS_MAX, chars_min=1
        )
    if calls:
        if role != "assistant":
            raise invalid(f"{param}.tool_calls belongs to the assistant only", f"{param}.tool_calls")
        given_calls = sequence(calls, f"{param}.tool_calls", items_max=TOOLS_MAX)
        message["tool_calls"] = [
            _tool_call(call, f"{param}.tool_calls[{index}]") for index, call in enumerate(given_calls)
        ]
    return message


def _content(value: object, param: str) -> str:
    """A string, or text parts joined."""
    if isinstance(value, str):
        return text(value, param, chars_max=TEXT_CHARS_MAX)
    pieces = []
    for index, part in enumerate(sequence(value, param, items_max=PARTS_MAX, items_min=1)):
        where = f"{param}[{index}]"
        kind = mapping(part, where).get("type")
        if kind not in ("text", "refusal"):
            raise invalid(f"{where}: only text parts are supported, no images, audio or files", f"{where}.type")
        pieces.append(text(part.get(kind), f"{where}.{kind}", chars_max=TEXT_CHARS_MAX))
    return "".join(pieces)


def _tool_call(value: object, param: str) -> dict[str, Any]:
    given = mapping(value, param)
    if given.get("type", "function") != "function":
        raise invalid(f"{param}.type must be function", f"{param}.type")
    function = mapping(given.get("function"), f"{param}.function")
    return {
        "id": text(given.get("id"), f"{param}.id", chars_max=ID_CHARS_MAX, chars_min=1),
        "type": "function",
        "function": {
            "name": _name(function.get("name"), f"{param}.function.name"),
            "arguments": text(function.get("arguments", ""), f"{param}.function.arguments", chars_max=TEXT_CHARS_MAX),
        },
    }


def tools(value: object) -> list[dict[str, Any]]:
    """`tools`: functions with their schemas."""
    found: list[dict[str, Any]] = []
    names: set[str] = set()
    for index, one in enumerate(sequence(value, "tools", items_max=TOOLS_MAX)):
        param = f"tools[{index}]"
        given = mapping(one, param)
        if given.get("type") != "function":
            raise invalid(f"{param}.type must be function", f"{param}.type")
        function = mapping(given.get("function"), f"{param}.function")
        name = _name(function.get("name"), f"{param}.function.name")
        if name in names:
            raise invalid(f"{param}.function.name is used twice", f"{param}.function.name")
        names.add(name)
        kept: dict[str, Any] = {"name": name}
        if function.get("description") is not None:
            kept["description"] = text(
                function["description"], f"{param}.function.description", chars_max=DESCRIPTION_CHARS_MAX
            )
        if function.get("parameters") is not None:
            kept["parameters"] = schema(function["parameters"], f"{param}.function.parameters")
        if function.get("strict") is not None:
            kept["strict"] = flag(function["strict"], f"{param}.function.strict")
        found.append({"type": "function", "function": kept})
    return found


def tool_choice(value: object, offered: list[dict[str, Any]]) -> str | dict[str, Any] | None:
    """`tool_choice`, or None when it says nothing (no tools to choose from)."""
    if isinstance(value, str):
        if value not in ("none", "auto", "required"):
            raise invalid("tool_choice must be none, auto, required or a function", "tool_choice")
        if not offered:
            if value == "required":
                raise invalid("tool_choice is required, but there are no tools", "tool_choice")
            return None
        return value
    given = mapping(value, "tool_choice")
    name = _name(mapping(given.get("function"), "tool_choice.function").get("name"), "tool_choice.function.name")
    if given.get("type") != "function" or all(tool["function"]["name"] != name for tool in offered):
        raise invalid("tool_choice names a function that is not among the tools", "tool_choice")
    return {"type": "function", "function": {"name": name}}


def response_format(value: object) -> dict[str, Any] | None:
    """`response_format`, or None for plain text."""
    given = mapping(value, "response_format")
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "json_object"}
    if kind != "json_schema":
        raise invalid("response_format.type must be text, json_object or json_schema", "response_format.type")
    param = "response_format.json_schema"
    inner = mapping(given.get("json_schema"), param)
    kept: dict[str, Any] = {
        "name": _name(inner.get("name"), f"{param}.name"),
        "schema": schema(inner.get("schema"), f"{param}.schema"),
    }
    if inner.get("strict") is not None:
        kept["strict"] = flag(inner["strict"], f"{param}.strict")
    if inner.get("description") is not None:
        kept["description"] = text(inner["description"], f"{param}.description", chars_max=DESCRIPTION_CHARS_MAX)
    return {"type": "json_schema", "json_schema": kept}


def schema(value: object, param: str) -> dict[str, Any]:
    """A JSON schema within bounds; whether it makes sense is for the engine to say."""
    copied: dict[str, Any] = bounded_json(mapping(value, param), param)
    return copied


def _name(value: object, param: str) -> str:
    name = text(value, param, chars_max=NAME_CHARS_MAX, chars_min=1)
    if _NAME.match(name) is None:
        raise invalid(f"{param} may hold letters, digits, _, - and . only", param)
    return name
