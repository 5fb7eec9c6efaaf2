"""`cocoon peers`: joins the network, and lists whom this machine reaches, and why it did not reach others."""

from __future__ import annotations

import argparse
import time
from typing import Final

from ..types import SECOND_NS
from .console import Console
from .options import Setup, add_bootstrap, add_common, needed_bootstrap, setup
from .views import brief_peer, connection_object, failure_object

WAIT_S: Final = 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon peers`."""
    parser.add_argument("--wait", type=float, metavar="SECONDS", default=WAIT_S, help="before listing (default: 3)")
    add_common(parser)
    add_bootstrap(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Once; 1 when nobody was reached."""
    prepared = setup(args)
    needed_bootstrap(prepared.config)
    from .running import run_program

    return run_program(lambda: _list_peers(prepared, console, wait_s=args.wait), is_service=False)


async def _list_peers(prepared: Setup, console: Console, *, wait_s: float) -> int:
    import trio

    from ..api.opening import open_client_network

    console.progress("joining the network …")
    config = prepared.config
    async with open_client_network(bootstrap=config.peer.bootstrap, network=config.network_id) as network:
        await trio.sleep(wait_s)
        connections, failures = network.connections(), network.dial_failures()
    now_ns = time.time_ns()
    console.table(
        ("PEER", "DIRECTION", "ADDRESS", "FOR", "SOFTWARE"),
        [
            [
                one.peer,
                "out" if one.outbound else "in",
                one.address,
                f"{max(0, now_ns - one.opened_ns) // SECOND_NS} s",
                one.agent[:40],
            ]
            for one in connections
        ],
    )
    if failures:
        console.line("")
        console.table(
            ("NOT REACHED", "ADDRESS", "WHY"), [[brief_peer(one.peer), one.address, one.reason] for one in failures]
        )
    console.data(
        {
            "peers": [connection_object(one) for one in connections],
            "failures": [failure_object(one) for one in failures],
        }
    )
    return 0 if connections else 1
