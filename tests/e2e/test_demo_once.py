"""`cocoon demo --once` and the end of a demo: the promised object, and nothing left behind."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import Service, World

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("level", "words"), [("simulated", ()), ("open", ("--open", "--no-money"))], ids=["paid", "open and unpaid"]
)
def test_one_question_goes_through_the_whole_path_and_prints_the_promised_object(
    tmp_path: Path, level: str, words: tuple[str, ...]
) -> None:
    world = World(tmp_path)
    is_paid = "--no-money" not in words
    if is_paid:
        world.bring_packages()
    started_at = time.monotonic()
    ran = world.run("demo", "--once", "What is Cocoon?", "--json", *words)
    took_s = time.monotonic() - started_at
    assert ran.returncode == 0, ran.stderr
    (line,) = ran.stdout.splitlines()
    answer = json.loads(line)
    assert set(answer) == {
        "answer",
        "model",
        "provider",
        "offer",
        "usage",
        "receipt",
        "ttft_ms",
        "providers_seen",
        "trust",
        "money",
    }
    assert "peer-to-peer" in answer["answer"]
    assert answer["model"] == "cocoon-tiny"
    assert answer["provider"].startswith("12D3KooW")
    assert len(bytes.fromhex(answer["offer"])) == 32
    usage = answer["usage"]
    assert set(usage) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 10
    receipt = answer["receipt"]
    assert receipt["verified"] is True
    assert receipt["completion_tokens"] == usage["completion_tokens"]
    assert receipt["due_nano"] > 0
    assert len(bytes.fromhex(receipt["signature"])) == 64
    assert 0 < answer["ttft_ms"] < 10_000
    assert answer["providers_seen"] == 3
    assert answer["trust"] == level

    if is_paid:
        _is_settled(answer["money"], due_nano=receipt["due_nano"])
        assert "claimed on chain in block" in ran.stderr
    else:
        assert answer["money"] is None

    assert f"rust level {level}" in ran.stderr
    assert "operator of a provider can read prompts" in ran.stderr
    assert "TEST MODEL" in ran.stderr
    print(f"the whole demo took {took_s:.1f} s")
    assert world.wait_no_survivors(5) == []
    assert list(world.temporary.iterdir()) == []


def _is_settled(money: dict[str, Any], *, due_nano: int) -> None:
    """To the nanoTON: the receipt's sum is the voucher's, the chain pays it, and the account lost it."""
    assert set(money) == {
        "account", "balance_before_nano", "chain_config", "vouchers_nano", "claims", "balance_after_nano",
    }  # fmt: skip
    assert money["vouchers_nano"] == due_nano
    (claim,) = money["claims"]
    assert set(claim) == {
        "provider", "payer", "amount_nano", "fee_nano", "block", "account_before_nano", "account_after_nano",
    }  # fmt: skip
    assert claim["amount_nano"] == due_nano
    lost_nano = money["balance_before_nano"] - money["balance_after_nano"]
    assert due_nano <= lost_nano <= due_nano + 10_000, "what is more is rent"


def test_a_demo_without_the_devnets_packages_says_so_in_a_line_and_answers_unpaid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    world = World(tmp_path)
    ran = world.run("demo", "--once", "What is Cocoon?", "--json", "--providers", "1")
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert answer["money"] is None
    assert "peer-to-peer" in answer["answer"]
    (line,) = [line for line in ran.stderr.splitlines() if "No money" in line]
    assert "npm packages could not be fetched" in line or "Node.js" in line


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name
)
def test_however_a_demo_ends_no_process_is_left(tmp_path: Path, number: signal.Signals) -> None:
    world = World(tmp_path)
    is_paid = number is signal.SIGKILL  # the hardest end, with the most processes
    if is_paid:
        world.bring_packages()
    words = () if is_paid else ("--no-money",)
    with world.service("demo", "--port", "0", "--providers", "1", *words) as demo:
        # the demo, the node, the provider; the devnet and its virtual machine
        assert len(world.survivors()) >= (5 if is_paid else 3)
        if is_paid:
            _a_chat_is_paid_and_claimed(world, demo)
        code = demo.stop(number)
    assert code == (-9 if number is signal.SIGKILL else 0)
    assert world.wait_no_survivors(12) == []
    left = list(world.temporary.glob("cocoon-demo-*"))
    if number is signal.SIGKILL:
        _next_demo_removes(left, world)
    assert list(world.temporary.glob("cocoon-demo-*")) == []


def _a_chat_is_paid_and_claimed(world: World, demo: Service) -> None:
    """Beside the gateway, from an account of its own; the demo shows the claim."""
    folder = Path(demo.ready["money"]["chain_config"]).parents[1]
    words = ("--bootstrap", demo.ready["bootstrap"], "--trust", "simulated")
    free = world.run("chat", "What is Cocoon?", *words, "--json")
    assert free.returncode == 4
    assert "cocoon account open" in free.stdout
    ran = world.run("chat", "What is Cocoon?", *words, "--home", str(folder / "chat"), "--json")
    assert ran.returncode == 0, ran.stderr
    cost_nano = json.loads(ran.stdout.splitlines()[-1])["cost_nano"]
    assert demo.process.stdout is not None
    claimed = json.loads(demo.process.stdout.readline())
    assert (claimed["event"], claimed["payer"], claimed["amount_nano"]) == ("claimed", "the chat's account", cost_nano)
    earned = json.loads(world.run("earnings", "--json", "--home", str(folder / "provider-1")).stdout)
    assert earned["total"]["due_nano"] == earned["held_nano"] == cost_nano


def _next_demo_removes(left: list[Path], world: World) -> None:
    """A killed demo cannot clear up; the next one does, and leaves alone what is still in use."""
    import tempfile

    from cocoon.cli.demo_network import demo_directory

    assert len(left) == 1
    before, tempfile.tempdir = tempfile.tempdir, str(world.temporary)
    try:
        with demo_directory(None) as mine, demo_directory(None) as other:
            assert not left[0].exists()
            assert mine.is_dir()
            assert other.is_dir()
            assert mine != other
    finally:
        tempfile.tempdir = before


def test_a_demo_whose_port_is_taken_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    import socket

    world = World(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = world.run("demo", "--port", str(port), "--providers", "1", "--no-money", "--json")
    assert ran.returncode in (1, 2)
    assert str(port) in json.loads(ran.stdout)["error"]["message"]
    assert "Traceback" not in ran.stderr
    assert world.wait_no_survivors(5) == []
    assert list(world.temporary.iterdir()) == []
