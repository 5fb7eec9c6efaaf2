"""The RPC codec: against libp2p's own protobuf classes, and against everything that is not an RPC."""

from __future__ import annotations

import random

import pytest
from libp2p.pubsub.pb import rpc_pb2

from p2p.gossip import Message, Prune, Rpc, RpcDecoder, RpcInvalid, encode_rpc, is_signed_by_source, signer
from p2p.gossip.messages import SIGN_PREFIX, id_of_source_and_seqno, id_of_whole_message, new_message, with_signature
from p2p.identity import peer_id_of_seed, peer_id_to_bytes
from p2p.protobuf import bytes_field, varint_field

SEED = bytes(range(32))
SOURCE = peer_id_to_bytes(peer_id_of_seed(SEED))
SIGN = signer(SEED)


def decoder() -> RpcDecoder:
    return RpcDecoder(message_bytes_max=64 * 1024)


def signed(data: bytes = b"data", seqno: int = 1) -> Message:
    plain = new_message(source=SOURCE, data=data, seqno=seqno.to_bytes(8, "big"), topic="t")
    return with_signature(plain, SIGN(SIGN_PREFIX + plain.signed))


FULL = Rpc(
    subscriptions=((True, "a"), (False, "b")),
    messages=(signed(), signed(seqno=2)),
    ihave=(("a", (b"1", b"2")), ("b", ())),
    iwant=(b"3", b"4"),
    graft=("a",),
    prune=(Prune("b", 30, ((b"peer", b"record"), (b"other", b""))),),
    idontwant=(b"5",),
)


def shape(rpc: Rpc) -> tuple[object, ...]:
    return (*rpc._replace(messages=()), *(m.raw for m in rpc.messages))


def test_every_field_survives_a_round_trip() -> None:
    assert shape(decoder().decode(encode_rpc(FULL))) == shape(FULL)


def test_libp2ps_protobuf_reads_what_we_write() -> None:
    theirs = rpc_pb2.RPC.FromString(encode_rpc(FULL))
    assert [(s.subscribe, s.topicid) for s in theirs.subscriptions] == [(True, "a"), (False, "b")]
    assert theirs.publish[0].from_id == SOURCE
    assert theirs.publish[0].SerializeToString() == FULL.messages[0].raw
    assert [(i.topicID, list(i.messageIDs)) for i in theirs.control.ihave] == [("a", [b"1", b"2"]), ("b", [])]
    assert list(theirs.control.iwant[0].messageIDs) == [b"3", b"4"]
    assert theirs.control.graft[0].topicID == "a"
    assert (theirs.control.prune[0].topicID, theirs.control.prune[0].backoff) == ("b", 30)
    assert theirs.control.prune[0].peers[0].signedPeerRecord == b"record"
    assert list(theirs.control.idontwant[0].messageIDs) == [b"5"]


def test_we_read_what_libp2ps_protobuf_writes() -> None:
    theirs = rpc_pb2.RPC()
    theirs.subscriptions.add(subscribe=True, topicid="t")
    theirs.publish.add(from_id=SOURCE, data=b"x", seqno=bytes(8), topicIDs=["t"], signature=bytes(64))
    theirs.control.prune.add(topicID="t", backoff=7)
    rpc = decoder().decode(theirs.SerializeToString())
    assert rpc.subscriptions == ((True, "t"),)
    assert rpc.messages[0].source == SOURCE
    assert rpc.prune == (Prune("t", 7),)


def test_a_message_is_kept_and_forwarded_as_it_came() -> None:
    data = encode_rpc(Rpc(messages=(signed(),)))
    (message,) = decoder().decode(data).messages
    assert encode_rpc(Rpc(messages=(message,))) == data


def test_a_repeated_message_is_the_same_object() -> None:
    one = decoder()
    data = encode_rpc(Rpc(messages=(signed(),)))
    assert one.decode(data).messages[0] is one.decode(data).messages[0]


def test_a_signature_holds_for_its_source_only() -> None:
    message = signed()
    assert is_signed_by_source(message)
    (received,) = decoder().decode(encode_rpc(Rpc(messages=(message,)))).messages
    assert is_signed_by_source(received)


