"""`exllamav2` and `exllamav3` as far as their result streams and page tables go, without CUDA, for tests.

    exllama.install(monkeypatch); exllama.write_folder(tmp_path)     # then `import exllamav3` finds this

Kept from the libraries (0.3.2 and 1.6.5, read in their sources): jobs and results of `enqueue`, `iterate`, `cancel`;
tokens whose text is half a character are held with their ids; the end token is swallowed and counted in `new_tokens`;
whole pages of KV are found by a hash chain, first pages by comparing tokens with every page there is, whoever's it is.

The model is none: the next token depends on the prompt, the seed and the place. It ends after `ANSWER_TOKENS`, and a
prompt that holds one of `SCRIPTS` gets that text.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

PAGE = 256
ANSWER_TOKENS = 300
END = 2
WORDS = [f"{first}{second} " for first in ("ba", "do", "ki", "lu", "me") for second in ("ra", "so", "ti", "va", "zu")]
VOCABULARY = 3 + 256 + len(WORDS)
PIECES = ["", "", "<end>", *(chr(one) if one < 128 else "�" for one in range(256)), *WORDS]
SCRIPTS = {
    "snowman": "a ☃ and ☃☃ b",
    "call the tool": '<tool_call>\n{"name": "weather", "arguments": {"city": "Bergen"}}\n</tool_call>',
    "write json": '{"city": "Bergen"}',
}


class Tensor:
    def __init__(self, rows: list[list[Any]]) -> None:
        self.rows = rows

    def flatten(self) -> Tensor:
        return Tensor([[one for row in self.rows for one in row]])

    def tolist(self) -> list[Any]:
        return self.rows[0]

    def __setitem__(self, at: int, value: float) -> None:
        self.rows[0][at] = value


def _torch() -> ModuleType:
    torch = ModuleType("torch")
    torch.long = torch.float = None  # type: ignore[attr-defined]
    torch.tensor = lambda rows, dtype=None: Tensor(rows)  # type: ignore[attr-defined]
    torch.zeros = lambda size, dtype=None: Tensor([[0.0] * size])  # type: ignore[attr-defined]
    return torch


class Tokenizer:
    eos_token_id = END

    def __init__(self, *_: object) -> None:
        self._words = {word: 3 + 256 + at for at, word in enumerate(WORDS)}

    def encode(self, text: str, add_bos: bool = False, encode_special_tokens: bool = False) -> Tensor:
        assert encode_special_tokens, "control tokens of the template would be plain text"
        ids: list[int] = []
        at = 0
        while at < len(text):
            if text[at : at + 5] in self._words:
                ids.append(self._words[text[at : at + 5]])
                at += 5
            else:
                ids.extend(3 + byte for byte in text[at].encode())
                at += 1
        return Tensor([ids])

    def get_id_to_piece_list(self, special: bool = False) -> list[str]:
        return PIECES

    @classmethod
    def from_config(cls, config: object) -> Tokenizer:
        return cls()


class Sequence:
    def __init__(self, ids: list[int]) -> None:
        self.ids = ids
        self.page_hashes: list[bytes] = []


class Page:
    def __init__(self, tokens: list[int], prev_hash: bytes | None) -> None:
        self.sequence = tokens
        self.prev_hash = prev_hash
        self.kv_position = len(tokens)


class Job:
    def __init__(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        seed: int | None = None,
        stop_conditions: list[int] | None = None,
        return_probs: bool = False,
        return_top_tokens: int = 0,
        identifier: object = None,
        sampler: Any = None,
        gen_settings: Any = None,
        filters: list[Any] | None = None,
        decode_special_tokens: bool = False,
    ) -> None:
        self.prompt = input_ids.flatten().tolist()
        self.sequences = [Sequence(self.prompt)]
        self.all_unique_hashes: list[bytes] = []
        self.max_new_tokens = max_new_tokens
        self.ends = set(stop_conditions or ())
        self.return_probs, self.top = return_probs, return_top_tokens
        self.identifier = identifier
        self.filters = filters or []
        self.sampling = sampler or gen_settings
        self.cached_pages = self.cached_tokens = 0
        self.made: list[int] = []
        self.held: list[int] = []
        self.began = False
        greedy = self.sampling is None or self.sampling.temperature == 0
        self.noise = b"" if greedy else str(time.perf_counter_ns() if seed is None else seed).encode()
        text = "".join(PIECES[one] for one in self.prompt)
        script = next((answer for word, answer in SCRIPTS.items() if word in text), None)
        self.script = None if script is None else [3 + byte for byte in script.encode()]

    def next(self) -> int:
        at = len(self.made)
        if self.script is not None:
            return self.script[at] if at < len(self.script) else END
        if at >= ANSWER_TOKENS and END not in self.sampling.banned:
            return END
        digest = hashlib.blake2b(bytes(one % 256 for one in self.prompt) + self.noise + at.to_bytes(4, "big")).digest()
        return 3 + 256 + digest[0] % len(WORDS)


class Generator:
    """Both libraries' generator; `paged=False` is exllamav2 without flash-attn."""

    page_size = PAGE
    padded_vocab_size = 512

    def __init__(self, *, cache: Any, max_batch_size: int, paged: bool = True, **_: object) -> None:
        self.pagetable = self
        self.all_pages: list[Any] = [Page([], None)]
        self._whole: dict[bytes, bool] = {}
        self._paged = paged
        self._batch = max_batch_size if paged else 1
        self._tokens_max = cache.tokens
        self._pending: list[Job] = []
        self._active: list[Job] = []
        self.fail_next = 0

    def enqueue(self, job: Job) -> int:
        assert len(job.prompt) + job.max_new_tokens <= self._tokens_max, "Job requires more pages"
        before = b""
        hashes = []
        for at in range(0, (len(job.prompt) - 1) // PAGE * PAGE, PAGE):
            before = hashlib.blake2b(before + repr(job.prompt[at : at + PAGE]).encode(), digest_size=16).digest()
            hashes.append(before)
        job.sequences[0].page_hashes = hashes
        job.all_unique_hashes = list(hashes)
        self._pending.append(job)
        return 0

    def cancel(self, job: Job) -> None:
        for jobs in (self._pending, self._active):
            if job in jobs:
                jobs.remove(job)

    def reset_page_table(self) -> None:
        assert not self._active
        self.all_pages = [Page([], None)]
        self._whole.clear()

    def close(self) -> None:
        self._pending.clear()

    def iterate(self) -> list[dict[str, Any]]:
        time.sleep(0.0003)
        if self.fail_next:
            self.fail_next -= 1
            self._pending.clear()
            self._active.clear()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        results: list[dict[str, Any]] = []
        while self._pending and len(self._active) < self._batch:
            job = self._pending.pop(0)
            self._active.append(job)
            self._prefill(job)
            results.append({"job": job, "stage": "started", "eos": False, "identifier": job.identifier})
        for job in tuple(self._active):
            result = self._token(job)
            if result["eos"]:
                self._active.remove(job)
            results.append(result)
        return results

    def _prefill(self, job: Job) -> None:
        hashes = job.sequences[0].page_hashes if self._paged else []
        for page in hashes:
            if page not in self._whole:
                break
            job.cached_pages += 1
        start = job.cached_pages * PAGE
        rest = job.prompt[start:-1]
        before = hashes[job.cached_pages - 1] if job.cached_pages else None
        for page in self.all_pages:
            if self._paged and page.prev_hash != before:
                continue
            same = sum(
                1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(page.sequence, rest, strict=False))
            )
            if same > 1:
                job.cached_tokens = max(job.cached_tokens, same)
        self._whole.update(dict.fromkeys(hashes, True))
        if not self._paged:
            self.all_pages = [Page(job.prompt[:-1], None)]
            return
        for at in range(job.cached_pages, len(job.prompt) // PAGE + 1):
            self.all_pages.append(Page(job.prompt[at * PAGE : (at + 1) * PAGE], hashes[at - 1] if at else None))

    def _token(self, job: Job) -> dict[str, Any]:
        token = job.next()
        job.made.append(token)
        job.held.append(token)
        result: dict[str, Any] = {"job": job, "stage": "streaming", "eos": False, "identifier": job.identifier}
        text = b"".join(_bytes(one) for one in job.held).decode("utf-8", "replace")
        ended = token in job.ends
        if ended:
            result |= {"eos": True, "eos_reason": "stop_token", "held": {"token_ids": Tensor([list(job.held)])}}
        elif len(job.made) >= job.max_new_tokens:
            result |= {"eos": True, "eos_reason": "max_new_tokens"}
        elif text.endswith("�"):
            return result
        if result["eos"]:
            result |= {"new_tokens": len(job.made), "prompt_tokens": len(job.prompt), "cached_pages": job.cached_pages}
        if not ended:
            count = len(job.held)
            result |= {"text": text, "token_ids": Tensor([list(job.held)])}
            if job.return_probs:
                result["token_probs"] = Tensor([[0.5] * count])
            if job.top:
                result["top_k_tokens"] = Tensor(
                    [[one for token in job.held for one in range(token, token - job.top, -1)]]
                )
                result["top_k_probs"] = Tensor([[0.5 / (1 + at) for _ in job.held for at in range(job.top)]])
            job.held = []
        return result


def _bytes(token: int) -> bytes:
    return bytes([token - 3]) if 3 <= token < 259 else PIECES[token].encode()


class Sampling:
    """ComboSampler of version 3, Settings of version 2."""

    def __init__(
        self, *, temperature: float, top_p: float, logit_bias: dict[int, float] | None = None, **_: Any
    ) -> None:
        self.temperature = temperature
        self._bias = logit_bias or {}
        self.token_bias: Tensor | None = None

    @property
    def banned(self) -> set[int]:
        bias = self._bias if self.token_bias is None else dict(enumerate(self.token_bias.tolist()))
        return {token for token, value in bias.items() if value <= -100}


class LLGuidanceFilter:
    def __init__(self, tokenizer: Tokenizer, eos_after_completed: bool, lark_grammar: str) -> None:
        self.grammar = lark_grammar


class _Model:
    def __init__(self, config: Any = None) -> None:
        self.loaded = False

    @classmethod
    def from_config(cls, config: Any) -> _Model:
        return cls()

    def load(self) -> None:
        self.loaded = True

    def load_autosplit(self, cache: Any) -> None:
        self.loaded = True

    def unload(self) -> None:
        self.loaded = False


TEMPLATE = (
    "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }} <tool_call> arguments{% endif %}<|im_start|>assistant\n"
)


def write_folder(folder: Path) -> None:
    """The JSON files of a model folder."""
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 4_096}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "<end>"}))


