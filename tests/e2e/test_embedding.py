"""A wheel of this checkout goes into foreign projects without a compiler, by uv and by pip, as the README says.

Needs a package index. Where none can be reached the tests skip, with the installer's own words.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_openai_sdk import uv

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600
CHECK = "import cocoon, p2p, libp2p; from cocoon import Client, aio, ton, trust; assert ton('0.02') == 20_000_000"
UNREACHABLE = re.compile(
    r"dns error|error sending request|Connection refused|NewConnectionError|Temporary failure|Network is unreachable"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hatchling.builders.wheel import WheelBuilder

    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")))))


def environment() -> dict[str, str]:
    """Without this run's own environment, and with compilers that fail."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VIRTUAL_ENV", "PYTHON"))}
    return {**kept, "CC": "/bin/false", "CXX": "/bin/false"}


def run(command: list[str], cwd: Path) -> str:
    ran = subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if ran.returncode != 0 and UNREACHABLE.search(ran.stderr):
        pytest.skip(f"no package index can be reached: {ran.stderr.strip().splitlines()[-1][:200]}")
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    return ran.stdout


def readme_block(language: str, containing: str) -> str:
    """The README's own block, so that what is tested is what is written."""
    for block in re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL):
        if containing in block:
            return str(block)
    raise AssertionError(f"the README has no {language} block with {containing}")


def test_a_foreign_uv_project_needs_the_override_of_the_readme_and_no_compiler(tmp_path: Path, wheel: Path) -> None:
    block = readme_block("toml", "override-dependencies").replace(
        "[project]\n", '[project]\nname = "my-app"\nversion = "0"\nrequires-python = ">=3.11"\n'
    )
    source = f'\n[tool.uv.sources]\ncocoon-network = {{ path = "{wheel}" }}\n'
    (tmp_path / "pyproject.toml").write_text(block + source)
    run([uv(), "run", "--python", sys.executable, "python", "-c", CHECK], tmp_path)
    assert "usage: cocoon COMMAND" in run([uv(), "run", "cocoon", "--help"], tmp_path)


def test_pip_needs_two_steps_and_no_compiler(tmp_path: Path, wheel: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    assert "`pip install -r docs/constraints.txt`" in readme
    assert "`pip install --no-deps libp2p==0.8.1 cocoon-network`" in readme
    run([sys.executable, "-m", "venv", "venv"], tmp_path)
    python = str(tmp_path / "venv" / "bin" / "python")
    run([python, "-m", "pip", "install", "-q", "-r", str(ROOT / "docs" / "constraints.txt")], tmp_path)
    run([python, "-m", "pip", "install", "-q", "--no-deps", "libp2p==0.8.1", str(wheel)], tmp_path)
    run([python, "-c", CHECK], tmp_path)
    assert "usage: cocoon COMMAND" in run([str(tmp_path / "venv" / "bin" / "cocoon"), "--help"], tmp_path)
