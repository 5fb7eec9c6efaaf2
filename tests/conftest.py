"""Shared by all tests: how far the short forms got, and a home that is nobody's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

HowFar = Callable[..., None]

_lines: list[str] = []


@pytest.fixture
def how_far() -> HowFar:
    """`how_far("session fuzz", 200, 100_000, "streams")`: a test that is the short form of a long one says how far it
    got. The lines are printed at the end of the run, so that a green run does not look like more than it is."""

    def say(what: str, done: int, whole: int, unit: str) -> None:
        _lines.append(f"{what}: {done:,} of {whole:,} {unit}")

    return say


@pytest.fixture(autouse=True)
def _no_home_of_a_person(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the home of whoever runs the tests."""
    monkeypatch.setenv("COCOON_HOME", str(Path(tmp_path_factory.getbasetemp()) / "home"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _lines:
        terminalreporter.section("short forms (the long ones: pytest -m long)")
        for line in _lines:
            terminalreporter.line(line)
