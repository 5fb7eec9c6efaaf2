"""The offer book: what it takes, what it refuses, whom it blames, and that nobody can fill or poison it."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from cocoon.market.beacon import Load
from cocoon.market.book import (
    CLOCK_SKEW_NS,
    FORWARDER_OFFER_RATE,
    SHUN_NS,
    OfferBook,
    StakeFact,
)
from cocoon.market.catalogue import ModelRef
from cocoon.market.effects import (
    DelistReason,
    Emit,
    EquivocationFound,
    Judgement,
    OfferDelisted,
    OfferListed,
    Persist,
    StakeWanted,
)
from cocoon.market.equivocation import verify_proof
from cocoon.market.keys import shard_of
from cocoon.market.table import OFFER_RATE, STATEMENTS_PER_OFFER_MAX, BookLimits
from cocoon.ports import Verdict
from cocoon.types import SECOND_NS, PeerId
from cocoon.wire import limits
from cocoon.wire.codec import decode_as, encode
from cocoon.wire.messages import Offer, SignedOffer
from tests.fakes.market import (
    MODEL,
    NEIGHBOUR,
    NET,
    NOW,
    NOW_S,
    O1,
    O2,
    OTHER_MODEL,
    P1,
    P2,
    P3,
    Key,
    beacon_bytes,
    model_number,
    offer,
    offer_bytes,
    sign_offer_message,
)

STAKE = hashlib.sha256(b"stake").digest()
SHARD = shard_of(MODEL)


def put(book: OfferBook, message: bytes, *, now: int = NOW, neighbour: str = NEIGHBOUR) -> Judgement:
    return book.receive_offer(PeerId(neighbour), message, now=now)


def gossip(book: OfferBook, message: bytes, *, now: int = NOW) -> Judgement:
    return book.receive_offer(NEIGHBOUR, message, now=now, shard=SHARD)


def verdict(judgement: Judgement) -> tuple[Verdict, str]:
    return judgement.verdict, judgement.reason


def events(judgement: Judgement) -> list[object]:
    return [effect.event for effect in judgement.effects if isinstance(effect, Emit)]


# --- taking ----------------------------------------------------------------------------------------------


def test_a_good_offer_is_listed_and_goes_on() -> None:
    book = OfferBook(NET)
    made = offer()
    judgement = put(book, made.message)
    assert verdict(judgement) == (Verdict.ACCEPT, "new")
    assert events(judgement) == [OfferListed(offer=made)]
    (listed,) = book.listed(MODEL, now=NOW)
    assert listed.offer == made
    assert listed.beacon is None
    assert book.listed(OTHER_MODEL, now=NOW) == ()
    assert book.find(made.digest, now=NOW) == listed
    assert book.models() == (ModelRef(name="cocoon-tiny", digest=MODEL),)


def test_the_newest_seq_stands_whatever_the_order_of_arrival() -> None:
    book = OfferBook(NET)
    old, new = offer_bytes(seq=1), offer(seq=2, region="FR")
    put(book, new.message)
    assert verdict(put(book, old)) == (Verdict.IGNORE, "stale")
    assert [each.offer for each in book.listed(now=NOW)] == [new]
    newest = offer(seq=3)
    judgement = put(book, newest.message)
    assert OfferDelisted(digest=new.digest, operator=O1.public, reason=DelistReason.REPLACED) in events(judgement)
    assert [each.offer for each in book.listed(now=NOW)] == [newest]


def test_offers_end_when_they_say() -> None:
    book = OfferBook(NET)
    made = offer(life_s=100)
    put(book, made.message)
    assert book.deadline() == NOW + 100 * SECOND_NS
    assert book.on_time(now=NOW + 100 * SECOND_NS - 1) == ()
    assert len(book.listed(now=NOW + 100 * SECOND_NS - 1)) == 1
    assert book.listed(now=NOW + 100 * SECOND_NS) == ()
    assert book.on_time(now=NOW + 100 * SECOND_NS) == (
        Emit(event=OfferDelisted(digest=made.digest, operator=O1.public, reason=DelistReason.EXPIRED)),
    )
    assert book.deadline() is None
    assert len(book) == 0


def test_a_renewed_offer_does_not_die_with_the_old_one() -> None:
    book = OfferBook(NET)
    put(book, offer_bytes(seq=1, life_s=100))
    put(book, offer_bytes(seq=2, life_s=1_000))
    assert book.deadline() == NOW + 1_000 * SECOND_NS
    assert book.on_time(now=NOW + 100 * SECOND_NS) == ()
    assert len(book) == 1


# --- refusing --------------------------------------------------------------------------------------------


def test_what_every_peer_judges_alike_is_rejected() -> None:
    book = OfferBook(NET)
    good = offer_bytes()
    signed = decode_as(good, SignedOffer, bytes_max=limits.SIGNED_OFFER_BYTES_MAX)
    body = decode_as(signed.offer, Offer, bytes_max=limits.OFFER_BYTES_MAX)
    cases = {
        "size": bytes(limits.SIGNED_OFFER_BYTES_MAX + 1),
        "shape": b"\xff" * 40,
        "signature": encode(SignedOffer(offer=signed.offer, signature=bytes(64))),
    }
    for reason, message in cases.items():
        assert verdict(put(book, message)) == (Verdict.REJECT, reason)
    foreign = sign_offer_message(msgspec.structs.replace(body, peer=P2.public), O1)
    assert verdict(put(book, foreign)) == (Verdict.REJECT, "signature")  # K3
    on_wrong_topic = book.receive_offer(NEIGHBOUR, good, now=NOW, shard=(SHARD + 1) % 64)
    assert verdict(on_wrong_topic) == (Verdict.REJECT, "shard")
    assert verdict(book.receive_offer(NEIGHBOUR, good, now=NOW, shard=SHARD)) == (Verdict.ACCEPT, "new")


def test_what_clocks_disagree_on_blames_nobody() -> None:
    book = OfferBook(NET)
    message = offer_bytes(now_s=NOW_S, life_s=100)
    assert verdict(put(book, message, now=NOW - CLOCK_SKEW_NS - 1)) == (Verdict.IGNORE, "early")
    assert verdict(put(book, message, now=NOW + 100 * SECOND_NS)) == (Verdict.IGNORE, "expired")
    assert verdict(put(book, message, now=NOW - CLOCK_SKEW_NS)) == (Verdict.ACCEPT, "new")
    assert len(book.listed(now=NOW - CLOCK_SKEW_NS)) == 1


def test_copies_are_duplicates_and_a_copy_of_a_bad_one_is_as_bad() -> None:
    book = OfferBook(NET)
    good = offer_bytes()
    put(book, good)
    assert verdict(put(book, good, neighbour="another")) == (Verdict.IGNORE, "duplicate")
    signed = decode_as(good, SignedOffer, bytes_max=limits.SIGNED_OFFER_BYTES_MAX)
    bad = encode(SignedOffer(offer=signed.offer, signature=signed.signature[:63] + b"\0"))
    again = OfferBook(NET)
    assert verdict(put(again, bad)) == (Verdict.REJECT, "signature")
    assert verdict(put(again, bad, neighbour="another")) == (Verdict.REJECT, "duplicate")
    assert verdict(put(again, good)) == (Verdict.ACCEPT, "new")


def test_copies_are_recognised_before_they_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    offers = OfferBook(NET)
    put(offers, offer_bytes())
    put(offers, offer_bytes(O2, P2)[:-1] + b"\0")
    monkeypatch.setattr("cocoon.market.book.parse_offer", None)
    assert verdict(put(offers, offer_bytes())) == (Verdict.IGNORE, "duplicate")
    assert verdict(put(offers, offer_bytes(O2, P2)[:-1] + b"\0")) == (Verdict.REJECT, "duplicate")


def test_an_offer_learned_by_asking_still_goes_on_when_gossip_brings_it() -> None:
    book = OfferBook(NET)
    message = offer_bytes(life_s=100)
    put(book, message)
    by_gossip = book.receive_offer(NEIGHBOUR, message, now=NOW, shard=SHARD)
    assert verdict(by_gossip) == (Verdict.ACCEPT, "asked_before")
    assert by_gossip.effects == ()
    once_more = book.receive_offer(NEIGHBOUR, message, now=NOW, shard=SHARD)
    assert verdict(once_more) == (Verdict.IGNORE, "duplicate")


def test_after_any_refusal_the_book_is_as_before() -> None:
    book = OfferBook(NET)
    put(book, offer_bytes(seq=5))
    before = book.listed(now=NOW), book.deadline(), len(book)
    for message in (b"", offer_bytes(seq=4), offer_bytes(seq=5), offer_bytes(seq=9)[:-1], b"\x83" * 99):
        assert put(book, message).effects == ()
    assert (book.listed(now=NOW), book.deadline(), len(book)) == before


# --- rates -----------------------------------------------------------------------------------------------


def test_one_provider_cannot_flood_its_offer() -> None:
    book = OfferBook(NET)
    taken = [gossip(book, offer_bytes(seq=n)).verdict for n in range(1, 20)]
    assert taken.count(Verdict.ACCEPT) == OFFER_RATE.burst
    assert Verdict.REJECT not in taken
    later = NOW + OFFER_RATE.interval_ns
    assert gossip(book, offer_bytes(seq=100), now=later).verdict is Verdict.ACCEPT
    assert verdict(gossip(book, offer_bytes(seq=101), now=later)) == (Verdict.IGNORE, "offer_rate")


def test_a_provider_that_restarts_often_is_found_by_asking_but_not_forwarded() -> None:
    book = OfferBook(NET)
    for seq in (1, 2):
        gossip(book, offer_bytes(seq=seq))
    third = offer(seq=3)
    assert verdict(gossip(book, third.message)) == (Verdict.IGNORE, "offer_rate")
    assert put(book, third.message).verdict is Verdict.ACCEPT
    assert [each.offer for each in book.listed(now=NOW)] == [third]
    assert verdict(gossip(book, third.message)) == (Verdict.IGNORE, "duplicate")


def test_an_operator_cannot_flood_with_many_peers() -> None:
    book = OfferBook(NET, limits=BookLimits(unstaked_offers_per_operator_max=10_000))
    verdicts = [verdict(put(book, offer_bytes(O1, Key(f"p{n}")))) for n in range(80)]
    assert verdicts.count((Verdict.ACCEPT, "new")) == 64
    assert verdicts[-1] == (Verdict.IGNORE, "operator_rate")
    assert put(book, offer_bytes(O2, P2)).verdict is Verdict.ACCEPT


def test_a_neighbour_that_floods_bad_signatures_is_soon_not_listened_to_and_others_are() -> None:
    book = OfferBook(NET)
    good = offer_bytes()
    signed = decode_as(good, SignedOffer, bytes_max=limits.SIGNED_OFFER_BYTES_MAX)
    reasons = []
    for n in range(FORWARDER_OFFER_RATE.burst + 50):
        forged = encode(SignedOffer(offer=signed.offer, signature=n.to_bytes(64, "big")))
        reasons.append(put(book, forged, neighbour="flooder").reason)
    assert reasons.count("signature") == FORWARDER_OFFER_RATE.burst
    assert reasons[-1] == "forwarder_rate"
    assert put(book, good, neighbour="flooder").verdict is Verdict.IGNORE
    assert put(book, good, neighbour="honest").verdict is Verdict.ACCEPT


# --- poisoning -------------------------------------------------------------------------------------------


def test_gossip_poison_bad_first_copy_and_invented_stakes() -> None:
    """A mangled first copy, an unknown or stolen stake, and a higher seq that O never signed suppress nothing."""
    book = OfferBook(NET)
    good = offer(stake=STAKE, key_epoch=1, seq=10)
    signed = decode_as(good.message, SignedOffer, bytes_max=limits.SIGNED_OFFER_BYTES_MAX)
    body = decode_as(signed.offer, Offer, bytes_max=limits.OFFER_BYTES_MAX)
    # 1. The attacker is first: a copy with a wrong signature, and a forged successor with the highest seq.
    mangled = encode(SignedOffer(offer=signed.offer, signature=bytes(64)))
    successor = msgspec.structs.replace(body, seq=(1 << 63) - 1)
    forged = encode(SignedOffer(offer=encode(successor), signature=signed.signature))
    for message in (mangled, forged):
        assert put(book, message, neighbour="attacker").verdict is Verdict.REJECT
    # 2. The true one still gets in, through anybody, and its stake is asked for: outside of the check.
    judgement = put(book, good.message, neighbour="attacker")
    assert verdict(judgement) == (Verdict.ACCEPT, "new")
    assert StakeWanted(stake=STAKE) in events(judgement)
    (listed,) = book.listed(now=NOW)
    assert not listed.is_staked
    assert listed.reputation_key == O1.public  # an unproven stake's name carries no reputation, good or bad
    # 3. Somebody names that stake in an offer of its own. No peer can tell before the chain was asked: it shares
    #    the small quota, under its own name.
    put(book, offer_bytes(O2, P2, stake=STAKE, key_epoch=1), neighbour="attacker")
    assert {each.reputation_key for each in book.listed(now=NOW)} == {O1.public, O2.public}
    # 4. The chain answers: the owner's offer counts as staked, the thief's is gone and stays out, blaming nobody.
    fact = StakeFact(operator=O1.public, key_epoch=1, amount_nano=10**9)
    effects = book.stakes_changed({STAKE: fact}, now=NOW)
    assert [type(effect) for effect in effects] == [Emit]
    (listed,) = book.listed(now=NOW)
    assert (listed.offer, listed.is_staked, listed.reputation_key) == (good, True, STAKE)
    thief = put(book, offer_bytes(O2, P2, stake=STAKE, key_epoch=1, seq=2), neighbour="another")
    assert verdict(thief) == (Verdict.IGNORE, "stake")
    old_key = put(book, offer_bytes(O1, P3, stake=STAKE, key_epoch=0))
    assert verdict(old_key) == (Verdict.IGNORE, "stake")


def test_a_stake_that_does_not_exist_takes_its_offers_along() -> None:
    book = OfferBook(NET)
    put(book, offer_bytes(stake=STAKE, key_epoch=1))
    (effect,) = book.stakes_changed({STAKE: None}, now=NOW)
    assert isinstance(effect, Emit)
    assert len(book) == 0


def test_each_stake_is_asked_for_once() -> None:
    book = OfferBook(NET)
    asked = [put(book, offer_bytes(O1, Key(f"p{n}"), stake=STAKE, key_epoch=1)) for n in range(5)]
    assert sum(StakeWanted(stake=STAKE) in events(each) for each in asked) == 1


# --- equivocation ----------------------------------------------------------------------------------------


def test_two_offers_for_one_slot_are_proven_spread_and_shunned() -> None:
    book = OfferBook(NET)
    first, second = offer(stake=STAKE, seq=5), offer(stake=STAKE, seq=5, region="FR")
    elsewhere = offer(O1, P2, model=OTHER_MODEL)
    put(book, first.message)
    put(book, elsewhere.message)
    judgement = put(book, second.message)
    assert judgement.verdict is Verdict.ACCEPT  # whoever has only one of them learns of the other
    assert isinstance(judgement.effects[0], Persist)  # kept before it is told
    proof = judgement.effects[0].proof
    assert verify_proof(proof.encode()) == proof
    assert proof.is_slashable
    assert {proof.first.digest, proof.second.digest} == {first.digest, second.digest}
    assert EquivocationFound(proof=proof) in events(judgement)
    assert len(book) == 0  # none of this operator's offers is shown any more
    assert verdict(put(book, offer_bytes(O1, P3))) == (Verdict.IGNORE, "shunned")
    assert put(book, offer_bytes(O2, P3)).verdict is Verdict.ACCEPT
    late = NOW_S + SHUN_NS // SECOND_NS
    book.on_time(now=late * SECOND_NS)
    assert put(book, offer_bytes(O1, P3, now_s=late), now=late * SECOND_NS).verdict is Verdict.ACCEPT


def test_equivocation_in_an_older_slot_and_above_the_rate_is_found_too() -> None:
    book = OfferBook(NET)
    for n in range(1, 4):
        put(book, offer_bytes(seq=n), now=NOW + n * OFFER_RATE.interval_ns)
    now = NOW + 3 * OFFER_RATE.interval_ns
    put(book, offer_bytes(seq=4), now=now)
    assert verdict(gossip(book, offer_bytes(seq=9), now=now)) == (Verdict.IGNORE, "offer_rate")
    hidden = gossip(book, offer_bytes(seq=2, region="FR"), now=now)
    assert verdict(hidden) == (Verdict.ACCEPT, "equivocation")


def test_nobody_is_framed_by_a_forged_second_offer() -> None:
    book = OfferBook(NET)
    first = offer(seq=5)
    put(book, first.message)
    other = offer(seq=5, region="FR")
    signed = decode_as(other.message, SignedOffer, bytes_max=limits.SIGNED_OFFER_BYTES_MAX)
    forged = encode(SignedOffer(offer=signed.offer, signature=first.signature))
    assert verdict(put(book, forged)) == (Verdict.REJECT, "signature")
    assert len(book) == 1


def test_a_second_signature_over_the_same_offer_is_no_equivocation() -> None:
    """Ed25519 signers may sign twice with other nonces; the message differs, the digest does not."""
    book = OfferBook(NET)
    made = offer()
    put(book, made.message)
    signed = decode_as(made.message, SignedOffer, bytes_max=limits.SIGNED_OFFER_BYTES_MAX)
    other = encode(SignedOffer(offer=signed.offer, signature=made.signature[:32] + bytes(32)))
    assert verdict(put(book, other)) == (Verdict.IGNORE, "duplicate")
    assert len(book) == 1


def test_two_machines_one_operator_no_slash() -> None:
    """K2: machines have their own P, so the same seq, even the same model and price, is another slot."""
    book = OfferBook(NET)
    judgements = [
        put(book, offer_bytes(O1, peer, seq=seq, model=model))
        for peer in (P1, P2)
        for model in (MODEL, OTHER_MODEL)
        for seq in (1, 2)
    ]
    assert all(each.verdict is Verdict.ACCEPT for each in judgements)
    assert not any(isinstance(effect, Persist) for each in judgements for effect in each.effects)
    assert len(book) == 4


# --- memory ----------------------------------------------------------------------------------------------


def test_a_full_book_makes_room_at_the_cost_of_whoever_holds_most() -> None:
    book = OfferBook(NET, limits=BookLimits(unstaked_offers_max=8, unstaked_offers_per_operator_max=8))
    for n in range(8):
        put(book, offer_bytes(O1, P1, model=model_number(n), life_s=600 + n))
    newcomer = put(book, offer_bytes(O2, P2))
    assert newcomer.verdict is Verdict.ACCEPT
    gone = [event for event in events(newcomer) if isinstance(event, OfferDelisted)]
    assert [(each.operator, each.reason) for each in gone] == [(O1.public, DelistReason.EVICTED)]
    assert len(book) == 8
    assert verdict(put(book, offer_bytes(O1, P1, model=model_number(99)))) == (Verdict.IGNORE, "full")


def test_invented_operators_from_one_neighbour_do_not_keep_others_out() -> None:
    book = OfferBook(NET, limits=BookLimits(unstaked_offers_max=16))
    for n in range(40):
        put(book, offer_bytes(Key(f"sybil {n}"), Key(f"sybil peer {n}")), neighbour="attacker")
    assert len(book) == 16
    assert put(book, offer_bytes(O1, P1), neighbour="honest").verdict is Verdict.ACCEPT
    assert put(book, offer_bytes(O2, P2), neighbour="honest").verdict is Verdict.ACCEPT
    before = {each.offer.digest for each in book.listed(now=NOW)}
    for n in range(40, 60):
        assert put(book, offer_bytes(Key(f"sybil {n}"), Key(f"s {n}")), neighbour="attacker").reason == "full"
    assert {each.offer.digest for each in book.listed(now=NOW)} == before


def test_unstaked_offers_never_displace_staked_ones() -> None:
    book = OfferBook(NET, limits=BookLimits(unstaked_offers_max=4, staked_offers_max=4))
    book.stakes_changed({STAKE: StakeFact(operator=O1.public, key_epoch=1, amount_nano=1)}, now=NOW)
    for n in range(4):
        assert put(book, offer_bytes(O1, Key(f"p{n}"), stake=STAKE, key_epoch=1)).verdict is Verdict.ACCEPT
    for n in range(20):
        put(book, offer_bytes(Key(f"sybil {n}"), Key(f"sp {n}")), neighbour=f"n{n}")
    assert sum(each.is_staked for each in book.listed(now=NOW)) == 4
    assert len(book) == 8


def test_renewing_for_a_day_leaves_no_memory_behind() -> None:
    book = OfferBook(NET)
    for n in range(200):
        now = NOW + n * 31 * SECOND_NS
        assert put(book, offer_bytes(seq=n + 1, now_s=now // SECOND_NS), now=now).verdict is Verdict.ACCEPT
        book.on_time(now=now)
    assert len(book) == 1
    assert len(book._table._expiries) <= 128
    (entry,) = book._table.entries()
    assert len(entry.statements) <= STATEMENTS_PER_OFFER_MAX
    assert len(book._operators) <= 1


# --- beacons ---------------------------------------------------------------------------------------------


def hear(book: OfferBook, message: bytes, *, now: int = NOW) -> tuple[Verdict, str]:
    return verdict(book.receive_beacon(NEIGHBOUR, message, now=now))


def test_a_beacon_shows_how_busy_a_provider_is_for_thirty_seconds() -> None:
    book = OfferBook(NET)
    put(book, offer_bytes())
    busy = Load(running=3, queued=2, slots=4, kv_free_permille=120, wait_ms=900)
    assert hear(book, beacon_bytes(load=busy)) == (Verdict.ACCEPT, "new")
    (listed,) = book.listed(now=NOW + 29 * SECOND_NS)
    assert listed.beacon is not None
    assert (listed.beacon.beacon.queued, listed.beacon.beacon.wait_ms) == (2, 900)
    (listed,) = book.listed(now=NOW + 30 * SECOND_NS)
    assert listed.beacon is None


def test_beacons_are_believed_only_of_listed_peers_by_their_own_key_and_in_order() -> None:
    book = OfferBook(NET)
    assert hear(book, beacon_bytes()) == (Verdict.IGNORE, "unknown_offer")
    put(book, offer_bytes())
    assert hear(book, beacon_bytes(O1, P2)) == (Verdict.IGNORE, "unknown_offer")
    assert hear(book, beacon_bytes()[:-1] + b"\0") == (Verdict.REJECT, "signature")
    assert hear(book, bytes(limits.SIGNED_BEACON_BYTES_MAX + 1)) == (Verdict.REJECT, "size")
    assert hear(book, offer_bytes()[:200]) == (Verdict.REJECT, "shape")
    assert hear(book, beacon_bytes(now=NOW - 30 * SECOND_NS)) == (Verdict.IGNORE, "expired")
    assert hear(book, beacon_bytes(now=NOW + CLOCK_SKEW_NS + SECOND_NS)) == (Verdict.IGNORE, "early")
    assert hear(book, beacon_bytes(now=NOW)) == (Verdict.ACCEPT, "new")
    assert hear(book, beacon_bytes(now=NOW)) == (Verdict.IGNORE, "duplicate")
    assert hear(book, beacon_bytes(now=NOW - SECOND_NS)) == (Verdict.IGNORE, "stale")
    wrong_topic = book.receive_beacon(NEIGHBOUR, beacon_bytes(now=NOW + 1), now=NOW, shard=(SHARD + 1) % 64)
    assert verdict(wrong_topic) == (Verdict.IGNORE, "duplicate")
    fresh = beacon_bytes(now=NOW + SECOND_NS)
    wrong_topic = book.receive_beacon(NEIGHBOUR, fresh, now=NOW, shard=(SHARD + 1) % 64)
    assert verdict(wrong_topic) == (Verdict.REJECT, "shard")


def test_beacons_are_limited_to_one_in_five_seconds() -> None:
    book = OfferBook(NET)
    put(book, offer_bytes())
    verdicts = [hear(book, beacon_bytes(now=NOW + n * 1_000_000)) for n in range(10)]
    assert verdicts.count((Verdict.ACCEPT, "new")) == 2
    assert verdicts[-1] == (Verdict.IGNORE, "beacon_rate")
    later = NOW + 10 * SECOND_NS
    assert hear(book, beacon_bytes(now=later), now=later) == (Verdict.ACCEPT, "new")


def test_a_beacon_for_another_network_is_rejected() -> None:
    from cocoon.types import Network

    assert verdict(OfferBook(Network.TESTNET).receive_beacon(NEIGHBOUR, beacon_bytes(), now=NOW)) == (
        Verdict.REJECT,
        "shape",
    )


@pytest.mark.parametrize("staked", [False, True])
def test_an_operator_has_a_cap(staked: bool) -> None:
    book = OfferBook(NET, limits=BookLimits(staked_offers_per_operator_max=3, unstaked_offers_per_operator_max=2))
    if staked:
        book.stakes_changed({STAKE: StakeFact(operator=O1.public, key_epoch=1, amount_nano=1)}, now=NOW)
    kwargs = {"stake": STAKE, "key_epoch": 1} if staked else {}
    for n in range(6):
        put(book, offer_bytes(O1, Key(f"p{n}"), **kwargs))  # type: ignore[arg-type]
    assert len(book) == (3 if staked else 2)
