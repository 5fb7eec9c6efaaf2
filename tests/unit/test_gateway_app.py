"""The API as an app sees it, over real HTTP, on both servers; behind it a scripted client role."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
import trio

from cocoon.errors import InvalidRequest, NoProvider, PriceTooHigh, StreamBroken
from cocoon.ports import Delta, Logprob
from cocoon.types import FinishReason, Prices
from tests.fakes.client_role import PROVIDER, FakeClientRole, Script, digest_of, offer, words
from tests.fakes.gateway import CHAT, Running, asking, events, read_until, running_gateway, wait_until

Story = Callable[[Running, FakeClientRole], Awaitable[Any]]

STREAM = {**CHAT, "stream": True}
HELLO = Script(steps=words("Hello my friend"))
PAID = offer(prices=Prices(input_nano=1_000_000, cached_input_nano=0, output_nano=2_000_000))  # 1 and 2 nano a token


@pytest.fixture(params=["h11", "hypercorn"])
def play(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Run `story(running, role)` against a gateway on that server."""

    def run(
        script: Script | Callable[[Mapping[str, Any]], Script],
        story: Story,
        *,
        offers: Any = None,
        **changes: Any,
    ) -> Any:
        async def main() -> Any:
            role = FakeClientRole(script, offers=offers)
            with trio.fail_after(15):
                async with running_gateway(role, server=request.param, **changes) as running:
                    result = await story(running, role)
            assert role.running == 0
            return result

        return trio.run(main)

    return run


def post(
    body: Mapping[str, Any], path: str = "/chat/completions"
) -> Callable[[Running, FakeClientRole], Awaitable[Any]]:
    async def story(running: Running, role: FakeClientRole) -> Any:
        response = await running.http.post(path, json=body)
        return response, role

    return story


# --- plain answers -----------------------------------------------------------------------------------------


def test_a_chat_is_answered_with_its_usage_receipt_and_provider(play: Any) -> None:
    response, role = play(Script(steps=words("Hello my friend"), attempts=("12D3: refused: busy",)), post(CHAT))
    assert response.status_code == 200
    answer = response.json()
    assert answer["id"].startswith("chatcmpl-")
    assert response.headers["x-request-id"] == answer["id"]
    assert (answer["object"], answer["model"]) == ("chat.completion", "cocoon-tiny")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello my friend", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"]["prompt_tokens"] == 7
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["usage"]["total_tokens"] == 10
    about = answer["x_cocoon"]
    assert about["provider"] == PROVIDER
    assert about["trust"] == "open"
    assert "can read prompt and answer" in about["trust_words"]
    assert about["receipt"]["verified"] is True
    assert about["receipt"]["completion_tokens"] == 3
    assert about["attempts"] == ["12D3: refused: busy"]
    assert about["ttft_ms"] == 12.5
    assert role.calls[0].endpoint == "chat.completions"
    assert role.calls[0].body["model"] == "cocoon-tiny"
    assert "stream" not in role.calls[0].body


def test_a_completion_is_answered(play: Any) -> None:
    response, role = play(HELLO, post({"model": "cocoon-tiny", "prompt": "Once"}, "/completions"))
    answer = response.json()
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "Hello my friend", "logprobs": None, "finish_reason": "stop"}]
    assert role.calls[0].endpoint == "completions"


