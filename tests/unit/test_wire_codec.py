"""One message has one encoding, and nothing else is taken: a table of everything that is not canonical CBOR."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import cbor2
import pytest

from cocoon.errors import DecodeError, LimitExceeded
from cocoon.serve.effects import decode_session
from cocoon.wire import limits
from cocoon.wire.codec import DEPTH_MAX, decode, decode_as, encode
from cocoon.wire.messages import (
    Accepted,
    Chunk,
    EndBody,
    Evidence,
    Frame,
    Hello,
    Message,
    Offer,
    OffersQuery,
    Ping,
    Refused,
    SessionMessage,
)


class Pairs(Message, frozen=True):
    """A message with a map, as only offers have one."""

    extensions: dict[int, bytes]


PING = encode(Ping(token=5))


def test_a_message_is_an_array_of_its_tag_and_its_fields() -> None:
    assert PING.hex() == "820c05"
    assert decode(PING, SessionMessage, bytes_max=16) == Ping(token=5)
    assert decode_as(PING, Ping, bytes_max=16) == Ping(token=5)


NOT_CANONICAL = {
    "nothing": "",
    "cut in the head": "82",
    "cut in an integer": "820c19",
    "cut in an argument": "820c1901",
    "bytes after the message": "820c0500",
    "two messages": "820c05820c05",
    "an integer in two bytes that fits one": "820c1805",
    "an integer in three bytes that fits two": "820c1900ff",
    "an integer in five bytes that fits three": "820c1a0000ffff",
    "an integer in nine bytes that fits five": "820c1b00000000ffffffff",
    "a length in two bytes that fits one": "98020c05",
    "a tag in two bytes that fits one": "82180c05",
    "an array of indefinite length": "9f0c05ff",
    "a string of indefinite length": "820c5f4105ff",
    "a break alone": "ff",
    "a reserved form": "820c1c",
    "a reserved form of arrays": "9c",
    "a half float": "820cf94500",
    "a float": "820cfa40a00000",
    "a double": "820cfb4014000000000000",
    "NaN": "820cf97e00",
    "undefined": "820cf7",
    "a simple value": "820ce0",
    "a simple value in two bytes": "820cf820",
    "a tagged integer": "820cc105",
    "a bignum": "820cc24105",
    "self-described CBOR": "d9d9f7820c05",
    "an integer where the message should be": "05",
    "a map where the message should be": "a10c05",
    "an unknown message": "82186305",
    "a negative message": "822b05",
    "a field too many": "830c0505",
    "a field too few": "810c",
    "text where an integer should be": "820c6135",
    "true where an integer should be": "820cf5",
    "null where an integer should be": "820cf6",
    "a negative counter": "820c24",
    "a counter of 64 bits": "820c1bffffffffffffffff",
    "an array that claims four billion items": "9affffffff",
    "an array that claims 2^63 items": "9b7fffffffffffffff",
    "bytes that claim four billion": "820c5affffffff",
    "text that claims 2^63 bytes": "820c7b7fffffffffffffff",
    "a map that claims four billion pairs": "baffffffff",
}


@pytest.mark.parametrize("name", NOT_CANONICAL)
def test_what_is_not_the_one_encoding_is_refused(name: str) -> None:
    data = bytes.fromhex(NOT_CANONICAL[name])
    with pytest.raises(DecodeError):
        decode(data, SessionMessage, bytes_max=1_024)


@pytest.mark.parametrize(
    "extensions",
    [
        "a219044d4100190 3e84100".replace(" ", ""),  # keys out of order
        "a21903e841001903e84101",  # a key twice
        "a120 4100".replace(" ", ""),  # a negative key
        "a1613141 00".replace(" ", ""),  # a text key
        "a141314100",  # a bytes key
        "a1f54100",  # a simple key
        "a1804100",  # an array key
        "a1 1805 4100".replace(" ", ""),  # a key that is not shortest
        "a21903e84100",  # a pair too few
    ],
)
def test_maps_have_rising_unsigned_keys_only(extensions: str) -> None:
    with pytest.raises(DecodeError):
        decode_as(bytes.fromhex("81" + extensions), Pairs, bytes_max=64)


def test_maps_are_taken_in_key_order_and_written_so() -> None:
    message = Pairs(extensions={70_000: b"c", 1_000: b"a", 1_100: b"b"})
    data = encode(message)
    assert data.hex() == "81a31903e8416119044c41621a000111704163"
    assert decode_as(data, Pairs, bytes_max=64) == message


def test_text_must_be_utf8() -> None:
    good = encode(Refused(id=1, reason="busy", retry_after_ms=0, detail="é"))
    for bad in (b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80"[:2]):
        data = good.replace("é".encode(), bad)
        with pytest.raises(DecodeError):
            decode(data, SessionMessage, bytes_max=1_024)


def test_the_size_bound_comes_first_and_is_exact() -> None:
    assert decode(PING, SessionMessage, bytes_max=3) == Ping(token=5)
    with pytest.raises(LimitExceeded):
        decode(PING, SessionMessage, bytes_max=2)


def test_the_depth_bound_is_exact_and_deep_nests_cost_nothing() -> None:
    def nested(depth: int) -> bytes:
        return b"\x81" * depth + b"\x00"

    with pytest.raises(DecodeError):
        decode(nested(DEPTH_MAX), SessionMessage, bytes_max=1_024)
    with pytest.raises(LimitExceeded):
        decode(nested(DEPTH_MAX + 1), SessionMessage, bytes_max=1_024)
    with pytest.raises(LimitExceeded):
        decode(nested(2_000_000), SessionMessage, bytes_max=2_000_001)


def test_a_hostile_length_allocates_nothing() -> None:
    tracemalloc.start()
    for head in ("9affffffff", "baffffffff", "5affffffff", "7affffffff", "9b00ffffffffffffff"):
        with pytest.raises(DecodeError):
            decode(bytes.fromhex(head), SessionMessage, bytes_max=1_024)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_the_largest_frame_of_junk_is_refused_by_its_count_before_it_is_walked() -> None:
    """Two megabytes of one-byte items would cost half a second of CPU for a message that is sent in 20 ms."""
    count = limits.SESSION_FRAME_BYTES_MAX - 5
    data = b"\x9a" + count.to_bytes(4, "big") + b"\x00" * count
    start = time.process_time()
    with pytest.raises(LimitExceeded):
        decode(data, SessionMessage, bytes_max=limits.SESSION_FRAME_BYTES_MAX)
    assert time.process_time() - start < 0.1


def test_the_bound_on_items_counts_nested_ones_and_pairs() -> None:
    message = Pairs(extensions={1_000 + n: b"" for n in range(10)})
    assert decode_as(encode(message), Pairs, bytes_max=1_024) == message
    assert decode(encode(message), Pairs, bytes_max=1_024, items_max=11) == message
    with pytest.raises(LimitExceeded):
        decode(encode(message), Pairs, bytes_max=1_024, items_max=10)


def test_the_largest_honest_frame_is_within_the_bound_on_items() -> None:
    chunk = Chunk(id=1 << 40, number=0, final=False, prompt_tokens=0, completion_tokens=0, sealed=bytes(16))
    data = encode(Frame(chunks=[chunk] * limits.FRAME_CHUNKS_MAX, padding=b""))
    assert decode_session(data) == Frame(chunks=[chunk] * limits.FRAME_CHUNKS_MAX, padding=b"")


SHORT_SEAL = Chunk(id=0, number=0, final=False, prompt_tokens=0, completion_tokens=0, sealed=bytes(15))
EVIDENCE = {
    "statement": b"S",
    "operator_signature": bytes(64),
    "peer_signature": bytes(64),
    "provider_nonce": bytes(32),
    "hardware": b"",
}
END = {"finish_reason": "stop", "prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Hello, {"version": 1, "network": -217, "nonce": bytes(31), "client_nonce": bytes(32)}),
        (Hello, {"version": 1, "network": 1 << 31, "nonce": bytes(32), "client_nonce": bytes(32)}),
        (Hello, {"version": 1 << 16, "network": -217, "nonce": bytes(32), "client_nonce": bytes(32)}),
        (Accepted, {"id": 1 << 63, "salt": bytes(32), "queue_position": 0}),
        (Accepted, {"id": 0, "salt": bytes(33), "queue_position": 0}),
        (Accepted, {"id": 0, "salt": bytes(32), "queue_position": 65_536}),
        (Refused, {"id": 0, "reason": "", "retry_after_ms": 0, "detail": ""}),
        (Refused, {"id": 0, "reason": "Busy", "retry_after_ms": 0, "detail": ""}),
        (Refused, {"id": 0, "reason": "busy", "retry_after_ms": 0, "detail": "x" * 257}),
        (Frame, {"chunks": [], "padding": b""}),
        (Frame, {"chunks": [SHORT_SEAL], "padding": b""}),
        (EndBody, {**END, "finish_reason": ""}),
        (EndBody, {**END, "completion_tokens": (1 << 20) + 1}),
        (Evidence, {**EVIDENCE, "statement": b""}),
        (Evidence, {**EVIDENCE, "operator_signature": bytes(63)}),
        (Evidence, {**EVIDENCE, "statement": bytes(4_097)}),
    ],
)  # fmt: skip
def test_a_field_out_of_its_bounds_is_refused(kind: type[Message], fields: dict[str, Any]) -> None:
    data = encode(kind(**fields))  # msgspec checks bounds when decoding only: a peer can send this
    with pytest.raises(DecodeError):
        decode_as(data, kind, bytes_max=limits.SESSION_FRAME_BYTES_MAX)


def test_an_error_never_repeats_what_was_sent() -> None:
    secret = "a secret detail"
    data = encode(Refused(id=0, reason=secret, retry_after_ms=0, detail=secret * 30))
    with pytest.raises(DecodeError) as error:
        decode(data, SessionMessage, bytes_max=4_096)
    assert secret not in str(error.value)


def test_encoding_is_what_an_independent_canonical_encoder_gives() -> None:
    message = Hello(version=1, network=-217, nonce=bytes(32), client_nonce=b"\xff" * 32)
    assert encode(message) == cbor2.dumps([1, 1, -217, bytes(32), b"\xff" * 32], canonical=True)


def test_an_offer_has_no_room_for_more_than_its_bounds_say() -> None:
    assert "extensions" in Offer.__struct_fields__
    assert limits.SIGNED_OFFER_BYTES_MAX > limits.OFFER_BYTES_MAX


@pytest.mark.parametrize("text", ["", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="])
def test_base64_text_is_not_taken_where_bytes_belong(text: str) -> None:
    """msgspec reads it so by default, and one message would have two encodings."""
    with pytest.raises(DecodeError, match="bytes"):
        decode(cbor2.dumps([34, text]), OffersQuery, bytes_max=100)
