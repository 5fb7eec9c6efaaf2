"""The real `openai` SDK, 2.x and 3.x, each in an environment of its own, against a gateway on loopback.

The scripts know nothing of what is behind the gateway, so the same ones run against a whole network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import trio

from tests.fakes.gateway import KEY, running_gateway
from tests.fakes.tiny_role import MODEL, tiny_role

SCRIPT = Path(__file__).parent / "sdk_scripts" / "chat_sdk.py"
INSTALL_TIMEOUT_S = 180
RUN_TIMEOUT_S = 120


def uv() -> str:
    """The uv of the README's command, or the one on the path; skips without."""
    beside = Path(__file__).parents[2] / ".uv" / "bin" / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        pytest.skip("needs uv to make environments for the SDK")
    return found


def sdk_command(version: str) -> list[str]:
    """Python with that SDK and nothing of ours."""
    return [uv(), "run", "--quiet", "--isolated", "--no-project", "--with", f"openai=={version}", "python"]


@cache
def why_not_installed(version: str) -> str | None:
    """None when the SDK can be had here; otherwise the reason, in uv's words."""
    command = [*sdk_command(version), "-c", "import openai"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, env=clean_environment()
        )
    except subprocess.TimeoutExpired:
        return "uv took too long"
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1][:200]


def clean_environment() -> dict[str, str]:
    """Without this test run's own environment, and without proxies for loopback."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VIRTUAL_ENV", "PYTHON"))}
    return {**kept, "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}


@pytest.mark.slow
@pytest.mark.parametrize("server", ["h11", "hypercorn"])
@pytest.mark.parametrize("version", ["2.*", "3.*"])
def test_the_real_sdk_gets_everything_from_the_gateway(version: str, server: str) -> None:
    reason = why_not_installed(version)
    if reason is not None:
        pytest.skip(f"openai {version} cannot be installed here: {reason}")

    async def main() -> subprocess.CompletedProcess[bytes]:
        role = tiny_role()
        async with running_gateway(role, server=server) as running:
            environment = {**clean_environment(), "BASE_URL": running.handle.base_url, "API_KEY": KEY, "MODEL": MODEL}
            with trio.fail_after(RUN_TIMEOUT_S):
                done = await trio.run_process(
                    [*sdk_command(version), str(SCRIPT)],
                    env=environment,
                    capture_stdout=True,
                    stderr=subprocess.STDOUT,
                    check=False,
                )
        assert role.cancelled >= 1  # both cancellations of the script, unless one came after the end
        assert role.running == 0
        return done

    done = trio.run(main)
    output = done.stdout.decode()
    assert done.returncode == 0, output
    assert "FAILED" not in output
    assert f"openai {version[0]}." in output, output
    sys.stdout.write(output)
