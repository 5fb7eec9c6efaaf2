"""What payment adds to a token: one whole market in this process, streaming the same answers unpaid and paid.

Run it with `python -m tests.benchmarks.bench_paid_market`.

Client, provider, sessions, sealing and signatures are real; the wire is in memory, the clock virtual, the chain a small
ledger. Counted is CPU time of the process, both ends together. "chunks" are sealed pieces: eight streams at 50 tokens/s
share a frame every 20 ms, so a chunk is a token. What a database adds per voucher is in `bench_pay`.
"""

from __future__ import annotations

import time

import trio
import trio.testing

from cocoon.client import Client
from cocoon.types import NANO_PER_TON
from tests.fakes.engine import ScriptedEngine
from tests.fakes.little_market import LittleMarket, ask, open_market
from tests.fakes.pay import PAYOUT

STREAMS = 8
TOKENS = 2_000
PRICE = 300_000_000


async def streams(client: Client) -> int:
    """Tokens that came over all streams."""
    came = 0

    async def one() -> None:
        nonlocal came
        async with client.generate("chat.completions", ask(max_tokens=TOKENS), spend_max_nano=NANO_PER_TON) as reply:
            async for delta in reply:
                came += len(delta.token_ids)

    async with trio.open_nursery() as nursery:
        for _ in range(STREAMS):
            nursery.start_soon(one)
    return came


def engine() -> ScriptedEngine:
    return ScriptedEngine(
        " ".join(f"w{n}" for n in range(TOKENS)), token_s=0.02, slots=STREAMS, context_tokens_max=100_000
    )


async def measure(market: LittleMarket, *, is_paid: bool) -> tuple[float, int]:
    """CPU µs per token, and vouchers."""
    provider = await market.add_provider("provider", engine(), output_nano=PRICE, payout=PAYOUT if is_paid else None)
    client = await market.add_client(account=market.open_account() if is_paid else None)
    before = time.process_time()
    came = await streams(client)
    cpu_us = (time.process_time() - before) * 1e6 / came
    earned = provider.role.earned
    return cpu_us, 0 if earned is None else earned.vouchers


def run(*, is_paid: bool) -> tuple[float, int]:
    async def main() -> tuple[float, int]:
        async with open_market() as market:
            return await measure(market, is_paid=is_paid)

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


if __name__ == "__main__":
    for _ in range(3):
        free, _ = run(is_paid=False)
        paid, vouchers = run(is_paid=True)
        print(
            f"unpaid {free:6.1f} us of CPU per token, paid {paid:6.1f}: {paid - free:5.1f} more; "
            f"{vouchers} vouchers for {STREAMS * TOKENS} tokens"
        )
