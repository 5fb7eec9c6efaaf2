"""Composition roots of the three services: a plain node, a provider, and a gateway. Each runs until it is cancelled.

Ready means ready: the first JSON object (or the printed block) appears once others can use the service.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from ..adapters.clock import SystemClock, entropy
from ..adapters.keyfile import load_or_create_seed
from ..adapters.models import LocatedModel, ModelStore
from ..adapters.network import PeerNetwork, open_network
from ..adapters.signer import KeyFileSigner
from ..adapters.store import SqliteStore
from ..adapters.tee.opening import make_ready, open_enclave
from ..api.opening import open_role, wait_connected
from ..api.terms import OPEN_TIMEOUT_S, open_terms
from ..client.interface import ClientRole
from ..config import Config, Home
from ..gateway.server import GatewayHandle, bind, open_gateway
from ..gateway.settings import GatewaySettings
from ..node.plain import open_plain_node
from ..node.provider import ProviderSettings, open_provider
from ..trust import TrustPolicy
from ..types import Network, Prices, Secret, format_ton, ton
from .console import Console
from .engines import open_engine
from .keys import api_key as key_in_file
from .options import SPENT_FILE, Setup
from .paying import ProviderMoney, opened_account, opened_money
from .watching import GatewayStatus, explained, of_node, of_provider, shown, watched

if TYPE_CHECKING:
    from ..adapters.ton.wallet import WalletKey

SEED_BYTES: Final = 32
BOOTSTRAP_PATIENCE_S: Final = 60.0  # a provider and its bootstrap node may be started together, on a slow machine
DRAIN_S: Final = 4.0  # half of the time that a shutdown may take


def warning_of(trust: TrustPolicy) -> str:
    """What a user has to know of the chosen level, for a line of its own; empty when there is nothing."""
    return trust.warning and trust.warning[0].upper() + trust.warning[1:] + "."


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
            store=store,
            clock=clock,
        ) as network,
        open_plain_node(network, network_id=config.network_id, clock=clock, store=store) as node,
        watched(config, home, "node", of_node(node, network, config, clock), console),
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


async def run_provider(prepared: Setup, console: Console, *, wallet_key: WalletKey | None = None) -> None:
    """A provider of one model. `wallet_key` sends its claims."""
    config, home = prepared.config, prepared.home.create()
    clock = SystemClock()
    assert config.provider.model is not None  # `serve` has checked
    located = await ModelStore(home.models_path).locate(config.provider.model, console.progress)
    enclave = open_enclave(
        config.provider.tee,
        network=config.network_id,
        model=located.model.digest,
        clock=clock,
        folder=home.path / "collateral",
        image_hex=config.provider.image,
        config_hex=config.provider.config_digest,
    )
    await make_ready(enclave, nonce=entropy(SEED_BYTES), clock=clock)  # before an engine puts a model on it
    async with (
        await SqliteStore.open(home.database_path, clock=clock, entropy=entropy) as store,
        open_engine(config.provider, located.path, console) as engine,
        open_network(
            seed=Secret(entropy(SEED_BYTES)),  # P is made anew at every start
            listen=config.listen,
            announce=config.peer.announce,
            bootstrap=config.peer.bootstrap,
            serves_dht=True,
            allow_private_addresses=config.network_id is Network.DEVNET,
            agent="cocoon-provider",
            store=store,
            clock=clock,
        ) as network,
    ):
        signer = KeyFileSigner.open(home.operator_key_path, network=config.network_id, store=store, entropy=entropy)
        if config.peer.bootstrap:
            console.progress("joining the network …")
            await wait_connected(network, timeout_s=BOOTSTRAP_PATIENCE_S)
        async with (
            opened_money(prepared, console, wallet_key=wallet_key, operator=signer.operator) as paid,
            open_provider(
                network,
                engine,
                located.model,
                signer,
                store,
                ProviderSettings(
                    network_id=config.network_id,
                    prices=prices_of(config),
                    region=config.provider.region,
                    announce=config.peer.announce,
                    stake=paid.stake,
                    key_epoch=paid.key_epoch,
                ),
                clock=clock,
                entropy=entropy,
                enclave=enclave,
                payments=paid.payments,
            ) as provider,
            watched(
                config,
                home,
                "provider",
                of_provider(
                    provider,
                    network,
                    engine,
                    store,
                    config,
                    clock,
                    payout=None if paid.payments is None else paid.payments.payout,
                ),
                console,
            ),
        ):
            await provider.wait_offered()
            _say_serving(console, config, network, located, paid)
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    if not await provider.drain(timeout_s=DRAIN_S):
                        console.say(f"requests still ran after {DRAIN_S:.0f} s; they were cut off")


_TEE_WORDS: Final = {
    "none": "Trust level open: you can read what clients send, and they have agreed to it.",
    "simulated": "Simulated enclave: every check of a confidential session runs, and nothing is protected.",
    "tdx": "This TDX guest proves what it runs; its GPU, if any, proves nothing.",
    "tdx+gpu": "This TDX guest and its GPU prove what they run.",
}


def _say_serving(
    console: Console, config: Config, network: PeerNetwork, located: LocatedModel, paid: ProviderMoney
) -> None:
    prices, model = prices_of(config), located.model
    console.notice(f"serving {located.label} on {config.network} · peer {network.peer}")
    console.say(f"{format_ton(prices.input_nano)} TON in, {format_ton(prices.output_nano)} TON out per million tokens")
    console.say(paid.words)
    console.say(_TEE_WORDS[config.provider.tee])
    console.line(f"model      {model}")
    for address in network.addresses():
        console.line(f"address    {address}")
    console.data(
        {
            "event": "ready",
            "role": "provider",
            "network": config.network,
            "peer": network.peer,
            "addresses": list(network.addresses()),
            "model": model.name,
            "model_digest": model.digest.hex(),
            "test_model": located.test_model,
            "tee": config.provider.tee,
            "price_input_nano": prices.input_nano,
            "price_output_nano": prices.output_nano,
            "payout": None if paid.payments is None else paid.payments.payout.hex(),
            "stake": paid.stake.hex() if any(paid.stake) else None,
        }
    )


def prices_of(config: Config) -> Prices:
    """What a provider asks. A cached token costs what any input token does, until there is a cache to speak of."""
    price_in, price_out = ton(config.provider.price_input_ton), ton(config.provider.price_output_ton)
    return Prices(input_nano=price_in, cached_input_nano=price_in, output_nano=price_out)


async def run_gateway(prepared: Setup, trust: TrustPolicy, console: Console, *, api_key: str | None) -> None:
    """A client peer behind the OpenAI-compatible API."""
    config, home = prepared.config, prepared.home.create()
    key = Secret(api_key.encode()) if api_key is not None else key_in_file(_api_key_path(config, home))
    clock = SystemClock()
    terms = open_terms(
        bootstrap=config.peer.bootstrap,
        trust=trust,
        network=config.network,
        timeout_s=OPEN_TIMEOUT_S,
        home=home.path,
    )
    await check_port_free(config)
    console.progress("joining the network …")
    async with (
        await SqliteStore.open(home.database_path, clock=clock, entropy=entropy) as store,
        opened_account(prepared, console) as payment,
        open_role(terms, store=store, payment=payment) as role,
        open_api(role, config, home, key, clock) as (gateway, status),
        shown(home, "gateway", status, console, why=explained(status.record, config)),
    ):
        if trust.warning:
            console.notice(warning_of(trust))
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
                "account": None if payment is None else payment.account.hex(),
            }
        )
        await trio.sleep_forever()


async def check_port_free(config: Config) -> None:
    """Find out before a network is joined. Raises `ConfigError` when the port is taken."""
    (await bind(config.gateway.host, config.gateway.port)).close()


@asynccontextmanager
async def open_api(
    role: ClientRole, config: Config, home: Home, key: Secret, clock: SystemClock
) -> AsyncIterator[tuple[GatewayHandle, GatewayStatus]]:
    """The HTTP side of a gateway, and what it says of itself. Raises `ConfigError` when the port is taken."""
    settings = GatewaySettings(
        api_keys=(key,),
        spend_max_request_nano=ton(config.gateway.spend_request_max_ton),
        spend_max_day_nano=ton(config.gateway.spend_day_max_ton),
        host=config.gateway.host,
        port=config.gateway.port,
        spend_file=home.path / SPENT_FILE,
    )
    status = GatewayStatus(role, config, clock)
    async with open_gateway(role, settings, clock, record=status.record, status=status) as gateway:
        status.handle = gateway
        yield gateway, status


def _api_key_path(config: Config, home: Home) -> Path:
    return Path(config.gateway.api_key_path) if config.gateway.api_key_path else home.api_key_path
