"""A server beside the provider, beyond the contract that all engines share: servers that fail, lie or are not there."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from cocoon.adapters.engines import upstream
from cocoon.adapters.engines.upstream import UpstreamEngine, local_url, open_upstream_engine
from cocoon.errors import CocoonError, ConfigError, EngineError, InvalidRequest, ModelFileError
from cocoon.ports.engine import Delta, Finished, GenerationRequest
from cocoon.types import Feature, FinishReason, Secret
from tests.fakes import llama_upstream

SECRET = "the prompt that nobody may log"


class Server:
    """Answers as told. `stream` is the body of a streamed completion; `gives_ids` as vLLM."""

    def __init__(self) -> None:
        self.models: list[Any] = [{"id": "m", "max_model_len": 256}]
        self.gives_ids = False
        self.keeps_schema = False
        self.status = 200
        self.error = b'{"error": {"message": "no"}}'
        self.stream: list[bytes] = []
        self.cut = False
        self.bodies: list[dict[str, Any]] = []
        self.key: str | None = None
        self.is_up = True

    async def handle(self, connection: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = await connection.receive_some()
            if not piece:
                return
            head += piece
        top, rest = head.split(b"\r\n\r\n", 1)
        fields = {key.lower(): value for key, _, value in (line.partition(b": ") for line in top.split(b"\r\n")[1:])}
        while len(rest) < int(fields.get(b"content-length", b"0")):
            rest += await connection.receive_some()
        await self.answer(connection, top.split(b" ")[1], json.loads(rest) if rest else {}, fields)
        await connection.aclose()

    async def answer(self, connection: trio.SocketStream, path: bytes, body: Any, fields: dict[bytes, bytes]) -> None:
        if not self.is_up:
            return
        if self.key is not None and fields.get(b"authorization") != f"Bearer {self.key}".encode():
            await self.say(connection, 401, b"{}")
            return
        if path == b"/v1/models":
            await self.say(connection, 200, json.dumps({"data": self.models}).encode())
            return
        self.bodies.append(body)
        if self.status != 200:
            await self.say(connection, self.status, self.error)
            return
        if not body.get("stream"):
            text = '{"a": 1}' if body.get("response_format") and self.keeps_schema else "x"
            choice = {"text": text} | ({"token_ids": [1]} if self.gives_ids else {})
            await self.say(connection, 200, json.dumps({"choices": [choice]}).encode())
            return
        size = sum(map(len, self.stream)) + (1 if self.cut else 0)
        await connection.send_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % size)
        for piece in self.stream:
            await connection.send_all(piece)

    async def say(self, connection: trio.SocketStream, status: int, data: bytes) -> None:
        await connection.send_all(
            b"HTTP/1.1 %d X\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (status, len(data), data)
        )


def event(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


DONE = event(text="", finish_reason="stop") + b"data: [DONE]\n\n"


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, server.handle, [listener])
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}/v1"
        nursery.cancel_scope.cancel()


def run(server: Server, folder: Path, body: Callable[[UpstreamEngine], Awaitable[None]], **options: Any) -> None:
    llama_upstream.write_folder(folder)

    async def main() -> None:
        with trio.fail_after(20):
            async with serving(server) as url, open_upstream_engine(url, folder, slots=2, **options) as engine:
                await body(engine)

    try:
        trio.run(main)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            (error,) = error.exceptions
        raise error from None


async def ask(engine: UpstreamEngine, **fields: Any) -> tuple[list[Delta], Finished]:
    body = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 50} | fields
    deltas: list[Delta] = []
    async with engine.generate(GenerationRequest(endpoint="chat.completions", body=body)) as events:
        async for one in events:
            if isinstance(one, Finished):
                return deltas, one
            deltas.append(one)
    raise AssertionError("no end")


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.7:8000",
        "https://127.0.0.1",
        "http://example.org/v1",
        "ftp://localhost",
        "127.0.0.1:8000",
        "",
        "http://a@localhost",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:x",
        "http://[::1",
    ],
)
def test_prompts_never_leave_the_machine(url: str) -> None:
    with pytest.raises(ConfigError, match="on this machine"):
        local_url(url)


def test_v1_and_no_v1_are_the_same_server() -> None:
    assert local_url("http://localhost:8000/v1/") == local_url("http://localhost:8000") == "http://localhost:8000"


def test_ids_that_the_server_gives_are_given_on(tmp_path: Path) -> None:
    server = Server()
    server.gives_ids = True
    server.stream = [event(text="Hel", token_ids=[5]), event(text="lo", token_ids=[6, 7]), DONE]

    async def body(engine: UpstreamEngine) -> None:
        deltas, end = await ask(engine)
        assert [one for delta in deltas for one in delta.token_ids] == [5, 6, 7]
        assert "".join(delta.text for delta in deltas) == "Hello"
        assert (end.usage.completion_tokens, end.finish_reason) == (3, FinishReason.STOP)

    run(server, tmp_path, body)


def test_events_without_a_space_after_the_colon_are_read(tmp_path: Path) -> None:
    server = Server()
    server.stream = [piece.replace(b"data: ", b"data:") for piece in (event(text="Hello"), DONE)]

    async def body(engine: UpstreamEngine) -> None:
        deltas, _ = await ask(engine)
        assert "".join(delta.text for delta in deltas) == "Hello"

    run(server, tmp_path, body)


@pytest.mark.parametrize("key", [b"", "schlüssel".encode(), b"a\nb: c"])
def test_a_key_that_no_header_takes_is_said_without_the_key(tmp_path: Path, key: bytes) -> None:
    async def body(engine: UpstreamEngine) -> None:
        raise AssertionError("it connected")

    with pytest.raises(ConfigError, match="key") as caught:
        run(Server(), tmp_path, body, key=Secret(key))
    assert "schl" not in str(caught.value)


def test_the_bill_is_counted_here_whatever_the_server_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 9000, "completion_tokens": 2}}\n\n'
    server.stream = [event(text="Cocoon is a network of many machines for all"), DONE[:-14], usage, b"data: [DONE]\n\n"]

    async def body(engine: UpstreamEngine) -> None:
        deltas, end = await ask(engine)
        assert end.usage.completion_tokens == sum(len(one.token_ids) for one in deltas) > 12
        request = GenerationRequest(
            endpoint="chat.completions", body={"messages": [{"role": "user", "content": SECRET}], "max_tokens": 1}
        )
        assert end.usage.prompt_tokens == await engine.count_prompt_tokens(request) < 100
        assert len(server.bodies[-1]["prompt"]) == end.usage.prompt_tokens, "the server got the ids that are billed"

    with caplog.at_level(logging.WARNING):
        run(server, tmp_path, body)
    assert "the server counts 2 tokens" in caplog.text


def test_every_request_has_its_own_cache_salt(tmp_path: Path) -> None:
    server = Server()
    server.stream = [event(text="x"), DONE]

    async def body(engine: UpstreamEngine) -> None:
        await ask(engine)
        await ask(engine)
        salts = [one["cache_salt"] for one in server.bodies if one.get("stream")]
        assert len(set(salts)) == 2

    run(server, tmp_path, body)


def test_json_is_offered_only_where_the_server_kept_to_a_schema(tmp_path: Path) -> None:
    server = Server()
    form = {"type": "json_object"}

    async def without(engine: UpstreamEngine) -> None:
        assert Feature.JSON_SCHEMA not in engine.info.features
        with pytest.raises(InvalidRequest):
            await ask(engine, response_format=form)

    async def with_it(engine: UpstreamEngine) -> None:
        assert Feature.JSON_SCHEMA in engine.info.features
        server.stream = [event(text='{"b": 2}'), DONE]
        deltas, _ = await ask(engine, response_format=form)
        assert json.loads("".join(one.text for one in deltas)) == {"b": 2}
        server.stream = [event(text="no json"), DONE]
        with pytest.raises(EngineError, match="grammar"):
            await ask(engine, response_format=form)

    run(server, tmp_path, without)
    server.keeps_schema = True
    run(server, tmp_path, with_it)


@pytest.mark.parametrize(
    ("stream", "cut"),
    [
        ([event(text="Half an ans")], True),
        ([event(text="No end")], False),
        ([b"data: {nonsense\n\n"], False),
        ([b"data: [1]\n\n"], False),
        ([b'data: {"choices": [1]}\n\n'], False),
        ([b'data: {"error": {"message": "CUDA"}}\n\n'], False),
        ([b"data: " + b"x" * (upstream.LINE_BYTES_MAX + 10)], False),
        ([b"data: " + b"[" * 100_000 + b"\n\n"], False),
        ([event(text="Half an ans"), event(text="", finish_reason="abort"), b"data: [DONE]\n\n"], False),
    ],
    ids=["cut", "no end", "nonsense", "a list", "no choice", "error", "endless line", "deep", "given up"],
)
def test_a_broken_answer_is_an_engine_error_and_the_next_request_works(
    tmp_path: Path, stream: list[bytes], cut: bool
) -> None:
    server = Server()

    async def body(engine: UpstreamEngine) -> None:
        server.stream, server.cut = stream, cut
        with pytest.raises(EngineError):
            await ask(engine)
        assert engine.load().running == 0
        server.stream, server.cut = [event(text="fine now"), DONE], False
        assert (await ask(engine))[0]

    run(server, tmp_path, body)


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, InvalidRequest, None),
        (422, InvalidRequest, None),
        (401, EngineError, False),
        (429, EngineError, True),
        (503, EngineError, True),
        (404, EngineError, False),
        (302, EngineError, False),
    ],
)
def test_a_refusal_is_the_right_ones_fault(
    tmp_path: Path, status: int, error: type[CocoonError], kind: bool | None
) -> None:
    server = Server()

    async def body(engine: UpstreamEngine) -> None:
        server.status = status
        with pytest.raises(error) as caught:
            await ask(engine)
        if kind is not None:
            assert caught.value.retryable is kind

    run(server, tmp_path, body)


def test_nothing_of_a_prompt_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.error = json.dumps({"error": {"message": f"bad prompt: {SECRET}"}}).encode()

    async def body(engine: UpstreamEngine) -> None:
        server.status = 500
        with pytest.raises(EngineError) as caught:
            await ask(engine)
        assert SECRET not in str(caught.value)

    with caplog.at_level(logging.DEBUG):
        run(server, tmp_path, body)
    assert SECRET not in caplog.text


def test_a_server_that_goes_away_is_noticed_and_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "HEALTH_EVERY_S", 0.02)
    server = Server()
    server.stream = [event(text="x"), DONE]

    async def body(engine: UpstreamEngine) -> None:
        server.is_up = False
        await trio.sleep(0.2)
        with pytest.raises(EngineError, match="does not answer") as caught:
            await ask(engine)
        assert caught.value.retryable
        server.is_up = True
        await trio.sleep(0.2)
        await ask(engine)

    run(server, tmp_path, body)


def test_the_key_is_sent_and_a_wrong_one_is_said(tmp_path: Path) -> None:
    server = Server()
    server.key = "k1"
    server.stream = [event(text="x"), DONE]

    async def body(engine: UpstreamEngine) -> None:
        await ask(engine)

    run(server, tmp_path, body, key=Secret(b"k1"))
    with pytest.raises(EngineError, match="another key"):
        run(server, tmp_path, body, key=Secret(b"k2"))


@pytest.mark.parametrize(
    ("models", "wanted", "says"),
    [
        ([], None, "does not serve any"),
        ([{"id": "a"}, {"id": "b"}], None, "several"),
        ([{"id": "a"}], "c", "does not serve c"),
        ([1, {"id": 5}], None, "does not serve any"),
    ],
)
def test_the_model_must_be_one(tmp_path: Path, models: list[Any], wanted: str | None, says: str) -> None:
    server = Server()
    server.models = models

    async def body(engine: UpstreamEngine) -> None:
        raise AssertionError("it opened")

    with pytest.raises(ConfigError, match=says):
        run(server, tmp_path, body, model=wanted)


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    llama_upstream.write_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")

    async def main() -> None:
        async with open_upstream_engine("http://127.0.0.1:9", tmp_path, slots=1):
            raise AssertionError("it opened")

    with pytest.raises(ModelFileError, match="tokenizer"):
        trio.run(main)
