"""OpenAI's request bodies, made safe: known fields only, one spelling each, everything bounded.

The client's side calls `normalise` on what an app sent; the provider's side calls `generation_request` on what it
decrypted and trusts nothing of it: both go through the same checks, and checking twice changes nothing. Errors are
`InvalidRequest` with OpenAI's `param`; their texts hold names of fields, never values.

Fields that only steer OpenAI's own service (user, metadata, store, service_tier …) are dropped, unknown fields
ignored. A field whose silent loss would change the answer is refused instead: functions, audio, suffix, echo.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from ..errors import InvalidRequest
from ..ports.engine import Continued, GenerationRequest
from ..wire import limits
from . import openai_schemas as schemas
from .openai_fields import INT_MAX, flag, integer, invalid, mapping, number, sequence, text

CHAT: Final = "chat.completions"
COMPLETIONS: Final = "completions"
BODY_BYTES_MAX: Final = 1024 * 1024 - 1024  # with key, tag and padding it fits a sealed request
CHOICES_MAX: Final = 8
STOPS_MAX: Final = 4
STOP_CHARS_MAX: Final = 256
TOP_LOGPROBS_MAX: Final = 20
LOGIT_BIASES_MAX: Final = 300
MODEL_CHARS_MAX: Final = 256
TOKEN_ID_MAX: Final = (1 << 32) - 1
CONTINUE: Final = "cocoon_continue"
"""The field of a sealed body that holds the beginning of an answer; a client writes it, no app can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalisedRequest:
    """An app's request: what travels to a provider (`body`), and what the gateway keeps to itself.

    `body` has `max_tokens` only when the app gave it; the client sets it before it seals.
    """

    endpoint: str
    model: str
    body: Mapping[str, Any] = field(repr=False)
    n: int
    stream: bool
    include_usage: bool


def parse_body(data: bytes) -> Mapping[str, Any]:
    """The JSON object in these bytes. Raises `InvalidRequest`: too long, too deep, NaN, not an object."""
    if len(data) > BODY_BYTES_MAX:
        raise InvalidRequest(f"the request body has {len(data)} bytes; at most {BODY_BYTES_MAX}")
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("the request body is not JSON, or nested too deeply") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the request body must be a JSON object")
    return value


def encode_body(body: Mapping[str, Any]) -> bytes:
    """A normalised body as the JSON that is sealed. Raises `InvalidRequest` when it is too large."""
    data = msgspec.json.encode(body)
    if len(data) > BODY_BYTES_MAX:
        raise invalid(f"the request has {len(data)} bytes; at most {BODY_BYTES_MAX}", "messages")
    return data


def normalise(endpoint: str, body: Mapping[str, Any]) -> NormalisedRequest:
    """Check an app's request. Raises `InvalidRequest`."""
    given = mapping(body, "body")
    kept = _fields(endpoint, given)
    stream = flag(given["stream"], "stream") if given.get("stream") is not None else False
    include_usage = False
    if given.get("stream_options") is not None:
        if not stream:
            raise invalid("stream_options is only allowed when stream is true", "stream_options")
        wanted = mapping(given["stream_options"], "stream_options").get("include_usage")
        include_usage = flag(wanted, "stream_options.include_usage") if wanted is not None else False
    return NormalisedRequest(
        endpoint=endpoint,
        model=text(given.get("model"), "model", chars_max=MODEL_CHARS_MAX, chars_min=1),
        body=kept,
        n=integer(given["n"], "n", low=1, high=CHOICES_MAX) if given.get("n") is not None else 1,
        stream=stream,
        include_usage=include_usage,
    )


def generation_request(endpoint: str, body: bytes, *, cache_scope: bytes) -> GenerationRequest:
    """What an engine may run, from the bytes that a stranger sealed. Raises `InvalidRequest`.

    `cache_scope` is that of `RequestOpened`. `model`, `n` and `stream` are dropped; `max_tokens` must be there.
    """
    given = parse_body(body)
    kept = _fields(endpoint, given)
    if "max_tokens" not in kept:
        raise invalid("max_tokens is missing", "max_tokens")
    continued = _continued(given[CONTINUE]) if given.get(CONTINUE) is not None else None
    if continued is not None and ("tools" in kept or "response_format" in kept):
        raise invalid("an answer with tools or a schema cannot be continued", CONTINUE, "unsupported_parameter")
    return GenerationRequest(endpoint=endpoint, body=kept, cache_tag=cache_scope, continued=continued)


def with_beginning(body: Mapping[str, Any], token_ids: Sequence[int], shown: str) -> dict[str, Any]:
    """A normalised body that asks to go on after these tokens, of which the user has seen this text."""
    return {**body, CONTINUE: {"token_ids": list(token_ids), "text": shown}}


def _continued(value: object) -> Continued:
    given = mapping(value, CONTINUE)
    ids = sequence(given.get("token_ids"), f"{CONTINUE}.token_ids", items_max=limits.OUTPUT_TOKENS_MAX)
    return Continued(
        token_ids=tuple(
            integer(one, f"{CONTINUE}.token_ids[{index}]", low=0, high=TOKEN_ID_MAX) for index, one in enumerate(ids)
        ),
        text=text(given.get("text"), f"{CONTINUE}.text", chars_max=schemas.TEXT_CHARS_MAX),
    )


