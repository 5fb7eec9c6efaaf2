"""OpenAI's Responses API, its stateless part, in terms of chats: what a request means, and the object that answers it.

A request becomes a chat request and goes the same way (`as_chat`); `responses_sse` writes the events. Nothing is
stored here: `store` is answered with false, and what would need a memory (`previous_response_id`, `conversation`,
`background`, stored prompts) is refused. Built-in tools need a service behind them and are refused too.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..client.interface import ReplySummary
from ..errors import InvalidRequest
from ..serve.openai import CHAT, NormalisedRequest, normalise
from ..serve.openai_fields import invalid, mapping, sequence, text
from ..types import FinishReason
from .generation import Choice
from .objects import WholeChoice, x_cocoon

ITEMS_MAX: Final = 4_096  # as messages of a chat
METADATA_MAX: Final = 16  # OpenAI's own limit
_NEEDS_MEMORY: Final = ("previous_response_id", "conversation", "background", "prompt")
_SAME: Final = ("model", "stream", "temperature", "top_p", "parallel_tool_calls", "seed", "user")
_TEXT_PARTS: Final = ("input_text", "output_text", "text", "refusal")
_RENAMED: Final = (("messages", "input"), ("max_tokens", "max_output_tokens"), ("response_format", "text.format"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesRequest:
    """A checked request: the chat that it comes to, and what its answer repeats."""

    chat: NormalisedRequest
    echo: Mapping[str, Any] = field(repr=False)
    wants_logprobs: bool


def read_responses(body: Mapping[str, Any]) -> ResponsesRequest:
    """Check an app's request. Raises `InvalidRequest` naming the field in this API's words."""
    given = mapping(body, "body")
    for name in _NEEDS_MEMORY:
        if given.get(name):
            raise invalid(
                f"{name} needs a service that keeps conversations; send the whole input each time",
                name,
                "unsupported_parameter",
            )
    if given.get("truncation") not in (None, "disabled"):
        raise invalid("truncation: only disabled is supported", "truncation", "unsupported_parameter")
    include = [one for one in sequence(given.get("include") or [], "include", items_max=16) if isinstance(one, str)]
    wants_logprobs = "message.output_text.logprobs" in include or bool(given.get("top_logprobs"))
    try:
        chat = normalise(CHAT, _as_chat(given, wants_logprobs))
    except InvalidRequest as error:
        raise _renamed(error) from None
    return ResponsesRequest(chat=chat, echo=_echo(given, chat), wants_logprobs=wants_logprobs)


def _as_chat(given: Mapping[str, Any], wants_logprobs: bool) -> dict[str, Any]:
    chat: dict[str, Any] = {name: given[name] for name in _SAME if given.get(name) is not None}
    chat["messages"] = _messages(given)
    if given.get("max_output_tokens") is not None:
        chat["max_tokens"] = given["max_output_tokens"]
    if given.get("tools"):
        chat["tools"] = [_tool(one, f"tools[{index}]") for index, one in enumerate(_list(given["tools"], "tools", 128))]
    if given.get("tool_choice") is not None:
        chat["tool_choice"] = _tool_choice(given["tool_choice"])
    form = mapping(given["text"], "text").get("format") if given.get("text") is not None else None
    if form is not None:
        chat["response_format"] = _format(mapping(form, "text.format"))
    if wants_logprobs:
        chat["logprobs"], chat["top_logprobs"] = True, given.get("top_logprobs") or 0
    return chat


def _list(value: object, param: str, items_max: int) -> Sequence[Any]:
    return sequence(value, param, items_max=items_max)


def _messages(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`instructions` and `input` as messages. Calls that follow one another belong to one turn of the assistant."""
    messages: list[dict[str, Any]] = []
    if given.get("instructions") is not None:
        messages.append({"role": "system", "content": given["instructions"]})
    value = given.get("input")
    if isinstance(value, str):
        return [*messages, {"role": "user", "content": value}]
    if value is None:
        raise invalid("input is missing", "input")
    for index, one in enumerate(_list(value, "input", ITEMS_MAX)):
        param = f"input[{index}]"
        item = mapping(one, param)
        kind = item.get("type", "message")
        if kind == "message":
            messages.append({"role": item.get("role"), "content": _content(item.get("content"), f"{param}.content")})
        elif kind == "function_call":
            call = {
                "id": item.get("call_id"),
                "type": "function",
                "function": {"name": item.get("name"), "arguments": item.get("arguments", "")},
            }
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            messages[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            messages.append(
                {
                    "role": "tool",
                    "tool_call_id": item.get("call_id"),
                    "content": _content(item.get("output"), f"{param}.output"),
                }
            )
        elif kind != "reasoning":  # another model's thoughts; they steer nothing here
            raise invalid(f"{param}.type is not supported", f"{param}.type", "unsupported_parameter")
    return messages


def _content(value: object, param: str) -> object:
    if not isinstance(value, list):
        return value
    parts = []
    for index, one in enumerate(_list(value, param, 256)):
        part = mapping(one, f"{param}[{index}]")
        kind = part.get("type")
        if kind not in _TEXT_PARTS:
            raise invalid(
                f"{param}[{index}]: only text is supported, no images, audio or files",
                f"{param}[{index}].type",
                "unsupported_parameter",
            )
        parts.append({"type": "text", "text": part.get("refusal" if kind == "refusal" else "text")})
    return parts


def _tool(value: object, param: str) -> dict[str, Any]:
    """Functions stand flat in this API."""
    given = mapping(value, param)
    if given.get("type") != "function":
        raise invalid(f"{param}.type must be function: there are no built-in tools", f"{param}.type")
    kept = {
        name: given[name] for name in ("name", "description", "parameters", "strict") if given.get(name) is not None
    }
    return {"type": "function", "function": kept}


def _tool_choice(value: object) -> object:
    if isinstance(value, Mapping) and value.get("type") == "function" and "function" not in value:
        return {"type": "function", "function": {"name": value.get("name")}}
    return value


def _format(form: Mapping[str, Any]) -> dict[str, Any]:
    if form.get("type") != "json_schema":
        return {"type": form.get("type")}
    kept = {name: form[name] for name in ("name", "description", "schema", "strict") if form.get(name) is not None}
    return {"type": "json_schema", "json_schema": kept}


def _renamed(error: InvalidRequest) -> InvalidRequest:
    param, message = error.param or "", str(error)
    for theirs, ours in _RENAMED:
        if param == theirs or param.startswith((f"{theirs}.", f"{theirs}[")):
            return InvalidRequest(message.replace(theirs, ours), param=ours + param[len(theirs) :], kind=error.kind)
    return error


def _echo(given: Mapping[str, Any], chat: NormalisedRequest) -> dict[str, Any]:
    """What the answer repeats of the request, as it was understood."""
    body = chat.body
    form = body.get("response_format")
    shown = {"type": "text"} if form is None else {"type": form["type"], **form.get("json_schema", {})}
    choice = body.get("tool_choice", "auto")
    return {
        "instructions": given.get("instructions"),
        "max_output_tokens": body.get("max_tokens"),
        "metadata": _metadata(given.get("metadata")),
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": body.get("temperature", 1.0),
        "text": {"format": shown},
        "tool_choice": choice if isinstance(choice, str) else {"type": "function", **choice["function"]},
        "tools": [{"type": "function", "strict": False, **tool["function"]} for tool in body.get("tools", ())],
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
        "background": False,
        "user": None,
    }


def _metadata(value: object) -> dict[str, str]:
    given = mapping(value, "metadata") if value is not None else {}
    if len(given) > METADATA_MAX:
        raise invalid(f"metadata must have at most {METADATA_MAX} entries", "metadata")
    return {text(key, "metadata", chars_max=64): text(one, "metadata", chars_max=512) for key, one in given.items()}


# --- the answer --------------------------------------------------------------------------------------------


def new_id(kind: str) -> str:
    """`resp_…`, `msg_…`, `fc_…`."""
    return f"{kind}_{secrets.token_hex(24)}"


def response_object(
    *, response_id: str, created: int, model: str, echo: Mapping[str, Any], output: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """A response that is being made; `finished` makes it whole."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": list(output),
        "usage": None,
        **echo,
    }


def finished(response: Mapping[str, Any], output: Sequence[Mapping[str, Any]], choice: Choice) -> dict[str, Any]:
    """`response` with its output, usage and end."""
    assert choice.summary is not None
    is_cut = choice.summary.finish_reason is FinishReason.LENGTH
    return {
        **response,
        "status": "incomplete" if is_cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "output": list(output),
        "usage": responses_usage(choice.summary),
        "x_cocoon": x_cocoon([choice]),
    }


def responses_usage(summary: ReplySummary) -> dict[str, Any]:
    """Usage in this API's words."""
    usage = summary.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def message_item(item_id: str, status: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Text of the assistant as an output item."""
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": list(parts)}


def text_part(words: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Text inside a message item."""
    return {"type": "output_text", "text": words, "annotations": [], "logprobs": list(logprobs)}


def call_item(item_id: str, status: str, call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call as an output item."""
    return {
        "id": item_id,
        "type": "function_call",
        "status": status,
        "call_id": call["id"],
        "name": call["function"]["name"],
        "arguments": call["function"]["arguments"],
    }


def whole_output(whole: WholeChoice, logprobs: Sequence[Mapping[str, Any]], *, is_cut: bool) -> list[dict[str, Any]]:
    """The output items of an answer that is not streamed."""
    status = "incomplete" if is_cut else "completed"
    words = "".join(whole.text)
    output = []
    if words or not whole.tool_calls:
        output.append(message_item(new_id("msg"), status, [text_part(words, logprobs)]))
    output += [call_item(new_id("fc"), status, whole.tool_calls[index]) for index in sorted(whole.tool_calls)]
    return output
