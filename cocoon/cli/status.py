"""`cocoon status`: what runs in this home, how others reach it, what it does, what it earns, and why it idles."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..config import Home
from ..types import format_ton
from .console import Console

if TYPE_CHECKING:
    from ..status import Status

NOTHING = "nothing of this home is running"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon status`."""
    parser.add_argument("--home", metavar="DIR", help="where keys, models and the database live")


def run(args: argparse.Namespace, console: Console) -> int:
    """0 when something runs, 1 when nothing does."""
    import msgspec
    import trio

    home = Home.locate(args.home)
    found, silent = trio.run(statuses, home)
    console.data({"home": str(home.path), "processes": [msgspec.to_builtins(one) for one in found], "silent": silent})
    for index, one in enumerate(found):
        if index:
            console.line("")
        for line in lines_of(one):
            console.line(line)
    for each in silent:
        console.say(f"{each} runs and does not answer; is it starting or ending?")
    if not found and not silent:
        console.say(f"{NOTHING} ({home.path})")
        console.say("Start something: `cocoon serve MODEL`, `cocoon gateway` or `cocoon node`.")
    return 0 if found else 1


async def statuses(home: Home) -> tuple[list[Status], list[str]]:
    """Of every process of this home that answers, and the names of those that do not."""
    import msgspec

    from ..errors import Unavailable
    from ..status import Status, control

    found: list[Status] = []
    silent: list[str] = []
    for one in control.running(home.path):
        try:
            found.append(msgspec.convert(await control.ask(one.path, "status"), Status))
        except (Unavailable, msgspec.ValidationError):
            silent.append(one.path.stem)
    return found, silent


def lines_of(status: Status) -> list[str]:
    """For a person."""
    rows: list[tuple[str, str]] = []
    reach = status.reach
    if status.role != "gateway":
        asked = f" ({reach.peers_reached} of {reach.peers_asked} peers got through)" if reach.peers_asked else ""
        rows.append(("reachable", f"{reach.reach}{asked}: {reach.reason}"))
        rows += [("", address) for address in reach.addresses[:4]]
    peers = status.peers
    rows.append(("peers", f"{peers.connections} ({peers.inbound} in, {peers.outbound} out)"))
    if peers.networks:
        most = ", ".join(f"{name} × {count}" for name, count in list(peers.networks.items())[:3])
        rows.append(("from", most))
    if status.models:
        shown = ", ".join(f"{one.name} ({one.offers})" for one in status.models[:5])
        rows.append(("offers", shown))
    rows += _provider_rows(status) + _gateway_rows(status)
    title = f"{status.role} on {status.network} · {status.peer} · up {duration(status.uptime_s)} · pid {status.pid}"
    return [title, *(f"  {name:<10} {text}".rstrip() for name, text in rows)]


def _provider_rows(status: Status) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    offer, serving, earned, evidence = status.offer, status.serving, status.earned, status.evidence
    if offer is not None:
        price = (
            f"{format_ton(offer.price_input_nano)} TON in, {format_ton(offer.price_output_nano)} TON out per million"
        )
        place = f"number {offer.rank} of {offer.of} by price" if offer.rank else "no offer now"
        rows.append(("model", f"{offer.model} · {price} · {place}"))
    if serving is not None:
        rows.append(("slots", f"{serving.running} of {serving.slots} busy, {serving.queued} waiting"))
        ends = f"{serving.refused} refused, {serving.failed} failed, {serving.cancelled} cancelled"
        rows.append(("requests", f"{serving.requests} from {serving.sessions} sessions; {ends}"))
        rows.append(("tokens", f"{serving.prompt_tokens:,} in, {serving.completion_tokens:,} out"))
        if serving.first_token_p50_ms:
            first = f"first token {serving.first_token_p50_ms:.0f} ms (p95 {serving.first_token_p95_ms:.0f})"
            rows.append(("speed", f"{first}, {serving.tokens_per_s_p50:.0f} tokens/s"))
    if earned is not None:
        since = f"today {format_ton(earned.today_nano)}, 7 days {format_ton(earned.week_nano)}"
        rows.append(("earned", f"{since}, 30 days {format_ton(earned.month_nano)} TON"))
        rows.append(
            ("claimed", f"{format_ton(earned.claimed_nano)} of {format_ton(earned.paid_nano)} TON since the start")
        )
    if evidence is not None:
        age = "nobody has asked yet" if evidence.age_s is None else f"handed out {duration(evidence.age_s)} ago"
        rows.append(("evidence", f"{evidence.kind}; {age}"))
    if status.idle_because is not None:
        rows.append(("idle", status.idle_because))
    return rows


def _gateway_rows(status: Status) -> list[tuple[str, str]]:
    spending = status.spending
    if spending is None:
        return []
    spent = f"{format_ton(spending.spent_today_nano)} of {format_ton(spending.day_max_nano)} TON today"
    rows = [
        ("requests", f"{spending.requests_running} running, {spending.requests} in all, {spending.failed} failed"),
        ("spent", f"{spent}, {format_ton(spending.reserved_nano)} set aside"),
    ]
    if spending.first_token_p50_ms:
        rows.append(
            ("speed", f"first token {spending.first_token_p50_ms:.0f} ms (p95 {spending.first_token_p95_ms:.0f})")
        )
    if spending.account_left_nano is not None:
        runway = "" if spending.runway_h is None else f", {spending.runway_h:.1f} h at this pace"
        rows.append(("account", f"{format_ton(spending.account_left_nano)} TON left{runway}"))
    return rows


def duration(seconds: float) -> str:
    """`3 d 4 h`, `12 min`, `40 s`."""
    whole = int(seconds)
    for size, unit, smaller, smaller_unit in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {smaller_unit}"
    return f"{whole // 60} min" if whole >= 60 else f"{whole} s"


def schema() -> dict[str, Any]:
    """The JSON schema of `cocoon status --json`."""
    import msgspec

    from ..status import Status

    (schemas,), components = msgspec.json.schema_components([Status], ref_template="#/$defs/{name}")
    process = schemas
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "required": ["home", "processes", "silent"],
        "properties": {
            "home": {"type": "string"},
            "processes": {"type": "array", "items": process},
            "silent": {"type": "array", "items": {"type": "string"}},
        },
        "$defs": components,
    }
