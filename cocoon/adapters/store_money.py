"""The SQL of money: vouchers, proven reservations, claims; and the file locks that keep ledgers single (rule M1).

Used by `store.py` inside its worker thread and transactions. A voucher row never falls, whatever order writes come
in: the condition is in the statement itself, so no reader can race it.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Final

from ..errors import LocalProtocolError, StoreError
from ..ports import PaymentRecord, StoredClaim, StoredEarning, StoredReservation, StoredVoucher, VoucherSide
from ..types import Digest
from .store_rules import CLAIMS_MAX, EARNING_ROWS_MAX

MONEY_SCHEMA: Final = """
CREATE TABLE vouchers (side INTEGER, network INTEGER, account BLOB, epoch INTEGER, provider BLOB,
                       cumulative INTEGER NOT NULL, ceiling INTEGER NOT NULL, key BLOB NOT NULL,
                       signature BLOB NOT NULL, clean_tokens INTEGER NOT NULL, at_ns INTEGER NOT NULL,
                       PRIMARY KEY (side, network, account, epoch, provider)) WITHOUT ROWID;
CREATE TABLE reservations (network INTEGER, account BLOB, epoch INTEGER, provider BLOB,
                           claimed INTEGER NOT NULL, ceiling INTEGER NOT NULL, proven_s INTEGER NOT NULL,
                           at_ns INTEGER NOT NULL, PRIMARY KEY (network, provider, account, epoch)) WITHOUT ROWID;
CREATE TABLE claims (network INTEGER, account BLOB, epoch INTEGER, provider BLOB, cumulative INTEGER, ceiling INTEGER,
                     submitted_ns INTEGER NOT NULL, confirmed_ns INTEGER NOT NULL, received INTEGER NOT NULL,
                     PRIMARY KEY (network, provider, account, epoch, cumulative, ceiling));
CREATE INDEX claims_by_time ON claims (submitted_ns);
"""

EARNINGS_SCHEMA: Final = """
CREATE TABLE earnings (network INTEGER, provider BLOB, day INTEGER, account BLOB, model BLOB,
                       model_name TEXT NOT NULL, requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
                       cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, due INTEGER NOT NULL,
                       PRIMARY KEY (network, provider, day, account, model));
"""

_SAVE_VOUCHER: Final = (
    "INSERT INTO vouchers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
    " cumulative=excluded.cumulative, ceiling=excluded.ceiling, key=excluded.key, signature=excluded.signature,"
    " clean_tokens=excluded.clean_tokens, at_ns=excluded.at_ns"
    " WHERE excluded.cumulative >= cumulative AND excluded.ceiling >= ceiling"
)
_SAVE_RESERVATION: Final = (
    "INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET claimed=excluded.claimed,"
    " ceiling=excluded.ceiling, proven_s=excluded.proven_s, at_ns=excluded.at_ns"
    " WHERE excluded.proven_s >= proven_s"
)
_SAVE_CLAIM: Final = (
    "INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
    " submitted_ns=excluded.submitted_ns, confirmed_ns=excluded.confirmed_ns, received=excluded.received"
    " WHERE confirmed_ns = 0"
)
_ADD_EARNING: Final = (
    "INSERT INTO earnings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
    " model_name=excluded.model_name, requests=requests+excluded.requests,"
    " prompt_tokens=prompt_tokens+excluded.prompt_tokens, cached_tokens=cached_tokens+excluded.cached_tokens,"
    " completion_tokens=completion_tokens+excluded.completion_tokens, due=due+excluded.due"
)


def save_payments(connection: sqlite3.Connection, records: tuple[PaymentRecord, ...]) -> None:
    """Write all; the caller's savepoint makes it all or none."""
    vouchers: list[tuple[object, ...]] = []
    reservations: list[tuple[object, ...]] = []
    claims: list[tuple[object, ...]] = []
    earned: list[tuple[object, ...]] = []
    for record in records:
        match record:
            case StoredVoucher():
                vouchers.append((
                    int(record.side), record.network, record.account, record.epoch, record.provider,
                    record.cumulative_nano, record.ceiling_nano, record.key, record.signature, record.clean_tokens,
                    record.at_ns,
                ))  # fmt: skip
            case StoredReservation():
                reservations.append((
                    record.network, record.account, record.epoch, record.provider, record.claimed_nano,
                    record.ceiling_nano, record.proven_s, record.at_ns,
                ))  # fmt: skip
            case StoredClaim():
                claims.append((
                    record.network, record.account, record.epoch, record.provider, record.cumulative_nano,
                    record.ceiling_nano, record.submitted_ns, record.confirmed_ns, record.received_nano,
                ))  # fmt: skip
            case StoredEarning():
                earned.append((
                    record.network, record.provider, record.day, record.account, record.model, record.model_name,
                    record.requests, record.prompt_tokens, record.cached_tokens, record.completion_tokens,
                    record.due_nano,
                ))  # fmt: skip
    connection.executemany(_SAVE_VOUCHER, vouchers)
    connection.executemany(_SAVE_RESERVATION, reservations)
    if claims:
        connection.executemany(_SAVE_CLAIM, claims)
        connection.execute(
            "DELETE FROM claims WHERE confirmed_ns > 0 AND rowid IN"
            " (SELECT rowid FROM claims ORDER BY submitted_ns DESC LIMIT -1 OFFSET ?)",
            (CLAIMS_MAX,),
        )
    if earned:
        connection.executemany(_ADD_EARNING, earned)
        connection.execute(
            "DELETE FROM earnings WHERE rowid <= (SELECT max(rowid) FROM earnings) - ?",  # rows come in order of days
            (EARNING_ROWS_MAX,),
        )


