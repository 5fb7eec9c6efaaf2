"""Both stores keep the same promises; the database keeps them through crashes, full disks and damage."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from cocoon.adapters import store as sqlite_store
from cocoon.adapters import store_memory, store_money, store_rules
from cocoon.adapters.store import SqliteStore
from cocoon.adapters.store_memory import MemoryStore
from cocoon.errors import LocalProtocolError, StoreError
from cocoon.ports import (
    KnownPeer,
    Store,
    StoredClaim,
    StoredEarning,
    StoredReceipt,
    StoredReputation,
    StoredReservation,
    StoredVoucher,
    VoucherSide,
)
from cocoon.types import SECOND_NS, PeerId
from tests.fakes.market import MODEL, O1, P1, P2, CountingEntropy, FixedClock

SLOT, OTHER_SLOT = b"\x01" * 32, b"\x02" * 32
DIGEST, OTHER_DIGEST = b"\x11" * 32, b"\x22" * 32

Body = Callable[[Store], Awaitable[None]]


@pytest.fixture(params=["memory", "sqlite"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Body], None]:
    """Runs a body against one of the stores."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Store]:
        store: Store
        if request.param == "memory":
            store = MemoryStore(clock=FixedClock(), entropy=CountingEntropy())
        else:
            store = await SqliteStore.open(tmp_path / "cocoon.db", clock=FixedClock(), entropy=CountingEntropy())
        try:
            yield store
        finally:
            await store.aclose()

    def run_body(body: Body) -> None:
        async def main() -> None:
            with trio.fail_after(20):
                async with opened() as store:
                    await body(store)

        trio.run(main)

    return run_body


Run = Callable[[Body], None]


def receipt(session: int = 1, request_id: int = 1, number: int = 1, at_ns: int = 1) -> StoredReceipt:
    return StoredReceipt(
        session=session.to_bytes(32, "big"),
        request_id=request_id,
        number=number,
        provider=PeerId("12D3KooWx"),
        receipt=b"receipt %d" % number,
        signature=b"s" * 64,
        at_ns=at_ns,
    )


# --- the contract ----------------------------------------------------------------------------------------


def test_a_slot_is_bound_once_and_for_ever(run: Run) -> None:
    async def body(store: Store) -> None:
        await store.claim_slot(SLOT, DIGEST)
        await store.claim_slot(SLOT, DIGEST)
        with pytest.raises(LocalProtocolError, match="another offer"):
            await store.claim_slot(SLOT, OTHER_DIGEST)
        await store.claim_slot(SLOT, DIGEST)
        await store.claim_slot(OTHER_SLOT, OTHER_DIGEST)
        with pytest.raises(LocalProtocolError, match="length"):
            await store.claim_slot(b"", DIGEST)

    run(body)


