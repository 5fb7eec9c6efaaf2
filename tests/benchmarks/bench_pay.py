"""What paying costs: vouchers signed, verified and persisted per second and core; time per chunk; memory per account.

    python -m tests.benchmarks.bench_pay [--json] [--vouchers N]

One process: both machines in one thread, the store's worker beside it; CPU time of all threads is counted, so a busy
machine does not matter, and wall time is shown too. Two drivers write in groups, as a node's do: all records that came
while one commit was under way go into the next.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import trio

from cocoon.adapters.clock import SystemClock, entropy
from cocoon.adapters.store import SqliteStore
from cocoon.pay.effects import Effects, Persist, RequestKey, Send
from cocoon.pay.payee import Payee
from cocoon.pay.payer import Payer, PayerTerms
from cocoon.pay.voucher import Voucher, sign_voucher
from cocoon.types import Prices
from cocoon.wire.signing import verify
from tests.fakes.market import Key
from tests.fakes.pay import NET, NOW, PAYOUT, RULES, TERMS, TON, FakeAccount

CLIENTS = 64
PRICES = Prices(input_nano=0, cached_input_nano=0, output_nano=300_000_000)


class Lane:
    """Writes what one machine wants kept, one commit at a time, and tells it."""

    def __init__(self, store: SqliteStore, machine: Payer | Payee) -> None:
        self.store = store
        self.machine = machine
        self.waiting: list[Persist] = []

    async def flush(self) -> Effects:
        """One commit for everything that waits; the effects that follow from it."""
        taken, self.waiting = self.waiting, []
        records = tuple(record for persist in taken for record in persist.records)
        await self.store.save_payments(records)
        return self.machine.persisted(records, now=NOW)


def clients(count: int, store: SqliteStore) -> tuple[list[tuple[FakeAccount, Key, Lane]], Payee]:
    payee = Payee(network=NET, payout=PAYOUT, rules=RULES, verify=verify, terms=TERMS, now=NOW)
    made = []
    for n in range(count):
        key = Key(f"client {n}")
        account = FakeAccount(salt=n, key=key.public)
        payer = Payer(
            network=NET,
            account=account.account,
            key=key.public,
            sign=key.sign,
            rules=RULES,
            terms=PayerTerms(spend_max_nano=TON, reserve_max_nano=0),
            now=NOW,
        )
        payer.account_proven(account.state(NOW), now=NOW)
        payee.account_proven(account.state(NOW), now=NOW)
        payee.authenticate(
            n.to_bytes(32, "big"), account=account.account, voucher_key=key.public, payout=PAYOUT, now=NOW
        )
        made.append((account, key, Lane(store, payer)))
    return made, payee


async def measure_pipeline(folder: Path, vouchers: int) -> dict[str, float]:
    """Every voucher is signed and kept by its client, verified and kept by the provider: two commits, two rows."""
    async with (
        await SqliteStore.open(folder / "client.db", clock=SystemClock(), entropy=entropy) as client_store,
        await SqliteStore.open(folder / "provider.db", clock=SystemClock(), entropy=entropy) as provider_store,
    ):
        made, payee = clients(CLIENTS, client_store)
        lane = Lane(provider_store, payee)
        amounts = [0] * CLIENTS
        cpu, wall = time.process_time(), time.perf_counter()
        signing = verifying = 0.0
        done = 0
        while done < vouchers:
            began = time.process_time()
            records = []
            for n, (account, key, _) in enumerate(made):
                amounts[n] += 300
                signed = sign_voucher(
                    Voucher(
                        network=NET,
                        account=account.account,
                        epoch=account.epoch,
                        provider=PAYOUT,
                        cumulative_nano=amounts[n],
                    ),
                    key.sign,
                )
                records.append(signed)
            signing += time.process_time() - began
            began = time.process_time()
            for n, signed in enumerate(records):
                for effect in payee.receive_voucher(
                    n.to_bytes(32, "big"), signed.voucher.encode(), signed.signature, now=NOW
                ):
                    assert isinstance(effect, Persist)
                    lane.waiting.append(effect)
            verifying += time.process_time() - began
            await lane.flush()
            done += CLIENTS
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        result = {
            "provider_and_signing_per_cpu_s": done / cpu,
            "provider_and_signing_per_wall_s": done / wall,
            "sign_us": 1e6 * signing / done,
            "verify_and_judge_us": 1e6 * verifying / done,
            "persist_us": 1e6 * (cpu - signing - verifying) / done,
        }
        result.update(await measure_both_ends(client_store, provider_store, vouchers // 2))
        return result


async def measure_both_ends(client_store: SqliteStore, provider_store: SqliteStore, vouchers: int) -> dict[str, float]:
    """The same with real payers: counted, signed and kept, sent, verified and kept."""
    made, payee = clients(CLIENTS, client_store)
    lane = Lane(provider_store, payee)
    attempts = []
    from tests.fakes.pay import terms_of

    for _, _, client in made:
        payer = client.machine
        assert isinstance(payer, Payer)
        budget = payer.begin(TON // 2)
        attempts.append(payer.attempt(budget, terms_of(prices=PRICES), input_tokens_max=0, output_tokens_max=1_000_000))
    cpu = time.process_time()
    done = tokens = 0
    while done < vouchers:
        tokens += 1
        issued = []
        for n, (_, _, client) in enumerate(made):
            payer = client.machine
            assert isinstance(payer, Payer)
            payer.received(attempts[n], prompt_tokens=0, completion_tokens=tokens, now=NOW)
            issued += [effect for effect in payer.receipt(attempts[n], now=NOW) if isinstance(effect, Persist)]
        records = tuple(record for persist in issued for record in persist.records)
        await client_store.save_payments(records)
        for n, (_, _, client) in enumerate(made):
            payer = client.machine
            assert isinstance(payer, Payer)
            for effect in payer.persisted((records[n],), now=NOW):
                assert isinstance(effect, Send)
                signed = effect.voucher
                for kept in payee.receive_voucher(
                    n.to_bytes(32, "big"), signed.voucher.encode(), signed.signature, now=NOW
                ):
                    assert isinstance(kept, Persist)
                    lane.waiting.append(kept)
        await lane.flush()
        done += CLIENTS
    return {"both_ends_per_cpu_s": done / (time.process_time() - cpu)}


def measure_chunks() -> dict[str, float]:
    """What the payee adds to every chunk that leaves: may it, and it does."""
    account = FakeAccount()
    payee = Payee(network=NET, payout=PAYOUT, rules=RULES, verify=verify, terms=TERMS, now=NOW)
    payee.account_proven(account.state(NOW), now=NOW)
    session = bytes(32)
    payee.authenticate(session, account=account.account, voucher_key=account.key, payout=PAYOUT, now=NOW)
    ledger = payee.ledger(account.account)
    assert ledger is not None
    ledger.clean_tokens = 6_000
    rounds = 4_000
    key = RequestKey(session=session, id=1)
    payee.admit(key, prices=PRICES, input_tokens=100, now=NOW)
    began = time.process_time()
    for _ in range(rounds):
        assert payee.tokens_allowed(key, 1, now=NOW) == 1
        payee.release(key, 1, now=NOW)
    return {"chunk_us": 1e6 * (time.process_time() - began) / rounds}


def measure_memory() -> dict[str, float]:
    payee = Payee(network=NET, payout=PAYOUT, rules=RULES, verify=verify, terms=TERMS, now=NOW)
    accounts = [FakeAccount(salt=n) for n in range(2_000)]
    tracemalloc.start()
    for account in accounts:
        payee.account_proven(account.state(NOW), now=NOW)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"mb_per_10000_accounts": held / len(accounts) * 10_000 / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--vouchers", type=int, default=20_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {
            **trio.run(measure_pipeline, Path(folder), arguments.vouchers),
            **measure_chunks(),
            **measure_memory(),
        }
    if arguments.json:
        json.dump({"python": platform.python_version(), **results}, sys.stdout)
        print()
    else:
        for name, value in results.items():
            print(f"{name:34} {value:12,.1f}")


if __name__ == "__main__":
    main()