def vouchers(
    connection: sqlite3.Connection, side: VoucherSide, *, network: int, party: bytes
) -> tuple[StoredVoucher, ...]:
    """See the port."""
    column = "account" if side is VoucherSide.ISSUED else "provider"
    rows = connection.execute(
        "SELECT account, epoch, provider, cumulative, ceiling, key, signature, clean_tokens, at_ns FROM vouchers"  # noqa: S608 - our own names
        f" WHERE side = ? AND network = ? AND {column} = ? ORDER BY account, epoch, provider",
        (int(side), network, party),
    )
    return tuple(
        StoredVoucher(
            side=side,
            network=network,
            account=account,
            epoch=epoch,
            provider=provider,
            cumulative_nano=cumulative,
            ceiling_nano=ceiling,
            key=key,
            signature=signature,
            clean_tokens=clean_tokens,
            at_ns=at_ns,
        )
        for account, epoch, provider, cumulative, ceiling, key, signature, clean_tokens, at_ns in rows
    )


def reservations(connection: sqlite3.Connection, *, network: int, provider: bytes) -> tuple[StoredReservation, ...]:
    """See the port."""
    rows = connection.execute(
        "SELECT account, epoch, claimed, ceiling, proven_s, at_ns FROM reservations"
        " WHERE network = ? AND provider = ? ORDER BY account, epoch",
        (network, provider),
    )
    return tuple(
        StoredReservation(
            network=network,
            account=account,
            epoch=epoch,
            provider=provider,
            claimed_nano=claimed,
            ceiling_nano=ceiling,
            proven_s=proven_s,
            at_ns=at_ns,
        )
        for account, epoch, claimed, ceiling, proven_s, at_ns in rows
    )


def claims(connection: sqlite3.Connection, *, network: int, provider: bytes, count_max: int) -> tuple[StoredClaim, ...]:
    """See the port."""
    rows = connection.execute(
        "SELECT account, epoch, cumulative, ceiling, submitted_ns, confirmed_ns, received FROM claims"
        " WHERE network = ? AND provider = ? ORDER BY submitted_ns DESC, account, cumulative DESC LIMIT ?",
        (network, provider, count_max),
    )
    return tuple(
        StoredClaim(
            network=network,
            account=account,
            epoch=epoch,
            provider=provider,
            cumulative_nano=cumulative,
            ceiling_nano=ceiling,
            submitted_ns=submitted_ns,
            confirmed_ns=confirmed_ns,
            received_nano=received,
        )
        for account, epoch, cumulative, ceiling, submitted_ns, confirmed_ns, received in rows
    )


def earnings(
    connection: sqlite3.Connection, *, network: int, provider: bytes, since_day: int
) -> tuple[StoredEarning, ...]:
    """See the port."""
    rows = connection.execute(
        "SELECT day, account, model, model_name, requests, prompt_tokens, cached_tokens, completion_tokens, due"
        " FROM earnings WHERE network = ? AND provider = ? AND day >= ? ORDER BY day, account, model",
        (network, provider, since_day),
    )
    return tuple(
        StoredEarning(
            network=network,
            provider=provider,
            account=account,
            model=model,
            model_name=model_name,
            day=day,
            requests=requests,
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=completion,
            due_nano=due,
        )
        for day, account, model, model_name, requests, prompt, cached, completion, due in rows
    )


class Holds:
    """Names held by this store, each an empty locked file beside the database; the kernel frees them at any death."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[Digest, int] = {}

    def take(self, name: Digest) -> None:
        """Raises `LocalProtocolError` when it is taken, `StoreError` when the file cannot be made."""
        if name in self._files:
            raise _held()
        path = self._path.with_name(f"{self._path.name}.{name.hex()[:32]}.lock")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"the lock {path} cannot be made: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise _held() from error
        self._files[name] = descriptor

    def release_all(self) -> None:
        """At close."""
        while self._files:
            _, descriptor = self._files.popitem()
            os.close(descriptor)


def _held() -> LocalProtocolError:
    return LocalProtocolError(
        "another cocoon keeps this ledger",
        advice="Stop the other one, or give this one its own --home and its own payout address or account.",
    )
