"""The `Engine` port over ExLlama's generators, version 2 or 3: what both have in common.

One thread owns the generator. It starts what has arrived (at most one job per step, see `exllama_pages`), lets every
running job make its next token (`Backend.step`), and hands the results to trio through one queue; without work it
sleeps. Requests beyond the slots wait here, where they can be cancelled.

Stop words are cut here (`stops`), not in ExLlama, which swallows the ids of tokens whose text it holds back: so the
ids that were given out are exactly those that are billed. The end token itself is neither shown nor billed.

The libraries need CUDA and are imported by `exllama_v2` and `exllama_v3` when a model is opened, never before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import trio

from ...errors import EngineError, InvalidRequest
from ...ports.engine import Delta, EngineEvent, EngineInfo, EngineLoad, Finished, GenerationRequest, Logprob
from ...types import Feature, FinishReason, Usage
from . import fields, prompts, tool_calls
from .fields import Asked
from .hf_folder import ChatTemplate, HfFolder
from .prompts import PreparedPrompts
from .stops import StopWords
from .tool_calls import ToolCallReader

QUEUED_MAX: Final = 256  # requests waiting for a slot; admission is the provider's business, this is a backstop
WAKE_GAP_S: Final = 0.002  # results cross to trio at most so often, first tokens at once
CLOSE_TIMEOUT_S: Final = 60.0
FAILURES_MAX: Final = 3  # steps in a row that fail: the engine is broken, and says so from then on

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one running job did in one step."""

    key: int
    text: str = field(default="", repr=False)
    ids: tuple[int, ...] = field(default=(), repr=False)
    logprobs: tuple[Logprob, ...] = field(default=(), repr=False)  # one per id, where they were asked for
    ended: FinishReason | None = None
    cached_tokens: int = 0  # of its prompt
    failed: str | None = None  # this job alone failed; the text is for the log


class Backend(Protocol):
    """One version of the library with a loaded model. Every method but `encode` belongs to the engine's thread."""

    @property
    def name(self) -> str:
        """As offers show it."""
        ...

    @property
    def version(self) -> str:
        """Of the installed library."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Token ids are below it."""
        ...

    @property
    def features(self) -> Feature:
        """What it can do, tools apart."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered prompt, control tokens included. From any thread, one at a time."""
        ...

    def word(self, token_id: int) -> bytes | None:
        """The bytes of a token that is part of texts; None for control tokens and for ids that are no token."""
        ...

    def start(self, key: int, prompt: Sequence[int], wanted: Asked, tag: bytes) -> None:
        """Begin a job named `key`. KV of other tags must not be used for it. Raises `ValueError`."""
        ...

    def step(self) -> list[Step]:
        """One token for every running job, or a piece of a prompt."""
        ...

    def cancel(self, key: int) -> None:
        """Forget a job. Unknown keys are none of its business."""
        ...

    def close(self) -> None:
        """Free the memory."""
        ...


class _Job:
    """One request. Fields are trio's, but for what the thread reads at the start of the job."""

    __slots__ = ("bell", "done", "ended", "error", "fresh", "key", "prompt", "running", "steps", "tag", "wanted")

    def __init__(self, key: int, prompt: list[int], wanted: Asked, tag: bytes) -> None:
        self.key = key
        self.prompt = prompt
        self.wanted = wanted
        self.tag = tag
        self.steps: list[Step] = []  # bounded by max_tokens
        self.fresh = True
        self.running = False
        self.ended = False
        self.done = False
        self.error: EngineError | InvalidRequest | None = None
        self.bell: trio.Event | None = None

    def ring(self) -> None:
        if self.bell is not None:
            self.bell.set()


@dataclass(frozen=True, slots=True)
class _Begin:
    job: _Job


@dataclass(frozen=True, slots=True)
class _Drop:
    key: int


