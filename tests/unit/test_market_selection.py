"""A choice follows the caller's demands, learns from what it saw itself, and can be explained and replayed."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from dataclasses import replace

import pytest

from cocoon.errors import InvalidRequest, NoProvider, PriceTooHigh, TrustRefused
from cocoon.market.beacon import Load
from cocoon.market.book import ListedOffer, OfferBook
from cocoon.market.dice import Dice
from cocoon.market.history import (
    BREAKER_MAX_NS,
    FADE_HALF_LIFE_NS,
    MODELS_PER_OPERATOR_MAX,
    History,
    Observed,
    pack,
    unpack,
)
from cocoon.market.selection import (
    SHORTLIST_MAX,
    Candidate,
    Choice,
    PriceCeiling,
    Reason,
    Wish,
    gather,
    replay,
    select,
)
from cocoon.ports import StoredReputation
from cocoon.types import SECOND_NS, Feature, Prices, TeeKind, TrustLevel, ton
from tests.fakes.market import (
    MODEL,
    NEIGHBOUR,
    NET,
    NOW,
    OTHER_MODEL,
    Key,
    beacon_bytes,
    model_number,
    offer,
    offer_bytes,
)

WISH = Wish(model=MODEL, trust_min=TrustLevel.OPEN, spend_max_nano=ton("1"), prompt_tokens=100, output_tokens_max=256)


def priced(nano: int) -> Prices:
    return Prices(input_nano=nano, cached_input_nano=nano, output_nano=nano)


def candidate(n: int = 1, observed: Observed | None = None, **changes: object) -> Candidate:
    made = offer(Key(f"o{n}"), Key(f"p{n}"), **changes)  # type: ignore[arg-type]
    listed = ListedOffer(offer=made, beacon=None, is_staked=False, listed_ns=NOW)
    return Candidate(listed=listed, observed=observed or Observed())


def choose(*candidates: Candidate, wish: Wish = WISH, seed: int = 1, now: int = NOW) -> Choice:
    return select(candidates, wish, now=now, seed=hashlib.sha256(seed.to_bytes(8, "big")).digest())


def shares(*candidates: Candidate, wish: Wish = WISH, draws: int = 400) -> list[float]:
    counts: Counter[bytes] = Counter()
    for seed in range(draws):
        chosen = choose(*candidates, wish=wish, seed=seed).chosen
        assert chosen is not None
        counts[chosen.offer.digest] += 1
    return [counts[each.offer.digest] / draws for each in candidates]


# --- filter ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "wish", "reason", "words"),
    [
        ({"model": OTHER_MODEL}, {}, Reason.MODEL, "another model"),
        ({}, {"trust_min": TrustLevel.CPU_CONFIDENTIAL}, Reason.TRUST, "offers open only"),
        ({}, {"features": Feature.TOOLS | Feature.VISION}, Reason.FEATURES, "cannot do vision"),
        ({"context_tokens_max": 100}, {}, Reason.CONTEXT, "takes 100 tokens"),
        ({"prices": priced(ton("3"))}, {"spend_max_nano": ton("0.001")}, Reason.PRICE, "may cost 0.001068 TON"),
        ({}, {"ceiling": PriceCeiling(output_nano=1)}, Reason.PRICE, "asks 0.4 TON for a million output tokens"),
        (
            {"prices": replace(priced(0), request_nano=2)},
            {"ceiling": PriceCeiling(request_nano=1)},
            Reason.PRICE,
            "asks 0.000000002 TON for a request",
        ),
        ({"observed": Observed(blocked_until_ns=NOW + SECOND_NS)}, {}, Reason.BLOCKED, "next try in 1 s"),
    ],
)
def test_every_candidate_that_does_not_fit_gets_its_reason(
    made: dict[str, object], wish: dict[str, object], reason: Reason, words: str
) -> None:
    odd = candidate(1, **made)  # type: ignore[arg-type]
    good = candidate(2, tee=TeeKind.TDX, features=Feature(63), prices=priced(1), slots=2)
    if reason is Reason.MODEL:
        good = candidate(2)
    choice = choose(odd, good, wish=replace(WISH, **wish))  # type: ignore[arg-type]
    assert [each.offer for each in choice.ranked] == [good.offer]
    (filtered,) = choice.filtered
    assert (filtered.candidate, filtered.reason) == (odd, reason)
    assert words in filtered.detail


def test_the_bounds_of_a_wish_are_exact() -> None:
    fits = candidate(1, context_tokens_max=101, prices=priced(ton("1")))
    exact = replace(WISH, spend_max_nano=356_000)  # 100 + 256 tokens at 1 TON per million
    assert choose(fits, wish=exact).chosen is not None
    assert choose(fits, wish=replace(exact, spend_max_nano=355_999)).chosen is None
    assert choose(fits, wish=replace(exact, prompt_tokens=101, spend_max_nano=ton("1"))).chosen is None


def test_what_was_tried_is_not_tried_again() -> None:
    first, second = candidate(1), candidate(2)
    choice = choose(first, second, wish=replace(WISH, excluded=frozenset([first.offer.digest])))
    assert [each.offer for each in choice.ranked] == [second.offer]
    choice = choose(first, second, wish=replace(WISH, excluded_providers=frozenset([second.offer.provider])))
    assert [each.offer for each in choice.ranked] == [first.offer]


def test_whoever_failed_lately_is_better_than_nobody() -> None:
    blocked = candidate(1, Observed(blocked_until_ns=NOW + SECOND_NS))
    assert choose(blocked).chosen is not None
    assert choose(blocked, candidate(2)).chosen is not None
    assert blocked.offer not in [each.offer for each in choose(blocked, candidate(2)).ranked]


# --- ranking ---------------------------------------------------------------------------------------------


def test_all_else_equal_the_cheaper_one_is_chosen_more_often_and_the_dearer_one_sometimes() -> None:
    cheap, dear = shares(candidate(1, prices=priced(ton("0.5"))), candidate(2, prices=priced(ton("1"))))
    assert cheap > 0.65
    assert 0 < dear < 0.35


def test_first_hand_speed_outweighs_a_claim() -> None:
    boaster = candidate(1, first_token_p50_ms=1, tokens_per_s_p50=2_000_000)
    honest = candidate(2, first_token_p50_ms=200, tokens_per_s_p50=60)
    before = shares(boaster, honest)
    history = History()
    for _ in range(3):
        history.succeeded(boaster.listed.reputation_key, model=MODEL, first_token_ms=20_000, tokens_per_s=2.0, now=NOW)
        history.succeeded(honest.listed.reputation_key, model=MODEL, first_token_ms=200, tokens_per_s=60.0, now=NOW)
    after = shares(
        *(replace(each, observed=history.observed(each.listed.reputation_key)) for each in (boaster, honest))
    )
    assert before[0] > 0.5
    assert after[0] < 0.05


def test_one_that_keeps_failing_is_shunned_however_cheap() -> None:
    history = History()
    cheap, dear = candidate(1, prices=priced(0)), candidate(2, prices=priced(ton("0.5")))
    for _ in range(6):
        history.failed(cheap.listed.reputation_key, now=NOW)
    later = NOW + BREAKER_MAX_NS
    seen = history.observed(cheap.listed.reputation_key)
    assert seen.blocked_until_ns <= later
    share, _ = shares(replace(cheap, observed=replace(seen, blocked_until_ns=0)), dear)
    assert share < 0.2


def test_a_beacon_that_admits_a_queue_sends_requests_elsewhere() -> None:
    book = OfferBook(NET)
    for n in (1, 2):
        book.receive_offer(NEIGHBOUR, offer_bytes(Key(f"o{n}"), Key(f"p{n}")), now=NOW)
    busy = Load(running=4, queued=9, slots=4, wait_ms=30_000)
    book.receive_beacon(NEIGHBOUR, beacon_bytes(Key("o1"), Key("p1"), load=busy), now=NOW)
    candidates = gather(book.listed(MODEL, now=NOW), History())
    waiting = next(each for each in candidates if each.listed.beacon is not None)
    free = next(each for each in candidates if each.listed.beacon is None)
    assert shares(waiting, free)[0] < 0.1


def test_stake_buys_no_rank() -> None:
    stake = b"\x01" * 32
    staked = candidate(1, stake=stake, key_epoch=1)
    staked = replace(staked, listed=replace(staked.listed, is_staked=True))
    assert 0.4 < shares(staked, candidate(2))[0] < 0.6


def test_newcomers_get_their_chance_beside_an_established_provider() -> None:
    old = candidate(1, Observed(successes=500.0))
    assert 0.05 < shares(old, candidate(2))[1] < 0.5


def test_among_a_thousand_the_best_by_expectation_are_drawn_from() -> None:
    template = candidate(1)
    crowd = [
        replace(
            template,
            listed=replace(
                template.listed,
                offer=replace(template.offer, digest=hashlib.sha256(b"%d" % n).digest()),
            ),
            observed=Observed(failures=float(n)),
        )
        for n in range(1_000)
    ]
    choice = choose(*crowd)
    assert len(choice.ranked) == 1_000
    drawn = choice.ranked[:SHORTLIST_MAX]
    assert {each.candidate.observed.failures for each in drawn} == set(map(float, range(SHORTLIST_MAX)))


# --- explaining ------------------------------------------------------------------------------------------


def test_a_choice_replays_to_the_same_choice() -> None:
    candidates = [candidate(n, prices=priced(n * 100_000_000)) for n in range(1, 9)]
    choice = choose(*candidates, seed=77)
    assert replay(choice) == choice
    assert len({choose(*candidates, seed=seed).chosen for seed in range(50)}) > 1
    record = json.loads(json.dumps(choice.as_record()))
    assert len(record["ranked"]) == 8
    assert record["ranked"][0]["score"] > 0


def test_the_order_of_arrival_does_not_matter() -> None:
    listed = [candidate(n).listed for n in range(5)]
    assert gather(listed, History()) == gather(reversed(listed), History())


def test_the_error_names_the_cheapest() -> None:
    choice = choose(
        candidate(1, prices=priced(ton("5"))),
        candidate(2, prices=priced(ton("3"))),
        wish=replace(WISH, spend_max_nano=ton("0.0001")),
    )
    error = choice.error()
    assert isinstance(error, PriceTooHigh)
    assert "the cheapest may cost 0.001068 TON" in str(error)
    assert "the limit is 0.0001 TON" in str(error)
    assert choice.cheapest_nano == 1_068_000
    assert error.exit_code == 4


def test_the_error_says_when_the_prompt_is_too_long_for_everybody() -> None:
    error = choose(candidate(1), wish=replace(WISH, prompt_tokens=9_999)).error()
    assert isinstance(error, InvalidRequest)
    assert error.kind == "context_length_exceeded"
    assert "2048" in str(error)


def test_the_error_says_what_was_tried() -> None:
    wish = replace(WISH, features=Feature.VISION)
    error = choose(candidate(1), candidate(2), wish=wish).error(tried=("DHT: 3 peers asked", "gossip: none"))
    assert isinstance(error, NoProvider)
    assert "2 providers: " in error.diagnostics()
    assert "DHT: 3 peers asked" in error.diagnostics()
    nobody = choose().error(tried=("DHT: nobody",))
    assert "nobody offers this model" in str(nobody)
    assert nobody.retryable


def test_providers_that_claim_too_little_trust_are_a_refusal_of_trust() -> None:
    error = choose(candidate(1), candidate(2), wish=replace(WISH, trust_min=TrustLevel.CONFIDENTIAL)).error()
    assert isinstance(error, TrustRefused)
    assert error.exit_code == 3


# --- history ---------------------------------------------------------------------------------------------

WHO = b"\x09" * 32


def test_the_breaker_opens_longer_each_time_and_a_success_closes_it() -> None:
    history = History()
    pauses = []
    for _ in range(7):
        history.failed(WHO, now=NOW)
        pauses.append((history.observed(WHO).blocked_until_ns - NOW) // SECOND_NS)
    assert pauses == [4, 16, 64, 256, 1_024, 1_024, 1_024]
    history.succeeded(WHO, model=MODEL, first_token_ms=100, tokens_per_s=None, now=NOW)
    assert history.observed(WHO).blocked_until_ns == 0
    assert history.observed(WHO).failures_in_row == 0


def test_busy_is_no_failure() -> None:
    history = History()
    history.refused(WHO, retry_after_ms=1_500, now=NOW)
    assert history.observed(WHO).failures == 0
    assert history.observed(WHO).blocked_until_ns == NOW + 1_500_000_000
    history.refused(WHO, retry_after_ms=1 << 40, now=NOW)
    assert history.observed(WHO).blocked_until_ns == NOW + BREAKER_MAX_NS


def test_old_quarrels_fade() -> None:
    history = History()
    history.failed(WHO, now=NOW)
    history.refused(WHO, retry_after_ms=0, now=NOW + FADE_HALF_LIFE_NS)
    assert history.observed(WHO).failures == pytest.approx(0.5)


def test_slowness_counts_at_once_and_speed_gradually() -> None:
    history = History()

    def seen(first_token_ms: float, tokens_per_s: float | None) -> tuple[float, float]:
        history.succeeded(WHO, model=MODEL, first_token_ms=first_token_ms, tokens_per_s=tokens_per_s, now=NOW)
        speed = history.observed(WHO).speed(MODEL)
        assert speed is not None
        return speed.first_token_ms, speed.tokens_per_s

    assert seen(100, 50) == (100, 50)
    slow = seen(1_100, 10)
    assert slow == (700, 26)
    fast = seen(100, None)
    assert fast == (pytest.approx(580), 26)
    assert history.observed(WHO).speed(OTHER_MODEL) is None


def test_history_is_bounded_in_operators_and_models() -> None:
    history = History(operators_max=10)
    for n in range(30):
        history.failed(n.to_bytes(32, "big"), now=NOW + n)
    assert len(history) == 10
    assert history.observed((0).to_bytes(32, "big")) == Observed()
    for n in range(40):
        history.succeeded(WHO, model=model_number(n), first_token_ms=1, tokens_per_s=1, now=NOW)
    assert len(history.observed(WHO).speeds) == MODELS_PER_OPERATOR_MAX


def test_what_was_seen_survives_a_restart() -> None:
    history = History()
    history.succeeded(WHO, model=MODEL, first_token_ms=123.456, tokens_per_s=45.5, now=NOW)
    history.failed(b"\x08" * 32, now=NOW)
    stored = history.take_changed()
    assert {each.key for each in stored} == {WHO, b"\x08" * 32}
    assert history.take_changed() == ()
    again = History()
    for each in stored:
        again.restore(each)
    assert again.observed(WHO) == history.observed(WHO)
    assert again.take_changed() == ()
    again.restore(StoredReputation(key=b"\x01", observed=b"\xff\xff", at_ns=1))
    assert len(again) == 2


def test_the_largest_memory_of_an_operator_fits_its_bound() -> None:
    history = History()
    for n in range(MODELS_PER_OPERATOR_MAX):
        history.succeeded(WHO, model=model_number(n), first_token_ms=1e9, tokens_per_s=1e9, now=NOW)
    seen = history.observed(WHO)
    assert unpack(pack(seen)) == seen


# --- dice ------------------------------------------------------------------------------------------------


def test_dice_draw_what_they_promise() -> None:
    dice = Dice(bytes(32))
    uniforms = [dice.uniform() for _ in range(4_000)]
    assert 0 <= min(uniforms) < max(uniforms) < 1
    assert statistics.fmean(uniforms) == pytest.approx(0.5, abs=0.03)
    normals = [dice.normal() for _ in range(4_000)]
    assert statistics.fmean(normals) == pytest.approx(0, abs=0.06)
    assert statistics.pstdev(normals) == pytest.approx(1, abs=0.05)
    for shape in (0.6, 1.0, 7.5):
        gammas = [dice.gamma(shape) for _ in range(4_000)]
        assert statistics.fmean(gammas) == pytest.approx(shape, rel=0.08)
        assert statistics.pvariance(gammas) == pytest.approx(shape, rel=0.2)
    betas = [dice.beta(3, 0.6) for _ in range(4_000)]
    assert statistics.fmean(betas) == pytest.approx(3 / 3.6, abs=0.02)
    picks = Counter(dice.pick([1.0, 0.0, 3.0]) for _ in range(4_000))
    assert picks[1] == 0
    assert picks[2] / 4_000 == pytest.approx(0.75, abs=0.04)


def test_dice_are_the_same_everywhere() -> None:
    seed = bytes(range(32))
    dice = Dice(seed)
    drawn = [dice.uniform() for _ in range(8)]
    blocks = [hashlib.sha256(seed + n.to_bytes(8, "big")).digest() for n in range(2)]
    words = [int.from_bytes(block[at : at + 8], "big") for block in blocks for at in (24, 16, 8, 0)]
    assert drawn == [(word >> 11) / 2**53 for word in words]
    assert drawn[0] == 0.7419703034439917
