"""What goes wrong at a person's desk: each slip has a clear message, something to do, and its exit code."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import World

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "cocoon" / "data" / "models" / "cocoon-tiny" / "cocoon-tiny-q8_0.gguf"
DEAD = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWFvGidPcZnSbidKtPCfU1AjFALtVNXkjnXaWriRRosrkD"


def error_of(ran: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert "Traceback" not in ran.stderr, ran.stderr
    (line,) = ran.stdout.splitlines()
    error: dict[str, Any] = json.loads(line)["error"]
    assert error["message"] in ran.stderr
    return error


def told(error: dict[str, Any]) -> str:
    return f"{error['message']}\n{error['advice']}".lower()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    assert made.wait_no_survivors(10) == []
    assert list(made.temporary.iterdir()) == []


def test_a_missing_model_file(world: World) -> None:
    ran = world.run("serve", "nowhere/model.gguf", "--json")
    assert ran.returncode == 1
    assert "nowhere/model.gguf" in told(error_of(ran))


def test_a_model_name_that_does_not_exist(world: World) -> None:
    ran = world.run("serve", "cocoon-tny", "--json")
    assert ran.returncode == 2
    assert "cocoon-tiny" in error_of(ran)["advice"]


@pytest.mark.parametrize("damage", ["random", "truncated", "empty"])
def test_a_corrupt_model_file(world: World, damage: str) -> None:
    file = world.folder / "model.gguf"
    whole = TINY.read_bytes()
    file.write_bytes({"random": b"\x00\xff" * 5_000, "truncated": whole[: len(whole) // 2], "empty": b""}[damage])
    ran = world.run("serve", str(file), "--json")
    assert ran.returncode == 1
    assert "model.gguf" in told(error_of(ran))


def test_a_model_file_that_is_not_the_one_it_was(world: World) -> None:
    file = world.folder / "model.gguf"
    whole = TINY.read_bytes()
    file.write_bytes(whole)
    with world.service("serve", str(file)) as first:
        assert first.ready["model"] == "model"
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    ran = world.run("serve", str(file), "--json")
    assert ran.returncode == 1
    error = error_of(ran)
    assert "is not the file it was" in error["message"]
    assert "SHA-256" in error["message"]
    assert error["advice"]


@pytest.mark.parametrize("command", ["node", "gateway"])
def test_a_port_in_use(world: World, command: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = {
            "node": ["node", "--listen", f"/ip4/127.0.0.1/tcp/{port}"],
            "gateway": ["gateway", "--port", str(port), "--trust", "open", "--bootstrap", DEAD],
        }[command]
        ran = world.run(*words, "--json")
    assert ran.returncode == 2
    error = error_of(ran)
    assert str(port) in error["message"]
    assert "--listen" in error["advice"] or "--port" in error["advice"]


def test_no_bootstrap_peer_is_reachable(world: World) -> None:
    commands = [["chat", "--trust", "open", "hello"], ["gateway", "--trust", "open", "--port", "0"], ["offers"]]
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda words: world.run(*words, "--bootstrap", DEAD, "--json"), commands))
    for ran in results:
        assert ran.returncode == 1
        error = error_of(ran)
        assert "/ip4/127.0.0.1/tcp/9" in error["message"], "it says what was tried"
        assert "refused" in error["message"], "and why that failed"
        assert "cocoon peers" in error["advice"]


def test_a_network_without_providers_says_what_was_tried(world: World) -> None:
    with world.service("node", "--home", str(world.folder / "node")) as node:
        bootstrap = node.ready["addresses"][0]
        ran = world.run(
            "chat", "--trust", "open", "--bootstrap", bootstrap, "--model", "cocoon-tiny", "--json", "hello"
        )
        assert ran.returncode == 1
        error = error_of(ran)
        assert error["code"] == "no_provider"
        for tried in ("dht", "gossip", "peer"):
            assert tried in told(error), tried

        ran = world.run("offers", "--wait", "1", "--bootstrap", bootstrap, "--json")
        assert ran.returncode == 1
        assert error_of(ran)["code"] == "no_provider"
