"""`cocoon offers [MODEL]`: what the network offers now. Joins as a fresh client peer, listens, prints, leaves."""

from __future__ import annotations

import argparse
import difflib
import time
from typing import Final

from ..errors import ModelNotFound, NoProvider
from ..trust import Open
from .console import Console
from .options import add_bootstrap, add_common, needed_bootstrap, setup
from .views import OFFER_HEADINGS, OFFER_RIGHT, offer_object, offer_row

WAIT_S: Final = 5.0  # for the first offer
MORE_WAIT_S: Final = 1.5  # for the rest of them: one and a half gossip heartbeats


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon offers`."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="only this one")
    parser.add_argument(
        "--wait", type=float, metavar="SECONDS", default=WAIT_S, help="for the first offer (default: 5)"
    )
    add_common(parser)
    add_bootstrap(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Once."""
    prepared = setup(args)
    bootstrap = needed_bootstrap(prepared.config)
    from ..api import Client

    console.progress("joining the network …")
    # Listing sends nothing secret, so what providers can prove does not matter here.
    with Client.open(
        bootstrap=bootstrap, trust=Open(), network=prepared.config.network, home=prepared.home.path
    ) as client:
        client.offers(wait_s=args.wait)
        time.sleep(min(MORE_WAIT_S, args.wait))
        offers = client.offers(wait_s=0.0)
        connected = len(client.connections())
    if not offers:
        raise NoProvider(
            f"nobody offers anything: {connected} peers are connected, and none has sent an offer by gossip, by the "
            "DHT or when asked",
            advice="Wait longer with --wait 30, or see `cocoon peers`.",
        )
    if args.model is not None:
        name, _, digest = args.model.partition("@")
        chosen = [offer for offer in offers if offer.model_name == name and offer.model.hex().startswith(digest)]
        if not chosen:
            names = sorted({offer.model_name for offer in offers})
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:10]
            raise ModelNotFound(f"nobody offers {args.model[:80]!r}", advice=f"On offer: {', '.join(near)}")
        offers = tuple(chosen)
    console.table(OFFER_HEADINGS, [offer_row(offer) for offer in offers], right=OFFER_RIGHT)
    console.data({"offers": [offer_object(offer) for offer in offers]})
    return 0
