"""A scenario: one network, its workload, its market, its attackers and what is measured, as frozen values.

    scenario = load("gossip-v11", overrides=["nodes.honest.count=500", "net.loss=0.01"])

Every level takes the same `Scenario`. A part that is None is not simulated. Names end in their unit: `_s`, `_ms`,
`_bytes`, `_nano` (nanoTON), `_ton`, `_per_s`, `_mbit_per_s`; a `share`, a `rate` without unit, `loss` and `jitter` lie
between 0 and 1. `knob` carries each field's bounds and its one line of documentation: the loader checks them, the JSON
schema publishes them, and `python -m sim new` writes them as comments. Sources of the defaults: docs/simulation.md.

Not here: reading files (`loading.py`), the published schema (`schema.py`).
"""
# ruff: noqa: RUF009 - `knob` returns a dataclass field

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Value = bool | int | float | str  # what a free table (`params`) may hold
Params = Mapping[str, Value]

ROLES = ("gossip", "dht", "provider", "client")
NET_MODELS = ("uniform", "regions8", "matrix")
NAT_KINDS = ("public", "cone", "symmetric")
CHURN_MODELS = ("none", "weibull", "trace", "diurnal", "flash")
GOSSIP_PROTOCOLS = ("v1.0", "v1.1", "v1.2")
KNOWLEDGE = ("local", "colluding", "omniscient")
SELECTIONS = ("real", "cheapest", "random", "least-load", "power-of-two", "original", "full-information")
PRICE_POLICIES = ("fixed", "cost-plus", "best-response", "bandit")
TABLES = ("deliveries", "lookups", "trades", "payments", "events", "samples")
ADVERSARIES = (
    "sybil",
    "eclipse",
    "offer-spam",
    "equivocation",
    "price-liar",
    "speed-liar",
    "load-liar",
    "fast-fail",
    "stall",
    "model-swap",
    "token-inflation",
    "over-issue",
    "withhold",
    "cold-boot",
    "covert-flash",
    "censorship",
)

NODES_MAX = 2_000_000  # of one group: twice what the fast level is measured for
SECONDS_MAX = 366 * 24 * 3600.0  # a year of virtual time
COUNT_MAX = 1_000_000_000
NANO_MAX = 10**18  # a thousand million TON


