"""From a home to the chain and to the account that pays: what the edges (`api`, `gateway`, `cli`) share of money.

A program that embeds a client pays from its home's spending account, if there is one, as the commands do; what a
request may cost it says with every request. Not here: opening accounts (`cocoon account`), asking people
(`cocoon.cli.money`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from ..client.settings import PaymentAccount
from ..config import Config, Home
from ..errors import ConfigError
from ..ports.chain import Chain
from ..types import Network
from ..wire.limits import NANO_MAX

CONFIG_BYTES_MAX: Final = 1024 * 1024  # of a global configuration; TON's has 30 kB
UNAUDITED: Final = (
    "Nothing here was audited: neither the contracts that hold the coins (contracts/account, contracts/stake), nor "
    "this program's wallet and its reading of the chain. None of it has run on mainnet. Coins can be lost."
)


def check_mainnet(config: Config) -> None:
    """Raises `ConfigError` on mainnet, unless it was asked for in so many words."""
    if config.network_id is Network.MAINNET and not config.wallet.unaudited_mainnet:
        raise ConfigError(
            f"mainnet is refused. {UNAUDITED}",
            advice="Use --network testnet; or, if you can afford to lose it, add --unaudited-mainnet.",
        )


@asynccontextmanager
async def opened_chain(home: Home, config: Config) -> AsyncIterator[Chain]:
    """The chain that the configuration names. Raises `ConfigError`; nothing is connected yet."""
    from ..adapters.chain import open_chain
    from ..adapters.clock import SystemClock
    from ..adapters.ton.global_config import parse_global_config

    network = config.network_id
    global_config = parse_global_config(_read_chain_config(home, config))
    key_block_path = home.key_block_path(network)
    key_block_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with open_chain(
        global_config,
        network=network,
        trust_level=config.chain.trust_level,
        now=SystemClock().now,
        key_block_path=key_block_path,
    ) as chain:
        yield chain


def _read_chain_config(home: Home, config: Config) -> bytes:
    network, chosen = config.network_id, config.chain.config_path
    path = home.chain_config_path(network) if chosen is None else Path(chosen).expanduser()
    try:
        with path.open("rb") as file:
            return file.read(CONFIG_BYTES_MAX + 1)
    except FileNotFoundError:
        advice = (
            "Start `cocoon devnet` with the same --home, or pass --chain-config FILE."
            if network is Network.DEVNET
            else f"Fetch TON's global configuration of the {network.label}, look at it, and pass --chain-config FILE."
        )
        raise ConfigError(f"no chain is known: there is no {path}", advice=advice) from None
    except OSError as error:
        raise ConfigError(f"the chain's configuration {path} cannot be read: {error.strerror}") from error


@asynccontextmanager
async def opened_account(home: Home, config: Config) -> AsyncIterator[PaymentAccount | None]:
    """The home's spending account; None when there is none, or when it is not to be used. Raises `ConfigError`.

    Its cap is the account itself: what a request and a day may cost is said by whoever asks.
    """
    from ..adapters.ton.kept import load_account

    network = config.network_id
    kept = load_account(home.account_path(network), network=network) if config.client.account == "auto" else None
    if kept is None:
        yield None
        return
    check_mainnet(config)
    from ..adapters.keyfile import load_seed
    from ..adapters.ton.paying import payment_account

    seed = load_seed(home.voucher_key_path(network))
    async with opened_chain(home, config) as chain:
        yield payment_account(chain, account=kept.account, voucher_seed=seed, spend_max_nano=NANO_MAX)
