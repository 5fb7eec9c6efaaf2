"""A signature of one kind, or for one network, never passes as another (rule K1)."""

from __future__ import annotations

import itertools

import nacl.signing
import pytest

from cocoon.errors import BadSignature
from cocoon.types import Network
from cocoon.wire.signing import Domain, domain_hash, hash_prefix, signed_bytes, stake_statement, verify

KEY = nacl.signing.SigningKey(b"k" * 32)
PUBLIC = bytes(KEY.verify_key)
PAYLOAD = b"the same payload everywhere " * 3


def shapes() -> dict[str, bytes]:
    """Every shape that one of our keys ever signs, over payloads as equal as they can be."""
    found = {
        f"{domain.value} on {network.label}": signed_bytes(domain, network, PAYLOAD)
        for domain in Domain
        for network in Network
    }
    for network in Network:
        found[f"stake on {network.label}"] = stake_statement(network, bytes(32), 0, bytes(32), bytes(32))
        for tag in ("CSV1", "CSP1"):  # voucher and proof of possession, as the contracts rebuild them
            found[f"{tag} on {network.label}"] = tag.encode() + network.wire + PAYLOAD
    return found


def test_signature_shape_matrix_only_the_diagonal_passes() -> None:
    """The same key and payload: each signature verifies under its own shape and under no other."""
    every = shapes()
    passed = set()
    for signed_as, checked_as in itertools.product(every, every):
        signature = KEY.sign(every[signed_as]).signature
        try:
            verify(PUBLIC, signature, every[checked_as])
        except BadSignature:
            continue
        passed.add((signed_as, checked_as))
    assert passed == {(name, name) for name in every}


def test_no_shape_is_the_beginning_of_another() -> None:
    """So that no payload can be chosen to make one shape look like another."""
    heads = [domain.prefix for domain in Domain] + [b"CSS1", b"CSV1", b"CSP1"]
    for one, other in itertools.permutations(heads, 2):
        assert not one.startswith(other)


def test_hash_domains_are_apart_from_signature_domains_and_from_one_another() -> None:
    kinds = [
        "session", "statement-digest", "open-header", "sealed-request", "chain-start", "chain", "chunk", "chunk-key",
        "seal-request", "seal-authentication", "cache-scope", "report-data", "gpu-nonce", "sim-report-data",
        "sim-gpu-nonce", *(domain.value for domain in Domain),
    ]  # fmt: skip
    assert len({hash_prefix(kind) for kind in kinds}) == len(kinds)
    for one, other in itertools.permutations(kinds, 2):
        assert not hash_prefix(one).startswith(hash_prefix(other))
    assert len({domain_hash(kind, b"x") for kind in kinds}) == len(kinds)


@pytest.mark.parametrize(
    ("key", "signature"),
    [
        (PUBLIC, bytes(64)),
        (PUBLIC, b""),
        (PUBLIC, bytes(63)),
        (PUBLIC[:31], bytes(64)),
        (bytes(32), bytes(64)),  # the identity point would make any message pass elsewhere
        (b"\x01" + bytes(31), b"\x01" + bytes(63)),
        (b"\xff" * 32, bytes(64)),
    ],
)
def test_malformed_keys_and_signatures_are_refused(key: bytes, signature: bytes) -> None:
    with pytest.raises(BadSignature):
        verify(key, signature, PAYLOAD)


def test_a_signature_has_one_encoding() -> None:
    """S + L verifies in lax libraries; here it is another signature, and refused."""
    signature = KEY.sign(PAYLOAD).signature
    verify(PUBLIC, signature, PAYLOAD)
    order = (1 << 252) + 27742317777372353535851937790883648493
    malleated = int.from_bytes(signature[32:], "little") + order
    with pytest.raises(BadSignature):
        verify(PUBLIC, signature[:32] + malleated.to_bytes(32, "little"), PAYLOAD)


def test_the_stake_statement_has_108_bytes() -> None:
    data = stake_statement(Network.MAINNET, b"s" * 32, 7, b"l" * 32, b"d" * 32)
    assert len(data) == 108
    assert data == b"CSS1" + bytes.fromhex("ffffff11") + b"s" * 32 + bytes.fromhex("00000007") + b"l" * 32 + b"d" * 32