def install(monkeypatch: pytest.MonkeyPatch, *, flash_attention: bool = False) -> None:
    """Let `import torch`, `exllamav2`, `exllamav3` and `llguidance` find this for the length of a test."""
    three = ModuleType("exllamav3")
    config = SimpleNamespace(vocab_size=VOCABULARY, eos_token_id_list=[END], max_seq_len=0)
    three.Config = SimpleNamespace(from_directory=lambda path: config)  # type: ignore[attr-defined]
    three.Model = _Model  # type: ignore[attr-defined]
    three.Cache = lambda model, max_num_tokens, max_batch_size: SimpleNamespace(tokens=max_num_tokens)  # type: ignore[attr-defined]
    three.Tokenizer = Tokenizer  # type: ignore[attr-defined]
    three.Generator = Generator  # type: ignore[attr-defined]
    three.Job = Job  # type: ignore[attr-defined]
    three.ComboSampler = Sampling  # type: ignore[attr-defined]
    three.LLGuidanceFilter = LLGuidanceFilter  # type: ignore[attr-defined]
    two, generator = ModuleType("exllamav2"), ModuleType("exllamav2.generator")
    two.attn = SimpleNamespace(has_flash_attn=flash_attention)  # type: ignore[attr-defined]
    two.generator = generator  # type: ignore[attr-defined]
    two.ExLlamaV2Config = lambda path: config  # type: ignore[attr-defined]
    two.ExLlamaV2 = _Model  # type: ignore[attr-defined]
    two.ExLlamaV2Cache = lambda model, max_seq_len, lazy: SimpleNamespace(tokens=max_seq_len)  # type: ignore[attr-defined]
    two.ExLlamaV2Tokenizer = Tokenizer  # type: ignore[attr-defined]
    generator.ExLlamaV2DynamicGenerator = Generator  # type: ignore[attr-defined]
    generator.ExLlamaV2DynamicJob = Job  # type: ignore[attr-defined]
    generator.ExLlamaV2Sampler = SimpleNamespace(Settings=Sampling)  # type: ignore[attr-defined]
    for module in (_torch(), three, two, generator, ModuleType("llguidance")):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    true_version = importlib.metadata.version
    versions = {"exllamav3": "1.6.5", "exllamav2": "0.3.2"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or true_version(name))
