"""Where offers are found: topics, DHT keys, and what a name means."""

from __future__ import annotations

import hashlib

import pytest

from cocoon.errors import ConfigError, InvalidRequest, ModelNotFound
from cocoon.market.catalogue import Catalogue, ModelRef
from cocoon.market.keys import (
    hour_of,
    load_topic,
    lookup_keys,
    model_keys,
    offers_topic,
    provide_hours,
    shard_of,
)
from cocoon.types import SECOND_NS, Network
from tests.fakes.market import MODEL, NET, OTHER_MODEL, model_number

HOUR = 500_000
AT = HOUR * 3_600 * SECOND_NS
MINUTE = 60 * SECOND_NS


def test_a_shard_is_the_first_six_bits() -> None:
    assert [shard_of(bytes((first,)) + bytes(31)) for first in (0, 3, 4, 0xFC, 0xFF)] == [0, 0, 1, 63, 63]
    assert offers_topic(Network.TESTNET, 63) == "/cocoon/testnet/offers/63"
    assert load_topic(Network.DEVNET, 0) == "/cocoon/devnet/load/0"


def test_model_keys_are_the_hash_that_the_design_names() -> None:
    block = b"b" * 32
    for salt, key in enumerate(model_keys(NET, MODEL, HOUR)):
        parts = b"cocoon/model/1" + NET.wire + MODEL + bytes((salt,)) + HOUR.to_bytes(4, "big")
        assert key == hashlib.sha256(parts).digest()
        assert model_keys(NET, MODEL, HOUR, block_hash=block)[salt] == hashlib.sha256(parts + block).digest()


def test_keys_differ_by_network_model_hour_salt_and_block() -> None:
    keys = [
        *model_keys(NET, MODEL, HOUR),
        *model_keys(Network.MAINNET, MODEL, HOUR),
        *model_keys(NET, OTHER_MODEL, HOUR),
        *model_keys(NET, MODEL, HOUR + 1),
        *model_keys(NET, MODEL, HOUR, block_hash=b"b" * 32),
    ]
    assert len(set(keys)) == 20


@pytest.mark.parametrize("minute", [0, 1, 9, 10, 30, 49, 50, 59])
def test_a_client_finds_what_a_provider_announced_even_if_their_clocks_differ_by_minutes(minute: int) -> None:
    provider_now = AT + minute * MINUTE
    announced = {key for hour in provide_hours(provider_now) for key in model_keys(NET, MODEL, hour)}
    for client_now in (provider_now, provider_now + 5 * MINUTE, provider_now + 9 * MINUTE):
        assert announced & set(lookup_keys(NET, MODEL, now=client_now)), (minute, client_now)


def test_the_turn_of_the_hour() -> None:
    assert hour_of(AT) == HOUR
    assert provide_hours(AT + 50 * MINUTE - 1) == (HOUR,)
    assert provide_hours(AT + 50 * MINUTE) == (HOUR, HOUR + 1)
    assert len(lookup_keys(NET, MODEL, now=AT + 10 * MINUTE - 1)) == 8
    assert lookup_keys(NET, MODEL, now=AT + 10 * MINUTE) == model_keys(NET, MODEL, HOUR)


def test_block_hashes_are_mixed_in_for_the_hours_that_have_one() -> None:
    block = b"b" * 32
    found = lookup_keys(NET, MODEL, now=AT, block_hashes={HOUR: block})
    assert found == (*model_keys(NET, MODEL, HOUR, block_hash=block), *model_keys(NET, MODEL, HOUR - 1))


# --- names -----------------------------------------------------------------------------------------------

TINY = ModelRef(name="cocoon-tiny", digest=MODEL)
QWEN_A = ModelRef(name="qwen3-8b", digest=model_number(1))
QWEN_B = ModelRef(name="qwen3-8b", digest=model_number(2))


def test_a_pinned_name_resolves() -> None:
    catalogue = Catalogue([TINY, QWEN_A])
    assert catalogue.resolve("cocoon-tiny") == TINY
    assert catalogue.resolve(f" cocoon-tiny@{MODEL.hex().upper()} ") == TINY
    assert catalogue.resolve(f"cocoon-tiny@{MODEL.hex()[:8]}") == TINY
    assert catalogue.name_of(MODEL) == "cocoon-tiny"
    assert catalogue.name_of(OTHER_MODEL) is None


def test_a_bare_name_with_two_digests_is_an_error_that_lists_both() -> None:
    catalogue = Catalogue([QWEN_A]).with_entries([QWEN_B, QWEN_A])
    with pytest.raises(InvalidRequest) as raised:
        catalogue.resolve("qwen3-8b")
    assert str(QWEN_A) in raised.value.diagnostics()
    assert str(QWEN_B) in raised.value.diagnostics()
    assert catalogue.resolve(str(QWEN_B)) == QWEN_B
    assert catalogue.resolve(f"qwen3-8b@{QWEN_B.digest.hex()[:12]}") == QWEN_B


def test_the_networks_names_are_suggestions_shown_with_their_digest_and_never_resolve() -> None:
    seen = [ModelRef(name="llama-3", digest=OTHER_MODEL)]
    with pytest.raises(ModelNotFound) as raised:
        Catalogue([TINY]).resolve("llama-3", seen=seen)
    assert str(seen[0]) in raised.value.diagnostics()
    assert Catalogue().resolve(str(seen[0])) == seen[0]  # the user pinned it in full


def test_a_misspelt_name_gets_near_matches() -> None:
    with pytest.raises(ModelNotFound, match="no model named 'cocon-tiny'") as raised:
        Catalogue([TINY, QWEN_A]).resolve("cocon-tiny")
    assert "Did you mean cocoon-tiny?" in raised.value.advice
    with pytest.raises(ModelNotFound) as raised:
        Catalogue([TINY]).resolve("zzzzzz")
    assert "Known models: cocoon-tiny" in raised.value.advice


@pytest.mark.parametrize(
    "reference", ["", "@", "a b", "-x", "x" * 200, "é", "a\n", "tiny@", "tiny@xyz", "tiny@1234567"]
)
def test_nonsense_is_a_clear_error(reference: str) -> None:
    with pytest.raises(InvalidRequest):
        Catalogue([TINY]).resolve(reference)


def test_a_short_digest_that_fits_none_or_two_is_an_error() -> None:
    twins = [ModelRef(name="twin", digest=b"\x11" * 31 + bytes((n,))) for n in (1, 2)]
    catalogue = Catalogue(twins)
    with pytest.raises(InvalidRequest, match="names 2 pinned models"):
        catalogue.resolve("twin@" + "11" * 8)
    with pytest.raises(InvalidRequest, match="names no pinned model"):
        catalogue.resolve("twin@" + "22" * 8)


def test_a_catalogue_refuses_entries_that_could_never_be_offered() -> None:
    for entry in (ModelRef(name="a b", digest=MODEL), ModelRef(name="a", digest=b"")):
        with pytest.raises(ConfigError):
            Catalogue([entry])


def test_many_names_from_the_network_cost_a_bounded_search() -> None:
    seen = (ModelRef(name=f"model-{n}", digest=MODEL) for n in range(10**9))
    with pytest.raises(ModelNotFound) as raised:
        Catalogue().resolve("model-x", seen=seen)
    assert len(raised.value.advice) < 1_000
