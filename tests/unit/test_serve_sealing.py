"""Sealing, padding and the life of E, each by itself."""

from __future__ import annotations

import pytest

from cocoon.errors import LimitExceeded, SealError
from cocoon.serve import bounds, sealing
from cocoon.serve.testing import START_NS, CountingEntropy
from cocoon.types import SECOND_NS, Network, Secret
from cocoon.wire.limits import SEALED_REQUEST_BYTES_MAX


@pytest.mark.parametrize(
    ("size", "padded"),
    [(0, 1_024), (1, 1_024), (1_020, 1_024), (1_021, 2_048), (2_044, 2_048), (2_045, 4_096), (1_048_572, 1_048_576)],
)
def test_requests_are_padded_to_powers_of_two_from_1_kib(size: int, padded: int) -> None:
    plaintext = b"x" * size
    assert len(sealing.pad_request(plaintext)) == padded
    assert sealing.unpad_request(sealing.pad_request(plaintext)) == plaintext


def test_the_largest_request_fits_the_message_and_one_byte_more_is_refused() -> None:
    crypto = sealing.HpkeCrypto()
    public = crypto.public_key(Secret(b"k" * 32))
    padded = sealing.pad_request(bytes(1_048_572))
    assert len(crypto.seal(public, padded, b"info")) <= SEALED_REQUEST_BYTES_MAX
    with pytest.raises(LimitExceeded):
        sealing.pad_request(bytes(1_048_573))


@pytest.mark.parametrize(
    "padded",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\1x",
        (1_021).to_bytes(4, "big") + bytes(1_020),
        (2).to_bytes(4, "big") + b"ok" + bytes(1_017) + b"\1",
        (2).to_bytes(4, "big") + b"ok" + bytes(2_042),
        b"\xff\xff\xff\xff" + bytes(1_020),
        bytes(2_097_152),
    ],
)
def test_padding_has_one_form_and_everything_else_is_a_seal_error(padded: bytes) -> None:
    with pytest.raises(SealError) as error:
        sealing.unpad_request(padded)
    assert str(error.value) == str(sealing.seal_error())


def test_a_seal_opens_with_its_own_key_and_info_only() -> None:
    crypto = sealing.HpkeCrypto()
    ours, other = Secret(b"a" * 32), Secret(b"b" * 32)
    sealed = crypto.seal(crypto.public_key(ours), b"hello", b"info")
    assert crypto.open(ours, sealed, b"info") == b"hello"
    errors = set()
    for key, data, info in (
        (other, sealed, b"info"),
        (ours, sealed, b"inf0"),
        (ours, sealed[:-1], b"info"),
        (ours, sealed + b"\0", b"info"),
        (ours, bytes(32) + sealed[32:], b"info"),
        (ours, b"\xff" * 32 + sealed[32:], b"info"),
        (ours, sealed[:40], b"info"),
        (ours, b"", b"info"),
    ):
        with pytest.raises(SealError) as error:
            crypto.open(key, data, info)
        errors.add((type(error.value), str(error.value), error.value.__cause__))
    assert len(errors) == 1


def test_the_kinds_of_info_never_meet() -> None:
    session = b"s" * 32
    infos = {
        sealing.request_info(session, 1, b"header"),
        sealing.request_info(session, 2, b"header"),
        sealing.request_info(session, 1, b"Header"),
        sealing.request_info(b"t" * 32, 1, b"header"),
        sealing.authentication_info(session),
    }
    assert len(infos) == 5
    assert sealing.authentication_bytes(Network.DEVNET, session, bytes(32), bytes(32)) not in infos


def test_a_key_serves_an_hour_opens_ten_minutes_more_and_is_erased() -> None:
    keys = sealing.SealingKeys(sealing.HpkeCrypto(), CountingEntropy("k"), now=START_NS)
    first = keys.current(START_NS)
    assert keys.current(START_NS + 3_599 * SECOND_NS) == first
    assert keys.deadline() == START_NS + bounds.KEY_LIFE_NS
    second = keys.current(START_NS + 3_600 * SECOND_NS)
    assert second.public != first.public
    assert keys.find(first.public, START_NS + 4_199 * SECOND_NS) == first
    assert keys.deadline() == START_NS + bounds.KEY_LIFE_NS + bounds.KEY_GRACE_NS
    assert keys.find(first.public, START_NS + 4_200 * SECOND_NS) is None
    assert keys.find(second.public, START_NS + 4_200 * SECOND_NS) == second
    assert len(keys._keys) == 1


def test_a_provider_that_slept_for_a_day_has_one_fresh_key() -> None:
    keys = sealing.SealingKeys(sealing.HpkeCrypto(), CountingEntropy("k"), now=START_NS)
    old = keys.current(START_NS)
    woken = START_NS + 86_400 * SECOND_NS
    assert keys.find(old.public, woken) is None
    assert keys.current(woken).made_ns == woken
    assert keys.deadline() > woken


def test_a_private_key_never_shows() -> None:
    key = sealing.SealingKeys(sealing.HpkeCrypto(), lambda count: b"\x5a" * count, now=START_NS).current(START_NS)
    assert "5a5a" not in repr(key)
    assert "ZZZZ" not in repr(key)
