"""How much the gateway may spend: reserved before a request runs, settled after it (rule H1). Int nanoTON only.

The ledger is pure: time comes in as `now`, and every change goes to `persist` before it counts. `DayFile` keeps
the day's total in a small file, so that a restart does not open a new budget.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from ..errors import ConfigError, LocalProtocolError, SpendCapReached, StoreError
from ..types import SECOND_NS, Nano, format_ton

DAY_NS: Final = 86_400 * SECOND_NS
FILE_BYTES_MAX: Final = 256  # two integers


@dataclass(frozen=True, slots=True, kw_only=True)
class DayTotal:
    """Spent on one UTC day (days since the epoch), open reservations included."""

    day: int
    committed_nano: Nano


@dataclass(slots=True, kw_only=True, eq=False)
class Reservation:
    """Money set aside for one request. `amount_nano` is what it may cost at most; 0 still allows free offers."""

    amount_nano: Nano
    is_reduced: bool  # the day had less left than the request might cost
    is_open: bool = True


class SpendLedger:
    """One day's budget, shared by all requests.

    `committed = spent + reserved` never passes the day's cap by a reservation. A request that runs over midnight
    counts on the day it ends.
    """

    def __init__(
        self,
        *,
        request_max_nano: Nano,
        day_max_nano: Nano,
        restored: DayTotal | None = None,
        persist: Callable[[DayTotal], None] | None = None,
    ) -> None:
        self._request_max_nano = request_max_nano
        self._day_max_nano = day_max_nano
        self._persist = persist
        self._day = restored.day if restored is not None else 0
        self._spent_nano: Nano = restored.committed_nano if restored is not None else 0
        self._reserved_nano: Nano = 0

    @property
    def request_max_nano(self) -> Nano:
        """What any one request may cost."""
        return self._request_max_nano

    @property
    def spent_nano(self) -> Nano:
        """Settled today."""
        return self._spent_nano

    @property
    def reserved_nano(self) -> Nano:
        """Set aside for requests that run now."""
        return self._reserved_nano

    def reserve(self, *, most_nano: Nano, now: int) -> Reservation:
        """Set aside what one request may cost: `most_nano`, its cap, or what the day has left, whichever is least.

        With nothing left the request can still use free offers; when there are none, the caller raises
        `cap_reached()`. Raises `StoreError`; then nothing has changed.
        """
        self._turn_day(now)
        left = max(0, self._day_max_nano - self._spent_nano - self._reserved_nano)
        wanted = min(most_nano, self._request_max_nano)
        amount = min(wanted, left)
        if amount:
            self._save(self._spent_nano, self._reserved_nano + amount)
        return Reservation(amount_nano=amount, is_reduced=amount < wanted)

    def cap_reached(self) -> SpendCapReached:
        """Why a request with a reduced reservation found nobody."""
        return SpendCapReached(
            f"today's spending cap of {format_ton(self._day_max_nano)} TON is reached: "
            f"{format_ton(self._spent_nano)} spent, {format_ton(self._reserved_nano)} set aside for running requests",
            advice="Raise the gateway's daily cap, wait for running requests, or wait for midnight UTC.",
        )

    def settle(self, reservation: Reservation, cost_nano: Nano, *, now: int) -> None:
        """Replace the reservation by what the request did cost. Raises `LocalProtocolError` when done twice."""
        if not reservation.is_open:
            raise LocalProtocolError("a reservation was settled twice")
        reservation.is_open = False
        self._turn_day(now)
        if reservation.amount_nano or cost_nano:
            self._save(self._spent_nano + cost_nano, self._reserved_nano - reservation.amount_nano)

    def _turn_day(self, now: int) -> None:
        day = now // DAY_NS
        if day > self._day:  # a clock that went back opens no new budget
            self._day, self._spent_nano = day, 0

    def _save(self, spent_nano: Nano, reserved_nano: Nano) -> None:
        if self._persist is not None:
            self._persist(DayTotal(day=self._day, committed_nano=spent_nano + reserved_nano))
        self._spent_nano, self._reserved_nano = spent_nano, reserved_nano


class DayFile:
    """The day's total in a file of mode 0600, replaced whole. Survives a crash of the program."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> DayTotal | None:
        """What was kept, or None on the first start. Raises `ConfigError` on anything else in the file."""
        try:
            with self._path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"cannot read the spending record {self._path}: {error.strerror}") from error
        try:
            day, committed_nano = msgspec.json.decode(data, type=tuple[int, int])
        except ValueError as error:
            raise ConfigError(
                f"the spending record {self._path} is damaged",
                advice="Delete it to start the day's budget anew.",
            ) from error
        if len(data) > FILE_BYTES_MAX or day < 0 or committed_nano < 0:
            raise ConfigError(f"the spending record {self._path} is damaged")
        return DayTotal(day=day, committed_nano=committed_nano)

    def save(self, total: DayTotal) -> None:
        """Raises `StoreError`; then the old total stands."""
        part = self._path.with_name(self._path.name + ".part")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(msgspec.json.encode((total.day, total.committed_nano)))
            part.replace(self._path)
        except OSError as error:
            raise StoreError(f"cannot write the spending record {self._path}: {error.strerror}") from error