def test_tool_calls_are_put_together(play: Any) -> None:
    steps = [
        Delta(
            tool_calls=({"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}},)
        ),
        Delta(tool_calls=({"index": 0, "function": {"arguments": '{"a"'}},)),
        Delta(tool_calls=({"index": 1, "id": "call_2", "function": {"name": "g", "arguments": "{}"}},)),
        Delta(tool_calls=({"index": 0, "function": {"arguments": ":1}"}},)),
    ]
    response, _ = play(Script(steps=steps, finish_reason=FinishReason.TOOL_CALLS), post(CHAT))
    choice = response.json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_logprobs_are_shown_when_asked_for_and_are_valid_json(play: Any) -> None:
    one = Logprob(token_id=1, token=b"Hi", logprob=-0.25, top=((1, b"Hi", -0.25), (2, b"\xf0\x9f", -math.inf)))
    steps = [Delta(text="Hi", token_ids=(1,), logprobs=(one,))]
    quiet, _ = play(Script(steps=steps), post(CHAT))
    assert quiet.json()["choices"][0]["logprobs"] is None
    asked, _ = play(Script(steps=steps), post({**CHAT, "logprobs": True, "top_logprobs": 2}))
    content = asked.json()["choices"][0]["logprobs"]["content"]
    assert content[0]["token"] == "Hi"
    assert content[0]["bytes"] == [72, 105]
    assert content[0]["top_logprobs"][1] == {"token": "\ufffd", "logprob": -9999.0, "bytes": [0xF0, 0x9F]}
    legacy, _ = play(Script(steps=steps), post({"model": "m", "prompt": "x", "logprobs": 2}, "/completions"))
    assert legacy.json()["choices"][0]["logprobs"]["text_offset"] == [0]


def test_n_choices_run_apart_and_keep_their_indices(play: Any) -> None:
    def by_seed(body: Mapping[str, Any]) -> Script:
        return Script(steps=[0.05 * (12 - body["seed"]), *words(f"seed {body['seed']}")], offer=PAID)

    response, role = play(
        by_seed,
        post({**CHAT, "n": 3, "seed": 10}),
        offers=[PAID],
        spend_max_request_nano=300,
        spend_max_day_nano=300,
    )
    answer = response.json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["seed 10", "seed 9", "seed 8"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == 7
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["x_cocoon"]["cost_nano"] == 3 * (7 + 4)
    assert [one["index"] for one in answer["x_cocoon"]["choices"]] == [0, 1, 2]
    assert [call.spend_max_nano for call in role.calls] == [100, 100, 100]


# --- streams -----------------------------------------------------------------------------------------------


def test_a_stream_has_role_text_one_finish_and_done(play: Any) -> None:
    response, _ = play(HELLO, post(STREAM))
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Hello my friend"
    finishes = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert finishes == [None] * (len(chunks) - 1) + ["stop"]
    assert [("x_cocoon" in chunk) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert all("usage" not in chunk for chunk in chunks)


def test_usage_comes_last_in_a_stream_when_asked_for(play: Any) -> None:
    response, _ = play(HELLO, post({**STREAM, "stream_options": {"include_usage": True}}))
    *chunks, last, done = events(response.text)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 10
    assert last["x_cocoon"]["receipt"]["verified"] is True
    assert all(chunk["usage"] is None and "x_cocoon" not in chunk for chunk in chunks)


def test_streamed_choices_carry_their_index(play: Any) -> None:
    response, _ = play(HELLO, post({**STREAM, "n": 2}))
    *chunks, done = events(response.text)
    texts = {0: "", 1: ""}
    finishes = []
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        if choice["finish_reason"]:
            finishes.append(choice["index"])
    assert done == "[DONE]"
    assert texts == {0: "Hello my friend", 1: "Hello my friend"}
    assert sorted(finishes) == [0, 1]
    assert len(chunks[-1]["x_cocoon"]["choices"]) == 2


def test_a_streamed_completion_has_no_role(play: Any) -> None:
    response, _ = play(HELLO, post({"model": "m", "prompt": "x", "stream": True}, "/completions"))
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello my friend"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_text_of_any_kind_survives_the_stream(play: Any) -> None:
    text = 'line\nline\r\n\n\ndata: {"x"}\u2028\x00\\ " é 漢字 🙂 \x7f'
    response, _ = play(Script(steps=[Delta(text=text, token_ids=(1,))]), post(STREAM))
    *chunks, _ = events(response.text)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text


def test_an_answer_without_any_token_is_still_whole(play: Any) -> None:
    response, _ = play(Script(steps=[]), post(STREAM))
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    plain, _ = play(Script(steps=[]), post(CHAT))
    assert plain.json()["choices"][0]["message"]["content"] == ""


def test_the_first_token_does_not_wait_for_the_second(play: Any) -> None:
    async def story(running: Running, role: FakeClientRole) -> None:
        async with asking(running.handle.port, STREAM) as stream:
            await read_until(stream, b"first")
            assert role.running == 1  # the second token is an hour away

    play(Script(steps=[*words("first"), 3_600.0, *words("second")]), story)


# --- failures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("before", ["accept", "token"])
def test_an_error_before_the_first_token_is_an_http_error(play: Any, stream: bool, before: str) -> None:
    error = InvalidRequest("the prompt does not fit", param="messages", kind="context_length_exceeded")
    script = Script(refuse=error) if before == "accept" else Script(steps=[error])
    response, _ = play(script, post({**CHAT, "stream": stream}))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_a_stream_that_breaks_ends_with_an_error_and_without_done(play: Any) -> None:
    async def story(running: Running, role: FakeClientRole) -> Any:
        broken = await running.http.post("/chat/completions", json=STREAM)
        health = await running.http.get("/models")
        return broken, health

    broken, health = play(Script(steps=[*words("Hello my"), StreamBroken("the provider died")]), story)
    *chunks, last = events(broken.text)
    assert last["error"]["code"] == "stream_broken"
    assert "the provider died" in last["error"]["message"]
    assert "[DONE]" not in chunks
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "Hello my"
    assert health.status_code == 200


def test_an_answer_that_breaks_before_it_is_shown_is_502(play: Any) -> None:
    response, _ = play(Script(steps=[*words("Hello my"), StreamBroken("the provider died")]), post(CHAT))
    assert response.status_code == 502
    assert response.headers["x-should-retry"] == "true"


def test_one_failing_choice_fails_the_request_and_stops_the_others(play: Any) -> None:
    def script(body: Mapping[str, Any]) -> Script:
        return Script(steps=[NoProvider("none")] if body["seed"] == 0 else [*words("a"), 3_600.0])

    response, role = play(script, post({**CHAT, "n": 2, "seed": 1}))
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    assert role.cancelled == 1


def test_a_bug_in_one_request_is_a_500_that_names_nothing(play: Any) -> None:
    response, _ = play(Script(steps=[RuntimeError("prompt: hello")]), post(CHAT))
    assert response.status_code == 500
    assert "hello" not in response.text
    fanned, _ = play(Script(steps=[RuntimeError("prompt: hello")]), post({**CHAT, "n": 2}))
    assert fanned.status_code == 500
    streamed, _ = play(Script(steps=[*words("a"), RuntimeError("prompt: hello")]), post(STREAM))
    assert events(streamed.text)[-1]["error"]["code"] == "internal_error"
    assert "hello" not in streamed.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_a_client_that_leaves_cancels_at_the_provider(play: Any, stream: bool, n: int) -> None:
    async def story(running: Running, role: FakeClientRole) -> None:
        async with asking(running.handle.port, {**CHAT, "stream": stream, "n": n}) as connection:
            await role.wait_running(n)
            if stream:
                await read_until(connection, b'"two"', count=n)
            else:
                await trio.sleep(0.1)
        await wait_until(lambda: role.running == 0 and running.handle.ledger.reserved_nano == 0)
        assert role.cancelled == n
        # What came before it left is paid for: 7 + 2 * 2 for each choice.
        assert running.handle.ledger.spent_nano == 11 * n

    play(
        Script(steps=[*words("one two"), 3_600.0], offer=PAID),
        story,
        offers=[PAID],
        spend_max_request_nano=100,
        spend_max_day_nano=100,
    )


def test_no_first_token_in_time_is_504(play: Any) -> None:
    for script in (Script(accept_after_s=60.0), Script(steps=[60.0])):
        response, role = play(script, post(STREAM), first_token_timeout_s=0.1)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "timeout"
        assert role.cancelled == 1


def test_an_endless_answer_ends_with_a_timeout_error(play: Any) -> None:
    response, role = play(Script(steps=[*words("a b"), 60.0]), post(STREAM), request_timeout_s=0.2)
    assert events(response.text)[-1]["error"]["code"] == "timeout"
    assert role.cancelled == 1


def test_more_requests_than_allowed_are_429(play: Any) -> None:
    async def story(running: Running, role: FakeClientRole) -> None:
        async with asking(running.handle.port, {**CHAT, "n": 2}):
            await role.wait_running(2)
            response = await running.http.post("/chat/completions", json=CHAT)
            assert response.status_code == 429
            assert response.headers["retry-after"] == "1"

    play(Script(steps=[3_600.0]), story, requests_max=2)


# --- money -------------------------------------------------------------------------------------------------


def test_spending_stops_at_the_days_cap_and_free_offers_stay(play: Any) -> None:
    async def story(running: Running, role: FakeClientRole) -> list[int]:
        statuses = []
        for _ in range(4):
            response = await running.http.post("/chat/completions", json=CHAT)
            statuses.append(response.status_code)
        refused = response.json()["error"]
        assert (refused["code"], refused["type"]) == ("spend_cap_reached", "insufficient_funds")
        assert [call.spend_max_nano for call in role.calls] == [20, 17, 0, 0]
        assert running.handle.ledger.spent_nano == 25
        return statuses

    scripts = iter(
        (
            Script(steps=words("a b c d"), offer=PAID, prompt_tokens=0),  # costs 8
            Script(steps=words("a b c d e"), offer=PAID, prompt_tokens=7),  # costs 17: all that is left
            Script(steps=words("free of charge")),
            Script(refuse=PriceTooHigh("the cheapest asks 1")),
        )
    )
    caps = {"spend_max_request_nano": 20, "spend_max_day_nano": 25}
    statuses = play(lambda _: next(scripts), story, offers=[PAID], **caps)
    assert statuses == [200, 200, 200, 402]


def test_too_dear_for_one_request_names_the_price(play: Any) -> None:
    response, _ = play(Script(refuse=PriceTooHigh("the cheapest asks 0.1 TON")), post(CHAT))
    assert response.status_code == 402
    assert response.json()["error"]["code"] == "price_too_high"
    assert "0.1 TON" in response.json()["error"]["message"]


def test_a_request_that_nobody_accepted_costs_nothing(play: Any) -> None:
    async def story(running: Running, role: FakeClientRole) -> None:
        await running.http.post("/chat/completions", json=CHAT)
        assert (running.handle.ledger.spent_nano, running.handle.ledger.reserved_nano) == (0, 0)

    caps = {"spend_max_request_nano": 9, "spend_max_day_nano": 9}
    play(Script(refuse=NoProvider("none"), offer=PAID), story, offers=[PAID], **caps)


def test_many_cheap_requests_at_once_do_not_exhaust_a_days_budget(play: Any) -> None:
    cheap = offer(prices=Prices(input_nano=50_000_000, cached_input_nano=0, output_nano=200_000_000))  # the demo's

    async def story(running: Running, role: FakeClientRole) -> None:
        statuses: list[int] = []

        async def ask() -> None:
            statuses.append((await running.http.post("/chat/completions", json=CHAT)).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(ask)
        assert statuses == [200] * 64
        assert running.handle.ledger.spent_nano == 64 * (50 * 7 + 200 * 2)

    caps = {"spend_max_request_nano": 20_000_000, "spend_max_day_nano": 1_000_000_000}  # the defaults of `cocoon`
    play(Script(steps=[0.3, *words("so cheap")], offer=cheap), story, offers=[cheap], **caps)


# --- models and the rest -----------------------------------------------------------------------------------


def test_models_are_listed_and_found_by_name_or_digest(play: Any) -> None:
    async def story(running: Running, role: FakeClientRole) -> None:
        listed = (await running.http.get("/models")).json()
        ids = [model["id"] for model in listed["data"]]
        assert ids == ["org/small", f"two@{b'1'.hex() * 32}", f"two@{b'2'.hex() * 32}"]
        assert listed["object"] == "list"
        for name in (*ids, f"org/small@{digest_of('org/small').hex()}"):
            found = (await running.http.get(f"/models/{name}")).json()
            assert found["object"] == "model"
            assert found["id"] in ids
        for name, near in (("two", "two@31"), ("org/smal", "org/small"), ("org/small@00", "org/small")):
            missing = await running.http.get(f"/models/{name}")
            assert missing.status_code == 404
            assert missing.json()["error"]["code"] == "model_not_found"
            assert near in missing.json()["error"]["message"]

    offers = [offer("org/small"), offer("two", digest=b"1" * 32), offer("two", digest=b"2" * 32), offer("org/small")]
    play(HELLO, story, offers=offers)


def test_health_and_unknown_paths_answer_in_json(play: Any) -> None:
    async def story(running: Running, role: FakeClientRole) -> None:
        health = await running.http.get(f"http://127.0.0.1:{running.handle.port}/healthz")
        assert health.json()["status"] == "ok"
        assert health.json()["connections"] == 1
        assert (await running.http.get("/nothing")).json()["error"]["code"] == "unknown_url"
        wrong = await running.http.get("/chat/completions")
        assert wrong.status_code == 405
        assert wrong.headers["allow"] == "POST"
        slash = await running.http.post("/chat/completions/", json=CHAT)
        assert slash.status_code == 404

    play(HELLO, story)


def test_a_body_that_openai_would_refuse_is_400_with_its_field(play: Any) -> None:
    response, role = play(HELLO, post({"model": "m", "messages": [{"role": "emperor", "content": "x"}]}))
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("messages")
    assert role.calls == []


def test_64_streams_at_once_are_all_whole(play: Any) -> None:
    async def story(running: Running, role: FakeClientRole) -> None:
        texts: list[str] = []

        async def ask() -> None:
            response = await running.http.post("/chat/completions", json=STREAM, timeout=30)
            texts.append(response.text)

        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(ask)
        assert len(texts) == 64
        for text in texts:
            *chunks, done = events(text)
            assert done == "[DONE]"
            assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == " ".join(["word"] * 20)

    steps: list[Delta | float] = []
    for delta in words(" ".join(["word"] * 20)):
        steps += [0.01, delta]
    play(Script(steps=steps), story)


def test_the_log_of_a_failure_holds_no_content(play: Any, caplog: pytest.LogCaptureFixture) -> None:
    from cocoon.logs import EventFormatter

    caplog.set_level("DEBUG", logger="cocoon.gateway")
    caplog.handler.setFormatter(EventFormatter(human=False, colour=False))
    body = {**CHAT, "messages": [{"role": "user", "content": "my secret prompt"}]}
    play(Script(steps=[RuntimeError("my secret prompt")]), post(body))
    assert "request.crashed" in caplog.text
    assert "secret" not in caplog.text
    assert json.loads(caplog.text.splitlines()[0])["error"] == "RuntimeError"
