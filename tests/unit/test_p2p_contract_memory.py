"""The memory network keeps the contract of the interface, in virtual time."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from p2p.testing import MemoryNetwork
from p2p.testing.contract import CHECKS, Check


@pytest.mark.parametrize("delay_s", [0.0, 0.02])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_memory_network_keeps_the_promise(check: Check, delay_s: float) -> None:
    async def main() -> None:
        await check(MemoryNetwork(delay_s=delay_s).open_node)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