def test_one_refused_claim_takes_no_other_with_it(run: Run) -> None:
    async def body(store: Store) -> None:
        refused = []

        async def claim(n: int) -> None:
            try:
                await store.claim_slot((n // 2).to_bytes(32, "big"), (n % 2).to_bytes(32, "big"))
            except LocalProtocolError:
                refused.append(n)

        async with trio.open_nursery() as nursery:
            for n in range(100):
                nursery.start_soon(claim, n)
        assert len(refused) == 50  # of each pair exactly one digest won

    run(body)


def test_seqs_only_rise_and_are_never_given_twice(run: Run) -> None:
    async def body(store: Store) -> None:
        seqs: list[int] = []

        async def take() -> None:
            seqs.append(await store.next_seq(O1.public, P1.public, MODEL))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(take)
        assert len(set(seqs)) == 50
        last = max(seqs)
        assert await store.next_seq(O1.public, P1.public, MODEL) > last
        assert 0 < await store.next_seq(O1.public, P2.public, MODEL) < 1 << 63

    run(body)


def test_the_newest_receipt_of_a_request_is_kept(run: Run) -> None:
    async def body(store: Store) -> None:
        await store.save_receipt(receipt(number=2, at_ns=20))
        await store.save_receipt(receipt(number=1, at_ns=30))
        await store.save_receipt(receipt(request_id=2, at_ns=10))
        assert await store.receipts(count_max=9) == (receipt(number=2, at_ns=20), receipt(request_id=2, at_ns=10))
        assert await store.receipts(count_max=1) == (receipt(number=2, at_ns=20),)

    run(body)


def test_the_first_proof_for_a_slot_stays(run: Run) -> None:
    async def body(store: Store) -> None:
        await store.save_proof(SLOT, b"first")
        await store.save_proof(SLOT, b"second")
        await store.save_proof(OTHER_SLOT, b"other")
        assert set(await store.proofs(count_max=9)) == {b"first", b"other"}

    run(body)


def test_the_ratchet_only_ever_rises(run: Run) -> None:
    async def scenario(store: Store) -> None:
        await store.advance_ratchet({"number/qe": 17, "date/qe": 5})
        await store.advance_ratchet({"number/qe": 16, "date/qe": 6, "date/new": 1})
        assert await store.ratchet() == {"number/qe": 17, "date/qe": 6, "date/new": 1}

    run(scenario)


def test_reputation_is_replaced_and_the_most_recent_comes_first(run: Run) -> None:
    async def body(store: Store) -> None:
        def entry(n: int, at_ns: int) -> StoredReputation:
            return StoredReputation(key=bytes((n,)) * 32, observed=b"seen %d" % at_ns, at_ns=at_ns)

        await store.save_reputation((entry(1, 1), entry(2, 2)))
        await store.save_reputation((entry(1, 3),))
        assert await store.reputation(count_max=9) == (entry(1, 3), entry(2, 2))
        assert await store.reputation(count_max=1) == (entry(1, 3),)

    run(body)


def test_the_address_book_keeps_the_last_sight_of_each_peer(run: Run) -> None:
    async def body(store: Store) -> None:
        def peer(name: str, seen_ns: int, *addresses: str) -> KnownPeer:
            return KnownPeer(peer=PeerId(name), addresses=addresses, seen_ns=seen_ns)

        await store.remember_peers((peer("a", 5, "/ip4/1.1.1.1/tcp/1", "/dns4/ü/tcp/2"), peer("b", 6)))
        await store.remember_peers((peer("a", 4, "/old"), peer("c", 1)))
        assert await store.known_peers(count_max=9) == (
            peer("b", 6),
            peer("a", 5, "/ip4/1.1.1.1/tcp/1", "/dns4/ü/tcp/2"),
            peer("c", 1),
        )

    run(body)


def test_every_table_is_bounded_and_keeps_the_newest(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (store_rules, sqlite_store, store_memory):
        for name in ("RECEIPTS_MAX", "PROOFS_MAX", "REPUTATION_MAX", "PEERS_MAX"):
            monkeypatch.setattr(module, name, 3)
    monkeypatch.setattr(sqlite_store, "PRUNE_EVERY", 1)

    async def body(store: Store) -> None:
        for n in range(8):
            await store.save_receipt(receipt(request_id=n, at_ns=n))
            await store.save_proof(n.to_bytes(32, "big"), b"%d" % n)
            await store.save_reputation((StoredReputation(key=bytes((n,)), observed=b"", at_ns=n),))
            await store.remember_peers((KnownPeer(peer=PeerId(str(n)), addresses=(), seen_ns=n),))
        assert [each.request_id for each in await store.receipts(count_max=9)] == [7, 6, 5]
        assert len(await store.proofs(count_max=9)) == 3
        assert [each.at_ns for each in await store.reputation(count_max=9)] == [7, 6, 5]
        assert [each.seen_ns for each in await store.known_peers(count_max=9)] == [7, 6, 5]
        await store.save_reputation(tuple(StoredReputation(key=bytes((n,)), observed=b"", at_ns=9) for n in range(9)))
        assert len(await store.reputation(count_max=9)) == 3

    run(body)


# --- money -----------------------------------------------------------------------------------------------

ACCOUNT, OTHER_ACCOUNT, PAYOUT, OTHER_PAYOUT = (bytes((n,)) * 32 for n in (0xA1, 0xA2, 0xB1, 0xB2))
NETWORK = -217


def voucher(cumulative: int = 100, ceiling: int = 0, **changes: object) -> StoredVoucher:
    base = StoredVoucher(
        side=VoucherSide.HELD,
        network=NETWORK,
        account=ACCOUNT,
        epoch=7,
        provider=PAYOUT,
        cumulative_nano=cumulative,
        ceiling_nano=ceiling,
        key=b"k" * 32,
        signature=abs(cumulative).to_bytes(64, "big"),
        clean_tokens=3,
        at_ns=1,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_the_highest_voucher_is_kept_and_never_falls(run: Run) -> None:
    async def body(store: Store) -> None:
        async def held() -> tuple[StoredVoucher, ...]:
            return await store.vouchers(VoucherSide.HELD, network=NETWORK, party=PAYOUT)

        await store.save_payments((voucher(100, 50),))
        for lower in (voucher(99, 50), voucher(100, 49), voucher(101, 49), voucher(99, 51)):
            await store.save_payments((lower,))
            assert await held() == (voucher(100, 50),)
        await store.save_payments((voucher(101, 50), voucher(101, 60)))
        assert await held() == (voucher(101, 60),)

    run(body)


def test_vouchers_of_other_sides_networks_epochs_accounts_and_providers_stand_apart(run: Run) -> None:
    async def body(store: Store) -> None:
        others = (
            voucher(1, side=VoucherSide.ISSUED),
            voucher(2, network=-3),
            voucher(3, epoch=8),
            voucher(4, account=OTHER_ACCOUNT),
            voucher(5, provider=OTHER_PAYOUT),
        )
        await store.save_payments((voucher(), *others))
        held = await store.vouchers(VoucherSide.HELD, network=NETWORK, party=PAYOUT)
        assert held == (voucher(), others[2], others[3])
        assert await store.vouchers(VoucherSide.ISSUED, network=NETWORK, party=ACCOUNT) == (others[0],)
        assert await store.vouchers(VoucherSide.ISSUED, network=NETWORK, party=OTHER_ACCOUNT) == ()

    run(body)


def test_payments_that_cannot_be_kept_are_refused_whole(run: Run) -> None:
    async def body(store: Store) -> None:
        for bad in (voucher(1 << 63), voucher(1, 1 << 63), voucher(-1), voucher(account=b"short")):
            with pytest.raises(LocalProtocolError):
                await store.save_payments((voucher(), bad))
        assert await store.vouchers(VoucherSide.HELD, network=NETWORK, party=PAYOUT) == ()

    run(body)


def test_a_reservation_of_an_older_block_changes_nothing(run: Run) -> None:
    async def body(store: Store) -> None:
        def proven(block: int, claimed: int) -> StoredReservation:
            return StoredReservation(
                network=NETWORK, account=ACCOUNT, epoch=7, provider=PAYOUT, claimed_nano=claimed, ceiling_nano=900,
                proven_s=block, at_ns=block,
            )  # fmt: skip

        await store.save_payments((proven(10, 50),))
        await store.save_payments((proven(9, 70),))
        assert await store.reservations(network=NETWORK, provider=PAYOUT) == (proven(10, 50),)
        await store.save_payments((proven(11, 40),))  # a newer proof counts even where it shows less
        assert await store.reservations(network=NETWORK, provider=PAYOUT) == (proven(11, 40),)
        assert await store.reservations(network=NETWORK, provider=OTHER_PAYOUT) == ()

    run(body)


def claim(cumulative: int, submitted_ns: int, confirmed_ns: int = 0) -> StoredClaim:
    return StoredClaim(
        network=NETWORK, account=ACCOUNT, epoch=7, provider=PAYOUT, cumulative_nano=cumulative, ceiling_nano=0,
        submitted_ns=submitted_ns, confirmed_ns=confirmed_ns, received_nano=cumulative if confirmed_ns else 0,
    )  # fmt: skip


def test_a_claim_is_kept_from_submission_on_and_stays_confirmed(run: Run) -> None:
    async def body(store: Store) -> None:
        await store.save_payments((claim(100, 1), claim(200, 2)))
        await store.save_payments((claim(100, 1, confirmed_ns=3),))
        await store.save_payments((claim(100, 4),))
        kept = await store.claims(network=NETWORK, provider=PAYOUT, count_max=9)
        assert kept == (claim(200, 2), claim(100, 1, confirmed_ns=3))
        assert await store.claims(network=NETWORK, provider=PAYOUT, count_max=1) == (claim(200, 2),)

    run(body)


def test_only_confirmed_claims_are_ever_forgotten(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (store_money, store_memory):
        monkeypatch.setattr(module, "CLAIMS_MAX", 2)

    async def body(store: Store) -> None:
        await store.save_payments((claim(1, 1), claim(2, 2, confirmed_ns=3), claim(3, 3), claim(4, 4), claim(5, 5)))
        kept = await store.claims(network=NETWORK, provider=PAYOUT, count_max=9)
        assert [each.cumulative_nano for each in kept] == [5, 4, 3, 1]

    run(body)


def test_a_ledger_has_one_holder_until_the_store_closes(run: Run) -> None:
    async def body(store: Store) -> None:
        await store.hold(SLOT)
        await store.hold(OTHER_SLOT)
        with pytest.raises(LocalProtocolError, match="another cocoon"):
            await store.hold(SLOT)

    run(body)


def test_a_ledger_held_on_one_database_is_free_again_after_close_or_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "cocoon.db"
    code = (
        "import sys, time, trio\nfrom pathlib import Path\nfrom cocoon.adapters.store import SqliteStore\n"
        "from tests.fakes.market import CountingEntropy, FixedClock\n"
        "async def main():\n"
        "    store = await SqliteStore.open(Path(sys.argv[1]), clock=FixedClock(), entropy=CountingEntropy('c'))\n"
        "    await store.hold(b'\\x01' * 32)\n    print('held', flush=True)\n    await trio.sleep(60)\n"
        "trio.run(main)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"

    async def main() -> None:
        async with await open_at(path) as store:
            with pytest.raises(LocalProtocolError, match="another cocoon"):
                await store.hold(SLOT)
            os.kill(child.pid, signal.SIGKILL)
            child.wait(10)
            await store.hold(SLOT)
            async with await open_at(path) as second:
                with pytest.raises(LocalProtocolError, match="another cocoon"):
                    await second.hold(SLOT)
        async with await open_at(path) as third:
            await third.hold(SLOT)

    try:
        trio.run(main)
    finally:
        child.kill()
        child.stdout.close()


def test_a_database_from_before_money_gets_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "cocoon.db"

    async def before() -> None:
        async with await open_at(path) as store:
            await store.claim_slot(SLOT, DIGEST)

    trio.run(before)
    connection = sqlite3.connect(path)
    connection.executescript(
        "DROP TABLE vouchers; DROP TABLE reservations; DROP TABLE claims; DROP TABLE earnings; PRAGMA user_version = 1;"
    )
    connection.close()

    async def after() -> None:
        for _ in range(2):
            async with await open_at(path) as store:
                await store.save_payments((voucher(),))
                assert await store.vouchers(VoucherSide.HELD, network=NETWORK, party=PAYOUT) == (voucher(),)
                with pytest.raises(LocalProtocolError):
                    await store.claim_slot(SLOT, OTHER_DIGEST)

    trio.run(after)


def test_a_database_from_before_earnings_gets_their_table_and_keeps_its_money(tmp_path: Path) -> None:
    path = tmp_path / "cocoon.db"

    async def before() -> None:
        async with await open_at(path) as store:
            await store.save_payments((voucher(),))

    trio.run(before)
    connection = sqlite3.connect(path)
    connection.executescript("DROP TABLE earnings; PRAGMA user_version = 2;")
    connection.close()

    async def after() -> None:
        async with await open_at(path) as store:
            assert await store.vouchers(VoucherSide.HELD, network=NETWORK, party=PAYOUT) == (voucher(),)
            await store.save_payments((earning(),))
            assert await store.earnings(network=NETWORK, provider=PAYOUT, since_day=0) == (earning(),)

    trio.run(after)


def earning(day: int = 20_000, requests: int = 1, model: bytes = b"M" * 32) -> StoredEarning:
    return StoredEarning(
        network=NETWORK, provider=PAYOUT, account=ACCOUNT, model=model, model_name="tiny", day=day,
        requests=requests, prompt_tokens=10 * requests, cached_tokens=requests, completion_tokens=20 * requests,
        due_nano=300 * requests,
    )  # fmt: skip


def test_earnings_of_one_day_client_and_model_add_up_and_the_oldest_days_are_forgotten(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (store_money, store_memory):
        monkeypatch.setattr(module, "EARNING_ROWS_MAX", 3)

    async def body(store: Store) -> None:
        await store.save_payments((earning(), earning(), earning(model=b"N" * 32), earning(day=20_001)))
        found = await store.earnings(network=NETWORK, provider=PAYOUT, since_day=0)
        assert found == (earning(requests=2), earning(model=b"N" * 32), earning(day=20_001))
        assert await store.earnings(network=NETWORK, provider=PAYOUT, since_day=20_001) == (earning(day=20_001),)
        assert await store.earnings(network=NETWORK, provider=ACCOUNT, since_day=0) == ()
        await store.save_payments((earning(day=20_002), earning(day=20_003)))
        kept = await store.earnings(network=NETWORK, provider=PAYOUT, since_day=0)
        assert [each.day for each in kept] == [20_001, 20_002, 20_003]
        with pytest.raises(LocalProtocolError):
            await store.save_payments((earning(day=20_003, requests=-1),))
        assert await store.earnings(network=NETWORK, provider=PAYOUT, since_day=0) == kept

    run(body)


def test_a_closed_store_says_so(run: Run) -> None:
    async def body(store: Store) -> None:
        await store.aclose()
        with pytest.raises(StoreError, match="closed"):
            await store.claim_slot(SLOT, DIGEST)

    run(body)


# --- the database ----------------------------------------------------------------------------------------


async def open_at(path: Path, *, now: int = 1_900_000_000 * SECOND_NS, name: str = "") -> SqliteStore:
    return await SqliteStore.open(path, clock=FixedClock(now), entropy=CountingEntropy(name))


def test_everything_is_there_after_a_restart_and_only_for_us(tmp_path: Path) -> None:
    path = tmp_path / "home" / "cocoon.db"

    async def main() -> None:
        async with await open_at(path) as store:
            await store.claim_slot(SLOT, DIGEST)
            await store.save_receipt(receipt())
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
            assert set(modes.values()) == {0o600}, modes
        async with await open_at(path) as store:
            with pytest.raises(LocalProtocolError):
                await store.claim_slot(SLOT, OTHER_DIGEST)
            assert await store.receipts(count_max=9) == (receipt(),)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    trio.run(main)


def test_a_database_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "cocoon.db"

    async def main() -> None:
        await (await open_at(path)).aclose()
        path.chmod(0o644)
        await (await open_at(path)).aclose()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    trio.run(main)


_CHILD = """
import sys, trio
from pathlib import Path
from cocoon.adapters.store import SqliteStore
from tests.fakes.market import CountingEntropy, FixedClock

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]), clock=FixedClock(), entropy=CountingEntropy(sys.argv[2]))
    async with trio.open_nursery() as nursery:
        async def claim(n):
            await store.claim_slot(n.to_bytes(32, "big"), b"d" * 32)
            print(n, flush=True)
        for n in range(100_000):
            if n % 20 == 0:
                await trio.sleep(0)
                await store.claim_slot(n.to_bytes(32, "big"), b"d" * 32)
            nursery.start_soon(claim, n)
trio.run(main)
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "cocoon.db"
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_CHILD), str(path), "child"], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(300)]
    os.kill(child.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in child.stdout.read().split("\n") if line.endswith(tuple("0123456789"))][:-1]
    child.stdout.close()
    child.wait(10)

    async def main() -> None:
        async with await open_at(path) as store:
            for n in acknowledged:
                with pytest.raises(LocalProtocolError):
                    await store.claim_slot(n.to_bytes(32, "big"), OTHER_DIGEST)

    trio.run(main)


def test_two_processes_share_one_database_without_a_double_seq(tmp_path: Path) -> None:
    path = tmp_path / "cocoon.db"

    async def main() -> None:
        async with await open_at(path, name="a") as one, await open_at(path, name="a") as two:
            seqs: list[int] = []

            async def take(store: SqliteStore) -> None:
                for _ in range(25):
                    seqs.append(await store.next_seq(O1.public, P1.public, MODEL))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(take, one)
                nursery.start_soon(take, two)
            assert len(set(seqs)) == 50

    trio.run(main)


async def fill(store: Store) -> None:
    for n in range(100):
        await store.save_receipt(replace(receipt(request_id=n), receipt=bytes(4_000)))


def test_a_full_disk_is_said_and_survived(tmp_path: Path) -> None:
    path = tmp_path / "cocoon.db"

    async def main() -> None:
        async with await open_at(path) as store:
            await store.claim_slot(SLOT, DIGEST)
            (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
            store._connection.execute(f"PRAGMA max_page_count = {pages}")
            with pytest.raises(StoreError, match="disk is full") as raised:
                await fill(store)
            assert "Free some space" in raised.value.diagnostics()
            store._connection.execute("PRAGMA max_page_count = 100000")
            await store.claim_slot(OTHER_SLOT, DIGEST)
            with pytest.raises(LocalProtocolError):
                await store.claim_slot(SLOT, OTHER_DIGEST)

    trio.run(main)


@pytest.mark.parametrize("damage", ["garbage", "torn", "foreign", "newer"])
def test_a_database_that_is_not_whole_and_ours_is_refused_untouched(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "cocoon.db"

    async def make() -> None:
        async with await open_at(path) as store:
            for n in range(2_000):
                if n % 50 == 0:
                    await store.claim_slot(n.to_bytes(32, "big"), DIGEST)
            await store.save_receipt(receipt())

    trio.run(make)
    whole = path.read_bytes()
    match damage:
        case "garbage":
            path.write_bytes(b"not a database at all" * 1_000)
        case "torn":
            path.write_bytes(whole[:4_096] + b"\xa5" * 4_096 + whole[8_192:])
        case "foreign":
            path.unlink()
            with sqlite3.connect(path) as connection:
                connection.execute("CREATE TABLE cookies (x)")
            connection.close()
        case "newer":
            connection = sqlite3.connect(path)
            connection.execute(f"PRAGMA user_version = {sqlite_store.SCHEMA_VERSION + 1}")
            connection.close()
    before = path.read_bytes()

    async def refused() -> None:
        with pytest.raises(StoreError) as raised:
            await open_at(path)
        assert raised.value.advice
        assert str(path) in str(raised.value)

    trio.run(refused)
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def main() -> None:
        with pytest.raises(StoreError, match="cannot be opened") as raised:
            await open_at(tmp_path / "file" / "cocoon.db")
        assert "--home" in raised.value.diagnostics()

    trio.run(main)


def test_a_store_in_use_elsewhere_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "BUSY_S", 0.05)
    path = tmp_path / "cocoon.db"

    async def main() -> None:
        async with await open_at(path) as store:
            other = sqlite3.connect(path, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="in use by another process") as raised:
                await store.claim_slot(SLOT, DIGEST)
            assert raised.value.retryable
            other.execute("ROLLBACK")
            other.close()
            await store.claim_slot(SLOT, DIGEST)

    trio.run(main)


def test_a_job_that_fails_in_python_fails_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with await open_at(tmp_path / "cocoon.db") as store:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.claim_slot, SLOT, DIGEST)
                with pytest.raises(OverflowError):
                    await store.save_receipt(receipt(request_id=1 << 70))
            with pytest.raises(LocalProtocolError):
                await store.claim_slot(SLOT, OTHER_DIGEST)

    trio.run(main)


def test_a_job_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    good = KnownPeer(peer=PeerId("good"), addresses=(), seen_ns=1)

    async def main() -> None:
        async with await open_at(tmp_path / "cocoon.db") as store:
            with pytest.raises(OverflowError):
                await store.remember_peers((good, replace(good, peer=PeerId("bad"), seen_ns=1 << 70)))
            assert await store.known_peers(count_max=9) == ()

    trio.run(main)


def test_a_disk_that_fails_stops_the_store_for_good(tmp_path: Path) -> None:
    """After a failed write nobody knows what the disk holds; going on could sign what was never kept."""

    async def main() -> None:
        async with await open_at(tmp_path / "cocoon.db") as store:
            failure = sqlite3.OperationalError("disk I/O error")
            failure.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC  # as SQLite reports a failed fsync

            def fail(connection: sqlite3.Connection) -> None:
                connection.execute("ROLLBACK")  # what SQLite does by itself then
                raise failure

            with pytest.raises(StoreError, match="disk I/O error"):
                await store._do(fail)
            with pytest.raises(StoreError, match="disk I/O error"):
                await store.claim_slot(SLOT, DIGEST)
        async with await open_at(tmp_path / "cocoon.db") as again:
            await again.claim_slot(SLOT, OTHER_DIGEST)

    trio.run(main)


def test_a_cancelled_caller_leaves_the_store_working(tmp_path: Path) -> None:
    async def main() -> None:
        async with await open_at(tmp_path / "cocoon.db") as store:
            for round_number in range(4):  # together more than JOBS_MAX: an abandoned job gives its place back
                async with trio.open_nursery() as nursery:
                    for n in range(sqlite_store.JOBS_MAX):
                        nursery.start_soon(store.claim_slot, bytes((round_number,)) * 31 + bytes((n,)), DIGEST)
                    await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
            with trio.fail_after(5):
                await store.claim_slot(SLOT, DIGEST)

    trio.run(main)


def test_closing_finishes_what_is_queued(tmp_path: Path) -> None:
    path = tmp_path / "cocoon.db"

    async def main() -> None:
        store = await open_at(path)
        async with trio.open_nursery() as nursery:
            for n in range(200):
                nursery.start_soon(store.claim_slot, n.to_bytes(32, "big"), DIGEST)
            await trio.testing.wait_all_tasks_blocked()
            await store.aclose()
        await store.aclose()
        async with await open_at(path) as again:
            for n in range(200):
                with pytest.raises(LocalProtocolError):
                    await again.claim_slot(n.to_bytes(32, "big"), OTHER_DIGEST)

    trio.run(main)
