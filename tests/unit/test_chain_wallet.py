"""Words, wallet files, and what a wallet signs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytoniq_core import Cell
from pytoniq_core.crypto.keys import mnemonic_is_valid, mnemonic_to_private_key
from pytoniq_core.tlb.transaction import MessageAny

from cocoon.adapters.ton.contracts import transfer
from cocoon.adapters.ton.mnemonic import new_words, parse_words, seed_of
from cocoon.adapters.ton.wallet import WalletKey
from cocoon.adapters.ton.wallet_file import create_wallet_file, open_wallet, open_wallet_words, read_wallet_head
from cocoon.errors import ConfigError
from cocoon.types import Network, Secret

PASSPHRASE = Secret(b"correct horse battery")
FAST = {"operations": 1, "memory_bytes": 8_192}


class Dice:
    """The same bytes in every run."""

    def __init__(self, seed: bytes) -> None:
        self.state = seed

    def __call__(self, count: int, /) -> bytes:
        out = b""
        while len(out) < count:
            self.state = hashlib.sha256(self.state).digest()
            out += self.state
        return out[:count]


PHRASE = new_words(Dice(b"a wallet of the tests"))


def test_words_are_those_of_every_ton_wallet() -> None:
    assert mnemonic_is_valid(list(PHRASE))
    assert mnemonic_to_private_key(list(PHRASE))[1][:32] == seed_of(PHRASE).reveal()
    assert parse_words(" ".join(PHRASE).upper()) == PHRASE


@pytest.mark.parametrize(
    "typed",
    [
        "",
        " ".join(PHRASE[:23]),
        " ".join((*PHRASE[:23], "cocoon")),
        " ".join((PHRASE[1], PHRASE[0], *PHRASE[2:])) if PHRASE[0] != PHRASE[1] else "",
        " ".join(["abandon"] * 24),
    ],
)
def test_a_wrong_phrase_is_refused_without_showing_a_word(typed: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_words(typed)
    assert not any(word in refusal.value.diagnostics() for word in PHRASE if len(word) > 5)


def test_a_wallet_file_opens_with_its_passphrase_and_shows_nothing(tmp_path: Path) -> None:
    file = tmp_path / "wallet.json"
    head = create_wallet_file(file, PHRASE, network=Network.DEVNET, passphrase=PASSPHRASE, entropy=Dice(b"1"), **FAST)
    assert file.stat().st_mode & 0o777 == 0o600
    assert read_wallet_head(file) == head
    assert open_wallet_words(file, passphrase=PASSPHRASE) == PHRASE
    assert open_wallet(file, passphrase=PASSPHRASE).account == head.account
    assert not any(word in file.read_text() for word in PHRASE if len(word) > 5)
    with pytest.raises(ConfigError, match="does not open"):
        open_wallet(file, passphrase=Secret(b"something else"))


def test_a_wallet_file_is_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "wallet.json"
    arguments = {"network": Network.DEVNET, "passphrase": PASSPHRASE, "entropy": Dice(b"2"), **FAST}
    create_wallet_file(file, PHRASE, **arguments)
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="already"):
        create_wallet_file(file, PHRASE, **arguments)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["wallet.json"]


def test_a_short_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="passphrase"):
        create_wallet_file(
            tmp_path / "w", PHRASE, network=Network.DEVNET, passphrase=Secret(b"short"), entropy=Dice(b"3"), **FAST
        )


@pytest.mark.parametrize("field", ["network", "account", "salt", "nonce", "sealed", "operations", "version"])
def test_any_change_of_a_wallet_file_is_noticed(field: str, tmp_path: Path) -> None:
    file = tmp_path / "wallet.json"
    create_wallet_file(file, PHRASE, network=Network.DEVNET, passphrase=PASSPHRASE, entropy=Dice(b"4"), **FAST)
    value = json.loads(file.read_text())
    changed = {
        "network": int(Network.TESTNET),
        "account": "00" * 32,
        "salt": "00" * 16,
        "nonce": "00" * 24,
        "sealed": value["sealed"][:-4] + "AAA=",
        "operations": 2,
        "version": 2,
    }
    value[field] = changed[field]
    file.write_text(json.dumps(value))
    with pytest.raises(ConfigError):
        open_wallet(file, passphrase=PASSPHRASE)


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_a_file_of_anything_is_no_wallet(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "wallet.json"
        file.write_bytes(data)
        file.chmod(0o600)
        with pytest.raises(ConfigError):
            read_wallet_head(file)


def test_a_file_that_would_eat_all_memory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "wallet.json"
    create_wallet_file(file, PHRASE, network=Network.DEVNET, passphrase=PASSPHRASE, entropy=Dice(b"5"), **FAST)
    value = json.loads(file.read_text())
    file.write_text(json.dumps({**value, "memory_bytes": 1 << 40}))
    with pytest.raises(ConfigError, match="not a wallet"):
        open_wallet(file, passphrase=PASSPHRASE)


def test_a_wallet_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "wallet.json"
    create_wallet_file(file, PHRASE, network=Network.DEVNET, passphrase=PASSPHRASE, entropy=Dice(b"6"), **FAST)
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="other users"):
        read_wallet_head(file)


def test_wallets_of_different_networks_have_different_addresses() -> None:
    accounts = {WalletKey(seed_of(PHRASE), network).account for network in Network}
    assert len(accounts) == len(Network)


def test_a_message_carries_every_transfer_once_and_in_order() -> None:
    key = WalletKey(seed_of(PHRASE), Network.DEVNET)
    transfers = tuple(transfer(bytes([index]) * 32, index * 10**6) for index in range(1, 256))
    message = MessageAny.deserialize(key.message(transfers, seqno=7, valid_until_s=99).begin_parse())
    body = message.body.begin_parse()
    assert [body.load_uint(32), body.load_uint(32), body.load_uint(32), body.load_uint(32)] == [
        0x7369676E,
        key.wallet_id,
        99,
        7,
    ]
    sent = []
    actions: Cell = body.preload_ref(0)
    while actions.refs:
        part = MessageAny.deserialize(actions.refs[1].begin_parse())
        sent.append((bytes(part.info.dest.hash_part), part.info.value.grams))
        actions = actions.refs[0]
    assert sent[::-1] == [(item.to, item.amount_nano) for item in transfers]
    for wrong in ((), (*transfers, transfers[0])):
        with pytest.raises(ConfigError, match="255"):
            key.message(wrong, seqno=7, valid_until_s=99)
