"""`cocoon node`: a plain peer. It answers DHT queries, forwards gossip, relays within limits; it has no model.

Its identity is kept in the home, because others have its address in their bootstrap lists.
"""

from __future__ import annotations

import argparse

from .console import Console
from .options import add_bootstrap, add_common, add_listen, add_metrics, setup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon node`."""
    add_metrics(parser)
    add_common(parser)
    add_bootstrap(parser)
    add_listen(parser)
    parser.add_argument("--no-relay", action="store_true", help="do not relay for others")


def run(args: argparse.Namespace, console: Console) -> int:
    """Until Ctrl-C."""
    prepared = setup(args, peer__relay=not args.no_relay)
    from .running import run_program
    from .stacks import run_node

    return run_program(lambda: run_node(prepared, console), is_service=True)
