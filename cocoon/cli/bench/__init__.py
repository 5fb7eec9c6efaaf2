"""`cocoon bench`: what the network adds to an engine, side by side with other ways to put something before one.

In one run, interleaved: the raw engine, the same engine behind nginx and behind LiteLLM where they are installed, and
the whole path (gateway, session, provider) on real sockets. Two engines: one that invents 50 tokens/s per stream with
its first token after 20 ms, and the real `cocoon-tiny`. CPU seconds are the figure to compare; times on a busy machine
are upper bounds.
"""

from __future__ import annotations

import argparse

from ..console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon bench`."""
    parser.add_argument("--engine", choices=("paced", "tiny", "both"), default="both", help="default: both")
    parser.add_argument("--streams", default="1,16,64", metavar="N,N", help="concurrent streams (default: 1,16,64)")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="requests per stream (default: 2)")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="tokens per answer (default: 64)")
    parser.add_argument(
        "--burst", action="store_true", help="start all streams at the same moment (default: spread over one answer)"
    )
    parser.add_argument("--profile", action="store_true", help="also show where our CPU time goes, by part")
    parser.add_argument("--server", choices=("h11", "hypercorn"), default="h11", help="the gateway's HTTP server")
    parser.add_argument("--litellm", metavar="PATH", help="its executable (default: found on PATH)")
    parser.add_argument("--nginx", metavar="PATH", help="its executable (default: found on PATH)")


def run(args: argparse.Namespace, console: Console) -> int:
    """Measure, and print a table (or one JSON object)."""
    from ..running import run_program
    from .suite import Plan, measure

    plan = Plan.parse(args)
    return run_program(lambda: measure(plan, console), is_service=False)
