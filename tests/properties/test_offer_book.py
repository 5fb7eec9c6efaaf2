"""The offer book against a model of a few lines, and its bounds against an adversary with many keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cocoon.market.book import SHUN_NS, OfferBook, StakeFact
from cocoon.market.effects import Persist
from cocoon.market.equivocation import verify_proof
from cocoon.market.offer import OfferKey, VerifiedOffer
from cocoon.market.table import STATEMENTS_PER_OFFER_MAX, BookLimits
from cocoon.ports import Verdict
from cocoon.types import NO_DIGEST, SECOND_NS, PeerId
from tests.fakes.market import NET, NOW, NOW_S, Key, model_number, offer

OPERATORS = [Key(f"prop operator {n}") for n in range(3)]
PEERS = [Key(f"prop peer {n}") for n in range(3)]
STAKES = [bytes((n,)) * 32 for n in (1, 2)]


@lru_cache(maxsize=4_096)
def made(operator: int, peer: int, model: int, seq: int, variant: int, stake: int = -1) -> VerifiedOffer:
    return offer(
        OPERATORS[operator],
        PEERS[peer],
        model=model_number(model),
        seq=seq,
        region="DE" if variant == 0 else "FR",
        now_s=NOW_S,
        life_s=300 if seq % 2 else 3_000,
        stake=NO_DIGEST if stake < 0 else STAKES[stake],
        key_epoch=0 if stake < 0 else 1,
    )


@dataclass
class Held:
    offer: VerifiedOffer
    statements: dict[bytes, bytes] = field(default_factory=dict)


class BookAgainstModel(RuleBasedStateMachine):
    """Deliveries are half a minute apart, so that no rate plays a part; the rates have tests of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.book = OfferBook(NET)
        self.now = NOW
        self.held: dict[OfferKey, Held] = {}
        self.shunned: dict[bytes, int] = {}
        self.seen: set[bytes] = set()

    @rule(
        operator=st.integers(0, 1),
        peer=st.integers(0, 1),
        model=st.integers(0, 1),
        seq=st.integers(1, 5),
        variant=st.integers(0, 1),
    )
    def deliver(self, operator: int, peer: int, model: int, seq: int, variant: int) -> None:
        self.now += 31 * SECOND_NS
        self.tick()
        message = made(operator, peer, model, seq, variant)
        expected = self.expected(message)
        judgement = self.book.receive_offer(PeerId(f"neighbour {operator}"), message.message, now=self.now)
        assert judgement.verdict is expected, judgement.reason
        for effect in judgement.effects:
            if isinstance(effect, Persist):
                assert verify_proof(effect.proof.encode()).operator == message.offer.operator

    def expected(self, message: VerifiedOffer) -> Verdict:
        who = message.offer.operator
        held = self.held.get(message.key)
        if message.digest in self.seen or message.expiry_ns <= self.now or self.shunned.get(who, 0) > self.now:
            return Verdict.IGNORE
        known = held.statements.get(message.slot) if held else None
        if known is not None:  # a digest that was not seen, for a slot that was
            self.seen.add(message.digest)
            self.shunned[who] = self.now + SHUN_NS
            self.held = {key: each for key, each in self.held.items() if key[0] != who}
            return Verdict.ACCEPT
        if held is not None and message.offer.seq <= held.offer.offer.seq:
            return Verdict.IGNORE
        self.seen.add(message.digest)
        statements = dict(held.statements) if held else {}
        statements[message.slot] = message.digest
        assert len(statements) <= STATEMENTS_PER_OFFER_MAX
        self.held[message.key] = Held(offer=message, statements=statements)
        return Verdict.ACCEPT

    @rule(seconds=st.integers(1, 400))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds * SECOND_NS
        self.tick()

    def tick(self) -> None:
        self.book.on_time(now=self.now)
        self.held = {key: each for key, each in self.held.items() if each.offer.expiry_ns > self.now}

    @rule(at=st.integers(0, 10_000), bit=st.integers(0, 7), seq=st.integers(1, 5))
    def a_mangled_copy_changes_nothing(self, at: int, bit: int, seq: int) -> None:
        self.now += 31 * SECOND_NS
        self.tick()
        broken = bytearray(made(0, 0, 0, seq, 0).message)
        broken[at % len(broken)] ^= 1 << bit
        judgement = self.book.receive_offer(PeerId("mangler"), bytes(broken), now=self.now)
        assert judgement.verdict is not Verdict.ACCEPT
        assert judgement.effects == ()

    @invariant()
    def the_book_shows_what_the_model_holds(self) -> None:
        shown = {each.offer.key: each.offer.digest for each in self.book.listed(now=self.now)}
        assert shown == {key: each.offer.digest for key, each in self.held.items()}
        assert self.book.deadline() == min((each.offer.expiry_ns for each in self.held.values()), default=None)


class BoundedBook(RuleBasedStateMachine):
    """Tiny pools, stakes that come and go, any speed: bounds and indices hold after every step."""

    LIMITS = BookLimits(
        staked_offers_max=4,
        unstaked_offers_max=3,
        staked_offers_per_operator_max=3,
        unstaked_offers_per_operator_max=2,
    )

    def __init__(self) -> None:
        super().__init__()
        self.book = OfferBook(NET, limits=self.LIMITS)
        self.now = NOW

    @rule(
        operator=st.integers(0, 2),
        peer=st.integers(0, 2),
        model=st.integers(0, 3),
        seq=st.integers(1, 6),
        stake=st.integers(-1, 1),
        neighbour=st.integers(0, 2),
        by_gossip=st.booleans(),
    )
    def deliver(
        self, operator: int, peer: int, model: int, seq: int, stake: int, neighbour: int, by_gossip: bool
    ) -> None:
        message = made(operator, peer, model, seq, 0, stake)
        shard = message.model[0] >> 2 if by_gossip else None
        size = len(self.book)
        judgement = self.book.receive_offer(
            PeerId(f"neighbour {neighbour}"), message.message, now=self.now, shard=shard
        )
        assert judgement.verdict is not Verdict.REJECT
        if judgement.verdict is Verdict.IGNORE:
            assert len(self.book) == size
            assert judgement.effects == ()

    @rule(stake=st.integers(0, 1), operator=st.integers(-1, 2))
    def chain_speaks(self, stake: int, operator: int) -> None:
        fact = None if operator < 0 else StakeFact(operator=OPERATORS[operator].public, key_epoch=1, amount_nano=5)
        self.book.stakes_changed({STAKES[stake]: fact}, now=self.now)

    @rule(seconds=st.integers(1, 400))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds * SECOND_NS
        self.book.on_time(now=self.now)

    @invariant()
    def nothing_outgrows_its_bound_and_all_indices_agree(self) -> None:
        table = self.book._table
        entries = table._entries
        unstaked = sum(not entry.is_staked for entry in entries.values())
        assert table._unstaked == unstaked
        # A chain fact may move offers from one pool to the other, so only the sum is strict.
        assert len(entries) <= self.LIMITS.staked_offers_max + 2 * self.LIMITS.unstaked_offers_max
        for index, position in ((table._by_operator, 0), (table._by_model, 2)):
            assert {key for keys in index.values() for key in keys} == set(entries)
            assert all(key[position] == name for name, keys in index.items() for key in keys)
            assert all(index.values())
        assert set(table._by_prefix.values()) == set(entries)
        assert {expiry[1] for expiry in table._expiries if table._is_live(expiry)} == set(entries)


BookAgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
BoundedBook.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestBookAgainstModel = BookAgainstModel.TestCase
TestBoundedBook = BoundedBook.TestCase
