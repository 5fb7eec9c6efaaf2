"""The client role: knows the market, holds the sessions, runs requests.

`open_client` gives a `Client`, which is what the gateway, the CLI and the Python API use (`ClientRole` in
`interface`). Offers come by gossip for the models in use, from the DHT, and by asking peers; a request that finds
none looks them up and waits a little. What was seen of providers is kept between runs where there is a store.

Not here: one request's way through providers (`reply`), one session (`link`), HTTP, the terminal.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio

from ..attest.evidence import SavedEvidence
from ..attest.policy import TrustPolicy
from ..attest.verifier import Verifier
from ..blobs import BlobFetcher
from ..errors import (
    ConfigError,
    InvalidRequest,
    LocalProtocolError,
    NoProvider,
    PaymentError,
    StoreError,
    Unavailable,
)
from ..exchange import LookUp, OfferExchange, offer_facts
from ..market.book import ListedOffer
from ..market.catalogue import Catalogue, ModelRef
from ..market.history import History
from ..market.selection import Choice, Wish, gather, select
from ..ports import Clock, Connection, DialFailure, Entropy, Store, StoredReceipt
from ..ports import Network as PeerNetwork
from ..serve.events import ReceiptReceived
from ..serve.openai import CHAT, COMPLETIONS, normalise, prompt_tokens_upper_bound
from ..serve.sealing import HpkeCrypto
from ..types import Digest, Feature, Nano, PeerId
from .interface import OfferView
from .pool import LinkPool
from .reply import FrozenRequest, RunningReply
from .settings import ClientSettings
from .spending import Spending
from .trusting import EvidenceJudge
from .views import offer_view

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # what the stubs of trio know that libp2p brings

log = logging.getLogger("cocoon.client")

LOOK_UP_AGAIN_S: Final = 1.0  # while a request waits for the first offer
REFRESH_S: Final = 60.0  # models in use are looked up again this often, so that a dead market heals
MODELS_FOLLOWED_MAX: Final = 64
REPUTATION_SAVED_S: Final = 30.0
SAVE_AT_END_S: Final = 5.0
PAY_AT_END_S: Final = 2.0  # what was received is signed for and sent, if the provider still takes it
REPUTATIONS_RESTORED_MAX: Final = 4_096
RECEIPTS_WAITING_MAX: Final = 1_024  # for the disk
SEED_BYTES: Final = 32
BYTES_PER_TOKEN_MAX: Final = 8  # a prompt with more bytes than this per token of context cannot fit


@dataclass(slots=True, eq=False)
class _RunningLookUp:
    """What others wait for."""

    ended: trio.Event = field(default_factory=trio.Event)
    is_whole: bool = False  # it was not cancelled


class Client:
    """A running client peer. Made by `open_client`."""

    def __init__(
        self,
        *,
        network: PeerNetwork,
        settings: ClientSettings,
        catalogue: Catalogue,
        clock: Clock,
        entropy: Entropy,
        store: Store | None,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.entropy = entropy
        self.history = History()
        self.catalogue = catalogue
        self._network = network
        self._store = store
        self._exchange = OfferExchange(
            network=network,
            network_id=settings.network_id,
            clock=clock,
            save_proof=store.save_proof if store is not None else None,
        )
        self._judge = EvidenceJudge(
            network_id=settings.network_id,
            verifier=Verifier(settings.network_id, software=settings.software_anchors),
            fetcher=BlobFetcher(network),
            clock=clock,
            store=store,
            policy=settings.policy,
            uses_threads=settings.verifies_in_threads,
        )
        self.spending: Spending | None = None
        if settings.payment is not None:
            if store is None:
                raise ConfigError("a client that pays needs a store: a voucher is kept before it leaves")
            self.spending = Spending(settings.payment, network_id=settings.network_id, store=store, clock=clock)
        self.pool = LinkPool(
            judge=self._judge,
            network=network,
            network_id=settings.network_id,
            crypto=HpkeCrypto(),
            clock=clock,
            entropy=entropy,
            on_receipt=self._keep_receipt,
            spending=self.spending,
        )
        self._followed: dict[Digest, LookUp | None] = {}
        self._looking_up: dict[Digest, _RunningLookUp] = {}
        self._receipts, self._receipts_in = trio.open_memory_channel[StoredReceipt](RECEIPTS_WAITING_MAX)

    # --- `ClientRole` ------------------------------------------------------------------------------------

    @property
    def peer(self) -> PeerId:
        """Our peer id."""
        return self._network.peer

    @asynccontextmanager
    async def generate(
        self, endpoint: str, body: Mapping[str, Any], *, spend_max_nano: Nano
    ) -> AsyncIterator[RunningReply]:
        """Run one request. See `ClientRole.generate`."""
        request = self._freeze(endpoint, body, spend_max_nano)
        reply = RunningReply(self, request)
        await self._wait_for_offers(request.model)
        try:
            await reply.begin()
            yield reply
        finally:
            reply.cancel()

    async def offers(self, model: str | None = None, *, wait_s: float = 0.0) -> tuple[OfferView, ...]:
        """Current offers of a model, or of all models that our peers know; cheapest output first."""
        digest = self._resolve(model).digest if model is not None else None
        with trio.move_on_after(wait_s):
            while not self._listed(digest):
                if digest is None:
                    await self._exchange.ask_connected()
                else:
                    await self.look_up(digest)
                if not self._listed(digest):
                    await trio.sleep(LOOK_UP_AGAIN_S)
        now = self.clock.now()
        views = [offer_view(listed, now=now) for listed in self._listed(digest)]
        return tuple(sorted(views, key=lambda view: (view.prices.output_nano, view.prices.input_nano, view.digest)))

    async def examine(self, provider: str, *, wait_s: float) -> SavedEvidence:
        """A provider's evidence, complete and unverified, for a fresh nonce of ours. `provider` is a peer id, or its
        beginning or end. Raises `NoProvider` when its offer is not known within `wait_s`."""
        listed: ListedOffer | None = None
        with trio.move_on_after(wait_s):
            while listed is None:
                await self._exchange.ask_connected()
                listed = self._find_provider(provider)
                if listed is None:
                    await trio.sleep(LOOK_UP_AGAIN_S)
        if listed is None:
            raise NoProvider(
                f"no offer of a provider {provider[:64]!a} is known", advice="`cocoon offers` lists the providers."
            )
        return await self.pool.examine(listed.offer)

    def _find_provider(self, name: str) -> ListedOffer | None:
        """The one provider whose peer id starts or ends with this; the shown form `12D3…abc` works too."""
        start, _, end = name.partition("…")
        found = {
            each.offer.provider: each
            for each in self._listed(None)
            if (start and each.offer.provider.startswith(start) and each.offer.provider.endswith(end))
            or each.offer.provider.endswith(name)
        }
        return next(iter(found.values())) if len(found) == 1 else None

    @property
    def policy(self) -> TrustPolicy:
        """What providers have to prove now."""
        return self._judge.policy

    def change_policy(self, policy: TrustPolicy) -> None:
        """From now on this is the policy. Every session is closed with what it had proven (rule S8).

        Requests in flight fail, or begin anew where nothing was shown yet: then under both policies.
        """
        if policy.network is not self.settings.network_id:
            raise LocalProtocolError("a policy of another network")
        self._judge.policy = policy
        self.pool.end_all(Unavailable("the trust policy has changed"))

    @property
    def account_left_nano(self) -> Nano | None:
        """What the spending account holds and is promised to nobody; None without an account."""
        return None if self.spending is None else self.spending.payer.available_nano

    def connections(self) -> tuple[Connection, ...]:
        """Live connections."""
        return self._network.connections()

    def dial_failures(self) -> tuple[DialFailure, ...]:
        """Why others could not be reached."""
        return self._network.dial_failures()

    # --- for a reply -------------------------------------------------------------------------------------

    async def choose(self, request: FrozenRequest, *, excluded: frozenset[PeerId], spent: Nano) -> Choice:
        """A provider for the next attempt, with everything that led to it."""
        listed = self._listed(request.model)
        context_max = max((each.offer.offer.context_tokens_max for each in listed), default=0)
        if listed and request.prompt_tokens_bound > BYTES_PER_TOKEN_MAX * context_max:
            raise InvalidRequest(
                f"this model's maximum context length is {context_max} tokens; the prompt is far longer",
                param="messages",
                kind="context_length_exceeded",
            )
        if self.spending is None:
            free = tuple(each for each in listed if not offer_facts(each.offer).is_paid)
            if listed and not free:
                raise PaymentError(
                    f"all {len(listed)} offers of this model ask for payment, and this client has no spending account",
                    advice="Open one with `cocoon account open` and use it, or choose a free model.",
                )
            listed = free
        wish = Wish(
            model=request.model,
            trust_min=request.policy.level,
            spend_max_nano=request.spend_max_nano - spent,
            prompt_tokens=min(request.prompt_tokens_bound, max(1, context_max - 1)),
            output_tokens_max=request.output_tokens_max or self.settings.output_tokens_default,
            features=request.features,
            ceiling=self.settings.ceiling,
            excluded_providers=excluded,
        )
        return select(gather(listed, self.history), wish, now=self.clock.now(), seed=self.entropy(SEED_BYTES))

    def tried(self, model: Digest) -> tuple[str, ...]:
        """Where offers of this model were looked for, in words."""
        connected = len({connection.peer for connection in self._network.connections()})
        look_up = self._followed.get(model)
        failures = look_up.failures if look_up is not None else ()
        return (
            f"gossip: {len(self._listed(model))} current offers heard over {connected} connected peers",
            str(look_up) if look_up is not None else "no look-up has ended yet",
            *failures,
            *(f"could not dial {each.address}: {each.reason}" for each in self._network.dial_failures()[:3]),
        )

    # --- tasks -------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Become the signer of our account, before `run`. Raises `LocalProtocolError` when another client is."""
        if self.spending is not None:
            await self.spending.open()

    async def settle(self) -> None:
        """Sign and send what is owed for what was received, within two seconds."""
        if self.spending is not None:
            with trio.CancelScope(shield=True), trio.move_on_after(PAY_AT_END_S):
                await self.spending.wait_sent()
                await self.pool.wait_sent()

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """All tasks, until cancelled."""
        await self._judge.restore()
        await self._restore_history()
        async with trio.open_nursery() as nursery:
            if self.spending is not None:
                await nursery.start(self.spending.run)
            await nursery.start(self._exchange.run)
            await nursery.start(self.pool.run)
            nursery.start_soon(self._refresh)
            if self._store is not None:
                nursery.start_soon(self._save_receipts, self._store)
                nursery.start_soon(self._save_history)
            task_status.started()

    async def follow(self, model: Digest) -> None:
        """Hear this model's offers from now on. Idempotent, bounded."""
        if model not in self._followed and len(self._followed) < MODELS_FOLLOWED_MAX:
            await self._exchange.join(model)
            self._followed.setdefault(model, None)

    async def look_up(self, model: Digest) -> None:
        """Ask the DHT and our peers for offers of this model, and follow it from now on.

        Requests that ask for one model at a time share one look-up; when its own request is cancelled, another's
        takes its place.
        """
        while (running := self._looking_up.get(model)) is not None:
            await running.ended.wait()
            if running.is_whole:
                return
        running = self._looking_up[model] = _RunningLookUp()
        try:
            await self.follow(model)
            found = await self._exchange.look_up(model)
            if model in self._followed:
                self._followed[model] = found
            running.is_whole = True
        finally:
            del self._looking_up[model]
            running.ended.set()

    async def _wait_for_offers(self, model: Digest) -> None:
        """Return once the model is offered, or after `offers_wait_s` without."""
        await self.follow(model)
        with trio.move_on_after(self.settings.offers_wait_s):
            while not self._listed(model):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._until_listed, model, nursery.cancel_scope)
                    await self.look_up(model)
                    if not self._listed(model):
                        await trio.sleep(LOOK_UP_AGAIN_S)
                    nursery.cancel_scope.cancel()

    async def _until_listed(self, model: Digest, scope: trio.CancelScope) -> None:
        while not self._listed(model):
            await self._exchange.wait_changed()
        scope.cancel()

    async def _refresh(self) -> None:
        while True:
            await trio.sleep(REFRESH_S)
            for model in list(self._followed):
                await self.look_up(model)

    # --- memory ------------------------------------------------------------------------------------------

    def _keep_receipt(self, provider: PeerId, event: ReceiptReceived) -> None:
        if self._store is None:
            return
        receipt = StoredReceipt(
            session=event.body.session,
            request_id=event.body.id,
            number=event.body.number,
            provider=provider,
            receipt=event.receipt,
            signature=event.signature,
            at_ns=self.clock.now(),
        )
        try:
            self._receipts.send_nowait(receipt)
        except trio.WouldBlock:
            log.warning("receipt.dropped", extra={"waiting": RECEIPTS_WAITING_MAX})

    async def _save_receipts(self, store: Store) -> None:
        async for receipt in self._receipts_in:
            try:
                await store.save_receipt(receipt)
            except StoreError as error:
                log.error("receipt.unsaved", extra={"reason": str(error)})

    async def _restore_history(self) -> None:
        if self._store is None:
            return
        try:
            for entry in await self._store.reputation(count_max=REPUTATIONS_RESTORED_MAX):
                self.history.restore(entry)
        except StoreError as error:
            log.error("history.unread", extra={"reason": str(error)})

    async def _save_history(self) -> None:
        while True:
            await trio.sleep(REPUTATION_SAVED_S)
            await self.save()

    async def save(self) -> None:
        """Put what was seen of providers on disk."""
        changed = self.history.take_changed()
        if self._store is None or not changed:
            return
        try:
            await self._store.save_reputation(changed)
        except StoreError as error:
            log.error("history.unsaved", extra={"reason": str(error)})

    # --- inside ------------------------------------------------------------------------------------------

    def _listed(self, model: Digest | None) -> tuple[ListedOffer, ...]:
        listed = self._exchange.book.listed(model, now=self.clock.now())
        return tuple(each for each in listed if each.offer.provider != self._network.peer)

    def _resolve(self, reference: str) -> ModelRef:
        return self.catalogue.resolve(reference, seen=self._names_seen())

    def _names_seen(self) -> Iterator[ModelRef]:
        """What the network calls its models; counted only when a name is not known, for that takes milliseconds."""
        yield from self._exchange.book.models()

    def _freeze(self, endpoint: str, body: Mapping[str, Any], spend_max_nano: Nano) -> FrozenRequest:
        request = normalise(endpoint, body)
        wanted = dict(request.body)
        output_tokens_max = wanted.pop("max_tokens", None)
        return FrozenRequest(
            endpoint=endpoint,
            model=self._resolve(request.model).digest,
            body=wanted,
            prompt_tokens_bound=prompt_tokens_upper_bound(wanted),
            output_tokens_max=output_tokens_max,
            features=features_needed(endpoint, wanted),
            policy=self._judge.policy,
            spend_max_nano=spend_max_nano,
        )


