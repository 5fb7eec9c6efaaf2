"""A provider's offers are there before they are needed, never more often than peers take, and honoured to the end."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from cocoon.errors import LocalProtocolError
from cocoon.market.beacon import Load, parse_beacon
from cocoon.market.book import OfferBook
from cocoon.market.effects import PrepareOffer, Provide, Publish, PublisherEffect
from cocoon.market.keys import load_topic, model_keys, offers_topic, shard_of
from cocoon.market.offer import OfferSpec, VerifiedOffer
from cocoon.market.publisher import MODELS_MAX, OFFER_INTERVAL_NS, RETRY_MAX_NS, OfferPublisher
from cocoon.market.table import OFFER_RATE
from cocoon.ports import Verdict
from cocoon.types import SECOND_NS, Prices
from cocoon.wire.messages import OffersQuery
from tests.fakes.market import MODEL, NEIGHBOUR, NET, O1, OTHER_MODEL, P1, SPEC, model_number, offer

HOUR_NS = 3_600 * SECOND_NS
START = 500_000 * HOUR_NS + 600 * SECOND_NS  # ten minutes past the hour


class Provider:
    """A publisher and the driver's part: makes what it asks for, and keeps a log of what went out."""

    def __init__(self, uniform: float = 0.5, now: int = START) -> None:
        self.now = now
        self.machine = OfferPublisher(
            NET, peer=P1.public, operator=O1.public, sign_as_peer=P1.sign, uniform=lambda: uniform
        )
        self.seq = 0
        self.published: list[tuple[int, VerifiedOffer]] = []
        self.beacons: list[tuple[int, bytes]] = []
        self.provided: list[tuple[int, tuple[bytes, ...]]] = []
        self.broken = False

    def perform(self, effects: tuple[PublisherEffect, ...]) -> None:
        for effect in effects:
            match effect:
                case PrepareOffer():
                    if self.broken:
                        self.machine.failed(effect.spec.model, now=self.now)
                        continue
                    made = self.make(effect)
                    self.perform(self.machine.prepared(made, now=self.now))
                    self.published.append((self.now, made))
                case Publish(topic=topic, data=data):
                    if topic == load_topic(NET, shard_of(MODEL)):
                        self.beacons.append((self.now, data))
                    else:
                        assert topic == offers_topic(NET, shard_of(MODEL))
                case Provide(keys=keys):
                    self.provided.append((self.now, keys))

    def make(self, effect: PrepareOffer) -> VerifiedOffer:
        self.seq += 1
        fields = {name: getattr(effect.spec, name) for name in OfferSpec.__slots__}
        life_s = effect.expiry_s - effect.not_before_s
        return offer(O1, P1, seq=self.seq, now_s=effect.not_before_s, life_s=life_s, **fields)

    def run_until(self, end: int, *, steps_max: int = 500) -> None:
        for _ in range(steps_max):
            due = self.machine.deadline()
            if due is None or due > end:
                self.now = end
                return
            self.now = max(self.now, due)
            self.perform(self.machine.on_time(now=self.now))
        raise AssertionError("the publisher never rests")


def test_the_first_offer_goes_out_at_once_with_its_keys() -> None:
    provider = Provider()
    provider.perform(provider.machine.offer(SPEC, now=START))
    ((at, made),) = provider.published
    assert at == START
    assert made == provider.machine.current(MODEL, now=START)
    assert provider.provided == [(START, model_keys(NET, MODEL, 500_000))]
    assert made.offer.not_before_s <= START // SECOND_NS < made.offer.expiry_s


@pytest.mark.parametrize(("uniform", "share"), [(0.0, 0.8), (0.5, 1.0), (0.999, 1.2)])
def test_offers_are_renewed_at_half_life_give_or_take_a_fifth(uniform: float, share: float) -> None:
    provider = Provider(uniform)
    provider.perform(provider.machine.offer(SPEC, now=START))
    provider.run_until(START + 3 * HOUR_NS)
    times = [at for at, _ in provider.published]
    gaps = [(later - earlier) / SECOND_NS for earlier, later in pairwise(times)]
    assert gaps
    assert all(gap == pytest.approx(1_785 * share, rel=0.01) for gap in gaps)
    for at in range(START, START + 3 * HOUR_NS, 60 * SECOND_NS):
        assert any(made.offer.not_before_s * SECOND_NS <= at < made.expiry_ns for _, made in provider.published)


