"""What every engine promises (`cocoon.ports.engine`): llama.cpp for real, in this process and as a server beside us,
the paced one, and ExLlama over a fake of its generators, since those need CUDA."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

from cocoon.adapters.engines import exllama_v2, exllama_v3
from cocoon.adapters.engines.llamacpp import open_llamacpp_engine
from cocoon.adapters.engines.paced import PacedEngine
from cocoon.adapters.engines.upstream import open_upstream_engine
from cocoon.errors import EngineError, InvalidRequest
from cocoon.ports.engine import Delta, Engine, Finished, GenerationRequest
from cocoon.types import Feature, FinishReason
from tests.fakes import exllama, llama_upstream

MODEL = Path(__file__).parents[2] / "cocoon/data/models/cocoon-tiny/cocoon-tiny-q8_0.gguf"
CONTEXT = 512
Open = Callable[..., AbstractAsyncContextManager[Engine]]


@asynccontextmanager
async def _paced(slots: int = 2) -> AsyncIterator[Engine]:
    engine = PacedEngine(
        slots=slots, tokens_per_s=2_000, first_token_s=0.001, answer_tokens=300, context_tokens=CONTEXT
    )
    yield engine
    await engine.aclose()


def _llamacpp(slots: int = 2) -> AbstractAsyncContextManager[Engine]:
    return open_llamacpp_engine(MODEL, slots=slots, context_tokens=CONTEXT)


@asynccontextmanager
async def _exllama(module: ModuleType, folder: Path, slots: int = 2) -> AsyncIterator[Engine]:
    async with module.open_exllama_engine(folder, slots=slots, context_tokens=CONTEXT) as engine:
        yield engine


@asynccontextmanager
async def _upstream(folder: Path, slots: int = 2) -> AsyncIterator[Engine]:
    with llama_upstream.running(slots=slots, context_tokens=CONTEXT) as (url, key):
        async with open_upstream_engine(url, folder, slots=slots, key=key, context_tokens=CONTEXT) as engine:
            yield engine


@pytest.fixture(params=["paced", "llama.cpp", "upstream", "exllamav2", "exllamav3"])
def opened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Open:
    if request.param == "paced":
        return _paced
    if request.param == "llama.cpp":
        return _llamacpp
    if request.param == "upstream":
        llama_upstream.write_folder(tmp_path)
        return partial(_upstream, tmp_path)
    exllama.install(monkeypatch, flash_attention=True)
    exllama.write_folder(tmp_path)
    return partial(_exllama, exllama_v2 if request.param == "exllamav2" else exllama_v3, tmp_path)


def chat(text: str = "Tell me a long story.", *, tag: bytes = b"", **fields: Any) -> GenerationRequest:
    messages = [{"role": "user", "content": text}]
    body = {"messages": messages, "max_tokens": 24, "temperature": 0.0} | fields
    return GenerationRequest(endpoint="chat.completions", body=body, cache_tag=tag)


def endless(text: str = "Tell me a long story.", **fields: Any) -> GenerationRequest:
    """An answer that goes on until it is left: ending tokens are banned."""
    return chat(text, max_tokens=400, logit_bias={"0": -100.0, "2": -100.0}, **fields)


class Answer:
    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.ends: list[Finished] = []

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def ids(self) -> list[int]:
        return [one for delta in self.deltas for one in delta.token_ids]

    @property
    def end(self) -> Finished:
        (end,) = self.ends
        return end


async def ask(engine: Engine, request: GenerationRequest) -> Answer:
    answer = Answer()
    async with engine.generate(request) as events:
        async for event in events:
            (answer.ends if isinstance(event, Finished) else answer.deltas).append(event)  # type: ignore[arg-type]
    return answer


def run(opened: Open, body: Callable[[Engine], Awaitable[None]], **options: int) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with opened(**options) as engine:
                await body(engine)

    trio.run(main)


async def becomes_idle(engine: Engine) -> None:
    with trio.fail_after(5):
        while engine.load().running or engine.load().queued:
            await trio.sleep(0.001)


def test_an_answer_is_deltas_and_one_end_whose_counts_are_the_ids_given_out(opened: Open) -> None:
    async def body(engine: Engine) -> None:
        request = chat()
        counted = await engine.count_prompt_tokens(request)
        answer = await ask(engine, request)
        assert answer.text.strip()
        assert answer.end.usage.completion_tokens == len(answer.ids) == 24
        assert answer.end.usage.prompt_tokens == counted > 0
        assert answer.end.finish_reason is FinishReason.LENGTH
        assert all(0 <= one < engine.info.vocabulary_size for one in answer.ids)

    run(opened, body)


def test_an_answer_that_ends_by_itself_says_stop(opened: Open) -> None:
    async def body(engine: Engine) -> None:
        answer = await ask(engine, chat("What is Cocoon?", max_tokens=400))
        assert answer.end.finish_reason is FinishReason.STOP
        assert answer.end.usage.completion_tokens == len(answer.ids) < 400

    run(opened, body)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_seed_gives_the_same_answer(opened: Open, temperature: float) -> None:
    async def body(engine: Engine) -> None:
        first = await ask(engine, chat(seed=7, temperature=temperature))
        second = await ask(engine, chat(seed=7, temperature=temperature))
        assert (first.ids, first.text) == (second.ids, second.text)

    run(opened, body)


def test_text_ends_before_the_stop_word_and_never_shows_a_part_of_it(opened: Open) -> None:
    async def body(engine: Engine) -> None:
        whole = (await ask(engine, chat())).text
        middle = whole[len(whole) // 2 :].lstrip()
        stop = middle[: len(middle) // 2]
        assert len(stop) >= 4
        cut = await ask(engine, chat(stop=[stop]))
        assert cut.text == whole[: whole.index(stop)]
        assert cut.end.finish_reason is FinishReason.STOP
        assert cut.end.usage.completion_tokens == len(cut.ids)

    run(opened, body)


def test_more_requests_than_slots_all_finish_and_those_waiting_are_counted(opened: Open) -> None:
    async def body(engine: Engine) -> None:
        answers: list[Answer] = []
        seen = 0

        async def one(number: int) -> None:
            answers.append(await ask(engine, chat(f"Tell me a story about {number}.", max_tokens=60)))

        async with trio.open_nursery() as nursery:
            for number in range(9):
                nursery.start_soon(one, number)
            while len(answers) < 9:
                load = engine.load()
                seen = max(seen, load.queued)
                assert load.running <= 2
                await trio.sleep(0.001)
        assert seen >= 6
        assert all(answer.end.usage.completion_tokens == len(answer.ids) > 0 for answer in answers)
        await becomes_idle(engine)

    run(opened, body)


def test_leaving_early_frees_the_slot_for_the_next(opened: Open) -> None:
    async def body(engine: Engine) -> None:
        for _ in range(5):
            async with engine.generate(endless()) as events:
                assert isinstance(await anext(events), Delta)
                assert engine.load().running == 1
            await becomes_idle(engine)
        assert (await ask(engine, chat())).ids

    run(opened, body, slots=1)


def test_a_cancelled_scope_frees_the_slot_too(opened: Open) -> None:
    async def body(engine: Engine) -> None:
        with trio.CancelScope() as scope:
            async with engine.generate(endless()) as events:
                async for _ in events:
                    scope.cancel()
        assert scope.cancelled_caught
        await becomes_idle(engine)

    run(opened, body, slots=1)


def test_a_request_that_waits_can_be_cancelled_and_never_runs(opened: Open) -> None:
    async def body(engine: Engine) -> None:
        async with engine.generate(endless()) as first:
            await anext(first)
            with trio.move_on_after(0.01):
                await ask(engine, chat("second"))
            assert engine.load().queued == 0
            assert engine.load().running == 1
        await becomes_idle(engine)

    run(opened, body, slots=1)


def test_a_reader_that_stalls_loses_nothing(opened: Open) -> None:
    async def body(engine: Engine) -> None:
        expected = await ask(engine, chat(max_tokens=60))
        late = Answer()
        async with engine.generate(chat(max_tokens=60)) as events:
            late.deltas.append(await anext(events))  # type: ignore[arg-type]
            await trio.sleep(0.3)
            async for event in events:
                (late.ends if isinstance(event, Finished) else late.deltas).append(event)  # type: ignore[arg-type]
        assert (late.text, late.ids) == (expected.text, expected.ids)
        assert len(late.deltas) < 10, "what gathered meanwhile comes in one piece"

    run(opened, body)


def test_logprobs_name_the_tokens_that_were_given(opened: Open) -> None:
    async def body(engine: Engine) -> None:
        if Feature.LOGPROBS not in engine.info.features:
            with pytest.raises(InvalidRequest) as caught:
                await ask(engine, chat(logprobs=True, top_logprobs=0))
            assert caught.value.param == "logprobs"
            return
        answer = await ask(engine, chat(logprobs=True, top_logprobs=0))
        named = [one for delta in answer.deltas for one in delta.logprobs]
        assert [one.token_id for one in named] == answer.ids
        assert all(one.logprob <= 0 for one in named)
        assert b"".join(one.token for one in named).decode() == answer.text
        assert not any(delta.logprobs for delta in (await ask(engine, chat())).deltas)

    run(opened, body)


def test_a_prompt_beyond_the_context_is_the_users_error_before_anything_runs(opened: Open) -> None:
    async def body(engine: Engine) -> None:
        with pytest.raises(InvalidRequest) as caught:
            await ask(engine, chat("word " * 3_000))
        assert caught.value.kind == "context_length_exceeded"
        assert caught.value.param == "messages"
        assert engine.load().running == 0

    run(opened, body)


def test_prompt_and_answer_together_stay_within_the_context(opened: Open) -> None:
    async def body(engine: Engine) -> None:
        answer = await ask(engine, chat("Repeat: " + "frog " * 90, max_tokens=100_000, logit_bias={"2": -100.0}))
        usage = answer.end.usage
        assert usage.prompt_tokens + usage.completion_tokens <= engine.info.context_tokens_max

    run(opened, body)


def test_an_unknown_role_is_named_and_refused(opened: Open) -> None:
    async def body(engine: Engine) -> None:
        request = GenerationRequest(
            endpoint="chat.completions", body={"messages": [{"role": "wizard", "content": "hi"}], "max_tokens": 4}
        )
        for attempt in (engine.count_prompt_tokens(request), ask(engine, request)):
            with pytest.raises(InvalidRequest) as caught:
                await attempt
            assert caught.value.param == "messages[0].role"

    run(opened, body)


def test_plain_completions_work(opened: Open) -> None:
    async def body(engine: Engine) -> None:
        request = GenerationRequest(endpoint="completions", body={"prompt": "Once upon a time", "max_tokens": 8})
        answer = await ask(engine, request)
        assert len(answer.ids) == answer.end.usage.completion_tokens > 0
        assert answer.end.usage.prompt_tokens == await engine.count_prompt_tokens(request)

    run(opened, body)


def test_cross_account_prefix_probe_sees_nothing(opened: Open) -> None:
    """Rule S7: another tag learns nothing from counts, and no tag means no reuse."""

    async def body(engine: Engine) -> None:
        secret = "Repeat: " + "frog owl fox " * 25
        await ask(engine, chat(secret, tag=b"alice", max_tokens=4))
        for tag in (b"mallory", b"", b"mallory2"):
            probe = await ask(engine, chat(secret, tag=tag, max_tokens=4))
            assert probe.end.usage.cached_tokens == 0
        for _ in range(2):
            assert (await ask(engine, chat(secret, max_tokens=4))).end.usage.cached_tokens == 0

    run(opened, body, slots=1)
    run(opened, body, slots=3)


def test_after_closing_nothing_runs(opened: Open) -> None:
    async def main() -> None:
        async with opened() as engine:
            pass
        with pytest.raises(EngineError):
            await ask(engine, chat())

    trio.run(main)


def test_closing_ends_a_running_answer_with_an_error(opened: Open) -> None:
    async def body(engine: Engine) -> None:
        async with engine.generate(endless()) as events:
            await anext(events)
            await engine.aclose()
            with pytest.raises(EngineError):
                async for _ in events:
                    pass

    run(opened, body)


def test_the_info_is_complete(opened: Open) -> None:
    async def body(engine: Engine) -> None:
        info = engine.info
        assert info.slots == 2
        assert info.context_tokens_max == CONTEXT
        assert len(info.engine_digest) == 32
        assert info.name
        assert info.version
        assert info.vocabulary_size > 0

    run(opened, body)
