"""The chain adapter over a real devnet: what it proves, what it sends, and what no liteserver can make it believe."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from nacl.signing import SigningKey

from cocoon.adapters.devnet.blocks import Blocks
from cocoon.adapters.devnet.devnet import Devnet
from cocoon.adapters.devnet.faults import Faults, Lie
from cocoon.adapters.ton import contracts
from cocoon.adapters.ton.cells import address
from cocoon.adapters.ton.reader import ChainReader
from cocoon.adapters.ton.sending import ChainWallet
from cocoon.adapters.ton.wallet import WalletKey
from cocoon.errors import ChainDisagrees, ConfigError, PaymentError, ProofInvalid, Unavailable
from cocoon.ports.chain import Entry
from cocoon.types import Network, Secret
from tests.contracts.world import voucher
from tests.fakes.devnet import TON, chain_on, config_of, devnet_for_tests, faucet_wallet, need_node, with_devnet

PAYEE = b"\x21" * 32
V = SigningKey(b"\x07" * 32)


async def opened_account(devnet: Devnet, chain: ChainReader, *, deposit: int = 5 * TON) -> bytes:
    """The faucet's spending account, opened through its wallet."""
    owner = devnet.faucet.account
    account = contracts.account_address(owner, 1)
    init = contracts.account_init(address(owner), 1)
    body = contracts.roll_body(key=bytes(V.verify_key), bond_nano=TON)
    await faucet_wallet(devnet, chain).send((contracts.transfer(account, deposit, body, init=init),))
    return account


