"""The libp2p half of Noise: who is believed, and sealed frames over a wire that cuts anywhere."""

from __future__ import annotations

import random

import pytest

from p2p.noise import NoiseError, NoiseHandshake, SealedChannel, ed25519_identity, verify_ed25519
from p2p.noise.cipher import PLAINTEXT_BYTES_MAX, CipherState
from p2p.noise.messages import HandshakePayload, decode_payload, encode_payload, statement_of_static_key
from p2p.protobuf import bytes_field

RNG = random.Random(3)
SEEDS = [bytes([side]) * 32 for side in (1, 2)]
IDENTITIES = [ed25519_identity(seed=seed, static_private=RNG.randbytes(32)) for seed in SEEDS]


def peer_of(side: int) -> bytes:
    payload = decode_payload(IDENTITIES[side].payload)
    return b"\x00\x24" + payload.identity_key


def handshakes(expected: bytes | None = None) -> tuple[NoiseHandshake, NoiseHandshake]:
    return (
        NoiseHandshake(
            is_initiator=True,
            identity=IDENTITIES[0],
            verify=verify_ed25519,
            ephemeral_private=RNG.randbytes(32),
            expected_peer=expected,
        ),
        NoiseHandshake(
            is_initiator=False, identity=IDENTITIES[1], verify=verify_ed25519, ephemeral_private=RNG.randbytes(32)
        ),
    )


def channels() -> tuple[SealedChannel, SealedChannel]:
    one, two = handshakes()
    two.receive(one.receive(two.receive(one.start())))
    assert one.channel is not None
    assert two.channel is not None
    return one.channel, two.channel


@pytest.mark.parametrize("chunk", [1, 2, 3, 50, 1000])
def test_both_sides_learn_who_the_other_is_however_the_bytes_are_cut(chunk: int) -> None:
    one, two = handshakes(expected=peer_of(1))
    under_way = [bytearray(one.start()), bytearray()]
    for _ in range(2000):
        for side, target in ((0, two), (1, one)):
            data = bytes(under_way[side][:chunk])
            del under_way[side][:chunk]
            if data and target.channel is None:
                under_way[1 - side] += target.receive(data)
    assert one.remote_peer == peer_of(1)
    assert two.remote_peer == peer_of(0)


def test_bytes_that_follow_the_handshake_in_the_same_read_are_not_lost() -> None:
    one, two = handshakes()
    last = one.receive(two.receive(one.start()))
    assert one.channel is not None
    two.receive(last + one.channel.seal(b"at once"))
    assert two.channel is not None
    assert two.channel.open(b"") == [b"at once"]


def test_nothing_is_known_of_the_remote_before_its_proof() -> None:
    one, two = handshakes()
    two.receive(one.start())
    assert two.remote_peer is None
    assert two.channel is None


def test_a_peer_other_than_the_one_dialled_is_refused() -> None:
    one, two = handshakes(expected=peer_of(0))
    with pytest.raises(NoiseError, match="not the peer"):
        one.receive(two.receive(one.start()))
    assert one.channel is None
    assert one.remote_peer is None


def test_a_proof_for_another_static_key_is_refused() -> None:
    stolen = decode_payload(IDENTITIES[0].payload)
    with pytest.raises(NoiseError, match="false signature"):
        verify_ed25519(stolen.identity_key, stolen.signature, statement_of_static_key(bytes(32)))


@pytest.mark.parametrize(
    ("name", "key", "signature"),
    [
        ("empty key", b"", bytes(64)),
        ("rsa", bytes.fromhex("08001220") + bytes(32), bytes(64)),
        ("short key", bytes.fromhex("08011220") + bytes(31), bytes(64)),
        ("short signature", bytes.fromhex("08011220") + bytes(32), bytes(63)),
        ("zero key", bytes.fromhex("08011220") + bytes(32), bytes(64)),
    ],
)
def test_a_proof_of_the_wrong_shape_is_refused(name: str, key: bytes, signature: bytes) -> None:
    with pytest.raises(NoiseError):
        verify_ed25519(key, signature, b"signed")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty", b""),
        ("no signature", bytes_field(1, b"key")),
        ("no key", bytes_field(2, b"signature")),
        ("two keys", bytes_field(1, b"key") * 2 + bytes_field(2, b"signature")),
        ("key as varint", b"\x08\x01" + bytes_field(2, b"signature")),
        ("truncated", bytes_field(1, b"key") + b"\x12\x09sign"),
        ("long key", bytes_field(1, bytes(2000)) + bytes_field(2, b"s")),
        ("long payload", bytes(5000)),
    ],
)
def test_a_malformed_payload_is_refused(name: str, data: bytes) -> None:
    with pytest.raises(NoiseError):
        decode_payload(data)


def test_extensions_of_other_implementations_are_read_over() -> None:
    plain = HandshakePayload(identity_key=b"key", signature=b"signature")
    assert decode_payload(encode_payload(plain) + bytes_field(4, bytes_field(2, b"/yamux/1.0.0"))) == plain


def test_a_handshake_message_that_announces_too_much_is_refused_before_it_is_read() -> None:
    _, two = handshakes()
    with pytest.raises(NoiseError, match="too long"):
        two.receive(b"\xff\xff")


@pytest.mark.parametrize("size", [1, PLAINTEXT_BYTES_MAX, PLAINTEXT_BYTES_MAX + 1, 300_000])
def test_a_channel_carries_any_size_and_no_frame_is_over_the_limit(size: int) -> None:
    one, two = channels()
    data = RNG.randbytes(size)
    sealed = one.seal(data)
    position = 0
    while position < len(sealed):
        length = int.from_bytes(sealed[position : position + 2], "big")
        assert 16 < length <= 65535
        position += 2 + length
    assert b"".join(two.open(sealed)) == data


def test_nothing_is_sealed_into_nothing_rather_than_into_an_empty_message() -> None:
    one, _ = channels()
    assert one.seal(b"") == b""


def test_an_empty_message_of_a_foreign_peer_is_read_over() -> None:
    key = bytes(32)
    channel = SealedChannel(CipherState(key), CipherState(key))
    foreign = CipherState(key)
    empty, full = foreign.encrypt(b""), foreign.encrypt(b"full")
    framed = b"".join(len(m).to_bytes(2, "big") + m for m in (empty, full))
    assert channel.open(framed) == [b"full"]


@pytest.mark.parametrize("fault", ["bit", "swap", "repeat", "drop"])
def test_a_changed_swapped_repeated_or_missing_frame_is_refused(fault: str) -> None:
    one, two = channels()
    first, second = one.seal(b"first"), one.seal(b"second")
    two_frames = {
        "bit": first[:-1] + bytes([first[-1] ^ 1]),
        "swap": second + first,
        "repeat": first + first,
        "drop": second,
    }[fault]
    with pytest.raises(NoiseError):
        two.open(two_frames)


@pytest.mark.parametrize("length", [0, 1, 15])
def test_a_frame_shorter_than_its_tag_is_refused(length: int) -> None:
    one, _ = channels()
    with pytest.raises(NoiseError, match="tag"):
        one.open(length.to_bytes(2, "big") + bytes(length))


def test_keys_never_appear_in_a_repr() -> None:
    assert IDENTITIES[0].static_private.hex() not in repr(IDENTITIES[0])
    assert repr(IDENTITIES[0].static_private) not in repr(IDENTITIES[0])
