"""Reads a node's money from its database while the node runs, or when nobody does. Writes nothing, locks nobody out.

One connection in read-only mode; SQLite's WAL gives it a consistent view beside the writer. A database from before
money or earnings has none. Blocking, but each call takes milliseconds.

Not here: what the chain says of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..errors import StoreError
from ..ports import StoredClaim, StoredEarning, StoredReservation, StoredVoucher, VoucherSide
from . import store_money
from .store import APPLICATION_ID, SCHEMA_VERSION

BUSY_S: Final = 5.0
CLAIMS_SHOWN_MAX: Final = 10_000
PROOFS_SHOWN_MAX: Final = 1_000


class MoneyReader:
    """What one database knows of money. Made by `read_money`."""

    def __init__(self, connection: sqlite3.Connection | None, version: int) -> None:
        self._connection = connection
        self._version = version

    def vouchers(self, side: VoucherSide, *, network: int, party: bytes) -> tuple[StoredVoucher, ...]:
        """As the `Store` port says."""
        if self._connection is None or self._version < 2:
            return ()
        return store_money.vouchers(self._connection, side, network=network, party=party)

    def reservations(self, *, network: int, provider: bytes) -> tuple[StoredReservation, ...]:
        """As the `Store` port says."""
        if self._connection is None or self._version < 2:
            return ()
        return store_money.reservations(self._connection, network=network, provider=provider)

    def claims(self, *, network: int, provider: bytes) -> tuple[StoredClaim, ...]:
        """The newest first."""
        if self._connection is None or self._version < 2:
            return ()
        return store_money.claims(self._connection, network=network, provider=provider, count_max=CLAIMS_SHOWN_MAX)

    def earnings(self, *, network: int, provider: bytes, since_day: int) -> tuple[StoredEarning, ...]:
        """As the `Store` port says."""
        if self._connection is None or self._version < 3:
            return ()
        return store_money.earnings(self._connection, network=network, provider=provider, since_day=since_day)

    def proofs(self) -> tuple[bytes, ...]:
        """Proofs of equivocation that this node saw; the newest first."""
        if self._connection is None:
            return ()
        rows = self._connection.execute("SELECT proof FROM proofs ORDER BY at_ns DESC LIMIT ?", (PROOFS_SHOWN_MAX,))
        return tuple(proof for (proof,) in rows)


@contextmanager
def read_money(path: Path) -> Iterator[MoneyReader]:
    """The money in this database; none where there is no file. Raises `StoreError`."""
    if not path.exists():
        yield MoneyReader(None, SCHEMA_VERSION)
        return
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
        try:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if application != APPLICATION_ID:
                raise StoreError(f"{path} is a database of another program", advice="Choose another with --home.")
            if version > SCHEMA_VERSION:
                raise StoreError(f"a newer version of cocoon wrote {path}", advice="Update this one.")
            yield MoneyReader(connection, version)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreError(
            f"the database {path} cannot be read: {error}", advice="Is it whole? Restore a backup otherwise."
        ) from error
