"""A market on a real chain: contracts on the real TVM, proven states, real wallets. Skips where Node.js is absent."""

from __future__ import annotations

import hashlib

import pytest
import trio
from nacl.signing import SigningKey

from cocoon.adapters.clock import SystemClock
from cocoon.adapters.devnet.devnet import Devnet
from cocoon.adapters.ton import operations
from cocoon.adapters.ton.mnemonic import new_words, seed_of
from cocoon.adapters.ton.paying import payment_account, provider_payments
from cocoon.adapters.ton.reader import ChainReader
from cocoon.adapters.ton.sending import ChainWallet
from cocoon.adapters.ton.wallet import WalletKey
from cocoon.ports import VoucherSide
from cocoon.types import Network, Secret
from tests.fakes.devnet import TON, faucet_wallet, with_devnet
from tests.fakes.engine import ScriptedEngine
from tests.fakes.little_market import SeededEntropy, ask, open_market

pytestmark = pytest.mark.slow

V_SEED = Secret(hashlib.sha256(b"the voucher key of an end-to-end test").digest())
OPERATOR_WORDS = new_words(SeededEntropy("the operator's wallet"))
PRICE = 40 * TON  # per million tokens: some hundred tokens are worth a claim
DEPOSIT, BOND = 5 * TON, TON
BLOCK_S = 1.0


def test_a_client_deposits_once_streams_is_claimed_from_and_every_balance_agrees_with_the_receipts() -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(devnet.keep_time, BLOCK_S)
            await paid_story(devnet, chain)
            nursery.cancel_scope.cancel()

    with_devnet(story)


async def paid_story(devnet: Devnet, chain: ChainReader) -> None:
    operator = ChainWallet(WalletKey(seed_of(OPERATOR_WORDS), Network.DEVNET), chain)
    await devnet.mint(operator.account, TON)
    voucher_key = bytes(SigningKey(V_SEED.reveal()).verify_key)
    account, opening = operations.open_account(
        devnet.faucet.account, 11, voucher_key=voucher_key, deposit_nano=DEPOSIT, bond_nano=BOND
    )
    await faucet_wallet(devnet, chain).send((opening,))
    await trio.sleep(2 * BLOCK_S)
    opened = await chain.spending_account(account)
    assert opened is not None

    clock = SystemClock()
    async with open_market(clock=clock) as market:
        provider = await market.add_provider(
            "provider",
            ScriptedEngine(" ".join(f"w{n}" for n in range(300)), token_s=0.001),
            output_nano=PRICE,
            payments=provider_payments(chain, payout=operator.account, wallet=operator, claim_cost_nano=10_000),
        )
        client = await market.add_client(
            payment=payment_account(chain, account=account, voucher_seed=V_SEED, spend_max_nano=2 * TON)
        )
        costs = []
        for _ in range(3):
            async with client.generate("chat.completions", ask(max_tokens=300), spend_max_nano=TON) as reply:
                came = [delta async for delta in reply]
            assert came
            assert reply.summary.cost_nano == reply.summary.receipt.due_nano > 300 * PRICE // 10**6
            costs.append(reply.summary.cost_nano)
        await trio.sleep(1)
        (voucher,) = await provider.store.vouchers(
            VoucherSide.HELD, network=int(Network.DEVNET), party=operator.account
        )
        assert voucher.cumulative_nano == sum(costs)
        provider.role.claim_all()
        with trio.fail_after(40):
            while True:
                await trio.sleep(BLOCK_S)
                state = await chain.spending_account(account)
                assert state is not None
                if operator.account in state.entries and state.entries[operator.account].claimed_nano == sum(costs):
                    break
        assert state.bond_nano == opened.bond_nano
        rent_nano = opened.balance_nano - state.balance_nano - sum(costs)
        assert 0 <= rent_nano < TON // 1_000  # storage, and nothing else

    wallet = await chain.wallet(operator.account)
    fees_nano = TON + sum(costs) - wallet.balance_nano
    assert 0 < fees_nano < TON // 50  # of the claims, which the operator pays for itself
