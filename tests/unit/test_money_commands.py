"""The money commands over a chain in memory: what they send, show, refuse, and how they go on after a crash."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey
from pytoniq_core import Address

from cocoon.adapters.ton import contracts
from cocoon.adapters.ton.addresses import contract_address, parse_address, wallet_address
from cocoon.adapters.ton.mnemonic import new_words
from cocoon.adapters.ton.wallet_file import create_wallet_file, open_wallet_words
from cocoon.cli import main, money
from cocoon.cli.options import PASSPHRASE_VARIABLE
from cocoon.errors import ChainDisagrees, ConfigError, ProofInvalid, Unavailable
from cocoon.types import NANO_PER_TON as TON
from cocoon.types import Network, Secret
from tests.fakes.market import CountingEntropy
from tests.fakes.money_chain import FakeChain

PASSPHRASE = "correct horse battery"
PHRASE = new_words(CountingEntropy("a wallet"))
FAST = {"operations": 1, "memory_bytes": 8_192}
OTHER = bytes(range(32))


@dataclass
class Shop:
    """One home with a wallet, and the chain that it sees."""

    home: Path
    chain: FakeChain
    owner: bytes
    capsys: pytest.CaptureFixture[str]

    def run(self, *words: str, code: int = 0) -> str:
        """`cocoon WORDS`; what it printed as data."""
        assert main(list(words)) == code, self.capsys.readouterr().err
        self.talk = ""
        captured = self.capsys.readouterr()
        self.talk = captured.err
        assert "Traceback" not in captured.err
        return captured.out

    def json(self, *words: str, code: int = 0) -> dict[str, Any]:
        """The one object that it printed."""
        (line,) = self.run(*words, "--json", code=code).splitlines()
        return dict(json.loads(line))

    def error(self, *words: str, code: int) -> dict[str, Any]:
        """The error that it printed."""
        return dict(self.json(*words, code=code)["error"])


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shop:
    home = tmp_path / "home"
    head = create_wallet_file(
        home / "wallet.devnet.json",
        PHRASE,
        network=Network.DEVNET,
        passphrase=Secret(PASSPHRASE.encode()),
        entropy=CountingEntropy("file"),
        **FAST,  # type: ignore[arg-type]
    )
    chain = FakeChain()
    chain.ledger.give(head.account, 100 * TON)

    @asynccontextmanager
    async def opened(prepared: object) -> AsyncIterator[FakeChain]:
        yield chain

    monkeypatch.setattr(money, "opened_chain", opened)
    monkeypatch.setenv("COCOON_HOME", str(home))
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    return Shop(home=home, chain=chain, owner=head.account, capsys=capsys)


# --- the wallet ------------------------------------------------------------------------------------------


def test_a_new_wallets_words_are_shown_once_and_seal_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    home = tmp_path / "new"
    assert main(["wallet", "create", "--home", str(home)]) == 0
    shown = capsys.readouterr()
    words = tuple(re.findall(r"\d+ ([a-z]+)", shown.out.split("address")[0]))
    assert open_wallet_words(home / "wallet.devnet.json", passphrase=Secret(PASSPHRASE.encode())) == words
    assert not any(word in shown.err for word in words if len(word) > 6)
    assert main(["wallet", "show", "--offline", "--home", str(home)]) == 0
    assert not any(word in capsys.readouterr().out for word in words if len(word) > 6)
    assert [file.name for file in home.iterdir()] == ["wallet.devnet.json"]
    assert main(["wallet", "create", "--home", str(home)]) == 2
    assert "already" in capsys.readouterr().err


def test_a_wallet_is_restored_from_its_words_and_refuses_wrong_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    home = str(tmp_path / "again")
    monkeypatch.setattr("sys.stdin", io.StringIO(" ".join(PHRASE[:23])))
    assert main(["wallet", "import", "--home", home]) == 2
    assert "24 words" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(PHRASE)))
    assert main(["wallet", "import", "--home", home, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert set(made) == {"network", "address", "account_id", "path"}
    assert made["address"].startswith("0Q")


def test_a_wrong_passphrase_and_a_missing_one_send_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "something else entirely")
    send = ("wallet", "send", wallet_address(OTHER, Network.DEVNET), "1", "--yes")
    assert "does not open" in shop.error(*send, code=2)["message"]
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    told = shop.error(*send, code=2)
    assert PASSPHRASE_VARIABLE in told["advice"]
    assert shop.chain.submitted == []


def test_a_passphrase_file_that_others_can_read_is_refused(shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.write_text(PASSPHRASE + "\n")
    file.chmod(0o644)
    words = ("account", "open", "--yes", "--passphrase-file", str(file))
    assert "read by others" in shop.error(*words, code=2)["message"]
    file.chmod(0o600)
    assert shop.json(*words)["opened"] is True


def test_coins_are_sent_and_the_rest_is_shown(shop: Shop) -> None:
    target = wallet_address(OTHER, Network.DEVNET)
    sent = shop.json("wallet", "send", target, "1.5", "--comment", "for tea", "--yes")
    assert set(sent) == {"network", "from", "to", "amount_nano", "balance_nano", "at_s"}
    assert (sent["to"], sent["amount_nano"]) == (target, 1_500_000_000)
    assert shop.chain.ledger.balance(OTHER) == 1_500_000_000
    shown = shop.json("wallet", "show")
    assert shown["balance_nano"] == sent["balance_nano"] < 100 * TON - 1_500_000_000
    assert (shown["seqno"], shown["is_deployed"]) == (1, True)


BAD_SENDS = [
    (("UQAAAAAA", "1"), 2, "not a TON address"),
    ((wallet_address(OTHER, Network.DEVNET)[:-1] + "A", "1"), 2, "checksum"),
    ((Address((-1, OTHER)).to_str(), "1"), 2, "workchain"),
    (("0:" + OTHER.hex(), "0"), 2, "nothing"),
    (("0:" + OTHER.hex(), "-1"), 2, ""),
    (("0:" + OTHER.hex(), "1e9"), 2, "amount"),
    (("0:" + OTHER.hex(), "1.0000000001"), 2, "amount"),
    (("0:" + OTHER.hex(), "1", "--comment", "x" * 121), 2, "comment"),
    (("0:" + OTHER.hex(), "1000"), 4, "are needed"),
]


@pytest.mark.parametrize(("words", "code", "told"), BAD_SENDS, ids=[told + str(code) for _, code, told in BAD_SENDS])
def test_what_cannot_be_sent_is_refused_with_a_reason_and_nothing_leaves(
    shop: Shop, words: tuple[str, ...], code: int, told: str
) -> None:
    error = shop.error("wallet", "send", "--yes", *words, code=code)
    assert told in error["message"]
    assert shop.chain.submitted == []


def test_an_address_for_test_networks_is_refused_on_mainnet() -> None:
    text = wallet_address(OTHER, Network.TESTNET)
    assert parse_address(text, network=Network.DEVNET).account == OTHER
    assert parse_address(contract_address(OTHER, Network.DEVNET), network=Network.TESTNET).is_bounceable
    with pytest.raises(ConfigError, match="test networks"):
        parse_address(text, network=Network.MAINNET)


# --- consent ---------------------------------------------------------------------------------------------

SPENDING = [
    ("wallet", "send", "0:" + OTHER.hex(), "1"),
    ("account", "open"),
    ("account", "topup", "1"),
    ("account", "withdraw"),
    ("stake", "deposit", "1"),
    ("stake", "unbond"),
    ("stake", "withdraw"),
    ("stake", "rotate"),
    ("stake", "slash", "/dev/null"),
    ("claims", "--now"),
]


@pytest.mark.parametrize("words", SPENDING, ids=" ".join)
def test_without_a_terminal_nothing_is_spent_unless_yes_was_said(shop: Shop, words: tuple[str, ...]) -> None:
    error = shop.error(*words, code=2)
    assert "--yes" in error["advice"]
    assert shop.chain.submitted == []


@pytest.mark.parametrize("words", SPENDING, ids=" ".join)
def test_mainnet_is_refused_without_its_flag_and_what_is_unaudited_is_said(shop: Shop, words: tuple[str, ...]) -> None:
    error = shop.error(*words, "--yes", "--network", "mainnet", code=2)
    assert "audited" in error["message"]
    assert "contracts/account" in error["message"]
    assert "--unaudited-mainnet" in error["advice"]


def test_a_person_is_asked_and_anything_but_yes_spends_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(money, "is_interactive", lambda: True)
    for answer, code in (("\n", 2), ("no\n", 2), ("", 2), ("y\n", 0)):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert shop.chain.submitted == []
        shop.run("account", "open", code=code)
        assert "Go on? [y/N]" in shop.talk
        assert "24 h" in shop.talk
    assert len(shop.chain.submitted) == 1


# --- the spending account --------------------------------------------------------------------------------

ACCOUNT_FIELDS = {
    "network", "account", "account_id", "owner", "is_open", "epoch", "voucher_key", "is_our_key", "balance_nano",
    "spendable_nano", "free_nano", "bond_nano", "reserved_nano", "signed_nano", "unlock_at_s", "locked", "providers",
    "at_s",
}  # fmt: skip


def test_an_account_is_opened_topped_up_noticed_and_emptied_with_until_when(shop: Shop) -> None:
    opened = shop.json("account", "open", "--deposit", "5", "--bond", "1", "--yes")
    assert set(opened) == ACCOUNT_FIELDS | {"opened"}
    assert (opened["opened"], opened["bond_nano"], opened["is_our_key"]) == (True, TON, True)
    assert 4_990_000_000 < opened["balance_nano"] <= 5 * TON
    again = shop.json("account", "open", "--yes")
    assert (again["opened"], again["balance_nano"]) == (False, opened["balance_nano"])

    added = shop.json("account", "topup", "2", "--yes")
    assert set(added) == ACCOUNT_FIELDS | {"added_nano", "is_bond"}
    assert added["balance_nano"] - opened["balance_nano"] == pytest.approx(2 * TON, abs=10**7)
    raised = shop.json("account", "topup", "1", "--bond", "--yes")
    assert raised["bond_nano"] == pytest.approx(2 * TON, abs=10**7)

    status = shop.json("account", "status")
    assert set(status) == ACCOUNT_FIELDS
    assert {each["what"] for each in status["locked"]} == {"bond", "free", "rent"}
    assert all(each["until"] for each in status["locked"])
    assert "not before" in shop.run("account", "status")

    noticed = shop.json("account", "withdraw", "--yes")
    assert set(noticed) == ACCOUNT_FIELDS | {"phase", "received_nano"}
    assert noticed["phase"] == "notice"
    assert noticed["unlock_at_s"] == pytest.approx(shop.chain.now_s + contracts.NOTICE_S, abs=5)
    early = shop.error("account", "withdraw", "--yes", code=4)
    assert "locked until 20" in early["message"]
    shop.chain.now_s += contracts.NOTICE_S
    before = shop.chain.ledger.balance(shop.owner)
    taken = shop.json("account", "withdraw", "--yes")
    assert taken["phase"] == "withdrawn"
    assert 8 * TON < taken["received_nano"] < 8_100_000_000  # what a notice attached is in it
    assert shop.chain.ledger.balance(shop.owner) > before + 7 * TON
    assert taken["balance_nano"] < 2 * contracts.RENT_NANO  # rent, and what came with the last message
    assert taken["bond_nano"] == 0


def test_a_part_is_taken_out_and_the_bond_stays(shop: Shop) -> None:
    shop.run("account", "open", "--yes")
    shop.run("account", "withdraw", "--yes")
    assert shop.json("account", "withdraw", "--cancel", "--yes")["unlock_at_s"] is None
    assert "no notice" in shop.error("account", "withdraw", "--cancel", "--yes", code=4)["message"]
    shop.run("account", "withdraw", "--yes")
    shop.chain.now_s += contracts.NOTICE_S
    assert "beside the bond" in shop.error("account", "withdraw", "--amount", "4.5", "--yes", code=4)["message"]
    taken = shop.json("account", "withdraw", "--amount", "3", "--yes")
    assert taken["received_nano"] == 3 * TON
    assert taken["bond_nano"] == TON


def test_a_restored_home_without_the_voucher_key_gives_the_account_a_new_one(shop: Shop) -> None:
    shop.run("account", "open", "--yes")
    (shop.home / "voucher.devnet.key").unlink()
    assert not shop.json("account", "status")["is_our_key"]
    shop.run("account", "open", "--yes")
    assert "cannot pay" in shop.talk
    shop.run("account", "withdraw", "--yes")
    shop.chain.now_s += contracts.NOTICE_S
    assert shop.json("account", "withdraw", "--amount", "1", "--yes")["is_our_key"]


def test_an_account_that_was_never_opened_is_said_with_what_to_do(shop: Shop) -> None:
    for words in (("account", "status"), ("account", "topup", "1", "--yes"), ("account", "withdraw", "--yes")):
        error = shop.error(*words, code=4)
        assert "account open" in error["advice"]
    assert "bond" in shop.error("account", "open", "--deposit", "1", "--bond", "1", "--yes", code=2)["message"]
    assert shop.chain.submitted == []


def test_a_file_of_another_account_or_a_damaged_one_is_refused(shop: Shop) -> None:
    shop.run("account", "open", "--yes")
    file = shop.home / "account.devnet.json"
    value = json.loads(file.read_text())
    for changed in ({"salt": value["salt"] ^ 1}, {"owner": OTHER.hex()}, {"network": -3}, {"salt": "x"}):
        file.write_text(json.dumps({**value, **changed}))
        assert "damaged" in shop.error("account", "status", code=2)["message"]
    file.write_text("not json")
    assert shop.error("account", "status", code=2)


# --- killed ----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As good as kill -9 at this line."""


