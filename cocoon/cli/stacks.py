"""Composition roots of the three services: a plain node, a provider, and a gateway. Each runs until it is cancelled.

Ready means ready: the first JSON object (or the printed block) appears once others can use the service.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from ..adapters.clock import SystemClock, entropy
from ..adapters.keyfile import load_or_create_seed
from ..adapters.network import open_network
from ..adapters.store import SqliteStore
from ..api.opening import open_role
from ..api.terms import OPEN_TIMEOUT_S, open_terms
from ..client.interface import ClientRole
from ..config import Config, Home
from ..gateway.server import GatewayHandle, open_gateway
from ..gateway.settings import GatewaySettings
from ..node.plain import open_plain_node
from ..trust import TrustPolicy
from ..types import Network, Secret, format_ton, ton
from .console import Console
from .keys import api_key as key_in_file
from .options import Setup

OPEN_WARNING: Final = (
    "TRUST LEVEL: open. No enclave protects this: the operator of a provider can read prompts and answers."
)


async def run_node(prepared: Setup, console: Console) -> None:
    """A plain peer."""
    config, home = prepared.config, prepared.home.create()
    clock = SystemClock()
    seed = load_or_create_seed(home.peer_key_path, entropy=entropy)
    console.progress("starting the node …")
    async with (
        await SqliteStore.open(home.database_path, clock=clock, entropy=entropy) as store,
        open_network(
            seed=seed,
            listen=config.listen,
            announce=config.peer.announce,
            bootstrap=config.peer.bootstrap,
            serves_dht=True,
            relay=config.peer.relay,
            allow_private_addresses=config.network_id is Network.DEVNET,
            agent="cocoon-node",
        ) as network,
        open_plain_node(network, network_id=config.network_id, clock=clock, store=store),
    ):
        console.notice(f"node is up on {config.network} · peer {network.peer}")
        console.say("Others join with:")
        for address in network.addresses():
            console.line(f"--bootstrap {address}")
        console.data(
            {
                "event": "ready",
                "role": "node",
                "network": config.network,
                "peer": network.peer,
                "addresses": list(network.addresses()),
            }
        )
        await trio.sleep_forever()


async def run_gateway(prepared: Setup, trust: TrustPolicy, console: Console, *, api_key: str | None) -> None:
    """A client peer behind the OpenAI-compatible API."""
    config, home = prepared.config, prepared.home.create()
    key = Secret(api_key.encode()) if api_key is not None else key_in_file(_api_key_path(config, home))
    clock = SystemClock()
    terms = open_terms(bootstrap=config.peer.bootstrap, trust=trust, network=config.network, timeout_s=OPEN_TIMEOUT_S)
    console.progress("joining the network …")
    async with (
        await SqliteStore.open(home.database_path, clock=clock, entropy=entropy) as store,
        open_role(terms, store=store) as role,
        open_api(role, config, home, key, clock) as gateway,
    ):
        console.notice(OPEN_WARNING)
        console.line(f"base URL  {gateway.base_url}")
        if api_key is None:
            console.line(f"API key   {key.reveal().decode()}")
        console.say(
            f"One request may cost at most {config.gateway.spend_request_max_ton} TON, "
            f"one day {config.gateway.spend_day_max_ton} TON. Ctrl-C ends."
        )
        console.data(
            {
                "event": "ready",
                "role": "gateway",
                "network": config.network,
                "peer": role.peer,
                "base_url": gateway.base_url,
                "api_key_path": None if api_key is not None else str(_api_key_path(config, home)),
                "trust": trust.level.value,
            }
        )
        await trio.sleep_forever()


@asynccontextmanager
async def open_api(
    role: ClientRole, config: Config, home: Home, key: Secret, clock: SystemClock
) -> AsyncIterator[GatewayHandle]:
    """The HTTP side of a gateway. Raises `ConfigError` when the port is taken."""
    settings = GatewaySettings(
        api_keys=(key,),
        spend_max_request_nano=ton(config.gateway.spend_request_max_ton),
        spend_max_day_nano=ton(config.gateway.spend_day_max_ton),
        host=config.gateway.host,
        port=config.gateway.port,
        spend_file=home.path / "spent-today.json",
    )
    async with open_gateway(role, settings, clock) as gateway:
        yield gateway


def _api_key_path(config: Config, home: Home) -> Path:
    return Path(config.gateway.api_key_path) if config.gateway.api_key_path else home.api_key_path


def price_text(config: Config) -> str:
    """The prices in words."""
    price_in, price_out = (ton(text) for text in (config.provider.price_input_ton, config.provider.price_output_ton))
    return f"{format_ton(price_in)} TON in, {format_ton(price_out)} TON out per million tokens"
