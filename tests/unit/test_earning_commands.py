"""`cocoon earnings` and `cocoon claims`: a node's books, read beside it, and vouchers turned into coins."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from nacl.signing import SigningKey

from cocoon.adapters.store import SqliteStore
from cocoon.adapters.ton import contracts
from cocoon.adapters.ton.addresses import contract_address
from cocoon.adapters.ton.mnemonic import new_words
from cocoon.adapters.ton.wallet_file import create_wallet_file
from cocoon.cli import main, money
from cocoon.cli.options import PASSPHRASE_VARIABLE
from cocoon.errors import Unavailable
from cocoon.pay.voucher import Voucher
from cocoon.ports import PaymentRecord, StoredClaim, StoredEarning, StoredReservation, StoredVoucher, VoucherSide
from cocoon.ports.chain import Entry
from cocoon.types import NANO_PER_TON as TON
from cocoon.types import SECOND_NS, Network, Secret
from sim.chain import Account
from tests.fakes.market import CountingEntropy, FixedClock
from tests.fakes.money_chain import FakeChain

NETWORK = Network.DEVNET
TODAY = int(time.time()) // 86_400
CLIENTS = [SigningKey(bytes((n,)) * 32) for n in (1, 2)]
OWNERS = [bytes((n,)) * 32 for n in (0xC1, 0xC2)]
ACCOUNTS = [contracts.account_address(owner, 7) for owner in OWNERS]
EPOCH = 1_790_000_000
PHRASE = new_words(CountingEntropy("a provider"))


class Books:
    """A provider's home, its database, and the chain with two clients' accounts."""

    def __init__(self, home: Path, chain: FakeChain, payout: bytes, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.chain, self.payout, self.capsys = home, chain, payout, capsys
        self.talk = ""

    def keep(self, *records: PaymentRecord) -> None:
        async def save() -> None:
            async with await SqliteStore.open(
                self.home / "cocoon.sqlite", clock=FixedClock(), entropy=CountingEntropy()
            ) as store:
                await store.save_payments(records)

        trio.run(save)

    def run(self, *words: str, code: int = 0) -> str:
        assert main(list(words)) == code
        captured = self.capsys.readouterr()
        self.talk = captured.err
        assert "Traceback" not in captured.err
        return captured.out

    def json(self, *words: str, code: int = 0) -> dict[str, Any]:
        (line,) = self.run(*words, "--json", code=code).splitlines()
        return dict(json.loads(line))

    def voucher(self, client: int, cumulative_nano: int, *, ceiling_nano: int = 0, epoch: int = EPOCH) -> StoredVoucher:
        """Signed as the contract wants it."""
        voucher = Voucher(
            network=NETWORK,
            account=ACCOUNTS[client],
            epoch=epoch,
            provider=self.payout,
            cumulative_nano=cumulative_nano,
            ceiling_nano=ceiling_nano,
        )
        return StoredVoucher(
            side=VoucherSide.HELD,
            network=int(NETWORK),
            account=ACCOUNTS[client],
            epoch=epoch,
            provider=self.payout,
            cumulative_nano=cumulative_nano,
            ceiling_nano=ceiling_nano,
            key=bytes(CLIENTS[client].verify_key),
            signature=CLIENTS[client].sign(voucher.encode()).signature,
            clean_tokens=0,
            at_ns=1,
        )

    def earning(self, client: int, day: int, requests: int, model: str = "tiny") -> StoredEarning:
        return StoredEarning(
            network=int(NETWORK),
            provider=self.payout,
            account=ACCOUNTS[client] if client >= 0 else bytes(32),
            model=model.encode().ljust(32, b"-"),
            model_name=model,
            day=day,
            requests=requests,
            prompt_tokens=100 * requests,
            cached_tokens=10 * requests,
            completion_tokens=200 * requests,
            due_nano=1_000_000 * requests if client >= 0 else 0,
        )


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Books:
    home, chain = tmp_path / "home", FakeChain()
    head = create_wallet_file(
        home / "wallet.devnet.json",
        PHRASE,
        network=NETWORK,
        passphrase=Secret(b"a passphrase"),
        entropy=CountingEntropy("file"),
        operations=1,
        memory_bytes=8_192,
    )
    chain.ledger.give(head.account, TON)
    for account, owner, key in zip(ACCOUNTS, OWNERS, CLIENTS, strict=True):
        chain.ledger.give(account, 3 * TON)
        chain.ledger.deploy(account, Account(owner=owner, salt=7, key=bytes(key.verify_key), epoch=EPOCH, bond=TON))

    @asynccontextmanager
    async def opened(prepared: object) -> AsyncIterator[FakeChain]:
        yield chain

    monkeypatch.setattr(money, "opened_chain", opened)
    monkeypatch.setenv("COCOON_HOME", str(home))
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "a passphrase")
    return Books(home, chain, head.account, capsys)


EARNINGS_FIELDS = {
    "network", "payout", "by", "since", "rows", "total", "held_nano", "claimed_nano", "unclaimed_nano",
}  # fmt: skip


def test_earnings_add_up_by_day_by_client_and_by_model(books: Books) -> None:
    books.keep(
        books.earning(0, TODAY, 3),
        books.earning(1, TODAY, 1),
        books.earning(0, TODAY - 1, 2, "large"),
        books.earning(-1, TODAY, 5),
        books.earning(0, TODAY - 400, 9),
        books.voucher(0, 5_000_000),
    )
    by_day = books.json("earnings")
    assert set(by_day) == EARNINGS_FIELDS
    assert [(row["requests"], row["due_nano"]) for row in by_day["rows"]] == [(2, 2_000_000), (9, 4_000_000)]
    by_client = books.json("earnings", "--by", "client")["rows"]
    names = [contract_address(account, NETWORK) for account in ACCOUNTS]
    assert [(row["client"], row["due_nano"]) for row in by_client] == [
        (names[0], 5_000_000),
        (names[1], 1_000_000),
        ("unpaid", 0),
    ]
    by_model = books.json("earnings", "--by", "model")
    assert [row["model"].split("@")[0] for row in by_model["rows"]] == ["tiny", "large"]
    for shown in (by_day, by_model):
        assert shown["total"] == {
            "requests": 11,
            "prompt_tokens": 1_100,
            "cached_tokens": 110,
            "completion_tokens": 2_200,
            "due_nano": 6_000_000,
        }
        assert (shown["held_nano"], shown["claimed_nano"], shown["unclaimed_nano"]) == (5_000_000, 0, 5_000_000)
    assert books.json("earnings", "--days", "500")["total"]["requests"] == 20
    assert "0.006" in books.run("earnings")


def test_nobody_who_earned_nothing_sees_an_error_and_bad_words_are_refused(books: Books) -> None:
    assert books.json("earnings")["rows"] == []
    assert books.json("claims")["ledgers"] == []
    books.json("earnings", "--by", "hour", code=2)
    books.json("earnings", "--days", "0", code=2)
    books.json("earnings", "--payout", "nowhere", code=2)


CLAIMS_FIELDS = {"network", "payout", "ledgers", "submitted", "at_s"}
LEDGER_FIELDS = {
    "account", "epoch", "is_current", "signed_nano", "claimed_nano", "unclaimed_nano", "claimable_nano",
    "reserved_nano", "claim_before_s",
}  # fmt: skip


def test_claims_are_shown_made_in_one_message_and_never_paid_twice(books: Books) -> None:
    books.keep(
        books.voucher(0, 300_000_000, ceiling_nano=400_000_000),
        books.voucher(1, 100_000),  # not worth its fee
        books.voucher(1, 50_000_000, epoch=EPOCH - 5),  # of an epoch that is over
        StoredClaim(
            network=int(NETWORK), account=ACCOUNTS[0], epoch=EPOCH, provider=books.payout, cumulative_nano=1,
            ceiling_nano=0, submitted_ns=2 * SECOND_NS,
        ),
    )  # fmt: skip
    shown = books.json("claims")
    assert set(shown) == CLAIMS_FIELDS
    assert all(set(ledger) == LEDGER_FIELDS for ledger in shown["ledgers"])
    assert {(one["unclaimed_nano"], one["is_current"], one["claimable_nano"]) for one in shown["ledgers"]} == {
        (300_000_000, True, 300_000_000),
        (100_000, True, 100_000),
        (50_000_000, False, 0),
    }
    assert shown["submitted"][0]["confirmed_s"] is None
    assert "void" in books.run("claims")

    done = books.json("claims", "--now", "--yes")
    assert set(done) == CLAIMS_FIELDS | {"claims", "paid_nano"}
    assert (done["claims"], done["paid_nano"]) == (1, 300_000_000)
    account = books.chain.ledger.contracts[ACCOUNTS[0]]
    assert isinstance(account, Account)
    assert account.entries[books.payout] == Entry(claimed_nano=300_000_000, ceiling_nano=400_000_000)
    sent = len(books.chain.submitted)
    again = books.json("claims", "--now", "--yes", code=4)["error"]
    assert "nothing is worth claiming" in again["message"]
    assert len(books.chain.submitted) == sent


def test_a_client_that_gave_notice_is_shown_with_the_last_moment(books: Books) -> None:
    books.keep(books.voucher(0, 300_000_000))
    from dataclasses import replace

    account = books.chain.ledger.contracts[ACCOUNTS[0]]
    assert isinstance(account, Account)
    unlock_at_s = books.chain.now_s + 3_600
    books.chain.ledger.contracts[ACCOUNTS[0]] = replace(account, unlock_at=unlock_at_s)
    assert books.json("claims")["ledgers"][0]["claim_before_s"] == unlock_at_s
    assert "NOTICE: claim before 20" in books.run("claims")


def test_without_the_chain_the_books_are_shown_and_nothing_is_claimed(books: Books) -> None:
    books.keep(
        books.voucher(0, 300_000_000),
        StoredReservation(
            network=int(NETWORK), account=ACCOUNTS[0], epoch=EPOCH, provider=books.payout, claimed_nano=100_000_000,
            ceiling_nano=100_000_000, proven_s=5, at_ns=1,
        ),
    )  # fmt: skip
    books.chain.failure = Unavailable("no liteserver answers")
    shown = books.json("claims")
    assert shown["at_s"] is None
    (ledger,) = shown["ledgers"]
    assert (ledger["claimed_nano"], ledger["unclaimed_nano"], ledger["claimable_nano"]) == (
        100_000_000, 200_000_000, None,
    )  # fmt: skip
    assert "no liteserver answers" in books.talk
    assert "no liteserver answers" in books.json("claims", "--now", "--yes", code=1)["error"]["message"]
    assert books.json("earnings")["claimed_nano"] == 100_000_000


def test_the_books_are_read_while_the_node_writes_them_and_left_as_they_are(books: Books) -> None:
    async def main_() -> None:
        async with await SqliteStore.open(
            books.home / "cocoon.sqlite", clock=FixedClock(), entropy=CountingEntropy()
        ) as store:
            await store.save_payments((books.earning(0, TODAY, 1), books.voucher(0, 7)))
            shown = await trio.to_thread.run_sync(books.json, "earnings")
            assert shown["total"]["requests"] == 1
            await store.save_payments((books.earning(0, TODAY, 1),))
            shown = await trio.to_thread.run_sync(books.json, "earnings")
            assert (shown["total"]["requests"], shown["held_nano"]) == (2, 7)

    trio.run(main_)


def test_a_database_that_is_not_ours_is_refused(books: Books) -> None:
    (books.home / "cocoon.sqlite").write_bytes(b"not a database at all" * 100)
    error = books.json("earnings", code=1)["error"]
    assert error["code"] == "store_error"
