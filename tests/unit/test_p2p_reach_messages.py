"""Relay, dial-back and punching messages: read back as written, read as libp2p's own code reads them, bounded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.host.autonat.pb import autonat_pb2
from libp2p.relay.circuit_v2.pb import circuit_pb2

from p2p import reach
from p2p.protobuf import bytes_field, varint_field
from p2p.reach import (
    DialBack,
    DialBackAnswer,
    HopKind,
    HopMessage,
    Punch,
    PunchKind,
    ReachMessageInvalid,
    StopKind,
    StopMessage,
    VerdictTally,
)

ADDRESSES = (b"\x04\x01\x02\x03\x04\x06\x0f\xa1", b"\x04\x05\x06\x07\x08\x06\x0f\xa1")
PEER = b"\x00\x24\x08\x01\x12\x20" + bytes(32)


def test_messages_are_read_back_as_they_were_written() -> None:
    hop = HopMessage(
        kind=HopKind.STATUS, status=100, expires_at_s=1_800_000_000, addresses=ADDRESSES, duration_s=120, data_bytes=9
    )
    assert reach.decode_hop(reach.encode_hop(hop)) == hop
    connect = HopMessage(kind=HopKind.CONNECT, peer=PEER)
    assert reach.decode_hop(reach.encode_hop(connect)) == connect
    stop = StopMessage(kind=StopKind.CONNECT, peer=PEER, duration_s=1, data_bytes=2)
    assert reach.decode_stop(reach.encode_stop(stop)) == stop
    dial = DialBack(peer=PEER, addresses=ADDRESSES)
    assert reach.decode_dial_back(reach.encode_dial_back(dial)) == dial
    answer = DialBackAnswer(status=100, text="no answer", address=ADDRESSES[0])
    assert reach.decode_dial_back_answer(reach.encode_dial_back_answer(answer)) == answer
    punch = Punch(kind=PunchKind.CONNECT, addresses=ADDRESSES)
    assert reach.decode_punch(reach.encode_punch(punch)) == punch


def test_the_library_reads_what_we_write_and_we_read_what_it_writes() -> None:
    theirs = circuit_pb2.HopMessage()
    theirs.ParseFromString(
        reach.encode_hop(
            HopMessage(kind=HopKind.STATUS, status=100, expires_at_s=77, addresses=ADDRESSES, data_bytes=5)
        )
    )
    assert (theirs.type, theirs.status, theirs.reservation.expire, theirs.limit.data) == (2, 100, 77, 5)
    assert tuple(theirs.reservation.addrs) == ADDRESSES
    assert reach.decode_hop(theirs.SerializeToString()).addresses == ADDRESSES
    request = autonat_pb2.Message()
    request.ParseFromString(reach.encode_dial_back(DialBack(peer=PEER, addresses=ADDRESSES)))
    assert request.dial.peer.id == PEER
    assert tuple(request.dial.peer.addrs) == ADDRESSES


DECODERS = [
    reach.decode_hop,
    reach.decode_stop,
    reach.decode_dial_back,
    reach.decode_dial_back_answer,
    reach.decode_punch,
]


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_one_typed_error(decode: object, data: bytes) -> None:
    try:
        decode(data)  # type: ignore[operator]
    except ReachMessageInvalid:
        pass


def test_what_is_over_a_bound_is_refused_or_cut() -> None:
    with pytest.raises(ReachMessageInvalid, match="over 4096"):
        reach.decode_hop(bytes(5000))
    with pytest.raises(ReachMessageInvalid, match="bound"):
        reach.decode_hop(varint_field(1, 1) + bytes_field(2, bytes_field(1, bytes(100))))
    with pytest.raises(ReachMessageInvalid, match="kind"):
        reach.decode_punch(varint_field(1, 7))
    many = varint_field(1, 100) + bytes_field(2, b"\x04") * 50
    assert len(reach.decode_punch(many).addresses) == 16


def test_the_tally_goes_by_the_latest_word_of_each_peer_and_forgets_the_oldest() -> None:
    tally = VerdictTally()
    assert tally.is_reachable is None
    tally.add("a", address=None, reason="no answer")
    assert tally.is_reachable is False
    assert tally.latest_reason == "no answer"
    tally.add("b", address="/ip4/1.2.3.4/tcp/5")
    assert tally.is_reachable is True
    tally.add("c", address=None, reason="refused")
    assert tally.is_reachable is False
    tally.add("a", address="/ip4/1.2.3.4/tcp/5")
    assert (tally.asked, tally.reached, tally.is_reachable) == (3, 2, True)
    assert tally.addresses == ("/ip4/1.2.3.4/tcp/5",)
    for number in range(20):
        tally.add(str(number), address=None)
    assert (tally.asked, tally.is_reachable) == (16, False)
