"""The connection machine: two of them over a fake wire, and one against hostile bytes."""

from __future__ import annotations

import random

import pytest

from p2p.noise import NoiseError, ed25519_identity, verify_ed25519
from p2p.transport import Connection, NegotiationFailed
from p2p.transport.multistream import Negotiation, encode_line
from p2p.yamux import StreamArrived, YamuxViolation
from p2p.yamux.messages import DATA, encode_header

RNG = random.Random(5)
IDENTITIES = [ed25519_identity(seed=bytes([n]) * 32, static_private=RNG.randbytes(32)) for n in (1, 2)]


def connection(side: int, expected: bytes | None = None) -> Connection:
    return Connection(
        is_dialer=side == 0,
        identity=IDENTITIES[side],
        verify=verify_ed25519,
        ephemeral_private=RNG.randbytes(32),
        expected_peer=expected,
        now=0,
    )


def all_of(source: Connection) -> bytes:
    out = b""
    while piece := source.outgoing():
        out += piece
    return out


def join(one: Connection, two: Connection) -> None:
    for _ in range(20):
        two.receive(all_of(one), now=0)
        one.receive(all_of(two), now=0)


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_two_sides_open_and_carry_a_stream_however_the_bytes_are_cut(chunk: int) -> None:
    one, two = connection(0), connection(1)
    wires = [bytearray(all_of(one)), bytearray()]
    arrived: list[StreamArrived] = []
    written = False
    for _ in range(5000):
        for source, target, wire in ((one, two, wires[0]), (two, one, wires[1])):
            piece = bytes(wire[:chunk])
            del wire[:chunk]
            if piece:
                arrived += [e for e in target.receive(piece, now=0) if isinstance(e, StreamArrived)]
            wires[0] += all_of(one)
            wires[1] += all_of(two)
            del source
        if one.is_open and not written:
            written = True
            one.session.write(one.session.open(), b"hello")
            wires[0] += all_of(one)
        if arrived and arrived[0].stream.unread == b"hello":
            break
    assert two.session.read(arrived[0].stream) == b"hello"
    assert one.remote_peer != two.remote_peer


def test_streams_opened_in_the_same_read_as_the_end_of_the_handshake_are_not_lost() -> None:
    one, two = connection(0), connection(1)
    two.receive(all_of(one), now=0)
    one.receive(all_of(two), now=0)
    two.receive(all_of(one), now=0)
    one.receive(all_of(two), now=0)
    late = all_of(one)  # message 3 and the yamux proposal
    assert not one.is_open
    two.receive(late, now=0)
    assert two.is_open
    two.session.write(two.session.open(), b"first word of the listener")
    events = one.receive(all_of(two), now=0)
    assert one.is_open
    assert any(isinstance(e, StreamArrived) for e in events)


def test_a_dialer_that_meets_another_peer_does_not_open() -> None:
    one, two = connection(0, expected=bytes(38)), connection(1)
    with pytest.raises(NoiseError):
        join(one, two)
    assert not one.is_open


def test_a_changed_byte_after_the_handshake_is_the_end() -> None:
    one, two = connection(0), connection(1)
    join(one, two)
    one.session.open()
    sealed = bytearray(all_of(one))
    sealed[-1] ^= 1
    with pytest.raises(NoiseError):
        two.receive(bytes(sealed), now=0)


def test_a_yamux_violation_is_answered_with_a_go_away_and_is_the_end() -> None:
    one, two = connection(0), connection(1)
    join(one, two)
    one.session._control += encode_header(DATA, 0, 2**31, 2**31)
    with pytest.raises(YamuxViolation):
        two.receive(all_of(one), now=0)
    assert all_of(two), "the Go Away is there to be sent"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("http", b"GET / HTTP/1.1\r\nHost: example\r\n\r\n"),
        ("zero length", b"\x00"),
        ("long line", b"\x80" + bytes(200)),
        ("no newline", b"\x03abc"),
        ("another greeting", encode_line(b"/multistream/2.0.0")),
        ("too many proposals", encode_line(b"/multistream/1.0.0") + encode_line(b"/tls/1.0.0") * 17),
    ],
)
def test_a_listener_refuses_strangers_in_its_first_bytes(name: str, data: bytes) -> None:
    with pytest.raises(NegotiationFailed):
        connection(1).receive(data, now=0)


def test_a_dialer_whose_protocol_is_refused_gives_up() -> None:
    with pytest.raises(NegotiationFailed, match="/noise"):
        connection(0).receive(encode_line(b"/multistream/1.0.0") + encode_line(b"na"), now=0)


def test_a_peer_that_first_proposes_another_protocol_still_agrees() -> None:
    negotiation = Negotiation(is_dialer=False, protocol="/noise")
    answer = negotiation.receive(
        encode_line(b"/multistream/1.0.0") + encode_line(b"/tls/1.0.0") + encode_line(b"/noise") + b"rest"
    )
    assert answer == b"".join(map(encode_line, (b"/multistream/1.0.0", b"na", b"/noise")))
    assert negotiation.rest == b"rest"
