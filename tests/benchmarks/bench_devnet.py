"""How many transactions a second the devnet runs: `python -m tests.benchmarks.bench_devnet [SECONDS]`.

Whole wallet messages in, with everything that follows from them: signature checks on the real virtual machine, routing,
state, history. Three kinds: a transfer (wallet, receiver), a claim (wallet, account, payout), and a message that
carries a hundred claims. Blocks close once a second beside it, as in `cocoon devnet`. The last column counts the
processor time of both processes, so that a busy machine does not matter.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import trio
from nacl.signing import SigningKey

from cocoon.adapters.devnet.devnet import Devnet, DevnetSettings, open_devnet
from cocoon.adapters.ton import contracts, operations
from cocoon.pay.voucher import Voucher, sign_voucher
from cocoon.ports.chain import Transfer
from cocoon.types import Network
from tests.fakes.devnet import PACKAGES, TON, need_node

V = SigningKey(b"\7" * 32)
FAR_S = 1 << 31


class Sender:
    """The faucet, which counts its own seqno."""

    def __init__(self, devnet: Devnet) -> None:
        self.devnet, self.seqno, self.transactions = devnet, 0, 0

    async def send(self, *transfers: Transfer) -> None:
        message = self.devnet.faucet.message(transfers, seqno=self.seqno, valid_until_s=FAR_S)
        self.transactions += len(await self.devnet.submit(message))
        self.seqno += 1


async def measure(sender: Sender, seconds: float, name: str, make: Callable[[int], tuple[Transfer, ...]]) -> None:
    """Send for so long; print what came of it."""
    messages, before, start, used_s = 0, sender.transactions, time.perf_counter(), cpu_s(sender.devnet)
    while time.perf_counter() - start < seconds:
        await sender.send(*make(messages))
        messages += 1
    took_s = time.perf_counter() - start
    transactions = sender.transactions - before
    used_s = cpu_s(sender.devnet) - used_s
    print(
        f"{name:<24} {messages / took_s:6.1f} messages/s {transactions / took_s:6.1f} transactions/s "
        f"{transactions / used_s:6.1f} transactions per second of processor time"
    )


def cpu_s(devnet: Devnet) -> float:
    """Of this process and of the virtual machine's."""
    fields = Path(f"/proc/{devnet.tvm._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def main(seconds: float) -> None:
    """All three."""
    async with open_devnet(DevnetSettings(), cache=PACKAGES) as devnet:
        sender = Sender(devnet)
        owner = devnet.faucet.account
        account, opening = operations.open_account(
            owner, 1, voucher_key=bytes(V.verify_key), deposit_nano=10_000 * TON, bond_nano=TON
        )
        await sender.send(opening)
        epoch = devnet.blocks.ledger.now_s

        def claim(number: int) -> Transfer:
            voucher = Voucher(
                network=Network.DEVNET,
                account=account,
                epoch=epoch,
                provider=(number % 16 + 1).to_bytes(32, "big"),
                cumulative_nano=(number // 16 + 1) * 1_000_000,
            )
            return operations.claims((sign_voucher(voucher, lambda message: V.sign(message).signature),))[0]

        await measure(
            sender, seconds, "transfer", lambda number: (contracts.transfer(b"\3" * 32, 10**7, bounce=False),)
        )
        await measure(sender, seconds, "claim", lambda number: (claim(number),))
        far = 10**6
        await measure(
            sender,
            seconds,
            "100 claims in a message",
            lambda number: tuple(claim(far + number * 100 + n) for n in range(100)),
        )


if __name__ == "__main__":
    need_node()
    trio.run(main, float(sys.argv[1]) if len(sys.argv) > 1 else 5.0)
