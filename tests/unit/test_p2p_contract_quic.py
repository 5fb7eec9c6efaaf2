"""QUIC on loopback keeps the contract of the interface, in real time: the same checks as over TCP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

import p2p
from p2p.testing.contract import CHECKS, Check

LIMIT_S = 90  # for a check that hangs
LISTEN = ("/ip4/127.0.0.1/udp/0/quic-v1",)


@asynccontextmanager
async def open_quic_node(settings: p2p.NodeSettings, *, key: bytes) -> AsyncIterator[p2p.Node]:
    """Where a check says TCP and any port, this listens on QUIC instead; addresses of a node are its own."""
    if settings.listen == ("/ip4/127.0.0.1/tcp/0",):
        settings = replace(settings, listen=LISTEN)
    async with p2p.open_node(settings, key=key) as node:
        assert all("/quic-v1" in address for address in node.addresses())
        yield node


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_quic_keeps_the_promise(check: Check) -> None:
    async def main() -> None:
        with trio.fail_after(LIMIT_S):
            await check(open_quic_node)

    trio.run(main)