class ExllamaEngine:
    """A loaded model; made by `open_exllama_engine` of `exllama_v2` and `exllama_v3`. See the `Engine` port."""

    def __init__(self, backend: Backend, folder: HfFolder, *, slots: int, context_tokens: int) -> None:
        self._backend = backend
        self._template = ChatTemplate(folder)
        self._form = tool_calls.detect(folder.template) if Feature.JSON_SCHEMA in backend.features else None
        self._info = EngineInfo(
            name=backend.name,
            version=backend.version,
            engine_digest=hashlib.sha256(f"cocoon/engine/v1\0{backend.name}\0{backend.version}".encode()).digest(),
            context_tokens_max=context_tokens,
            slots=slots,
            vocabulary_size=backend.vocabulary_size,
            features=backend.features | Feature.TOOLS if self._form is not None else backend.features,
        )
        self._label = folder.name
        self._trio = trio.lowlevel.current_trio_token()
        self._inbox: queue.SimpleQueue[_Begin | _Drop | None] = queue.SimpleQueue()
        self._arrived: deque[Step | BaseException] = deque()
        self._jobs: dict[int, _Job] = {}  # begun and not yet given back by the thread
        self._waiting: deque[_Job] = deque()
        self._keys = 0
        self._prepared = PreparedPrompts()
        self._closing = False
        self._broken = False
        self._encoding = threading.Lock()
        self._stopped = trio.Event()
        self._thread = threading.Thread(target=self._work, name=f"{backend.name} engine", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"ExllamaEngine({self._label!r}, slots={self._info.slots})"

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self._info

    def load(self) -> EngineLoad:
        """Requests running and waiting now. A cancelled one runs until the thread has dropped it."""
        return EngineLoad(running=len(self._jobs), queued=len(self._waiting))

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
        wanted = fields.asked(request, self._form, self._info.vocabulary_size)
        if wanted.rules and Feature.JSON_SCHEMA not in self._info.features:
            raise InvalidRequest(
                f"{self._info.name} cannot hold answers to a grammar",
                param="tools" if wanted.tools else "response_format",
                kind="unsupported_parameter",
            )
        prompt = self._prepared.take(request)
        if prompt is None:
            prompt = await self._prompt(request)
        room = prompts.room_after(prompt, request, self._info.context_tokens_max)
        if not prompt:
            raise InvalidRequest("the prompt is empty", param="prompt")
        wanted = replace(wanted, max_tokens=min(wanted.max_tokens, room))
        self._keys += 1
        job = _Job(self._keys, prompt, wanted, request.cache_tag)
        self._submit(job)
        try:
            yield _Stream(job)
        finally:
            self._leave(job)

    async def _prompt(self, request: GenerationRequest) -> list[int]:
        self._check_open()
        return await self._own_prompt(request) + fields.kept_beginning(request.continued, self._backend.word)

    async def _own_prompt(self, request: GenerationRequest) -> list[int]:
        if request.endpoint == "chat.completions":
            body = fields.chat_body(request)
            if "tools" in body and self._form is None:
                fields.asked(request, None, self._info.vocabulary_size)  # says what is wrong
            return await trio.to_thread.run_sync(self._encode, self._template.render(body))
        given = request.body.get("prompt")
        if isinstance(given, str):
            return await trio.to_thread.run_sync(self._encode, given)
        return prompts.given_ids(given, self._info.vocabulary_size)

    def _encode(self, text: str) -> list[int]:
        with self._encoding:
            return self._backend.encode(text)

    def _check_open(self) -> None:
        if self._closing:
            raise EngineError("the engine is closed")
        if self._broken:
            raise EngineError(f"{self._info.name} has failed {FAILURES_MAX} times in a row; restart the provider")

    # --- slots, on trio's side -----------------------------------------------------------------------------

    def _submit(self, job: _Job) -> None:
        self._check_open()
        if len(self._jobs) < self._info.slots:
            self._begin(job)
        elif len(self._waiting) < QUEUED_MAX:
            self._waiting.append(job)
        else:
            raise EngineError(f"{QUEUED_MAX} requests are waiting already", retryable=True)

    def _begin(self, job: _Job) -> None:
        job.running = True
        self._jobs[job.key] = job
        self._inbox.put(_Begin(job))

    def _leave(self, job: _Job) -> None:
        """Nobody reads it any more."""
        job.done = True
        job.steps.clear()
        if job.running:
            self._inbox.put(_Drop(job.key))  # harmless if it has ended; the thread answers in any case
        elif job in self._waiting:
            self._waiting.remove(job)

    def _deliver(self) -> None:
        rung: dict[int, _Job] = {}
        while self._arrived:
            item = self._arrived.popleft()
            if isinstance(item, BaseException):
                self._fail_all(item)
                continue
            job = self._jobs.get(item.key)
            if job is None:
                continue
            if item.failed is not None:
                _log.warning("a generation failed: %s", item.failed)
                job.error = EngineError(f"{self._info.name} failed at this request")
            elif not job.done:
                job.steps.append(item)
            if item.ended is not None or item.failed is not None:
                job.ended = True
                del self._jobs[item.key]
                self._next()
            rung[item.key] = job
        for job in rung.values():
            job.ring()

    def _next(self) -> None:
        while self._waiting and len(self._jobs) < self._info.slots and not self._closing:
            self._begin(self._waiting.popleft())

    def _fail_all(self, error: BaseException) -> None:
        """The generator threw: everything it held is lost."""
        _log.error("%s failed: %s", self._info.name, type(error).__name__)
        jobs = [*self._jobs.values()]
        if self._broken:
            jobs += self._waiting
            self._waiting.clear()
        self._jobs.clear()
        for job in jobs:
            job.ended, job.error = True, EngineError(f"{self._info.name} failed: {type(error).__name__}")
            job.ring()
        self._next()

    async def aclose(self) -> None:
        """Cancel everything, wait for the thread, free the memory. Requests still open get `EngineError`."""
        if self._closing:
            await self._stopped.wait()
            return
        self._closing = True
        for job in (*self._jobs.values(), *self._waiting):
            job.ended, job.error = True, EngineError("the engine was closed")
            job.steps.clear()
            job.ring()
        self._waiting.clear()
        self._inbox.put(None)
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True):
            await trio.to_thread.run_sync(self._thread.join)
        self._jobs.clear()
        self._stopped.set()
        if self._thread.is_alive():
            raise EngineError(f"{self._info.name} does not stop; its memory stays in use until this process ends")

    # --- the thread ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Owns the backend. Ends at the final None."""
        running: set[int] = set()
        begun: deque[_Job] = deque()
        failures = 0
        while self._listen(running, begun):
            try:
                if begun:  # one per step: `exllama_pages` says why
                    job = begun.popleft()
                    self._start(job, running)
                steps: list[Step] = []
                if running:
                    steps, failures = self._backend.step(), 0
            except Exception as error:  # a supervision boundary: whatever CUDA throws must not end the thread
                failures += 1
                for key in running:
                    self._cancel(key)
                running.clear()
                begun.clear()
                self._broken = failures >= FAILURES_MAX
                self._tell(error)
                continue
            for step in steps:
                if step.ended is not None or step.failed is not None:
                    running.discard(step.key)
            if steps:
                self._tell(*steps)
        try:
            self._backend.close()
        except Exception as error:  # the same boundary: the memory is the driver's to take back
            _log.warning("%s does not let go of its memory: %s", self._backend.name, type(error).__name__)

    def _start(self, job: _Job, running: set[int]) -> None:
        try:
            self._backend.start(job.key, job.prompt, job.wanted, job.tag)
        except Exception as error:  # the same boundary: what one request makes of the library ends that request alone
            self._cancel(job.key)
            # The kind only: a library's words about a grammar quote it, and it is a part of the prompt.
            self._tell(Step(key=job.key, failed=f"not started: {type(error).__name__}"))
        else:
            running.add(job.key)

    def _cancel(self, key: int) -> None:
        """A library that is broken may not even be able to forget; the thread goes on and says so at the next step."""
        try:
            self._backend.cancel(key)
        except Exception as error:  # the same boundary
            _log.warning("%s cannot cancel a job: %s", self._backend.name, type(error).__name__)

    def _listen(self, running: set[int], begun: deque[_Job]) -> bool:
        """Take what has arrived; wait for it if there is nothing to do. False at the end."""
        while True:
            try:
                item = self._inbox.get(block=not running and not begun)
            except queue.Empty:
                return True
            if item is None:
                for key in running:
                    self._cancel(key)
                return False
            if isinstance(item, _Begin):
                begun.append(item.job)
            else:
                self._drop(item.key, running, begun)

    def _drop(self, key: int, running: set[int], begun: deque[_Job]) -> None:
        for job in tuple(begun):
            if job.key == key:
                begun.remove(job)
                self._tell(Step(key=key, ended=FinishReason.STOP))
                return
        if key in running:
            running.discard(key)
            self._cancel(key)
            self._tell(Step(key=key, ended=FinishReason.STOP))

    def _tell(self, *items: Step | BaseException) -> None:
        self._arrived.extend(items)
        try:
            self._trio.run_sync_soon(self._deliver, idempotent=True)
        except trio.RunFinishedError:
            pass  # the program is ending; nobody listens any more


