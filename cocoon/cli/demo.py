"""`cocoon demo`: a whole network on this machine, from real processes over real sockets.

A bootstrap node and the providers are processes of their own, so that one can be killed; the client peer and its
gateway run here. Everything lives in one temporary directory and is gone afterwards, however the demo ends.

The demo selects its trust level itself and says so: `simulated`, in which every check of a confidential session runs on
a software TEE, or with `--open` the level `open`. Neither protects a prompt from a provider.
"""

from __future__ import annotations

import argparse
from typing import Final

from ..errors import ConfigError
from ..types import TrustLevel
from .console import Console
from .options import add_common, setup

PROVIDERS_DEFAULT: Final = 3
PROVIDERS_MAX: Final = 16  # each is a process of about 150 MB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon demo`."""
    parser.add_argument(
        "--port", type=int, metavar="N", help="of the gateway (default: 8642, or a free one for --once)"
    )
    parser.add_argument("--providers", type=int, metavar="N", default=PROVIDERS_DEFAULT, help="default: 3")
    parser.add_argument("--api-key", metavar="KEY", help="of the gateway (default: a random one, printed)")
    parser.add_argument("--model", metavar="MODEL", default="cocoon-tiny", help="what the providers serve")
    parser.add_argument("--once", metavar="QUESTION", help="ask one question through the whole path, and end")
    parser.add_argument("--no-money", action="store_true", help="no devnet: nothing is paid")
    parser.add_argument("--open", action="store_true", help="providers without enclaves, and trust level open")
    add_common(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Until Ctrl-C, or one answer."""
    if not 1 <= args.providers <= PROVIDERS_MAX:
        raise ConfigError(f"--providers must be from 1 to {PROVIDERS_MAX}, not {args.providers}")
    if args.network not in (None, "devnet"):
        raise ConfigError("the demo is a network of its own, on this machine", advice="Leave out --network.")
    level = TrustLevel.OPEN if args.open else TrustLevel.SIMULATED
    prepared = setup(args, network="devnet", gateway__port=_port(args), client__trust=level.value)
    from .demo_network import run_demo
    from .running import run_program

    return run_program(
        lambda: run_demo(
            prepared,
            console,
            providers=args.providers,
            model=args.model,
            api_key=args.api_key,
            question=args.once,
            keep_home=args.home is not None,
            with_money=not args.no_money,
        ),
        is_service=args.once is None,
    )


def _port(args: argparse.Namespace) -> int | None:
    if args.port is None and args.once is not None:
        return 0
    return int(args.port) if args.port is not None else None
