"""The bytes of offers, beacons, proofs and keys are those that were written down once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cocoon.market.beacon import parse_beacon, verify_parsed_beacon
from cocoon.market.equivocation import verify_proof
from cocoon.market.offer import verify_offer
from cocoon.wire.signing import verify
from tests.fakes.market import NET
from tests.vectors.market.generate import vectors

PINNED = json.loads((Path(__file__).parents[1] / "vectors" / "market" / "offers.json").read_text())


def test_we_still_make_the_pinned_bytes() -> None:
    assert vectors() == PINNED


def test_the_pinned_bytes_verify() -> None:
    operator = bytes.fromhex(PINNED["operator"])
    for name in ("free_offer", "staked_offer"):
        pinned = PINNED[name]
        received = verify_offer(bytes.fromhex(pinned["message"]), network=NET)
        assert received.digest.hex() == pinned["digest"]
        assert len(bytes.fromhex(pinned["statement"])) == 108
        verify(operator, received.signature, bytes.fromhex(pinned["statement"]))
        verify(received.offer.peer, received.offer.consent, bytes.fromhex(pinned["consent_signed"]))
    verify_parsed_beacon(parse_beacon(bytes.fromhex(PINNED["beacon"]), network=NET))
    assert verify_proof(bytes.fromhex(PINNED["proof"])).is_slashable


def test_the_pinned_keys_follow_from_the_design_alone() -> None:
    network = PINNED["network"].to_bytes(4, "big", signed=True)
    head = b"cocoon/model/1" + network + bytes.fromhex(PINNED["model"])
    for block, name in ((b"", "model_keys_hour_500000"), (b"\xbb" * 32, "model_keys_hour_500000_block_bb")):
        expected = [
            hashlib.sha256(head + bytes((salt,)) + (500_000).to_bytes(4, "big") + block).hexdigest()
            for salt in range(4)
        ]
        assert PINNED[name] == expected
