"""ExLlamaV3: the recommended engine on CUDA. Continuous batching over its own paged cache.

    async with open_exllama_engine(Path("Llama-3.1-8B-exl3"), slots=16) as engine: …

Needs `cocoon-network[exllamav3]`, a CUDA build of torch, and a compiler the first time: the library builds its kernels
at its first import, once per torch version. Grammars (JSON, tools) need `llguidance`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from ...errors import CocoonError, ConfigError, EngineError, ModelFileError
from ...ports.engine import Logprob
from ...types import Feature, FinishReason
from . import exllama_pages
from .exllama import ExllamaEngine, Step
from .fields import Asked
from .hf_folder import HfFolder, read_folder
from .prompts import checked_slots, context_of

NAME: Final = "exllamav3"
INSTALL: Final = (
    'Install a CUDA build of torch, then: pip install "cocoon-network[exllamav3]". It needs an NVIDIA GPU, and a C++ '
    "compiler for its first start. Without a GPU use a GGUF file, which runs on llama.cpp."
)
PAGE_TOKENS: Final = 256  # of the library; caches are whole pages
CONTEXT_TOKENS: Final = 8_192  # per request, unless told otherwise or trained for less
SLOTS_MAX: Final = 256  # the library's largest batch
SEED_MASK: Final = (1 << 63) - 1

Progress = Callable[[str], None]


@asynccontextmanager
async def open_exllama_engine(
    path: Path, *, slots: int = 16, context_tokens: int | None = None, progress: Progress | None = None
) -> AsyncIterator[ExllamaEngine]:
    """Load a model folder (EXL3 weights, tokenizer, config) and serve it until the block is left.

    `context_tokens` is per request. Raises `ConfigError` (library or CUDA missing, numbers out of range),
    `ModelFileError`, `EngineError` (out of GPU memory).
    """
    tell = progress or (lambda _: None)
    checked_slots(slots, SLOTS_MAX)
    folder = await trio.to_thread.run_sync(read_folder, path)
    context = context_of(folder.name, trained=folder.context_tokens, wanted=context_tokens, unless_told=CONTEXT_TOKENS)
    tell("loading exllamav3 (its first start compiles for some minutes)")
    library, torch = await trio.to_thread.run_sync(load_library, NAME, INSTALL)
    tell("loading the model")
    backend = await trio.to_thread.run_sync(_V3, library, torch, folder, slots, context)
    engine = ExllamaEngine(backend, folder, slots=slots, context_tokens=context)
    try:
        tell("ready")
        yield engine
    finally:
        with trio.CancelScope(shield=True):
            await engine.aclose()


def load_library(name: str, install: str) -> tuple[Any, Any]:
    """(the library, torch). Blocks, for minutes at the very first time. Raises `ConfigError`."""
    try:
        return importlib.import_module(name), importlib.import_module("torch")
    except Exception as error:  # without CUDA they raise what they like: OSError, RuntimeError, ImportError
        said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ConfigError(f"{name} cannot be loaded here ({said})", advice=install) from error


def loading_failed(folder: HfFolder, error: Exception) -> CocoonError:
    """What a library threw while it loaded a model, as one of ours."""
    said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    if "out of memory" in said.lower():
        return EngineError(f"{folder.name} does not fit into the GPU's memory; take fewer slots or a shorter context")
    return ModelFileError(f"{folder.name} cannot be loaded ({said})")


class _V3:
    """See `exllama.Backend`."""

    name = NAME

    def __init__(self, library: Any, torch: Any, folder: HfFolder, slots: int, context_tokens: int) -> None:
        self._library = library
        self._torch = torch
        self.version = str(importlib.metadata.version(NAME))
        pages = slots * -(-context_tokens // PAGE_TOKENS)
        try:
            config = library.Config.from_directory(str(folder.path))
            self._model = library.Model.from_config(config)
            cache = library.Cache(self._model, max_num_tokens=pages * PAGE_TOKENS, max_batch_size=slots)
            self._model.load()
            self._tokenizer = library.Tokenizer.from_config(config)
            self._generator = library.Generator(
                model=self._model, cache=cache, tokenizer=self._tokenizer, max_batch_size=slots
            )
        except Exception as error:
            raise loading_failed(folder, error) from error
        self.vocabulary_size = int(config.vocab_size)
        self._ends = [one for one in config.eos_token_id_list if one is not None]
        self._pieces: list[str] = self._tokenizer.get_id_to_piece_list(True)
        self.features = Feature.LOGPROBS | Feature.COMPLETIONS
        if getattr(library, "LLGuidanceFilter", None) is not None and _has("llguidance"):
            self.features |= Feature.JSON_SCHEMA
        self._jobs: dict[int, Any] = {}
        probe = library.Job(input_ids=torch.tensor([[0]], dtype=torch.long), max_new_tokens=1)
        self._generator.enqueue(probe)
        self._generator.cancel(probe)
        exllama_pages.check(probe, self._generator.pagetable.all_pages, NAME)

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_bos=False, encode_special_tokens=True)
        return [int(one) for one in ids.flatten().tolist()]

    def word(self, token_id: int) -> bytes | None:
        return word_of(self._tokenizer, self._pieces, token_id)

    def start(self, key: int, prompt: Sequence[int], wanted: Asked, tag: bytes) -> None:
        library = self._library
        filters = []
        if wanted.rules:
            filters.append(
                library.LLGuidanceFilter(self._tokenizer, eos_after_completed=True, lark_grammar=wanted.rules)
            )
        job = library.Job(
            input_ids=self._torch.tensor([list(prompt)], dtype=self._torch.long),
            max_new_tokens=wanted.max_tokens,
            sampler=library.ComboSampler(
                temperature=wanted.temperature,
                top_p=wanted.top_p,
                freq_p=wanted.frequency_penalty,
                pres_p=wanted.presence_penalty,
                logit_bias=dict(wanted.biases),
            ),
            seed=None if wanted.seed is None else wanted.seed & SEED_MASK,
            stop_conditions=self._ends,
            decode_special_tokens=wanted.tools is not None,  # marks of tool calls may be control tokens
            return_probs=wanted.top_logprobs is not None,
            return_top_tokens=wanted.top_logprobs or 0,
            filters=filters,
            identifier=key,
        )
        try:
            self._generator.enqueue(job)
        except AssertionError as error:  # how the library says that a job does not fit
            raise ValueError(str(error)) from error
        self._jobs[key] = job
        exllama_pages.isolate(job, tag)

    def step(self) -> list[Step]:
        results = self._generator.iterate()
        exllama_pages.close_roots(self._generator.pagetable.all_pages)
        return steps_of(results, self._jobs, self._pieces, PAGE_TOKENS)

    def cancel(self, key: int) -> None:
        job = self._jobs.pop(key, None)
        if job is not None:
            self._generator.cancel(job)

    def close(self) -> None:
        self._jobs.clear()
        self._generator.close()
        self._model.unload()


def steps_of(results: list[dict[str, Any]], jobs: dict[int, Any], pieces: list[str], page_tokens: int) -> list[Step]:
    """What `iterate()` of either library returned, as our words. Ended jobs leave `jobs`."""
    steps = []
    for one in results:
        key = one.get("identifier")
        if key is None:
            key = next((number for number, job in jobs.items() if job is one.get("job")), None)
        if key not in jobs:
            continue
        if one.get("stage") == "error":
            del jobs[key]
            steps.append(Step(key=key, failed=type(one.get("error")).__name__))
            continue
        if one.get("stage") != "streaming":
            continue
        job = jobs[key]
        ended = None
        if one.get("eos"):
            del jobs[key]
            ended = FinishReason.LENGTH if one.get("eos_reason") == "max_new_tokens" else FinishReason.STOP
        ids = _numbers(one.get("token_ids"))
        if not ids and ended is None:
            continue  # text that waits for the rest of a character
        steps.append(
            Step(
                key=key,
                text=one.get("text", ""),
                ids=tuple(ids),
                logprobs=_logprobs(ids, one, pieces),
                ended=ended,
                cached_tokens=job.cached_pages * page_tokens + job.cached_tokens,
            )
        )
    return steps


def _logprobs(ids: list[int], one: dict[str, Any], pieces: list[str]) -> tuple[Logprob, ...]:
    if one.get("token_probs") is None:
        return ()
    own = one["token_probs"].flatten().tolist()
    count = len(ids)
    tops: list[tuple[tuple[int, bytes, float], ...]] = [()] * count
    if one.get("top_k_tokens") is not None and count:
        numbers, shares = _numbers(one["top_k_tokens"]), one["top_k_probs"].flatten().tolist()
        width = len(numbers) // count
        tops = [
            tuple(
                (numbers[at], _bytes(pieces, numbers[at]), _nats(shares[at]))
                for at in range(row * width, (row + 1) * width)
            )
            for row in range(count)
        ]
    return tuple(
        Logprob(token_id=token, token=_bytes(pieces, token), logprob=_nats(share), top=top)
        for token, share, top in zip(ids, own, tops, strict=True)
    )


def word_of(tokenizer: Any, pieces: list[str], token_id: int) -> bytes | None:
    """See `Backend.word`. A token that is a part of a character has no bytes of its own here, and ends a beginning."""
    special = getattr(tokenizer, "extended_id_to_piece", {})
    plain = getattr(tokenizer, "unspecial_id_to_piece", {})
    if token_id >= len(pieces) or (token_id in special and token_id not in plain):
        return None
    return pieces[token_id].encode()


def _numbers(tensor: Any) -> list[int]:
    return [] if tensor is None else [int(one) for one in tensor.flatten().tolist()]


def _bytes(pieces: list[str], token_id: int) -> bytes:
    return pieces[token_id].encode() if token_id < len(pieces) else b""


def _nats(share: float) -> float:
    return min(0.0, math.log(share)) if share > 0 else -9999.0  # what OpenAI writes for "practically never"


def _has(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
