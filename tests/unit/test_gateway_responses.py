"""The Responses API as an app sees it, over real HTTP; behind it a scripted client role."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import trio

from cocoon.errors import InvalidRequest, StreamBroken
from cocoon.gateway.responses import read_responses
from cocoon.ports import Delta, Logprob
from cocoon.types import FinishReason
from tests.fakes.client_role import FakeClientRole, Script, words
from tests.fakes.gateway import running_gateway

BODY = {"model": "cocoon-tiny", "input": "What is Cocoon?"}
HELLO = Script(steps=words("Hello my friend"))
CALLS = [
    Delta(text="I look. ", token_ids=(1,)),
    Delta(tool_calls=({"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}},)),
    Delta(tool_calls=({"index": 0, "function": {"arguments": '{"a"'}},)),
    Delta(tool_calls=({"index": 0, "function": {"arguments": ":1}"}},)),
    Delta(tool_calls=({"index": 1, "id": "call_2", "function": {"name": "g", "arguments": "{}"}},)),
]


def ask(script: Script | Callable[[Mapping[str, Any]], Script], body: Mapping[str, Any]) -> tuple[Any, FakeClientRole]:
    async def main() -> Any:
        role = FakeClientRole(script)
        with trio.fail_after(15):
            async with running_gateway(role) as running:
                response = await running.http.post("/responses", json=body)
        assert role.running == 0
        return response, role

    return trio.run(main)  # type: ignore[no-any-return]


def part(text: str) -> dict[str, str]:
    return {"type": "input_text", "text": text}


def events(text: str) -> list[dict[str, Any]]:
    found = []
    for block in filter(None, text.split("\n\n")):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    return found


def test_an_answer_is_a_response_with_one_message() -> None:
    response, role = ask(HELLO, {**BODY, "instructions": "Be brief.", "max_output_tokens": 20, "metadata": {"a": "b"}})
    assert response.status_code == 200
    answer = response.json()
    assert answer["id"].startswith("resp_")
    assert (answer["object"], answer["status"], answer["store"]) == ("response", "completed", False)
    (item,) = answer["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": "Hello my friend", "annotations": [], "logprobs": []}]
    assert answer["usage"]["input_tokens"] == 7
    assert answer["usage"]["output_tokens"] == 3
    assert answer["usage"]["total_tokens"] == 10
    assert answer["metadata"] == {"a": "b"}
    assert answer["x_cocoon"]["receipt"]["verified"] is True
    sent = role.calls[0].body
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is Cocoon?"},
    ]
    assert sent["max_tokens"] == 20


def test_a_conversation_with_tools_becomes_the_same_chat() -> None:
    body = {
        "model": "cocoon-tiny",
        "input": [
            {
                "role": "developer",
                "content": [{"type": "input_text", "text": "Use "}, {"type": "input_text", "text": "tools."}],
            },
            {"type": "message", "role": "user", "content": "Weather?"},
            {"type": "reasoning", "summary": []},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "f", "arguments": '{"x":1}'},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Mixed."}]},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
    }
    response, role = ask(HELLO, body)
    assert response.status_code == 200, response.text
    sent = role.calls[0].body
    assert [one["role"] for one in sent["messages"]] == ["system", "user", "assistant", "tool", "tool", "assistant"]
    assert [one["id"] for one in sent["messages"][2]["tool_calls"]] == ["c1", "c2"]
    assert sent["messages"][4] == {"role": "tool", "tool_call_id": "c2", "content": "sun"}
    assert sent["tools"][0]["function"]["name"] == "f"
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert sent["response_format"]["type"] == "json_schema"
    echoed = response.json()
    assert echoed["tools"][0]["name"] == "f"
    assert echoed["tool_choice"] == {"type": "function", "name": "f"}
    assert echoed["text"]["format"]["type"] == "json_schema"


def test_a_stream_has_openais_events_in_their_order() -> None:
    response, _ = ask(HELLO, {**BODY, "stream": True})
    found = events(response.text)
    assert [one["type"] for one in found] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(one["delta"] for one in found if one["type"].endswith("text.delta")) == "Hello my friend"
    last = found[-1]["response"]
    assert last["output"] == [found[-2]["item"]]
    assert last["usage"]["output_tokens"] == 3
    assert last["x_cocoon"]["receipt"]["verified"] is True
    assert found[0]["response"]["status"] == "in_progress"
    assert len({one["item_id"] for one in found if "item_id" in one}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_every_token_has_its_log_probability_though_its_text_comes_later(stream: bool) -> None:
    def token(number: int, text: str) -> Delta:
        return Delta(
            text=text, token_ids=(number,), logprobs=(Logprob(token_id=number, token=b"t%d" % number, logprob=-0.5),)
        )

    steps = [token(0, "a"), token(1, ""), token(2, "☃"), token(3, "")]
    body = {**BODY, "stream": stream, "include": ["message.output_text.logprobs"]}
    response, _ = ask(Script(steps=steps), body)
    answer = events(response.text)[-1]["response"] if stream else response.json()
    (item,) = answer["output"]
    assert item["content"][0]["text"] == "a☃"
    assert [one["token"] for one in item["content"][0]["logprobs"]] == ["t0", "t1", "t2", "t3"]
    if stream:
        deltas = [one for one in events(response.text) if one["type"] == "response.output_text.delta"]
        assert [[each["token"] for each in one["logprobs"]] for one in deltas] == [["t0"], ["t1", "t2"]]


@pytest.mark.parametrize("stream", [False, True])
def test_text_and_tool_calls_are_items_of_their_own(stream: bool) -> None:
    response, _ = ask(Script(steps=CALLS, finish_reason=FinishReason.TOOL_CALLS), {**BODY, "stream": stream})
    if stream:
        found = events(response.text)
        answer = found[-1]["response"]
        added = [one for one in found if one["type"] == "response.output_item.added"]
        assert [one["output_index"] for one in added] == [0, 1, 2]
        done = [one["item"] for one in found if one["type"] == "response.output_item.done"]
        assert done == answer["output"]
        pieces = [one["delta"] for one in found if one["type"] == "response.function_call_arguments.delta"]
        assert pieces == ['{"a"', ":1}", "{}"]
    else:
        answer = response.json()
    text, first, second = answer["output"]
    assert text["content"][0]["text"] == "I look. "
    assert (first["type"], first["call_id"], first["name"], first["arguments"]) == (
        "function_call",
        "call_1",
        "f",
        '{"a":1}',
    )
    assert (second["call_id"], second["name"], second["arguments"]) == ("call_2", "g", "{}")
    assert answer["status"] == "completed"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_cut_by_the_limit_is_incomplete(stream: bool) -> None:
    response, _ = ask(Script(steps=words("Hello my"), finish_reason=FinishReason.LENGTH), {**BODY, "stream": stream})
    if stream:
        found = events(response.text)
        assert found[-1]["type"] == "response.incomplete"
        answer = found[-1]["response"]
    else:
        answer = response.json()
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert answer["output"][0]["status"] == "incomplete"


def test_an_empty_answer_is_an_empty_message() -> None:
    plain, _ = ask(Script(), BODY)
    streamed, _ = ask(Script(), {**BODY, "stream": True})
    for answer in (plain.json(), events(streamed.text)[-1]["response"]):
        assert answer["output"][0]["content"][0]["text"] == ""


def test_a_stream_that_breaks_ends_with_an_error_event() -> None:
    broken = Script(steps=[*words("Hello my"), StreamBroken("the provider is gone")])
    response, _ = ask(broken, {**BODY, "stream": True})
    found = events(response.text)
    assert found[-1]["type"] == "error"
    assert "the provider is gone" in found[-1]["message"]
    assert found[-1]["error"]["code"] == found[-1]["code"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"id": "c"}}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].tool_call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"model": None}, "model"),
    ],
)
def test_what_cannot_work_is_refused_by_the_name_of_its_field(change: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_responses({**BODY, **change})
    assert caught.value.param == param
    response, role = ask(HELLO, {**BODY, **change})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert role.calls == []
