"""The trio driver of the offer book: gossip topics, `/cocoon/offers/1`, DHT look-ups, and what changes over time.

Client, provider and plain node use it alike. It joins the topics it is asked to, hands every message to the book
before it is forwarded, asks peers for their offers, and wakes whoever waits for the book to change. What is worth
choosing is not decided here.

Bounds: a look-up asks at most `ASKED_PER_LOOKUP_MAX` peers, `ASKED_AT_ONCE_MAX` at a time, each for at most
`ASK_TIMEOUT_S`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Final

import trio

from .errors import CocoonError, LimitExceeded, RemoteProtocolError, StoreError, Unavailable
from .market.book import OfferBook
from .market.effects import BookEffect, EquivocationFound, Judgement
from .market.effects import Emit as MarketEmit
from .market.equivocation import EquivocationProof
from .market.keys import SHARDS, load_topic, lookup_keys, offers_topic, shard_of
from .market.offer import VerifiedOffer
from .market.rates import Buckets, Rate
from .ports import Clock, PeerAddresses, Stream, Subscription, Verdict
from .ports import Network as PeerNetwork
from .ports.network import targets
from .serve.events import OfferFacts
from .types import SECOND_NS, Digest, Network, PeerId
from .wire import limits
from .wire.codec import decode_as, encode
from .wire.messages import OffersQuery, OffersReply

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # what the stubs of trio know that libp2p brings

log = logging.getLogger("cocoon.market")

OFFERS_PROTOCOL: Final = "/cocoon/offers/1"
ASK_TIMEOUT_S: Final = 5.0
ASKED_PER_LOOKUP_MAX: Final = 32
ASKED_AT_ONCE_MAX: Final = 8
FOUND_PER_KEY_MAX: Final = 20  # Kademlia's k: a record holder keeps no more
LOOKUP_TIMEOUT_S: Final = 8.0
ASKER_RATE: Final = Rate(interval_ns=SECOND_NS // 4, burst=128)  # an answer costs milliseconds in a large market
ASKERS_MAX: Final = 4_096

SaveProof = Callable[[Digest, bytes], Awaitable[None]]
"""`Store.save_proof`: (slot, encoded proof)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookUp:
    """What a look-up tried and found; told to the user when nothing came of it."""

    model: Digest
    found_in_dht: int
    asked: int
    answered: int
    offers_new: int
    failures: tuple[str, ...]  # in words, bounded

    def __str__(self) -> str:
        return (
            f"DHT: {self.found_in_dht} provider records; "
            f"peers asked: {self.asked}, answered: {self.answered}, new offers: {self.offers_new}"
        )


