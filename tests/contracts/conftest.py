"""One TVM process for all contract tests, with the prices that mainnet has now."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cocoon.adapters.devnet.tvm import Tvm
from tests.contracts.world import config, open_tvm


@pytest.fixture(scope="session")
def tvm_process() -> Iterator[Tvm]:
    with open_tvm() as tvm:
        yield tvm


@pytest.fixture
def tvm(tvm_process: Tvm) -> Tvm:
    tvm_process.set_config(config())
    return tvm_process
