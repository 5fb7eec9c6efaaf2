"""The head of a GGUF file, read with suspicion: what the model is, its vocabulary, and whether the file is whole.

A model file may come from anybody, and llama.cpp's own reader answers a bad one with a sentence on stderr. This one
bounds every count and length before it allocates, checks that each tensor lies inside the file, and raises
`ModelFileError` naming the file and what is wrong. It reads the head only: whether the weights are the right ones is
for their SHA-256 to say (`cocoon.adapters.models`).

Source: ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from ..errors import ModelFileError
from ..types import Digest

MAGIC: Final = b"GGUF"
HEAD_BYTES_MAX: Final = 256 * 1024 * 1024  # the largest vocabularies with merges and scores take about 30 MB
READ_BYTES: Final = 4 * 1024 * 1024
KEYS_MAX: Final = 4_096  # files have 20 to 100
KEY_BYTES_MAX: Final = 1_024
TENSORS_MAX: Final = 262_144  # mixture-of-experts models have some 10,000
STRING_BYTES_MAX: Final = 4 * 1024 * 1024  # chat templates have up to 40 kB
ARRAY_ITEMS_MAX: Final = 1_000_000  # vocabularies have up to 300,000 entries, and twice as many merges
ARRAYS_ITEMS_MAX: Final = 4_000_000  # of all lists together: tokens, types, scores, merges
TENSOR_NAME_BYTES_MAX: Final = 128
DIMENSIONS_MAX: Final = 4
ALIGNMENT_MAX: Final = 1 << 20
TENSOR_VALUES_MAX: Final = 1 << 48

_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING: Final = 8
_ARRAY: Final = 9

# ggml type: values per block, bytes per block. Types not listed are newer than this table; their size goes unchecked.
_BLOCKS: Final = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66),
    17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136),
    24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54),
    35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
}  # fmt: skip

# llama.cpp's `general.file_type`.
_QUANTISATIONS: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
    39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens as the file writes them, and how to read them."""

    kind: str  # "gpt2" (byte-level BPE), "llama" (SentencePiece), …
    tokens: tuple[str, ...] = field(repr=False)
    types: tuple[int, ...] = field(repr=False)  # llama.cpp's: 1 normal, 3 control, 4 user's, 6 byte; () if not given

    def word(self, token_id: int) -> bytes | None:
        """The bytes of a token that is part of texts; None for control tokens and for ids that are no token."""
        if token_id >= len(self.tokens) or (self.types and self.types[token_id] not in (1, 4, 6)):
            return None
        return self.piece(token_id)

    def piece(self, token_id: int) -> bytes:
        """The bytes that the token stands for; control tokens stand for none."""
        if self.types and self.types[token_id] == 3:
            return b""
        text = self.tokens[token_id]
        if self.kind == "gpt2":
            if all(char in _BYTE_OF for char in text):
                return bytes(_BYTE_OF[char] for char in text)
            return text.encode()
        if self.types and self.types[token_id] == 6:
            return bytes.fromhex(text[3:5])
        return text.replace("\u2581", " ").encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHead:
    """What a GGUF file says about its model."""

    path: Path
    size: int
    name: str
    architecture: str
    licence: str
    quantisation: str
    context_tokens: int  # that it was trained for; 0 if the file does not say
    chat_template: str = field(repr=False)  # "" if it has none
    vocabulary: Vocabulary
    tokenizer_digest: Digest  # of everything the file says under "tokenizer.", the chat template apart
    tensors: int


