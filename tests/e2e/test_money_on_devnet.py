"""The money commands against the devnet: a real virtual machine, real proofs, a clock that can be moved, and liars."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from nacl.signing import SigningKey

from cocoon.adapters.clock import SystemClock
from cocoon.adapters.store import SqliteStore
from cocoon.adapters.ton.mnemonic import parse_words
from cocoon.adapters.ton.wallet_file import create_wallet_file
from cocoon.cli import main
from cocoon.cli.options import PASSPHRASE_VARIABLE
from cocoon.types import NANO_PER_TON as TON
from cocoon.types import SECOND_NS, Network, Secret
from tests.fakes.devnet import PACKAGES, need_node
from tests.fakes.equivocation import proof_of
from tests.fakes.market import CountingEntropy, FixedClock

DAY_S = 86_400


class RealDevnet:
    """`cocoon devnet` as a process, and a home with its faucet as the wallet."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "devnet").mkdir(parents=True)
        (home / "devnet" / "npm").symlink_to(PACKAGES)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "cocoon", "devnet", "--on-demand", "--control", "--json"),
                *("--home", str(home)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        ready = self._line()
        create_wallet_file(
            home / "wallet.devnet.json",
            parse_words(ready["faucet"]["words"]),
            network=Network.DEVNET,
            passphrase=Secret(b"a passphrase"),
            entropy=CountingEntropy("wallet"),
            operations=1,
            memory_bytes=8_192,
        )

    def tell(self, command: str) -> dict[str, Any]:
        """One control command's answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self._line()
        assert "error" not in answer, answer
        return answer

    def faults(self, server: int, **faults: object) -> None:
        """What this server does wrong from now on."""
        honest = {"drop_connections": False, "silent": False, "error_code": None, "lie": None, "stale_at": None}
        self.tell(f"faults {server} {json.dumps({**honest, **faults})}")

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        watchdog = threading.Timer(60, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        assert line, "the devnet ended"
        return dict(json.loads(line))

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.communicate(timeout=20)


@pytest.fixture(scope="module")
def devnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealDevnet]:
    need_node()
    real = RealDevnet(tmp_path_factory.mktemp("devnet") / "home")
    yield real
    real.close()


@pytest.fixture
def cocoon(devnet: RealDevnet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`cocoon WORDS --json` in the devnet's home: the object that it printed."""
    devnet.faults(0)
    devnet.faults(1)
    monkeypatch.setenv("COCOON_HOME", str(devnet.home))
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "a passphrase")

    def run(*words: str, code: int = 0) -> dict[str, Any]:
        assert main([*words, "--json"]) == code, capsys.readouterr()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        (line,) = captured.out.splitlines()
        return dict(json.loads(line))

    return run


# --- a chain that lies: before the clock is moved -----------------------------------------------------------


def test_a_server_that_drops_falls_silent_or_fails_is_named_and_one_honest_server_does_at_level_0(
    devnet: RealDevnet, cocoon: Any
) -> None:
    assert cocoon("wallet", "show")["balance_nano"] > TON
    for faults in ({"drop_connections": True}, {"error_code": 652}):
        devnet.faults(1, **faults)
        error = cocoon("wallet", "show", code=1)["error"]
        assert "two must agree" in error["message"]
        assert "127.0.0.1:" in error["message"]
        assert cocoon("wallet", "show", "--chain-trust", "0")["balance_nano"] > TON
    devnet.faults(0, drop_connections=True)
    error = cocoon("account", "open", "--yes", code=1)["error"]
    assert error["blame"] == "network"
    assert "cocoon devnet" in error["advice"]
    devnet.faults(0)
    devnet.faults(1)
    assert cocoon("wallet", "show")["seqno"] == 0, "nothing was sent"


@pytest.mark.parametrize("lie", ["absent", "rich", "other", "old_proof"])
def test_a_lie_of_one_server_is_passed_over_and_of_all_is_named(devnet: RealDevnet, cocoon: Any, lie: str) -> None:
    devnet.tell(f"mint 0:{'07' * 32} 1")  # another account to show instead
    true = cocoon("wallet", "show")["balance_nano"]
    devnet.faults(0, lie=lie)
    assert cocoon("wallet", "show")["balance_nano"] == true
    devnet.faults(1, lie=lie)
    for level in ("0", "1"):
        error = cocoon("wallet", "show", "--chain-trust", level, code=1)["error"]
        assert (error["code"], error["blame"]) == ("proof_invalid", "remote")
        assert "liteserver 127.0.0.1:" in error["message"]