def test_every_offer_and_beacon_that_goes_out_is_taken_by_a_book() -> None:
    provider, book = Provider(), OfferBook(NET)
    provider.perform(provider.machine.offer(SPEC, now=START))
    for n in range(40):
        provider.run_until(START + n * 7 * SECOND_NS)
        provider.perform(
            provider.machine.offer(
                replace(SPEC, prices=Prices(input_nano=n, cached_input_nano=0, output_nano=n)), now=provider.now
            )
        )
        provider.perform(provider.machine.load_changed(MODEL, Load(running=n, queued=0, slots=4), now=provider.now))
    assert len(provider.published) > 5
    assert len(provider.beacons) > 20
    log = [(at, "offer", made.message) for at, made in provider.published]
    log += [(at, "beacon", data) for at, data in provider.beacons]
    for at, kind, data in sorted(log, key=lambda entry: (entry[0], entry[1] == "beacon")):
        receive = book.receive_offer if kind == "offer" else book.receive_beacon
        judgement = receive(NEIGHBOUR, data, now=at, shard=shard_of(MODEL))
        assert judgement.verdict is Verdict.ACCEPT, (kind, judgement.reason)


def test_a_changed_price_is_out_within_the_interval_that_peers_allow() -> None:
    provider = Provider()
    provider.perform(provider.machine.offer(SPEC, now=START))
    changed = replace(SPEC, prices=Prices(input_nano=1, cached_input_nano=1, output_nano=1))
    provider.perform(provider.machine.offer(changed, now=START))
    provider.perform(provider.machine.offer(changed, now=START))
    provider.run_until(START + 60 * SECOND_NS)
    assert [at for at, _ in provider.published] == [START, START + OFFER_INTERVAL_NS]
    assert OFFER_RATE.interval_ns <= OFFER_INTERVAL_NS
    current = provider.machine.current(MODEL, now=provider.now)
    assert current is not None
    assert current.prices.output_nano == 1


def test_a_change_while_the_offer_is_being_signed_is_not_lost() -> None:
    provider = Provider()
    (asked,) = provider.machine.offer(SPEC, now=START)
    assert isinstance(asked, PrepareOffer)
    changed = replace(SPEC, slots=9)
    assert provider.machine.offer(changed, now=START) == ()
    provider.perform(provider.machine.prepared(provider.make(asked), now=START))
    provider.run_until(START + OFFER_INTERVAL_NS)
    current = provider.machine.current(MODEL, now=provider.now)
    assert current is not None
    assert current.offer.slots == 9


def test_an_older_offer_is_honoured_until_it_expires() -> None:
    provider = Provider()
    provider.perform(provider.machine.offer(SPEC, now=START))
    ((_, first),) = provider.published
    provider.run_until(START + 2_000 * SECOND_NS)
    assert len(provider.published) == 2
    assert provider.machine.find(first.digest, now=provider.now) == first
    assert provider.machine.find(first.digest, now=first.expiry_ns) is None
    assert provider.machine.find(b"\0" * 32, now=provider.now) is None


def test_a_signer_that_fails_is_asked_again_ever_more_rarely_and_nothing_spins() -> None:
    provider = Provider()
    provider.broken = True
    provider.perform(provider.machine.offer(SPEC, now=START))
    provider.run_until(START + HOUR_NS, steps_max=80)
    due = provider.machine.deadline()
    assert due is not None
    assert 0 < due - provider.now <= RETRY_MAX_NS
    provider.broken = False
    provider.run_until(due)
    assert len(provider.published) == 1


