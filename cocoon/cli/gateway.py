"""`cocoon gateway`: the client peer behind an OpenAI-compatible API on this machine."""

from __future__ import annotations

import argparse

from .console import Console
from .options import add_account, add_bootstrap, add_chain, add_common, add_trust, chosen_trust, needed_bootstrap, setup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon gateway`."""
    parser.add_argument("--port", type=int, metavar="N", help="default: 8642; 0 takes a free one")
    parser.add_argument("--api-key", metavar="KEY", help="default: a random one, kept in the home")
    parser.add_argument("--spend-day-max", metavar="TON", help="all requests of a day together (default: 1)")
    parser.add_argument("--spend-request-max", metavar="TON", help="one request (default: 0.02)")
    add_account(parser)
    add_chain(parser)
    add_common(parser)
    add_bootstrap(parser)
    add_trust(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Until Ctrl-C."""
    prepared = setup(
        args,
        gateway__port=args.port,
        gateway__spend_day_max_ton=args.spend_day_max,
        gateway__spend_request_max_ton=args.spend_request_max,
    )
    trust = chosen_trust(prepared.config)
    needed_bootstrap(prepared.config)
    from .running import run_program
    from .stacks import run_gateway

    return run_program(lambda: run_gateway(prepared, trust, console, api_key=args.api_key), is_service=True)