def test_servers_that_show_an_old_chain_are_not_believed(
    devnet: RealDevnet, cocoon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SystemClock, "now", lambda self: _now() + 120 * SECOND_NS)
    error = cocoon("account", "open", "--yes", code=1)["error"]
    assert "s old" in error["message"]
    assert "clock" in error["advice"]


def _now() -> int:
    import time

    return time.time_ns()


def test_a_forked_server_stops_everything_at_level_1_and_deceives_nobody_at_level_0(
    devnet: RealDevnet, cocoon: Any, tmp_path: Path
) -> None:
    file = tmp_path / "two.json"
    file.write_text(json.dumps(devnet.tell("fork")["config"]))
    error = cocoon("wallet", "show", "--chain-config", str(file), code=1)["error"]
    assert error["code"] == "chain_disagrees"
    assert "contradict" in error["message"]
    assert "remove the one that is wrong" in error["advice"]
    assert cocoon("wallet", "show", "--chain-config", str(file), "--chain-trust", "0")["balance_nano"] > TON


# --- money ---------------------------------------------------------------------------------------------------


def test_an_account_lives_from_its_opening_to_its_last_coin(devnet: RealDevnet, cocoon: Any) -> None:
    opened = cocoon("account", "open", "--yes")
    assert opened["opened"]
    assert opened["bond_nano"] == TON
    assert cocoon("account", "topup", "2.5", "--yes")["balance_nano"] == pytest.approx(7.5 * TON, abs=10**7)
    status = cocoon("account", "status")
    assert status["spendable_nano"] == pytest.approx(6.45 * TON, abs=10**7)
    noticed = cocoon("account", "withdraw", "--yes")
    assert noticed["unlock_at_s"] - noticed["at_s"] == pytest.approx(DAY_S, abs=10)
    assert "locked until" in cocoon("account", "withdraw", "--yes", code=4)["error"]["message"]
    devnet.tell(f"advance {DAY_S}")
    taken = cocoon("account", "withdraw", "--yes")
    assert taken["phase"] == "withdrawn"
    assert taken["received_nano"] == pytest.approx(7.5 * TON, abs=10**8)
    assert cocoon("account", "status")["balance_nano"] < 10**8


def test_a_stake_is_deposited_rotated_unbonded_and_withdrawn(devnet: RealDevnet, cocoon: Any) -> None:
    made = cocoon("stake", "deposit", "20", "--yes")
    assert made["is_our_key"]
    assert made["staked_nano"] == pytest.approx(20 * TON, abs=3 * 10**8)  # and what came with messages
    devnet.tell("advance 5")
    rotated = cocoon("stake", "rotate", "--yes")
    assert rotated["operator"] != made["operator"]
    assert len(rotated["retired_keys"]) == 1
    assert cocoon("stake", "unbond", "--yes")["condition"] == "unbonding"
    assert "locked until" in cocoon("stake", "withdraw", "--yes", code=4)["error"]["message"]
    devnet.tell(f"advance {made['unbond_delay_s']}")
    assert cocoon("stake", "withdraw", "--yes")["received_nano"] == pytest.approx(
        20 * TON, abs=3 * 10**8
    )  # and what came with messages
    assert cocoon("stake", "status")["condition"] == "empty"


def test_a_node_exports_the_proof_it_saw_and_anybody_slashes_with_it(
    devnet: RealDevnet, cocoon: Any, tmp_path: Path
) -> None:
    made = cocoon("stake", "deposit", "10", "--yes")
    operator = SigningKey((devnet.home / "operator.key").read_bytes())
    proof = proof_of(operator, stake=bytes.fromhex(made["stake_id"]), key_epoch=made["epoch"])

    async def seen() -> None:
        async with await SqliteStore.open(
            devnet.home / "cocoon.sqlite", clock=FixedClock(), entropy=CountingEntropy()
        ) as store:
            await store.save_proof(b"\5" * 32, proof)

    trio.run(seen)
    (exported,) = cocoon("stake", "proofs", "--save", str(tmp_path))["proofs"]
    assert exported["is_slashable"]
    slashed = cocoon("stake", "slash", exported["path"], "--yes")
    assert slashed["burnt_nano"] == made["staked_nano"] // 2
    assert slashed["received_nano"] >= made["staked_nano"] // 2
    assert cocoon("stake", "status")["condition"] == "empty"
    assert "nothing is staked" in cocoon("stake", "slash", exported["path"], "--yes", code=4)["error"]["message"]
