"""The `Store` port on SQLite: one file, one worker thread, one fsync for everybody who waits.

WAL with `synchronous=FULL`: when a method returns, a power cut cannot undo it. The worker takes all jobs that
wait, runs each in a savepoint of one transaction, commits, and only then answers (group commit). A job that fails
takes none of the others with it; a commit that fails fails them all, and nothing of them is kept.

The file has mode 0600 and a schema version; an unknown or damaged file is refused, never repaired or replaced,
because a lost slot or voucher costs money. Not here: what any record means.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import trio

from ..errors import LocalProtocolError, StoreError
from ..ports import (
    Clock,
    Entropy,
    KnownPeer,
    PaymentRecord,
    StoredClaim,
    StoredEarning,
    StoredReceipt,
    StoredReputation,
    StoredReservation,
    StoredVoucher,
    VoucherSide,
)
from ..types import Digest, PeerId
from . import store_money
from .store_rules import (
    PEERS_MAX,
    PROOFS_MAX,
    RECEIPTS_MAX,
    REPUTATION_MAX,
    check_payments,
    check_slot_digest,
    following_seq,
)

T = TypeVar("T")

APPLICATION_ID: Final = 0x434F_434E  # "COCN" in the file's header
SCHEMA_VERSION: Final = 3  # 2 added money, 3 earnings; an older file gets their tables when opened
JOBS_MAX: Final = 256  # waiting at once; more callers wait for room
GROUP_MAX: Final = 128  # jobs per commit: bounds how long the first one waits
BUSY_S: Final = 10.0  # another process may hold the write lock this long
PRUNE_EVERY: Final = 1_024  # receipts between two prunings

_LASTING: Final = frozenset((sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))

_SCHEMA: Final = """
CREATE TABLE slots (slot BLOB PRIMARY KEY, digest BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE seqs (operator BLOB, peer BLOB, model BLOB, seq INTEGER NOT NULL,
                   PRIMARY KEY (operator, peer, model)) WITHOUT ROWID;
CREATE TABLE receipts (session BLOB, request_id INTEGER, number INTEGER NOT NULL, provider TEXT NOT NULL,
                       receipt BLOB NOT NULL, signature BLOB NOT NULL, at_ns INTEGER NOT NULL,
                       PRIMARY KEY (session, request_id));
CREATE INDEX receipts_by_time ON receipts (at_ns);
CREATE TABLE proofs (slot BLOB PRIMARY KEY, proof BLOB NOT NULL, at_ns INTEGER NOT NULL);
CREATE TABLE reputation (key BLOB PRIMARY KEY, observed BLOB NOT NULL, at_ns INTEGER NOT NULL);
CREATE TABLE ratchet (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE peers (peer TEXT PRIMARY KEY, addresses TEXT NOT NULL, seen_ns INTEGER NOT NULL);
"""


class _Job:
    """One caller's work and its outcome."""

    __slots__ = ("done", "error", "result", "work")

    def __init__(self, work: Callable[[sqlite3.Connection], Any]) -> None:
        self.work = work
        self.done = trio.Event()
        self.result: Any = None
        self.error: Exception | None = None


class SqliteStore:
    """Open with `await SqliteStore.open(path, …)`; close with `aclose()` or as `async with`.

    Every method may be cancelled; the write may still happen then.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, *, clock: Clock, entropy: Entropy) -> None:
        self._connection = connection
        self._path = path
        self._clock = clock
        self._entropy = entropy
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._room = trio.Semaphore(JOBS_MAX)
        self._token = trio.lowlevel.current_trio_token()
        self._closing = False
        self._broken: sqlite3.Error | None = None
        self._receipts_since_pruning = 0
        self._holds = store_money.Holds(path)
        self._thread = threading.Thread(target=self._serve, name="cocoon-store", daemon=True)
        self._thread.start()

    @classmethod
    async def open(cls, path: Path, *, clock: Clock, entropy: Entropy) -> SqliteStore:
        """The store in this file, created if missing. Raises `StoreError`."""
        connection = await trio.to_thread.run_sync(_connect, path)
        return cls(connection, path, clock=clock, entropy=entropy)

    async def __aenter__(self) -> SqliteStore:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Finish what is queued and close. May be called twice."""
        if not self._closing:
            self._closing = True
            self._jobs.put(None)
        with trio.CancelScope(shield=True):  # bounded: at most JOBS_MAX jobs, each milliseconds
            await trio.to_thread.run_sync(self._thread.join)

    # --- slots and seqs ----------------------------------------------------------------------------------

    async def claim_slot(self, slot: Digest, digest: Digest) -> None:
        """Bind a slot to a digest for ever. Raises `LocalProtocolError` when it is bound to another (rule K2)."""
        check_slot_digest(slot, digest)

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO slots VALUES (?, ?) ON CONFLICT DO NOTHING", (slot, digest))
            (bound,) = connection.execute("SELECT digest FROM slots WHERE slot = ?", (slot,)).fetchone()
            if bound != digest:
                raise LocalProtocolError("this slot is bound to another offer; it is not signed")

        await self._do(work)

    async def next_seq(self, operator: bytes, peer: bytes, model: Digest) -> int:
        """A seq above every earlier one for these three; persisted before it is returned."""
        now, luck = self._clock.now(), self._entropy(4)

        def work(connection: sqlite3.Connection) -> int:
            key = (operator, peer, model)
            row = connection.execute(
                "SELECT seq FROM seqs WHERE operator = ? AND peer = ? AND model = ?", key
            ).fetchone()
            seq = following_seq(None if row is None else row[0], now=now, luck=luck)
            connection.execute("INSERT OR REPLACE INTO seqs VALUES (?, ?, ?, ?)", (*key, seq))
            return seq

        return await self._do(work)

    # --- receipts and proofs -----------------------------------------------------------------------------

    async def save_receipt(self, receipt: StoredReceipt) -> None:
        """Keep the newest receipt of a request."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET number=excluded.number,"
                " provider=excluded.provider, receipt=excluded.receipt, signature=excluded.signature,"
                " at_ns=excluded.at_ns WHERE excluded.number > number",
                (
                    receipt.session,
                    receipt.request_id,
                    receipt.number,
                    receipt.provider,
                    receipt.receipt,
                    receipt.signature,
                    receipt.at_ns,
                ),
            )
            self._receipts_since_pruning += 1
            if self._receipts_since_pruning >= PRUNE_EVERY:
                self._receipts_since_pruning = 0
                _prune(connection, "receipts", "at_ns", RECEIPTS_MAX)

        await self._do(work)

    async def receipts(self, *, count_max: int) -> tuple[StoredReceipt, ...]:
        """The newest receipts first."""

        def work(connection: sqlite3.Connection) -> tuple[StoredReceipt, ...]:
            rows = connection.execute(
                "SELECT session, request_id, number, provider, receipt, signature, at_ns FROM receipts"
                " ORDER BY at_ns DESC, session, request_id LIMIT ?",
                (count_max,),
            )
            return tuple(
                StoredReceipt(
                    session=session,
                    request_id=request_id,
                    number=number,
                    provider=PeerId(provider),
                    receipt=receipt,
                    signature=signature,
                    at_ns=at_ns,
                )
                for session, request_id, number, provider, receipt, signature, at_ns in rows
            )

        return await self._do(work)

    async def save_proof(self, slot: Digest, proof: bytes) -> None:
        """Keep a proof of equivocation; the first one for a slot stays."""
        now = self._clock.now()

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO proofs VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (slot, proof, now))
            _prune(connection, "proofs", "at_ns", PROOFS_MAX)

        await self._do(work)

    async def proofs(self, *, count_max: int) -> tuple[bytes, ...]:
        """The newest proofs first."""

        def work(connection: sqlite3.Connection) -> tuple[bytes, ...]:
            rows = connection.execute("SELECT proof FROM proofs ORDER BY at_ns DESC, slot LIMIT ?", (count_max,))
            return tuple(proof for (proof,) in rows)

        return await self._do(work)

    # --- reputation and peers ----------------------------------------------------------------------------

    async def save_reputation(self, entries: tuple[StoredReputation, ...]) -> None:
        """Replace what is kept under these keys; the most recent entries are kept."""

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT OR REPLACE INTO reputation VALUES (?, ?, ?)",
                [(entry.key, entry.observed, entry.at_ns) for entry in entries],
            )
            _prune(connection, "reputation", "at_ns", REPUTATION_MAX)

        await self._do(work)

    async def reputation(self, *, count_max: int) -> tuple[StoredReputation, ...]:
        """The most recent first."""

        def work(connection: sqlite3.Connection) -> tuple[StoredReputation, ...]:
            rows = connection.execute(
                "SELECT key, observed, at_ns FROM reputation ORDER BY at_ns DESC, key LIMIT ?", (count_max,)
            )
            return tuple(StoredReputation(key=key, observed=seen, at_ns=at_ns) for key, seen, at_ns in rows)

        return await self._do(work)

    async def advance_ratchet(self, entries: Mapping[str, int]) -> None:
        """Raise the entries; nothing ever falls."""

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT INTO ratchet VALUES (?, ?) ON CONFLICT DO UPDATE SET value = max(value, excluded.value)",
                list(entries.items()),
            )

        await self._do(work)

    async def ratchet(self) -> dict[str, int]:
        """All of it."""

        def work(connection: sqlite3.Connection) -> dict[str, int]:
            return dict(connection.execute("SELECT name, value FROM ratchet"))

        return await self._do(work)

    async def remember_peers(self, peers: tuple[KnownPeer, ...]) -> None:
        """Add to the address book, which keeps the most recently seen."""

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT INTO peers VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET addresses=excluded.addresses,"
                " seen_ns=excluded.seen_ns WHERE excluded.seen_ns >= seen_ns",
                [(each.peer, json.dumps(each.addresses), each.seen_ns) for each in peers],
            )
            _prune(connection, "peers", "seen_ns", PEERS_MAX)

        await self._do(work)

    async def known_peers(self, *, count_max: int) -> tuple[KnownPeer, ...]:
        """Most recently seen first."""

        def work(connection: sqlite3.Connection) -> tuple[KnownPeer, ...]:
            rows = connection.execute(
                "SELECT peer, addresses, seen_ns FROM peers ORDER BY seen_ns DESC, peer LIMIT ?", (count_max,)
            )
            return tuple(
                KnownPeer(peer=PeerId(peer), addresses=tuple(json.loads(addresses)), seen_ns=seen_ns)
                for peer, addresses, seen_ns in rows
            )

        return await self._do(work)

    # --- money -------------------------------------------------------------------------------------------

    async def hold(self, name: Digest) -> None:
        """Be the only holder of this name until the store closes. Raises `LocalProtocolError` (rule M1)."""
        await self._do(lambda connection: self._holds.take(name))

    async def save_payments(self, records: tuple[PaymentRecord, ...]) -> None:
        """Keep all of them or none; no voucher falls."""
        check_payments(records)
        await self._do(lambda connection: store_money.save_payments(connection, records))

    async def vouchers(self, side: VoucherSide, *, network: int, party: bytes) -> tuple[StoredVoucher, ...]:
        """All that this account issued, or that this payout address holds."""
        return await self._do(lambda connection: store_money.vouchers(connection, side, network=network, party=party))

    async def reservations(self, *, network: int, provider: bytes) -> tuple[StoredReservation, ...]:
        """All of this payout address."""
        return await self._do(
            lambda connection: store_money.reservations(connection, network=network, provider=provider)
        )

    async def claims(self, *, network: int, provider: bytes, count_max: int) -> tuple[StoredClaim, ...]:
        """Those of this payout address, the newest first."""
        return await self._do(
            lambda connection: store_money.claims(connection, network=network, provider=provider, count_max=count_max)
        )

    async def earnings(self, *, network: int, provider: bytes, since_day: int) -> tuple[StoredEarning, ...]:
        """Those of this payout address from that day on; in order of day, account, model."""
        return await self._do(
            lambda connection: store_money.earnings(connection, network=network, provider=provider, since_day=since_day)
        )

    # --- the worker --------------------------------------------------------------------------------------

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        await self._room.acquire()
        if self._closing:
            self._room.release()
            raise StoreError("the database is closed")
        job = _Job(work)
        self._jobs.put(job)
        await job.done.wait()
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def _serve(self) -> None:
        """The worker thread: all that touches the connection."""
        closing = False
        while not closing:
            batch: list[_Job] = []
            job = self._jobs.get()
            while job is not None:
                batch.append(job)
                if len(batch) == GROUP_MAX:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            closing = job is None
            if batch:
                self._commit(batch)
                try:
                    self._token.run_sync_soon(self._answer, batch)
                except trio.RunFinishedError:
                    closing = True  # nobody is left to be answered
        self._connection.close()
        self._holds.release_all()

    def _answer(self, batch: list[_Job]) -> None:
        for job in batch:
            self._room.release()
            job.done.set()

    def _commit(self, batch: list[_Job]) -> None:
        connection = self._connection
        try:
            if self._broken is not None:
                raise self._broken
            connection.execute("BEGIN IMMEDIATE")
            for job in batch:
                self._attempt(job)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if _code(error) in _LASTING:  # after a failed fsync nobody knows what is on disk: stop here
                self._broken = error
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            for job in batch:
                job.error = _explain(error, self._path)

    def _attempt(self, job: _Job) -> None:
        """One job in its own savepoint, so that it can fail alone.

        A supervision boundary: whatever the job raises goes to its caller, and the worker lives on. Where SQLite
        gave up the whole transaction, the batch fails.
        """
        connection = self._connection
        connection.execute("SAVEPOINT job")
        try:
            job.result = job.work(connection)
        except Exception as error:
            if not connection.in_transaction:
                raise
            job.error = _explain(error, self._path) if isinstance(error, sqlite3.Error) else error
            connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")


# --- the file --------------------------------------------------------------------------------------------


def _connect(path: Path) -> sqlite3.Connection:
    """Open or create, check, and set up. Raises `StoreError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)  # SQLite gives its -wal and -shm files the same mode
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(
            f"the database {path} cannot be opened: {error.strerror}",
            advice="Check the folder's owner and permissions, or choose another with --home.",
        ) from error
    try:
        connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            _set_up(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise _explain(error, path) from error
    return connection


def _set_up(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA synchronous = FULL")
    (damage,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if damage != "ok":
        raise _damaged(path)
    connection.execute("BEGIN IMMEDIATE")
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application == 0 and version == 0 and tables == 0:
        for statement in (_SCHEMA + store_money.MONEY_SCHEMA + store_money.EARNINGS_SCHEMA).split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    elif application != APPLICATION_ID:
        raise StoreError(f"{path} is a database of another program", advice="Choose another folder with --home.")
    elif version in (1, 2):
        missing = (
            store_money.EARNINGS_SCHEMA if version == 2 else store_money.MONEY_SCHEMA + store_money.EARNINGS_SCHEMA
        )
        for statement in missing.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    elif version != SCHEMA_VERSION:
        raise StoreError(
            f"the database {path} has schema version {version}; this program knows {SCHEMA_VERSION}",
            advice="A newer version of cocoon wrote it. Update this one.",
        )
    connection.execute("COMMIT")
    connection.execute("PRAGMA journal_mode = WAL")


def _prune(connection: sqlite3.Connection, table: str, column: str, count_max: int) -> None:
    """Keep the newest `count_max` rows."""
    connection.execute(
        f"DELETE FROM {table} WHERE rowid IN"  # noqa: S608 - our own names
        f" (SELECT rowid FROM {table} ORDER BY {column} DESC LIMIT -1 OFFSET ?)",
        (count_max,),
    )


def _damaged(path: Path) -> StoreError:
    return StoreError(
        f"the database {path} is damaged",
        advice="Nothing was changed. Keep the file, and restore the newest backup with `cocoon restore`. "
        "An operator without a backup must start with a new peer key: reusing seqs would cost the stake.",
    )


def _code(error: sqlite3.Error) -> int:
    """The primary result code; 0 for errors of the Python layer."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _explain(error: sqlite3.Error, path: Path) -> StoreError:
    match _code(error):
        case sqlite3.SQLITE_FULL:
            return StoreError(
                f"the disk is full; nothing was written to {path}",
                advice="Free some space; nothing that depended on this write was sent.",
                retryable=True,
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return _damaged(path)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreError(
                f"the database {path} is in use by another process",
                advice="Is another cocoon running with the same --home? Stop it first.",
                retryable=True,
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return StoreError(
                f"the database {path} cannot be written",
                advice="Check the folder's owner and permissions, or choose another with --home.",
            )
        case _:
            return StoreError(
                f"the database {path} failed: {error}",
                advice="Check the disk; the system's log may say more.",
            )
