"""Reads a `Status` off what runs: one function per kind of process. Nothing is awaited but the database."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from itertools import pairwise
from typing import Final, Protocol

from ..adapters.network import PeerNetwork
from ..market.book import ListedOffer
from ..node.plain import PlainNode
from ..node.provider import ProviderRole
from ..node.serving import ServingRecord
from ..ports import Clock, Connection, DialFailure, Engine, Store
from ..types import SECOND_NS, Nano, Network, Prices, TeeKind
from .facts import (
    EarnedFacts,
    EvidenceFacts,
    ModelFacts,
    OfferFacts,
    PeerFacts,
    ReachFacts,
    ServingFacts,
    SpendingFacts,
    Status,
)

DAY_S: Final = 86_400
HOUR_NS: Final = 3_600 * SECOND_NS
MODELS_MAX: Final = 200  # in one answer, the most offered first
NETWORKS_MAX: Final = 32
IDLE_AFTER_S: Final = 60.0  # a provider that has just started has no work yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What stays the same while a process runs."""

    version: str
    network_id: Network
    at_ns: int


class SpendingRecord(Protocol):
    """What `cocoon.gateway` counts."""

    requests: int
    running: int
    failed: int
    completion_tokens: int

    @property
    def first_token_ms(self) -> Iterable[float]:
        """Of the newest requests."""
        ...

    @property
    def spent(self) -> Iterable[tuple[int, Nano]]:
        """(when, cost) of the newest requests."""
        ...


async def of_provider(
    role: ProviderRole,
    network: PeerNetwork,
    engine: Engine,
    *,
    started: Started,
    clock: Clock,
    store: Store,
    payout: bytes | None,
) -> Status:
    """A provider's. Raises `StoreError`."""
    now = clock.now()
    uptime_s = (now - started.at_ns) / SECOND_NS
    listed = role.market()
    offer = _own_offer(role, listed, now)
    reach = _reach(network)
    serving = _serving(role.record, role.sessions_open, engine.info.slots)
    return Status(
        role="provider",
        version=started.version,
        network=started.network_id.label,
        peer=network.peer,
        pid=os.getpid(),
        uptime_s=uptime_s,
        reach=reach,
        peers=peer_facts(network.connections(), network.dial_failures(), network),
        models=model_facts(_offers(listed)),
        offer=offer,
        serving=serving,
        earned=await _earned(role, store, started, payout=payout, now=now),
        evidence=EvidenceFacts(kind=_evidence_kind(role), age_s=role.evidence_age_s),
        idle_because=why_idle(role, offer, reach, serving, listed, uptime_s=uptime_s),
    )


def of_node(node: PlainNode, network: PeerNetwork, *, started: Started, clock: Clock) -> Status:
    """A plain node's."""
    return Status(
        role="node",
        version=started.version,
        network=started.network_id.label,
        peer=network.peer,
        pid=os.getpid(),
        uptime_s=(clock.now() - started.at_ns) / SECOND_NS,
        reach=_reach(network),
        peers=peer_facts(network.connections(), network.dial_failures(), network),
        models=model_facts(_offers(node.offers())),
    )


def of_gateway(
    *,
    peer: str,
    connections: Sequence[Connection],
    failures: Sequence[DialFailure],
    models: tuple[ModelFacts, ...],
    record: SpendingRecord,
    spent_today_nano: Nano,
    reserved_nano: Nano,
    day_max_nano: Nano,
    account_left_nano: Nano | None,
    started: Started,
    clock: Clock,
) -> Status:
    """A gateway's."""
    now = clock.now()
    first = sorted(record.first_token_ms)
    return Status(
        role="gateway",
        version=started.version,
        network=started.network_id.label,
        peer=peer,
        pid=os.getpid(),
        uptime_s=(now - started.at_ns) / SECOND_NS,
        reach=ReachFacts(reach="not", reason="a client calls others and need not be called"),
        peers=peer_facts(connections, failures, None),
        models=models,
        spending=SpendingFacts(
            requests_running=record.running,
            requests=record.requests,
            failed=record.failed,
            completion_tokens=record.completion_tokens,
            first_token_p50_ms=_percentile(first, 50),
            first_token_p95_ms=_percentile(first, 95),
            spent_today_nano=spent_today_nano,
            reserved_nano=reserved_nano,
            day_max_nano=day_max_nano,
            account_left_nano=account_left_nano,
            runway_h=runway_h(record.spent, account_left_nano, now=now, started_ns=started.at_ns),
        ),
    )


# --- parts -------------------------------------------------------------------------------------------------


def peer_facts(
    connections: Sequence[Connection], failures: Sequence[DialFailure], network: PeerNetwork | None
) -> PeerFacts:
    """Connections by direction and by the network that they come from (IPv4 by /24, IPv6 by /48)."""
    inbound = sum(not one.outbound for one in connections)
    networks = Counter(name for one in connections if (name := _network_of(one.address)) is not None)
    counted = None if network is None else network.statistics()
    return PeerFacts(
        connections=len(connections),
        inbound=inbound,
        outbound=len(connections) - inbound,
        networks=dict(networks.most_common(NETWORKS_MAX)),
        dial_failures=len(failures),
        streams_open=0 if counted is None else counted.streams_open,
        bytes_sent=0 if counted is None else counted.bytes_sent,
        bytes_received=0 if counted is None else counted.bytes_received,
        gossip_delivered=0 if counted is None else counted.gossip_received,
        gossip_dropped=0 if counted is None else counted.gossip_dropped,
    )


def _network_of(address: str) -> str | None:
    parts = address.split("/")
    for kind, value in pairwise(parts):
        if kind in ("ip4", "ip6"):
            try:
                return str(ip_network((ip_address(value), 24 if kind == "ip4" else 48), strict=False))
            except ValueError:
                return None
    return None


