"""What importing `p2p` costs and leaves behind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import p2p


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_p2p_imports_neither_libp2p_nor_trio() -> None:
    heavy = "{'libp2p', 'trio', 'nacl', 'multiaddr', 'cryptography'}"
    assert run(f"import p2p, p2p.identity, p2p.addresses, sys; print({heavy} & set(sys.modules))") == "set()"


def test_the_driver_raises_no_warning_and_leaves_the_root_logger_alone() -> None:
    code = """
import logging, trio, p2p
async def main():
    settings = p2p.NodeSettings(allow_private_addresses=True)
    async with p2p.open_node(settings, key=b"a" * 32) as a, p2p.open_node(settings, key=b"b" * 32) as b:
        await b.connect(a.peer, a.addresses())
trio.run(main)
print(logging.root.handlers, logging.getLogger("libp2p.network.auto_connector").getEffectiveLevel())
"""
    assert run(code) == "[] 50"


def test_only_the_driver_imports_libp2p() -> None:
    root = Path(p2p.__file__).parent
    importing = {
        path.relative_to(root).parts[0]
        for path in root.rglob("*.py")
        if re.search(r"^\s*(?:from|import) libp2p\b", path.read_text(), re.MULTILINE)
    }
    assert importing == {"driver"}
