"""What a provider is told of its payout and stake before it starts, and a client of its account and its caps."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from nacl.signing import SigningKey

from cocoon import trust
from cocoon.adapters.ton.addresses import contract_address, wallet_address
from cocoon.adapters.ton.journal import FileJournal
from cocoon.adapters.ton.kept import KeptAccount, KeptStake, save_account, save_stake
from cocoon.adapters.ton.mnemonic import new_words
from cocoon.adapters.ton.wallet_file import create_wallet_file
from cocoon.api import paying as api_paying
from cocoon.api.terms import open_terms
from cocoon.cli import main, paying
from cocoon.cli.chat import DaySpending
from cocoon.cli.console import Console
from cocoon.cli.options import PASSPHRASE_VARIABLE, Setup
from cocoon.config import Config, Home, override
from cocoon.errors import ConfigError, PaymentError, SpendCapReached, Unavailable
from cocoon.ports.chain import OperatorKey
from cocoon.types import NANO_PER_TON as TON
from cocoon.types import NO_DIGEST, Network, Secret
from sim.chain import Account, Stake
from tests.fakes.market import CountingEntropy
from tests.fakes.money_chain import FakeChain

DELAY_S = 7 * 86_400
O = SigningKey(b"\x0e" * 32)  # noqa: E741
OPERATOR = bytes(O.verify_key)
OWNER = b"\x11" * 32
PHRASE = new_words(CountingEntropy("serving"))


class Place:
    """A home, its chain, and what was said."""

    def __init__(self, home: Home, chain: FakeChain) -> None:
        self.home, self.chain = home, chain
        self.talk = io.StringIO()

    def setup(self, **changes: Any) -> Setup:
        named = {name.replace("__", "."): value for name, value in changes.items()}
        return Setup(home=self.home, config=override(Config(), named), log_level="warning")

    def provider(self, **changes: Any) -> paying.ProviderMoney:
        """What a provider would be told."""

        async def main_() -> paying.ProviderMoney:
            prepared = self.setup(**changes)
            console = Console(json_output=False, err=self.talk)
            async with paying.opened_money(prepared, console, wallet_key=None, operator=OPERATOR) as told:
                return told

        return trio.run(main_, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    chain = FakeChain()

    @asynccontextmanager
    async def opened(*_: object) -> AsyncIterator[FakeChain]:
        yield chain

    monkeypatch.setattr(paying, "opened_chain", opened)
    monkeypatch.setattr(api_paying, "opened_chain", opened)
    home = Home(path=tmp_path / "home").create()
    create_wallet_file(
        home.wallet_path(Network.DEVNET),
        PHRASE,
        network=Network.DEVNET,
        passphrase=Secret(b"a passphrase"),
        entropy=CountingEntropy("file"),
        operations=1,
        memory_bytes=8_192,
    )
    return Place(home, chain)


def stake_in(place: Place, **state: Any) -> bytes:
    kept = KeptStake(network=Network.DEVNET, owner=OWNER, unbond_delay_s=DELAY_S)
    save_stake(place.home.stake_path(Network.DEVNET), kept)
    values = {"stake": 9 * TON, "epoch": 5, "keys": {5: OperatorKey(key=OPERATOR, retired_at_s=0)}, **state}
    place.chain.ledger.give(kept.stake, 10 * TON)
    place.chain.ledger.deploy(kept.stake, Stake(owner=OWNER, unbond_delay_s=DELAY_S, **values))
    return kept.stake


def test_without_a_payout_a_provider_is_unpaid_and_unstaked(place: Place) -> None:
    told = place.provider()
    assert told.payments is None
    assert (told.stake, told.key_epoch) == (NO_DIGEST, 0)
    assert "Nobody is paid" in told.words


def test_a_provider_names_its_stake_and_its_payout(place: Place) -> None:
    stake = stake_in(place)
    told = place.provider(provider__payout="wallet", provider__stake=True)
    assert (told.stake, told.key_epoch) == (stake, 5)
    assert told.payments is not None
    assert "stake of 9 TON" in told.words
    other = place.provider(provider__payout=wallet_address(OWNER, Network.DEVNET))
    assert other.payments is not None
    assert (other.payments.payout, other.payments.wallet) == (OWNER, None)
    assert "claims --now" in other.words


NOT_STAKED = [
    ({"unlock_at": 9}, "unbonding"),
    ({"keys": {5: OperatorKey(key=b"\2" * 32, retired_at_s=0)}}, "another operator key"),
    ({"stake": 0}, "nothing is staked"),
]


@pytest.mark.parametrize(("state", "told"), NOT_STAKED, ids=[told for _, told in NOT_STAKED])
def test_a_provider_does_not_start_with_a_stake_that_would_not_answer(
    place: Place, state: dict[str, Any], told: str
) -> None:
    stake_in(place, **state)
    with pytest.raises(PaymentError, match=told):
        place.provider(provider__payout="wallet", provider__stake=True)


def test_a_provider_without_any_stake_is_told_how_to_make_one(place: Place) -> None:
    with pytest.raises(PaymentError, match="no stake") as refusal:
        place.provider(provider__payout="wallet", provider__stake=True)
    assert "stake deposit" in refusal.value.advice


def test_a_provider_whose_chain_is_away_waits_and_then_says_so(place: Place) -> None:
    stake_in(place)
    place.chain.failure = Unavailable("no liteserver answers")
    with pytest.raises(Unavailable, match="no liteserver answers"):
        place.provider(provider__payout="wallet", provider__stake=True)


BAD = [
    (("--stake",), "who is paid"),
    (("--payout", "nowhere"), "not a TON address"),
    (("--payout", "wallet", "--network", "mainnet"), "audited"),
    (("--payout", "wallet", "--network", "testnet"), "no wallet"),
]


@pytest.mark.parametrize(("words", "told"), BAD, ids=[told for _, told in BAD])
def test_serve_refuses_what_could_not_be_paid_before_it_loads_a_model(
    place: Place, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "a passphrase")
    assert main(["serve", "cocoon-tiny", "--home", str(place.home.path), *words]) == 2
    assert told in capsys.readouterr().err


# --- clients ---------------------------------------------------------------------------------------------


def account_in(place: Place, **state: Any) -> bytes:
    kept = KeptAccount(network=Network.DEVNET, owner=OWNER, salt=3)
    save_account(place.home.account_path(Network.DEVNET), kept)
    place.home.voucher_key_path(Network.DEVNET).write_bytes(b"\7" * 32)
    place.home.voucher_key_path(Network.DEVNET).chmod(0o600)
    place.chain.ledger.give(kept.account, 3 * TON)
    place.chain.ledger.deploy(kept.account, Account(owner=OWNER, salt=3, **state))
    return kept.account


def open_account(place: Place, **changes: Any) -> bytes | None:
    async def main_() -> bytes | None:
        console = Console(json_output=False, err=place.talk)
        async with paying.opened_account(place.setup(**changes), console) as payment:
            return None if payment is None else payment.account

    return trio.run(main_)


def test_a_client_pays_from_its_home_unless_it_says_otherwise(place: Place) -> None:
    assert open_account(place) is None
    account = account_in(place, key=b"\1" * 32, epoch=7)
    assert open_account(place) == account
    assert "holds 3 TON" in place.talk.getvalue()
    assert contract_address(account, Network.DEVNET) in place.talk.getvalue()
    assert open_account(place, client__account="none") is None


def test_an_account_that_is_not_open_or_cannot_be_read_is_said_and_stops_nothing(place: Place) -> None:
    account = account_in(place)
    assert open_account(place) == account
    assert "account open" in place.talk.getvalue()
    place.chain.failure = Unavailable("no liteserver answers")
    assert open_account(place) == account
    assert "once the chain can be read" in place.talk.getvalue()


def test_mainnet_is_refused_for_clients_too(place: Place) -> None:
    kept = KeptAccount(network=Network.MAINNET, owner=OWNER, salt=3)
    save_account(place.home.account_path(Network.MAINNET), kept)
    with pytest.raises(ConfigError, match="audited"):
        open_account(place, network="mainnet")


def test_the_cap_of_a_day_holds_over_restarts_of_chat(place: Place) -> None:
    prepared = place.setup(gateway__spend_request_max_ton="0.6", gateway__spend_day_max_ton="1")
    spending = DaySpending(prepared)
    first = spending.begin()
    assert first.amount_nano == 600_000_000
    spending.end(first, 500_000_000)
    again = DaySpending(prepared)
    second = again.begin()
    assert second.amount_nano == 500_000_000
    again.end(second, 500_000_000)
    with pytest.raises(SpendCapReached) as refusal:
        again.begin()
    assert refusal.value.exit_code == 4


# --- one sender at a time ----------------------------------------------------------------------------------


def test_a_wallet_in_use_is_waited_for_and_then_said(tmp_path: Path) -> None:
    journal, other = FileJournal(tmp_path / "wallet.json"), FileJournal(tmp_path / "wallet.json")

    async def main_() -> None:
        async with journal.locked():
            with pytest.raises(PaymentError, match="another cocoon is sending"):
                async with other.locked():
                    raise AssertionError("two senders")
        async with other.locked():
            pass

    trio.run(main_, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_program_says_auto_or_none_and_nothing_else() -> None:
    terms = {"bootstrap": ["/ip4/127.0.0.1/tcp/1"], "trust": trust.Open(), "network": "devnet", "timeout_s": 1.0}
    assert open_terms(**terms, home=None).pays
    assert not open_terms(**terms, home=None, account="none").pays
    with pytest.raises(ConfigError, match="auto or none"):
        open_terms(**terms, home=None, account="mine")
