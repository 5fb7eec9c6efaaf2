"""libp2p on loopback keeps the contract of the interface, in real time."""

from __future__ import annotations

import pytest
import trio

import p2p
from p2p.testing.contract import CHECKS, Check

LIMIT_S = 90  # for a check that hangs


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_libp2p_keeps_the_promise(check: Check) -> None:
    async def main() -> None:
        with trio.fail_after(LIMIT_S):
            await check(p2p.open_node)

    trio.run(main)