@pytest.mark.parametrize("trust_level", [1, 0])
def test_deploy_claim_and_history_are_proven(trust_level: int) -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        account = await opened_account(devnet, chain)
        state = await chain.spending_account(account)
        assert state is not None
        assert (state.voucher_key, state.bond_nano, dict(state.entries)) == (bytes(V.verify_key), TON, {})
        signed = voucher(account, state.epoch, PAYEE, TON, 2 * TON)
        body = contracts.claim_body(signed, V.sign(signed).signature)
        await faucet_wallet(devnet, chain).send((contracts.transfer(account, TON // 50, body),))
        await trio.sleep(0.6)  # the head is asked for anew twice a second
        after = await chain.spending_account(account)
        assert after is not None
        assert after.entries == {PAYEE: Entry(claimed_nano=TON, ceiling_nano=2 * TON)}
        assert (await chain.wallet(PAYEE)).balance_nano > TON
        history = await chain.transactions(account, after_lt=0, count_max=10)
        assert [done.is_done for done in history] == [True, True]
        assert history[0].source == devnet.faucet.account
        assert await chain.transactions(account, after_lt=history[0].lt, count_max=10) == ()

    with_devnet(story, trust_level=trust_level)


def test_many_claims_travel_in_one_wallet_message() -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        account = await opened_account(devnet, chain, deposit=20 * TON)
        state = await chain.spending_account(account)
        assert state is not None
        transfers = []
        for index in range(8):
            signed = voucher(account, state.epoch, bytes([index + 1]) * 32, TON // 10)
            body = contracts.claim_body(signed, V.sign(signed).signature)
            transfers.append(contracts.transfer(account, TON // 50, body))
        before = await chain.wallet(devnet.faucet.account)
        await faucet_wallet(devnet, chain).send(tuple(transfers))
        await trio.sleep(0.6)
        assert (await chain.wallet(devnet.faucet.account)).seqno == before.seqno + 1
        after = await chain.spending_account(account)
        assert after is not None
        assert sorted(after.entries) == [bytes([index + 1]) * 32 for index in range(8)]

    with_devnet(story)


@pytest.mark.parametrize("trust_level", [1, 0])
def test_absence_is_proven_and_a_server_that_only_claims_it_is_passed_over(trust_level: int) -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        account = await opened_account(devnet, chain)
        assert await chain.spending_account(b"\x77" * 32) is None
        assert (await chain.wallet(b"\x77" * 32)).balance_nano == 0
        await trio.sleep(0.6)
        devnet.servers[0].queries.faults.lie = Lie.ABSENT
        assert await chain.spending_account(account) is not None, "the honest server is asked next"
        devnet.servers[1].queries.faults.lie = Lie.ABSENT
        with pytest.raises(ProofInvalid):
            await chain.spending_account(account)

    with_devnet(story, trust_level=trust_level)


@pytest.mark.parametrize("trust_level", [1, 0])
@pytest.mark.parametrize("lie", [Lie.RICH, Lie.OTHER, Lie.OLD_PROOF])
def test_a_false_state_is_never_believed(lie: Lie, trust_level: int) -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        account = await opened_account(devnet, chain)
        for server in devnet.servers:
            server.queries.faults.lie = lie
        with pytest.raises(ProofInvalid):
            await chain.spending_account(account)
        devnet.servers[1].queries.faults.lie = None
        state = await chain.spending_account(account)
        assert state is not None
        assert state.balance_nano < 5 * TON

    with_devnet(story, trust_level=trust_level)


def test_a_history_with_a_hole_is_refused() -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        account = await opened_account(devnet, chain)
        for _ in range(3):
            await devnet.mint(account, TON)
        await trio.sleep(0.6)
        for server in devnet.servers:
            server.queries.faults.lie = Lie.HISTORY
        with pytest.raises(ProofInvalid, match="hole"):
            await chain.transactions(account, after_lt=0, count_max=10)

    with_devnet(story)


def test_a_stale_chain_is_not_trusted() -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        await chain.head()
        frozen = devnet.blocks.seqno
        for server in devnet.servers:
            server.queries.faults.stale_at = frozen
        await devnet.advance(61)
        await trio.sleep(0.6)
        with pytest.raises(Unavailable, match="s old"):
            await chain.head()

    with_devnet(story)


def test_one_stale_server_holds_nobody_up_at_level_zero_and_stops_everything_at_level_one() -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        devnet.servers[0].queries.faults.stale_at = devnet.blocks.seqno
        await devnet.advance(120)
        async with chain_on(devnet, trust_level=0) as proving:
            assert (await proving.head()).seqno == devnet.blocks.seqno
        with pytest.raises(Unavailable, match="s old"):
            await chain.head()

    with_devnet(story, trust_level=1)


def test_the_chain_never_goes_backwards() -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        for _ in range(3):
            await devnet.close_block()
        seen = (await chain.head()).seqno
        for server in devnet.servers:
            server.queries.faults.stale_at = seen - 2
        await trio.sleep(0.6)
        with pytest.raises(Unavailable, match="fell back"):
            await chain.head()

    with_devnet(story)


async def richer_fork(devnet: Devnet) -> tuple[Blocks, bytes]:
    """A fork on which somebody has a lot of money; it is server number two then."""
    blocks, _ = await devnet.fork()
    blocks.commit(await trio.to_thread.run_sync(lambda: blocks.ledger.mint(PAYEE, 1_000 * TON)))
    return blocks, PAYEE


def test_a_fork_signed_by_a_validator_of_its_own_is_refused_at_level_zero() -> None:
    need_node()

    async def main() -> None:
        async with devnet_for_tests(servers=1) as devnet:
            _, rich = await richer_fork(devnet)
            only_the_liar = replace(config_of(devnet), servers=config_of(devnet).servers[1:])
            async with chain_on(devnet, trust_level=0, config=only_the_liar) as chain:
                with pytest.raises(ProofInvalid, match="hashes differ"):
                    await chain.wallet(rich)
            async with chain_on(devnet, trust_level=0) as chain:
                assert (await chain.wallet(rich)).balance_nano == 0, "the honest server's shorter chain is the true one"

    trio.run(main)


def test_two_servers_that_contradict_one_another_stop_everything_at_level_one() -> None:
    need_node()

    async def main() -> None:
        async with devnet_for_tests(servers=1) as devnet:
            blocks, rich = await richer_fork(devnet)
            while devnet.blocks.seqno < blocks.seqno:
                await devnet.close_block()
            async with chain_on(devnet, trust_level=1) as chain:
                with pytest.raises(ChainDisagrees, match="contradict"):
                    await chain.wallet(rich)

    trio.run(main)


def test_level_one_wants_two_servers() -> None:
    need_node()

    async def main() -> None:
        async with devnet_for_tests(servers=1) as devnet:
            with pytest.raises(ConfigError, match="two liteservers"):
                async with chain_on(devnet, trust_level=1):
                    pass

    trio.run(main)


@pytest.mark.parametrize("fault", ["drop_connections", "error_code", "silent"])
def test_a_broken_server_is_passed_over_and_comes_back(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocoon.adapters.chain.REQUEST_TIMEOUT_S", 1.0)
    broken = {"drop_connections": True, "error_code": 652, "silent": True}

    async def story(devnet: Devnet, chain: ChainReader) -> None:
        await chain.head()
        faults = devnet.servers[0].queries.faults
        setattr(faults, fault, broken[fault])
        await trio.sleep(0.6)
        await devnet.mint(PAYEE, TON)
        assert (await chain.wallet(PAYEE)).balance_nano == TON
        for server in devnet.servers:
            setattr(server.queries.faults, fault, broken[fault])
        await trio.sleep(0.6)
        with pytest.raises(Unavailable):
            await chain.wallet(PAYEE)
        for server in devnet.servers:
            setattr(server.queries.faults, fault, getattr(Faults(), fault))
        await trio.sleep(2.1)
        assert (await chain.wallet(PAYEE)).balance_nano == TON

    with_devnet(story, trust_level=0)


def test_the_updaters_silent_death_does_not_exist_here() -> None:
    """pytoniq's updater dies of one server error and goes on answering from a stale block; ours asks afresh."""

    async def story(devnet: Devnet, chain: ChainReader) -> None:
        await chain.head()
        for server in devnet.servers:
            server.queries.faults.error_code = 652
        await trio.sleep(0.6)
        with pytest.raises(Unavailable):
            await chain.head()
        for server in devnet.servers:
            server.queries.faults.error_code = None
        await devnet.close_block()
        assert (await chain.head()).seqno == devnet.blocks.seqno

    with_devnet(story)


def test_a_poor_wallet_is_told_before_anything_is_sent() -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        poor = WalletKey(Secret(b"\x31" * 32), Network.DEVNET)
        await devnet.mint(poor.account, TON // 10)
        with pytest.raises(PaymentError, match="fees kept back"):
            await ChainWallet(poor, chain).send((contracts.transfer(PAYEE, TON),))
        assert (await chain.wallet(poor.account)).seqno == 0

    with_devnet(story)


def test_a_new_wallet_deploys_itself_with_its_first_message() -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        fresh = WalletKey(Secret(b"\x32" * 32), Network.DEVNET)
        await devnet.mint(fresh.account, 3 * TON)
        wallet = ChainWallet(fresh, chain)
        await wallet.send((contracts.transfer(PAYEE, TON, bounce=False),))
        await wallet.send((contracts.transfer(PAYEE, TON, bounce=False),))
        await trio.sleep(0.6)
        assert (await chain.wallet(fresh.account)).seqno == 2
        assert (await chain.wallet(PAYEE)).balance_nano > 19 * TON // 10

    with_devnet(story)


def test_a_message_that_no_server_takes_expires_and_says_so() -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        await faucet_wallet(devnet, chain).send((contracts.transfer(PAYEE, TON, bounce=False),))
        await trio.sleep(0.6)
        for server in devnet.servers:
            server.queries.faults.error_code = 0
            server.queries.faults.only = frozenset({"sendMessage"})
        async with trio.open_nursery() as nursery:

            async def later() -> None:
                await trio.sleep(1)
                await devnet.advance(200)

            nursery.start_soon(later)
            with pytest.raises(Unavailable, match="expired"):
                await faucet_wallet(devnet, chain).send((contracts.transfer(PAYEE, TON),))

    with_devnet(story)


def test_an_invented_ledger_on_the_chain_is_refused() -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        from cocoon.adapters.ton.cells import account_of, state_init
        from tests.contracts.world import account_data

        account = await opened_account(devnet, chain)
        true = await chain.spending_account(account)
        assert true is not None
        data = account_data(true, {PAYEE: Entry(claimed_nano=0, ceiling_nano=900 * TON)})
        init = state_init(contracts.contract_code("account").cell, data)
        liar = account_of(init)
        await faucet_wallet(devnet, chain).send((contracts.transfer(liar, TON, init=init, bounce=False),))
        await trio.sleep(0.6)
        with pytest.raises(ProofInvalid, match="invented"):
            await chain.spending_account(liar)

    with_devnet(story)


def test_a_devnet_goes_on_where_it_was_left(tmp_path: Path) -> None:
    need_node()
    state = tmp_path / "devnet.sqlite"

    async def main() -> None:
        async with devnet_for_tests(state_path=state) as devnet:
            await devnet.mint(PAYEE, TON)
            await devnet.close_block()
            seqno, config, faucet = devnet.blocks.seqno, devnet.global_config(), devnet.faucet.account
        async with devnet_for_tests(state_path=state) as devnet:
            assert devnet.blocks.seqno > seqno, "no number ever means two blocks"
            assert devnet.faucet.account == faucet
            assert devnet.global_config()["validator"] == config["validator"]
            async with chain_on(devnet, trust_level=0) as chain:
                assert (await chain.wallet(PAYEE)).balance_nano == TON
                assert len(await chain.transactions(PAYEE, after_lt=0, count_max=5)) == 1
                await faucet_wallet(devnet, chain).send((contracts.transfer(PAYEE, TON, bounce=False),))

    trio.run(main)


Story = Callable[[Devnet, ChainReader], Awaitable[None]]