def features_needed(endpoint: str, body: Mapping[str, Any]) -> Feature:
    """What an offer must be able to do for this normalised body."""
    needed = Feature(0)
    for is_needed, feature in (
        (endpoint == COMPLETIONS, Feature.COMPLETIONS),
        (endpoint == CHAT and "tools" in body, Feature.TOOLS),
        ("response_format" in body, Feature.JSON_SCHEMA),
        ("logprobs" in body, Feature.LOGPROBS),
    ):
        if is_needed:
            needed |= feature
    return needed


@asynccontextmanager
async def open_client(
    network: PeerNetwork,
    settings: ClientSettings,
    *,
    catalogue: Catalogue,
    clock: Clock,
    entropy: Entropy,
    store: Store | None = None,
) -> AsyncIterator[Client]:
    """A client that is up until the block ends. Requests that still run then are cancelled."""
    client = Client(network=network, settings=settings, catalogue=catalogue, clock=clock, entropy=entropy, store=store)
    await client.open()
    scope = trio.CancelScope(shield=client.spending is not None)  # so that it can still pay when all is cancelled

    async def run(task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with scope:
            await client.run(task_status)

    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(run)
            yield client
        finally:
            await client.settle()
            scope.cancel()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), trio.move_on_after(SAVE_AT_END_S):
                await client.save()
