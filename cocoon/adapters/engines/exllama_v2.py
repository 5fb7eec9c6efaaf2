"""ExLlamaV2: for machines that have EXL2 weights. Upstream has stopped; new machines take `exllama_v3`.

Last release 0.3.2 (July 2025), last tried by its authors with torch 2.9. Its batching asserts flash-attn ≥ 2.5.7, for
which there are no wheels: without it one request runs at a time (`slots` must be 1), and that is what
`open_exllama_engine` does unless flash-attn is importable. No grammars: no tools, no JSON schema.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from ...errors import ConfigError
from ...types import Feature
from . import exllama_pages
from .exllama import ExllamaEngine, Step
from .exllama_v3 import CONTEXT_TOKENS, Progress, load_library, loading_failed, steps_of, word_of
from .fields import Asked
from .hf_folder import HfFolder, read_folder
from .prompts import checked_slots, context_of

NAME: Final = "exllamav2"
INSTALL: Final = (
    'Install a CUDA build of torch, then: pip install "cocoon-network[exllamav2]". Its upstream has stopped; if you '
    "can choose, take EXL3 weights and exllamav3."
)
PAGE_TOKENS: Final = 256
SLOTS_MAX: Final = 64
SEED_MASK: Final = (1 << 63) - 1


@asynccontextmanager
async def open_exllama_engine(
    path: Path, *, slots: int = 1, context_tokens: int | None = None, progress: Progress | None = None
) -> AsyncIterator[ExllamaEngine]:
    """Load a model folder (EXL2 or GPTQ weights) and serve it until the block is left; as `exllama_v3`."""
    tell = progress or (lambda _: None)
    checked_slots(slots, SLOTS_MAX)
    folder = await trio.to_thread.run_sync(read_folder, path)
    context = context_of(folder.name, trained=folder.context_tokens, wanted=context_tokens, unless_told=CONTEXT_TOKENS)
    tell("loading exllamav2 (its first start compiles for some minutes)")
    library, torch = await trio.to_thread.run_sync(load_library, NAME, INSTALL)
    paged = _has_flash_attention(library)
    if slots > 1 and not paged:
        raise ConfigError(
            "exllamav2 serves one request at a time without flash-attn",
            advice="Use --slots 1, install flash-attn 2.5.7 or newer, or take exllamav3.",
        )
    tell("loading the model")
    backend = await trio.to_thread.run_sync(_V2, library, torch, folder, slots, context, paged)
    engine = ExllamaEngine(backend, folder, slots=slots, context_tokens=context)
    try:
        tell("ready")
        yield engine
    finally:
        with trio.CancelScope(shield=True):
            await engine.aclose()


def _has_flash_attention(library: Any) -> bool:
    return bool(getattr(getattr(library, "attn", None), "has_flash_attn", False))


class _V2:
    """See `exllama.Backend`."""

    name = NAME

    def __init__(
        self, library: Any, torch: Any, folder: HfFolder, slots: int, context_tokens: int, paged: bool
    ) -> None:
        self._torch = torch
        self._paged = paged
        self.version = str(importlib.metadata.version(NAME))
        tokens = -(-context_tokens // PAGE_TOKENS) * PAGE_TOKENS
        try:
            generator = importlib.import_module("exllamav2.generator")
            config = library.ExLlamaV2Config(str(folder.path))
            config.max_seq_len = tokens
            self._model = library.ExLlamaV2(config)
            cache = library.ExLlamaV2Cache(self._model, max_seq_len=slots * tokens, lazy=True)
            self._model.load_autosplit(cache)
            self._tokenizer = library.ExLlamaV2Tokenizer(config)
            self._generator = generator.ExLlamaV2DynamicGenerator(
                model=self._model,
                cache=cache,
                tokenizer=self._tokenizer,
                max_batch_size=slots,
                max_seq_len=tokens,
                paged=paged,
            )
            self._job_type = generator.ExLlamaV2DynamicJob
            self._settings = generator.ExLlamaV2Sampler.Settings
        except Exception as error:
            raise loading_failed(folder, error) from error
        self.vocabulary_size = int(config.vocab_size)
        self._ends = [self._tokenizer.eos_token_id]
        self._pieces: list[str] = self._tokenizer.get_id_to_piece_list(True)
        self._page_tokens = int(self._generator.page_size)
        self.features = Feature.LOGPROBS | Feature.COMPLETIONS
        self._jobs: dict[int, Any] = {}
        self._tag: bytes | None = None  # whose KV the one page holds, without paging
        if paged:
            probe = self._job_type(input_ids=torch.tensor([[0]], dtype=torch.long), max_new_tokens=1)
            self._generator.enqueue(probe)
            self._generator.cancel(probe)
            exllama_pages.check(probe, self._generator.all_pages, NAME)

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_bos=False, encode_special_tokens=True)
        return [int(one) for one in ids.flatten().tolist()]

    def word(self, token_id: int) -> bytes | None:
        return word_of(self._tokenizer, self._pieces, token_id)

    def start(self, key: int, prompt: Sequence[int], wanted: Asked, tag: bytes) -> None:
        if not self._paged and (not tag or tag != self._tag):
            # One page holds everything, and is compared token by token: empty it before another account's prompt.
            if self._jobs:
                raise ValueError("a job is running already")
            self._generator.reset_page_table()
            self._tag = tag
        settings = self._settings(
            temperature=wanted.temperature,
            top_k=1 if wanted.temperature == 0 else 0,
            top_p=wanted.top_p,
            token_repetition_penalty=1.0,
            token_frequency_penalty=wanted.frequency_penalty,
            token_presence_penalty=wanted.presence_penalty,
        )
        if wanted.biases:
            bias = self._torch.zeros(self._generator.padded_vocab_size, dtype=self._torch.float)
            for token_id, value in wanted.biases:
                bias[token_id] = value
            settings.token_bias = bias
        job = self._job_type(
            input_ids=self._torch.tensor([list(prompt)], dtype=self._torch.long),
            max_new_tokens=wanted.max_tokens,
            gen_settings=settings,
            seed=None if wanted.seed is None else wanted.seed & SEED_MASK,
            stop_conditions=self._ends,
            return_probs=wanted.top_logprobs is not None,
            return_top_tokens=wanted.top_logprobs or 0,
            identifier=key,
        )
        try:
            self._generator.enqueue(job)
        except AssertionError as error:  # how the library says that a job does not fit
            raise ValueError(str(error)) from error
        self._jobs[key] = job
        if self._paged:
            exllama_pages.isolate(job, tag)

    def step(self) -> list[Step]:
        results = self._generator.iterate()
        if self._paged:
            exllama_pages.close_roots(self._generator.all_pages)
        return steps_of(results, self._jobs, self._pieces, self._page_tokens)

    def cancel(self, key: int) -> None:
        job = self._jobs.pop(key, None)
        if job is not None:
            self._generator.cancel(job)

    def close(self) -> None:
        self._jobs.clear()
        self._model.unload()