class _Stream:
    """The events of one job, as the port has them."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        wanted = job.wanted
        self._stops = StopWords(wanted.stop)
        self._reader = ToolCallReader(wanted.tools) if wanted.tools is not None else None
        self._kept: list[str] | None = [] if wanted.json_answer else None
        self._given = 0
        self._finished: Finished | None = None
        self._read_s = 0.0

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> EngineEvent:
        job = self._job
        if job.done:
            raise StopAsyncIteration
        while self._finished is None:
            await self._wait()
            if not job.steps:
                job.done = True
                raise job.error or EngineError("the engine stopped without finishing the answer")
            steps, job.steps = job.steps, []
            delta = self._take(steps)
            if delta is not None:
                return delta
        return self._last(self._finished)

    async def _wait(self) -> None:
        """Until there is something to read; pieces that come close together are read together."""
        job = self._job
        if not job.fresh and not job.ended:
            await trio.sleep_until(self._read_s + WAKE_GAP_S)
        while not job.steps and not job.ended:
            job.bell = trio.Event()
            await job.bell.wait()
        await trio.lowlevel.checkpoint()
        job.fresh = False
        self._read_s = trio.current_time()

    def _take(self, steps: list[Step]) -> Delta | None:
        text: list[str] = []
        ids: list[int] = []
        logprobs: list[Logprob] = []
        end: Step | None = None
        reason: FinishReason | None = None
        for step in steps:
            ids.extend(step.ids)
            logprobs.extend(step.logprobs)
            text.append(self._stops.feed(step.text))
            if self._stops.hit:
                end, reason = step, FinishReason.STOP
            elif step.ended is not None:
                end, reason = step, step.ended
            if end is not None:
                break
        if reason is not None:
            text.append(self._stops.finish())
        piece = "".join(text)
        self._given += len(ids)
        calls: tuple[dict[str, Any], ...] = ()
        if self._kept is not None:
            self._kept.append(piece)
        if self._reader is not None:
            piece, found = self._reader.feed(piece)
            calls = tuple(found)
            if reason is not None:
                piece += self._reader.finish()
        if end is not None and reason is not None:
            if reason is FinishReason.STOP and self._reader is not None and self._reader.calls:
                reason = FinishReason.TOOL_CALLS
            self._finished = Finished(
                finish_reason=reason,
                usage=Usage(
                    prompt_tokens=len(self._job.prompt),
                    completion_tokens=self._given,
                    cached_tokens=min(end.cached_tokens, len(self._job.prompt)),
                ),
            )
        if not (piece or ids or calls):
            return None
        return Delta(text=piece, token_ids=tuple(ids), logprobs=tuple(logprobs), tool_calls=calls)

    def _last(self, finished: Finished) -> Finished:
        self._job.done = True
        if self._kept is not None and finished.finish_reason is FinishReason.STOP and not self._job.wanted.stop:
            try:
                json.loads("".join(self._kept))
            except ValueError:
                raise EngineError("the model left the JSON grammar; the answer cannot be used") from None
        return finished
