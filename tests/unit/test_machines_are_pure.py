"""Machines take time and chance from outside. import-linter sees imports; this sees what comes without one."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PURE = [
    *("cocoon/errors.py", "cocoon/types.py", "cocoon/wire", "cocoon/ports"),
    *("cocoon/attest", "cocoon/market", "cocoon/pay", "cocoon/serve"),
    *("p2p/gossip", "p2p/kad", "p2p/yamux", "p2p/noise", "p2p/reach", "p2p/framing.py", "p2p/protobuf.py"),
    *("p2p/transport/machine.py", "p2p/transport/multistream.py", "p2p/testing/virtual"),
]
CLOCKS = {"now", "utcnow", "today"}  # of datetime and date
HIDDEN = {"__import__", "import_module", "open", "input", "id"}  # id differs between processes


def sources() -> list[Path]:
    found = [path for name in PURE for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))]
    assert len(found) > 60
    return sorted(found)


def offences(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in HIDDEN:
            found.append(f"{node.lineno}: {called.id}()")
        if isinstance(called, ast.Attribute) and called.attr in CLOCKS:
            owner = ast.unparse(called.value)
            if owner.split(".")[-1] in ("datetime", "date"):
                found.append(f"{node.lineno}: {owner}.{called.attr}()")
    return found


def test_no_machine_reads_a_clock_or_a_file_or_what_differs_between_processes() -> None:
    found = {
        str(path.relative_to(ROOT)): wrong
        for path in sources()
        if (wrong := offences(path.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_the_check_sees_what_it_should() -> None:
    assert offences("import datetime\nx = datetime.datetime.now()\n") == ["2: datetime.datetime.now()"]
    assert offences("x = date.today()\ny = id(x)\n") == ["1: date.today()", "2: id()"]
    assert offences("x = machine.on_time(now=now)\nidentity(x)\n") == []


def test_every_machine_is_under_the_contracts_of_imports() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    clockless = [contract for contract in contracts if "time" in contract.get("forbidden_modules", ())]
    covered = {module.replace(".", "/") for contract in clockless for module in contract["source_modules"]}
    assert {name.removesuffix(".py") for name in PURE} == covered
