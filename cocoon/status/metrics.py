"""A `Status` as Prometheus reads it (text exposition format 0.0.4). Pure.

Names are `cocoon_…`, units last, `_total` for what only rises. The dashboard and the alert rules in `docs/operators`
use no other name; a test compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, Protocol

from .facts import Status

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
NANO: Final = 1_000_000_000


class Sample(NamedTuple):
    """One number."""

    name: str
    kind: str  # gauge or counter
    help: str
    value: float
    labels: Mapping[str, str]


def exposition(status: Status) -> str:
    """The page at `/metrics`."""
    lines: list[str] = []
    seen: set[str] = set()
    for one in samples(status):
        if one.name not in seen:
            seen.add(one.name)
            lines += [f"# HELP {one.name} {one.help}", f"# TYPE {one.name} {one.kind}"]
        labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in one.labels.items())
        value = int(one.value) if float(one.value).is_integer() else one.value
        lines.append(f"{one.name}{{{labels}}} {value}" if labels else f"{one.name} {value}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class _Make(Protocol):
    """How `gauge` and `counter` are called."""

    def __call__(self, name: str, help_text: str, value: float, **labels: str) -> Sample:
        """One sample."""
        ...


def samples(status: Status) -> Iterator[Sample]:
    """All numbers, those of one name together."""

    def gauge(name: str, help_text: str, value: float, **labels: str) -> Sample:
        return Sample(f"cocoon_{name}", "gauge", help_text, value, labels)

    def counter(name: str, help_text: str, value: float, **labels: str) -> Sample:
        return Sample(f"cocoon_{name}_total", "counter", help_text, value, labels)

    yield gauge(
        "info", "What runs here.", 1, role=status.role, version=status.version, network=status.network, peer=status.peer
    )
    yield gauge("uptime_seconds", "Since the process started.", status.uptime_s)
    for word in ("directly", "by relay", "not", "unknown"):
        yield gauge("reachable", "How others reach this peer: 1 at one of four.", status.reach.reach == word, how=word)
    peers = status.peers
    yield gauge("peer_connections", "Live connections.", peers.inbound, direction="in")
    yield gauge("peer_connections", "Live connections.", peers.outbound, direction="out")
    yield gauge("dial_failures", "Peers that could not be reached lately.", peers.dial_failures)
    yield gauge("streams_open", "Open streams.", peers.streams_open)
    yield counter("network_bytes", "Payload of streams.", peers.bytes_sent, direction="sent")
    yield counter("network_bytes", "Payload of streams.", peers.bytes_received, direction="received")
    yield counter("gossip_delivered", "Messages that were new and valid.", peers.gossip_delivered)
    yield counter("gossip_dropped", "Messages dropped because a queue was full.", peers.gossip_dropped)
    for model in status.models:
        yield gauge("market_offers", "Current offers that this peer has heard of.", model.offers, model=model.name)
    yield from _provider(status, gauge, counter)
    yield from _gateway(status, gauge, counter)


def _provider(status: Status, gauge: _Make, counter: _Make) -> Iterator[Sample]:
    if status.offer is not None:
        offer = status.offer
        yield gauge("offer_rank", "Cheaper offers of the same model, plus one; 0: no offer.", offer.rank)
        yield gauge("offer_expires_seconds", "Until our offer ends, unless it is renewed.", offer.expires_in_s)
        yield gauge("price_ton", "Per million tokens.", offer.price_input_nano / NANO, of="input")
        yield gauge("price_ton", "Per million tokens.", offer.price_output_nano / NANO, of="output")
    if status.serving is not None:
        serving = status.serving
        yield gauge("slots", "Requests that can decode at once.", serving.slots)
        yield gauge("requests_running", "Requests that decode now.", serving.running)
        yield gauge("requests_queued", "Requests that wait for a slot.", serving.queued)
        yield gauge("sessions_open", "Clients with a session.", serving.sessions_open)
        yield counter("sessions", "Sessions since the start.", serving.sessions)
        unfinished = serving.refused + serving.failed + serving.cancelled + serving.running + serving.queued
        for outcome, number in (
            ("completed", max(0, serving.requests - unfinished)),
            ("refused", serving.refused),
            ("failed", serving.failed),
            ("cancelled", serving.cancelled),
        ):
            yield counter("requests", "Requests by their end.", number, outcome=outcome)
        yield counter("tokens", "Tokens served.", serving.prompt_tokens, kind="prompt")
        yield counter("tokens", "Tokens served.", serving.completion_tokens, kind="completion")
        yield gauge("first_token_seconds", "Of the newest requests.", serving.first_token_p50_ms / 1e3, quantile="0.5")
        yield gauge("first_token_seconds", "Of the newest requests.", serving.first_token_p95_ms / 1e3, quantile="0.95")
        yield gauge("tokens_per_second", "Of one stream, the median.", serving.tokens_per_s_p50)
    if status.earned is not None:
        earned = status.earned
        yield counter("vouchers", "Vouchers accepted.", earned.vouchers)
        yield counter("earned_ton", "By vouchers, since the start.", earned.paid_nano / NANO)
        yield counter("claimed_ton", "Proven on chain, since the start.", earned.claimed_nano / NANO)
        yield counter("payment_refusals", "Requests and sessions refused for their payment.", earned.refused)
    if status.evidence is not None and status.evidence.age_s is not None:
        yield gauge("evidence_age_seconds", "Of the newest evidence handed out.", status.evidence.age_s)


def _gateway(status: Status, gauge: _Make, counter: _Make) -> Iterator[Sample]:
    if status.spending is None:
        return
    spending = status.spending
    yield gauge("gateway_requests_running", "Requests that run now.", spending.requests_running)
    ended = spending.requests - spending.failed - spending.requests_running
    yield counter("gateway_requests", "Requests by their end.", max(0, ended), outcome="completed")
    yield counter("gateway_requests", "Requests by their end.", spending.failed, outcome="failed")
    yield counter("gateway_tokens", "Tokens received.", spending.completion_tokens)
    p50, p95 = spending.first_token_p50_ms / 1e3, spending.first_token_p95_ms / 1e3
    yield gauge("gateway_first_token_seconds", "Of the newest requests.", p50, quantile="0.5")
    yield gauge("gateway_first_token_seconds", "Of the newest requests.", p95, quantile="0.95")
    yield gauge("gateway_spent_today_ton", "Settled since midnight UTC.", spending.spent_today_nano / NANO)
    yield gauge("gateway_reserved_ton", "Set aside for running requests.", spending.reserved_nano / NANO)
    yield gauge("gateway_day_max_ton", "The day's cap.", spending.day_max_nano / NANO)
    if spending.account_left_nano is not None:
        yield gauge("account_left_ton", "Of the account, signed for nobody yet.", spending.account_left_nano / NANO)
    if spending.runway_h is not None:
        yield gauge("account_runway_hours", "Until it is spent at the pace of the last hour.", spending.runway_h)
