"""Where rows and progress go. Levels see only these two protocols."""

from __future__ import annotations

from typing import Protocol


class Sink(Protocol):
    def row(self, table: str, **columns: int | float | str | bytes) -> None:
        """One row of a table ('deliveries', 'lookups', 'trades', 'payments', 'events', 'samples')."""

    def wants(self, table: str) -> bool:
        """False: rows of this table go nowhere, so do not make them."""


class Progress(Protocol):
    def __call__(self, done_share: float, note: str) -> None: ...


class NullSink:
    def row(self, table: str, **columns: int | float | str | bytes) -> None:
        pass

    def wants(self, table: str) -> bool:
        return False
