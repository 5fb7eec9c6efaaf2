"""The provider role: offers a loaded model on the network and answers sealed requests for it.

Tasks: the offer publisher (renewal, beacons, DHT keys), the offer exchange (hears its own model's market and answers
who asks), and one task per session. All end with the `async with` block; streams in flight are broken then, so
call `drain` first.

Not here: loading the model, keys on disk, sockets (adapters), what the user sees (cli).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from ..attest.enclave import Enclave
from ..blobs import BlobShelf
from ..errors import CocoonError, LocalProtocolError, Unavailable
from ..exchange import OfferExchange, offer_facts
from ..market.beacon import Load
from ..market.book import ListedOffer
from ..market.catalogue import ModelRef
from ..market.effects import PrepareOffer, Provide, Publish, PublisherEffect
from ..market.offer import OfferSpec, VerifiedOffer, draft_offer, finish_offer
from ..market.publisher import OfferPublisher
from ..ports import Clock, Engine, Entropy, Signer, Store, Stream
from ..ports import Network as PeerNetwork
from ..pump import SESSION_PROTOCOL
from ..serve.events import OfferFacts
from ..serve.sealing import HpkeCrypto, SealingKeys
from ..types import NO_DIGEST, SECOND_NS, Digest, Network, Prices, TeeKind
from ..wire import limits
from ..wire.signing import verify
from .earning import EarnedRecord, Earnings, ProviderPayments
from .evidence import EvidenceMaker, HelloLimiter
from .serving import ServedSession, Serving, ServingRecord

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # what the stubs of trio know that libp2p brings

log = logging.getLogger("cocoon.node")

SESSIONS_PER_PEER_MAX: Final = 4  # one is enough; a client that reconnects overlaps for a moment
SESSIONS_MAX: Final = 1_024
REPUBLISH_AFTER_S: Final = (2.0, 10.0, 30.0)
"""A mesh takes some seconds to form, and what is published before reaches nobody. Copies are dropped as duplicates."""

PROVIDE_RETRY_S: Final = (2.0, 5.0, 15.0, 60.0)
SPEED_REFRESH_S: Final = 900.0
DRAIN_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """What the operator decides."""

    network_id: Network
    prices: Prices
    output_tokens_max: int | None = None  # per request; None: whatever the context leaves
    queue_max: int = 64  # requests that may wait for a slot
    region: str = ""
    announce: tuple[str, ...] = ()  # addresses to put into offers instead of the listening ones
    stake: bytes = NO_DIGEST  # the stake contract's account id; zeros: unstaked
    key_epoch: int = 0  # of O in that stake, as the chain shows it; zero when unstaked


class ProviderRole:
    """A running provider. Made by `open_provider`."""

    def __init__(
        self,
        *,
        network: PeerNetwork,
        engine: Engine,
        model: ModelRef,
        signer: Signer,
        store: Store,
        settings: ProviderSettings,
        clock: Clock,
        entropy: Entropy,
        enclave: Enclave | None,
        payments: ProviderPayments | None,
    ) -> None:
        self._network = network
        self._engine = engine
        self.model = model
        self._signer = signer
        self._store = store
        self._settings = settings
        self._clock = clock
        self._entropy = entropy
        self.record = ServingRecord()
        self._crypto = HpkeCrypto()
        self._keys = SealingKeys(self._crypto, entropy, now=clock.now())
        self._publisher = OfferPublisher(
            settings.network_id,
            peer=network.peer_key,
            operator=signer.operator,
            sign_as_peer=network.sign,
            uniform=lambda: int.from_bytes(entropy(6), "big") / (1 << 48),
        )
        self._exchange = OfferExchange(
            network=network, network_id=settings.network_id, clock=clock, save_proof=store.save_proof
        )
        self._shelf = BlobShelf()
        self._payments = payments
        self._earnings = (
            None
            if payments is None
            else Earnings(payments, network_id=settings.network_id, model=model, store=store, clock=clock)
        )
        self._evidence = EvidenceMaker(
            network_id=settings.network_id,
            network=network,
            signer=signer,
            payout=NO_DIGEST if payments is None else payments.payout,
            models=[model.digest],
            enclave=enclave,
            shelf=self._shelf,
            clock=clock,
        )
        self._serving = Serving(
            network_id=settings.network_id,
            peer_key=network.peer_key,
            sign=network.sign,
            verify=verify,
            crypto=self._crypto,
            keys=self._keys,
            engine=engine,
            offers=self._find_offer,
            evidence=self._evidence,
            hellos=HelloLimiter(),
            clock=clock,
            entropy=entropy,
            queue_max=settings.queue_max,
            record=self.record,
            load_changed=self._load_changed,
            earnings=self._earnings,
        )
        self._sessions: set[ServedSession] = set()
        self._nursery: trio.Nursery | None = None
        self._offered = trio.Event()
        self._deadline_moved = trio.Event()
        self._is_draining = False

    # --- what the caller asks ----------------------------------------------------------------------------

    @property
    def offer(self) -> VerifiedOffer | None:
        """Our current offer, once there is one."""
        return self._publisher.current(self.model.digest, now=self._clock.now())

    @property
    def is_draining(self) -> bool:
        """Nothing new is taken."""
        return self._is_draining

    @property
    def tee(self) -> TeeKind:
        """What our offers promise to prove."""
        return self._evidence.tee

    @property
    def prices(self) -> Prices:
        """What we ask."""
        return self._settings.prices

    @property
    def evidence_age_s(self) -> float | None:
        """Of the newest evidence that a client got; None before the first."""
        made_ns = self._evidence.made_ns
        return None if made_ns is None else max(0, self._clock.now() - made_ns) / SECOND_NS

    def market(self) -> tuple[ListedOffer, ...]:
        """Everything on offer for our model, ours apart."""
        listed = self._exchange.book.listed(self.model.digest, now=self._clock.now())
        return tuple(one for one in listed if one.offer.provider != self._network.peer)

    @property
    def sessions_open(self) -> int:
        """Clients connected with a session."""
        return len(self._sessions)

    @property
    def earned(self) -> EarnedRecord | None:
        """What has come in since the start; None for a provider that asks for no payment."""
        return None if self._earnings is None else self._earnings.record

    def claim_all(self) -> None:
        """Claim everything on chain that is worth its cost, now. Raises `LocalProtocolError` without payments."""
        if self._earnings is None:
            raise LocalProtocolError("this provider asks for no payment, so there is nothing to claim")
        self._earnings.claim_all()

    async def wait_offered(self) -> None:
        """Return once the first offer is signed and published."""
        await self._offered.wait()

    async def drain(self, *, timeout_s: float) -> bool:
        """Take nothing new and let running requests finish; whether all did within the time."""
        self._is_draining = True
        self._publisher.withdraw(self.model.digest)
        self._exchange.withdraw(self.model.digest)
        for session in self._sessions:
            session.drain()
        with trio.move_on_after(timeout_s):
            while any(session.requests_open for session in self._sessions):  # noqa: ASYNC110 - sums over machines
                await trio.sleep(DRAIN_POLL_S)
            if self._earnings is not None:
                await self._earnings.wait_paid()
        return not any(session.requests_open for session in self._sessions)

    # --- tasks -------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take our ledger, before `run`. Raises `LocalProtocolError` when another provider has it (rule M1)."""
        if self._earnings is not None:
            await self._earnings.open()

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """All tasks, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if self._earnings is not None:
                await nursery.start(self._earnings.run)
            await nursery.start(self._exchange.run)
            await self._exchange.join(self.model.digest)
            self._shelf.serve(self._network)
            self._network.handle(
                SESSION_PROTOCOL,
                self._serve_stream,
                frame_bytes_max=limits.SESSION_FRAME_BYTES_MAX,
                streams_per_peer_max=SESSIONS_PER_PEER_MAX,
            )
            self._perform(self._publisher.offer(self._spec(), now=self._clock.now()))
            self._load_changed()
            nursery.start_soon(self._rotate_keys)
            nursery.start_soon(self._refresh_spec)
            task_status.started()
            await self._keep_time()

    async def _serve_stream(self, stream: Stream) -> None:
        if self._is_draining or not self._has_room():
            await stream.aclose()
            return
        session = ServedSession(stream, self._serving)
        self._sessions.add(session)
        try:
            await session.run()
        finally:
            self._sessions.discard(session)

    def _has_room(self) -> bool:
        """Whether one more session may come, perhaps at the cost of the one that was idle longest.

        Peer ids cost nothing: whoever fills the places with idle sessions must not keep others out.
        """
        if len(self._sessions) < SESSIONS_MAX:
            return True
        idle = [session for session in self._sessions if not session.requests_open and not session.is_ending]
        if not idle:
            return False
        min(idle, key=lambda session: session.used_ns).end()
        return True

    async def _keep_time(self) -> None:
        while True:
            due = self._publisher.deadline()
            self._deadline_moved = trio.Event()
            seconds = float("inf") if due is None else max(0, due - self._clock.now()) / SECOND_NS
            with trio.move_on_after(seconds):
                await self._deadline_moved.wait()
            self._perform(self._publisher.on_time(now=self._clock.now()))

    async def _refresh_spec(self) -> None:
        """Say how fast we have been; rarely, because every change is an offer that the whole market carries."""
        while True:
            await trio.sleep(SPEED_REFRESH_S)
            if not self._is_draining:
                self._perform(self._publisher.offer(self._spec(), now=self._clock.now()))

    async def _rotate_keys(self) -> None:
        while True:
            await trio.sleep(max(0, self._keys.deadline() - self._clock.now()) / SECOND_NS)
            self._keys.on_time(self._clock.now())

    # --- offers ------------------------------------------------------------------------------------------

    def _spec(self) -> OfferSpec:
        info = self._engine.info
        record = self.record
        return OfferSpec(
            model=self.model.digest,
            model_name=self.model.name,
            engine=info.engine_digest,
            context_tokens_max=info.context_tokens_max,
            output_tokens_max=min(
                self._settings.output_tokens_max or info.context_tokens_max, info.context_tokens_max - 1
            ),
            prices=self._settings.prices,
            features=info.features,
            slots=info.slots,
            first_token_p50_ms=int(_percentile(record.first_token_ms, 50)),
            first_token_p95_ms=int(_percentile(record.first_token_ms, 95)),
            tokens_per_s_p50=int(_percentile(record.tokens_per_s, 50)),
            addresses=self._settings.announce or self._network.addresses(),
            region=self._settings.region,
            tee=self._evidence.tee,
            image=self._evidence.image,
            **self._payment_terms(),
        )

    def _payment_terms(self) -> dict[str, Any]:
        """Where and how we are paid; nothing in a free offer."""
        payments = self._payments
        if payments is None:
            return {}
        return {
            "payout": payments.payout,
            "unpaid_tokens_max": payments.unpaid_tokens_max,
            "reserve_threshold_nano": payments.reserve_threshold_nano(self._settings.prices),
            "voucher_step_nano": payments.voucher_step_nano,
        }

    def _find_offer(self, digest: Digest) -> OfferFacts | None:
        offer = self._publisher.find(digest, now=self._clock.now())
        return None if offer is None else offer_facts(offer)

    def _load_changed(self) -> None:
        slots = self._engine.info.slots
        running = min(self.record.running, slots)
        load = Load(running=running, queued=self.record.running - running, slots=slots)
        self._perform(self._publisher.load_changed(self.model.digest, load, now=self._clock.now()))

    def _perform(self, effects: tuple[PublisherEffect, ...]) -> None:
        assert self._nursery is not None
        for effect in effects:
            match effect:
                case PrepareOffer():
                    self._nursery.start_soon(self._prepare, effect)
                case Publish():
                    self._nursery.start_soon(self._publish, effect)
                case Provide():
                    self._nursery.start_soon(self._provide, effect)
        self._deadline_moved.set()

    async def _prepare(self, wanted: PrepareOffer) -> None:
        """Seq from the store, P's consent, the slot persisted, O's signature: in this order (rule K2)."""
        spec = wanted.spec
        try:
            seq = await self._store.next_seq(self._signer.operator, self._network.peer_key, spec.model)
            draft = draft_offer(
                spec,
                network=self._settings.network_id,
                peer=self._network.peer_key,
                operator=self._signer.operator,
                seq=seq,
                not_before_s=wanted.not_before_s,
                expiry_s=wanted.expiry_s,
                sign_as_peer=self._network.sign,
                stake=self._settings.stake,
                key_epoch=self._settings.key_epoch,
            )
            signature = await self._signer.sign_offer(
                stake=draft.stake, key_epoch=draft.key_epoch, slot=draft.slot, digest=draft.digest
            )
            offer = finish_offer(draft, signature, network=self._settings.network_id)
        except CocoonError as error:
            log.error("offer.failed", extra={"error": error.code, "reason": str(error)})
            self._publisher.failed(spec.model, now=self._clock.now())
            self._deadline_moved.set()
            return
        if self._is_draining:
            return  # withdrawn while it was being signed
        self._exchange.own_offer(offer.model, offer.message)
        self._perform(self._publisher.prepared(offer, now=self._clock.now()))
        self._offered.set()
        log.info("offer.published", extra={"offer": offer.digest.hex(), "seq": seq})

    async def _publish(self, effect: Publish) -> None:
        is_beacon = "/load/" in effect.topic
        if is_beacon:
            self._exchange.own_beacon(self.model.digest, effect.data)
        try:
            await self._network.publish(effect.topic, effect.data)
            if is_beacon:
                return  # the next one follows soon enough
            for delay_s in REPUBLISH_AFTER_S:
                await trio.sleep(delay_s)
                offer = self.offer
                if offer is None or offer.message != effect.data:
                    return
                await self._network.publish(effect.topic, effect.data)
        except Unavailable as error:
            log.warning("gossip.unpublished", extra={"reason": str(error)})

    async def _provide(self, effect: Provide) -> None:
        async with trio.open_nursery() as nursery:
            for key in effect.keys:
                nursery.start_soon(self._provide_key, key)

    async def _provide_key(self, key: bytes) -> None:
        for delay_s in (0.0, *PROVIDE_RETRY_S):
            await trio.sleep(delay_s)
            try:
                await self._network.provide(key)
                return
            except Unavailable:
                continue  # nobody to tell yet; connected peers still get our offer by gossip or by asking
        log.warning("dht.unprovided", extra={"key": key.hex()})


@asynccontextmanager
async def open_provider(
    network: PeerNetwork,
    engine: Engine,
    model: ModelRef,
    signer: Signer,
    store: Store,
    settings: ProviderSettings,
    *,
    clock: Clock,
    entropy: Entropy,
    enclave: Enclave | None = None,
    payments: ProviderPayments | None = None,
) -> AsyncIterator[ProviderRole]:
    """A provider that serves until the block ends; without an enclave its operator can read prompts, and its
    offers say so. Without `payments` it asks for none, whatever its prices.

    Raises `LocalProtocolError` when another provider on this store is paid to the same address.
    """
    role = ProviderRole(
        network=network,
        engine=engine,
        model=model,
        signer=signer,
        store=store,
        settings=settings,
        clock=clock,
        entropy=entropy,
        enclave=enclave,
        payments=payments,
    )
    await role.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(role.run)
        yield role
        nursery.cancel_scope.cancel()


def _percentile(samples: list[float], percent: int) -> float:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0
