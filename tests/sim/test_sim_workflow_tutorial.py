"""Every command of the tutorial runs, as it stands there, on a network of a dozen nodes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "simulation.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHRINK = {
    "gossip": ("nodes.honest.count=12", "gossip.dials=4", "run.until_s=12", "gossip.publish_until_s=10"),
    "dht": ("nodes.honest.count=40", "dht.lookups=10", "dht.lookups_from_s=10", "run.until_s=20"),
    "market": ("nodes.providers.count=4", "nodes.clients.count=6", "run.until_s=75"),
}


def steps() -> list[tuple[str, str]]:
    """(language, one command or one block) in the order of the page."""
    found: list[tuple[str, str]] = []
    for language, text in BLOCK.findall(PAGE):
        if language == "sh":
            found += [("sh", line) for line in text.splitlines() if line.strip()]
        else:
            found.append((language, text))
    return found


def shrunk(command: list[str]) -> list[str]:
    """The same command with few nodes. What the page sets itself is overruled: the last one wins."""
    if command[3] not in ("run", "sweep"):
        return command
    scenario = command[4]
    kind = "dht" if scenario.startswith("dht") else "gossip" if "gossip" in scenario or "mine" in scenario else "market"
    return command + [word for setting in SHRINK[kind] for word in ("--set", setting)]


def test_the_page_has_a_command_for_each_part_of_the_workflow() -> None:
    commands = {shlex.split(text)[3] for language, text in steps() if language == "sh"}
    assert {"list", "run", "sweep", "replay", "diff", "report", "new"} <= commands
    for word in ("xval", "bench", "--dask", "--resume"):
        assert word in PAGE


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs_from_top_to_bottom(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for language, text in steps():
        if language == "sh":
            words = shlex.split(text)
            assert words[:3] == ["python", "-m", "sim"], text
            command = [sys.executable, *shrunk(words)[1:]]
        elif language == "python":
            command = [sys.executable, "-c", text]
        elif language == "toml":
            (tmp_path / "other.toml").write_text(text, encoding="utf-8")
            command = [sys.executable, "-m", "sim", "run", "other.toml", "--seed", "1"]
            command += ["--set", "nodes.honest.count=12", "--set", "nodes.slow.count=4", "--set", "gossip.dials=4"]
            command += ["--set", "run.until_s=12", "--set", "gossip.publish_until_s=10"]
        else:
            pytest.fail(f"a block of {language}: say how to run it")
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
        assert done.stdout.strip(), text
    for made in ("first", "v10", "loss", "latin", "second", "market", "stalling", "outage"):
        page = tmp_path / "runs" / made / "report.html"
        assert page.is_file() and "<svg" in page.read_text(encoding="utf-8"), made
