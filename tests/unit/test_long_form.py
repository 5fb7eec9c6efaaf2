"""The long form of a suite goes on where it was stopped, and a failed round is not counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.long_form import LongForm


def test_a_stopped_suite_goes_on_with_the_next_round_and_the_other_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COCOON_LONG_STATE", str(tmp_path / "state"))
    for suite, rounds in (("one", 3), ("other", 1)):
        for number in range(rounds):
            form = LongForm(suite)  # as a new process would
            with form.round() as current:
                assert current == number
                form.note(memory_mib=10 - number)
    form = LongForm("one")
    with pytest.raises(ZeroDivisionError), form.round():
        1 / 0  # noqa: B018
    form = LongForm("one")
    assert (form.rounds, form.most) == (3, {"memory_mib": 10})
    assert LongForm("other").rounds == 1


def test_a_suite_is_over_when_its_time_is_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOON_LONG_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("COCOON_LONG_S", "0.01")
    form = LongForm("one")
    while form.is_due:
        with form.round():
            pass
    assert not LongForm("one").is_due
    monkeypatch.delenv("COCOON_LONG_STATE")
    assert LongForm("one").is_due
