"""Peer ids: libp2p's own form, both ways, and nothing else is accepted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.errors import PeerIdInvalid
from p2p.identity import (
    peer_id_of_bytes,
    peer_id_of_public_key,
    peer_id_of_seed,
    peer_id_to_bytes,
    public_key_of_peer_id,
    public_key_of_seed,
)

SPEC_KEY = "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
SPEC_PEER = "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq"
# libp2p specs, peer-ids, test vector for ed25519 (the public half of the key pair given there)


@given(st.binary(min_size=32, max_size=32))
def test_a_key_and_its_peer_id_turn_into_each_other(public_key: bytes) -> None:
    peer = peer_id_of_public_key(public_key)
    assert public_key_of_peer_id(peer) == public_key
    assert peer_id_of_bytes(peer_id_to_bytes(peer)) == peer
    assert peer.startswith("12D3Koo")


@settings(deadline=None)  # the first example pays for the import
@given(st.binary(min_size=32, max_size=32))
def test_our_peer_id_is_the_one_that_libp2p_computes(seed: bytes) -> None:
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID

    import p2p.driver  # noqa: F401 - quiets the library

    assert peer_id_of_seed(seed) == str(ID.from_pubkey(create_new_key_pair(seed).public_key))


@given(st.text(max_size=80))
def test_any_other_text_is_refused_with_one_kind_of_error(text: str) -> None:
    with pytest.raises(PeerIdInvalid):
        peer_id_to_bytes(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", id="an RSA peer"),
        pytest.param(peer_id_of_public_key(b"k" * 32) + "1", id="one character more"),
        pytest.param(peer_id_of_public_key(b"k" * 32)[:-1], id="one character less"),
        pytest.param("1" + peer_id_of_public_key(b"k" * 32), id="a zero in front"),
        pytest.param("1" * 1_000_000, id="a megabyte"),
        pytest.param("0OIl", id="letters that base58 leaves out"),
    ],
)
def test_what_is_no_ed25519_peer_id_is_refused(text: str) -> None:
    with pytest.raises(PeerIdInvalid):
        public_key_of_peer_id(text)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_of_a_wrong_size_are_refused(size: int) -> None:
    for function in (peer_id_of_seed, public_key_of_seed, peer_id_of_public_key):
        with pytest.raises(PeerIdInvalid):
            function(b"k" * size)


def test_the_form_agrees_with_the_specification() -> None:
    assert peer_id_of_public_key(bytes.fromhex(SPEC_KEY)) == SPEC_PEER
