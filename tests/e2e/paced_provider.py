"""A real provider process whose engine invents words at a steady pace, so that an answer has a middle to be lost in.

    python -m tests.e2e.paced_provider --listen … --announce … --bootstrap … --home …

The same prompt gives the same words at every such provider.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import trio

from cocoon.adapters.clock import SystemClock, entropy
from cocoon.adapters.engines.paced import PacedEngine
from cocoon.adapters.models import shipped_models
from cocoon.adapters.network import open_network
from cocoon.adapters.signer import KeyFileSigner
from cocoon.adapters.store import SqliteStore
from cocoon.api.opening import wait_connected
from cocoon.node.provider import ProviderSettings, open_provider
from cocoon.types import Network, Prices, Secret


async def serve(args: argparse.Namespace) -> None:
    clock = SystemClock()
    home = Path(args.home)
    home.mkdir(parents=True)
    engine = PacedEngine(slots=4, tokens_per_s=args.pace, first_token_s=0.02, answer_tokens=args.tokens)
    async with (
        await SqliteStore.open(home / "store.sqlite", clock=clock, entropy=entropy) as store,
        open_network(
            seed=Secret(entropy(32)),
            listen=(args.listen,),
            announce=(args.announce,),
            bootstrap=(args.bootstrap,),
            serves_dht=True,
            allow_private_addresses=True,
            agent="paced",
        ) as network,
    ):
        signer = KeyFileSigner.open(home / "operator.key", network=Network.DEVNET, store=store, entropy=entropy)
        await wait_connected(network, timeout_s=60)
        free = Prices(input_nano=0, cached_input_nano=0, output_nano=0)
        settings = ProviderSettings(network_id=Network.DEVNET, prices=free, announce=(args.announce,))
        (model,) = shipped_models()
        async with open_provider(network, engine, model, signer, store, settings, clock=clock, entropy=entropy) as role:
            await role.wait_offered()
            print(json.dumps({"peer": network.peer}), flush=True)
            await trio.sleep_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("listen", "announce", "bootstrap", "home"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--pace", type=float, default=60.0)
    parser.add_argument("--tokens", type=int, default=90)
    trio.run(serve, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
