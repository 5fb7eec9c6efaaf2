"""ExLlama beyond the contract that all engines share (`test_engine_contract`), over a fake of its generators."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

from cocoon.adapters.engines import exllama_pages, exllama_v2, exllama_v3
from cocoon.adapters.engines.exllama import FAILURES_MAX, ExllamaEngine
from cocoon.adapters.engines.hf_folder import ChatTemplate, read_folder
from cocoon.errors import ConfigError, EngineError, InvalidRequest, ModelFileError
from cocoon.ports.engine import Delta, Finished, GenerationRequest
from cocoon.types import Feature, FinishReason
from tests.fakes import exllama


def chat(text: str, *, tag: bytes = b"", **fields: Any) -> GenerationRequest:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 64, "temperature": 0.0} | fields
    return GenerationRequest(endpoint="chat.completions", body=body, cache_tag=tag)


async def ask(engine: ExllamaEngine, request: GenerationRequest) -> tuple[list[Delta], Finished]:
    deltas: list[Delta] = []
    async with engine.generate(request) as events:
        async for event in events:
            if isinstance(event, Finished):
                return deltas, event
            deltas.append(event)
    raise AssertionError("no end")


def text_of(deltas: list[Delta]) -> str:
    return "".join(one.text for one in deltas)


@pytest.fixture(params=[exllama_v2, exllama_v3], ids=["exllamav2", "exllamav3"])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    exllama.install(monkeypatch, flash_attention=True)
    exllama.write_folder(tmp_path)
    return request.param  # type: ignore[no-any-return]


def run(
    module: ModuleType,
    folder: Path,
    body: Callable[[ExllamaEngine], Awaitable[None]],
    *,
    slots: int = 2,
    context: int = 2048,
) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            async with module.open_exllama_engine(folder, slots=slots, context_tokens=2_048) as engine:
                await body(engine)

    trio.run(main)


def test_a_character_of_several_tokens_comes_whole_with_all_its_ids(version: ModuleType, tmp_path: Path) -> None:
    async def body(engine: ExllamaEngine) -> None:
        deltas, end = await ask(engine, chat("snowman"))
        assert text_of(deltas) == "a ☃ and ☃☃ b"
        assert end.usage.completion_tokens == len("a ☃ and ☃☃ b".encode()) == sum(len(one.token_ids) for one in deltas)
        assert end.finish_reason is FinishReason.STOP

    run(version, tmp_path, body)


def test_an_account_reuses_its_own_prompt_and_nobody_elses(version: ModuleType, tmp_path: Path) -> None:
    async def body(engine: ExllamaEngine) -> None:
        long = "ba" * 600
        for tag in (b"alice", b"mallory", b"", b""):
            _, end = await ask(engine, chat(long, tag=tag, max_tokens=2))
            assert end.usage.cached_tokens == 0, tag
        _, again = await ask(engine, chat(long, tag=b"alice", max_tokens=2))
        assert again.usage.cached_tokens >= 1024, "four whole pages of one's own"

    run(version, tmp_path, body)


@pytest.mark.parametrize("guard", ["isolate", "close_roots"])
def test_without_either_guard_a_prompt_would_leak(
    version: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    monkeypatch.setattr(exllama_pages, guard, lambda *_: None)

    async def body(engine: ExllamaEngine) -> None:
        text = "ba" * 600 if guard == "isolate" else "ba" * 50
        await ask(engine, chat(text, tag=b"alice", max_tokens=2))
        _, end = await ask(engine, chat(text, tag=b"mallory", max_tokens=2))
        assert end.usage.cached_tokens > 0, "the fake does not show the leak, so the test above proves nothing"

    run(version, tmp_path, body)


def test_two_prompts_that_begin_at_once_do_not_see_each_other(version: ModuleType, tmp_path: Path) -> None:
    async def body(engine: ExllamaEngine) -> None:
        cached: list[int] = []

        async def one(tag: bytes) -> None:
            _, end = await ask(engine, chat("ba" * 50, tag=tag, max_tokens=8))
            cached.append(end.usage.cached_tokens)

        async with trio.open_nursery() as nursery:
            for tag in (b"alice", b"mallory"):
                nursery.start_soon(one, tag)
        assert cached == [0, 0]

    run(version, tmp_path, body)


def test_a_library_that_keeps_its_pages_otherwise_is_refused_at_load(
    version: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(exllama.Page):
        def __init__(self, tokens: list[int], prev_hash: bytes | None) -> None:
            self.sequence = tokens

    monkeypatch.setattr(exllama, "Page", Other)

    async def body(engine: ExllamaEngine) -> None:
        raise AssertionError("it loaded")

    with pytest.raises(ConfigError, match="cache in a way"):
        run(version, tmp_path, body)


def test_without_flash_attention_version_two_has_one_slot_and_forgets_between_accounts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exllama.install(monkeypatch, flash_attention=False)
    exllama.write_folder(tmp_path)

    async def body(engine: ExllamaEngine) -> None:
        counts = []
        for tag in (b"alice", b"alice", b"mallory", b"alice", b"", b""):
            _, end = await ask(engine, chat("ba" * 50, tag=tag, max_tokens=2))
            counts.append(end.usage.cached_tokens > 0)
        assert counts == [False, True, False, False, False, False]

    run(exllama_v2, tmp_path, body, slots=1)
    with pytest.raises(ConfigError, match="one request at a time"):
        run(exllama_v2, tmp_path, body, slots=2)


def test_tools_and_json_work_on_version_three_and_not_on_version_two(version: ModuleType, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": {"type": "object"}}}

    async def body(engine: ExllamaEngine) -> None:
        asks = (chat("call the tool", tools=[tool], max_tokens=200), chat("write json", response_format=form))
        if version is exllama_v2:
            assert not engine.info.features & (Feature.TOOLS | Feature.JSON_SCHEMA)
            for request in asks:
                with pytest.raises(InvalidRequest):
                    await ask(engine, request)
            return
        assert engine.info.features & Feature.TOOLS
        deltas, end = await ask(engine, asks[0])
        calls = [call for one in deltas for call in one.tool_calls]
        assert calls[0]["function"]["name"] == "weather"
        assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"city": "Bergen"}
        assert (text_of(deltas), end.finish_reason) == ("", FinishReason.TOOL_CALLS)
        deltas, _ = await ask(engine, asks[1])
        assert json.loads(text_of(deltas)) == {"city": "Bergen"}
        with pytest.raises(EngineError, match="left the JSON grammar"):
            await ask(engine, chat("words", response_format=form, max_tokens=400))

    run(version, tmp_path, body)


def test_logprobs_with_alternatives(version: ModuleType, tmp_path: Path) -> None:
    async def body(engine: ExllamaEngine) -> None:
        deltas, _ = await ask(engine, chat("words", logprobs=True, top_logprobs=3, max_tokens=5))
        named = [one for delta in deltas for one in delta.logprobs]
        assert len(named) == 5
        for one in named:
            assert [token for token, _, _ in one.top] == [one.token_id, one.token_id - 1, one.token_id - 2]
            assert one.logprob == one.top[0][2] > one.top[1][2]

    run(version, tmp_path, body)


def test_a_failing_step_ends_what_runs_and_the_next_request_works(version: ModuleType, tmp_path: Path) -> None:
    async def body(engine: ExllamaEngine) -> None:
        generator = engine._backend._generator  # type: ignore[attr-defined]
        async with engine.generate(chat("words", max_tokens=200)) as events:
            await anext(events)
            generator.fail_next = 1
            with pytest.raises(EngineError, match="failed: RuntimeError"):
                async for _ in events:
                    pass
        assert (await ask(engine, chat("words")))[0]
        assert engine.load().running == 0

    run(version, tmp_path, body)


def test_an_engine_that_keeps_failing_says_so_and_takes_nothing_more(version: ModuleType, tmp_path: Path) -> None:
    async def body(engine: ExllamaEngine) -> None:
        engine._backend._generator.fail_next = FAILURES_MAX  # type: ignore[attr-defined]
        for _ in range(FAILURES_MAX):
            with pytest.raises(EngineError):
                await ask(engine, chat("words"))
        with pytest.raises(EngineError, match="restart the provider"):
            await ask(engine, chat("words"))

    run(version, tmp_path, body)


def test_requests_that_the_library_chokes_on_end_alone_and_break_nothing(
    version: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else three bad requests of a stranger take a provider off the network."""

    async def body(engine: ExllamaEngine) -> None:
        generator = engine._backend._generator  # type: ignore[attr-defined]
        isolate, chokes = exllama_pages.isolate, True

        def choke(job: Any, tag: bytes) -> None:
            if chokes:
                raise (ValueError if tag else RuntimeError)("no such rule: a secret of the user's")
            isolate(job, tag)

        async with engine.generate(chat("words", max_tokens=200)) as events:
            await anext(events)
            monkeypatch.setattr(exllama_pages, "isolate", choke)
            for tag in (b"", b"", b"", b"mallory"):
                with pytest.raises(EngineError, match="at this request"):
                    await ask(engine, chat("nonsense", tag=tag))
            chokes = False
            assert [one async for one in events], "who runs already is not disturbed"
        assert (await ask(engine, chat("words")))[0]
        assert not generator._pending and not generator._active, "what was half begun is forgotten"

    run(version, tmp_path, body)
    assert "not started" in caplog.text
    assert "secret" not in caplog.text


