"""Operators, peers and signed offers for tests: real keys from small numbers, real signatures."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import nacl.signing

from cocoon.market.beacon import Load, make_beacon
from cocoon.market.offer import OfferSpec, VerifiedOffer, draft_offer, finish_offer, offer_digest, offer_slot
from cocoon.types import NO_DIGEST, SECOND_NS, Feature, Network, PeerId, Prices
from cocoon.wire.codec import encode
from cocoon.wire.messages import SignedOffer
from cocoon.wire.signing import stake_statement

NET = Network.DEVNET
NOW_S = 1_900_000_000
NOW = NOW_S * SECOND_NS
MODEL = hashlib.sha256(b"the test model").digest()
OTHER_MODEL = hashlib.sha256(b"another model").digest()
NEIGHBOUR = PeerId("neighbour-1")


def model_number(n: int) -> bytes:
    """Some model id."""
    return hashlib.sha256(b"model %d" % n).digest()


class Key:
    """An ed25519 key pair that is the same for the same name."""

    def __init__(self, name: str) -> None:
        self._key = nacl.signing.SigningKey(hashlib.sha256(name.encode()).digest())
        self.public = bytes(self._key.verify_key)

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message).signature


O1, O2, O3 = Key("operator 1"), Key("operator 2"), Key("operator 3")
P1, P2, P3 = Key("peer 1"), Key("peer 2"), Key("peer 3")

SPEC = OfferSpec(
    model=MODEL,
    model_name="cocoon-tiny",
    engine=hashlib.sha256(b"engine").digest(),
    context_tokens_max=2_048,
    output_tokens_max=512,
    prices=Prices(input_nano=100_000_000, cached_input_nano=10_000_000, output_nano=400_000_000, request_nano=0),
    features=Feature.TOOLS | Feature.JSON_SCHEMA,
    slots=4,
    first_token_p50_ms=200,
    first_token_p95_ms=900,
    tokens_per_s_p50=50,
    addresses=("/ip4/127.0.0.1/tcp/4001",),
    region="DE",
)


def offer_bytes(
    operator: Key = O1,
    peer: Key = P1,
    *,
    seq: int = 1,
    now_s: int = NOW_S,
    life_s: int = 3_600,
    stake: bytes = NO_DIGEST,
    key_epoch: int = 0,
    network: Network = NET,
    **changes: Any,
) -> bytes:
    """An encoded `SignedOffer`; `changes` are fields of `OfferSpec`."""
    return offer(
        operator,
        peer,
        seq=seq,
        now_s=now_s,
        life_s=life_s,
        stake=stake,
        key_epoch=key_epoch,
        network=network,
        **changes,
    ).message


def offer(
    operator: Key = O1,
    peer: Key = P1,
    *,
    seq: int = 1,
    now_s: int = NOW_S,
    life_s: int = 3_600,
    stake: bytes = NO_DIGEST,
    key_epoch: int = 0,
    network: Network = NET,
    **changes: Any,
) -> VerifiedOffer:
    draft = draft_offer(
        replace(SPEC, **changes),
        network=network,
        peer=peer.public,
        operator=operator.public,
        seq=seq,
        not_before_s=now_s,
        expiry_s=now_s + life_s,
        sign_as_peer=peer.sign,
        stake=stake,
        key_epoch=key_epoch,
    )
    statement = stake_statement(network, stake, key_epoch, draft.slot, draft.digest)
    return finish_offer(draft, operator.sign(statement), network=network)


def sign_offer_message(message: Any, operator: Key, *, network: Network = NET) -> bytes:
    """O's signature over an `Offer` as it is, whatever is in it: for forged and broken ones."""
    body = encode(message)
    slot = offer_slot(operator=message.operator, peer=message.peer, model=message.model, seq=message.seq)
    statement = stake_statement(network, message.stake, message.key_epoch, slot, offer_digest(body))
    return encode(SignedOffer(offer=body, signature=operator.sign(statement)))


def beacon_bytes(
    operator: Key = O1, peer: Key = P1, *, model: bytes = MODEL, now: int = NOW, load: Load | None = None
) -> bytes:
    """An encoded `SignedBeacon`."""
    return make_beacon(
        load or Load(running=1, queued=0, slots=4),
        network=NET,
        peer=peer.public,
        operator=operator.public,
        model=model,
        now=now,
        sign_as_peer=peer.sign,
    )


class FixedClock:
    """A clock that a test sets."""

    def __init__(self, now: int = NOW) -> None:
        self.time = now

    def now(self) -> int:
        return self.time


class CountingEntropy:
    """Bytes that never repeat and are the same in every run."""

    def __init__(self, name: str = "") -> None:
        self._count = 0
        self._name = name.encode()

    def __call__(self, count: int, /) -> bytes:
        self._count += 1
        return hashlib.shake_256(self._name + self._count.to_bytes(8, "big")).digest(count)
