"""Rule K2 end to end: whatever crashes, is restored or runs twice, O never signs two digests for one slot.

A provider is played from its real parts: publisher, drafts, key-file signer, database. Every signature that leaves
the signer is collected, as an attacker who holds the slashing contract would.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from cocoon.adapters.keyfile import load_or_create_seed, load_seed
from cocoon.adapters.signer import KeyFileSigner
from cocoon.adapters.store import SqliteStore
from cocoon.adapters.store_memory import MemoryStore
from cocoon.errors import ConfigError, LocalProtocolError, StoreError
from cocoon.market.offer import draft_offer, finish_offer
from cocoon.ports import Store
from cocoon.types import NO_DIGEST, SECOND_NS, Digest, Network, Secret
from cocoon.wire.signing import Domain, signed_bytes, stake_statement, verify
from tests.fakes.market import NET, NOW, NOW_S, P1, P2, SPEC, CountingEntropy, FixedClock, Key

SEED = Secret(b"\x07" * 32)


class Slashable(AssertionError):
    """Two signatures over one slot got out."""


class Witness:
    """Sees every signed slot."""

    def __init__(self) -> None:
        self.signed: dict[Digest, Digest] = {}

    def sees(self, slot: Digest, digest: Digest) -> None:
        if self.signed.setdefault(slot, digest) != digest:
            raise Slashable(slot.hex())


class Crash(BaseException):
    """The process died here."""


class CrashingStore:
    """A store whose process dies before or after its n-th call."""

    def __init__(self, inner: Store, steps: Iterator[int], die_at: int) -> None:
        self._inner = inner
        self._steps = steps
        self._die_at = die_at

    def _step(self) -> None:
        if next(self._steps) == self._die_at:
            raise Crash

    async def next_seq(self, operator: bytes, peer: bytes, model: Digest) -> int:
        self._step()
        seq = await self._inner.next_seq(operator, peer, model)
        self._step()
        return seq

    async def claim_slot(self, slot: Digest, digest: Digest) -> None:
        self._step()
        await self._inner.claim_slot(slot, digest)
        self._step()


async def make_one_offer(store: Store, witness: Witness, *, price: int, peer: Key = P1, seq: int | None = None) -> int:
    """What a provider does for each offer; the price makes every digest another."""
    signer = KeyFileSigner(SEED, network=NET, store=store)
    if seq is None:
        seq = await store.next_seq(signer.operator, peer.public, SPEC.model)
    draft = draft_offer(
        replace(SPEC, prices=replace(SPEC.prices, output_nano=price)),
        network=NET,
        peer=peer.public,
        operator=signer.operator,
        seq=seq,
        not_before_s=NOW_S,
        expiry_s=NOW_S + 3_600,
        sign_as_peer=peer.sign,
    )
    signature = await signer.sign_offer(stake=NO_DIGEST, key_epoch=0, slot=draft.slot, digest=draft.digest)
    witness.sees(draft.slot, draft.digest)
    finish_offer(draft, signature, network=NET)
    return seq


async def open_database(path: Path, *, now: int = NOW, luck: str = "same") -> SqliteStore:
    return await SqliteStore.open(path, clock=FixedClock(now), entropy=CountingEntropy(luck))


# --- crashes ---------------------------------------------------------------------------------------------


def test_crash_each_step_never_two_digests(tmp_path: Path) -> None:
    """Die at every step of making an offer, restart, and make others, with a clock and luck that stand still."""

    async def main() -> None:
        for die_at in range(10):
            path = tmp_path / f"{die_at}.db"
            witness = Witness()
            steps = iter(range(1_000))
            store = await open_database(path)
            crashing = CrashingStore(store, steps, die_at)
            last_seq: int | None = None
            try:
                for price in range(3):
                    last_seq = await make_one_offer(crashing, witness, price=price)  # type: ignore[arg-type]
            except Crash:
                pass
            await store.aclose()
            for restart in range(2):
                again = await open_database(path)
                await make_one_offer(again, witness, price=100 + restart)
                # A careless retry of the old seq with another price is refused by the signer, not by luck:
                if last_seq is not None:
                    with pytest.raises(LocalProtocolError):
                        await make_one_offer(again, witness, price=200 + restart, seq=last_seq)
                await again.aclose()

    trio.run(main)


def test_a_slot_claimed_just_before_the_crash_can_still_be_signed_with_the_same_offer(tmp_path: Path) -> None:
    async def main() -> None:
        witness = Witness()
        async with await open_database(tmp_path / "a.db") as store:
            seq = await make_one_offer(store, witness, price=1)
        async with await open_database(tmp_path / "a.db") as store:
            assert await make_one_offer(store, witness, price=1, seq=seq) == seq

    trio.run(main)


_CHILD = """
import sys, trio
from pathlib import Path
from tests.fakes.market import P1
from tests.unit.test_offer_slots import Witness, make_one_offer, open_database

