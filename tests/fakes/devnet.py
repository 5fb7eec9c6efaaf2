"""A real devnet for tests, with blocks on demand, and the real chain adapter on it. Skips where Node is absent."""

from __future__ import annotations

import atexit
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import pytest
import trio

from cocoon.adapters.chain import open_chain
from cocoon.adapters.devnet.devnet import Devnet, DevnetSettings, open_devnet
from cocoon.adapters.devnet.tvm import Tvm, configuration, prepare
from cocoon.adapters.ton.global_config import GlobalConfig, parse_global_config
from cocoon.adapters.ton.mnemonic import parse_words
from cocoon.adapters.ton.reader import ChainReader
from cocoon.adapters.ton.sending import ChainWallet
from cocoon.errors import ConfigError, Unavailable
from cocoon.types import Network

PACKAGES = Path(__file__).resolve().parents[2] / "build" / "npm"
TON = 10**9
WORDS = parse_words(
    "topic glue soap maple parade excuse process enter world empower vendor drive keep alley unfold gadget rescue "
    "insect fabric acquire absurd same rice note"
)


def need_node() -> None:
    """Skip with the reason when the TVM cannot run here. Fetches its packages once."""
    try:
        prepare(PACKAGES)
    except (ConfigError, Unavailable) as error:
        pytest.skip(f"needs Node.js and the TVM's npm packages: {error}")


@asynccontextmanager
async def devnet_for_tests(*, servers: int = 2, state_path: Path | None = None) -> AsyncIterator[Devnet]:
    """Blocks on demand; the clock runs with the wall. All share one TVM process, one after the other."""
    settings = DevnetSettings(block_time_s=None, servers=servers, state_path=state_path, faucet_words=WORDS)
    async with open_devnet(settings, cache=PACKAGES, tvm=shared_tvm()) as devnet:
        yield devnet


@cache
def shared_tvm() -> Tvm:
    """Started once, closed when the tests end."""
    node, modules = prepare(PACKAGES)
    tvm = Tvm(node, modules, config=configuration(network=Network.DEVNET))
    atexit.register(tvm.close)
    return tvm


def config_of(devnet: Devnet) -> GlobalConfig:
    """As a client would read it."""
    return parse_global_config(json.dumps(devnet.global_config()))


@asynccontextmanager
async def chain_on(
    devnet: Devnet, *, trust_level: int = 1, config: GlobalConfig | None = None
) -> AsyncIterator[ChainReader]:
    """The adapter, with a clock that follows the devnet's."""
    async with open_chain(
        config if config is not None else config_of(devnet),
        network=Network.DEVNET,
        trust_level=trust_level,
        now=lambda: time.time_ns() + devnet.ahead_s * 10**9,
    ) as chain:
        yield chain


def with_devnet(
    story: Callable[[Devnet, ChainReader], Awaitable[None]], *, trust_level: int = 1, servers: int = 2
) -> None:
    """Run a story on a fresh devnet."""
    need_node()

    async def main() -> None:
        async with devnet_for_tests(servers=servers) as devnet:
            async with chain_on(devnet, trust_level=trust_level) as chain:
                await story(devnet, chain)

    trio.run(main)


def faucet_wallet(devnet: Devnet, chain: ChainReader) -> ChainWallet:
    """The faucet as anybody's wallet."""
    return ChainWallet(devnet.faucet, chain)
