"""The devnet on disk: one SQLite file, written with every block that holds a transaction.

A crash loses only empty blocks; the next start skips their numbers, so no seqno ever means two blocks. Keys and the
faucet's words are in the file: it is worth nothing, and says so by its name. Blocking; one thread.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pytoniq_core import Cell

from ...errors import StoreError
from .blocks import BlockId, BlockPair, Recorded

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS accounts (account BLOB PRIMARY KEY, state BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS transactions (
    lt INTEGER PRIMARY KEY, account BLOB NOT NULL, cell BLOB NOT NULL,
    seqno INTEGER NOT NULL, root_hash BLOB NOT NULL, file_hash BLOB NOT NULL
);
"""
VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a file held."""

    facts: dict[str, Any]
    accounts: dict[bytes, Cell]
    by_account: dict[bytes, list[Recorded]]


class StateFile:
    """An open file. Raises `StoreError` when it cannot be used."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            path.chmod(0o600)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=FULL")
            self._file.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"the devnet's state cannot be kept in {path}: {error}") from error

    def load(self) -> Saved | None:
        """None when the file is new. Raises `StoreError` for one of another version."""
        try:
            facts = {name: json.loads(value) for name, value in self._file.execute("SELECT name, value FROM facts")}
            if not facts:
                return None
            if facts.get("version") != VERSION:
                raise StoreError("the devnet's state is of another version", advice="Start it with another file.")
            accounts = {
                bytes(account): Cell.one_from_boc(state)
                for account, state in self._file.execute("SELECT account, state FROM accounts")
            }
            by_account: dict[bytes, list[Recorded]] = {}
            rows = self._file.execute(
                "SELECT lt, account, cell, seqno, root_hash, file_hash FROM transactions ORDER BY lt"
            )
            for lt, account, cell, seqno, root_hash, file_hash in rows:
                block = BlockId(workchain=0, seqno=seqno, root_hash=root_hash, file_hash=file_hash)
                recorded = Recorded(lt=lt, cell=Cell.one_from_boc(cell), block=block)
                by_account.setdefault(bytes(account), []).append(recorded)
        except sqlite3.Error as error:
            raise StoreError(f"the devnet's state cannot be read: {error}") from error
        return Saved(facts=facts, accounts=accounts, by_account=by_account)

    def save(self, facts: dict[str, Any], pair: BlockPair, changed: dict[bytes, list[tuple[int, Cell]]]) -> None:
        """One block's transactions, the accounts that they changed, and the facts, all or nothing."""
        try:
            self._file.execute("BEGIN IMMEDIATE")
            try:
                for name, value in {**facts, "version": VERSION}.items():
                    self._file.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))
                for account, rows in changed.items():
                    state = pair.accounts[account].to_boc()
                    self._file.execute("INSERT OR REPLACE INTO accounts VALUES (?, ?)", (account, state))
                    for lt, cell in rows:
                        self._file.execute(
                            "INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?)",
                            (lt, account, cell.to_boc(), pair.shard.seqno, pair.shard.root_hash, pair.shard.file_hash),
                        )
            except BaseException:
                self._file.execute("ROLLBACK")
                raise
            self._file.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(f"the devnet's state cannot be written: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()
