"""The one form in which a running provider, gateway or node describes itself. Everything that shows it starts here.

Counts, times and amounts; never a prompt, an answer, a key or a client's account. Every name ends in its unit. The
schema of `cocoon status --json` is made from these classes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

RoleName = Literal["provider", "gateway", "node"]
ReachWord = Literal["directly", "by relay", "not", "unknown"]
Count = Annotated[int, Meta(ge=0)]


class _Facts(Struct, frozen=True, kw_only=True):
    """Fields by name; unknown ones are ignored, so that an older `cocoon status` can read a newer node."""


class ReachFacts(_Facts, frozen=True, kw_only=True):
    """How others reach us, as they said themselves."""

    reach: ReachWord
    reason: str  # one sentence: what was tried, and what it showed
    addresses: tuple[str, ...] = ()
    peers_asked: Count = 0
    peers_reached: Count = 0


class PeerFacts(_Facts, frozen=True, kw_only=True):
    """Whom we are connected to."""

    connections: Count = 0
    inbound: Count = 0
    outbound: Count = 0
    networks: dict[str, Count] = {}  # "10.1.2.0/24": how many connections from there
    dial_failures: Count = 0
    streams_open: Count = 0
    bytes_sent: Count = 0
    bytes_received: Count = 0
    gossip_delivered: Count = 0
    gossip_dropped: Count = 0


class ModelFacts(_Facts, frozen=True, kw_only=True):
    """What the market offers of one model."""

    name: str
    offers: Count
    price_output_min_nano: Count  # per million tokens
    price_output_max_nano: Count


class OfferFacts(_Facts, frozen=True, kw_only=True):
    """Our own offer, and where it stands among the others of its model."""

    model: str
    model_digest: str
    price_input_nano: Count
    price_output_nano: Count
    rank: Count  # 1: nobody is cheaper; 0: there is no offer now
    of: Count
    seq: Count
    expires_in_s: float


class ServingFacts(_Facts, frozen=True, kw_only=True):
    """A provider's work since it started."""

    slots: Count
    running: Count
    queued: Count
    sessions_open: Count
    sessions: Count
    requests: Count
    refused: Count
    failed: Count
    cancelled: Count
    prompt_tokens: Count
    completion_tokens: Count
    first_token_p50_ms: float
    first_token_p95_ms: float
    tokens_per_s_p50: float
    service_p50_ms: float


class EarnedFacts(_Facts, frozen=True, kw_only=True):
    """A provider's money: since it started, and by the database."""

    vouchers: Count
    paid_nano: Count
    claimed_nano: Count
    refused: Count
    today_nano: Count
    week_nano: Count
    month_nano: Count


class EvidenceFacts(_Facts, frozen=True, kw_only=True):
    """What a provider can prove."""

    kind: str  # none, simulated, tdx, tdx+gpu
    age_s: float | None  # of the newest evidence that was handed out


class SpendingFacts(_Facts, frozen=True, kw_only=True):
    """A gateway's money and work."""

    requests_running: Count
    requests: Count
    failed: Count
    completion_tokens: Count
    first_token_p50_ms: float
    first_token_p95_ms: float
    spent_today_nano: Count
    reserved_nano: Count
    day_max_nano: Count
    account_left_nano: Count | None = None  # signed for nobody yet, of the account; None: no account
    runway_h: float | None = None  # at the pace of the last hour


class Status(_Facts, frozen=True, kw_only=True):
    """Everything that one process says of itself."""

    role: RoleName
    version: str
    network: str
    peer: str
    pid: Count
    uptime_s: float
    reach: ReachFacts
    peers: PeerFacts
    models: tuple[ModelFacts, ...] = ()
    offer: OfferFacts | None = None
    serving: ServingFacts | None = None
    earned: EarnedFacts | None = None
    evidence: EvidenceFacts | None = None
    spending: SpendingFacts | None = None
    idle_because: str | None = None  # why a provider has no work, if it has none
