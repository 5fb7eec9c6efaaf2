"""llama.cpp's own server, in this process, through `xllamacpp`, with its open doors shut.

What the library does by itself, and what is done about it here:

- It always opens an HTTP listener, without a key, on a random loopback port. Here the listener is a Unix socket in a
  directory of mode 0700, and asks for a random key. It is used for two things that the in-process interface lacks:
  the model's chat template and its tokenizer (`Control`).
- It logs prompts at its usual verbosity, and can report them over `/slots` and `/props`. All of that is off.
- It shares KV prefixes between any two requests, in its slots and in a prompt cache in memory. The memory cache is
  off, and slots are chosen by `llamacpp.py`, which reuses one only for the same cache tag (rule S7).
- A model file it cannot read ends in one unhelpful sentence on stderr; files are checked before, by
  `cocoon.adapters.gguf`.

Nothing here knows about requests.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h11
import trio

from ...errors import ConfigError, EngineError, InvalidRequest, ModelFileError

XLLAMACPP: Final = "2026.10.11549"
INSTALL: Final = (
    f"Install it with: uv pip install 'xllamacpp=={XLLAMACPP}'   (or: pip install 'cocoon-network[provider]')"
)

BATCH_TOKENS: Final = 512  # a prompt is read in pieces this long; a cancelled request leaves after the piece at hand
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024  # a token id takes up to 8 bytes of JSON; contexts go to millions
CONTROL_TIMEOUT_S: Final = 30.0  # template and tokenizer answer in milliseconds; a minute means it is stuck


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What `start` needs to know."""

    path: Path
    slots: int
    context_tokens: int  # per slot
    threads: int
    gpu_layers: int = 0


class Server:
    """The loaded model: `complete` runs one generation, `control` asks about templates and tokens."""

    def __init__(self, native: Any, folder: Path, key: str) -> None:
        self._native = native
        self._folder = folder
        self.control = Control(folder / "control.sock", key)

    def complete(self, body: bytes, callback: Any) -> None:
        """Run a completion in the calling thread; `callback(bytes)` gets each event and cancels by a true value.

        The callback must not raise: the library would swallow it.
        """
        self._native.handle_completions(body, callback)

    def close(self) -> None:
        """Free the model and remove the socket. Blocks; no `complete` may be running."""
        self._native = None  # its destructor joins the server's thread
        shutil.rmtree(self._folder, ignore_errors=True)


def load_library() -> Any:
    """The `xllamacpp` module, or a `ConfigError` that says how to get it."""
    try:
        import xllamacpp
    except ImportError as error:
        raise ConfigError("the CPU engine (xllamacpp) is not installed", advice=INSTALL) from error
    return xllamacpp


def library_version() -> str:
    """Version of the installed library."""
    return str(load_library().__version__)