def test_a_library_that_cannot_even_cancel_leaves_nobody_waiting(
    version: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(engine: ExllamaEngine) -> None:
        generator = engine._backend._generator  # type: ignore[attr-defined]

        def refuse(job: Any) -> None:
            raise RuntimeError("CUDA error")

        monkeypatch.setattr(generator, "cancel", refuse)
        for _ in range(FAILURES_MAX):
            generator.fail_next = 1
            with pytest.raises(EngineError, match="failed"):
                await ask(engine, chat("words"))
        with pytest.raises(EngineError, match="restart the provider"):
            await ask(engine, chat("words"))

    run(version, tmp_path, body)


@pytest.mark.parametrize("name", ["exllamav2", "exllamav3"])
def test_a_machine_without_the_library_or_cuda_gets_a_sentence(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exllama.write_folder(tmp_path)
    monkeypatch.setitem(sys.modules, name, None)
    module = exllama_v2 if name == "exllamav2" else exllama_v3

    async def body(engine: ExllamaEngine) -> None:
        raise AssertionError("it loaded")

    with pytest.raises(ConfigError, match=f"{name} cannot be loaded here") as caught:
        run(module, tmp_path, body, slots=1)
    assert f"cocoon-network[{name}]" in str(caught.value.advice)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", None, "without a config.json"),
        ("config.json", "[1]", "not a JSON object"),
        ("config.json", "[" * 100_000, "not JSON"),
        ("tokenizer.json", None, "tokenizer.json"),
        ("tokenizer_config.json", "{", "not JSON"),
    ],
)
def test_a_folder_that_is_not_a_model_is_named(tmp_path: Path, file: str, content: str | None, says: str) -> None:
    exllama.write_folder(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(ModelFileError, match=says):
        read_folder(tmp_path)


@pytest.mark.parametrize("given", [[{"name": []}], [{"name": "default", "template": 5}], [5], {}, 7])
def test_templates_of_another_form_are_no_template(tmp_path: Path, given: object) -> None:
    exllama.write_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": given}))
    assert read_folder(tmp_path).template == ""


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({}) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ raise_exception('no system role') }}",
        "{{ messages[0].content / 2 }}",
    ],
)
def test_a_template_cannot_leave_its_box_and_what_it_refuses_is_the_users_error(tmp_path: Path, template: str) -> None:
    exllama.write_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate(read_folder(tmp_path)).render({"messages": [{"role": "user", "content": "x"}]})
    assert caught.value.param == "messages"


def test_a_broken_template_is_the_models_error(tmp_path: Path) -> None:
    exllama.write_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelFileError, match="template"):
        ChatTemplate(read_folder(tmp_path))
