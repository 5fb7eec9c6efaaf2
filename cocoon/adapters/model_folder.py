"""A model that is a folder (safetensors, tokenizer, config), as GPU engines load it: its files, and its manifest.

Two providers with the same files get the same manifest, wherever the folder lies: the weights' digest is over the
names and hashes of every file that takes part. Blocking. Not here: records of what a folder was (`models`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ..errors import ModelFileError
from ..types import Digest
from .engines.hf_folder import read_folder
from .model_manifest import ModelManifest

SUFFIXES: Final = (".safetensors", ".json", ".jinja", ".model", ".txt")
FILES_MAX: Final = 2_048  # the largest models come in some 200 pieces
_WEIGHTS: Final = ".safetensors"

HashFile = Callable[[Path, int], Digest]


def folder_manifest(path: Path, hash_file: HashFile) -> ModelManifest:
    """The folder's manifest; `hash_file(file, size)` gives a SHA-256. Raises `ModelFileError`."""
    folder = read_folder(path)
    try:
        files = sorted(one for one in path.iterdir() if one.suffix in SUFFIXES and one.is_file())
        sizes = {one: one.stat().st_size for one in files}
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    if not any(one.suffix == _WEIGHTS for one in files):
        raise ModelFileError(f"{path} holds no {_WEIGHTS} file", advice="Give the folder that holds the weights.")
    if len(files) > FILES_MAX:
        raise ModelFileError(f"{path} holds more than {FILES_MAX} files")
    whole = hashlib.sha256(b"cocoon/folder/v1\0")
    for file in files:
        whole.update(f"{file.name}\0".encode() + hash_file(file, sizes[file]))
    config = json.loads((path / "config.json").read_bytes())
    return ModelManifest(
        weights=whole.digest(),
        size=max(1, sum(sizes.values())),
        architecture=_architecture(config)[:128],
        tokenizer=hash_file(path / "tokenizer.json", sizes[path / "tokenizer.json"]),
        chat_template=hashlib.sha256(folder.template.encode()).digest(),
        quantisation=_quantisation(config)[:128],
        licence="",
        context_tokens=folder.context_tokens,
    )


def _architecture(config: dict[str, Any]) -> str:
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else config.get("model_type")
    return first if isinstance(first, str) else "unknown"


def _quantisation(config: dict[str, Any]) -> str:
    """`exl3 4.0`, `awq 4`, or the type of the weights."""
    given = config.get("quantization_config")
    if isinstance(given, dict) and isinstance(given.get("quant_method"), str):
        bits = given.get("bits", given.get("w_bit"))
        return f"{given['quant_method']} {bits}" if isinstance(bits, (int, float)) else str(given["quant_method"])
    kind = config.get("torch_dtype", config.get("dtype"))
    return kind if isinstance(kind, str) else "unknown"
