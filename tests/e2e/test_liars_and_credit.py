"""A provider over a real devnet whose liteservers lie: it serves nobody against money that is not there. Nor does a
client believe in money that it has not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from nacl.signing import SigningKey

from cocoon.adapters.clock import SystemClock
from cocoon.adapters.devnet.devnet import Devnet
from cocoon.adapters.devnet.faults import Lie
from cocoon.adapters.ton import contracts, operations
from cocoon.adapters.ton.global_config import GlobalConfig, parse_global_config
from cocoon.adapters.ton.paying import payment_account, provider_payments
from cocoon.adapters.ton.reader import ChainReader
from cocoon.client import PaymentAccount
from cocoon.errors import PaymentError
from cocoon.pay.refusals import Fault, PaymentRefused
from cocoon.ports import VoucherSide
from cocoon.ports.chain import SpendingAccount
from cocoon.types import Network, Secret
from tests.fakes.devnet import TON, chain_on, devnet_for_tests, faucet_wallet, need_node
from tests.fakes.little_market import LittleMarket, ask, open_market

pytestmark = pytest.mark.slow

PAYOUT = b"\x5a" * 32
V = SigningKey(b"\7" * 32)
HEAD_S = 0.6  # a reader asks for the newest block at most twice a second
PRICE = 10**12  # a token costs 1 mTON, so that the window alone is worth something


class Dream:
    """A client's chain that shows it the account as it was when it was rich."""

    def __init__(self, chain: ChainReader, rich: SpendingAccount) -> None:
        self._chain, self._rich = chain, rich

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chain, name)

    async def spending_account(self, account: bytes) -> SpendingAccount:
        head = await self._chain.head()
        return replace(self._rich, at_s=head.time_s)


class DevnetClock:
    """Wall time, as far ahead as the devnet's."""

    def __init__(self, devnet: Devnet) -> None:
        self._clock, self._devnet = SystemClock(), devnet

    def now(self) -> int:
        return self._clock.now() + self._devnet.ahead_s * 10**9


Spoil = Callable[[Devnet, int], Awaitable[GlobalConfig]]


async def rich(devnet: Devnet, _: int) -> GlobalConfig:
    return _lie(devnet, Lie.RICH)


async def other(devnet: Devnet, _: int) -> GlobalConfig:
    return _lie(devnet, Lie.OTHER)


async def absent(devnet: Devnet, _: int) -> GlobalConfig:
    return _lie(devnet, Lie.ABSENT)


async def old_proof(devnet: Devnet, _: int) -> GlobalConfig:
    return _lie(devnet, Lie.OLD_PROOF)


async def stale(devnet: Devnet, rich_at: int) -> GlobalConfig:
    for server in devnet.servers[:2]:
        server.queries.faults.stale_at = rich_at
    return _config(devnet, 0, 1)


async def dropping(devnet: Devnet, _: int) -> GlobalConfig:
    for server in devnet.servers[:2]:
        server.queries.faults.drop_connections = True
    return _config(devnet, 0, 1)


async def forking(devnet: Devnet, _: int) -> GlobalConfig:
    """The fork pours coins into the account; its server stands beside an honest one."""
    blocks, _server = await devnet.fork()
    account = contracts.account_address(devnet.faucet.account, 5)
    blocks.commit(await trio.to_thread.run_sync(blocks.ledger.mint, account, 5 * TON))
    await devnet.close_block()
    return _config(devnet, 0, -1)


def _lie(devnet: Devnet, lie: Lie) -> GlobalConfig:
    for server in devnet.servers[:2]:
        server.queries.faults.lie = lie
    return _config(devnet, 0, 1)


def _config(devnet: Devnet, *servers: int) -> GlobalConfig:
    config = devnet.global_config()
    chosen = [config["liteservers"][index] for index in servers]
    return parse_global_config(json.dumps({**config, "liteservers": chosen}))


@asynccontextmanager
async def _world() -> AsyncIterator[tuple[Devnet, ChainReader]]:
    """A devnet with two servers to spoil, and a chain read from a third that stays honest."""
    async with devnet_for_tests(servers=3) as devnet:
        async with chain_on(devnet, trust_level=0, config=_config(devnet, 2)) as honest:
            yield devnet, honest


async def _rich_account(devnet: Devnet, honest: ChainReader) -> bytes:
    account, opening = operations.open_account(
        devnet.faucet.account, 5, voucher_key=bytes(V.verify_key), deposit_nano=5 * TON, bond_nano=TON
    )
    await faucet_wallet(devnet, honest).send((opening,))
    await trio.sleep(HEAD_S)
    return account


