"""The repository itself: what is in the wheel, what is in the root, what no file may say, what `--help` may import."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".yml", ".json", ".jinja", ".tolk", ".tlb", ""}
# Names of work trees and machines, and words about how the work is organised, belong to nobody's checkout.
FORBIDDEN = ("/wo" + "rk/", "/ro" + "ot/", "TO" + "DO", "FIX" + "ME", "X" + "XX ")
HEAVY = ("libp2p", "trio", "msgspec", "structlog", "starlette", "cryptography", "nacl", "p2p", "xllamacpp", "anyio")


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def test_the_wheel_holds_cocoon_and_p2p_and_nothing_else(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    assert {name.split("/")[0] for name in names} == {"cocoon", "p2p", "cocoon_network-0.1.0.dist-info"}
    assert not [name for name in names if "tiny_model/" in name], "the test model's trainer stays in the checkout"
    assert [name for name in names if name.endswith(".gguf")], "the test model ships"
    assert "cocoon/py.typed" in names
    assert "p2p/py.typed" in names
    assert not [name for name in names if "__pycache__" in name]


def test_the_root_holds_only_what_a_reader_expects() -> None:
    expected = {
        *("cocoon", "p2p", "contracts", "sim", "tests", "docs", "examples"),
        *("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"),
    }
    found = {path.relative_to(ROOT).parts[0] for path in tracked_files()}
    assert {name for name in found if not name.startswith(".")} - expected == set()


@pytest.mark.parametrize("folder", ["cocoon", "p2p", "contracts", "sim", "tests", "docs", "examples"])
def test_every_top_folder_explains_itself_and_its_decisions(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    assert len(text) > 200
    if folder not in ("docs", "examples"):
        assert "## Decisions" in text


def test_no_file_tells_of_this_machine_or_of_work_left_over() -> None:
    found = []
    for path in tracked_files():
        if path.suffix not in TEXT_SUFFIXES or path.stat().st_size > 2_000_000:
            continue
        text = path.read_text(errors="replace")
        found += [f"{path.relative_to(ROOT)}: {word}" for word in FORBIDDEN if word in text]
    assert found == []


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from cocoon.cli import main; main(['--help'])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "usage: cocoon COMMAND" in ran.stdout
    assert ran.stderr.strip() == "[]"


def test_importing_cocoon_costs_nothing() -> None:
    code = f"import sys, cocoon; print([name for name in {HEAVY!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_version_is_said_once_and_the_changelog_knows_it() -> None:
    import cocoon

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert cocoon.__version__ == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_constraints_for_pip_fit_the_dependencies() -> None:
    """Every dependency apart from libp2p is pinned there, within the range that pyproject gives."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins: dict[str, str] = {}
    for line in (ROOT / "docs" / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            (specifier,) = pin.specifier
            pins[canonicalize_name(pin.name)] = specifier.version
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        needed = Requirement(text)
        if needed.name != "libp2p":
            assert needed.specifier.contains(pins[canonicalize_name(needed.name)]), text
    assert pins["fastecdsa"].split(".")[0] >= "4"
    assert "libp2p" not in pins


def test_the_readme_shows_commands_that_exist() -> None:
    from cocoon.cli import COMMANDS

    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "getting-started.md").read_text()
    shown = set(re.findall(r"(?<!from )\bcocoon ([a-z]+)\b(?= |`|$)", "\n".join(_code_of(text))))
    assert shown - set(COMMANDS) == set()
    assert {"demo", "serve", "gateway", "chat"} <= shown


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in [path for path in tracked_files() if path.suffix == ".md"]:
        for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_every_command_has_help_with_json_and_its_file() -> None:
    from cocoon.cli import COMMANDS, main

    for name, command in COMMANDS.items():
        found = ROOT / "cocoon" / "cli" / command.module
        assert found.with_suffix(".py").is_file() or (found / "__init__.py").is_file()
        assert main([name, "--help"]) == 0


def _code_of(markdown: str) -> list[str]:
    blocks = re.findall(r"```[a-z]*\n(.*?)```", markdown, flags=re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", markdown)
    return blocks + inline
