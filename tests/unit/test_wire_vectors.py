"""The bytes on the wire are those of `tests/vectors/wire`: a format changes on purpose or not at all."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from cocoon.attest.evidence import GpuPart, Hardware, Part, SavedEvidence
from cocoon.attest.statement import Statement
from cocoon.serve import sealing
from cocoon.types import Secret
from cocoon.wire import messages as wire
from cocoon.wire.codec import decode, decode_as, encode
from cocoon.wire.messages import Message, SealedRequest, SessionMessage

ATTESTED: dict[str, Any] = {kind.__name__: kind for kind in (Statement, Hardware, GpuPart, Part, SavedEvidence)}
FOLDER = Path(__file__).parents[1] / "vectors" / "wire"


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wire_vectors_generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATED: dict[str, list[dict[str, str]]] = _generator().vectors()
MESSAGES: list[dict[str, str]] = json.loads((FOLDER / "messages.json").read_text())
SESSION: dict[str, bytes] = {
    vector["name"]: bytes.fromhex(vector["hex"]) for vector in json.loads((FOLDER / "session.json").read_text())
}


@pytest.mark.parametrize("name", GENERATED)
def test_the_recorded_bytes_are_what_the_code_makes(name: str) -> None:
    assert json.loads((FOLDER / name).read_text()) == GENERATED[name]


@pytest.mark.parametrize("vector", MESSAGES, ids=lambda vector: vector["message"])
def test_every_recorded_message_decodes_and_encodes_to_the_same_bytes(vector: dict[str, str]) -> None:
    kind: Any = ATTESTED.get(vector["message"]) or getattr(wire, vector["message"])
    data = bytes.fromhex(vector["hex"])
    assert encode(decode_as(data, kind, bytes_max=1 << 20)) == data
    if kind in SessionMessage.__args__:  # type: ignore[attr-defined]
        assert type(decode(data, SessionMessage, bytes_max=1 << 20)) is kind


def test_every_message_has_a_vector() -> None:
    parts = {"OfferPrices", "OfferSpeed", "OfferTerms", "TokenLogprob", "Message", "SealedMessage"}
    every = {
        name
        for name, value in vars(wire).items()
        if isinstance(value, type) and issubclass(value, Message) and name not in parts
    }
    assert every | ATTESTED.keys() == {vector["message"] for vector in MESSAGES}


def test_every_session_message_has_its_own_tag() -> None:
    tags = [kind.__struct_config__.tag for kind in SessionMessage.__args__]  # type: ignore[attr-defined]
    assert sorted(tags) == list(range(1, 17))


def test_the_recorded_request_opens_with_the_recorded_key() -> None:
    opened = sealing.HpkeCrypto().open(
        Secret(SESSION["sealing_private_key"]), SESSION["request_sealed"], SESSION["request_info"]
    )
    assert opened == SESSION["request_padded"]
    request = decode_as(sealing.unpad_request(opened), SealedRequest, bytes_max=1 << 20)
    assert request.endpoint == "chat.completions"


def test_the_recorded_chunks_open_with_nothing_but_the_recorded_values() -> None:
    cipher = ChaCha20Poly1305(SESSION["chunk_key"])
    for number in (0, 1):
        plaintext = cipher.decrypt(
            number.to_bytes(12, "big"),
            SESSION[f"chunk_{number}_sealed"],
            SESSION[f"chunk_{number}_associated_data"],
        )
        assert plaintext == SESSION[f"chunk_{number}_body"]
    assert len(SESSION["frame"]) % 256 == 0


def test_the_cddl_names_every_field_of_every_message_in_order() -> None:
    text = (Path(__file__).parents[2] / "docs" / "protocol" / "messages.cddl").read_text()
    rules = dict(re.findall(r"^([a-z-]+) = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL))
    kinds = [value for value in vars(wire).values() if isinstance(value, type) and issubclass(value, Message)]
    for kind in [*kinds, *ATTESTED.values()]:
        if not kind.__struct_fields__:
            continue
        lines = [line.strip().rstrip(",") for line in rules[_kebab(kind.__name__)].splitlines()]
        tag = kind.__struct_config__.tag
        expected = ([str(tag)] if tag is not None else []) + list(kind.__struct_fields__)
        assert [line.split(":")[0] for line in lines] == expected
    assert len(rules) == len([kind for kind in kinds if kind.__struct_fields__]) + len(ATTESTED)


def _kebab(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()