def _reach(network: PeerNetwork) -> ReachFacts:
    found = network.reachability()
    return ReachFacts(
        reach=found.reach.value,
        reason=found.reason,
        addresses=found.addresses,
        peers_asked=found.peers_asked,
        peers_reached=found.peers_reached,
    )


def model_facts(offers: Iterable[tuple[str, Nano]]) -> tuple[ModelFacts, ...]:
    """The market by model, the most offered first, from (model, price of output) of each offer."""
    prices: dict[str, list[Nano]] = {}
    for name, output_nano in offers:
        prices.setdefault(name, []).append(output_nano)
    ordered = sorted(prices.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(
        ModelFacts(name=name, offers=len(each), price_output_min_nano=min(each), price_output_max_nano=max(each))
        for name, each in ordered[:MODELS_MAX]
    )


def _offers(listed: Iterable[ListedOffer]) -> Iterator[tuple[str, Nano]]:
    return ((one.offer.offer.model_name, one.offer.prices.output_nano) for one in listed)


def _own_offer(role: ProviderRole, listed: Sequence[ListedOffer], now: int) -> OfferFacts:
    prices, offer = role.prices, role.offer
    cheaper = sum(_cost(one.offer.prices) < _cost(prices) for one in listed)
    return OfferFacts(
        model=role.model.name,
        model_digest=role.model.digest.hex(),
        price_input_nano=prices.input_nano,
        price_output_nano=prices.output_nano,
        rank=0 if offer is None else cheaper + 1,
        of=len(listed) + (offer is not None),
        seq=0 if offer is None else offer.offer.seq,
        expires_in_s=0.0 if offer is None else max(0.0, offer.offer.expiry_s - now / SECOND_NS),
    )


def _cost(prices: Prices) -> Nano:
    """Of a request with as many tokens in as out; only for an order."""
    return prices.input_nano + prices.output_nano


def _serving(record: ServingRecord, sessions_open: int, slots: int) -> ServingFacts:
    first, speed, service = sorted(record.first_token_ms), sorted(record.tokens_per_s), sorted(record.service_ms)
    running = min(record.running, slots)
    return ServingFacts(
        slots=slots,
        running=running,
        queued=record.running - running,
        sessions_open=sessions_open,
        sessions=record.sessions,
        requests=record.requests,
        refused=record.refused,
        failed=record.failed,
        cancelled=record.cancelled,
        prompt_tokens=record.prompt_tokens,
        completion_tokens=record.completion_tokens,
        first_token_p50_ms=_percentile(first, 50),
        first_token_p95_ms=_percentile(first, 95),
        tokens_per_s_p50=_percentile(speed, 50),
        service_p50_ms=_percentile(service, 50),
    )


async def _earned(
    role: ProviderRole, store: Store, started: Started, *, payout: bytes | None, now: int
) -> EarnedFacts | None:
    record = role.earned
    if record is None or payout is None:
        return None
    today = now // SECOND_NS // DAY_S
    earnings = await store.earnings(network=int(started.network_id), provider=payout, since_day=today - 29)
    since = {days: sum(one.due_nano for one in earnings if one.day > today - days) for days in (1, 7, 30)}
    return EarnedFacts(
        vouchers=record.vouchers,
        paid_nano=record.paid_nano,
        claimed_nano=record.claimed_nano,
        refused=record.refused,
        today_nano=since[1],
        week_nano=since[7],
        month_nano=since[30],
    )


def _evidence_kind(role: ProviderRole) -> str:
    if TeeKind.SIMULATED in role.tee:
        return "simulated"
    words = [word for kind, word in ((TeeKind.TDX, "tdx"), (TeeKind.NVIDIA_CC, "gpu")) if kind in role.tee]
    return "+".join(words) or "none"


def why_idle(
    role: ProviderRole,
    offer: OfferFacts,
    reach: ReachFacts,
    serving: ServingFacts,
    listed: Sequence[ListedOffer],
    *,
    uptime_s: float,
) -> str | None:
    """The likeliest reason why nobody asks, worst first; None while there is work."""
    if serving.running or serving.queued or uptime_s < IDLE_AFTER_S:
        return None
    if role.is_draining:
        return "it is draining: nothing new is taken"
    if offer.rank == 0:
        return "there is no offer now: look at the log for offer.failed"
    if reach.reach == "not":
        return f"others cannot reach it: {reach.reason}"
    if serving.sessions == 0 and reach.reach == "by relay":
        return "others reach it by relay only, which clients like less; forward its port"
    if serving.requests and serving.refused >= serving.requests:
        return "every request was refused: look at the log for the reasons"
    if listed and offer.rank > max(1, offer.of // 2):
        return f"its price is number {offer.rank} of {offer.of}: {offer.rank - 1} others are cheaper"
    if serving.failed * 5 > serving.requests > 0:
        return f"{serving.failed} of {serving.requests} requests failed; clients remember"
    if _evidence_kind(role) == "none" and serving.sessions == 0:
        return "it proves nothing (trust level open), and many clients ask for more"
    if serving.sessions == 0:
        return "no client has come yet: nobody asks for this model now, or nobody has heard of it"
    return "no request just now"


def runway_h(spent: Iterable[tuple[int, Nano]], left_nano: Nano | None, *, now: int, started_ns: int) -> float | None:
    """Hours until `left_nano` is gone at the pace of the last hour; None without an account or without a pace."""
    recent = sum(cost for at_ns, cost in spent if at_ns > now - HOUR_NS)
    if left_nano is None or recent == 0:
        return None
    observed_ns = max(60 * SECOND_NS, min(HOUR_NS, now - started_ns))
    return left_nano / recent * observed_ns / HOUR_NS


def _percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0
