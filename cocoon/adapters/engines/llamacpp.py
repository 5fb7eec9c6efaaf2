"""The `Engine` port over llama.cpp, in this process (`llamacpp_server`), on CPU or whatever the build supports.

One Python thread per slot waits inside llama.cpp, which decodes all running requests in one batch. A request takes a
free slot or waits its turn here, never inside llama.cpp, so that a waiting one can be cancelled. Events cross to trio
through one queue, and trio is woken at most once per `WAKE_GAP_S` however many tokens arrive; the first token of a
request always wakes it at once.

KV reuse (rule S7): llama.cpp reuses what it finds in a slot when told to. The slot is named here for each request, and
told to only if the slot's last request had the same non-empty cache tag. Nothing else is shared: an earlier prompt
shows neither in counts nor in times, except to its own tag.

Cancelling: the slot is free after the token at hand, or the piece of prompt at hand (512 tokens).
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from ...errors import EngineError, InvalidRequest
from ...ports.engine import EngineEvent, EngineInfo, EngineLoad, Finished, GenerationRequest
from ...types import Feature, FinishReason
from ..gguf import ModelHead, read_head
from . import llamacpp_server, prompts, tool_calls
from .fields import chat_body, kept_beginning
from .llamacpp_request import Plan, plan
from .llamacpp_server import Server, ServerOptions
from .llamacpp_stream import MissingTokens, Translator
from .prompts import PreparedPrompts, checked_slots, context_of

NAME: Final = "llama.cpp"
WAKE_GAP_S: Final = 0.002  # 500 wakes a second at most; two milliseconds are invisible next to a 20 ms frame
SLOTS_MAX: Final = 64  # one thread each
QUEUED_MAX: Final = 256  # requests waiting for a slot; admission is the provider's business, this is a backstop
CLOSE_TIMEOUT_S: Final = 60.0  # for the piece of prompt at hand on a large model and a slow machine
CONTEXT_TOKENS: Final = 4_096  # per slot, unless told otherwise or trained for less
SMALL_MODEL_BYTES: Final = 64 * 1024 * 1024  # below this, more threads than one only wait for one another
_BLOCK_TOKENS: Final = 256  # llama.cpp rounds contexts up to this

Progress = Callable[[str], None]

# llguidance keeps one tokenizer per process, and llama.cpp replaces it without a lock when another model asks: the
# start of constrained requests is serialised over all engines of this process.
_CONSTRAINED_START: Final = threading.Lock()


@asynccontextmanager
async def open_llamacpp_engine(
    path: Path | str,
    *,
    slots: int = 4,
    context_tokens: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> AsyncIterator[LlamaCppEngine]:
    """Load a GGUF file and serve it until the block is left.

    `context_tokens` is per request; `progress` gets a word at each stage. Raises `ModelFileError` (missing, damaged,
    not loadable), `ConfigError` (xllamacpp not installed, numbers out of range).
    """
    tell = progress or (lambda _: None)
    checked_slots(slots, SLOTS_MAX)
    llamacpp_server.load_library()
    tell("checking the file")
    head = await trio.to_thread.run_sync(read_head, Path(path))
    context = context_of(head.path.name, trained=head.context_tokens, wanted=context_tokens, unless_told=CONTEXT_TOKENS)
    options = ServerOptions(
        path=head.path,
        slots=slots,
        context_tokens=-(-context // _BLOCK_TOKENS) * _BLOCK_TOKENS,
        threads=threads or (1 if head.size < SMALL_MODEL_BYTES else os.cpu_count() or 1),
    )
    tell("loading")
    server = await trio.to_thread.run_sync(llamacpp_server.start, options)
    engine = LlamaCppEngine(server, head, slots=slots, context_tokens=context)
    # A system task, not a nursery's: what the caller raises inside the block leaves it as it is, in no group.
    pumping = trio.CancelScope()
    trio.lowlevel.spawn_system_task(engine.pump, pumping)
    try:
        tell("ready")
        yield engine
    finally:
        with trio.CancelScope(shield=True):
            await engine.aclose()
        pumping.cancel()


@dataclass(slots=True)
class _Slot:
    """One of llama.cpp's slots, and the thread that waits in it."""

    index: int
    inbox: queue.SimpleQueue[_Job | None]  # at most one job, and the final None
    tag: bytes = b""  # whose KV it holds
    used: int = 0  # when it was last given out


