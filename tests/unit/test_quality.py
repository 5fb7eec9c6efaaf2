"""The tools' verdicts as tests, so that one command says everything: lint, format, types, layers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent
TIMEOUT_S = 600  # mypy without its cache on one slow core


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check", "."], id="ruff"),
        pytest.param(["ruff", "format", "--check", "."], id="format"),
        pytest.param(["mypy", "cocoon", "p2p", "sim"], id="mypy"),
        pytest.param(["lint-imports"], id="layers"),
    ],
)
def test_the_tools_have_no_objection(command: list[str]) -> None:
    ran = subprocess.run(
        [str(TOOLS / command[0]), *command[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