def knob(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    keys_of: str = "",
) -> Any:
    """A field with bounds. `keys_of`: "module:Class" whose fields are the keys that a free table may have."""
    metadata = {"doc": doc, "low": low, "high": high, "choices": tuple(choices), "keys_of": keys_of}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What `python -m sim run` does when it is not told otherwise."""

    seed: int = knob(1, "of the first replication; the others follow", low=0, high=2**63 - 1)
    replications: int = knob(5, "runs with seeds of their own, for 95 % intervals", low=1, high=10_000)
    level: int = knob(1, "0 whole nodes, 1 the real machines, 2 the fast model", low=0, high=2)
    until_s: float = knob(60.0, "virtual seconds", low=0.001, high=SECONDS_MAX)
    warmup_s: float = knob(0.0, "what happens before is not counted", low=0.0, high=SECONDS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    up_mbit_per_s: float = knob(0.0, "a FIFO queue per node; 0 is no limit", low=0.0, high=1e6)
    down_mbit_per_s: float = knob(0.0, "a FIFO queue per node; 0 is no limit", low=0.0, high=1e6)
    queue_bytes: int = knob(0, "what a full queue drops beyond; 0 is no limit", low=0, high=COUNT_MAX)
    nat: str = knob("public", "who can be dialled", choices=NAT_KINDS)
    region: str = knob("", "of net.model; empty: drawn by the regions' weights")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChurnSpec:
    """When nodes come and go. The Weibull defaults fit IPFS RFM2: 50 % of sessions <= 2 h, 80 % <= 8 h."""

    model: str = knob("none", "how sessions end", choices=CHURN_MODELS)
    shape: float = knob(0.608, "of the Weibull distribution of session lengths", low=0.05, high=20.0)
    scale_s: float = knob(13_176.0, "of the same: 3.66 h", low=0.001, high=SECONDS_MAX)
    off_mean_s: float = knob(3_600.0, "away between two sessions, exponential", low=0.0, high=SECONDS_MAX)
    file: str = knob("", "model trace: CSV of node, up_s, down_s; relative to the scenario")
    period_s: float = knob(86_400.0, "model diurnal: one day", low=1.0, high=SECONDS_MAX)
    amplitude: float = knob(0.5, "model diurnal: share of nodes that follow the day", low=0.0, high=1.0)
    at_s: float = knob(0.0, "model flash: when the crowd comes", low=0.0, high=SECONDS_MAX)
    share: float = knob(0.0, "model flash: share of the group that comes only then", low=0.0, high=1.0)
    within_s: float = knob(10.0, "model flash: how long they take to arrive", low=0.0, high=SECONDS_MAX)
    stay_s: float = knob(0.0, "model flash: then they leave; 0 is never", low=0.0, high=SECONDS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    count: int = knob(100, "nodes of this group", low=0, high=NODES_MAX)
    roles: tuple[str, ...] = knob(("gossip",), "machines that each node runs", choices=ROLES)
    link: LinkSpec = field(default_factory=LinkSpec)
    churn: ChurnSpec = field(default_factory=ChurnSpec)
    params: Params = knob({}, "further settings for the machines of this group")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSpec:
    at_s: float = knob(0.0, "when the network splits", low=0.0, high=SECONDS_MAX)
    for_s: float = knob(10.0, "how long", low=0.0, high=SECONDS_MAX)
    share: float = knob(0.5, "of all nodes on the smaller side", low=0.0, high=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetSpec:
    model: str = knob("uniform", "where latencies come from", choices=NET_MODELS)
    latency_ms: tuple[float, float] = knob((10.0, 150.0), "model uniform: one way, per pair", low=0.0, high=60_000.0)
    jitter: float = knob(0.1, "share of the pair's latency, drawn per message", low=0.0, high=1.0)
    loss: float = knob(0.0, "share of messages that vanish", low=0.0, high=1.0)
    file: str = knob("", "model matrix: CSV of milliseconds; relative to the scenario")
    partitions: tuple[PartitionSpec, ...] = knob((), "when the network splits, and heals")


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipSpec:
    """One topic that every node with the role `gossip` joins. The defaults are those of published simulations."""

    protocol: str = knob("v1.1", "v1.0 is without scores and flood publishing", choices=GOSSIP_PROTOCOLS)
    degree: int = knob(6, "D", low=1, high=1_000)
    degree_low: int = knob(4, "D_low", low=0, high=1_000)
    degree_high: int = knob(12, "D_high", low=1, high=1_000)
    degree_lazy: int = knob(6, "D_lazy", low=0, high=1_000)
    heartbeat_s: float = knob(1.0, "between two heartbeats", low=0.01, high=3_600.0)
    dials: int = knob(20, "random peers that each node dials", low=0, high=10_000)
    publishers: int = knob(5, "nodes that publish, drawn from those with the role", low=0, high=NODES_MAX)
    rate_per_s: float = knob(1.0, "messages of each publisher", low=0.0, high=1e6)
    message_bytes: int = knob(150, "payload of a message", low=1, high=64 * 1024)
    publish_from_s: float = knob(10.0, "once the mesh stands", low=0.0, high=SECONDS_MAX)
    publish_until_s: float = knob(0.0, "0 is ten seconds before the end", low=0.0, high=SECONDS_MAX)
    topic: str = knob("/cocoon/sim/1", "name of the topic")
    topic_score: Params = knob({}, "score of the topic", keys_of="p2p.gossip.settings:TopicScore")
    score: Params = knob({}, "score of peers", keys_of="p2p.gossip.settings:ScoreSettings")
    settings: Params = knob({}, "any other setting of the router", keys_of="p2p.gossip.settings:GossipSettings")


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtSpec:
    """Lookups of random keys by random nodes with the role `dht`."""

    lookups: int = knob(200, "in the whole run", low=0, high=COUNT_MAX)
    lookups_from_s: float = knob(20.0, "once the tables are filled", low=0.0, high=SECONDS_MAX)
    lookups_until_s: float = knob(0.0, "0 is ten seconds before the end", low=0.0, high=SECONDS_MAX)
    k: int = knob(20, "entries per bucket, and closest peers wanted", low=1, high=256)
    alpha: int = knob(3, "questions in flight per path", low=1, high=64)
    paths: int = knob(2, "disjoint", low=1, high=16)
    warm: bool = knob(False, "tables are filled at the start, as after days; else nodes bootstrap")
    bootstrap_dials: int = knob(3, "nodes that each knows at its start", low=1, high=1_000)
    settings: Params = knob({}, "any other setting of the machine", keys_of="p2p.kad.settings:KadSettings")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    name: str = knob("cocoon-tiny", "model that is traded")
    prompt_tokens: float = knob(300.0, "mean of a log-normal", low=1.0, high=1e6)
    output_tokens: float = knob(200.0, "median of a log-normal", low=1.0, high=1e6)
    output_sigma: float = knob(0.7, "of the same", low=0.0, high=5.0)
    weight: float = knob(1.0, "share of demand, relative", low=0.0, high=1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderAgent:
    """One agent per node of the group of that name. Ranges are drawn uniformly per node."""

    models: tuple[str, ...] = knob((), "names; empty is all")
    slots: tuple[int, int] = knob((4, 32), "requests at once", low=1, high=100_000)
    tokens_per_s: tuple[float, float] = knob((35.0, 120.0), "of one request on an idle machine", low=0.1, high=1e6)
    first_token_ms: tuple[float, float] = knob((120.0, 500.0), "on an idle machine", low=0.0, high=600_000.0)
    cost_nano_per_mtok: tuple[int, int] = knob(
        (200_000_000, 400_000_000), "marginal cost of 10^6 output tokens", low=0, high=NANO_MAX
    )
    policy: str = knob("cost-plus", "how prices are set", choices=PRICE_POLICIES)
    price_nano_per_mtok: tuple[int, int] = knob(
        (300_000_000, 700_000_000),
        "policy fixed: of 10^6 output tokens; else the start",
        low=0,
        high=NANO_MAX,
    )
    margin: float = knob(0.3, "policy cost-plus: over the cost", low=0.0, high=100.0)
    reprice_s: float = knob(60.0, "policies best-response and bandit: how often", low=0.1, high=SECONDS_MAX)
    stake_ton: float = knob(0.0, "what a slashing burns", low=0.0, high=1e9)
    params: Params = knob({}, "further settings of the agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientAgent:
    """One agent per node of the group of that name."""

    models: tuple[str, ...] = knob((), "names; empty is all, by weight")
    rate_per_s: float = knob(0.05, "requests of each client, Poisson", low=0.0, high=1e6)
    value_nano: tuple[int, int] = knob((50_000, 1_000_000), "worth of an answer to the client", low=0, high=NANO_MAX)
    deadline_s: float = knob(60.0, "an answer that ends later is worth nothing", low=0.001, high=SECONDS_MAX)
    value_of_time_nano_per_s: int = knob(50_000, "what a second of waiting costs", low=0, high=NANO_MAX)
    deposit_ton: float = knob(10.0, "in the spending account", low=0.0, high=1e9)
    params: Params = knob({}, "further settings of the agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketSpec:
    """Groups without an entry in `providers` or `clients` get the defaults, by their role."""

    selection: str = knob("real", "how clients choose; real is cocoon.market.selection", choices=SELECTIONS)
    models: tuple[ModelSpec, ...] = knob((ModelSpec(),), "what is traded")
    providers: Mapping[str, ProviderAgent] = knob({}, "by node group")
    clients: Mapping[str, ClientAgent] = knob({}, "by node group")
    offers_by_gossip: bool = knob(True, "false: every client knows every offer at once (the control case)")
    attempts_max: int = knob(4, "providers tried per request", low=1, high=64)
    surge_at_s: float = knob(0.0, "when demand jumps; 0 is never", low=0.0, high=SECONDS_MAX)
    surge_for_s: float = knob(0.0, "how long", low=0.0, high=SECONDS_MAX)
    surge_factor: float = knob(1.0, "demand is multiplied by it", low=0.0, high=1e6)
    params: Params = knob({}, "further settings of the market")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutageSpec:
    at_s: float = knob(0.0, "when the chain stops", low=0.0, high=SECONDS_MAX)
    for_s: float = knob(60.0, "how long", low=0.0, high=SECONDS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReorgSpec:
    at_s: float = knob(0.0, "when blocks are taken back", low=0.0, high=SECONDS_MAX)
    depth_blocks: int = knob(1, "how many", low=1, high=1_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainSpec:
    block_time_s: float = knob(5.0, "between two blocks", low=0.01, high=3_600.0)
    finality_blocks: int = knob(1, "until a transaction counts", low=0, high=10_000)
    fee_nano: int = knob(10_000_000, "of one message to a contract", low=0, high=NANO_MAX)
    fail_rate: float = knob(0.0, "share of messages that are lost", low=0.0, high=1.0)
    block_messages_max: int = knob(1_000, "per block; more wait", low=1, high=COUNT_MAX)
    outages: tuple[OutageSpec, ...] = knob((), "no blocks then")
    reorgs: tuple[ReorgSpec, ...] = knob((), "blocks taken back")
    params: Params = knob({}, "further settings of the chain")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdversarySpec:
    """Either `share` of the nodes of `group`, or `count` of its nodes; sybils are nodes on top."""

    kind: str = knob("sybil", "what they do", choices=ADVERSARIES)
    group: str = knob("", "whose nodes are taken over; empty: those of the fitting role")
    share: float = knob(0.0, "of the group", low=0.0, high=1.0)
    count: int = knob(0, "instead of a share", low=0, high=NODES_MAX)
    budget_ton: float = knob(0.0, "what they may spend; 0 is no limit, and spending is reported", low=0.0, high=1e9)
    knowledge: str = knob("local", "what they see", choices=KNOWLEDGE)
    at_s: float = knob(0.0, "when it starts", low=0.0, high=SECONDS_MAX)
    until_s: float = knob(0.0, "when it stops; 0 is never", low=0.0, high=SECONDS_MAX)
    params: Params = knob({}, "further settings of the attack")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosSpec:
    """Random faults, all drawn from the seed."""

    crash_per_s: float = knob(0.0, "nodes that crash and come back", low=0.0, high=1e6)
    crash_for_s: float = knob(5.0, "until they are back", low=0.0, high=SECONDS_MAX)
    lose_last_write: float = knob(0.0, "share of crashes that lose the last write", low=0.0, high=1.0)
    partition_per_s: float = knob(0.0, "random splits", low=0.0, high=1e6)
    partition_for_s: float = knob(5.0, "until each heals", low=0.0, high=SECONDS_MAX)
    clock_jump_per_s: float = knob(0.0, "nodes whose wall clock jumps", low=0.0, high=1e6)
    clock_jump_s: float = knob(60.0, "how far, either way", low=0.0, high=SECONDS_MAX)
    chain_outage_per_s: float = knob(0.0, "random outages of the chain", low=0.0, high=1e6)
    chain_outage_for_s: float = knob(30.0, "until each ends", low=0.0, high=SECONDS_MAX)
    params: Params = knob({}, "further settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSpec:
    tables: tuple[str, ...] = knob(
        ("deliveries", "lookups", "trades", "payments"), "rows that are written; events is every event", choices=TABLES
    )
    delay_bin_ms: float = knob(100.0, "width of a bar of the delay histogram", low=0.1, high=60_000.0)
    delay_bins: int = knob(30, "bars; the last one holds the rest", low=1, high=10_000)
    rows_max: int = knob(50_000_000, "per table; more are counted, not written", low=0, high=COUNT_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One number that a sweep varies: listed values (grid), or a range (latin)."""

    values: tuple[Value, ...] = knob((), "grid: each of them")
    low: float = knob(0.0, "latin: least")
    high: float = knob(0.0, "latin: most")
    scale: str = knob("linear", "latin: how the range is divided", choices=("linear", "log", "integer"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSpec:
    method: str = knob("grid", "every combination, or a latin hypercube", choices=("grid", "latin"))
    points: int = knob(0, "latin: how many", low=0, high=1_000_000)
    axes: Mapping[str, Axis] = knob({}, 'by the path that --set takes, in quotes: "net.loss" = [0, 0.01]')


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    name: str
    title: str = knob("", "one line")
    doc: str = knob("", "what it shows, where its numbers come from")
    run: RunSpec = field(default_factory=RunSpec)
    nodes: Mapping[str, NodeGroup] = field(default_factory=dict)
    net: NetSpec = field(default_factory=NetSpec)
    gossip: GossipSpec | None = None
    dht: DhtSpec | None = None
    market: MarketSpec | None = None
    chain: ChainSpec | None = None
    adversaries: tuple[AdversarySpec, ...] = ()
    chaos: ChaosSpec | None = None
    metrics: MetricsSpec = field(default_factory=MetricsSpec)
    sweep: SweepSpec | None = None
    folder: Path = Path()  # what `file` names are relative to

    @property
    def node_count(self) -> int:
        return sum(group.count for group in self.nodes.values())

    def count_with(self, role: str) -> int:
        return sum(group.count for group in self.nodes.values() if role in group.roles)


def load(path_or_name: str | Path, *, overrides: Sequence[str] = ()) -> Scenario:
    """A scenario file by its path, or a shipped one by its name. Raises `ScenarioError`, which points at the lines."""
    from . import loading

    return loading.load(path_or_name, overrides=overrides)
