"""A provider of the simulated market: its offers, its sessions and its till are the real machines; its engine is a
model.

    peer = ProviderPeer(env, number, market, setup)
    peer.start(); peer.crash(); peer.start()

One `Served` (`served.py`) per client's stream; here are its life, its offers and prices, and whom payment concerns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from cocoon.exchange import offer_facts
from cocoon.market.addresses import peer_id_of_key
from cocoon.market.effects import PrepareOffer, Provide, Publish, PublisherEffect
from cocoon.market.offer import OfferSpec, VerifiedOffer, draft_offer, finish_offer
from cocoon.market.publisher import OfferPublisher
from cocoon.pay.effects import CeilingWanted, CreditChanged, PaymentStopped, VoucherAccepted
from cocoon.pay.payee import PayeeTerms
from cocoon.serve.events import (
    OfferFacts,
)
from cocoon.serve.sealing import SealingKeys
from cocoon.types import MILLISECOND_NS, NO_DIGEST, SECOND_NS, Digest, PeerId
from cocoon.wire.signing import stake_statement
from sim.econ.crypto import Key
from sim.econ.engine import Engine
from sim.econ.env import Conn, Env, Wake
from sim.econ.money import Counting, Till
from sim.econ.policies import Policy, Window
from sim.econ.served import Served

if TYPE_CHECKING:
    from sim.chain import SimChain

SIGN_OFFER_NS: Final = 5 * MILLISECOND_NS  # a seq from the store, two signatures
EVIDENCE_NS: Final = 5 * MILLISECOND_NS  # an open provider's statement; hardware takes longer


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSetup:
    """What one provider is."""

    name: str
    spec: OfferSpec  # with its first price
    slots: int
    tokens_per_s: float
    first_token_ms: float
    cost_nano_per_mtok: int
    policy: Policy | None = None
    reprice_s: float = 60.0
    stake: bytes = NO_DIGEST
    key_epoch: int = 0
    claim_cost_nano: int = 1_000_000
    window_tokens_max: int = 4_096
    is_honest: bool = True
    group: str = ""
    evidence_bytes: int = 0
    evidence_ns: int = EVIDENCE_NS


@dataclass(slots=True)
class Sold:
    """What a provider did, as itself and the tally count it."""

    requests: int = 0
    refused: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    earned_nano: int = 0  # vouchers on disk
    stopped: int = 0  # requests ended for want of payment


class ProviderPeer:
    """See the file's head."""

    def __init__(
        self,
        env: Env,
        number: int,
        chain: SimChain,
        setup: ProviderSetup,
        *,
        publish: Callable[[ProviderPeer, str, bytes], None],
        provide: Callable[[ProviderPeer, tuple[bytes, ...]], None] | None = None,
        rivals: Callable[[ProviderPeer], tuple[int, ...]] | None = None,
        wrap_engine: Callable[[Engine], Engine] | None = None,
    ) -> None:
        self.env = env
        self.number = number
        self.setup = setup
        self.key = Key(f"{env.seed}/{setup.name}/P")
        self.operator = Key(f"{env.seed}/{setup.name}/O")
        self.wallet = Key(f"{env.seed}/{setup.name}/wallet")
        self.peer: PeerId = peer_id_of_key(self.key.public)
        self.spec = replace(setup.spec, payout=self.payout)
        self.sold = Sold()
        self.is_up = False
        self.clock_ahead_ns = 0
        self.on_bill: Callable[[int, int], int] = lambda prompt, declared: prompt  # what it says the prompt has
        self._publish = publish
        self._provide = provide or (lambda _peer, _keys: None)
        self._rivals = rivals or (lambda _peer: ())
        self._wrap_engine = wrap_engine or (lambda engine: engine)
        self._generation = 0
        self._seq = 0
        self._last_now = 0
        self._sold_before = (0, 0)
        self._busy_before = (0, env.now)
        self.sessions: dict[Conn, Served] = {}
        self.till = Till(
            env,
            number,
            chain,
            payout=self.payout,
            terms=PayeeTerms(claim_cost_nano=setup.claim_cost_nano, window_tokens_max=setup.window_tokens_max),
            on_event=self._paid,
        )
        self.engine = self._new_engine()
        self.publisher = self._new_publisher()
        self.keys = SealingKeys(env.crypto, Counting(env, "sealing", number), now=env.now)
        self._entropy = Counting(env, "provider entropy", number)

    @property
    def payout(self) -> bytes:
        """Where it is paid."""
        return self.wallet.public

    @property
    def now(self) -> int:
        """Its own clock, which never runs backwards."""
        self._last_now = max(self._last_now, self.env.now + self.clock_ahead_ns)
        return self._last_now

    @property
    def price(self) -> int:
        """Of 10⁶ output tokens, as offered now."""
        return self.spec.prices.output_nano

    def mark_dishonest(self) -> None:
        """For the tally, and for rules that know everything."""
        self.setup = replace(self.setup, is_honest=False)

    # --- life --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Come up: with a fresh engine, and what the disk holds."""
        if self.is_up:
            return
        self.is_up = True
        if self._generation:
            self.engine = self._new_engine()
            self.publisher = self._new_publisher()
            self.keys = SealingKeys(self.env.crypto, self._entropy, now=self.now)
            self.till.clock_ahead_ns = self.clock_ahead_ns
            self.till.restart()
        else:
            self.till.start()
        self._wake = Wake(self.env.kernel, lambda: self.publisher.deadline(), self._publisher_on_time)
        self._wake.offset_ns = self.clock_ahead_ns
        self.did(self.publisher.offer(self.spec, now=self.now))
        self._load_changed()
        if self.setup.policy is not None:
            self._busy_before = (0, self.env.now)
            self.env.kernel.after(int(self.setup.reprice_s * SECOND_NS), self._reprice, self._generation)

    def crash(self, *, keeps_unacknowledged: bool = False, loses_last: bool = False) -> None:
        """The process is gone: sessions, engine and all that is not on disk."""
        if not self.is_up:
            return
        self.is_up = False
        self._generation += 1
        self._wake.is_dead = True
        self.engine.stop()
        self.till.generation += 1
        if self.till.wake is not None:
            self.till.wake.is_dead = True
        self.till.disk.crash(keeps_unacknowledged=keeps_unacknowledged, loses_last=loses_last)
        for conn, served in list(self.sessions.items()):
            served.forget()
            conn.drop(self.number)
        self.sessions.clear()

    def shift_clock(self, by_ns: int) -> None:
        """Its wall clock jumps; its machines see time stand still until a clock that was turned back has caught up."""
        self.now  # noqa: B018 - fixes what was seen last
        self.clock_ahead_ns += by_ns
        self.till.clock_ahead_ns = self.clock_ahead_ns
        if self.is_up:
            for wake in (self._wake, self.till.wake, *(served.wake for served in self.sessions.values())):
                if wake is not None:
                    wake.shift(self.clock_ahead_ns)

    def _new_engine(self) -> Engine:
        setup = self.setup
        engine = self._wrap_engine(
            Engine(
                self.env.kernel,
                slots=setup.slots,
                tokens_per_s=setup.tokens_per_s,
                first_token_ms=setup.first_token_ms,
            )
        )
        engine.on_load = self._load_changed
        return engine

    def _new_publisher(self) -> OfferPublisher:
        return OfferPublisher(
            self.env.network,
            peer=self.key.public,
            operator=self.operator.public,
            sign_as_peer=self.key.sign,
            uniform=self.env.rng("publisher", self.number).random,
        )

    # --- offers ------------------------------------------------------------------------------------------

    def did(self, effects: tuple[PublisherEffect, ...]) -> None:
        """Perform what the publisher asked for."""
        for effect in effects:
            match effect:
                case PrepareOffer():
                    self.env.kernel.after(SIGN_OFFER_NS, self._prepare, effect, self._generation)
                case Publish(topic=topic, data=data):
                    self.env.note(self.number, "publish", len(data).to_bytes(4, "big"))
                    self._publish(self, topic, data)
                case Provide(keys=keys):
                    self._provide(self, keys)
        self._wake.look()

    def _publisher_on_time(self) -> None:
        self.did(self.publisher.on_time(now=self.now))

    def _prepare(self, effect: PrepareOffer, generation: int) -> None:
        if generation == self._generation and self.is_up:
            self.did(self.publisher.prepared(self.make_offer(effect), now=self.now))

    def make_offer(self, effect: PrepareOffer, *, seq: int | None = None) -> VerifiedOffer:
        """Signed by P and O. Each seq is used once, unless told otherwise (that is equivocation)."""
        self._seq = max(self._seq + 1, self.now // MILLISECOND_NS)
        draft = draft_offer(
            effect.spec,
            network=self.env.network,
            peer=self.key.public,
            operator=self.operator.public,
            seq=self._seq if seq is None else seq,
            not_before_s=effect.not_before_s,
            expiry_s=effect.expiry_s,
            sign_as_peer=self.key.sign,
            stake=self.setup.stake,
            key_epoch=self.setup.key_epoch,
        )
        statement = stake_statement(
            self.env.network, self.setup.stake, self.setup.key_epoch, draft.slot, draft.digest
        )  # fmt: skip
        return finish_offer(draft, self.operator.sign(statement), network=self.env.network)

    def set_price(self, price: int) -> None:
        """Offer for so much from now on."""
        prices = replace(
            self.spec.prices, input_nano=price // 4, cached_input_nano=price // 40, output_nano=price
        )  # fmt: skip
        if prices != self.spec.prices:
            self.spec = replace(self.spec, prices=prices)
            self.did(self.publisher.offer(self.spec, now=self.now))

    def _reprice(self, generation: int) -> None:
        if generation != self._generation or self.setup.policy is None:
            return
        tokens, requests = self.sold.tokens, self.sold.requests
        self.engine.utilisation(1)
        busy_ns, since_ns = self._busy_before
        elapsed_ns = self.env.now - since_ns
        load = (self.engine.busy_ns - busy_ns) / (elapsed_ns * self.engine.slots) if elapsed_ns else 0.0
        seen = Window(
            price=self.price,
            sold_tokens=tokens - self._sold_before[0],
            requests=requests - self._sold_before[1],
            load=load,
            rivals=self._rivals(self),
            seconds=elapsed_ns / SECOND_NS,
        )
        self._sold_before = (tokens, requests)
        self._busy_before = (self.engine.busy_ns, self.env.now)
        self.set_price(self.setup.policy.next_price(seen))
        self.env.kernel.after(int(self.setup.reprice_s * SECOND_NS), self._reprice, generation)

    def _load_changed(self) -> None:
        if self.is_up:
            self.did(self.publisher.load_changed(self.spec.model, self.engine.load(), now=self.now))

    def find_offer(self, digest: Digest) -> OfferFacts | None:
        """An offer of ours that still holds."""
        offer = self.publisher.find(digest, now=self.now)
        return None if offer is None else offer_facts(offer)

    # --- sessions and money ------------------------------------------------------------------------------

    def accept(self, conn: Conn, client: PeerId) -> bool:
        """A stream from a client. False: nobody is here."""
        if not self.is_up:
            return False
        self.sessions[conn] = Served(self, conn, client)
        return True

    def _paid(self, event: Any) -> None:
        match event:
            case VoucherAccepted(account=account, amount_nano=amount):
                self.sold.earned_nano += amount
                self._unblock(account)
            case CreditChanged(account=account):
                self._unblock(account)
            case CeilingWanted(account=account, ceiling_nano=ceiling):
                for served in list(self.sessions.values()):
                    if served.account == account:
                        self.env.kernel.after(0, served.reserve, ceiling)  # not from inside a step of its machine
            case PaymentStopped(requests=requests, fault=fault):
                self.sold.stopped += len(requests)
                for served in list(self.sessions.values()):
                    served.stop(requests, fault.value)
            case _:
                pass
        self.on_money(event)

    def on_money(self, event: Any) -> None:
        """Everything that the payee tells: for who watches."""

    def _unblock(self, account: bytes) -> None:
        for served in list(self.sessions.values()):
            if served.account == account:
                served.unblock()