class _Job:
    """One request on its way. Fields below the line are written by trio only, `cancelled` is read by its thread."""

    __slots__ = ("bell", "body", "cancelled", "constrained", "done", "ended", "error", "events", "fresh", "slot", "tag")

    def __init__(self, tag: bytes, *, constrained: bool) -> None:
        self.body: dict[str, object] = {}
        self.tag = tag
        self.constrained = constrained
        self.fresh = True  # no token yet
        self.cancelled = False
        self.events: list[bytes] = []  # bounded by max_tokens: one per token that nobody has read yet
        self.ended = False
        self.error: Exception | None = None
        self.bell: trio.Event | None = None
        self.slot: _Slot | None = None
        self.done = False

    def ring(self) -> None:
        if self.bell is not None:
            self.bell.set()


class LlamaCppEngine:
    """A loaded model. Made by `open_llamacpp_engine`; see the `Engine` port."""

    def __init__(self, server: Server, head: ModelHead, *, slots: int, context_tokens: int) -> None:
        self._server = server
        self._head = head
        self._form = tool_calls.detect(head.chat_template)
        self._missing = MissingTokens(head.vocabulary)
        version = llamacpp_server.library_version()
        features = Feature.JSON_SCHEMA | Feature.LOGPROBS | Feature.COMPLETIONS
        self._info = EngineInfo(
            name=NAME,
            version=version,
            engine_digest=hashlib.sha256(b"cocoon/engine/v1\0" + f"{NAME}\0{version}".encode()).digest(),
            context_tokens_max=context_tokens,
            slots=slots,
            vocabulary_size=len(head.vocabulary.tokens),
            features=features | Feature.TOOLS if self._form is not None else features,
        )
        self._trio = trio.lowlevel.current_trio_token()
        self._arrived: deque[tuple[_Job, bytes | Exception | None]] = deque()
        self._parked = False
        self._bell = trio.Event()
        self._slots = [_Slot(index, queue.SimpleQueue()) for index in range(slots)]
        self._free = list(self._slots)
        self._waiting: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._turn = 0
        self._closing = False
        self._idle = trio.Event()
        self._prepared = PreparedPrompts()
        self._threads = [
            threading.Thread(target=self._work, args=(slot,), name=f"llama.cpp slot {slot.index}", daemon=True)
            for slot in self._slots
        ]
        for thread in self._threads:
            thread.start()

    def __repr__(self) -> str:
        return f"LlamaCppEngine({self._head.path.name!r}, slots={len(self._slots)})"

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self._info

    @property
    def head(self) -> ModelHead:
        """What the file says about itself."""
        return self._head

    def load(self) -> EngineLoad:
        """Requests running and waiting now. A cancelled one runs until its slot is free."""
        return EngineLoad(running=len(self._running), queued=len(self._waiting))

    async def count_prompt_tokens(self, request: GenerationRequest) -> int:
        """Tokens of the prompt under the model's own chat template. Raises `InvalidRequest`, `EngineError`."""
        prompt = await self._prompt(request)
        self._prepared.keep(request, prompt)
        return len(prompt)

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
        """Run it; see the port. Raises `InvalidRequest`, `EngineError`."""
        return self._generate(request)

    @asynccontextmanager
    async def _generate(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        todo = plan(request, self._form, self._info.vocabulary_size)
        prompt = self._prepared.take(request)
        if prompt is None:
            prompt = await self._prompt(request)
        room = prompts.room_after(prompt, request, self._info.context_tokens_max)
        job = _Job(request.cache_tag, constrained=todo.constrained)
        job.body = {**todo.native, "n_predict": min(todo.native["n_predict"], room), "prompt": prompt}
        translator = Translator(
            self._head.vocabulary,
            self._missing,
            prompt_tokens=len(prompt),
            top_logprobs=todo.top_logprobs,
            reader=tool_calls.ToolCallReader(todo.tools) if todo.tools is not None else None,
            keep_text=todo.json_answer,
        )
        self._submit(job)
        try:
            yield _Stream(job, translator, todo)
        finally:
            self._cancel(job)

    async def _prompt(self, request: GenerationRequest) -> list[int]:
        if self._closing:
            raise EngineError("the engine is closed")
        return await self._own_prompt(request) + kept_beginning(request.continued, self._head.vocabulary.word)

    async def _own_prompt(self, request: GenerationRequest) -> list[int]:
        if request.endpoint == "chat.completions":
            body = chat_body(request)
            if "tools" in body and self._form is None:
                plan(request, self._form, self._info.vocabulary_size)  # says what is wrong
            return await self._server.control.tokenize(await self._server.control.render(body))
        given = request.body.get("prompt")
        if isinstance(given, str):
            return await self._server.control.tokenize(given)
        return prompts.given_ids(given, self._info.vocabulary_size)

    # --- slots ---------------------------------------------------------------------------------------------

    def _submit(self, job: _Job) -> None:
        if self._closing:
            raise EngineError("the engine is closed")
        if not job.body["prompt"]:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if self._free:
            self._start(job)
        elif len(self._waiting) < QUEUED_MAX:
            self._waiting.append(job)
        else:
            raise EngineError(f"{QUEUED_MAX} requests are waiting already", retryable=True)

    def _start(self, job: _Job) -> None:
        """Give the job a slot: its tag's own if that is free, else the one unused for longest."""
        own = [slot for slot in self._free if job.tag and slot.tag == job.tag]
        slot = (
            max(own, key=lambda one: one.used) if own else min(self._free, key=lambda one: (one.tag != b"", one.used))
        )
        self._free.remove(slot)
        self._turn += 1
        slot.tag, slot.used = job.tag, self._turn
        job.slot = slot
        job.body |= {"id_slot": slot.index, "cache_prompt": bool(own)}
        self._running.add(job)
        slot.inbox.put(job)

    def _cancel(self, job: _Job) -> None:
        job.cancelled = True
        job.events.clear()
        if job.slot is None and job in self._waiting:
            self._waiting.remove(job)

    def _release(self, job: _Job) -> None:
        """Its thread has come back."""
        assert job.slot is not None
        self._running.discard(job)
        self._free.append(job.slot)
        if job.cancelled:
            job.slot.tag = b""  # what it holds is cut anywhere; start clean
        if self._waiting and not self._closing:
            self._start(self._waiting.popleft())
        if not self._running:
            self._idle.set()

    # --- threads -------------------------------------------------------------------------------------------

    def _work(self, slot: _Slot) -> None:
        """A slot's thread: one request after another, until None."""
        while (job := slot.inbox.get()) is not None:
            outcome: Exception | None = None
            try:
                self._run(job)
            except Exception as error:  # whatever llama.cpp throws belongs to this request, not to the thread
                outcome = error
            self._arrived.append((job, outcome))
            self._wake(self._deliver)

    def _run(self, job: _Job) -> None:
        if job.cancelled:
            return
        body = json.dumps(job.body).encode()
        job.body = {}
        arrived = self._arrived
        locked = job.constrained

        def unlock() -> None:
            nonlocal locked
            if locked:
                locked = False
                _CONSTRAINED_START.release()

        def on_event(data: bytes) -> bool:
            """Runs in this thread, once per token; a true value cancels. Nothing in it raises."""
            unlock()
            if job.cancelled:
                return True
            if job.fresh:
                if b'"prompt_progress":{' in data:
                    return False
                job.fresh = False
                arrived.append((job, data))
                self._wake(self._deliver)
                return False
            arrived.append((job, data))
            if self._parked:
                self._parked = False
                self._wake(self._ring)
            return False

        if locked:
            _CONSTRAINED_START.acquire()
        try:
            self._server.complete(body, on_event)
        finally:
            unlock()

    def _wake(self, what: Callable[[], None]) -> None:
        try:
            self._trio.run_sync_soon(what, idempotent=True)
        except trio.RunFinishedError:
            pass  # the program is ending; nobody listens any more

    # --- trio's side ---------------------------------------------------------------------------------------

    def _ring(self) -> None:
        self._bell.set()

    async def pump(self, scope: trio.CancelScope) -> None:
        """Hands out events, at most one round per `WAKE_GAP_S`, until `scope` is cancelled. Never raises."""
        with scope:
            while True:
                self._parked = True
                if not self._arrived:
                    await self._bell.wait()
                self._parked = False
                self._bell = trio.Event()
                self._deliver()
                await trio.sleep(WAKE_GAP_S)

    def _deliver(self) -> None:
        rung: set[_Job] = set()
        while self._arrived:
            job, item = self._arrived.popleft()
            if isinstance(item, bytes):
                if not job.cancelled:
                    job.events.append(item)
            else:
                job.ended, job.error = True, item
                self._release(job)
            rung.add(job)
        for job in rung:
            job.ring()

    async def aclose(self) -> None:
        """Cancel everything, wait for the threads, free the memory. Requests still open get `EngineError`."""
        if self._closing:
            return
        self._closing = True
        self._prepared.clear()
        while self._waiting:
            job = self._waiting.popleft()
            job.ended, job.error = True, EngineError("the engine was closed")
            job.ring()
        for job in self._running:
            job.cancelled = True
            job.error = EngineError("the engine was closed")
        if self._running:
            self._idle = trio.Event()
            with trio.move_on_after(CLOSE_TIMEOUT_S):
                await self._idle.wait()
        for slot in self._slots:
            slot.inbox.put(None)
        if self._running:
            raise EngineError("llama.cpp does not stop; its memory stays in use until this process ends")
        await trio.to_thread.run_sync(self._end)

    def _end(self) -> None:
        for thread in self._threads:
            thread.join(CLOSE_TIMEOUT_S)
        self._server.close()


class _Stream:
    """The events of one job."""

    def __init__(self, job: _Job, translator: Translator, todo: Plan) -> None:
        self._job = job
        self._translator = translator
        self._plan = todo
        self._finished: Finished | None = None

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> EngineEvent:
        job = self._job
        if job.done:
            raise StopAsyncIteration
        if self._finished is not None:
            return self._last(self._finished)
        while True:
            while not job.events and not job.ended:
                job.bell = trio.Event()
                await job.bell.wait()
            if not job.events:
                job.done = True
                raise _failure(job.error)
            events, job.events = job.events, []
            await trio.lowlevel.checkpoint()
            try:
                delta, self._finished = self._translator.translate(events)
            except Exception:
                job.done = True
                raise
            if delta is not None:
                return delta
            if self._finished is not None:
                return self._last(self._finished)

    def _last(self, finished: Finished) -> Finished:
        self._job.done = True
        if self._plan.json_answer and finished.finish_reason is FinishReason.STOP and "stop" not in self._plan.native:
            try:
                json.loads(self._translator.text)
            except ValueError:
                raise EngineError("the model left the JSON grammar; the answer cannot be used") from None
        return finished


def _failure(error: Exception | None) -> Exception:
    if isinstance(error, EngineError):
        return error
    if isinstance(error, ValueError):
        return InvalidRequest(f"llama.cpp refuses the request: {str(error)[:200]}")
    return EngineError("llama.cpp stopped without finishing the answer")