def start(options: ServerOptions) -> Server:
    """Load the model; blocks for as long as that takes. Raises `ConfigError`, `ModelFileError`, `EngineError`."""
    library = load_library()
    # mkdtemp makes it 0700. The path must stay short: a Unix socket's name holds about 100 bytes.
    folder = Path(tempfile.mkdtemp(prefix="cocoon-"))
    key = secrets.token_urlsafe(32)
    try:
        native = library.Server(_parameters(library, options, folder, key))
    except RuntimeError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ModelFileError(
            f"llama.cpp {XLLAMACPP} cannot load {options.path}",
            advice="The file is well formed, so either its architecture is newer than this llama.cpp, "
            "or there is not enough memory: try a smaller context or a smaller quantisation.",
        ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    server = Server(native, folder, key)
    _first_token(server, options)
    return server


def _first_token(server: Server, options: ServerOptions) -> None:
    """One token for nobody: shows that the model decodes, and that the server's loop has begun.

    A server that is destroyed before its loop begins waits for that loop for ever.
    """
    events: list[bytes] = []
    body = b'{"prompt":[0],"n_predict":1,"cache_prompt":false,"stream":false}'
    server.complete(body, events.append)
    if not events or b'"error"' in events[0]:
        server.close()
        raise ModelFileError(f"llama.cpp {XLLAMACPP} loads {options.path}, but cannot run it")


def _parameters(library: Any, options: ServerOptions, folder: Path, key: str) -> Any:
    p = library.CommonParams()
    p.model.path = os.fspath(options.path)
    p.model_alias = {"m"}  # otherwise every event repeats the path
    p.n_parallel = options.slots
    p.n_ctx = options.slots * options.context_tokens
    p.n_batch = max(BATCH_TOKENS, options.slots)
    p.n_ubatch = BATCH_TOKENS
    p.n_gpu_layers = options.gpu_layers
    p.cpuparams.n_threads = options.threads
    p.cpuparams_batch.n_threads = options.threads
    p.fit_params = False  # never shrink the context behind our back
    p.warmup = False
    p.use_jinja = True
    p.reasoning_format = library.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    # Doors and windows. A name that ends in .sock makes the listener a Unix socket.
    p.hostnames = [os.fspath(folder / "control.sock")]
    p.api_keys = [key]
    p.ui = False
    p.endpoint_slots = False
    p.endpoint_props = False
    p.endpoint_metrics = False
    p.n_threads_http = 2
    p.verbosity = -1
    p.offline = True
    # No memory of earlier requests but what a slot holds.
    p.cache_prompt = False
    p.cache_ram_mib = 0
    p.cache_idle_slots = False
    p.slot_prompt_similarity = 0.0
    p.n_cache_reuse = 0
    p.kv_unified = False
    p.sse_ping_interval = -1
    return p


class Control:
    """Questions to the server over its Unix socket. One short connection each: they cost 0.3 ms."""

    def __init__(self, socket_path: Path, key: str) -> None:
        self._path = os.fspath(socket_path)
        self._key = key

    def __repr__(self) -> str:
        return "Control()"

    async def render(self, body: dict[str, Any]) -> str:
        """The prompt text for OpenAI-style `messages` and `tools`, under the model's own chat template."""
        answer = await self._post("/apply-template", body, param="messages")
        prompt = answer.get("prompt")
        if not isinstance(prompt, str):
            raise EngineError("llama.cpp gave no prompt for the messages")
        return prompt

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of `text` with special tokens parsed, and the start token added if the model wants one."""
        answer = await self._post(
            "/tokenize", {"content": text, "add_special": True, "parse_special": True}, param=None
        )
        tokens = answer.get("tokens")
        if not isinstance(tokens, list):
            raise EngineError("llama.cpp gave no tokens for the prompt")
        return tokens

    async def _post(self, path: str, body: dict[str, Any], *, param: str | None) -> dict[str, Any]:
        try:
            with trio.fail_after(CONTROL_TIMEOUT_S):
                status, content = await self._exchange(path, json.dumps(body).encode())
        except (OSError, trio.BrokenResourceError, h11.RemoteProtocolError, trio.TooSlowError) as error:
            raise EngineError(f"llama.cpp does not answer on its socket: {type(error).__name__}") from error
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise EngineError(f"llama.cpp answered {path} with status {status} and no JSON") from error
        if status == 400:
            raise InvalidRequest(error_text(answer), param=param)
        if status == 500 and path == "/apply-template":
            # Templates raise for what they do not support: roles out of order, two system messages.
            raise InvalidRequest(f"the model's chat template refuses this: {error_text(answer)}", param=param)
        if status != 200 or not isinstance(answer, dict):
            raise EngineError(f"llama.cpp answered {path} with status {status}")
        return answer

    async def _exchange(self, path: str, content: bytes) -> tuple[int, bytes]:
        machine = h11.Connection(h11.CLIENT)
        stream = await trio.open_unix_socket(self._path)
        async with stream:
            headers = [
                ("Host", "localhost"),
                ("Authorization", f"Bearer {self._key}"),
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(content))),
                ("Connection", "close"),
            ]
            head = machine.send(h11.Request(method="POST", target=path, headers=headers))
            await stream.send_all((head or b"") + (machine.send(h11.Data(data=content)) or b""))
            machine.send(h11.EndOfMessage())
            status, parts, size = 0, [], 0
            while True:
                event = machine.next_event()
                if event is h11.NEED_DATA:
                    machine.receive_data(await stream.receive_some(65536))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    size += len(event.data)
                    if size > ANSWER_BYTES_MAX:
                        raise EngineError("llama.cpp's answer is too long")
                    parts.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    return status, b"".join(parts)


def error_text(answer: Any) -> str:
    """llama.cpp's own words for an error, cut short. It quotes fields and limits, never prompt text."""
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message[:300] if isinstance(message, str) else "llama.cpp refused the request"