def prompt_tokens_upper_bound(body: Mapping[str, Any]) -> int:
    """At most so many tokens has the prompt of a normalised body, whatever the tokenizer.

    Tokenizers with byte fallback make no more tokens than bytes of UTF-8. Templates add a few per message, and may
    indent the tools' JSON. Where this exceeds the context, declare what the context leaves instead.
    """
    if "prompt" in body:
        return len(body["prompt"].encode()) + 8
    bound = 256
    for message in body["messages"]:
        bound += 32 + len((message.get("content") or "").encode()) + len(message.get("name", "").encode())
        if "tool_calls" in message:
            bound += 2 * len(json.dumps(message["tool_calls"]).encode())
        bound += len(message.get("tool_call_id", "").encode())
    for extra in ("tools", "response_format"):
        if extra in body:
            bound += 256 + 4 * len(json.dumps(body[extra]).encode())
    return bound


# --- fields ----------------------------------------------------------------------------------------------


def _fields(endpoint: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The checked body: everything an engine may see."""
    if endpoint not in (CHAT, COMPLETIONS):
        raise InvalidRequest("no such endpoint")
    kept: dict[str, Any] = {}
    for name in _REFUSED[endpoint]:
        if given.get(name):
            raise invalid(f"{name} is not supported", name, "unsupported_parameter")
    if endpoint == CHAT:
        kept["messages"] = schemas.messages(given.get("messages"))
        _modalities(given.get("modalities"))
        _tools(given, kept)
        if given.get("response_format") is not None:
            wanted = schemas.response_format(given["response_format"])
            if wanted is not None:
                kept["response_format"] = wanted
    else:
        kept["prompt"] = _prompt(given.get("prompt"))
        if given.get("best_of") is not None:
            integer(given["best_of"], "best_of", low=1, high=1)
    for name, check in _SIMPLE.items():
        if given.get(name) is not None:
            kept[name] = check(given[name], name)
    if "max_completion_tokens" in kept:  # the newer word wins
        kept["max_tokens"] = kept.pop("max_completion_tokens")
    _logprobs(endpoint, given, kept)
    return kept


def _stop(value: object, param: str) -> list[str]:
    if isinstance(value, str):
        value = [value]
    return [
        text(one, f"{param}[{index}]", chars_max=STOP_CHARS_MAX, chars_min=1)
        for index, one in enumerate(sequence(value, param, items_max=STOPS_MAX))
    ]


def _logit_bias(value: object, param: str) -> dict[str, float]:
    given = mapping(value, param)
    if len(given) > LOGIT_BIASES_MAX:
        raise invalid(f"{param} must have at most {LOGIT_BIASES_MAX} entries", param)
    biases: dict[str, float] = {}
    for key, bias in given.items():
        if not (isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) <= 10):
            raise invalid(f"{param} must be keyed by token ids", param)
        token_id = integer(int(key), param, low=0, high=TOKEN_ID_MAX)
        biases[str(token_id)] = number(bias, param, low=-100, high=100)
    return biases


def _tokens(value: object, param: str) -> int:
    return integer(value, param, low=1, high=limits.OUTPUT_TOKENS_MAX)


def _penalty(value: object, param: str) -> float:
    return number(value, param, low=-2, high=2)


_SIMPLE: Final[Mapping[str, Callable[[object, str], Any]]] = {
    "max_tokens": _tokens,
    "max_completion_tokens": _tokens,
    "temperature": lambda value, param: number(value, param, low=0, high=2),
    "top_p": lambda value, param: number(value, param, low=0, high=1),
    "seed": lambda value, param: integer(value, param, low=-INT_MAX, high=INT_MAX),
    "frequency_penalty": _penalty,
    "presence_penalty": _penalty,
    "stop": _stop,
    "logit_bias": _logit_bias,
}

_REFUSED: Final = {
    CHAT: ("functions", "function_call", "audio", "web_search_options"),
    COMPLETIONS: ("suffix", "echo"),
}


def _prompt(value: object) -> str:
    if isinstance(value, list):
        if len(value) != 1 or not isinstance(value[0], str):
            raise invalid("prompt must be one string; token ids and several prompts are not supported", "prompt")
        value = value[0]
    return text(value, "prompt", chars_max=schemas.TEXT_CHARS_MAX, chars_min=1)


def _modalities(value: object) -> None:
    if value is not None and value != ["text"]:
        raise invalid("modalities: only text is supported", "modalities", "unsupported_parameter")


def _tools(given: Mapping[str, Any], kept: dict[str, Any]) -> None:
    offered = schemas.tools(given["tools"]) if given.get("tools") is not None else []
    if offered:
        kept["tools"] = offered
        if given.get("parallel_tool_calls") is not None:
            kept["parallel_tool_calls"] = flag(given["parallel_tool_calls"], "parallel_tool_calls")
    if given.get("tool_choice") is not None:
        choice = schemas.tool_choice(given["tool_choice"], offered)
        if choice is not None:
            kept["tool_choice"] = choice


def _logprobs(endpoint: str, given: Mapping[str, Any], kept: dict[str, Any]) -> None:
    """Chat has a flag and a number; completions once had the number alone."""
    wanted, top = given.get("logprobs"), given.get("top_logprobs")
    if endpoint == COMPLETIONS and wanted is not None and not isinstance(wanted, bool):
        wanted, top = True, integer(wanted, "logprobs", low=0, high=TOP_LOGPROBS_MAX)
    wanted = flag(wanted, "logprobs") if wanted is not None else False
    if top is not None:
        top = integer(top, "top_logprobs", low=0, high=TOP_LOGPROBS_MAX)
        if top and not wanted:
            raise invalid("top_logprobs needs logprobs to be true", "top_logprobs")
    if wanted:
        kept["logprobs"], kept["top_logprobs"] = True, top or 0
