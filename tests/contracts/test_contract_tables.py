"""What is written down beside the contracts is true: code, numbers of errors and ops, gas."""

from __future__ import annotations

import importlib.util
import json
import re
from types import ModuleType

import pytest

from cocoon.adapters.devnet.tvm import Tvm
from cocoon.adapters.ton import contracts
from cocoon.errors import ConfigError, Unavailable
from tests.contracts.gas import END, START, TABLE, markdown, measured
from tests.contracts.world import PACKAGES, ROOT

HEADROOM = 1.05
TARGETS = {  # the ceilings that were set before these contracts were written
    "account: claim, own entry of 16": 9_000,
    "account: claim, own entry of 128": 12_200,
    "account: claim, new entry beside 128": 13_100,
    "account: open": 3_400,
    "account: notice": 2_400,
    "account: withdraw all, 128 entries": 4_600,
    "stake: slash": 7_600,
}


def build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("contracts_build", ROOT / "contracts" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_shipped_code_is_what_the_sources_compile_to() -> None:
    build = build_script()
    try:
        node, tolk = build.compiler(PACKAGES, lambda _: None)
    except (ConfigError, Unavailable) as error:
        pytest.skip(f"needs Node.js and the Tolk compiler: {error}")
    entries = {name: ROOT / "contracts" / name / "contract.tolk" for name in build.CONTRACTS}
    built = build.compile_all(node, tolk, entries)
    for name in build.CONTRACTS:
        shipped = (ROOT / "cocoon" / "data" / "contracts" / f"{name}.json").read_text()
        assert shipped == build.package_data(built, name), "run python contracts/build.py"


@pytest.mark.parametrize(("name", "mirror"), [("account", contracts.ACCOUNT_ERRORS), ("stake", contracts.STAKE_ERRORS)])
def test_every_error_number_is_unique_and_mirrored_in_python(name: str, mirror: dict[int, str]) -> None:
    text = (ROOT / "contracts" / name / "errors.tolk").read_text()
    found = re.findall(r"const ERR_(\w+) = (\w+)", text)
    assert {int(number, 0): word.lower() for word, number in found} == mirror
    assert len({int(number, 0) for _, number in found}) == len(found)
    page = (ROOT / "contracts" / name / "README.md").read_text()
    for _, number in found:
        assert f"| {int(number, 0)} |" in page, "the specification page knows it"


def test_no_error_number_but_unknown_op_means_two_things() -> None:
    assert set(contracts.ACCOUNT_ERRORS) & set(contracts.STAKE_ERRORS) == {0xFFFF}


def test_ops_in_tolk_the_schema_and_python_agree() -> None:
    schema = (ROOT / "contracts" / "types.tlb").read_text()
    in_tolk = {}
    for name in ("account", "stake"):
        text = (ROOT / "contracts" / name / "messages.tolk").read_text()
        in_tolk.update({word: int(op, 16) for op, word in re.findall(r"struct \(0x(\w{8})\) (\w+)", text)})
    in_schema = {
        "".join(part.title() for part in word.split("_")): int(op, 16)
        for word, op in re.findall(r"^(\w+)#(acc0\w{4}|57a4\w{4})", schema, re.MULTILINE)
    }
    assert in_tolk == in_schema
    for word, op in in_tolk.items():
        constant = re.sub(r"(?<!^)(?=[A-Z])", "_", word).upper()
        assert getattr(contracts, constant) == op


def test_no_path_costs_five_per_cent_more_gas_than_is_written_down(tvm: Tvm) -> None:
    written = json.loads(TABLE.read_text())
    now = measured(tvm)
    assert now.keys() == written.keys()
    for name, row in now.items():
        assert row["gas"] <= written[name]["gas"] * HEADROOM, name
        assert row["gas"] >= written[name]["gas"] / HEADROOM, f"{name} got cheaper: python -m tests.contracts.gas"


def test_the_written_gas_meets_the_targets() -> None:
    written = json.loads(TABLE.read_text())
    for name, limit in TARGETS.items():
        assert written[name]["gas"] <= limit, name


@pytest.mark.parametrize("contract", ["account", "stake"])
def test_the_specification_page_shows_the_committed_gas(contract: str) -> None:
    page = (ROOT / "contracts" / contract / "README.md").read_text()
    shown = page.split(START)[1].split(END)[0].strip()
    assert shown == markdown(json.loads(TABLE.read_text()), contract)
