"""A decision as JSON and back, so that it can be explained and made again on another machine.

Offers and beacons stand in it as they were received, signatures included: a record that was changed does not verify.
Nothing of a prompt is in it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..errors import CocoonError, DecodeError
from ..types import Digest, Feature, Network, PeerId, TrustLevel
from .beacon import parse_beacon, verify_parsed_beacon
from .book import ListedOffer
from .history import Observed, Speed
from .offer import verify_offer
from .selection import Candidate, Choice, PriceCeiling, Wish, select

CANDIDATES_MAX: Final = 4_096


def choice_record(choice: Choice, *, network: Network) -> dict[str, Any]:
    """The decision, readable, with everything that led to it under `inputs`."""
    wish = choice.wish
    return {
        **choice.as_record(),
        "inputs": {
            "network": network.label,
            "wish": {
                "trust_min": wish.trust_min.value,
                "spend_max_nano": wish.spend_max_nano,
                "prompt_tokens": wish.prompt_tokens,
                "output_tokens_max": wish.output_tokens_max,
                "output_tokens_expected": wish.output_tokens_expected,
                "features": int(wish.features),
                "ceiling": [wish.ceiling.input_nano, wish.ceiling.output_nano, wish.ceiling.request_nano],
                "excluded": sorted(one.hex() for one in wish.excluded),
                "excluded_providers": sorted(wish.excluded_providers),
                "value_of_time_nano_per_s": wish.value_of_time_nano_per_s,
            },
            "candidates": [_candidate(one) for one in choice.candidates],
        },
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    listed, seen = candidate.listed, candidate.observed
    return {
        "offer": listed.offer.message.hex(),
        "beacon": None if listed.beacon is None else listed.beacon.message.hex(),
        "is_staked": listed.is_staked,
        "listed_ns": listed.listed_ns,
        "observed": {
            "successes": seen.successes,
            "failures": seen.failures,
            "failures_in_row": seen.failures_in_row,
            "blocked_until_ns": seen.blocked_until_ns,
            "at_ns": seen.at_ns,
            "speeds": [[model.hex(), one.first_token_ms, one.tokens_per_s, one.at_ns] for model, one in seen.speeds],
        },
    }


def decide_again(record: Mapping[str, Any]) -> Choice:
    """The decision, made anew from the inputs of a record. Raises `DecodeError` (not a record, or changed)."""
    try:
        inputs = record["inputs"]
        network = Network.from_label(inputs["network"])
        given = inputs["wish"]
        if len(inputs["candidates"]) > CANDIDATES_MAX:
            raise DecodeError(f"a decision over more than {CANDIDATES_MAX} offers")
        wish = Wish(
            model=bytes.fromhex(record["model"]),
            trust_min=TrustLevel(given["trust_min"]),
            spend_max_nano=given["spend_max_nano"],
            prompt_tokens=given["prompt_tokens"],
            output_tokens_max=given["output_tokens_max"],
            output_tokens_expected=given["output_tokens_expected"],
            features=Feature(given["features"]),
            ceiling=PriceCeiling(
                input_nano=given["ceiling"][0], output_nano=given["ceiling"][1], request_nano=given["ceiling"][2]
            ),
            excluded=frozenset(bytes.fromhex(one) for one in given["excluded"]),
            excluded_providers=frozenset(PeerId(one) for one in given["excluded_providers"]),
            value_of_time_nano_per_s=given["value_of_time_nano_per_s"],
        )
        candidates = [_read(one, network) for one in inputs["candidates"]]
        return select(candidates, wish, now=record["at_ns"], seed=bytes.fromhex(record["seed"]))
    except CocoonError as error:
        raise DecodeError(f"the record holds something that does not verify: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        raise DecodeError("this is not the record of a decision") from error


def is_same(record: Mapping[str, Any]) -> bool:
    """Whether the decision comes out as it was recorded. Raises `DecodeError`."""
    again = decide_again(record).as_record()
    return all(again[name] == record.get(name) for name in again)


def _read(given: Mapping[str, Any], network: Network) -> Candidate:
    beacon = None
    if given["beacon"] is not None:
        beacon = verify_parsed_beacon(parse_beacon(bytes.fromhex(given["beacon"]), network=network))
    seen = given["observed"]
    speeds: list[tuple[Digest, Speed]] = [
        (bytes.fromhex(model), Speed(first_token_ms=first, tokens_per_s=pace, at_ns=at))
        for model, first, pace, at in seen["speeds"]
    ]
    return Candidate(
        listed=ListedOffer(
            offer=verify_offer(bytes.fromhex(given["offer"]), network=network),
            beacon=beacon,
            is_staked=bool(given["is_staked"]),
            listed_ns=given["listed_ns"],
        ),
        observed=Observed(
            successes=seen["successes"],
            failures=seen["failures"],
            failures_in_row=seen["failures_in_row"],
            blocked_until_ns=seen["blocked_until_ns"],
            at_ns=seen["at_ns"],
            speeds=tuple(speeds),
        ),
    )
