"""What apps may send, what becomes of it, and how a mistake is named."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from cocoon.errors import Blame, InvalidRequest
from cocoon.serve.openai import (
    BODY_BYTES_MAX,
    CHAT,
    COMPLETIONS,
    encode_body,
    generation_request,
    normalise,
    parse_body,
    prompt_tokens_upper_bound,
)

USER = {"role": "user", "content": "Hello"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "cocoon-tiny", "messages": [USER], **fields}


def test_a_plain_request_is_kept_as_it_is() -> None:
    request = normalise(CHAT, chat(max_tokens=5, temperature=0.5, stop=["a", "b"], seed=7))
    assert request.model == "cocoon-tiny"
    assert (request.n, request.stream, request.include_usage) == (1, False, False)
    assert request.body == {"messages": [USER], "max_tokens": 5, "temperature": 0.5, "stop": ["a", "b"], "seed": 7}


def test_every_field_has_one_spelling() -> None:
    request = normalise(
        CHAT,
        chat(
            messages=[
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": None, "refusal": "I will not."},
            ],
            max_tokens=9,
            max_completion_tokens=5.0,
            stop="x",
            logprobs=True,
            logit_bias={"007": 3},
            response_format={"type": "text"},
            tools=[],
            tool_choice="none",
        ),
    )
    assert request.body == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "ab"},
            {"role": "assistant", "content": "I will not."},
        ],
        "max_tokens": 5,
        "stop": ["x"],
        "logprobs": True,
        "top_logprobs": 0,
        "logit_bias": {"7": 3.0},
    }


def test_what_steers_only_openais_own_service_is_dropped_and_unknown_fields_are_ignored() -> None:
    dropped = {
        "user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "safety_identifier": "s",
        "prompt_cache_key": "k", "modalities": ["text"], "a_field_of_next_year": {"x": [1]}, "n": None, "stop": None,
        "temperature": None, "tools": None, "functions": None,
    }  # fmt: skip
    assert normalise(CHAT, chat(**dropped)).body == {"messages": [USER]}


def test_tools_and_their_answers_pass() -> None:
    messages = [
        USER,
        {
            "role": "assistant",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    choice = {"type": "function", "function": {"name": "get_weather"}}
    request = normalise(CHAT, chat(messages=messages, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False))
    assert request.body["tools"] == [TOOL]
    assert request.body["tool_choice"] == choice
    assert request.body["parallel_tool_calls"] is False
    assert request.body["messages"][1]["content"] is None
    assert request.body["messages"][2] == messages[2]


def test_a_json_schema_passes() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True}}
    assert normalise(CHAT, chat(response_format=wanted)).body["response_format"] == wanted
    assert normalise(CHAT, chat(response_format={"type": "json_object"})).body["response_format"] == {
        "type": "json_object"
    }


def test_streaming_options_stay_at_the_gateway() -> None:
    request = normalise(CHAT, chat(stream=True, stream_options={"include_usage": True}, n=3))
    assert (request.stream, request.include_usage, request.n) == (True, True, 3)
    assert request.body == {"messages": [USER]}


def test_completions_have_a_prompt_and_a_number_of_logprobs() -> None:
    request = normalise(COMPLETIONS, {"model": "m", "prompt": ["Once"], "logprobs": 3, "max_tokens": 4, "echo": False})
    assert request.body == {"prompt": "Once", "logprobs": True, "top_logprobs": 3, "max_tokens": 4}


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def tool(**fields: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", **fields}}]


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": value}}


IMAGE = {"type": "image_url", "image_url": {}}
BAD_CALL = {"id": "c", "function": {"name": "f", "arguments": {}}}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": ""}, "model"),
    ({"model": "m" * 257}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "Hello"}, "messages"),
    ({"messages": [USER] * 4_097}, "messages"),
    ({"messages": [USER, "Hello"]}, "messages[1]"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x" * 1_048_577}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"messages": [{**USER, "tool_calls": [{}]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": [BAD_CALL]}]}, "messages[0].tool_calls[0].function.arguments"),
    ({"messages": [{**USER, "name": "x" * 65}]}, "messages[0].name"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_completion_tokens": 1 << 21}, "max_completion_tokens"),
    ({"temperature": 2.01}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": math.nan}, "temperature"),
    ({"temperature": math.inf}, "temperature"),
    ({"temperature": 10**400}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"seed": 1 << 63}, "seed"),
    ({"n": 0}, "n"),
    ({"n": 9}, "n"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": "x" * 257}, "stop[0]"),
    ({"stop": 5}, "stop"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"logit_bias": {str(n): 1 for n in range(301)}}, "logit_bias"),
    ({"logit_bias": {"five": 1}}, "logit_bias"),
    ({"logit_bias": {"²": 1}}, "logit_bias"),
    ({"logit_bias": {"4294967296": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"tools": [TOOL] * 129}, "tools"),
    ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": tool(name="bad name")}, "tools[0].function.name"),
    ({"tools": tool(parameters="x")}, "tools[0].function.parameters"),
    ({"tools": tool(parameters=deep(40))}, "tools[0].function.parameters"),
    ({"tools": tool(parameters={"enum": list(range(5_000))})}, "tools[0].function.parameters"),
    ({"tools": tool(parameters={"a": "x" * 70_000})}, "tools[0].function.parameters"),
    ({"tools": tool(parameters={"a": math.nan})}, "tools[0].function.parameters"),
    ({"tools": tool(parameters={5: "x"})}, "tools[0].function.parameters"),
    ({"tools": tool(parameters={"a": object()})}, "tools[0].function.parameters"),
    ({"tools": tool(description="x" * 9_000)}, "tools[0].function.description"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "always"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    ({"tool_choice": 5}, "tool_choice"),
    ({"tools": [TOOL], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": schema(None)}, "response_format.json_schema.schema"),
    ({"response_format": schema(deep(40))}, "response_format.json_schema.schema"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_a_mistake_is_named_by_its_field_and_blames_the_caller(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        normalise(CHAT, chat(**fields))
    assert error.value.param == param
    assert error.value.blame is Blame.USER


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"logprobs": -1}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
    ],
)
def test_a_mistake_in_a_completion_is_named_too(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        normalise(COMPLETIONS, {"model": "m", "prompt": "Once", **fields})
    assert error.value.param == param


def test_an_error_never_repeats_the_users_words() -> None:
    secret = "a very private matter"
    for fields in (
        {"messages": [{"role": secret, "content": secret}]},
        {"stop": [secret * 100]},
        {"logit_bias": {secret: 1}},
        {"tools": tool(name=secret)},
        {"response_format": {"type": secret}},
    ):
        with pytest.raises(InvalidRequest) as error:
            normalise(CHAT, chat(**fields))
        assert secret not in error.value.diagnostics()


def test_nothing_of_a_prompt_shows_in_a_repr() -> None:
    request = normalise(CHAT, chat(messages=[{"role": "user", "content": "a private matter"}], max_tokens=1))
    assert "private" not in repr(request)
    assert "private" not in repr(generation_request(CHAT, encode_body(request.body), cache_scope=b""))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b'"x"', b"null", b"5", b"{}x", b'{"a":NaN}', b'{"a":Infinity}', b'{"a":1e999}', b"\xff\xfe",
        b'{"a":"\\ud800"}', b'{"a":"\xff"}', b"[" * 100_000, b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        b"{" + b" " * BODY_BYTES_MAX + b"}",
    ],
    ids=range(16),
)  # fmt: skip
def test_a_body_that_is_no_bounded_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_body(data)


def test_a_request_that_does_not_fit_a_seal_is_refused_before_it_is_sealed() -> None:
    messages = [{"role": "user", "content": "x" * 600_000}] * 2
    with pytest.raises(InvalidRequest) as error:
        encode_body(normalise(CHAT, chat(messages=messages)).body)
    assert error.value.param == "messages"


def test_the_provider_trusts_nothing_that_was_sealed_to_it() -> None:
    body = json.dumps(chat(max_tokens=5, n=8, stream=True, temperature=1, secret_field="x")).encode()
    request = generation_request(CHAT, body, cache_scope=b"scope")
    assert request.body == {"messages": [USER], "max_tokens": 5, "temperature": 1.0}
    assert request.cache_tag == b"scope"
    for bad, param in (
        (chat(), "max_tokens"),
        (chat(max_tokens=5, temperature=9), "temperature"),
        (chat(max_tokens=5, messages=[{"role": "wizard", "content": ""}]), "messages[0].role"),
    ):
        with pytest.raises(InvalidRequest) as error:
            generation_request(CHAT, json.dumps(bad).encode(), cache_scope=b"")
        assert error.value.param == param
    with pytest.raises(InvalidRequest):
        generation_request("images", body, cache_scope=b"")


def test_the_bound_on_prompt_tokens_holds_for_a_byte_for_byte_tokenizer() -> None:
    """The worst case: one token per byte of what a template renders, tools included and indented."""
    messages = [
        {"role": "system", "content": "Sé breve. 🦋"},
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":"é"}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "🦋" * 10},
    ]
    body = normalise(CHAT, chat(messages=messages, tools=[TOOL])).body
    rendered = json.dumps(body["tools"], indent=4) + "".join(
        f"<|im_start|>{m['role']}\n{m.get('content') or ''}{json.dumps(m.get('tool_calls', ''))}<|im_end|>\n"
        for m in body["messages"]
    )
    assert prompt_tokens_upper_bound(body) >= len(rendered.encode())
    assert prompt_tokens_upper_bound({"prompt": "é" * 10}) >= 20
    assert prompt_tokens_upper_bound({"messages": [USER]}) < 400
