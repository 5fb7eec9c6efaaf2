"""The live part of `cocoon verify --peer`: a client that says Hello, keeps the answer, and sends nothing else."""

from __future__ import annotations

import argparse

import trio

from ..api.opening import open_role
from ..api.terms import OPEN_TIMEOUT_S, open_terms
from ..attest.evidence import SavedEvidence
from ..trust import Open
from .console import Console
from .options import needed_bootstrap, setup
from .running import run_program

OFFER_WAIT_S = 15.0


def fetch_evidence(args: argparse.Namespace, console: Console) -> SavedEvidence:
    """The evidence of `args.peer`, unverified. Raises `NoProvider`, `Unavailable`, or what is malformed."""
    prepared = setup(args)
    # Open: whatever the provider proves is wanted here; the verdict on it comes afterwards.
    terms = open_terms(
        bootstrap=needed_bootstrap(prepared.config),
        trust=Open(),
        network=prepared.config.network,
        timeout_s=OPEN_TIMEOUT_S,
        home=prepared.home.path,
    )
    found: list[SavedEvidence] = []

    async def fetch() -> None:
        console.progress("joining the network …")
        async with open_role(terms) as role:
            console.progress(f"asking {args.peer} for evidence …")
            with trio.fail_after(60):
                found.append(await role.examine(args.peer, wait_s=OFFER_WAIT_S))

    run_program(fetch, is_service=False)
    return found[0]
