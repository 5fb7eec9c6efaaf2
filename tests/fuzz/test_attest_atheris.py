"""The long form of fuzzing, where atheris is installed: see `atheris_attest.py`, which can also be run by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.test_attest_parsers import TARGETS

SECONDS = int(os.environ.get("FUZZ_SECONDS", "60"))


@pytest.mark.long
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed: uv pip install atheris==3.0.0")
@pytest.mark.parametrize("name", TARGETS)
def test_coverage_guided_fuzzing_ends_no_parser(name):
    command = [sys.executable, "-m", "tests.fuzz.atheris_attest", "--seconds", str(SECONDS), name]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4_000:]