class OfferExchange:
    """See the file's head. Use inside `async with trio.open_nursery()`: `nursery.start(exchange.run)`."""

    def __init__(
        self,
        *,
        network: PeerNetwork,
        network_id: Network,
        clock: Clock,
        save_proof: SaveProof | None = None,
    ) -> None:
        self.book = OfferBook(network_id)
        self._network = network
        self._network_id = network_id
        self._clock = clock
        self._save_proof = save_proof
        self._joined: set[int] = set()
        self._topics: set[str] = set()
        self._joining = trio.Lock()
        self._changed = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._own_offers: dict[Digest, bytes] = {}
        self._own_beacons: dict[Digest, bytes] = {}
        self._askers: Buckets[PeerId] = Buckets(ASKER_RATE, count_max=ASKERS_MAX)

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the book, until cancelled. Answers other peers' queries from now on."""
        self._network.handle(OFFERS_PROTOCOL, self._answer, frame_bytes_max=limits.OFFERS_MESSAGE_BYTES_MAX)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                due = self.book.deadline()
                now = self._clock.now()
                if due is not None and due <= now:
                    self._perform(self.book.on_time(now=now))
                    continue
                changed = self._changed
                with trio.move_on_after(float("inf") if due is None else (due - now) / SECOND_NS):
                    await changed.wait()

    # --- gossip ------------------------------------------------------------------------------------------

    async def join(self, model: Digest) -> None:
        """Hear offers and beacons of this model's shard. Idempotent."""
        await self._join_shard(shard_of(model))

    async def join_all(self) -> None:
        """Hear everything: for nodes that carry the market for others."""
        for shard in range(SHARDS):
            await self._join_shard(shard)

    async def _join_shard(self, shard: int) -> None:
        async with self._joining:  # so that a cancelled join is no half join, and nobody joins twice
            if shard not in self._joined:
                await self._subscribe(shard)
                self._joined.add(shard)

    async def _subscribe(self, shard: int) -> None:
        assert self._nursery is not None, "run() comes first"

        def judge_offer(forwarder: PeerId, message: bytes) -> Verdict:
            return self._judged(self.book.receive_offer(forwarder, message, now=self._clock.now(), shard=shard))

        def judge_beacon(forwarder: PeerId, message: bytes) -> Verdict:
            return self._judged(self.book.receive_beacon(forwarder, message, now=self._clock.now(), shard=shard))

        for topic, judge in (
            (offers_topic(self._network_id, shard), judge_offer),
            (load_topic(self._network_id, shard), judge_beacon),
        ):
            if topic not in self._topics:
                subscription = await self._network.subscribe(topic, judge)
                self._topics.add(topic)
                self._nursery.start_soon(_drain, subscription)

    def _judged(self, judgement: Judgement) -> Verdict:
        self._perform(judgement.effects)
        if judgement.verdict is Verdict.ACCEPT:
            self._tell()
        return judgement.verdict

    # --- what we offer ourselves -------------------------------------------------------------------------

    def own_offer(self, model: Digest, message: bytes) -> None:
        """Our own current offer: answered first to whoever asks, and listed in our book."""
        self._own_offers[model] = message
        self._judged(self.book.receive_offer(self._network.peer, message, now=self._clock.now()))

    def own_beacon(self, model: Digest, message: bytes) -> None:
        """Our own newest beacon."""
        self._own_beacons[model] = message
        self._judged(self.book.receive_beacon(self._network.peer, message, now=self._clock.now()))

    def withdraw(self, model: Digest) -> None:
        """We stop serving this model: answer queries with it no more."""
        self._own_offers.pop(model, None)
        self._own_beacons.pop(model, None)

    # --- asking ------------------------------------------------------------------------------------------

    async def wait_changed(self) -> None:
        """Return when the book has changed after this call."""
        await self._changed.wait()

    async def ask(self, target: PeerAddresses, model: Digest | None = None) -> int:
        """Ask a peer which offers it knows; how many were new to us. Raises `Unavailable` or what it broke."""
        with trio.move_on_after(ASK_TIMEOUT_S):
            stream = await self._network.open_stream(
                target, OFFERS_PROTOCOL, frame_bytes_max=limits.OFFERS_MESSAGE_BYTES_MAX
            )
            try:
                await stream.send(encode(OffersQuery(model=model or b"")))
                data = await stream.receive()
            finally:
                with trio.CancelScope(shield=True):
                    await stream.aclose()
            if data is None:
                raise Unavailable(f"{target.peer} gave no answer")
            reply = decode_as(data, OffersReply, bytes_max=limits.OFFERS_MESSAGE_BYTES_MAX)
            return self._take_reply(target.peer, reply, model)
        raise Unavailable(f"{target.peer} did not answer within {ASK_TIMEOUT_S:.0f} s")

    def _take_reply(self, peer: PeerId, reply: OffersReply, model: Digest | None) -> int:
        now = self._clock.now()
        accepted = sum(
            self._judged(self.book.receive_offer(peer, message, now=now)) is Verdict.ACCEPT for message in reply.offers
        )
        for message in reply.beacons:
            self._judged(self.book.receive_beacon(peer, message, now=now))
        return accepted

    async def look_up(self, model: Digest) -> LookUp:
        """Find providers of a model: the DHT's four keys and our connected peers, all asked for offers."""
        found: list[Sequence[PeerAddresses]] = []  # one for each key that was answered
        failures: list[str] = []

        async def find(key: bytes) -> None:
            try:
                found.append(await self._network.find_providers(key, count_max=FOUND_PER_KEY_MAX))
            except CocoonError as error:
                failures.append(f"DHT: {error}")

        with trio.move_on_after(LOOKUP_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for key in lookup_keys(self._network_id, model, now=self._clock.now()):
                    nursery.start_soon(find, key)
        in_dht = targets(list(chain.from_iterable(found)))
        connected = [
            PeerAddresses(peer=connection.peer, addresses=(connection.address,) if connection.outbound else ())
            for connection in self._network.connections()
        ]
        # In turn from every key and from our connections: who floods one of them does not crowd out the others.
        in_turn = [peer for row in zip_longest(*found, connected) for peer in row if peer is not None]
        everyone = targets(in_turn)
        asked = [peer for peer in everyone.values() if peer.peer != self._network.peer][:ASKED_PER_LOOKUP_MAX]
        answered, offers_new = await self._ask_all(asked, model, failures)
        return LookUp(
            model=model,
            found_in_dht=len(in_dht),
            asked=len(asked),
            answered=answered,
            offers_new=offers_new,
            failures=tuple(dict.fromkeys(failures))[:8],
        )

    async def ask_connected(self, model: Digest | None = None) -> int:
        """Ask every connected peer; how many offers were new."""
        peers = [PeerAddresses(peer=connection.peer, addresses=()) for connection in self._network.connections()]
        _, offers_new = await self._ask_all(list(targets(peers).values())[:ASKED_PER_LOOKUP_MAX], model, [])
        return offers_new

    async def _ask_all(
        self, peers: Iterable[PeerAddresses], model: Digest | None, failures: list[str]
    ) -> tuple[int, int]:
        answered = offers_new = 0
        at_once = trio.CapacityLimiter(ASKED_AT_ONCE_MAX)

        async def ask(peer: PeerAddresses) -> None:
            nonlocal answered, offers_new
            async with at_once:
                try:
                    offers_new += await self.ask(peer, model)
                    answered += 1
                except (Unavailable, RemoteProtocolError) as error:
                    failures.append(f"{peer.peer}: {error}")

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(ask, peer)
        return answered, offers_new

    # --- answering ---------------------------------------------------------------------------------------

    async def _answer(self, stream: Stream) -> None:
        """Serve one query: our own offers first, then what our book lists."""
        with trio.move_on_after(ASK_TIMEOUT_S):
            data = await stream.receive()
            if data is None:
                return
            if not self._askers.take(stream.peer, self._clock.now()):
                raise LimitExceeded("too many queries from one peer")
            query = decode_as(data, OffersQuery, bytes_max=limits.OFFERS_MESSAGE_BYTES_MAX)
            await stream.send(encode(self._reply(query.model or None)))

    def _reply(self, model: Digest | None) -> OffersReply:
        offers = [message for digest, message in self._own_offers.items() if model in (None, digest)]
        beacons = [message for digest, message in self._own_beacons.items() if model in (None, digest)]
        for listed in self.book.listed(model, now=self._clock.now()):
            if len(offers) >= limits.OFFERS_REPLY_OFFERS_MAX:
                break
            if listed.offer.provider != self._network.peer:  # of our own, only what we have not withdrawn
                offers.append(listed.offer.message)
                if listed.beacon is not None and len(beacons) < limits.OFFERS_REPLY_OFFERS_MAX:
                    beacons.append(listed.beacon.message)
        return OffersReply(offers=offers, beacons=beacons)

    # --- effects -----------------------------------------------------------------------------------------

    def _tell(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def _perform(self, effects: tuple[BookEffect, ...]) -> None:
        for effect in effects:
            match effect:
                case MarketEmit(event=EquivocationFound(proof=proof)):
                    log.warning("offer.equivocation", extra={"operator": proof.operator.hex()})
                case MarketEmit():
                    self._tell()
                case _ if self._save_proof is not None and self._nursery is not None:
                    self._nursery.start_soon(self._keep, self._save_proof, effect.proof)
                case _:
                    pass  # without a store there is nowhere to keep a proof; its offers are shunned all the same

    @staticmethod
    async def _keep(save_proof: SaveProof, proof: EquivocationProof) -> None:
        try:
            await save_proof(proof.slot, proof.encode())
        except StoreError as error:  # a full disk must not end the node: strangers make proofs
            log.error("proof.unsaved", extra={"reason": str(error)})


def offer_facts(offer: VerifiedOffer) -> OfferFacts:
    """What a session needs to know of an offer."""
    return OfferFacts(
        digest=offer.digest,
        model=offer.model,
        prices=offer.prices,
        context_tokens_max=offer.offer.context_tokens_max,
        output_tokens_max=offer.offer.output_tokens_max,
        payout=offer.offer.terms.payout,
        consent=offer.consent_digest,
        expiry_ns=offer.expiry_ns,
    )


async def _drain(subscription: Subscription) -> None:
    """The book has taken each message in the validator; only the queue is to be emptied."""
    async for _ in subscription:
        pass
