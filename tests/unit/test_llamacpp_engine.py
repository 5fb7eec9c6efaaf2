"""What the llama.cpp engine promises beyond the port's contract: shut doors, exact tokens, tools, JSON, cache tags."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from cocoon.adapters.engines import llamacpp_server
from cocoon.adapters.engines.llamacpp import LlamaCppEngine, open_llamacpp_engine
from cocoon.adapters.engines.llamacpp_stream import MissingTokens, Translator, mapped_error
from cocoon.adapters.gguf import Vocabulary, read_head
from cocoon.errors import ConfigError, EngineError, InvalidRequest, ModelFileError
from cocoon.ports.engine import Delta, Finished, GenerationRequest
from cocoon.types import Feature, FinishReason

MODEL = Path(__file__).parents[2] / "cocoon/data/models/cocoon-tiny/cocoon-tiny-q8_0.gguf"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


def chat(text: str, *, tag: bytes = b"", **fields: Any) -> GenerationRequest:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 120, "temperature": 0.0} | fields
    return GenerationRequest(endpoint="chat.completions", body=body, cache_tag=tag)


async def ask(engine: LlamaCppEngine, request: GenerationRequest) -> tuple[str, list[Delta], Finished]:
    deltas: list[Delta] = []
    async with engine.generate(request) as events:
        async for event in events:
            if isinstance(event, Finished):
                assert event.usage.completion_tokens == sum(len(delta.token_ids) for delta in deltas)
                return "".join(delta.text for delta in deltas), deltas, event
            deltas.append(event)
    raise AssertionError("no end")


def calls_of(deltas: list[Delta]) -> list[tuple[str, Any]]:
    """(name, arguments) as an SDK puts them together."""
    found: dict[int, list[str]] = {}
    for delta in deltas:
        for call in delta.tool_calls:
            if "id" in call:
                assert call["type"] == "function"
                found[call["index"]] = [call["function"]["name"], ""]
            found[call["index"]][1] += call["function"]["arguments"]
    return [(name, json.loads(arguments)) for name, arguments in found.values()]


def run(body: Callable[[LlamaCppEngine], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with open_llamacpp_engine(MODEL, **({"slots": 2} | options)) as engine:
                await body(engine)

    trio.run(main)


# --- doors ---------------------------------------------------------------------------------------------------


def test_no_port_is_open_and_the_socket_is_private_and_asks_for_its_key() -> None:
    async def body(engine: LlamaCppEngine) -> None:
        path = Path(engine._server.control._path)
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        mine = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_socket(fd)}
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                listening = fields[3] == "0A"
                assert not (listening and f"socket:[{fields[9]}]" in mine)
        for target in ("/slots", "/props", "/metrics", "/v1/models", "/apply-template"):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(os.fspath(path))
                client.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                answer = await trio.to_thread.run_sync(client.recv, 65536)
            # 401, or 404/501 for what does not exist; /v1/models is public in llama.cpp and tells an alias only.
            assert b"cocoon" not in answer.split(b"\r\n\r\n", 1)[-1], target
        assert engine._server.control._key not in repr(engine._server.control)

    folders = set(Path("/tmp").glob("cocoon-*"))
    run(body)
    assert set(Path("/tmp").glob("cocoon-*")) <= folders, "nothing is left behind"


def _is_socket(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except OSError:
        return False


def test_a_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)

    async def main() -> None:
        with pytest.raises(ConfigError, match="not installed") as caught:
            async with open_llamacpp_engine(MODEL):
                pass
        assert "pip install" in caught.value.advice

    trio.run(main)


def test_a_file_that_is_well_formed_but_no_model_is_a_model_file_error(tmp_path: Path) -> None:
    data = bytearray(MODEL.read_bytes())
    at = data.index(b"llama", 24)
    data[at : at + 5] = b"llamb"  # general.architecture
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(data)

    async def main() -> None:
        with pytest.raises(ModelFileError, match=r"broken\.gguf"):
            async with open_llamacpp_engine(broken):
                pass

    trio.run(main)


def test_opening_and_closing_at_once_does_not_hang() -> None:
    """A server destroyed before its loop begins waits for ever: seen on a busy machine."""

    async def body(engine: LlamaCppEngine) -> None:
        pass

    for _ in range(5):
        run(body, context_tokens=256)


def test_what_the_caller_raises_comes_out_as_it_is() -> None:
    class Mine(Exception):
        pass

    async def body(engine: LlamaCppEngine) -> None:
        raise Mine

    with pytest.raises(Mine):
        run(body)


def test_sizes_out_of_range_are_refused() -> None:
    async def body(engine: LlamaCppEngine) -> None:
        raise AssertionError

    for options in ({"slots": 0}, {"slots": 1_000}, {"context_tokens": 1_000_000}, {"context_tokens": 1}):
        with pytest.raises(ConfigError):
            run(body, **options)


# --- tokens --------------------------------------------------------------------------------------------------


def test_token_ids_are_exact_for_characters_of_several_tokens() -> None:
    async def body(engine: LlamaCppEngine) -> None:
        words = '"é😀 漢字 ok Ω"'
        fixed = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [json.loads(words)]}}}
        text, deltas, end = await ask(engine, chat("hi", response_format=fixed))
        ids = [one for delta in deltas for one in delta.token_ids]
        piece = engine.head.vocabulary.piece
        assert text == words
        assert b"".join(piece(one) for one in ids).decode() == words
        assert end.finish_reason is FinishReason.STOP

    run(body)


def test_a_character_cut_off_by_the_limit_is_neither_delivered_nor_counted() -> None:
    async def body(engine: LlamaCppEngine) -> None:
        fixed = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["😀😀"]}}}
        for limit in range(1, 9):
            text, deltas, end = await ask(engine, chat("hi", response_format=fixed, max_tokens=limit))
            ids = [one for delta in deltas for one in delta.token_ids]
            assert b"".join(map(engine.head.vocabulary.piece, ids)).decode() == text
            assert end.usage.completion_tokens == len(ids) <= limit

    run(body)


def test_missing_tokens_are_found_by_their_bytes() -> None:
    tokens = ("a", "Ã", "©", "ðŁ", "ĺ", "Ģ", "ðŁĺ", "Ġx")
    missing = MissingTokens(Vocabulary(kind="gpt2", tokens=tokens, types=()))
    assert missing.find("é".encode(), 2, 1) == [1]
    assert missing.find("😀".encode(), 5, 2) == [3, 4]
    assert missing.find("😀".encode(), 5, 1) == [6]
    assert missing.find(b"zz", 5, 1) == []
    assert missing.find("😀".encode(), 5, 9) == []


def test_events_that_make_no_sense_are_engine_errors() -> None:
    vocabulary = Vocabulary(kind="gpt2", tokens=("a", "b"), types=())
    for data in (b"", b"{", b"[]", b'{"choices":[{"text":"x"}]}', b'{"error":{"code":500,"message":"no"}}'):
        translator = Translator(
            vocabulary, MissingTokens(vocabulary), prompt_tokens=1, top_logprobs=None, reader=None, keep_text=False
        )
        with pytest.raises(EngineError):
            translator.translate([data])
    assert isinstance(mapped_error(400, "invalid_request_error", "bad"), InvalidRequest)
    overflow = mapped_error(400, "exceed_context_size_error", "…")
    assert isinstance(overflow, InvalidRequest)
    assert overflow.kind == "context_length_exceeded"


def test_logprobs_carry_as_many_alternatives_as_asked_for() -> None:
    async def body(engine: LlamaCppEngine) -> None:
        _, deltas, _ = await ask(engine, chat("What is the capital of France?", logprobs=True, top_logprobs=3))
        named = [one for delta in deltas for one in delta.logprobs]
        assert all(len(one.top) == 3 for one in named)
        assert all(one.top[0][0] == one.token_id for one in named), "greedy takes the likeliest"

    run(body)


def test_bans_and_penalties_change_the_answer() -> None:
    async def body(engine: LlamaCppEngine) -> None:
        plain, deltas, _ = await ask(engine, chat("Hello"))
        first = deltas[0].token_ids[0]
        banned, others, _ = await ask(engine, chat("Hello", logit_bias={str(first): -100.0}))
        assert all(first not in delta.token_ids for delta in others)
        assert banned != plain
        with pytest.raises(InvalidRequest) as caught:
            await ask(engine, chat("Hello", logit_bias={"70000": 1.0}))
        assert caught.value.param == "logit_bias"

    run(body)


# --- tools and JSON --------------------------------------------------------------------------------------------


def test_tools_are_called_when_they_fit_and_left_alone_when_not() -> None:
    async def body(engine: LlamaCppEngine) -> None:
        assert engine.info.features & Feature.TOOLS
        text, deltas, end = await ask(engine, chat("What is the weather in Paris?", tools=[WEATHER, ADD]))
        assert (text, end.finish_reason) == ("", FinishReason.TOOL_CALLS)
        assert calls_of(deltas) == [("get_weather", {"city": "Paris"})]
        text, deltas, end = await ask(engine, chat("Hello", tools=[WEATHER, ADD]))
        assert (text, end.finish_reason, calls_of(deltas)) == ("Hello! How can I help you?", FinishReason.STOP, [])

    run(body)


def test_required_and_named_tools_are_always_called_with_arguments_of_their_schema() -> None:
    async def body(engine: LlamaCppEngine) -> None:
        _, deltas, _ = await ask(engine, chat("Hello", tools=[WEATHER, ADD], tool_choice="required"))
        assert calls_of(deltas)[0][0] in ("get_weather", "add")
        named = {"type": "function", "function": {"name": "add"}}
        _, deltas, _ = await ask(engine, chat("What is the weather in Paris?", tools=[WEATHER, ADD], tool_choice=named))
        ((name, arguments),) = calls_of(deltas)
        assert name == "add"
        assert set(arguments) == {"a", "b"}
        assert all(isinstance(value, int) for value in arguments.values())

    run(body)


def test_tool_choice_none_never_calls_and_a_tools_answer_is_told() -> None:
    async def body(engine: LlamaCppEngine) -> None:
        _, deltas, _ = await ask(engine, chat("What is the weather in Paris?", tools=[WEATHER], tool_choice="none"))
        assert calls_of(deltas) == []
        call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
        messages = [
            {"role": "user", "content": "What is the weather in Paris?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": '{"t": 21}'},
        ]
        text, _, _ = await ask(engine, chat("", messages=messages, tools=[WEATHER]))
        assert "21" in text

    run(body)


def test_json_follows_the_schema_even_when_the_model_would_not() -> None:
    async def body(engine: LlamaCppEngine) -> None:
        question = "What is the capital of Norway? Use JSON."
        text, _, _ = await ask(engine, chat(question, response_format={"type": "json_object"}))
        assert json.loads(text) == {"country": "Norway", "capital": "Oslo"}
        schema = {
            "type": "object",
            "properties": {"n": {"type": "integer"}, "w": {"enum": ["x", "y"]}, "l": {"$ref": "#/$defs/l"}},
            "required": ["n", "w", "l"],
            "additionalProperties": False,
            "$defs": {"l": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}},
            "title": "ignored",
        }
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        value = json.loads((await ask(engine, chat("Hello", response_format=wanted)))[0])
        assert set(value) == {"n", "w", "l"}
        assert value["w"] in ("x", "y")
        assert [type(one) for one in value["l"]] == [bool, bool]

    run(body)


def test_a_schema_that_cannot_work_is_refused_and_never_silently_dropped() -> None:
    async def body(engine: LlamaCppEngine) -> None:
        for schema in (
            {"type": "wat"},
            {"$ref": "#/nowhere"},
            {"$ref": "http://127.0.0.1/x"},
            {"type": "array", "minItems": 100_000_000},
            {"type": "string", "pattern": "(?=a)b"},
            {"type": "string", "pattern": "(a{999}){999}"},
            {"type": "string", "minLength": 5, "maxLength": 2},
            {"type": "integer", "minimum": 5, "maximum": 2},
            {"enum": []},
        ):
            wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            started = time.monotonic()
            with pytest.raises(InvalidRequest) as caught:
                await ask(engine, chat("Hello", response_format=wanted))
            assert caught.value.param == "response_format"
            assert time.monotonic() - started < 1

    run(body)


def test_hostile_schemas_neither_crash_nor_stall_the_other_streams() -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(28):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    wide = {"anyOf": [{"type": "object", "properties": {f"k{i}": {"type": "string"}}} for i in range(500)]}
    loop = {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    nested = {"type": "string", "pattern": "((a*)*)*" * 20}
    counted = {"type": "array", "minItems": 1_000, "items": {"type": "string", "minLength": 1_000}}
    clash = {"allOf": [{"type": "string"}, {"type": "integer"}]}

    async def body(engine: LlamaCppEngine) -> None:
        for schema in (deep, wide, loop, nested, counted, clash):
            wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            with trio.fail_after(5):
                try:
                    await ask(engine, chat("Hello", response_format=wanted, max_tokens=20))
                except (InvalidRequest, EngineError):
                    pass
                assert (await ask(engine, chat("Hello")))[0] == "Hello! How can I help you?"

    run(body)


# --- cache tags --------------------------------------------------------------------------------------------------


def test_the_same_tag_reuses_its_prefix_and_the_answer_is_the_same() -> None:
    async def body(engine: LlamaCppEngine) -> None:
        question = "Repeat: " + "frog owl fox " * 10
        first = await ask(engine, chat(question, tag=b"alice"))
        again = await ask(engine, chat(question, tag=b"alice"))
        assert first[2].usage.cached_tokens == 0
        assert again[2].usage.cached_tokens > 30
        assert again[0] == first[0]

    run(body, slots=3)


def test_a_cancelled_request_leaves_nothing_to_reuse() -> None:
    async def body(engine: LlamaCppEngine) -> None:
        question = "Repeat: " + "frog owl fox " * 10
        async with engine.generate(chat(question, tag=b"alice", logit_bias={"2": -100.0, "0": -100.0})) as events:
            await anext(events)
        while engine.load().running:
            await trio.sleep(0.001)
        assert (await ask(engine, chat(question, tag=b"bob")))[2].usage.cached_tokens == 0

    run(body, slots=1)


def test_cancelling_frees_the_slot_within_milliseconds() -> None:
    async def body(engine: LlamaCppEngine) -> None:
        waits = []
        for _ in range(5):
            async with engine.generate(
                chat("Hello", max_tokens=1_000, logit_bias={"2": -100.0, "0": -100.0})
            ) as events:
                await anext(events)
            left = time.monotonic()
            while engine.load().running:
                await trio.sleep(0)
            waits.append(time.monotonic() - left)
        assert min(waits) < 0.05  # a token takes 0.5 ms here, and other programs run meanwhile

    run(body)


def test_two_engines_with_grammars_live_in_one_process() -> None:
    async def main() -> None:
        async with open_llamacpp_engine(MODEL, slots=2) as one, open_llamacpp_engine(MODEL, slots=2) as two:

            async def many(engine: LlamaCppEngine) -> None:
                for _ in range(10):
                    text, _, _ = await ask(
                        engine, chat("Ben is 7 years old. Use JSON.", response_format={"type": "json_object"})
                    )
                    assert json.loads(text) == {"name": "Ben", "age": 7}

            async with trio.open_nursery() as nursery:
                for engine in (one, two, one, two):
                    nursery.start_soon(many, engine)

    trio.run(main)


def test_the_shipped_model_says_that_it_is_a_test_model() -> None:
    head = read_head(MODEL)
    assert head.licence == "Apache-2.0"
    assert json.loads(MODEL.with_name("manifest.json").read_text())["test_model"] is True
    assert llamacpp_server.XLLAMACPP in llamacpp_server.INSTALL