def kill(*, when: str, chain: FakeChain) -> Callable[[], None]:
    def strike() -> None:
        chain.on_submit = lambda: None
        if when == "after":
            chain.execute(chain.submitted[-1])
        raise Killed

    return strike


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "words",
    [
        ("wallet", "send", "0:" + OTHER.hex(), "1"),
        ("account", "open"),
        ("stake", "deposit", "10"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("is_first", [True, False], ids=["first message", "later message"])
def test_a_command_killed_while_it_sent_pays_once_when_it_is_run_again(
    shop: Shop, words: tuple[str, ...], when: str, is_first: bool
) -> None:
    if not is_first:
        shop.run("wallet", "send", "0:" + bytes(32).hex(), "0.1", "--yes")
    shop.chain.submitted.clear()
    before = shop.chain.ledger.balance(shop.owner)
    shop.chain.on_submit = kill(when=when, chain=shop.chain)
    assert main([*words, "--yes"]) == 1
    seqno = shop.chain.seqnos.get(shop.owner, 0)
    shop.run(*words, "--yes")
    assert shop.chain.seqnos[shop.owner] == seqno + (when == "before")
    assert len(set(shop.chain.submitted)) == 1, "the very same message"
    spent = before - shop.chain.ledger.balance(shop.owner)
    most = {"wallet": 1.1, "account": 5.1, "stake": 10.3}[words[0]] * TON
    assert spent < most
    assert list(shop.home.glob("*.pending")) == []
    shop.run(*words, "--yes")  # and a third time it is meant
    again = before - shop.chain.ledger.balance(shop.owner) - spent
    assert again > 0.9 * TON if words[0] != "account" else again == 0


def test_after_a_kill_another_command_tells_and_does_its_own_work_once(shop: Shop) -> None:
    shop.chain.on_submit = kill(when="after", chain=shop.chain)
    assert main(["wallet", "send", "0:" + OTHER.hex(), "1", "--yes"]) == 1
    shop.run("account", "open", "--yes")
    assert "interrupted" in shop.talk
    assert shop.chain.ledger.balance(OTHER) == TON
    assert shop.json("account", "status")["is_open"]


def test_a_message_that_the_servers_lost_is_offered_again_by_the_next_run(shop: Shop) -> None:
    shop.run("wallet", "send", "0:" + bytes(32).hex(), "0.1", "--yes")
    shop.chain.loses_messages = True

    def expire() -> None:
        shop.chain.now_s += 200

    shop.chain.on_submit = expire
    error = shop.error("wallet", "send", "0:" + OTHER.hex(), "1", "--yes", code=1)
    assert "expired" in error["message"]
    shop.chain.loses_messages, shop.chain.on_submit = False, lambda: None
    shop.run("wallet", "send", "0:" + OTHER.hex(), "1", "--yes")
    assert shop.chain.ledger.balance(OTHER) == TON


def test_a_damaged_journal_stops_the_wallet_until_a_person_has_looked(shop: Shop) -> None:
    (shop.home / "wallet.devnet.json.pending").write_text('{"seqno": 1}')
    error = shop.error("wallet", "send", "0:" + OTHER.hex(), "1", "--yes", code=1)
    assert "damaged" in error["message"]
    assert "delete" in error["advice"]
    assert shop.chain.submitted == []


# --- the stake -------------------------------------------------------------------------------------------

STAKE_FIELDS = {
    "network", "stake", "stake_id", "owner", "condition", "staked_nano", "balance_nano", "unbond_delay_s",
    "unlock_at_s", "epoch", "operator", "is_our_key", "retired_keys", "locked", "at_s",
}  # fmt: skip


def test_a_stake_is_deposited_rotated_unbonded_and_withdrawn(shop: Shop) -> None:
    made = shop.json("stake", "deposit", "10", "--yes")
    assert set(made) == STAKE_FIELDS | {"deposited_nano", "registered"}
    assert (made["condition"], made["is_our_key"], made["registered"]) == ("bonded", True, True)
    more = shop.json("stake", "deposit", "5", "--yes")
    assert not more["registered"]
    assert 14_900_000_000 < more["staked_nano"] < 15 * TON
    assert "locked until 7 days after" in shop.run("stake", "status")

    shop.chain.now_s += 5
    old = shop.home.joinpath("operator.key").read_bytes()
    rotated = shop.json("stake", "rotate", "--yes")
    assert set(rotated) == STAKE_FIELDS | {"rotated", "retired_key_path"}
    assert rotated["operator"] != more["operator"]
    assert rotated["is_our_key"]
    assert Path(rotated["retired_key_path"]).read_bytes() == old
    assert [key["operator"] for key in rotated["retired_keys"]] == [more["operator"]]

    assert "locked" in shop.error("stake", "withdraw", "--yes", code=4)["message"]
    unbonding = shop.json("stake", "unbond", "--yes")
    assert set(unbonding) == STAKE_FIELDS
    assert unbonding["condition"] == "unbonding"
    assert "locked until 20" in shop.error("stake", "withdraw", "--yes", code=4)["message"]
    assert "already" in shop.error("stake", "unbond", "--yes", code=4)["message"]
    assert "unbonding" in shop.error("stake", "deposit", "1", "--yes", code=4)["message"]
    shop.chain.now_s += made["unbond_delay_s"]
    out = shop.json("stake", "withdraw", "--yes")
    assert set(out) == STAKE_FIELDS | {"received_nano"}
    assert out["received_nano"] > 14_900_000_000
    assert out["condition"] == "empty"


def test_a_rotation_killed_half_way_is_finished_and_sends_nothing_twice(shop: Shop) -> None:
    shop.run("stake", "deposit", "10", "--yes")
    shop.chain.now_s += 5
    shop.chain.on_submit = kill(when="after", chain=shop.chain)
    assert main(["stake", "rotate", "--yes"]) == 1
    sent = len(shop.chain.submitted)
    done = shop.json("stake", "rotate", "--yes")
    assert done["is_our_key"]
    assert len(shop.chain.submitted) == sent
    assert not (shop.home / "operator.key.next").exists()


def test_a_stake_needs_a_delay_that_peers_accept_and_keeps_it(shop: Shop) -> None:
    assert "at least" in shop.error("stake", "deposit", "1", "--unbond-days", "1", "--yes", code=2)["message"]
    shop.run("stake", "deposit", "1", "--yes")
    assert "cannot be changed" in shop.error("stake", "deposit", "1", "--unbond-days", "9", "--yes", code=2)["message"]


def test_two_contradicting_offers_slash_the_stake_that_signed_them_once(shop: Shop, tmp_path: Path) -> None:
    from tests.fakes.equivocation import proof_of

    made = shop.json("stake", "deposit", "10", "--yes")
    operator = SigningKey(shop.home.joinpath("operator.key").read_bytes())
    stake = bytes.fromhex(made["stake_id"])
    file = tmp_path / "proof"
    file.write_bytes(proof_of(operator, stake=stake, key_epoch=made["epoch"]))
    slashed = shop.json("stake", "slash", str(file), "--yes")
    assert set(slashed) == {
        "network", "stake", "operator", "slot", "slashed_nano", "burnt_nano", "received_nano",
    }  # fmt: skip
    assert slashed["burnt_nano"] == made["staked_nano"] // 2
    assert slashed["received_nano"] >= made["staked_nano"] // 2
    assert "nothing is staked" in shop.error("stake", "slash", str(file), "--yes", code=4)["message"]

    file.write_text(proof_of(operator, stake=stake, key_epoch=made["epoch"] + 1).hex())  # hex digits do as well
    shop.run("stake", "deposit", "10", "--yes")
    assert "does not know the key" in shop.error("stake", "slash", str(file), "--yes", code=4)["message"]


@pytest.mark.parametrize("junk", [b"", b"\x00" * 400, b"\xff" * 5_000, b"zz"], ids=["empty", "zeros", "long", "text"])
def test_a_file_that_proves_nothing_is_refused(shop: Shop, tmp_path: Path, junk: bytes) -> None:
    file = tmp_path / "proof"
    file.write_bytes(junk)
    assert "proves nothing" in shop.error("stake", "slash", str(file), "--yes", code=2)["message"]
    assert shop.error("stake", "slash", str(tmp_path / "none"), "--yes", code=2)


# --- a chain that cannot be believed ---------------------------------------------------------------------

BROKEN = [
    (Unavailable("0 of 2 liteservers answered"), 1, "network"),
    (ChainDisagrees("liteservers contradict one another about block 7"), 1, "remote"),
    (ProofInvalid("liteserver 127.0.0.1:1 sent a proof of something else"), 1, "remote"),
]


@pytest.mark.parametrize(("failure", "code", "blame"), BROKEN, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("words", [("wallet", "show"), ("account", "open", "--yes"), ("stake", "status")], ids=" ".join)
def test_a_chain_that_cannot_be_believed_is_said_and_nothing_is_sent(
    shop: Shop, words: tuple[str, ...], failure: Exception, code: int, blame: str
) -> None:
    if words[0] == "stake":
        shop.run("stake", "deposit", "1", "--yes")
        shop.chain.submitted.clear()
    shop.chain.failure = failure
    error = shop.error(*words, code=code)
    assert error["message"] == str(failure)
    assert error["blame"] == blame
    assert shop.chain.submitted == []


def test_without_a_configuration_the_chain_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shop: Shop
) -> None:
    monkeypatch.undo()
    capsys.readouterr()
    assert main(["wallet", "show", "--home", str(shop.home), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert "global.config.json" in error["message"]
    assert "cocoon devnet" in error["advice"]
    file = tmp_path / "config.json"
    for text in ("", "{}", "[" * 100_000, '{"liteservers": []}'):
        file.write_text(text)
        assert main(["wallet", "show", "--home", str(shop.home), "--chain-config", str(file), "--json"]) == 2
        assert "configuration" in json.loads(capsys.readouterr().out)["error"]["message"]
