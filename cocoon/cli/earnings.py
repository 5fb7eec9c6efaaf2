"""`cocoon earnings [--by day|client|model]`: what this provider served, and what of it is paid.

Reads the node's database, also while the node runs: what was earned, the vouchers that are held, and what the chain was
proven to have paid. Asks no server. `cocoon claims` asks the chain.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, Final

from ..adapters.store_reading import read_money
from ..errors import ConfigError
from ..ports import StoredEarning, StoredReservation, StoredVoucher, VoucherSide
from ..types import Nano, Network, format_ton
from .console import Console
from .money_views import DAY_S, moment, totals
from .options import Setup, add_common, setup

DAYS_DEFAULT: Final = 30
DAYS_MAX: Final = 36_500
FIGURES: Final = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "due_nano")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon earnings`."""
    parser.add_argument("--by", choices=("day", "client", "model"), default="day", help="default: day")
    parser.add_argument("--days", type=int, metavar="N", default=DAYS_DEFAULT, help="how far back (default: 30)")
    parser.add_argument("--payout", metavar="ADDRESS", help="whose (default: as configured, or the wallet)")
    add_common(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """One table."""
    prepared = setup(args, provider__payout=args.payout)
    if not 1 <= args.days <= DAYS_MAX:
        raise ConfigError(f"--days must be from 1 to {DAYS_MAX}, not {args.days}")
    payout = payout_of(prepared)
    network = prepared.config.network_id
    since_day = int(time.time()) // DAY_S - args.days + 1
    with read_money(prepared.home.database_path) as known:
        earned = known.earnings(network=int(network), provider=payout, since_day=since_day)
        vouchers = known.vouchers(VoucherSide.HELD, network=int(network), party=payout)
        settled = known.reservations(network=int(network), provider=payout)
    rows = grouped(earned, args.by, network)
    total = totals(rows, FIGURES)
    held_nano, claimed_nano = held_and_claimed(vouchers, settled)
    console.data(
        {
            "network": network.label,
            "payout": _shown(payout, network),
            "by": args.by,
            "since": _day(since_day),
            "rows": rows,
            "total": total,
            "held_nano": held_nano,
            "claimed_nano": claimed_nano,
            "unclaimed_nano": held_nano - claimed_nano,
        }
    )
    if not rows:
        console.say(f"Nothing was served for this payout address since {_day(since_day)}.")
    else:
        console.table(
            (args.by.upper(), "REQUESTS", "TOKENS IN", "TOKENS OUT", "TON"),
            [_row(str(row[args.by]), row) for row in rows] + [_row("together", total)],
            right=(1, 2, 3, 4),
        )
    console.say("")
    console.say(
        f"Of all time: {format_ton(held_nano)} TON signed by clients, {format_ton(claimed_nano)} TON of it paid out,"
    )
    console.say(f"{format_ton(held_nano - claimed_nano)} TON not claimed yet (`cocoon claims`).")
    return 0


def payout_of(prepared: Setup) -> bytes:
    """Whose earnings: the configured address, or the home's wallet. Raises `ConfigError`."""
    from ..adapters.ton.addresses import parse_address
    from ..adapters.ton.wallet_file import read_wallet_head

    network, chosen = prepared.config.network_id, prepared.config.provider.payout
    if chosen is not None and chosen != "wallet":
        return parse_address(chosen, network=network).account
    return read_wallet_head(prepared.home.wallet_path(network)).account


def grouped(earned: tuple[StoredEarning, ...], by: str, network: Network) -> list[dict[str, Any]]:
    """One row for each day, client or model; days in order, the others by what they brought."""
    from ..adapters.ton.addresses import contract_address

    names: dict[str, Callable[[StoredEarning], str]] = {
        "day": lambda one: _day(one.day),
        "client": lambda one: contract_address(one.account, network) if any(one.account) else "unpaid",
        "model": lambda one: f"{one.model_name}@{one.model.hex()[:8]}",
    }
    rows: dict[str, dict[str, Any]] = {}
    for one in earned:
        name = names[by](one)
        row = rows.setdefault(name, {by: name, **dict.fromkeys(FIGURES, 0)})
        for figure in FIGURES:
            row[figure] += getattr(one, figure)
    if by == "day":
        return [rows[name] for name in sorted(rows)]
    return sorted(rows.values(), key=lambda row: (-row["due_nano"], row[by]))


def held_and_claimed(vouchers: tuple[StoredVoucher, ...], settled: tuple[StoredReservation, ...]) -> tuple[Nano, Nano]:
    """The sum of the highest vouchers, and what of it the chain was proven to have paid."""
    held = {(one.account, one.epoch): one.cumulative_nano for one in vouchers}
    paid = {(one.account, one.epoch): one.claimed_nano for one in settled}
    return sum(held.values()), sum(min(nano, held.get(key, 0)) for key, nano in paid.items())


def _row(name: str, row: dict[str, Any]) -> list[str]:
    return [
        name,
        str(row["requests"]),
        str(row["prompt_tokens"]),
        str(row["completion_tokens"]),
        format_ton(row["due_nano"]),
    ]


def _day(day: int) -> str:
    return moment(day * DAY_S)[:10]


def _shown(account: bytes, network: Network) -> str:
    from ..adapters.ton.addresses import wallet_address

    return wallet_address(account, network)
