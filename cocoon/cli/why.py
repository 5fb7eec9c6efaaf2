"""`cocoon why [REQUEST|last]`: why a request went where it went, what it cost, and what failed on the way.

The running gateway of this home remembers its newest requests. `--json` gives the whole record; `--replay FILE` makes
its decisions again, offline, and says whether they come out the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from ..config import Home
from ..errors import ConfigError, Unavailable
from ..types import format_ton
from .console import Console

RECORD_BYTES_MAX: Final = 16 * 1024 * 1024
SHOWN_MAX: Final = 8  # candidates of one decision


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon why`."""
    parser.add_argument("request", metavar="REQUEST", nargs="?", default="last", help="an id, or last (default)")
    parser.add_argument("--list", action="store_true", help="the requests that the gateway remembers")
    parser.add_argument("--replay", metavar="FILE", help="decide again what a saved record (--json) holds")
    parser.add_argument("--home", metavar="DIR", help="where keys, models and the database live")


def run(args: argparse.Namespace, console: Console) -> int:
    """0 when there is an explanation; with --replay, when every decision came out the same."""
    if args.replay:
        return _replay(Path(args.replay), console)
    import trio

    answer = trio.run(_ask, Home.locate(args.home), "why" if args.list else f"why:{args.request}")
    if "error" in answer:
        raise ConfigError(str(answer["error"]), advice="`cocoon why --list` shows what is remembered.")
    if args.list:
        console.data(answer)
        for one in answer["requests"]:
            console.line(f"{one['id']}  {one['model']}  {one['status']}  {format_ton(one['cost_nano'])} TON")
        return 0
    console.data(answer)
    for line in explain(answer):
        console.line(line)
    return 0


async def _ask(home: Home, question: str) -> dict[str, Any]:
    from ..status import control

    gateways = [one for one in control.running(home.path) if one.role == "gateway"]
    if not gateways:
        raise Unavailable(
            f"no gateway of this home is running ({home.path})",
            advice="Start one with `cocoon gateway`, or name --home.",
        )
    return await control.ask(gateways[-1].path, question)


def explain(record: dict[str, Any]) -> list[str]:
    """For a person."""
    lines = [f"{record['id']}: {record['model']}, {record['status']}, {format_ton(record['cost_nano'])} TON"]
    for choice in record["choices"]:
        if choice["provider"] is not None:
            first = "" if choice["first_token_ms"] is None else f", first token after {choice['first_token_ms']:.0f} ms"
            lines.append(f"  answered by {choice['provider']} ({choice['trust']}){first}")
        lines += [f"  tried before: {one}" for one in choice["attempts"]]
        for number, decision in enumerate(choice["decisions"], 1):
            lines.append(f"  decision {number}: {len(decision['ranked'])} fit, {len(decision['filtered'])} did not")
            for place, one in enumerate(decision["ranked"][:SHOWN_MAX]):
                own = "own experience" if one["first_hand"] else "its claim"
                lines.append(
                    f"    {'→' if place == 0 else ' '} {one['provider']}  {format_ton(one['price_nano'])} TON, "
                    f"{one['first_token_ms']:.0f} ms, {one['tokens_per_s']:.0f} tokens/s ({own}), "
                    f"success drawn {one['success_draw']:.2f}, score {one['score']:.0f}"
                )
            lines += [
                f"      {one['provider']}  out: {one['reason']}: {one['detail']}"
                for one in decision["filtered"][:SHOWN_MAX]
            ]
    return lines


def _replay(path: Path, console: Console) -> int:
    from ..market.records import is_same

    try:
        with path.open("rb") as file:
            data = file.read(RECORD_BYTES_MAX + 1)
        record: Any = json.loads(data) if len(data) <= RECORD_BYTES_MAX else None
        decisions = [decision for choice in record["choices"] for decision in choice["decisions"]]
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"{path} is no record of a request", advice="Save one with `cocoon why --json`.") from error
    same = [is_same(decision) for decision in decisions]
    console.data({"file": str(path), "decisions": len(same), "same": sum(same)})
    console.line(f"{sum(same)} of {len(same)} decisions came out the same")
    return 0 if same and all(same) else 1
