"""The life of an account and of a stake, from a wallet, over proven states: opened, used, rolled, slashed, emptied."""

from __future__ import annotations

import pytest
import trio
from nacl.signing import SigningKey

from cocoon.adapters.devnet.devnet import Devnet
from cocoon.adapters.ton import contracts, operations
from cocoon.adapters.ton.reader import ChainReader
from cocoon.errors import ConfigError
from cocoon.market.equivocation import EquivocationProof, SignedStatement
from cocoon.pay.voucher import Voucher, sign_voucher
from cocoon.ports.chain import Entry, SpendingAccount, StakeState
from cocoon.types import Network
from cocoon.wire.signing import stake_statement
from tests.fakes.devnet import TON, faucet_wallet, with_devnet

V, V2, O = (SigningKey(bytes([index]) * 32) for index in (7, 8, 9))  # noqa: E741
PAYEES = [bytes([index]) * 32 for index in (0x31, 0x32, 0x33)]
FRESH_S = 0.6  # the head is asked for at most twice a second
DELAY_S = operations.UNBOND_DELAY_MIN_S


async def account_now(chain: ChainReader, account: bytes) -> SpendingAccount:
    await trio.sleep(FRESH_S)
    state = await chain.spending_account(account)
    assert state is not None
    return state


async def stake_now(chain: ChainReader, stake: bytes) -> StakeState:
    await trio.sleep(FRESH_S)
    state = await chain.stake(stake)
    assert state is not None
    return state


def test_an_account_is_opened_topped_up_claimed_from_noticed_rolled_and_emptied() -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        wallet, owner = faucet_wallet(devnet, chain), devnet.faucet.account
        account, opening = operations.open_account(
            owner, 5, voucher_key=bytes(V.verify_key), deposit_nano=3 * TON, bond_nano=TON
        )
        await wallet.send((opening,))
        await wallet.send((operations.top_up(account, TON), operations.add_bond(account, TON // 2)))
        state = await account_now(chain, account)
        assert TON + TON // 2 - 10**7 < state.bond_nano < TON + TON // 2
        assert 4 * TON + TON // 2 - 10**7 < state.balance_nano < 4 * TON + TON // 2
        vouchers = tuple(
            sign_voucher(
                Voucher(
                    network=Network.DEVNET,
                    account=account,
                    epoch=state.epoch,
                    provider=payee,
                    cumulative_nano=TON // 4,
                    ceiling_nano=TON // 2,
                ),
                lambda message: V.sign(message).signature,
            )
            for payee in PAYEES
        )
        await wallet.send(operations.claims(vouchers))
        state = await account_now(chain, account)
        line = Entry(claimed_nano=TON // 4, ceiling_nano=TON // 2)
        assert state.entries == dict.fromkeys(PAYEES, line)
        assert state.reserved_nano == 3 * TON // 4
        await wallet.send((operations.give_notice(account),))
        assert (await account_now(chain, account)).unlock_at_s > 0
        await devnet.advance(contracts.NOTICE_S)
        rolling = operations.roll(account, voucher_key=bytes(V2.verify_key), bond_nano=0, out_nano=contracts.ALL_NANO)
        await wallet.send((rolling,))
        state = await account_now(chain, account)
        assert (state.voucher_key, state.bond_nano, dict(state.entries)) == (bytes(V2.verify_key), 0, {})
        assert contracts.RENT_NANO <= state.balance_nano < contracts.RENT_NANO + 10**7

    with_devnet(story, trust_level=0)


def test_a_stake_is_opened_filled_rotated_and_withdrawn() -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        wallet, owner = faucet_wallet(devnet, chain), devnet.faucet.account
        stake, opening = operations.open_stake(owner, unbond_delay_s=DELAY_S, network=Network.DEVNET, operator=O)
        await wallet.send((opening,))
        await wallet.send((operations.deposit_stake(stake, 10 * TON),))
        state = await stake_now(chain, stake)
        assert state.keys[state.epoch].key == bytes(O.verify_key)
        assert 9 * TON < state.staked_nano < 10 * TON
        await devnet.advance(5)
        await wallet.send((operations.rotate_operator_key(stake, network=Network.DEVNET, operator=V2),))
        rotated = await stake_now(chain, stake)
        assert rotated.keys[state.epoch].retired_at_s == rotated.epoch
        await wallet.send((operations.request_unbond(stake),))
        await devnet.advance(DELAY_S)
        before = await chain.wallet(owner)
        await wallet.send((operations.withdraw_stake(stake),))
        assert (await stake_now(chain, stake)).staked_nano == 0
        assert (await chain.wallet(owner)).balance_nano > before.balance_nano + 9 * TON

    with_devnet(story, trust_level=0)


def test_a_proof_of_equivocation_burns_half_a_stake_and_pays_the_reporter() -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        wallet, owner = faucet_wallet(devnet, chain), devnet.faucet.account
        stake, opening = operations.open_stake(owner, unbond_delay_s=DELAY_S, network=Network.DEVNET, operator=O)
        await wallet.send((opening,))
        await wallet.send((operations.deposit_stake(stake, 10 * TON),))
        state = await stake_now(chain, stake)
        parts = []
        for digest in (b"\1" * 32, b"\2" * 32):
            statement = stake_statement(Network.DEVNET, stake, state.epoch, b"\5" * 32, digest)
            signature = O.sign(statement).signature
            parts.append(SignedStatement(stake=stake, key_epoch=state.epoch, digest=digest, signature=signature))
        proof = EquivocationProof(
            network=Network.DEVNET, operator=bytes(O.verify_key), slot=b"\5" * 32, first=parts[0], second=parts[1]
        )
        before = await chain.wallet(owner)
        await wallet.send((operations.slash(proof),))
        after = await stake_now(chain, stake)
        assert (after.staked_nano, dict(after.keys), after.epoch) == (0, {}, 0)
        gained = (await chain.wallet(owner)).balance_nano - before.balance_nano
        assert state.staked_nano // 2 - 10**7 < gained < state.staked_nano // 2
        assert (await chain.wallet(bytes(32))).balance_nano >= state.staked_nano // 2

    with_devnet(story)


def test_what_cannot_work_is_refused_before_it_costs_anything() -> None:
    with pytest.raises(ConfigError, match="deposit"):
        operations.open_account(bytes(32), 1, voucher_key=bytes(32), deposit_nano=TON, bond_nano=TON)
    with pytest.raises(ConfigError, match="delay"):
        operations.open_stake(bytes(32), unbond_delay_s=60, network=Network.DEVNET, operator=O)
    part = SignedStatement(stake=bytes(32), key_epoch=0, digest=b"\1" * 32, signature=bytes(64))
    with pytest.raises(ConfigError, match="no contract"):
        operations.slash(
            EquivocationProof(network=Network.DEVNET, operator=bytes(32), slot=bytes(32), first=part, second=part)
        )
