"""Writes offers.json beside it: `python tests/vectors/market/generate.py`. Rerun only when the protocol changes.

Keys are SHA-256 of a name as ed25519 seeds (`tests.fakes.market.Key`); ed25519 signatures are deterministic, so another
implementation must come to the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cocoon.market.equivocation import EquivocationProof
from cocoon.market.keys import model_keys, shard_of
from cocoon.market.offer import VerifiedOffer, consent_bytes
from cocoon.market.table import statement_of
from cocoon.types import Prices
from cocoon.wire.signing import stake_statement
from tests.fakes.market import MODEL, NET, NOW_S, O1, P1, beacon_bytes, offer

STAKE = b"\x5a" * 32
PAYOUT = b"\x77" * 32


def vector(made: VerifiedOffer) -> dict[str, Any]:
    body = made.offer
    return {
        "message": made.message.hex(),
        "slot": made.slot.hex(),
        "digest": made.digest.hex(),
        "statement": stake_statement(NET, body.stake, body.key_epoch, made.slot, made.digest).hex(),
        "consent_signed": consent_bytes(
            NET, operator=body.operator, stake=body.stake, payout=body.terms.payout, expiry_s=body.expiry_s
        ).hex(),
        "consent_digest": made.consent_digest.hex(),
        "provider": made.provider,
        "addresses": list(made.addresses),
    }


def vectors() -> dict[str, Any]:
    free = offer(prices=Prices(input_nano=0, cached_input_nano=0, output_nano=0))
    staked = offer(stake=STAKE, key_epoch=3, seq=(1 << 63) - 1, payout=PAYOUT, extensions={1000: b"x"})
    first, second = offer(stake=STAKE, seq=9), offer(stake=STAKE, seq=9, region="FR")
    proof = EquivocationProof(
        network=NET, operator=O1.public, slot=first.slot, first=statement_of(first), second=statement_of(second)
    )
    return {
        "origin": "tests/vectors/market/generate.py",
        "network": int(NET),
        "now_s": NOW_S,
        "operator": O1.public.hex(),
        "peer": P1.public.hex(),
        "model": MODEL.hex(),
        "shard": shard_of(MODEL),
        "free_offer": vector(free),
        "staked_offer": vector(staked),
        "beacon": beacon_bytes().hex(),
        "proof": proof.encode().hex(),
        "model_keys_hour_500000": [key.hex() for key in model_keys(NET, MODEL, 500_000)],
        "model_keys_hour_500000_block_bb": [
            key.hex() for key in model_keys(NET, MODEL, 500_000, block_hash=b"\xbb" * 32)
        ],
    }


if __name__ == "__main__":
    Path(__file__).with_name("offers.json").write_text(json.dumps(vectors(), indent=1) + "\n")
