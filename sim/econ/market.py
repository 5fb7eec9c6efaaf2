"""The market of one simulation: its peers, its models, its chain, who wants what when, and the tally.

    market = Market(env, spec, chain=…, sink=…, warmup_s=…, until_s=…)
    market.add_provider(number, group, index, agent); market.add_client(…); market.start()

Offers and beacons reach clients through `gossips` where there are routers, else after the delay of a few hops. Not
here: worlds, scenarios as a whole and runs (`sim.levels.market`), attackers (`sim.adversary`).
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from cocoon.market.keys import load_topic, offers_topic, shard_of
from cocoon.market.offer import OfferSpec
from cocoon.pay.effects import ClaimConfirmed, EpochRolled, ForeignClaim, VoucherAccepted
from cocoon.types import MILLISECOND_NS, NANO_PER_TON, NO_DIGEST, SECOND_NS, PeerId, Prices
from cocoon.types import Network as CocoonNetwork
from cocoon.wire.messages import OffersQuery
from sim.chain import ChainTerms, Ledger, Outage, Reorg, SimChain
from sim.chain.gas import Fees
from sim.econ.client import ClientPeer, ClientSetup
from sim.econ.crypto import Key
from sim.econ.engine import Engine
from sim.econ.env import Env
from sim.econ.money import open_account
from sim.econ.orders import Order
from sim.econ.policies import make_policy
from sim.econ.provider import ProviderPeer, ProviderSetup
from sim.econ.purchase import Purchase
from sim.econ.rules import Proxy, make_rule
from sim.econ.tally import Tally, market_summary, payments_summary
from sim.out import Sink
from sim.rng import Stream, stream
from sim.scenario import ChainSpec, ClientAgent, MarketSpec, ModelSpec, ProviderAgent

HOP_MS: Final = (40, 400)  # without routers: how long gossip takes to a client
CONTEXT_TOKENS: Final = 32_768
OUTPUT_TOKENS_MAX: Final = 8_192
TOKENS_MIN: Final = 8
WALLET_NANO: Final = 2 * NANO_PER_TON  # what a provider's wallet holds for claims
VOUCHER_STEP_NANO: Final = 100_000
ASK_AGAIN_NS: Final = 300 * SECOND_NS


@dataclass(slots=True)
class Model:
    """One model that is traded."""

    spec: ModelSpec
    digest: bytes

    @property
    def topics(self) -> tuple[str, str]:
        """Of offers and of beacons."""
        shard = shard_of(self.digest)
        return offers_topic(CocoonNetwork.DEVNET, shard), load_topic(CocoonNetwork.DEVNET, shard)


@dataclass(slots=True)
class Demand:
    """One client's wishes."""

    client: ClientPeer
    agent: ClientAgent
    models: list[Model]
    weights: list[float]
    rng: Stream
    orders: int = 0


def chain_terms(spec: ChainSpec | None) -> ChainTerms:
    """The scenario's chain as `sim.chain` wants it."""
    spec = spec or ChainSpec()
    return ChainTerms(
        block_time_s=spec.block_time_s,
        finality_blocks=spec.finality_blocks,
        messages_per_block=spec.block_messages_max,
        fail_rate=spec.fail_rate,
        outages=tuple(Outage(from_s=each.at_s, until_s=each.at_s + each.for_s) for each in spec.outages),
        reorgs=tuple(Reorg(at_s=each.at_s, depth=each.depth_blocks) for each in spec.reorgs),
    )


class Herald(Protocol):
    """Carries a provider's messages to the clients."""

    def publish(self, provider: ProviderPeer, topic: str, data: bytes) -> None:
        """On this topic."""
        ...


