"""The Noise XX handshake against published vectors and against an independent implementation."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from noise.connection import Keypair, NoiseConnection  # the package that libp2p installs

from p2p.noise.cipher import NoiseError
from p2p.noise.handshake import XXHandshake

VECTOR = json.loads((Path(__file__).parents[1] / "vectors" / "noise_xx.json").read_text())


def test_the_cacophony_vector_is_reproduced_byte_for_byte() -> None:
    def side(role: str) -> XXHandshake:
        return XXHandshake(
            is_initiator=role == "init",
            static_private=bytes.fromhex(VECTOR[f"{role}_static"]),
            ephemeral_private=bytes.fromhex(VECTOR[f"{role}_ephemeral"]),
            prologue=bytes.fromhex(VECTOR["prologue"]),
        )

    initiator, responder = side("init"), side("resp")
    messages = [(bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in VECTOR["messages"]]
    for number, (payload, ciphertext) in enumerate(messages[:3]):
        writer, reader = (initiator, responder) if number % 2 == 0 else (responder, initiator)
        assert writer.write(payload) == ciphertext
        assert reader.read(ciphertext) == payload
    assert initiator.transcript == responder.transcript
    (i_send, i_receive), (r_send, r_receive) = initiator.split(), responder.split()
    for number, (payload, ciphertext) in enumerate(messages[3:]):
        sender, receiver = (r_send, i_receive) if number % 2 == 0 else (i_send, r_receive)
        assert sender.encrypt(payload) == ciphertext
        assert receiver.decrypt(ciphertext) == payload


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("we_initiate", [True, False])
def test_every_message_agrees_with_the_noiseprotocol_package(seed: int, we_initiate: bool) -> None:
    rng = random.Random(seed)
    ours = XXHandshake(is_initiator=we_initiate, static_private=rng.randbytes(32), ephemeral_private=rng.randbytes(32))
    theirs = NoiseConnection.from_name(b"Noise_XX_25519_ChaChaPoly_SHA256")
    theirs.set_keypair_from_private_bytes(Keypair.STATIC, rng.randbytes(32))
    if we_initiate:
        theirs.set_as_responder()
    else:
        theirs.set_as_initiator()
    theirs.start_handshake()
    for number in range(3):
        payload = rng.randbytes(rng.randrange(200))
        if (number % 2 == 0) == we_initiate:
            assert bytes(theirs.read_message(ours.write(payload))) == payload
        else:
            assert ours.read(bytes(theirs.write_message(payload))) == payload
    assert ours.is_done
    assert theirs.handshake_finished
    assert ours.transcript == theirs.get_handshake_hash()
    sending, receiving = ours.split()
    for size in (1, 17, 1000, 65000):
        data = rng.randbytes(size)
        assert theirs.decrypt(sending.encrypt(data)) == data
        assert receiving.decrypt(theirs.encrypt(data)) == data


def pair() -> tuple[XXHandshake, XXHandshake]:
    rng = random.Random(1)
    return tuple(  # type: ignore[return-value]
        XXHandshake(is_initiator=first, static_private=rng.randbytes(32), ephemeral_private=rng.randbytes(32))
        for first in (True, False)
    )


@pytest.mark.parametrize("position", [0, 31, 32, 79, 80, 100])
def test_a_changed_bit_in_the_second_message_fails_the_handshake(position: int) -> None:
    initiator, responder = pair()
    responder.read(initiator.write(b""))
    message = bytearray(responder.write(b"payload"))
    message[position % len(message)] ^= 1
    with pytest.raises(NoiseError):
        initiator.read(bytes(message))


@pytest.mark.parametrize("position", [0, 47, 48, 60])
def test_a_changed_bit_in_the_third_message_fails_the_handshake(position: int) -> None:
    initiator, responder = pair()
    responder.read(initiator.write(b""))
    initiator.read(responder.write(b""))
    message = bytearray(initiator.write(b"payload"))
    message[position % len(message)] ^= 1
    with pytest.raises(NoiseError):
        responder.read(bytes(message))


@pytest.mark.parametrize("size", [0, 1, 31])
def test_a_message_too_short_for_its_key_is_refused(size: int) -> None:
    _, responder = pair()
    with pytest.raises(NoiseError, match="too short"):
        responder.read(bytes(size))


def test_a_key_of_low_order_is_refused() -> None:
    _, responder = pair()
    responder.read(bytes(32))
    with pytest.raises(NoiseError, match="no key"):
        responder.write(b"")


def test_another_prologue_fails_the_handshake() -> None:
    rng = random.Random(2)
    one, other = (
        XXHandshake(
            is_initiator=first,
            static_private=rng.randbytes(32),
            ephemeral_private=rng.randbytes(32),
            prologue=prologue,
        )
        for first, prologue in ((True, b"one"), (False, b"other"))
    )
    other.read(one.write(b""))
    with pytest.raises(NoiseError):
        one.read(other.write(b""))
