"""Unmodified TON clients on the devnet: pytoniq at trust levels 1 and 0, and tonutils."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio
from nacl.signing import SigningKey
from pytoniq.contract.wallets.wallet_v5 import WALLET_V5_R1_CODE

from cocoon.adapters.devnet.devnet import Devnet
from cocoon.adapters.ton.contracts import contract_code
from cocoon.adapters.ton.wallet import CODE_HASH, WalletKey
from cocoon.types import Network, Secret
from tests.fakes.devnet import TON, config_of, devnet_for_tests, need_node

SCRIPTS = Path(__file__).parent / "ton_scripts"
TONUTILS = "2.5.1"
RUN_TIMEOUT_S = 150
SEED = b"\x41" * 32


def run_client(command: list[str], devnet: Devnet, folder: Path, *arguments: str) -> dict[str, object]:
    """The client's process in a folder of its own; what it wrote."""
    (folder / "config.json").write_text(json.dumps(devnet.global_config()))
    code = base64.b64encode(contract_code("account").cell.to_boc()).decode()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("VIRTUAL_ENV", "PYTHON"))}
    ran = subprocess.run(
        [*command, str(folder / "config.json"), SEED.hex(), code, *arguments, str(folder / "out.json")],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    assert ran.returncode == 0, ran.stderr[-3_000:]
    seen: dict[str, object] = json.loads((folder / "out.json").read_text())
    return seen


@pytest.mark.parametrize("trust_level", [1, 0])
def test_pytoniq_deploys_deposits_claims_and_proves(trust_level: int, tmp_path: Path) -> None:
    need_node()

    async def main() -> dict[str, object]:
        async with devnet_for_tests(servers=1) as devnet, trio.open_nursery() as nursery:
            nursery.start_soon(devnet.keep_time, 0.2)
            await devnet.mint(WalletKey(Secret(SEED), Network.DEVNET).account, 10 * TON)
            command = [sys.executable, str(SCRIPTS / "pytoniq_client.py")]
            seen = await trio.to_thread.run_sync(partial(run_client, command, devnet, tmp_path, str(trust_level)))
            nursery.cancel_scope.cancel()
        return seen

    seen = trio.run(main)
    assert seen["balance"] == 10 * TON
    assert int(str(seen["paid"])) > TON
    assert (seen["history"], seen["one"], seen["network"]) == (2, True, -217)
    assert seen["method"] == seen["epoch"]


def test_tonutils_deploys_deposits_and_claims(tmp_path: Path) -> None:
    need_node()
    beside = Path(__file__).parents[2] / ".uv" / "bin" / "uv"
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv to make an environment for tonutils")
    command = [
        uv,
        "run",
        "--quiet",
        "--isolated",
        "--no-project",
        "--with",
        f"tonutils=={TONUTILS}",
        "--with",
        "pynacl",
    ]
    probe = subprocess.run([*command, "python", "-c", "import tonutils"], capture_output=True, text=True, timeout=180)
    if probe.returncode != 0:
        pytest.skip(f"tonutils cannot be had here: {probe.stderr.strip().splitlines()[-1][:200]}")

    async def main() -> dict[str, object]:
        async with devnet_for_tests(servers=1) as devnet, trio.open_nursery() as nursery:
            nursery.start_soon(devnet.keep_time, 0.2)
            await devnet.mint(await wallet_v4(), 10 * TON)
            script = [*command, "python", str(SCRIPTS / "tonutils_client.py")]
            seen = await trio.to_thread.run_sync(partial(run_client, script, devnet, tmp_path))
            nursery.cancel_scope.cancel()
        return seen

    async def wallet_v4() -> bytes:
        from pytoniq import WalletV4R2

        key = SigningKey(SEED)

        class Nobody:
            async def raw_get_account_state(self, _: object) -> tuple[None, None]:
                return None, None

        wallet = await WalletV4R2.from_data(provider=Nobody(), public_key=bytes(key.verify_key), wallet_id=698983191)
        return bytes(wallet.address.hash_part)

    seen = trio.run(main)
    assert seen["balance"] == 10 * TON
    assert int(str(seen["paid"])) > TON
    assert seen["history"] == 2
    assert seen["method"] == [seen["epoch"]]


def test_our_wallet_code_is_the_published_one() -> None:
    assert WALLET_V5_R1_CODE.hash == CODE_HASH


def test_why_pytoniqs_own_level_zero_is_not_relied_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with a validator of its own and a forged configuration is believed by it. Ours: see the chain adapter.

    When this fails, pytoniq has mended it, and the note in `cocoon/adapters/ton/proofs.py` can go.
    """
    need_node()
    monkeypatch.chdir(tmp_path)  # it keeps a file where it runs
    rich = b"\x24" * 32

    async def main() -> int:
        async with devnet_for_tests(servers=1) as devnet:
            blocks, _ = await devnet.fork()
            blocks.commit(await trio.to_thread.run_sync(lambda: blocks.ledger.mint(rich, 1_000 * TON)))
            config = devnet.global_config()
            config["liteservers"] = config["liteservers"][1:]
            assert len(config_of(devnet).servers) == 2
            return await trio.to_thread.run_sync(ask_pytoniq, config, rich)

    assert trio.run(main) > 999 * TON


def ask_pytoniq(config: dict[str, object], account: bytes) -> int:
    import asyncio

    from pytoniq import LiteClient
    from pytoniq_core import Address

    async def ask() -> int:
        client = LiteClient.from_config(config, 0, trust_level=0, timeout=5)
        await client.connect()
        try:
            return int((await client.get_account_state(Address((0, account)))).balance)
        finally:
            await client.close()

    return asyncio.run(ask())
