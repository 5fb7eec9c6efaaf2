"""Any bytes and any text: a typed error or a value, never anything else, and a book that stays as it was."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from cocoon.errors import BadSignature, DecodeError, InvalidRequest, LimitExceeded, OfferInvalid
from cocoon.market.addresses import decode_address, encode_address, key_of_peer_id, peer_id_of_key
from cocoon.market.beacon import parse_beacon, verify_parsed_beacon
from cocoon.market.book import OfferBook
from cocoon.market.catalogue import Catalogue, ModelRef
from cocoon.market.equivocation import verify_proof
from cocoon.market.history import unpack
from cocoon.market.offer import parse_offer, verify_offer
from cocoon.ports import Verdict
from cocoon.wire import limits
from tests.fakes.market import MODEL, NEIGHBOUR, NET, NOW, beacon_bytes, offer_bytes

REFUSED = (DecodeError, LimitExceeded, OfferInvalid, BadSignature)
OFFER = offer_bytes()
BEACON = beacon_bytes()


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """A real message that was cut, repeated, overwritten or spliced, or no message at all."""
    data = bytearray(draw(st.sampled_from([OFFER, BEACON])))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 4)):
            case 0:
                del data[at:]
            case 1:
                data[at:at] = draw(st.binary(max_size=24))
            case 2:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 3:
                data[at:at] = data[at : at + draw(st.integers(1, 300))]
            case _:
                data = bytearray(draw(st.binary(max_size=1_400)))
    return bytes(data)


def check(data: bytes) -> None:
    for judge in (
        lambda: verify_offer(data, network=NET),
        lambda: verify_parsed_beacon(parse_beacon(data, network=NET)),
        lambda: verify_proof(data),
        lambda: unpack(data),
    ):
        try:
            judge()
        except REFUSED:
            continue
    for receive in (OfferBook.receive_offer, OfferBook.receive_beacon):
        book = OfferBook(NET)
        judgement = receive(book, NEIGHBOUR, data, now=NOW)
        if judgement.verdict is Verdict.ACCEPT:
            assert data == OFFER
        else:
            assert judgement.effects == ()
            assert len(book) == 0


@given(mangled())
@settings(max_examples=400, deadline=None)
def test_mangled_messages_are_refused_with_a_typed_error(data: bytes) -> None:
    check(data)


@pytest.mark.long
@given(mangled())
@settings(max_examples=200_000, deadline=None)
def test_mangled_messages_are_refused_with_a_typed_error_long(data: bytes) -> None:
    check(data)


def test_every_prefix_of_a_message_is_refused() -> None:
    for end in range(len(OFFER)):
        with pytest.raises(REFUSED):
            parse_offer(OFFER[:end], network=NET)


def test_size_is_judged_before_anything_is_read() -> None:
    huge = b"\x9a\xff\xff\xff\xff" + bytes(limits.SIGNED_OFFER_BYTES_MAX)
    with pytest.raises(LimitExceeded):
        parse_offer(huge, network=NET)


@given(st.binary(max_size=160))
@settings(max_examples=500, deadline=None)
def test_a_binary_address_that_is_read_has_one_form(binary: bytes) -> None:
    try:
        text = decode_address(binary)
    except (DecodeError, LimitExceeded):
        return
    assert encode_address(text) == binary


@given(
    st.sampled_from([b"\x04\x7f\x00\x00\x01", b"\x35\x01a", b"\x36\x03a.b", b"\x29" + bytes(15) + b"\x01"]),
    st.binary(max_size=3),
    st.sampled_from([b"", b"\xa5\x03\x26\x00\x24\x08\x01\x12\x20" + bytes(32) + b"\xa2\x02", b"\xa5\x03"]),
)
@settings(max_examples=300, deadline=None)
def test_a_nearly_right_binary_address_has_one_form_too(host: bytes, port: bytes, relay: bytes) -> None:
    test_a_binary_address_that_is_read_has_one_form.hypothesis.inner_test(  # type: ignore[attr-defined]
        host + b"\x06" + port + relay
    )


@given(st.text(max_size=600))
@settings(max_examples=300, deadline=None)
def test_any_text_as_address_peer_id_or_model_is_a_typed_error_or_a_value(text: str) -> None:
    for read in (encode_address, key_of_peer_id):
        try:
            read(text)
        except (DecodeError, LimitExceeded):
            continue
    said = ""
    try:
        Catalogue([ModelRef(name="cocoon-tiny", digest=MODEL)]).resolve(text)
    except InvalidRequest as error:
        said = error.diagnostics()
    assert len(said) < 2_000


@given(st.binary(min_size=32, max_size=32))
@settings(max_examples=100, deadline=None)
def test_every_key_has_one_peer_id(key: bytes) -> None:
    assert key_of_peer_id(peer_id_of_key(key)) == key
