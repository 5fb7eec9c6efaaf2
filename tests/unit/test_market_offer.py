"""An offer is what P consented to and O signed, byte for byte, or it is refused by everybody."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgspec
import pytest
from multiaddr import Multiaddr

from cocoon.errors import BadSignature, CocoonError, DecodeError, LimitExceeded, OfferInvalid
from cocoon.market.addresses import decode_address, encode_address, key_of_peer_id, peer_id_of_key
from cocoon.market.equivocation import EquivocationProof, SignedStatement, verify_proof
from cocoon.market.offer import claimed_trust, consent_bytes, draft_offer, offer_slot, verify_offer
from cocoon.types import NO_DIGEST, Network, PeerId, TeeKind, TrustLevel
from cocoon.wire import limits
from cocoon.wire.codec import decode_as, encode
from cocoon.wire.messages import Offer, SignedOffer
from cocoon.wire.signing import hash_prefix, stake_statement
from tests.fakes.market import MODEL, NET, NOW_S, O1, O2, P1, P2, SPEC, offer, offer_bytes, sign_offer_message

STAKE = hashlib.sha256(b"stake").digest()


def body_of(message: bytes) -> Offer:
    signed = decode_as(message, SignedOffer, bytes_max=limits.SIGNED_OFFER_BYTES_MAX)
    return decode_as(signed.offer, Offer, bytes_max=limits.OFFER_BYTES_MAX)


def test_an_offer_comes_back_as_it_was_made() -> None:
    made = offer(stake=STAKE, key_epoch=3, seq=7)
    received = verify_offer(made.message, network=NET)
    assert received == made
    assert received.provider == peer_id_of_key(P1.public)
    assert received.addresses == (f"/ip4/127.0.0.1/tcp/4001/p2p/{received.provider}",)
    assert received.prices == SPEC.prices
    assert received.claimed_trust is TrustLevel.OPEN


def test_the_largest_offer_fits_its_bound() -> None:
    relay = peer_id_of_key(P2.public)
    made = offer(
        model_name="m" * 64,
        region="R" * 16,
        addresses=tuple(f"/ip6/2001:db8::{n}/tcp/65535/p2p/{relay}/p2p-circuit" for n in range(9)),
        payout=b"\xff" * 32,
        extensions={1000: b"x" * 64},
        stake=STAKE,
        seq=(1 << 63) - 1,
        prices=replace(SPEC.prices, input_nano=(1 << 63) - 1),
    )
    assert len(made.addresses) == limits.OFFER_ADDRESSES_MAX
    assert len(made.message) <= limits.SIGNED_OFFER_BYTES_MAX


def test_offer_names_foreign_peer_dropped() -> None:
    """K3: without P's own consent nobody can send clients to P, not even by copying a consent from P's offers."""
    theirs = body_of(offer_bytes(O2, P2))
    forged = msgspec.structs.replace(theirs, operator=O1.public)
    with pytest.raises(BadSignature):
        verify_offer(sign_offer_message(forged, O1), network=NET)
    ours = body_of(offer_bytes(O1, P1))
    with pytest.raises(BadSignature):  # our own consent does not speak for another peer
        verify_offer(sign_offer_message(msgspec.structs.replace(ours, peer=P2.public), O1), network=NET)


@pytest.mark.parametrize(
    "change",
    [
        {"stake": STAKE},
        {"expiry_s": NOW_S + 3_599},
        {"terms": {"payout": b"\x01" * 32}},
    ],
    ids=["stake", "expiry", "payout"],
)
def test_consent_covers_every_term_it_names(change: dict[str, object]) -> None:
    body = body_of(offer_bytes())
    if "terms" in change:
        change = {"terms": msgspec.structs.replace(body.terms, payout=b"\x01" * 32)}
    with pytest.raises(BadSignature):
        verify_offer(sign_offer_message(msgspec.structs.replace(body, **change), O1), network=NET)


def test_no_bit_of_an_offer_can_be_flipped() -> None:
    message = offer_bytes()
    for at in range(len(message)):
        broken = bytearray(message)
        broken[at] ^= 1 << (at % 8)
        with pytest.raises(CocoonError):
            verify_offer(bytes(broken), network=NET)


def test_an_offer_for_another_network_is_refused() -> None:
    with pytest.raises(OfferInvalid, match="another network"):
        verify_offer(offer_bytes(network=Network.TESTNET), network=NET)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version"),
        ({"expiry_s": NOW_S}, "lives 0 s"),
        ({"expiry_s": NOW_S - 1}, "lives -1 s"),
        ({"expiry_s": NOW_S + 3_601}, "lives 3601 s"),
        ({"operator": P1.public}, "share one key"),
        ({"key_epoch": 1}, "epoch without a stake"),
        ({"image": b"\x01" * 32}, "image digest without"),
        ({"slots": 0}, "serve nothing"),
        ({"context_tokens_max": 0}, "serve nothing"),
        ({"output_tokens_max": 0}, "serve nothing"),
        ({"extensions": {999: b""}}, "unknown field"),
        ({"model_name": "tiny\n"}, "break a line|not a message"),
        ({"region": "DE\n"}, "break a line|not a message"),
    ],
)
def test_static_rules_are_judged_before_any_signature(change: dict[str, object], words: str) -> None:
    body = msgspec.structs.replace(body_of(offer_bytes()), **change)
    with pytest.raises((OfferInvalid, DecodeError), match=words):
        verify_offer(encode(SignedOffer(offer=encode(body), signature=bytes(64))), network=NET)


def test_unknown_extensions_are_ignored() -> None:
    assert verify_offer(offer_bytes(extensions={1000: b"a", 70_000: b""}), network=NET).model == MODEL


def test_a_simulated_tee_exists_on_the_development_network_only() -> None:
    assert offer(tee=TeeKind.SIMULATED, image=STAKE).claimed_trust is TrustLevel.SIMULATED
    with pytest.raises(OfferInvalid, match="simulated"):
        offer(tee=TeeKind.SIMULATED | TeeKind.TDX, image=STAKE, network=Network.MAINNET)


@pytest.mark.parametrize(
    ("bits", "level"),
    [
        (TeeKind.NONE, TrustLevel.OPEN),
        (TeeKind.NVIDIA_CC, TrustLevel.OPEN),
        (TeeKind.TDX, TrustLevel.CPU_CONFIDENTIAL),
        (TeeKind.TDX | TeeKind.NVIDIA_CC, TrustLevel.CONFIDENTIAL),
        (TeeKind.SIMULATED | TeeKind.TDX | TeeKind.NVIDIA_CC, TrustLevel.SIMULATED),
    ],
)
def test_a_claim_is_never_more_than_its_weakest_bit(bits: TeeKind, level: TrustLevel) -> None:
    assert claimed_trust(int(bits)) is level


def test_what_is_signed_is_what_the_rules_say() -> None:
    assert consent_bytes(NET, operator=b"o" * 32, stake=b"s" * 32, payout=b"y" * 32, expiry_s=5) == (
        b"cocoon/consent/v1\0" + NET.wire + b"o" * 32 + b"s" * 32 + b"y" * 32 + b"\0\0\0\0\0\0\0\5"
    )
    slot = offer_slot(operator=b"o" * 32, peer=b"p" * 32, model=b"m" * 32, seq=258)
    assert (
        slot == hashlib.sha256(hash_prefix("slot") + b"o" * 32 + b"p" * 32 + b"m" * 32 + b"\0\0\0\0\0\0\1\2").digest()
    )


def test_a_draft_that_breaks_a_rule_is_refused_before_anybody_signs_it() -> None:
    def draft(**changes: object) -> None:
        draft_offer(
            replace(SPEC, **changes),  # type: ignore[arg-type]
            network=NET,
            peer=P1.public,
            operator=O1.public,
            seq=1,
            not_before_s=NOW_S,
            expiry_s=NOW_S + 60,
            sign_as_peer=P1.sign,
        )

    draft()
    for changes, error in (
        ({"model_name": "no spaces please"}, DecodeError),
        ({"slots": 0}, OfferInvalid),
        ({"extensions": {1000: b"x" * 900}}, LimitExceeded),
        ({"extensions": {7: b"x"}}, OfferInvalid),
    ):
        with pytest.raises(error):
            draft(**changes)


def test_addresses_that_cannot_be_read_are_left_out_not_fatal() -> None:
    body = body_of(offer_bytes())
    strange = msgspec.structs.replace(body, addresses=[b"\x99\x01\x02", *body.addresses, b"\x04\x7f"])
    received = verify_offer(sign_offer_message(strange, O1), network=NET)
    assert received.addresses == (f"/ip4/127.0.0.1/tcp/4001/p2p/{received.provider}",)
    made = offer(addresses=("/ip4/1.2.3.4/udp/9/webrtc-direct", "/dns4/a.example/tcp/443", "nonsense"))
    assert made.addresses == (f"/dns4/a.example/tcp/443/p2p/{made.provider}",)


RELAY = peer_id_of_key(P2.public)


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/127.0.0.1/tcp/4001",
        "/ip6/2001:db8::1/tcp/65535",
        "/dns/node.example/tcp/1",
        "/dns4/a-b.example/tcp/443",
        "/dns6/x/tcp/80",
        "/ip4/1.2.3.4/udp/9/quic-v1",
        "/dns4/a.example/tcp/443/ws",
        f"/ip6/2001:db8::1/udp/4001/quic-v1/p2p/{RELAY}/p2p-circuit",
        f"/ip4/1.2.3.4/tcp/5/p2p/{RELAY}/p2p-circuit",
    ],
)
def test_addresses_survive_the_binary_form(text: str) -> None:
    assert decode_address(encode_address(text)) == text
    assert encode_address(text) == Multiaddr(text).to_bytes(), "as libp2p writes it"
    assert encode_address(f"{text}/p2p/{peer_id_of_key(P1.public)}") == encode_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/ip4/127.0.0.1",
        "/ip4/127.0.0.1/udp/1",
        "/ip4/300.0.0.1/tcp/1",
        "/ip4/127.0.0.1/tcp/0",
        "/ip4/127.0.0.1/tcp/65536",
        "/ip4/127.0.0.1/tcp/1x",
        "/ip6/fe80::1%eth0/tcp/1",
        "/dns4/a b/tcp/1",
        "/dns4/" + "a" * 97 + "/tcp/1",
        "/ip4/1.1.1.1/tcp/1/quic-v1",
        "/ip4/1.1.1.1/udp/1/ws",
        "/ip4/1.1.1.1/udp/1/quic",
        "/ip4/1.1.1.1/tcp/1/ws/ws",
        "/ip4/1.1.1.1/tcp/1/p2p/QmRelay/p2p-circuit",
        "/ip4/1.1.1.1/tcp/1" + "/p2p/x" * 200,
    ],
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises((DecodeError, LimitExceeded)):
        encode_address(text)


@pytest.mark.parametrize(
    "binary",
    ["", "04", "047f000001", "047f00000106", "047f0000010600", "047f000001060000", "047f000001060fa1ff",
     "35ff6161", "3501200600ff", "36036100620600ff", "29" + "00" * 16, "047f000001060fa1a50326",
     "047f00000191020fa1", "047f00000191020fa1dd03", "047f000001060fa1cd03", "047f00000191020000cd03",
     "047f0000019102"],
)  # fmt: skip
def test_broken_binary_addresses_are_refused(binary: str) -> None:
    with pytest.raises(DecodeError):
        decode_address(bytes.fromhex(binary))


def test_peer_ids_are_those_of_libp2p() -> None:
    # RFC 8032 test vector 1's public key; the id computed with go-libp2p's rules: base58btc of the identity multihash
    key = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    from p2p.identity import peer_id_of_public_key

    assert peer_id_of_key(key) == peer_id_of_public_key(key)
    assert key_of_peer_id(peer_id_of_key(key)) == key
    for wrong in ("", "1", "0OIl", "Q" * 52, PeerId("1" + peer_id_of_key(key)), peer_id_of_key(key)[:-1], "1" * 65):
        with pytest.raises(DecodeError):
            key_of_peer_id(wrong)


# --- proofs ----------------------------------------------------------------------------------------------


def proof_of(first_stake: bytes = STAKE, second_stake: bytes = STAKE) -> EquivocationProof:
    first = offer(stake=first_stake, seq=5)
    second = offer(stake=second_stake, seq=5, region="FR")
    return EquivocationProof(
        network=NET,
        operator=O1.public,
        slot=first.slot,
        first=SignedStatement(stake=first_stake, key_epoch=0, digest=first.digest, signature=first.signature),
        second=SignedStatement(stake=second_stake, key_epoch=0, digest=second.digest, signature=second.signature),
    )


def test_a_proof_of_equivocation_convinces_a_stranger() -> None:
    proof = proof_of()
    assert verify_proof(proof.encode()) == proof
    assert proof.is_slashable
    statement = stake_statement(NET, STAKE, 0, proof.slot, proof.first.digest)
    assert len(statement) == 108


def test_proofs_without_one_stake_are_shown_but_cannot_be_slashed() -> None:
    assert not proof_of(NO_DIGEST, NO_DIGEST).is_slashable
    assert not proof_of(STAKE, b"\x05" * 32).is_slashable


def test_nobody_is_framed_by_an_invented_proof() -> None:
    proof = proof_of()
    for wrong in (
        replace(proof, second=proof.first),
        replace(proof, operator=O2.public),
        replace(proof, slot=bytes(32)),
        replace(proof, second=replace(proof.second, digest=b"\x01" * 32)),
        replace(proof, first=replace(proof.first, key_epoch=1)),
        replace(proof, network=Network.MAINNET),
    ):
        with pytest.raises((OfferInvalid, BadSignature)):
            verify_proof(wrong.encode())