def read_head(path: Path) -> ModelHead:
    """The head of the file. Raises `ModelFileError`."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _parse(_Reader(file, path, size))
    except FileNotFoundError:
        raise ModelFileError(f"there is no file {path}", advice="Check the path.") from None
    except IsADirectoryError:
        raise ModelFileError(f"{path} is a folder", advice="Give the path of a .gguf file.") from None
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error


def _parse(reader: _Reader) -> ModelHead:
    if reader.take(4) != MAGIC:
        raise reader.bad("it does not begin with GGUF", advice="Give the path of a .gguf file.")
    version = reader.number("<I")
    if version not in (2, 3):
        raise reader.bad(f"GGUF version {version if version < 1 << 16 else 'in big-endian order'} is not supported")
    tensors, keys = reader.number("<Q"), reader.number("<Q")
    if tensors > TENSORS_MAX or keys > KEYS_MAX:
        raise reader.bad(f"it claims {tensors} tensors and {keys} keys")
    values: dict[str, Any] = {}
    tokenizer = hashlib.sha256()
    for _ in range(keys):
        begin = reader.at
        key = reader.string(KEY_BYTES_MAX)
        if key in values:
            raise reader.bad(f"the key {key[:64]!r} is there twice")
        values[key] = reader.value(reader.number("<I"), key)
        if key.startswith("tokenizer.") and not key.startswith("tokenizer.chat_template"):
            tokenizer.update(reader.since(begin))
    _check_tensors(reader, tensors, values)
    return _head(reader, values, tensors, tokenizer.digest())


def _check_tensors(reader: _Reader, count: int, values: Mapping[str, Any]) -> None:
    """Every tensor inside the file: a download that stopped early is found here."""
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= ALIGNMENT_MAX or alignment & (alignment - 1):
        raise reader.bad("its alignment is not a power of two")
    end = 0
    for _ in range(count):
        name = reader.string(TENSOR_NAME_BYTES_MAX)
        dimensions = reader.number("<I")
        if not 1 <= dimensions <= DIMENSIONS_MAX:
            raise reader.bad(f"the tensor {name!r} has {dimensions} dimensions")
        amount = 1
        for _ in range(dimensions):
            amount *= reader.number("<Q")
            if not 0 < amount <= TENSOR_VALUES_MAX:
                raise reader.bad(f"the tensor {name!r} has no sensible size")
        kind, offset = reader.number("<I"), reader.number("<Q")
        if offset % alignment:
            raise reader.bad(f"the tensor {name!r} is not aligned")
        per_block, block_bytes = _BLOCKS.get(kind, (1, 0))
        end = max(end, offset + amount // per_block * block_bytes)
    data = -(-reader.at // alignment) * alignment
    if data + end > reader.size:
        missing = data + end - reader.size
        raise reader.bad(
            f"it is cut off: {missing} bytes are missing at the end", advice="Download it again, to the end."
        )


def _head(reader: _Reader, values: Mapping[str, Any], tensors: int, tokenizer_digest: Digest) -> ModelHead:
    def text(key: str) -> str:
        value = values.get(key, "")
        if not isinstance(value, str):
            raise reader.bad(f"{key} is not text")
        return value

    architecture = text("general.architecture")
    if not architecture:
        raise reader.bad("it names no architecture")
    tokens, types = values.get("tokenizer.ggml.tokens", ()), values.get("tokenizer.ggml.token_type", ())
    if not (isinstance(tokens, tuple) and tokens and all(isinstance(token, str) for token in tokens)):
        raise reader.bad("it has no vocabulary", advice="Embedding, projector and adapter files cannot be served.")
    if not isinstance(types, tuple) or (types and len(types) != len(tokens)):
        raise reader.bad("its token types do not fit its tokens")
    kind = text("tokenizer.ggml.model")
    if kind == "llama" and any(
        one == 6 and not (len(token) == 6 and token.startswith("<0x") and _is_hex(token[3:5]))
        for one, token in zip(types, tokens, strict=False)
    ):
        raise reader.bad("a byte token is not written as one byte")
    context = values.get(f"{architecture}.context_length", 0)
    file_type = values.get("general.file_type", -1)
    return ModelHead(
        path=reader.path,
        size=reader.size,
        name=text("general.name"),
        architecture=architecture,
        licence=text("general.license"),
        quantisation=_QUANTISATIONS.get(file_type, "unknown") if isinstance(file_type, int) else "unknown",
        context_tokens=context if isinstance(context, int) and 0 <= context < 1 << 31 else 0,
        chat_template=text("tokenizer.chat_template"),
        vocabulary=Vocabulary(kind=kind, tokens=tokens, types=types),
        tokenizer_digest=tokenizer_digest,
        tensors=tensors,
    )


def _is_hex(two: str) -> bool:
    return all(char in "0123456789abcdefABCDEF" for char in two)


class _Reader:
    """A cursor over the head, which is read from the file as it is needed."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.at = 0
        self._file = file
        self._data = b""
        self._items = 0

    def bad(self, why: str, *, advice: str = "The file is damaged or not a model: get it again.") -> ModelFileError:
        return ModelFileError(f"{self.path} is not a usable GGUF file: {why}", advice=advice)

    def since(self, begin: int) -> bytes:
        return self._data[begin : self.at]

    def take(self, count: int) -> bytes:
        begin = self._advance(count)
        return self._data[begin : self.at]

    def number(self, form: str) -> int:
        begin = self._advance(struct.calcsize(form))
        value: int = struct.unpack_from(form, self._data, begin)[0]
        return value

    def string(self, bytes_max: int) -> str:
        length = self.number("<Q")
        if length > bytes_max:
            raise self.bad(f"a text claims {length} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self.bad("a text is not UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string(STRING_BYTES_MAX)
        if kind != _ARRAY:
            raise self.bad(f"the key {key[:64]!r} has an unknown type")
        item, count = self.number("<I"), self.number("<Q")
        self._items += count
        if count > ARRAY_ITEMS_MAX or self._items > ARRAYS_ITEMS_MAX:
            raise self.bad(f"the list {key[:64]!r} claims {count} items")
        if item in _SCALARS:
            form = _SCALARS[item]
            begin = self._advance(count * struct.calcsize(form))
            return struct.unpack_from(f"<{count}{form[1]}", self._data, begin)
        if item != _STRING:
            raise self.bad(f"the list {key[:64]!r} holds lists or unknown types")
        return tuple(self._strings(count))

    def _strings(self, count: int) -> Iterator[str]:
        for _ in range(count):
            length = self.number("<Q")
            if length > STRING_BYTES_MAX:
                raise self.bad(f"a text claims {length} bytes")
            # Some vocabularies hold tokens that are half a character.
            yield self.take(length).decode(errors="replace")

    def _advance(self, count: int) -> int:
        begin, end = self.at, self.at + count
        if end > len(self._data):
            if end > self.size:
                raise self.bad("it is cut off in its head", advice="Download it again, to the end.")
            if end > HEAD_BYTES_MAX:
                raise self.bad(f"its head is longer than {HEAD_BYTES_MAX} bytes")
            more = max(READ_BYTES, end - len(self._data), len(self._data))  # doubling: few copies
            self._data += self._file.read(min(more, HEAD_BYTES_MAX - len(self._data)))
            if end > len(self._data):
                raise self.bad("it is cut off in its head", advice="Download it again, to the end.")
        self.at = end
        return begin


def _bytes_of_gpt2() -> dict[str, int]:
    """GPT-2's writing of bytes as printable characters."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    out = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return out | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF: Final = _bytes_of_gpt2()
