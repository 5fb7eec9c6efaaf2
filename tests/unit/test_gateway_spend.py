"""The spending ledger: never above the day's cap, whatever runs at once, over restarts too."""

from __future__ import annotations

from pathlib import Path

import pytest

from cocoon.errors import ConfigError, LocalProtocolError, StoreError
from cocoon.gateway.spend import DAY_NS, DayFile, DayTotal, SpendLedger

NOON = 20_000 * DAY_NS + DAY_NS // 2
MOST = 1_000  # more than any cap here


def test_a_request_reserves_its_cap_and_pays_what_it_cost() -> None:
    ledger = SpendLedger(request_max_nano=10, day_max_nano=25)
    one = ledger.reserve(most_nano=MOST, now=NOON)
    assert (one.amount_nano, one.is_reduced, ledger.reserved_nano) == (10, False, 10)
    ledger.settle(one, 3, now=NOON)
    assert (ledger.spent_nano, ledger.reserved_nano) == (3, 0)


def test_a_request_that_cannot_cost_its_cap_reserves_less() -> None:
    ledger = SpendLedger(request_max_nano=10, day_max_nano=25)
    held = [ledger.reserve(most_nano=1, now=NOON) for _ in range(25)]
    assert {(one.amount_nano, one.is_reduced) for one in held} == {(1, False)}
    assert ledger.reserve(most_nano=1, now=NOON).is_reduced
    assert not ledger.reserve(most_nano=0, now=NOON).is_reduced


def test_many_at_once_never_reserve_more_than_the_day_has() -> None:
    ledger = SpendLedger(request_max_nano=10, day_max_nano=25)
    held = [ledger.reserve(most_nano=MOST, now=NOON) for _ in range(5)]
    assert [one.amount_nano for one in held] == [10, 10, 5, 0, 0]
    assert [one.is_reduced for one in held] == [False, False, True, True, True]
    for one in held:
        ledger.settle(one, one.amount_nano, now=NOON)
    assert ledger.spent_nano == 25
    assert ledger.reserve(most_nano=MOST, now=NOON).amount_nano == 0
    assert "0.000000025 TON" in str(ledger.cap_reached())


def test_a_new_day_has_a_new_budget_and_a_clock_set_back_has_not() -> None:
    ledger = SpendLedger(request_max_nano=10, day_max_nano=10)
    over_midnight = ledger.reserve(most_nano=MOST, now=NOON)
    assert ledger.reserve(most_nano=MOST, now=NOON + DAY_NS).amount_nano == 0  # what still runs stays set aside
    ledger.settle(over_midnight, 4, now=NOON + DAY_NS)
    assert ledger.spent_nano == 4
    assert ledger.reserve(most_nano=MOST, now=NOON - 5 * DAY_NS).amount_nano == 6
    assert ledger.spent_nano == 4


def test_settling_twice_is_a_bug_that_changes_nothing() -> None:
    ledger = SpendLedger(request_max_nano=10, day_max_nano=20)
    one = ledger.reserve(most_nano=MOST, now=NOON)
    ledger.settle(one, 1, now=NOON)
    with pytest.raises(LocalProtocolError):
        ledger.settle(one, 1, now=NOON)
    assert (ledger.spent_nano, ledger.reserved_nano) == (1, 0)


def test_a_restart_counts_what_was_reserved_as_spent(tmp_path: Path) -> None:
    file = DayFile(tmp_path / "spend.json")
    assert file.load() is None
    first = SpendLedger(request_max_nano=10, day_max_nano=30, persist=file.save)
    first.settle(first.reserve(most_nano=MOST, now=NOON), 7, now=NOON)
    first.reserve(most_nano=MOST, now=NOON)  # and then the process dies
    assert file.load() == DayTotal(day=20_000, committed_nano=17)
    second = SpendLedger(request_max_nano=20, day_max_nano=30, restored=file.load(), persist=file.save)
    assert second.reserve(most_nano=MOST, now=NOON).amount_nano == 13
    assert (tmp_path / "spend.json").stat().st_mode & 0o077 == 0


def test_free_use_writes_nothing(tmp_path: Path) -> None:
    file = DayFile(tmp_path / "spend.json")
    ledger = SpendLedger(request_max_nano=0, day_max_nano=0, persist=file.save)
    ledger.settle(ledger.reserve(most_nano=MOST, now=NOON), 0, now=NOON)
    assert list(tmp_path.iterdir()) == []


def test_money_that_cannot_be_recorded_is_not_reserved(tmp_path: Path) -> None:
    ledger = SpendLedger(request_max_nano=10, day_max_nano=20, persist=DayFile(tmp_path / "no" / "file").save)
    with pytest.raises(StoreError):
        ledger.reserve(most_nano=MOST, now=NOON)
    assert (ledger.spent_nano, ledger.reserved_nano) == (0, 0)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"[1,-1]", b"[1,1.5]", b"[1,1]" + b" " * 300, b"\xff"])
def test_a_damaged_record_is_refused_not_ignored(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "spend.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        DayFile(path).load()
