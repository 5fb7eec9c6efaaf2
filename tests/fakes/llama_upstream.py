"""llama.cpp's own HTTP server with the shipped test model, as an inference server that runs beside a provider; and the
model folder that goes with it, made from the GGUF file."""

from __future__ import annotations

import json
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tokenizers
import xllamacpp
from tokenizers import decoders, models, pre_tokenizers

from cocoon.adapters.gguf import read_head
from cocoon.types import Secret

MODEL = Path(__file__).parents[2] / "cocoon/data/models/cocoon-tiny/cocoon-tiny-q8_0.gguf"


@contextmanager
def running(*, slots: int, context_tokens: int) -> Iterator[tuple[str, Secret]]:
    """(its URL, its key)."""
    key = secrets.token_urlsafe(16)
    p = xllamacpp.CommonParams()
    p.model.path = str(MODEL)
    p.n_parallel = slots
    p.n_ctx = slots * context_tokens
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
    p.warmup = False
    p.fit_params = False
    p.hostnames, p.port = ["127.0.0.1"], 0
    p.api_keys = [key]
    p.n_threads_http = slots + 2
    p.cache_ram_mib = 0
    p.verbosity = -1
    server = xllamacpp.Server(p)
    try:
        server.handle_completions(b'{"prompt":[0],"n_predict":1,"stream":false}', lambda _: None)
        yield server.listening_address, Secret(key.encode())
    finally:
        del server


def write_folder(folder: Path) -> None:
    """config.json, tokenizer.json and the chat template of the test model."""
    head = read_head(MODEL)
    vocabulary = {token: number for number, token in enumerate(head.vocabulary.tokens)}
    merges = [tuple(one.split(" ")) for one in _strings(MODEL.read_bytes(), b"tokenizer.ggml.merges")]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))  # type: ignore[arg-type]
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens(
        [one for one, kind in zip(vocabulary, head.vocabulary.types, strict=True) if kind == 3]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": head.context_tokens}))
    (folder / "chat_template.jinja").write_text(head.chat_template)


def _strings(data: bytes, key: bytes) -> list[str]:
    """A list of strings in a GGUF file."""
    at = data.index(key) + len(key) + 8
    (count,) = struct.unpack_from("<Q", data, at)
    at += 8
    found: list[str] = []
    for _ in range(count):
        (size,) = struct.unpack_from("<Q", data, at)
        found.append(data[at + 8 : at + 8 + size].decode())
        at += 8 + size
    return found