@pytest.mark.parametrize("fault", ["data", "seqno", "topic", "source", "signature", "missing", "key"])
def test_a_changed_message_is_not_signed_by_its_source(fault: str) -> None:
    good = signed()
    raw = good.raw
    changed = {
        "data": raw.replace(b"data", b"dato"),
        "seqno": raw.replace((1).to_bytes(8, "big"), (9).to_bytes(8, "big")),
        "topic": raw.replace(b"\x22\x01t", b"\x22\x01u"),
        "source": raw.replace(SOURCE, SOURCE[:-1] + bytes([SOURCE[-1] ^ 1])),
        "signature": raw[:-1] + bytes([raw[-1] ^ 1]),
        "missing": good.signed,
        "key": raw + bytes_field(6, bytes.fromhex("08011220") + bytes(32)),
    }[fault]
    assert changed != raw
    (message,) = decoder().decode(bytes_field(2, changed)).messages
    assert not is_signed_by_source(message)


def test_two_messages_with_one_sequence_number_have_two_ids() -> None:
    one, two = signed(b"one"), signed(b"two")
    assert id_of_source_and_seqno(one) == id_of_source_and_seqno(two)
    assert id_of_whole_message(one) != id_of_whole_message(two)


def test_a_key_field_that_a_forwarder_adds_or_strips_does_not_make_another_message() -> None:
    """Nobody signs `key`: with it in the id, one message could go round twice."""
    raw = signed(b"one").raw
    (plain,) = decoder().decode(bytes_field(2, raw)).messages
    (keyed,) = decoder().decode(bytes_field(2, raw + bytes_field(6, SOURCE[2:]))).messages
    assert keyed.key != plain.key
    assert id_of_whole_message(plain) == id_of_whole_message(keyed)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("truncated", encode_rpc(FULL)[:-1]),
        ("wrong wire type", varint_field(2, 5)),
        ("group", b"\x13"),
        ("field 0", b"\x02\x00"),
        ("varint too long", b"\x12" + b"\xff" * 10),
        ("padded length", b"\x12\x80\x00"),
        ("message without topic", bytes_field(2, bytes_field(2, b"data"))),
        ("message with two topics", bytes_field(2, bytes_field(4, b"a") + bytes_field(4, b"b"))),
        ("fields out of order", bytes_field(2, bytes_field(4, b"a") + bytes_field(1, b"b"))),
        ("unknown message field", bytes_field(2, bytes_field(4, b"a") + bytes_field(9, b"b"))),
        ("topic not text", bytes_field(2, bytes_field(4, b"\xff\xfe"))),
        ("topic too long", bytes_field(1, bytes_field(2, b"t" * 257))),
        ("subscription without topic", bytes_field(1, varint_field(1, 1))),
        ("data too long", bytes_field(2, bytes_field(2, bytes(65 * 1024)) + bytes_field(4, b"t"))),
        ("too many subscriptions", bytes_field(1, bytes_field(2, b"t")) * 513),
        ("too many ids", bytes_field(3, bytes_field(2, bytes_field(1, b"i") * 5001))),
        ("empty id", bytes_field(3, bytes_field(2, bytes_field(1, b"")))),
        ("long id", bytes_field(3, bytes_field(5, bytes_field(1, bytes(65))))),
        ("too many grafts", bytes_field(3, bytes_field(3, bytes_field(1, b"t")) * 513)),
        ("graft without topic", bytes_field(3, bytes_field(3, b""))),
        ("too many peers", bytes_field(3, bytes_field(4, bytes_field(1, b"t") + bytes_field(2, b"") * 65))),
        ("long record", bytes_field(3, bytes_field(4, bytes_field(2, bytes_field(2, bytes(5000)))))),
        ("rpc too long", bytes(1024 * 1024 + 1)),
    ],
)
def test_what_is_no_rpc_is_refused(name: str, data: bytes) -> None:
    with pytest.raises(RpcInvalid):
        decoder().decode(data)


def test_unknown_fields_of_an_rpc_are_read_over() -> None:
    later = encode_rpc(Rpc(graft=("t",))) + bytes_field(10, b"something new") + varint_field(11, 1)
    assert decoder().decode(later).graft == ("t",)


def test_random_changes_end_in_an_rpc_or_in_a_refusal() -> None:
    rng = random.Random(9)
    good = encode_rpc(FULL)
    outcomes = {True: 0, False: 0}
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            decoder().decode(bytes(data[: rng.randrange(len(data) + 1)]))
            outcomes[True] += 1
        except RpcInvalid:
            outcomes[False] += 1
    assert min(outcomes.values()) > 20
