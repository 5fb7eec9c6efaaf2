"""Hostile GGUF heads: every one ends in `ModelFileError` or a head, quickly and within bounds."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cocoon.adapters import gguf
from cocoon.adapters.gguf import read_head
from cocoon.errors import ModelFileError

MODEL = Path(__file__).parents[2] / "cocoon/data/models/cocoon-tiny/cocoon-tiny-q8_0.gguf"
WHOLE = MODEL.read_bytes()
HEAD = 60_000  # bytes of the file in which mutations matter


def refused_or_read(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    said = ""
    try:
        head = read_head(path)
    except ModelFileError as error:
        said = str(error)
    if said:
        assert str(path) in said
        return False
    for token_id in (0, len(head.vocabulary.tokens) - 1):
        head.vocabulary.piece(token_id)
    return True


def test_the_shipped_model_is_read() -> None:
    head = read_head(MODEL)
    assert (head.architecture, head.quantisation, head.context_tokens) == ("llama", "Q8_0", 2048)
    assert head.vocabulary.kind == "gpt2"
    assert b"".join(map(head.vocabulary.piece, range(3))) == b""
    assert "tool_call" in head.chat_template


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    cuts = [*range(64), *range(64, HEAD, 997), len(WHOLE) // 2, len(WHOLE) - 33, len(WHOLE) - 1]
    for cut in cuts:
        assert not refused_or_read(path, WHOLE[:cut]), cut
    assert refused_or_read(path, WHOLE)


def test_a_truncated_file_says_what_is_missing_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(WHOLE[:-1000])
    with pytest.raises(ModelFileError, match="1000 bytes are missing") as caught:
        read_head(path)
    assert "again" in caught.value.advice


def test_mutated_heads_never_crash_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "mutated.gguf"
    seeds = random.Random(5)
    for _ in range(400):
        data = bytearray(WHOLE)
        for _ in range(seeds.choice((1, 1, 2, 8))):
            at = seeds.randrange(seeds.choice((64, 2_000, HEAD)))
            data[at : at + 1] = seeds.randbytes(seeds.choice((1, 1, 1, 8)))
        refused_or_read(path, bytes(data))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(version=st.integers(0, 5), tensors=st.integers(0, 1 << 64), keys=st.integers(0, 1 << 64), rest=st.binary())
def test_any_bytes_after_the_magic_are_survived(
    tmp_path: Path, version: int, tensors: int, keys: int, rest: bytes
) -> None:
    counts = struct.pack("<IQQ", version, tensors % (1 << 64), keys % (1 << 64))
    refused_or_read(tmp_path / "any.gguf", gguf.MAGIC + counts + rest)


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _key(name: bytes, kind: int, value: bytes) -> bytes:
    return _string(name) + struct.pack("<I", kind) + value


def _file(*keys: bytes, tensors: bytes = b"", count: int = 0) -> bytes:
    return gguf.MAGIC + struct.pack("<IQQ", 3, count, len(keys)) + b"".join(keys) + tensors


HOSTILE = {
    "not a model": b"PK\x03\x04" + bytes(100),
    "empty": b"",
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "a text of 16 EB": _file(_key(b"a", 8, struct.pack("<Q", 1 << 63))),
    "a list of 2^63 items": _file(_key(b"a", 9, struct.pack("<IQ", 4, 1 << 63))),
    "a million empty texts, four times over": _file(
        *(_key(b"%d" % i, 9, struct.pack("<IQ", 8, 1_000_000) + bytes(100)) for i in range(4))
    ),
    "lists in lists": _file(_key(b"a", 9, struct.pack("<IQ", 9, 2) + bytes(64))),
    "the same key twice": _file(_key(b"a", 4, bytes(4)), _key(b"a", 4, bytes(4))),
    "an unknown type": _file(_key(b"a", 99, bytes(8))),
    "no architecture": _file(_key(b"a", 4, bytes(4))),
    "no vocabulary": _file(_key(b"general.architecture", 8, _string(b"llama"))),
    "alignment zero": _file(_key(b"general.alignment", 4, bytes(4))),
    "a tensor of nothing": _file(count=1, tensors=_string(b"t") + struct.pack("<IQIQ", 1, 0, 0, 0)),
    "a tensor beyond any size": _file(count=1, tensors=_string(b"t") + struct.pack("<I4QIQ", 4, *[1 << 40] * 4, 0, 0)),
    "a tensor of 99 dimensions": _file(count=1, tensors=_string(b"t") + struct.pack("<I", 99) + bytes(999)),
    "a tensor past the end": _file(count=1, tensors=_string(b"t") + struct.pack("<IQIQ", 1, 8, 0, 1 << 40)),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_heads_are_refused_quickly_and_in_little_memory(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    started = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError) as caught:
            read_head(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.advice
    assert time.monotonic() - started < 2
    assert peak < 8_000_000
