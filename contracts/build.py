"""Compiles the contracts with the pinned compiler and writes the package data: `python contracts/build.py [--check]`.

`--check` writes nothing and fails when the shipped code is not what the sources compile to. Needs Node; the compiler
is fetched once, from the lock file beside this script.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "contracts"
DATA = ROOT / "cocoon" / "data" / "contracts"
CONTRACTS = ("account", "stake")
TIMEOUT_S = 180

sys.path.insert(0, str(ROOT))

from cocoon.adapters.devnet.nodejs import NodeJs, find_node, install_packages  # noqa: E402


def compiler(cache: Path, progress: Any = print) -> tuple[NodeJs, Path]:
    """Node and the folder of the compiler. Raises `ConfigError` or `Unavailable`."""
    node = find_node()
    modules = install_packages(HERE, cache, node=node, progress=progress)
    return node, modules.absolute() / "@ton" / "tolk-js"


def compile_all(node: NodeJs, tolk: Path, entries: dict[str, Path]) -> dict[str, Any]:
    """`{"compiler": …, "contracts": {name: {"code_boc_base64", "code_hash_hex"} or {"error"}}}`."""
    ran = subprocess.run(
        [str(node.node), str(HERE / "build.mjs"), str(tolk), *(f"{name}={entry}" for name, entry in entries.items())],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    result: dict[str, Any] = json.loads(ran.stdout)
    return result


def package_data(built: dict[str, Any], name: str) -> str:
    """What `cocoon/data/contracts/NAME.json` holds."""
    entry = built["contracts"][name]
    if "error" in entry:
        raise SystemExit(f"{name}: {entry['error']}")
    return json.dumps({"name": name, "compiler": built["compiler"], **entry}, indent=1) + "\n"


def main() -> int:
    """Build or check; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    node, tolk = compiler(ROOT / "build" / "npm", lambda text: print(text, file=sys.stderr))
    built = compile_all(node, tolk, {name: HERE / name / "contract.tolk" for name in CONTRACTS})
    stale = []
    for name in CONTRACTS:
        file, text = DATA / f"{name}.json", package_data(built, name)
        if not arguments.check:
            DATA.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            stale.append(name)
        print(f"{name} {built['contracts'][name]['code_hash_hex']}")
    if stale:
        print(f"stale: {', '.join(stale)}; run python contracts/build.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
