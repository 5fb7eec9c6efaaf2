"""The message that a wallet is sending, on disk before it leaves, so that a killed program never pays twice.

A wallet runs one message per seqno. Who starts again after a crash finds here what was signed, asks the chain whether
it ran, and goes on with the very same message instead of signing another. One lock per wallet: a provider that claims
and a person who types commands take turns.

Not here: what to make of it (`sending`). The file holds a signed message, no key.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from ...errors import PaymentError, StoreError

FILE_BYTES_MAX: Final = 512 * 1024  # 255 transfers with their bodies
LOCK_WAIT_S: Final = 180.0  # a message lives two minutes
LOCK_POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingMessage:
    """A signed message that may have been sent."""

    seqno: int
    valid_until_s: int  # time of the chain
    after_lt: int  # of the wallet's last transaction before it
    transfers: bytes  # digest of what it carries
    purpose: str  # what a command wanted with it, for its second run; empty: nothing that could be asked twice
    message: bytes = field(repr=False)  # a bag of cells


class Journal(Protocol):
    """At most one pending message of one wallet."""

    def locked(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Nobody else sends meanwhile. Raises `PaymentError` when somebody does for too long."""
        ...

    async def load(self) -> PendingMessage | None:
        """What was left. Raises `StoreError` for a damaged file."""
        ...

    async def save(self, pending: PendingMessage) -> None:
        """On disk when it returns. Raises `StoreError`."""
        ...

    async def clear(self) -> None:
        """It is settled."""
        ...


class FileJournal:
    """In a file beside the wallet's."""

    def __init__(self, wallet_path: Path) -> None:
        self._path = wallet_path.with_name(wallet_path.name + ".pending")
        self._lock_path = wallet_path.with_name(wallet_path.name + ".lock")

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """As the protocol says."""
        try:
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"the lock {self._lock_path} cannot be made: {error.strerror}") from error
        try:
            with trio.move_on_after(LOCK_WAIT_S) as waiting:
                while not _try_lock(descriptor):  # noqa: ASYNC110 - the kernel tells nobody when a lock is free
                    await trio.sleep(LOCK_POLL_S)
            if waiting.cancelled_caught:
                raise PaymentError(
                    "another cocoon is sending from this wallet", advice="Wait for it, or stop it; nothing was sent."
                )
            yield
        finally:
            os.close(descriptor)

    async def load(self) -> PendingMessage | None:
        """As the protocol says."""
        try:
            with self._path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self._path} cannot be read: {error.strerror}") from error
        try:
            value = json.loads(data)
            return PendingMessage(
                seqno=_number(value["seqno"]),
                valid_until_s=_number(value["valid_until_s"]),
                after_lt=_number(value["after_lt"]),
                transfers=bytes.fromhex(value["transfers"]),
                purpose=str(value["purpose"]),
                message=base64.b64decode(value["message"], validate=True),
            )
        except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
            raise StoreError(
                f"{self._path} is damaged, so it is not known what this wallet was sending",
                advice="Look at the wallet with `cocoon wallet show` and an explorer, wait two minutes, then delete "
                "that file.",
            ) from error

    async def save(self, pending: PendingMessage) -> None:
        """As the protocol says."""
        text = json.dumps(
            {
                "seqno": pending.seqno,
                "valid_until_s": pending.valid_until_s,
                "after_lt": pending.after_lt,
                "transfers": pending.transfers.hex(),
                "purpose": pending.purpose,
                "message": base64.b64encode(pending.message).decode(),
            }
        )
        await trio.to_thread.run_sync(_replace, self._path, text.encode())

    async def clear(self) -> None:
        """As the protocol says."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("number")
    return value


def _replace(path: Path, data: bytes) -> None:
    """Whole and on disk, or not at all."""
    draft = path.with_name(path.name + ".part")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}; nothing was sent") from error
