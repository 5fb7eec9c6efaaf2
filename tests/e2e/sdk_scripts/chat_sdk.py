"""Everything an app does with the OpenAI SDK, against the gateway at $BASE_URL. Imports only `openai` and the stdlib.

Nothing here knows what answers: a scripted role or a real model behind a network. `MODEL` must be able to call tools,
to answer in JSON by a schema, and to give log probabilities.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import openai

BASE_URL = os.environ["BASE_URL"]
API_KEY = os.environ["API_KEY"]
MODEL = os.environ["MODEL"]

QUESTION: list[Any] = [{"role": "user", "content": "What is Cocoon?"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 40}},
    "required": ["answer"],
    "additionalProperties": False,
}

client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=60)


def about(answer: Any) -> dict[str, Any]:
    """The `x_cocoon` of an answer or chunk."""
    return dict((answer.model_extra or {}).get("x_cocoon") or {})


def fails(kind: type[openai.APIStatusError], make: Callable[[], Any]) -> Any:
    try:
        make()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def check_models() -> None:
    listed = [model.id for model in client.models.list()]
    assert MODEL in listed, listed
    assert client.models.retrieve(MODEL).object == "model"


def check_chat() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=40, temperature=0, user="someone"
    )
    assert answer.object == "chat.completion"
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage is not None
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    extra = about(answer)
    assert extra["receipt"]["verified"] is True
    assert extra["receipt"]["completion_tokens"] == usage.completion_tokens
    assert extra["provider"]
    assert answer._request_id == answer.id


def check_content_parts_and_roles() -> None:
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "Cocoon?"}]},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_completion_tokens=20)
    assert answer.choices[0].message.content


def check_streaming() -> None:
    stream = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=40, temperature=0, stream=True)
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason]
    assert len(reasons) == 1, reasons
    assert about(chunks[-1])["receipt"]["verified"] is True
    assert all(chunk.usage is None for chunk in chunks)
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=40, temperature=0)
    assert whole.choices[0].message.content == text


def check_streaming_usage() -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=40, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens > 0
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def check_stream_helper() -> None:
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, max_tokens=300) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds, kinds
    assert final.choices[0].message.content


def check_tools() -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, max_tokens=120, temperature=0)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls", choice
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert "city" in json.loads(call.function.arguments)
    messages += [
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    assert client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, max_tokens=40).choices


def check_streamed_tools() -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=TOOLS,
        max_tokens=120,
        temperature=0,
        stream=True,
    )
    name, arguments, ids, reason = "", "", set(), None
    for chunk in stream:
        reason = chunk.choices[0].finish_reason or reason
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.index == 0
            ids |= {call.id} - {None}
            if call.function is not None:
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    assert (name, reason, len(ids)) == ("get_weather", "tool_calls", 1), (name, reason, ids)
    assert "city" in json.loads(arguments)


def check_json_schema() -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=120,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}},
    )
    value = json.loads(answer.choices[0].message.content or "")
    assert set(value) == {"answer"}
    assert isinstance(value["answer"], str)


def check_logprobs() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=8, logprobs=True, top_logprobs=2, temperature=0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    for one in logprobs.content:
        assert one.logprob <= 0
        assert len(one.top_logprobs) == 2
        assert one.bytes is not None
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=8, logprobs=True, temperature=0, stream=True
    )
    streamed = [
        one.token
        for chunk in stream
        if chunk.choices and chunk.choices[0].logprobs is not None
        for one in chunk.choices[0].logprobs.content or []
    ]
    assert streamed == [one.token for one in logprobs.content]


def check_several_choices() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=10, n=3, seed=7, temperature=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(choice.message.content for choice in answer.choices)
    assert answer.usage is not None
    stream = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=10, n=2, stream=True)
    ended = [c.index for chunk in stream for c in chunk.choices if c.finish_reason]
    assert sorted(ended) == [0, 1]


def check_stop() -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=40, temperature=0)
    text = whole.choices[0].message.content or ""
    word = text.split()[2]
    cut = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=40, temperature=0, stop=[word])
    assert word not in (cut.choices[0].message.content or "")
    assert cut.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=2, temperature=0)
    assert short.choices[0].finish_reason == "length"


def check_completions() -> None:
    answer = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=12)
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    stream = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream)


def check_responses() -> None:
    answer = client.responses.create(model=MODEL, input="What is Cocoon?", max_output_tokens=60, temperature=0)
    assert answer.status == "completed", answer
    assert "Cocoon" in answer.output_text
    assert answer.usage is not None
    assert answer.usage.output_tokens > 0
    pieces = []
    last: Any = None
    with client.responses.create(
        model=MODEL, input="What is Cocoon?", max_output_tokens=60, temperature=0, stream=True
    ) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                pieces.append(event.delta)
            last = event
    assert last.type == "response.completed"
    assert "".join(pieces) == answer.output_text == last.response.output_text
    flat: Any = {"type": "function", **TOOLS[0]["function"]}
    first = client.responses.create(
        model=MODEL, input="What is the weather in Paris?", tools=[flat], tool_choice="required", temperature=0
    )
    call: Any = first.output[0]
    assert (call.type, call.name) == ("function_call", "get_weather")
    turns: Any = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    assert client.responses.create(model=MODEL, input=turns, tools=[flat], temperature=0).output_text
    refused = fails(
        openai.BadRequestError, lambda: client.responses.create(model=MODEL, input="x", previous_response_id="resp_1")
    )
    assert refused.param == "previous_response_id"


def check_cancellation() -> None:
    stream = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=200, stream=True)
    iterator = iter(stream)
    next(iterator)
    next(iterator)
    stream.close()
    _wait_idle()


def check_async_cancellation() -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0) as other:
            task = asyncio.ensure_future(other.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=200))
            await asyncio.sleep(0.02)
            task.cancel()
            try:
                await task  # a quick model may have ended before; then there was nothing to cancel
            except asyncio.CancelledError:
                pass
            answer = await other.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=4)
            assert answer.choices[0].message.content

    asyncio.run(main())
    _wait_idle()


def _wait_idle() -> None:
    """Until the gateway says that nothing runs any more."""
    until = time.monotonic() + 5
    while True:
        health = client.get(BASE_URL.removesuffix("/v1") + "/healthz", cast_to=dict[str, Any])
        if health["requests_running"] == 0:
            return
        assert time.monotonic() < until, health
        time.sleep(0.02)


def check_errors() -> None:
    chat = client.chat.completions
    missing = fails(openai.NotFoundError, lambda: chat.create(model=MODEL[:-1] + "_", messages=QUESTION))
    assert missing.code == "model_not_found"
    assert missing.param == "model"
    assert fails(openai.NotFoundError, lambda: client.models.retrieve("no-such-model")).code == "model_not_found"
    bad: list[Any] = [{"role": "emperor", "content": "x"}]
    assert "messages" in fails(openai.BadRequestError, lambda: chat.create(model=MODEL, messages=bad)).param
    assert fails(openai.BadRequestError, lambda: chat.create(model=MODEL, messages=QUESTION, n=0)).param == "n"
    long: list[Any] = [{"role": "user", "content": "word " * 20_000}]
    for stream in (False, True):
        full = fails(openai.BadRequestError, lambda: chat.create(model=MODEL, messages=long, stream=stream))  # noqa: B023
        assert full.code == "context_length_exceeded", full
    other = openai.OpenAI(base_url=BASE_URL, api_key="not-the-key-of-it", max_retries=0)
    assert fails(openai.AuthenticationError, other.models.list).code == "invalid_api_key"
    foreign = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, default_headers={"Origin": "http://x"})
    assert fails(openai.PermissionDeniedError, foreign.models.list).code == "origin_not_allowed"


def main() -> int:
    checks = {name[6:]: value for name, value in globals().items() if name.startswith("check_")}
    wanted = os.environ.get("CHECKS")
    failed = 0
    for name in wanted.split(",") if wanted else checks:
        try:
            checks[name]()
            print(f"ok {name}")
        except Exception as error:
            failed += 1
            at = error.__traceback__
            while at is not None and at.tb_next is not None:
                at = at.tb_next
            print(f"FAILED {name}: {type(error).__name__}: {error} (line {at.tb_lineno if at else 0})")
    print(f"openai {openai.__version__}: {len(checks)} checks, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
