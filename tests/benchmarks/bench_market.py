"""What the market costs: verdicts per second, a choice among 100 and 1,000 offers, memory per offer, commits.

    python -m tests.benchmarks.bench_market [--json]

One process, one thread (the store adds its worker). Offers are signed before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import trio

from cocoon.adapters.clock import SystemClock, entropy
from cocoon.adapters.store import SqliteStore
from cocoon.market.book import OfferBook
from cocoon.market.history import History
from cocoon.market.offer import parse_offer, verify_parsed
from cocoon.market.selection import Wish, gather, select
from cocoon.market.table import BookLimits
from cocoon.types import PeerId, Prices, TrustLevel, ton
from tests.fakes.market import MODEL, NET, NOW, SPEC, Key, beacon_bytes, offer_bytes

OFFERS = 1_000
ROOMY = BookLimits(unstaked_offers_max=OFFERS)


def rate(work: Callable[[], int]) -> float:
    """Units per CPU second, so that a busy machine does not matter."""
    start = time.process_time()
    count = work()
    return count / (time.process_time() - start)


def fill(book: OfferBook, messages: list[bytes]) -> int:
    for n, message in enumerate(messages):
        book.receive_offer(PeerId(f"neighbour {n // 300}"), message, now=NOW)
    assert len(book) == len(messages)
    return len(messages)


def measure_book(messages: list[bytes]) -> dict[str, float]:
    book = OfferBook(NET, limits=ROOMY)
    fresh = rate(lambda: fill(book, messages))

    def duplicates() -> int:
        for message in messages:
            book.receive_offer(PeerId("another"), message, now=NOW)
        return len(messages)

    def parse() -> int:
        for message in messages:
            parse_offer(message, network=NET)
        return len(messages)

    parsed = [parse_offer(message, network=NET) for message in messages]

    def verify() -> int:
        for each in parsed:
            verify_parsed(each)
        return len(parsed)

    beacons = [beacon_bytes(Key(f"o{n}"), Key(f"p{n}")) for n in range(300)]

    def hear() -> int:
        for beacon in beacons:
            book.receive_beacon(PeerId("another"), beacon, now=NOW)
        return len(beacons)

    result = {
        "offers_per_s": fresh,
        "duplicates_per_s": rate(duplicates),
        "parse_per_s": rate(parse),
        "two_signatures_per_s": rate(verify),
        "beacons_per_s": rate(hear),
    }
    tracemalloc.start()
    full = OfferBook(NET, limits=ROOMY)
    fill(full, [bytes(bytearray(message)) for message in messages])
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    result["bytes_per_offer"] = held / len(messages)
    return result


def measure_selection(messages: list[bytes]) -> dict[str, float]:
    book = OfferBook(NET, limits=ROOMY)
    fill(book, messages)
    listed = book.listed(MODEL, now=NOW)
    history = History()
    for each in listed[::3]:
        history.succeeded(each.reputation_key, model=MODEL, first_token_ms=150, tokens_per_s=40, now=NOW)
    wish = Wish(
        model=MODEL, trust_min=TrustLevel.OPEN, spend_max_nano=ton("1"), prompt_tokens=500, output_tokens_max=512
    )
    result = {}
    for count in (10, 100, 1_000):
        rounds = 2_000 // count

        def choose(count: int = count, rounds: int = rounds) -> int:
            for n in range(rounds):
                select(gather(listed[:count], history), wish, now=NOW, seed=n.to_bytes(32, "big"))
            return rounds

        result[f"select_{count}_us"] = 1e6 / rate(choose)
    result["list_1000_us"] = 1e6 / rate(lambda: sum(len(book.listed(MODEL, now=NOW)) > 0 for _ in range(20)))
    return result


async def measure_store(folder: Path) -> dict[str, float]:
    async with await SqliteStore.open(folder / "cocoon.db", clock=SystemClock(), entropy=entropy) as store:
        start = time.perf_counter()
        for n in range(200):
            await store.claim_slot(n.to_bytes(32, "big"), bytes(32))
        alone = 200 / (time.perf_counter() - start)
        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for n in range(5_000):
                nursery.start_soon(store.claim_slot, (1_000 + n).to_bytes(32, "big"), bytes(32))
        return {"commits_per_s": alone, "grouped_writes_per_s": 5_000 / (time.perf_counter() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    messages = [
        offer_bytes(Key(f"o{n}"), Key(f"p{n}"), **_prices(n))  # type: ignore[arg-type]
        for n in range(OFFERS)
    ]
    with tempfile.TemporaryDirectory() as folder:
        results = {
            "offer_bytes": float(len(messages[0])),
            **measure_book(messages),
            **measure_selection(messages),
            **trio.run(measure_store, Path(folder)),
        }
    if arguments.json:
        json.dump({"python": platform.python_version(), **results}, sys.stdout)
        print()
    else:
        for name, value in results.items():
            print(f"{name:24} {value:12,.0f}")


def _prices(n: int) -> dict[str, object]:
    return {"prices": replace(SPEC.prices, output_nano=400_000_000 + n * 1_000)} if n % 2 else {"prices": _FREE}


_FREE = Prices(input_nano=0, cached_input_nano=0, output_nano=0)

if __name__ == "__main__":
    main()