class Market:
    """See the file's head."""

    def __init__(
        self,
        env: Env,
        spec: MarketSpec,
        *,
        chain: ChainSpec | None,
        sink: Sink,
        warmup_s: float,
        until_s: float,
        gossips: Herald | None = None,
    ) -> None:
        self.env = env
        self.spec = spec
        self.sink = sink
        self.until_ns = env.now + int(until_s * SECOND_NS)
        self.gossips = gossips
        self.tally = Tally(warmup_ns=env.now + int(warmup_s * SECOND_NS), start_ns=env.now)
        self.models = [Model(each, hashlib.sha256(b"model " + each.name.encode()).digest()) for each in spec.models]
        fee_nano = (chain or ChainSpec()).fee_nano
        self.chain = SimChain(
            Ledger(fees=Fees(flat_nano=fee_nano), verify=env.memo.verify),
            chain_terms(chain),
            rng=env.rng("chain"),
            now=env.now,
        )
        self.claim_cost_nano = fee_nano or Fees().claim_nano(entries=16, is_own=True) + Fees().wallet_nano
        self.providers: list[ProviderPeer] = []
        self.clients: list[ClientPeer] = []
        self.demands: list[Demand] = []
        self.directory: dict[PeerId, ProviderPeer] = {}
        self.proxies = [Proxy() for _ in range(3)]
        self.wrap_engine: dict[int, Callable[[Engine], Engine]] = {}  # by index of the provider, before it starts
        self.on_done: list[Callable[[Purchase], None]] = []
        self.on_money: list[Callable[[ProviderPeer, Any], None]] = []
        self.ask_again_ns = ASK_AGAIN_NS
        self._orders = 0
        self._unsettled: dict[tuple[int, bytes], deque[tuple[int, int]]] = {}  # vouchers on disk, not yet on chain
        env.kernel.at(self.chain.deadline(), self._block)

    # --- peers -------------------------------------------------------------------------------------------

    def add_provider(
        self, number: int, group: str, index: int, agent: ProviderAgent, *, name: str = "", is_honest: bool = True
    ) -> ProviderPeer:
        """A provider at this node; it offers the agent's first model (one model each). It is down until `start`."""
        rng = stream(self.env.seed, f"provider@{group}", index)
        names = agent.models or tuple(model.spec.name for model in self.models)
        model = self._model(names[index % len(names)])
        cost = _within(rng, agent.cost_nano_per_mtok)
        start = _within(rng, agent.price_nano_per_mtok)
        price = round(cost * (1 + agent.margin)) if agent.policy == "cost-plus" else start
        slots = _within(rng, agent.slots)
        tokens_per_s = rng.uniform(*agent.tokens_per_s)
        first_token_ms = rng.uniform(*agent.first_token_ms)
        policy = make_policy(agent.policy, cost=cost, start=start, margin=agent.margin, rng=rng)
        moves = agent.policy in ("best-response", "bandit")
        setup = ProviderSetup(
            name=name or f"{group} {index}",
            group=group,
            spec=OfferSpec(
                model=model.digest,
                model_name=model.spec.name,
                engine=hashlib.sha256(b"engine").digest(),
                context_tokens_max=CONTEXT_TOKENS,
                output_tokens_max=OUTPUT_TOKENS_MAX,
                prices=Prices(input_nano=price // 4, cached_input_nano=price // 40, output_nano=price),
                slots=slots,
                first_token_p50_ms=round(first_token_ms),
                first_token_p95_ms=round(2 * first_token_ms),
                tokens_per_s_p50=max(1, round(tokens_per_s)),
                unpaid_tokens_max=4_096,
                voucher_step_nano=VOUCHER_STEP_NANO,
            ),
            slots=slots,
            tokens_per_s=tokens_per_s,
            first_token_ms=first_token_ms,
            cost_nano_per_mtok=cost,
            policy=policy if moves else None,
            reprice_s=agent.reprice_s,
            stake=hashlib.sha256(f"stake {group} {index}".encode()).digest() if agent.stake_ton else NO_DIGEST,
            key_epoch=1 if agent.stake_ton else 0,
            claim_cost_nano=self.claim_cost_nano,
            is_honest=is_honest,
        )
        place = len(self.providers)
        provider = ProviderPeer(
            self.env,
            number,
            self.chain,
            setup,
            publish=self._publish,
            rivals=self._rivals,
            wrap_engine=lambda engine: self.wrap_engine.get(place, _as_it_is)(engine),
        )
        self.chain.ledger.give(provider.payout, WALLET_NANO)
        provider.on_money = partial(self._money, provider)  # type: ignore[method-assign]
        self.providers.append(provider)
        self.directory[provider.peer] = provider
        return provider

    def add_client(
        self, number: int, group: str, index: int, agent: ClientAgent, *, name: str = "", **setup: Any
    ) -> ClientPeer:
        """A client at this node, with an account of its own, and its demand. It is down until `start`."""
        name = name or f"{group} {index}"
        owner, key = Key(f"{self.env.seed}/{name}/owner"), Key(f"{self.env.seed}/{name}/V")
        deposit = int(agent.deposit_ton * NANO_PER_TON)
        bond = int(float(agent.params.get("bond_ton", 1.0)) * NANO_PER_TON)
        account = open_account(self.chain, owner=owner, key=key, deposit=deposit, bond=bond)
        params = {key: value for key, value in agent.params.items() if key in ClientSetup.__slots__}
        client = ClientPeer(
            self.env,
            number,
            self.chain,
            ClientSetup(
                name=name,
                group=group,
                deposit_nano=deposit,
                bond_nano=bond,
                attempts_max=self.spec.attempts_max,
                **{**params, **setup},
            ),
            account=account,
            voucher_key=key,
            directory=self.directory,
            rule=make_rule(self.spec.selection, client=len(self.clients), proxies=self.proxies),
        )
        self.clients.append(client)
        models = [self._model(each) for each in agent.models] if agent.models else list(self.models)
        weights = [model.spec.weight for model in models]
        rng = stream(self.env.seed, f"demand@{group}", index)
        self.demands.append(Demand(client, agent, models, weights, rng))
        return client

    def _model(self, name: str) -> Model:
        for model in self.models:
            if model.spec.name == name:
                return model
        raise ValueError(f"no model {name!r} is traded; there are {', '.join(each.spec.name for each in self.models)}")

    def start(self) -> None:
        """Everybody comes up, and clients begin to want."""
        for provider in self.providers:
            provider.start()
        for client in self.clients:
            client.start()
        self.begin_demand()

    def begin_demand(self) -> None:
        """Clients begin to want; those that are down want nothing that anybody counts."""
        for demand in self.demands:
            self._plan(demand)

    # --- offers ------------------------------------------------------------------------------------------

    def _publish(self, provider: ProviderPeer, topic: str, data: bytes) -> None:
        if self.gossips is not None and self.spec.offers_by_gossip:
            self.gossips.publish(provider, topic, data)
            return
        is_offer = "/offers/" in topic
        shard = shard_of(provider.spec.model)
        rng = self.env.rng(f"herald {topic} {self.env.now}", provider.number)
        for client in self.clients:
            delay_ms = rng.uniform(*HOP_MS) if self.spec.offers_by_gossip else 0.0
            self.env.kernel.after(
                int(delay_ms * MILLISECOND_NS), self._deliver, client, provider.peer, data, shard, is_offer
            )

    def _deliver(self, client: ClientPeer, forwarder: PeerId, data: bytes, shard: int, is_offer: bool) -> None:
        if client.is_up:
            (client.heard_offer if is_offer else client.heard_beacon)(forwarder, data, shard=shard)

    def ask_offers(self, client: ClientPeer, session: int = 0) -> None:
        """A client asks everybody whom a lookup would find, and again every few minutes, as `cocoon.exchange` does."""
        if not client.is_up or session != client.starts:
            return
        for provider in self.providers:
            if provider.is_up:
                reply = provider.publisher.answer(OffersQuery(model=b""), now=provider.now)
                for message in reply.offers:
                    client.heard_offer(provider.peer, message)
                for message in reply.beacons:
                    client.heard_beacon(provider.peer, message)
        self.env.kernel.after(self.ask_again_ns, self.ask_offers, client, session)

    def came_up(self, peer: ProviderPeer | ClientPeer) -> None:
        """A node is up: so is its part in the market."""
        peer.start()
        if isinstance(peer, ClientPeer):
            wait_ns = int(self.env.rng("first question", peer.number).uniform(0.5, 2.5) * SECOND_NS)
            self.env.kernel.after(wait_ns, self.ask_offers, peer, peer.starts)

    def _rivals(self, provider: ProviderPeer) -> tuple[int, ...]:
        return tuple(
            sorted(
                each.price
                for each in self.providers
                if each is not provider and each.is_up and each.spec.model == provider.spec.model
            )
        )

    # --- demand ------------------------------------------------------------------------------------------

    def _plan(self, demand: Demand) -> None:
        rate = demand.agent.rate_per_s
        if rate <= 0:
            return
        spec, now_s = self.spec, (self.env.now - self.tally.start_ns) / SECOND_NS
        if spec.surge_at_s and spec.surge_at_s <= now_s < spec.surge_at_s + spec.surge_for_s:
            rate *= spec.surge_factor
        wait_ns = int(demand.rng.exponential(1 / rate) * SECOND_NS)
        if spec.surge_at_s and now_s < spec.surge_at_s < now_s + wait_ns / SECOND_NS:
            wait_ns = int((spec.surge_at_s - now_s) * SECOND_NS) + 1  # the surge does not wait for a quiet client
            self.env.kernel.after(wait_ns, self._plan, demand)
            return
        if self.env.now + wait_ns < self.until_ns:
            self.env.kernel.after(wait_ns, self._want, demand)

    def _want(self, demand: Demand) -> None:
        self._plan(demand)
        order = self.draw_order(demand)
        if demand.client.is_up:
            self.order(demand.client, order)

    def draw_order(self, demand: Demand) -> Order:
        """What this client wants next."""
        rng, agent = demand.rng, demand.agent
        model = demand.models[rng.weighted(demand.weights)]
        spec = model.spec
        tokens = max(TOKENS_MIN, min(4_096, round(rng.lognormal(spec.output_tokens, spec.output_sigma))))
        prompt = max(1, round(rng.lognormal(spec.prompt_tokens * 0.8, 0.6)))  # of this mean
        self._orders += 1
        return Order(
            number=self._orders,
            model=model.digest,
            prompt_tokens=min(prompt, 16_000),
            tokens=tokens,
            value_nano=_within(rng, agent.value_nano),
            value_of_time_nano_per_s=agent.value_of_time_nano_per_s,
            deadline_s=agent.deadline_s,
            at_ns=self.env.now,
        )

    def order(self, client: ClientPeer, order: Order) -> None:
        """This client wants this now."""
        self.env.note(client.number, "want", order.number.to_bytes(6, "big"))
        client.buy(order, self._done)

    def _done(self, purchase: Purchase) -> None:
        record, order = purchase.record, purchase.order
        self.env.note(
            purchase.client.number, record.status, order.number.to_bytes(6, "big") + record.paid_nano.to_bytes(8, "big")
        )
        trade = self.tally.add(purchase)
        for listener in self.on_done:
            listener(purchase)
        if trade is not None and self.sink.wants("trades"):
            first_ns = record.first_ns
            self.sink.row(
                "trades",
                t_ns=order.at_ns,
                client=purchase.client.number,
                provider=record.provider,
                status=record.status,
                tokens=record.tokens,
                paid_nano=record.paid_nano,
                value_nano=order.value_nano,
                first_token_ms=-1.0 if first_ns is None else (first_ns - order.at_ns) / MILLISECOND_NS,
                total_ms=(record.end_ns - order.at_ns) / MILLISECOND_NS,
                attempts=record.attempts,
                refusals=record.refusals,
                hedges=record.hedges,
                failovers=record.failovers,
            )

    # --- the chain ---------------------------------------------------------------------------------------

    def _block(self) -> None:
        for event in self.chain.on_time(now=self.env.now):
            kind = "undone" if event.is_undone else "executed"
            self.env.note(-1, kind, event.number.to_bytes(6, "big"))
        self.env.kernel.at(self.chain.deadline(), self._block)

    def _money(self, provider: ProviderPeer, event: Any) -> None:
        for listener in self.on_money:
            listener(provider, event)
        match event:
            case VoucherAccepted(account=account, amount_nano=amount) if amount:
                self._unsettled.setdefault((provider.number, account), deque()).append((self.env.now, amount))
            case ClaimConfirmed(account=account, amount_nano=amount):
                self.tally.settled_nano += amount
                self.tally.claims_confirmed += 1
                self._settled(provider.number, account, amount)
                if self.sink.wants("payments"):
                    self.sink.row(
                        "payments",
                        t_ns=self.env.now,
                        provider=provider.number,
                        account=account.hex()[:16],
                        amount_nano=amount,
                        kind="settled",
                    )
            case EpochRolled(lost_nano=lost):
                self.tally.lost_nano += lost
            case ForeignClaim():
                self.tally.foreign_claims += 1

    def _settled(self, provider: int, account: bytes, amount: int) -> None:
        """How long what was confirmed now has waited, voucher by voucher, the oldest first."""
        waiting = self._unsettled.get((provider, account))
        while waiting and amount >= waiting[0][1]:
            at_ns, paid = waiting.popleft()
            amount -= paid
            self.tally.settlements_s.append((self.env.now - at_ns) / SECOND_NS)
        if waiting and amount:
            at_ns, paid = waiting[0]
            waiting[0] = (at_ns, paid - amount)

    def settle(self) -> None:
        """Every provider claims what is worth its cost."""
        for provider in self.providers:
            if provider.is_up:
                provider.till.did(provider.till.payee.claim_all(now=provider.now))

    # --- the summary -------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """`{"market": …, "payments": …}`."""
        self.tally.acknowledged_nano = sum(provider.sold.earned_nano for provider in self.providers)
        self.tally.claims = sum(provider.till.submitted for provider in self.providers)
        return {
            "market": market_summary(self.tally, self.providers, now=self.env.now),
            "payments": payments_summary(self.tally) | {"chain_fees_nano": self.chain.ledger.paid_fees},
        }


def _within(rng: Stream, bounds: tuple[int, int]) -> int:
    return rng.between(bounds[0], max(bounds[0], bounds[1]))


def _as_it_is(engine: Engine) -> Engine:
    return engine
