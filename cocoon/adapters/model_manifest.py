"""A model's identity: the manifest that its file implies, and the digest that names it on the network.

Two providers with the same file get the same manifest, wherever the file came from and whatever they call it: every
field is computed from its bytes. The model id is the SHA-256 of the manifest's canonical CBOR; a client that knows
the id can check a manifest it is shown, and the manifest names the weights.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from ..errors import ModelFileError
from ..types import Digest
from ..wire import codec
from .gguf import ModelHead

KIND: Final = "cocoon/manifest/v1"
MANIFEST_BYTES_MAX: Final = 1_024

_Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Word = Annotated[str, Meta(max_length=128)]


class ModelManifest(Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """What a model is, by digests. The order of the fields is their order on the wire."""

    kind: Literal["cocoon/manifest/v1"] = KIND
    weights: _Bytes32  # SHA-256 of the whole file
    size: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    architecture: _Word
    tokenizer: _Bytes32  # of the tokenizer's part of the file
    chat_template: _Bytes32  # of its UTF-8; of nothing, when there is none
    quantisation: _Word
    licence: _Word  # as the file states it; "" if it does not
    context_tokens: Annotated[int, Meta(ge=0, lt=1 << 32)]


def manifest_of(head: ModelHead, weights: Digest) -> ModelManifest:
    """The manifest of a file whose head was read and whose bytes hash to `weights`."""
    return ModelManifest(
        weights=weights,
        size=head.size,
        architecture=head.architecture[:128],
        tokenizer=head.tokenizer_digest,
        chat_template=hashlib.sha256(head.chat_template.encode()).digest(),
        quantisation=head.quantisation,
        licence=head.licence[:128],
        context_tokens=head.context_tokens,
    )


def manifest_bytes(manifest: ModelManifest) -> bytes:
    """The canonical bytes, which are what is served and hashed."""
    return codec.encode(manifest)


def model_id(manifest: ModelManifest) -> Digest:
    """SHA-256 of the manifest's bytes: the model's name on the network."""
    return hashlib.sha256(manifest_bytes(manifest)).digest()


def read_manifest(data: bytes, expected: Digest) -> ModelManifest:
    """The manifest in `data`, which must hash to `expected`. Raises `ModelFileError`, `DecodeError`."""
    if hashlib.sha256(data).digest() != expected:
        raise ModelFileError("these bytes are not the manifest that the model id names")
    return codec.decode_as(data, ModelManifest, bytes_max=MANIFEST_BYTES_MAX)