class Printer(Witness):
    def sees(self, slot, digest):
        print(slot.hex(), digest.hex(), flush=True)

async def main():
    async with await open_database(Path(sys.argv[1])) as store:
        for n in range(10_000):
            await make_one_offer(store, Printer(), price=int(sys.argv[2]) * 10_000 + n)

trio.run(main)
"""


def test_kill_9_at_any_moment_never_two_digests(tmp_path: Path) -> None:
    witness = Witness()
    for life in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(tmp_path / "cocoon.db"), str(life)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(10 + 7 * life)]
        os.kill(child.pid, signal.SIGKILL)
        lines += child.stdout.read().splitlines(keepends=True)
        child.stdout.close()
        child.wait(10)
        whole = [line.split() for line in lines if line.endswith("\n")]
        assert len(whole) >= 10
        for slot, digest in whole:
            witness.sees(bytes.fromhex(slot), bytes.fromhex(digest))
    assert len(witness.signed) >= 80


# --- backups and copies ----------------------------------------------------------------------------------


def test_backup_restore_never_equivocates(tmp_path: Path) -> None:
    """A backup has forgotten the offers that came after it. Its next seq is above them all the same."""

    async def main() -> None:
        path, backup = tmp_path / "cocoon.db", tmp_path / "backup.db"
        witness = Witness()
        async with await open_database(path) as store:
            await make_one_offer(store, witness, price=1)
        shutil.copy(path, backup)
        later = NOW + 60 * SECOND_NS
        async with await open_database(path, now=later) as store:
            seqs = [await make_one_offer(store, witness, price=n) for n in range(2, 40)]
        path.unlink()
        shutil.copy(backup, path)
        async with await open_database(path, now=later + SECOND_NS) as store:
            seq = await make_one_offer(store, witness, price=999)
            assert seq > max(seqs)

    trio.run(main)


def test_a_copy_of_the_whole_home_that_runs_at_the_same_time_does_not_collide(tmp_path: Path) -> None:
    """Two processes with one P are a mistake, but not one that costs the stake: luck keeps their seqs apart."""

    async def main() -> None:
        witness = Witness()
        one = MemoryStore(clock=FixedClock(), entropy=CountingEntropy("one"))
        two = MemoryStore(clock=FixedClock(), entropy=CountingEntropy("two"))
        for n in range(100):
            await make_one_offer(one, witness, price=n)
            await make_one_offer(two, witness, price=1_000 + n)

    trio.run(main)


def test_two_machines_one_operator_no_slash() -> None:
    """Two honest machines with the same O, clock and luck, and databases that know nothing of one another."""

    async def main() -> None:
        witness = Witness()
        for peer in (P1, P2):
            store = MemoryStore(clock=FixedClock(), entropy=CountingEntropy("same"))
            for n in range(20):
                await make_one_offer(store, witness, price=n if peer is P1 else 1_000 + n, peer=peer)
        assert len(witness.signed) == 40

    trio.run(main)


def test_a_clock_far_in_the_future_ends_in_a_clear_error_not_in_a_seq_that_wraps() -> None:
    async def main() -> None:
        store = MemoryStore(clock=FixedClock(1 << 63), entropy=CountingEntropy())
        with pytest.raises(StoreError, match="no seq is left"):
            await store.next_seq(P1.public, P2.public, SPEC.model)

    trio.run(main)


# --- the signer ------------------------------------------------------------------------------------------


class BrokenStore(MemoryStore):
    async def claim_slot(self, slot: Digest, digest: Digest) -> None:
        raise StoreError("the disk is full")


def test_nothing_is_signed_when_the_slot_cannot_be_kept() -> None:
    async def main() -> None:
        store = BrokenStore(clock=FixedClock(), entropy=CountingEntropy())
        signer = KeyFileSigner(SEED, network=NET, store=store)
        with pytest.raises(StoreError):
            await signer.sign_offer(stake=NO_DIGEST, key_epoch=0, slot=b"s" * 32, digest=b"d" * 32)

    trio.run(main)


def test_signatures_are_over_the_shapes_of_rule_k1() -> None:
    async def main() -> None:
        store = MemoryStore(clock=FixedClock(), entropy=CountingEntropy())
        signer = KeyFileSigner(SEED, network=Network.TESTNET, store=store)
        signature = await signer.sign_offer(stake=b"k" * 32, key_epoch=7, slot=b"s" * 32, digest=b"d" * 32)
        verify(signer.operator, signature, stake_statement(Network.TESTNET, b"k" * 32, 7, b"s" * 32, b"d" * 32))
        signature = await signer.sign_statement(b"statement")
        verify(signer.operator, signature, signed_bytes(Domain.STATEMENT, Network.TESTNET, b"statement"))
        for wrong in ({"slot": b""}, {"digest": b"d"}, {"stake": b""}, {"key_epoch": -1}):
            fields = {"stake": NO_DIGEST, "key_epoch": 0, "slot": b"s" * 32, "digest": b"d" * 32, **wrong}
            with pytest.raises(LocalProtocolError):
                await signer.sign_offer(**fields)  # type: ignore[arg-type]
        with pytest.raises(LocalProtocolError):
            await signer.sign_statement(b"")

    trio.run(main)


def test_the_key_never_shows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    seed = load_or_create_seed(tmp_path / "operator.key", entropy=CountingEntropy())
    store = MemoryStore(clock=FixedClock(), entropy=CountingEntropy())
    signer = KeyFileSigner(seed, network=NET, store=store)
    shown = repr(signer) + repr(seed) + str(seed) + caplog.text
    assert seed.reveal().hex() not in shown
    assert repr(seed.reveal()) not in shown


def test_a_key_file_is_made_once_and_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "operator.key"
    first = load_or_create_seed(path, entropy=CountingEntropy("a"))
    assert load_or_create_seed(path, entropy=CountingEntropy("b")) == first == load_seed(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["operator.key"]


def test_of_two_processes_that_make_the_key_at_once_both_get_the_same(tmp_path: Path) -> None:
    path = tmp_path / "operator.key"
    winner = CountingEntropy("winner")

    def late(count: int) -> bytes:
        if count == 32:  # while this one draws its seed, the other one is faster
            load_or_create_seed(path, entropy=winner)
        return CountingEntropy("late")(count)

    assert load_or_create_seed(path, entropy=late) == load_seed(path)
    assert load_seed(path).reveal() == CountingEntropy("winner")(32)
    assert [file.name for file in tmp_path.iterdir()] == ["operator.key"]


@pytest.mark.parametrize("wrong", ["missing", "open", "short", "long", "folder", "link"])
def test_a_key_file_that_is_not_as_it_should_be_is_refused(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "operator.key"
    match wrong:
        case "open":
            path.write_bytes(bytes(32))
            path.chmod(0o640)
        case "short" | "long":
            path.write_bytes(bytes(31 if wrong == "short" else 33))
            path.chmod(0o600)
        case "folder":
            path.mkdir(mode=0o700)
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError) as raised:
        load_seed(path)
    assert str(path) in str(raised.value)
