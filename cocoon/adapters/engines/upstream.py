"""The `Engine` port over an inference server that runs already: vLLM, SGLang, TabbyAPI, llama-server, beside us.

    async with open_upstream_engine("http://127.0.0.1:8000", Path("Llama-3.1-8B-Instruct"), slots=32) as engine: …

The server must be on this machine (in this TD): prompts would leave it otherwise, and an address elsewhere is refused.
We render the chat template and count with the model's own tokenizer, and send token ids to `/v1/completions`: so what
is billed does not depend on what the server says. Its usage is compared and only logged. Where it returns the ids of
its tokens (vLLM: `return_token_ids`) those are given out; else the text is tokenised, cut where words end.

Not here: tools and log-probabilities (no common way to get them with ids), and KV reuse (rule S7): every request
carries a random `cache_salt`, which vLLM honours. Switch prefix caching off in servers that know no salt.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import trio

from ...errors import ConfigError, EngineError, InvalidRequest, ModelFileError
from ...ports.engine import Delta, EngineEvent, EngineInfo, EngineLoad, Finished, GenerationRequest
from ...types import Feature, FinishReason, Secret, Usage
from . import fields, prompts
from .fields import Asked
from .hf_folder import ChatTemplate, HfFolder, read_folder
from .prompts import PreparedPrompts, checked_slots
from .stops import StopWords

NAME: Final = "OpenAI-compatible server"
INSTALL: Final = 'Install it with: pip install "cocoon-network[upstream]"'
SLOTS_MAX: Final = 1_024
QUEUED_MAX: Final = 256
CONTEXT_TOKENS: Final = 8_192
CONNECT_TIMEOUT_S: Final = 5.0
SILENCE_TIMEOUT_S: Final = 120.0  # a long prompt on a busy server takes its time before the first token
HEALTH_EVERY_S: Final = 5.0
STREAM_BYTES_MAX: Final = 64 * 1024 * 1024  # some 200 bytes for each token
ANSWER_BYTES_MAX: Final = 1024 * 1024  # of anything that is not a stream
LINE_BYTES_MAX: Final = 256 * 1024  # of one event
HELD_CHARS_MAX: Final = 64  # text without a space is cut here; a token more or less may come of it
_BROKEN_OFF: Final = ("abort", "error")  # vLLM and SGLang, when they drop a request: half an answer is not the whole
COUNTS_DIFFER: Final = 1.1  # the server's count and ours: beyond this the model folder is probably another model's

Progress = Callable[[str], None]
_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_upstream_engine(
    url: str,
    folder: Path,
    *,
    slots: int,
    model: str | None = None,
    key: Secret | None = None,
    context_tokens: int | None = None,
    progress: Progress | None = None,
) -> AsyncIterator[UpstreamEngine]:
    """Connect to the server at `url`, try it, and serve through it until the block is left.

    `folder` holds the model's tokenizer and chat template (not its weights), `model` is its name at the server, if that
    serves several. Raises `ConfigError`, `ModelFileError`, `EngineError` (it does not answer, or not as it should).
    """
    tell = progress or (lambda _: None)
    checked_slots(slots, SLOTS_MAX)
    base = local_url(url)
    read = await trio.to_thread.run_sync(read_folder, folder)
    tokenizer = await trio.to_thread.run_sync(_tokenizer, read)
    headers = {} if key is None else {"authorization": f"Bearer {_key_text(key)}"}
    # A fresh connection for each request: servers drop kept ones just when they are needed, and loopback is cheap.
    limits = httpx.Limits(max_connections=slots + 2, max_keepalive_connections=0)
    timeout = httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    async with httpx.AsyncClient(
        base_url=base, headers=headers, limits=limits, timeout=timeout, trust_env=False, follow_redirects=False
    ) as client:
        tell("asking the server what it serves")
        name, trained = await _served(client, model)
        context = (
            min(one for one in (context_tokens, read.context_tokens, trained) if one)
            if (context_tokens or read.context_tokens or trained)
            else CONTEXT_TOKENS
        )
        engine = UpstreamEngine(client, read, tokenizer, model=name, slots=slots, context_tokens=context)
        tell("trying it")
        await engine.try_out()
        watching = trio.CancelScope()
        trio.lowlevel.spawn_system_task(engine.watch, watching)
        try:
            tell("ready")
            yield engine
        finally:
            watching.cancel()
            with trio.CancelScope(shield=True):
                await engine.aclose()


def local_url(url: str) -> str:
    """`url` without `/v1`, if it names this machine. Raises `ConfigError`."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
        is_plain = parts.scheme == "http" and port != 0 and not (parts.query or parts.fragment or parts.username)
    except ValueError:  # no address, or a port or bracket that is none
        is_local = is_plain = False
    if not (is_local and is_plain):
        raise ConfigError(
            f"the inference server must be on this machine: {url[:100]!a}",
            advice="Write http://127.0.0.1:PORT. Prompts must not leave the machine whose evidence the client checked.",
        )
    return f"http://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def _key_text(key: Secret) -> str:
    """As a header takes it. Raises `ConfigError`, without the key."""
    data = key.reveal()
    if not data or any(not 0x21 <= byte <= 0x7E for byte in data):
        raise ConfigError(
            "the inference server's key is empty, or has characters that no header takes",
            advice="The key's file must hold one line of printable ASCII and nothing else.",
        )
    return data.decode("ascii")


