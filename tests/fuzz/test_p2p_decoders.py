"""Every decoder of the overlay against bytes that nobody should send: an answer or its typed error, nothing else.

Short forms, by hypothesis; each starts from valid bytes, so that the changes reach deep, and from plain noise.
"""

from __future__ import annotations

import random

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from p2p.gossip import Prune, Rpc, RpcDecoder, RpcInvalid, encode_rpc
from p2p.gossip.messages import new_message
from p2p.kad import (
    Ask,
    Done,
    KadMessage,
    KadMessageInvalid,
    KadNode,
    KadPeer,
    KadSettings,
    Kind,
    Record,
    Refuse,
    Send,
    decode_message,
    encode_message,
)
from p2p.noise import NoiseError, NoiseHandshake, SealedChannel, ed25519_identity, verify_ed25519
from p2p.noise.cipher import CipherState
from p2p.noise.messages import HandshakePayload, decode_payload, encode_payload
from p2p.transport import Connection, NegotiationFailed
from p2p.transport.multistream import Negotiation, encode_line
from p2p.yamux import Session, YamuxViolation
from p2p.yamux.messages import DATA, FIN, PING, RST, SYN, WINDOW_UPDATE, encode_header

SHORT = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
IDENTITY = ed25519_identity(seed=bytes(32), static_private=bytes(range(32)))

RPC = encode_rpc(
    Rpc(
        subscriptions=((True, "a"), (False, "b")),
        messages=(new_message(source=b"source", data=b"data", seqno=bytes(8), topic="t"),),
        ihave=(("a", (b"1", b"2")),),
        iwant=(b"3",),
        graft=("a",),
        prune=(Prune("b", 30, ((b"peer", b"record"),)),),
        idontwant=(b"5",),
    )
)
KAD = encode_message(
    KadMessage(
        kind=Kind.GET_VALUE,
        key=b"key",
        record=Record(b"key", b"value"),
        closer=(KadPeer(b"near", (b"\x04addr",)),),
        providers=(KadPeer(b"provider"),),
    )
)
PAYLOAD = encode_payload(HandshakePayload(identity_key=b"k" * 36, signature=b"s" * 64))
LINES = b"".join(map(encode_line, (b"/multistream/1.0.0", b"/tls/1.0.0", b"/noise"))) + b"rest"
FRAMES = (
    encode_header(WINDOW_UPDATE, SYN, 1, 0)
    + encode_header(DATA, 0, 1, 5)
    + b"hello"
    + encode_header(PING, SYN, 0, 7)
    + encode_header(DATA, FIN, 1, 0)
    + encode_header(WINDOW_UPDATE, SYN, 3, 100)
    + encode_header(WINDOW_UPDATE, RST, 3, 0)
)


@st.composite
def spoiled(draw: st.DrawFn, good: bytes) -> bytes:
    """`good` with a few bytes changed, cut, doubled or inserted; or noise."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=400))
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 3)):
            case 0 if position < len(data):
                data[position] = draw(st.integers(0, 255))
            case 1:
                del data[position:]
            case 2:
                data[position:position] = draw(st.binary(min_size=1, max_size=6))
            case _:
                data += data[position:]
    return bytes(data[:4096])


def chunks(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@SHORT
@given(spoiled(RPC))
def test_gossip_rpcs(data: bytes) -> None:
    try:
        rpc = RpcDecoder(message_bytes_max=1024).decode(data)
    except RpcInvalid:
        return
    assert RpcDecoder(message_bytes_max=1024).decode(encode_rpc(rpc)) is not None


@SHORT
@given(spoiled(KAD))
def test_dht_messages(data: bytes) -> None:
    try:
        message = decode_message(data)
    except KadMessageInvalid:
        return
    assert decode_message(encode_message(message)) == message


@SHORT
@given(spoiled(KAD), st.sampled_from(Kind))
def test_dht_requests_and_answers_that_decode_end_in_an_effect_and_hearsay_enters_no_table(
    data: bytes, kind: Kind
) -> None:
    try:
        message = decode_message(data)
    except KadMessageInvalid:
        return
    friend = bytes.fromhex("002408011220") + bytes(32)
    node = KadNode(b"me", settings=KadSettings(), rng=random.Random(1), now=0, addresses=lambda: ())
    for effect in node.receive(friend, message, now=0):
        assert isinstance(effect, (Send, Refuse))
    node.peer_changed(friend, connected=True, is_server=True, addresses=(b"\x04\x7f\x00\x00\x01",), now=0)
    key = message.key or b"key"  # so that the answer belongs to the question, when its kind does
    asked = node.get_value(key, now=0) if kind is Kind.GET_VALUE else node.find_closest(key, now=0)
    (ask,) = [effect for effect in asked[1] if isinstance(effect, Ask)]
    for effect in node.answered(ask.request_id, message, now=0):
        assert isinstance(effect, (Ask, Done))
    assert {entry.peer for entry in node.table} <= {friend}
    assert node.offences.counted <= 1


@SHORT
@given(spoiled(PAYLOAD))
def test_handshake_payloads(data: bytes) -> None:
    try:
        decode_payload(data)
    except NoiseError:
        pass


@SHORT
@given(spoiled(LINES), st.integers(1, 30))
def test_negotiation_lines(data: bytes, size: int) -> None:
    negotiation = Negotiation(is_dialer=False, protocol="/noise")
    try:
        for chunk in chunks(data, size):
            negotiation.receive(chunk)
    except NegotiationFailed:
        pass


@SHORT
@given(spoiled(FRAMES), st.integers(1, 60))
def test_yamux_frames(data: bytes, size: int) -> None:
    session = Session(is_client=False, now=0)
    try:
        for chunk in chunks(data, size):
            session.receive(chunk)
    except YamuxViolation:
        assert session.streams == ()
        assert session.receive(data) == []
    assert session.unread_bytes == sum(len(stream.unread) for stream in session.streams)


@SHORT
@given(st.binary(min_size=0, max_size=300), st.integers(1, 60))
def test_noise_handshakes(data: bytes, size: int) -> None:
    for is_initiator in (True, False):
        handshake = NoiseHandshake(
            is_initiator=is_initiator, identity=IDENTITY, verify=verify_ed25519, ephemeral_private=b"\x07" * 32
        )
        handshake.start()
        try:
            for chunk in chunks(len(data).to_bytes(2, "big") + data, size):
                handshake.receive(chunk)
        except NoiseError:
            pass
        assert handshake.channel is None


@SHORT
@given(st.data())
def test_sealed_frames(data: st.DataObject) -> None:
    sealed = SealedChannel(CipherState(bytes(32)), CipherState(bytes(32))).seal(b"a message")
    received = data.draw(spoiled(sealed))
    channel = SealedChannel(CipherState(bytes(32)), CipherState(bytes(32)))
    try:
        opened = channel.open(received)
    except NoiseError:
        return
    assert opened in ([], [b"a message"])


@SHORT
@given(spoiled(LINES), st.integers(1, 60), st.booleans())
def test_whole_connections(data: bytes, size: int, is_dialer: bool) -> None:
    connection = Connection(
        is_dialer=is_dialer, identity=IDENTITY, verify=verify_ed25519, ephemeral_private=b"\x07" * 32, now=0
    )
    try:
        for chunk in chunks(data, size):
            connection.receive(chunk, now=0)
    except (NegotiationFailed, NoiseError):
        pass
    assert not connection.is_open
