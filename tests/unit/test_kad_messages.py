"""The DHT codec: against libp2p's own protobuf classes, and against what is no message."""

from __future__ import annotations

import random

import pytest
from libp2p.kad_dht.pb.kademlia_pb2 import Message as LibraryMessage

from p2p.kad import KadMessage, KadMessageInvalid, KadPeer, Kind, Record, decode_message, encode_message
from p2p.protobuf import bytes_field, varint_field

FULL = KadMessage(
    kind=Kind.GET_PROVIDERS,
    key=b"key",
    record=Record(b"key", b"value"),
    closer=(KadPeer(b"near", (b"\x04addr", b"\x04more")), KadPeer(b"bare")),
    providers=(KadPeer(b"provider", (b"\x04addr",)),),
)


def test_every_field_survives_a_round_trip() -> None:
    assert decode_message(encode_message(FULL)) == FULL


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_survives_a_round_trip(kind: Kind) -> None:
    assert decode_message(encode_message(KadMessage(kind=kind))).kind is kind


def test_libp2ps_protobuf_reads_what_we_write() -> None:
    theirs = LibraryMessage.FromString(encode_message(FULL))
    assert theirs.type == LibraryMessage.GET_PROVIDERS
    assert (theirs.key, theirs.record.key, theirs.record.value) == (b"key", b"key", b"value")
    assert [(p.id, list(p.addrs)) for p in theirs.closerPeers] == [
        (b"near", [b"\x04addr", b"\x04more"]),
        (b"bare", []),
    ]
    assert theirs.providerPeers[0].id == b"provider"


def test_we_read_what_libp2ps_protobuf_writes() -> None:
    theirs = LibraryMessage(type=LibraryMessage.FIND_NODE, key=b"k", clusterLevelRaw=10, senderRecord=b"signed")
    theirs.closerPeers.add(id=b"p", addrs=[b"a"], connection=LibraryMessage.CONNECTED, signedRecord=b"signed")
    theirs.record.CopyFrom(LibraryMessage().record)
    ours = decode_message(theirs.SerializeToString())
    assert ours.kind is Kind.FIND_NODE
    assert ours.closer == (KadPeer(b"p", (b"a",)),)


def test_surplus_and_oversized_addresses_are_read_over() -> None:
    peer = bytes_field(1, b"p") + bytes_field(2, bytes(300)) + bytes_field(2, b"a") * 20
    assert decode_message(varint_field(1, 4) + bytes_field(8, peer)).closer == (KadPeer(b"p", (b"a",) * 8),)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("truncated", encode_message(FULL)[:-1]),
        ("unknown kind", varint_field(1, 6)),
        ("kind as bytes", bytes_field(1, b"x")),
        ("key too long", bytes_field(2, bytes(129))),
        ("value too long", bytes_field(3, bytes_field(2, bytes(20_000)))),
        ("peer without id", bytes_field(8, bytes_field(2, b"a"))),
        ("peer id too long", bytes_field(9, bytes_field(1, bytes(65)))),
        ("too many peers", bytes_field(8, bytes_field(1, b"p")) * 65),
        ("message too long", bytes(64 * 1024 + 1)),
    ],
)
def test_what_is_no_message_is_refused(name: str, data: bytes) -> None:
    with pytest.raises(KadMessageInvalid):
        decode_message(data)


def test_random_changes_end_in_a_message_or_in_a_refusal() -> None:
    rng = random.Random(4)
    good = encode_message(FULL)
    outcomes = {True: 0, False: 0}
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            decode_message(bytes(data[: rng.randrange(len(data) + 1)]))
            outcomes[True] += 1
        except KadMessageInvalid:
            outcomes[False] += 1
    assert min(outcomes.values()) > 20