def _tokenizer(folder: HfFolder) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError("counting tokens needs the package tokenizers", advice=INSTALL) from error
    try:
        return tokenizers.Tokenizer.from_file(str(folder.path / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception for a file that it cannot read
        raise ModelFileError(f"the tokenizer of {folder.name} cannot be read: {str(error)[:200]}") from error


async def _served(client: httpx.AsyncClient, wanted: str | None) -> tuple[str, int]:
    """(name of the model at the server, its context or 0)."""
    listed = await _json(client, "GET", "/v1/models", None)
    models = [one for one in listed.get("data", ()) if isinstance(one, dict) and isinstance(one.get("id"), str)]
    chosen = [one for one in models if wanted in (None, one["id"])]
    if len(chosen) != 1:
        names = ", ".join(one["id"][:80] for one in models[:10]) or "none"
        raise ConfigError(
            "the server serves several models" if chosen else f"the server does not serve {wanted or 'any model'}",
            advice=f"Choose one with its name there: {names}",
        )
    length = chosen[0].get("max_model_len")
    return chosen[0]["id"], length if isinstance(length, int) and length > 0 else 0


async def _json(client: httpx.AsyncClient, method: str, path: str, body: Any) -> dict[str, Any]:
    try:
        async with client.stream(method, path, json=body) as response:
            data = await _whole(response)
            if response.status_code != 200:
                raise _refusal(response.status_code, data)
    except httpx.HTTPError as error:
        raise _unreachable(client, error) from error
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise EngineError(f"the inference server does not answer {path} as OpenAI's interface has it")
    return value


async def _whole(response: httpx.Response) -> bytes:
    data = b""
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > ANSWER_BYTES_MAX:
            raise EngineError("the inference server sends more than it should")
    return data


def _unreachable(client: httpx.AsyncClient, error: httpx.HTTPError) -> EngineError:
    return EngineError(
        f"the inference server at {client.base_url} does not answer ({type(error).__name__})",
        retryable=True,
        advice="Is it running? Look at its own log.",
    )


def _refusal(status: int, data: bytes) -> EngineError | InvalidRequest:
    """What an error answer means. The server's words may quote the prompt: they go to the user, never to the log."""
    said = ""
    try:
        value = json.loads(data)
        inner = value.get("error", value) if isinstance(value, dict) else value
        said = str(inner.get("message", inner.get("detail", ""))) if isinstance(inner, dict) else str(inner)
    except (ValueError, RecursionError):
        pass
    if status in (400, 413, 422):
        too_long = "context" in said.lower() or "maximum" in said.lower()
        return InvalidRequest(
            f"the engine refuses the request: {said[:200]}", kind="context_length_exceeded" if too_long else None
        )
    if status in (401, 403):
        return EngineError("the inference server wants another key", advice="Give its key to the provider.")
    return EngineError(f"the inference server answers with status {status}", retryable=status in (429, 500, 502, 503))


class UpstreamEngine:
    """A server beside us; made by `open_upstream_engine`. See the `Engine` port."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        folder: HfFolder,
        tokenizer: Any,
        *,
        model: str,
        slots: int,
        context_tokens: int,
    ) -> None:
        self._client = client
        self._template = ChatTemplate(folder)
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._control = frozenset(number for number, token in added.items() if token.special)
        self._model = model
        self._gives_ids = False
        self._constrains = False
        self._free = trio.Semaphore(slots, max_value=slots)
        self._slots = slots
        self._context = context_tokens
        self._running = 0
        self._queued = 0
        self._prepared = PreparedPrompts()
        self._closed = False
        self._down: EngineError | None = None
        self._version = "1"

    def __repr__(self) -> str:
        return f"UpstreamEngine({str(self._client.base_url)!r}, slots={self._slots})"

    @property
    def info(self) -> EngineInfo:
        """What is served. The server's own version is not known; ours stands in the digest."""
        return EngineInfo(
            name=NAME,
            version=self._version,
            engine_digest=hashlib.sha256(f"cocoon/engine/v1\0{NAME}\0{self._version}".encode()).digest(),
            context_tokens_max=self._context,
            slots=self._slots,
            vocabulary_size=int(self._tokenizer.get_vocab_size()),
            features=Feature.COMPLETIONS | Feature.JSON_SCHEMA if self._constrains else Feature.COMPLETIONS,
        )

    def load(self) -> EngineLoad:
        """Requests running and waiting here; what others ask of the server is not known."""
        return EngineLoad(running=self._running, queued=self._queued)

    async def try_out(self) -> None:
        """One token, to see that it takes ids, whether it returns them, and whether it keeps to a schema."""
        prompt = self._encode("Hello") or [0]
        body = {"model": self._model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "return_token_ids": True}
        answer = await _json(self._client, "POST", "/v1/completions", body)
        self._gives_ids = _is_ids(_choice(answer).get("token_ids"))
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        form = {"type": "json_schema", "json_schema": {"name": "probe", "schema": schema}}
        try:
            answer = await _json(
                self._client, "POST", "/v1/completions", body | {"max_tokens": 32, "response_format": form}
            )
            self._constrains = isinstance(json.loads(str(_choice(answer).get("text"))).get("a"), int)
        except (InvalidRequest, EngineError, ValueError, AttributeError):
            self._constrains = False

    async def watch(self, scope: trio.CancelScope) -> None:
        """Asks every few seconds whether the server lives, until `scope` is cancelled."""
        with scope:
            while True:
                await trio.sleep(HEALTH_EVERY_S)
                try:
                    with trio.fail_after(HEALTH_EVERY_S):
                        await _json(self._client, "GET", "/v1/models", None)
                except (EngineError, InvalidRequest, trio.TooSlowError) as error:
                    if self._down is None:
                        _log.warning("the inference server does not answer (%s)", type(error).__name__)
                    self._down = EngineError("the inference server does not answer", retryable=True)
                else:
                    self._down = None

    async def count_prompt_tokens(self, request: GenerationRequest) -> int:
        """Tokens of the prompt under the model's own template and tokenizer. Raises `InvalidRequest`."""
        await trio.lowlevel.checkpoint()
        prompt = self._prompt(request)
        self._prepared.keep(request, prompt)
        return len(prompt)

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
        """Run it; see the port. Raises `InvalidRequest`, `EngineError`."""
        return self._generate(request)

    @asynccontextmanager
    async def _generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        wanted = fields.asked(request, None, self.info.vocabulary_size)
        if wanted.top_logprobs is not None:
            raise InvalidRequest("this engine gives no log-probabilities", param="logprobs")
        if wanted.rules and not self._constrains:
            raise InvalidRequest("this engine cannot hold answers to a schema", param="response_format")
        prompt = self._prepared.take(request)
        if prompt is None:
            prompt = self._prompt(request)
        room = prompts.room_after(prompt, request, self._context)
        if self._closed:
            raise EngineError("the engine is closed")
        if self._down is not None:
            raise self._down
        if self._queued >= QUEUED_MAX:
            raise EngineError(f"{QUEUED_MAX} requests are waiting already", retryable=True)
        body = self._body(request, wanted, prompt, room)
        await self._take_slot()
        try:
            async with self._client.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != 200:
                    raise _refusal(response.status_code, await _whole(response))
                stream = _Stream(self, response, wanted, prompt_tokens=len(prompt), tokens_max=body["max_tokens"])
                trio.lowlevel.spawn_system_task(stream.read)
                try:
                    yield stream
                finally:
                    with trio.CancelScope(shield=True):
                        await stream.leave()
        except httpx.HTTPError as error:
            raise _unreachable(self._client, error) from error
        finally:
            self._running -= 1
            self._free.release()

    async def _take_slot(self) -> None:
        self._queued += 1
        try:
            await self._free.acquire()
        finally:
            self._queued -= 1
        self._running += 1

    def _body(self, request: GenerationRequest, wanted: Asked, prompt: list[int], room: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": min(wanted.max_tokens, room),
            "temperature": wanted.temperature,
            "top_p": wanted.top_p,
            "frequency_penalty": wanted.frequency_penalty,
            "presence_penalty": wanted.presence_penalty,
            "stream": True,
            "stream_options": {"include_usage": True},
            "cache_salt": secrets.token_urlsafe(16),  # vLLM: KV is shared under one salt only
            "cache_prompt": False,  # llama-server
        }
        if wanted.seed is not None:
            body["seed"] = wanted.seed & 0x7FFFFFFF
        if wanted.biases:
            body["logit_bias"] = {str(token): bias for token, bias in wanted.biases}
        if wanted.rules:
            body["response_format"] = request.body["response_format"]
        if self._gives_ids:
            body["return_token_ids"] = True
        return body

    def _prompt(self, request: GenerationRequest) -> list[int]:
        return self._own_prompt(request) + fields.kept_beginning(request.continued, self._word)

    def _word(self, token_id: int) -> bytes | None:
        if token_id >= int(self._tokenizer.get_vocab_size()) or token_id in self._control:
            return None
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text.encode()

    def _own_prompt(self, request: GenerationRequest) -> list[int]:
        if request.endpoint == "chat.completions":
            if request.body.get("tools") and request.body.get("tool_choice", "auto") != "none":
                raise InvalidRequest("this engine calls no tools", param="tools", kind="unsupported_parameter")
            return self._encode(self._template.render(fields.chat_body(request)))
        given = request.body.get("prompt")
        if isinstance(given, str) and given:
            return self._encode(given)
        return prompts.given_ids(given, int(self._tokenizer.get_vocab_size()))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    async def aclose(self) -> None:
        """Take nothing more; streams still open get `EngineError`."""
        self._closed = True
        await trio.lowlevel.checkpoint()


class _Stream:
    """One answer of the server, event by event."""

    def __init__(
        self, engine: UpstreamEngine, response: httpx.Response, wanted: Asked, *, prompt_tokens: int, tokens_max: int
    ) -> None:
        self._engine = engine
        self._response = response
        self._prompt_tokens = prompt_tokens
        self._tokens_max = tokens_max
        self._stops = StopWords(wanted.stop)
        self._kept: list[str] | None = [] if wanted.json_answer and not wanted.stop else None
        self._arrived: list[bytes] = []  # bounded: an answer has at most max_tokens events
        self._is_whole = False
        self._error: httpx.HTTPError | None = None
        self._bell = trio.Event()
        self._reading = trio.CancelScope()
        self._read = trio.Event()
        self._rest = b""  # of a line
        self._held = ""  # text whose tokens are not certain
        self._given = 0
        self._reason: FinishReason | None = None
        self._theirs: int | None = None
        self._over = False

    def __aiter__(self) -> _Stream:
        return self

    async def read(self) -> None:
        """Takes what the server sends, however slow our reader is, until `leave`. Never raises."""
        size = 0
        try:
            with self._reading:
                async for piece in self._response.aiter_bytes():
                    size += len(piece)
                    self._arrived.append(piece)
                    self._bell.set()
                    if size > STREAM_BYTES_MAX:
                        self._error = httpx.ReadError("too long")
                        break
        except httpx.HTTPError as error:
            self._error = error
        finally:
            self._is_whole = True
            self._bell.set()
            self._read.set()

    async def leave(self) -> None:
        """Nobody reads it any more. The server stops when the connection closes."""
        self._over = True
        self._reading.cancel()
        await self._read.wait()

    async def __anext__(self) -> EngineEvent:
        if self._over:
            raise StopAsyncIteration
        while not self._stops.hit:
            if self._engine._closed:
                self._over = True
                raise EngineError("the engine was closed")
            if not self._arrived:
                if self._is_whole:
                    break
                self._bell = trio.Event()
                await self._bell.wait()
                continue
            piece, self._arrived = b"".join(self._arrived), []
            await trio.lowlevel.checkpoint()
            delta = self._take(piece)
            if delta is not None:
                return delta
        if self._error is not None and not self._stops.hit:
            self._over = True
            raise EngineError(f"the inference server broke off ({type(self._error).__name__})", retryable=True)
        return self._end()

    def _end(self) -> EngineEvent:
        if self._held or (self._reason is not None and not self._stops.hit and self._stops.pending):
            return self._flush()
        self._over = True
        if self._reason is None:
            raise EngineError("the inference server ended without a reason", retryable=True)
        if self._theirs is not None and not self._stops.hit and self._given > COUNTS_DIFFER * self._theirs + 8:
            _log.warning("the server counts %d tokens where we count %d", self._theirs, self._given)
        if self._kept is not None and self._reason is FinishReason.STOP:
            try:
                json.loads("".join(self._kept))
            except ValueError:
                raise EngineError("the model left the JSON grammar; the answer cannot be used") from None
        return Finished(
            finish_reason=self._reason,
            usage=Usage(prompt_tokens=self._prompt_tokens, completion_tokens=self._given),
        )

    def _flush(self) -> Delta:
        """The last text, which nothing can change any more."""
        ids = tuple(self._engine._encode(self._held)) if self._held else ()
        text = self._stops.feed(self._held) + self._stops.finish()
        self._held = ""
        return self._delta(text, ids)

    def _take(self, piece: bytes) -> Delta | None:
        """All whole events in `piece`, as one delta."""
        text: list[str] = []
        ids: list[int] = []
        for event in self._events(piece):
            if isinstance(event.get("usage"), dict):
                count = event["usage"].get("completion_tokens")
                self._theirs = count if isinstance(count, int) else None
            if not event.get("choices"):
                continue
            choice = _choice(event)
            new = choice.get("text")
            if isinstance(new, str):
                text.append(new)
            if self._engine._gives_ids and _is_ids(choice.get("token_ids")):
                ids.extend(choice["token_ids"])
            if choice.get("finish_reason") in _BROKEN_OFF:
                raise EngineError("the inference server gave an answer up", retryable=True)
            if isinstance(choice.get("finish_reason"), str):
                self._reason = FinishReason.LENGTH if choice["finish_reason"] == "length" else FinishReason.STOP
        fresh = "".join(text)
        if not self._engine._gives_ids:
            self._held += fresh
            cut = _certain(self._held)
            fresh, self._held = self._held[:cut], self._held[cut:]
            ids = self._engine._encode(fresh) if fresh else []
        shown = self._stops.feed(fresh)
        if self._stops.hit:
            self._reason, self._held = FinishReason.STOP, ""
        return self._delta(shown, tuple(ids)) if shown or ids else None

    def _delta(self, text: str, ids: tuple[int, ...]) -> Delta:
        # The model may have written more or fewer tokens than the text has; nobody pays for more than were asked for.
        ids = ids[: self._tokens_max - self._given]
        self._given += len(ids)
        if self._kept is not None:
            self._kept.append(text)
        return Delta(text=text, token_ids=ids)

    def _events(self, piece: bytes) -> Iterator[dict[str, Any]]:
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > LINE_BYTES_MAX:
            raise EngineError("the inference server sends a line without an end")
        for line in lines:
            name, _, value = line.strip().partition(b":")
            data = value.strip()
            if name != b"data" or data == b"[DONE]":
                continue
            try:
                event = json.loads(data)
            except (ValueError, RecursionError) as error:
                raise EngineError("the inference server sent an event that cannot be read") from error
            if not isinstance(event, dict):
                raise EngineError("the inference server sent an event that is no object")
            if event.get("error"):
                raise EngineError("the inference server failed in the middle of an answer", retryable=True)
            yield event


def _certain(text: str) -> int:
    """How much of the text can be tokenised without regard to what follows: up to the last word."""
    at = len(text.rstrip())
    while at > 0 and not text[at - 1].isspace():
        at -= 1
    cut = len(text[:at].rstrip())  # the space belongs to the word behind it, as tokenizers have it
    return len(text) if cut == 0 and len(text) > HELD_CHARS_MAX else cut


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise EngineError("the inference server answers without a choice")
    return choices[0]


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 1 << 32 for one in value)