def test_a_signer_that_fails_for_hours_lets_the_offer_end_quietly() -> None:
    provider = Provider()
    provider.perform(provider.machine.offer(SPEC, now=START))
    provider.perform(provider.machine.load_changed(MODEL, Load(running=1, queued=0, slots=4), now=START))
    provider.broken = True
    provider.perform(provider.machine.load_changed(MODEL, Load(running=2, queued=0, slots=4), now=START))
    provider.run_until(START + 3 * HOUR_NS)
    assert provider.machine.current(MODEL, now=provider.now) is None
    assert provider.machine.answer(OffersQuery(model=b""), now=provider.now).offers == []
    last_beacon, _ = provider.beacons[-1]
    assert last_beacon < START + HOUR_NS


def test_beacons_come_on_change_and_at_most_every_five_seconds_with_the_newest_load() -> None:
    provider = Provider()
    provider.perform(provider.machine.offer(SPEC, now=START))
    for n in range(100):
        provider.run_until(START + n * SECOND_NS // 5)
        provider.perform(provider.machine.load_changed(MODEL, Load(running=n, queued=0, slots=4), now=provider.now))
    provider.run_until(START + 60 * SECOND_NS)
    times = [(at - START) // SECOND_NS for at, _ in provider.beacons]
    assert times == [0, 5, 10, 15, 20]
    assert parse_beacon(provider.beacons[-1][1], network=NET).beacon.running == 99
    same = provider.machine.load_changed(MODEL, Load(running=99, queued=0, slots=4), now=provider.now)
    assert same == ()


def test_no_beacon_goes_out_before_its_offer() -> None:
    provider = Provider()
    provider.machine.offer(SPEC, now=START)
    assert provider.machine.load_changed(MODEL, Load(running=1, queued=0, slots=4), now=START) == ()


def test_keys_of_the_next_hour_are_announced_ten_minutes_early() -> None:
    provider = Provider()
    provider.perform(provider.machine.offer(SPEC, now=START))
    provider.run_until(START + 2 * HOUR_NS)
    turn = 500_001 * HOUR_NS
    next_hour = set(model_keys(NET, MODEL, 500_001))
    first = min(at for at, keys in provider.provided if next_hour & set(keys))
    assert first == turn - 600 * SECOND_NS
    gaps = [b[0] - a[0] for a, b in pairwise(provider.provided)]
    assert max(gaps) <= 1_800 * SECOND_NS


def test_block_hashes_move_the_keys_at_once() -> None:
    provider = Provider()
    provider.perform(provider.machine.offer(SPEC, now=START))
    block = b"b" * 32
    provider.machine.blocks_known({500_000: block})
    provider.run_until(START)
    assert provider.provided[-1] == (START, model_keys(NET, MODEL, 500_000, block_hash=block))


def test_who_asks_gets_current_offers_and_fresh_beacons() -> None:
    provider = Provider()
    provider.perform(provider.machine.offer(SPEC, now=START))
    provider.perform(provider.machine.load_changed(MODEL, Load(running=1, queued=0, slots=4), now=START))
    reply = provider.machine.answer(OffersQuery(model=b""), now=START)
    assert (reply.offers, reply.beacons) == ([provider.published[0][1].message], [provider.beacons[0][1]])
    assert provider.machine.answer(OffersQuery(model=MODEL), now=START) == reply
    assert provider.machine.answer(OffersQuery(model=OTHER_MODEL), now=START).offers == []
    assert provider.machine.answer(OffersQuery(model=b""), now=START + 30 * SECOND_NS).beacons == []


def test_a_withdrawn_model_is_offered_no_more() -> None:
    provider = Provider()
    (asked,) = provider.machine.offer(SPEC, now=START)
    assert isinstance(asked, PrepareOffer)
    made = provider.make(asked)
    provider.machine.withdraw(MODEL)
    assert provider.machine.prepared(made, now=START) == ()
    assert provider.machine.deadline() is None
    assert provider.machine.find(made.digest, now=START) is None


def test_a_peer_offers_a_bounded_number_of_models() -> None:
    provider = Provider()
    for n in range(MODELS_MAX):
        provider.machine.offer(replace(SPEC, model=model_number(n)), now=START)
    with pytest.raises(LocalProtocolError):
        provider.machine.offer(SPEC, now=START)