async def _emptied_account(devnet: Devnet, honest: ChainReader) -> tuple[SpendingAccount, int]:
    """An account that was rich and is empty now; how it was, and at which block."""
    account = await _rich_account(devnet, honest)
    was, rich_at = await honest.spending_account(account), (await honest.head()).seqno
    assert was is not None
    wallet = faucet_wallet(devnet, honest)
    await wallet.send((operations.give_notice(account),))
    await devnet.advance(contracts.NOTICE_S)
    key = bytes(V.verify_key)
    await wallet.send((operations.roll(account, voucher_key=key, bond_nano=0, out_nano=contracts.ALL_NANO),))
    await trio.sleep(HEAD_S)
    now = await honest.spending_account(account)
    assert now is not None
    return replace(was, epoch=now.epoch, unlock_at_s=0), rich_at


def _payment(chain: Any, account: bytes) -> PaymentAccount:
    return payment_account(chain, account=account, voucher_seed=Secret(bytes(V)), spend_max_nano=4 * TON)


async def _receive(market: LittleMarket, payment: PaymentAccount) -> int:
    """How many tokens came; raises what the reply raises."""
    client = await market.add_client(payment=payment)
    came = 0
    async with client.generate("chat.completions", ask(max_tokens=100), spend_max_nano=TON) as reply:
        async for delta in reply:
            came += len(delta.token_ids)
    return came


LIARS = (rich, other, absent, old_proof, stale, dropping, forking)


def _honest_again(devnet: Devnet) -> None:
    for server in devnet.servers:
        faults = server.queries.faults
        faults.lie, faults.stale_at, faults.drop_connections = None, None, False


async def _nothing_was_paid(store: Any) -> bool:
    """No voucher, or only the wish for a reservation."""
    held = await store.vouchers(VoucherSide.HELD, network=int(Network.DEVNET), party=PAYOUT)
    return all(voucher.cumulative_nano == 0 for voucher in held)


def test_no_lie_about_an_emptied_account_makes_a_provider_serve_it() -> None:
    """The client believes in the money as it was; only what the provider is shown stands between them."""
    need_node()

    async def ask_provider(
        devnet: Devnet, honest: ChainReader, was: SpendingAccount, config: GlobalConfig, level: int
    ) -> PaymentRefused:
        async with (
            chain_on(devnet, trust_level=level, config=config) as seen,
            open_market(clock=DevnetClock(devnet)) as market,
        ):
            provider = await market.add_provider(
                "provider", output_nano=PRICE, payments=provider_payments(seen, payout=PAYOUT, wallet=None)
            )
            refusal: PaymentRefused | None = None
            try:
                await _receive(market, _payment(Dream(honest, was), was.account))
            except PaymentRefused as refused:
                refusal = refused
            assert refusal is not None, "it was served"
            assert provider.role.record.requests == 0
            assert await _nothing_was_paid(provider.store)
        return refusal

    async def main() -> None:
        async with _world() as (devnet, honest):
            was, rich_at = await _emptied_account(devnet, honest)
            for spoil in LIARS:
                config = await spoil(devnet, rich_at)
                for level in (1,) if spoil is dropping else (0, 1):  # silence is waited for
                    refused = await ask_provider(devnet, honest, was, config, level)
                    is_fooled_by_nothing = spoil is forking and level == 0  # one honest server proves the truth
                    expected = Fault.RESERVATION_NEEDED if is_fooled_by_nothing else Fault.UNPROVEN
                    assert refused.fault is expected, (spoil.__name__, level)
                _honest_again(devnet)

    trio.run(main)


def test_a_client_signs_nothing_for_money_that_only_a_liar_shows_it() -> None:
    need_node()

    async def main() -> None:
        async with _world() as (devnet, honest):
            was, rich_at = await _emptied_account(devnet, honest)
            for spoil in (rich, other, dropping, forking):
                config = await spoil(devnet, rich_at)
                async with (
                    chain_on(devnet, trust_level=1, config=config) as seen,
                    open_market(clock=DevnetClock(devnet)) as market,
                ):
                    provider = await market.add_provider(
                        "provider", output_nano=PRICE, payments=provider_payments(honest, payout=PAYOUT, wallet=None)
                    )
                    with pytest.raises(PaymentError):
                        await _receive(market, _payment(seen, was.account))
                    assert provider.role.record.requests == 0
                    assert await _nothing_was_paid(provider.store)
                _honest_again(devnet)

    trio.run(main)


def test_the_same_market_serves_the_account_while_it_is_rich() -> None:
    """So that the refusals above are about money, and about nothing else."""
    need_node()

    async def main() -> None:
        async with _world() as (devnet, honest):
            account = await _rich_account(devnet, honest)
            async with open_market(clock=DevnetClock(devnet)) as market:
                provider = await market.add_provider(
                    "provider", output_nano=PRICE, payments=provider_payments(honest, payout=PAYOUT, wallet=None)
                )
                assert await _receive(market, _payment(honest, account)) > 0
                assert provider.role.record.requests == 1

    trio.run(main)
