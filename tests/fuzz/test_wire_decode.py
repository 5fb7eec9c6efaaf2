"""Whatever bytes arrive, decoding gives a message or a typed error, quickly, and both session machines live on.

The short form runs a few thousand cases from fixed seeds. The long form (`-m long`) goes on from
`COCOON_FUZZ_SEED` (default 0) for `COCOON_FUZZ_CASES` cases; a failure prints the seed that repeats it.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from cocoon.attest.evidence import GpuPart, Hardware, Part, SavedEvidence
from cocoon.attest.statement import Statement
from cocoon.errors import CocoonError, InvalidRequest, RemoteProtocolError
from cocoon.serve.effects import decode_session
from cocoon.serve.openai import CHAT, generation_request
from cocoon.serve.testing import SessionPair
from cocoon.wire import messages as wire
from cocoon.wire.codec import decode, encode
from cocoon.wire.messages import Message, SessionMessage

CASES = 3_000
VECTORS: list[dict[str, str]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "wire" / "messages.json").read_text()
)
SEEDS = [bytes.fromhex(vector["hex"]) for vector in VECTORS]
ATTESTED: dict[str, Any] = {kind.__name__: kind for kind in (Statement, Hardware, GpuPart, Part, SavedEvidence)}
KINDS: list[Any] = [ATTESTED.get(vector["message"]) or getattr(wire, vector["message"]) for vector in VECTORS]
INTERESTING = bytes.fromhex("00 17 18 19 1a 1b 1f 20 40 5f 60 80 9f a0 c0 f6 fb ff")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few bytes of `data` changed, inserted, removed, repeated or cut."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(7):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(changed):
                changed[at] = rng.choice(INTERESTING)
            case 2:
                changed[at:at] = bytes((rng.choice(INTERESTING),))
            case 3:
                del changed[at : at + rng.randint(1, 8)]
            case 4:
                changed[at:at] = changed[at : at + rng.randint(1, 40)]
            case 5:
                del changed[at:]
            case _:
                changed[at:at] = rng.randbytes(rng.randint(1, 16))
    return bytes(changed)


def junk(rng: random.Random) -> bytes:
    """Bytes that look like CBOR for a while, or like nothing."""
    if rng.random() < 0.3:
        return rng.randbytes(rng.randint(0, 200))
    return bytes(rng.choice(INTERESTING) for _ in range(rng.randint(0, 60)))


def one_case(seed: int) -> None:
    rng = random.Random(seed)
    index = rng.randrange(len(SEEDS))
    data = mutated(SEEDS[index], rng) if rng.random() < 0.8 else junk(rng)
    for kind in (KINDS[index], SessionMessage):
        try:
            message: Message = decode(data, kind, bytes_max=1 << 16)
        except RemoteProtocolError:
            continue
        assert encode(message) == data, f"a second encoding was taken (seed {seed})"


@pytest.mark.parametrize("block", range(10))
def test_decoding_anything_gives_a_message_or_a_typed_error_and_never_two_encodings(block: int) -> None:
    for seed in range(block * CASES // 10, (block + 1) * CASES // 10):
        one_case(seed)


@pytest.mark.long
def test_decoding_anything_long_form() -> None:
    first = int(os.environ.get("COCOON_FUZZ_SEED", "0"))
    for seed in range(first, first + int(os.environ.get("COCOON_FUZZ_CASES", "1000000"))):
        one_case(seed)


@pytest.mark.parametrize("seed", range(200))
def test_200_malformed_streams_leave_both_machines_able_to_say_what_happened(seed: int) -> None:
    """Wrong bytes or right bytes in a wrong order: every effect is well formed, nothing but a typed error ends it."""
    rng = random.Random(seed)
    pair = SessionPair(seed=str(seed)).start()
    request_id = pair.open()
    pair.run()
    pair.output(request_id, "a", 1)
    pair.run()
    text = pair.text(request_id)
    for _ in range(rng.randint(1, 12)):
        choice = rng.random()
        index = rng.randrange(len(SEEDS))
        data = SEEDS[index] if choice < 0.4 else mutated(SEEDS[index], rng) if choice < 0.9 else junk(rng)
        pair.client_did(pair.client.receive_bytes(data, now=pair.now))
        pair.provider_did(pair.provider.receive_bytes(data, now=pair.now))
    for hung_up in (pair.client_hung_up, pair.provider_hung_up):
        assert hung_up is None or hung_up.why is None or isinstance(hung_up.why, CocoonError)
    assert pair.text(request_id) == text
    assert pair.client.requests_open <= 1
    for frame in (*pair.to_client, *pair.to_provider):
        decode_session(frame)  # whatever they answered is a message of the protocol


@pytest.mark.parametrize("block", range(10))
def test_any_body_gives_a_generation_or_a_typed_error(block: int) -> None:
    seeds = [
        b'{"messages":[{"role":"user","content":"Hello"}],"max_tokens":5,"stop":["a"],"temperature":0.5}',
        b'{"messages":[{"role":"tool","tool_call_id":"x","content":[{"type":"text","text":"y"}]}],"max_tokens":5}',
        (
            b'{"messages":[{"role":"user","content":""}],"max_tokens":1,"tools":[{"type":"function","function":'
            b'{"name":"f","parameters":{"type":"object","properties":{"a":{"enum":[1,2.5,null,true]}}}}}],'
            b'"tool_choice":"auto","response_format":{"type":"json_schema","json_schema":{"name":"s","schema":{}}}}'
        ),
    ]
    words = [b"{", b"}", b"[", b"]", b",", b":", b"null", b"1e999", b"-1", b'"\\ud800"', b"true", b'""', b"NaN"]
    for seed in range(block * 100, (block + 1) * 100):
        rng = random.Random(seed)
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 6)] = rng.choice(words) if rng.random() < 0.7 else rng.randbytes(2)
        try:
            generation_request(CHAT, bytes(data), cache_scope=b"")
        except InvalidRequest:
            continue
