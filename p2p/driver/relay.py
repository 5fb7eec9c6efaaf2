"""A limited circuit relay v2 for others: for public nodes (`NodeSettings.relay`).

Only the relay's own side ("hop") is offered. Being reached through a relay, and dialling through one, are not
built yet: such addresses are told as failures of their own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libp2p.relay.circuit_v2.protocol import PROTOCOL_ID as HOP
from libp2p.relay.circuit_v2.protocol import STOP_PROTOCOL_ID as STOP
from libp2p.relay.circuit_v2.protocol import CircuitV2Protocol
from libp2p.relay.circuit_v2.resources import RelayLimits
from libp2p.tools.anyio_service import background_trio_service

from p2p.driver.host import GuardedHost
from p2p.interface import MIB

RELAY_LIMITS = RelayLimits(
    duration=120,  # seconds of one relayed connection: enough to punch a hole, or for one answer
    data=1 * MIB,  # of one relayed connection
    max_circuit_conns=32,
    max_reservations=128,
)

__all__ = ["HOP", "running_relay"]


@asynccontextmanager
async def running_relay(host: GuardedHost) -> AsyncIterator[None]:
    relay = CircuitV2Protocol(host, RELAY_LIMITS, allow_hop=True)
    async with background_trio_service(relay):
        await relay.event_started.wait()
        host.remove_stream_handler(STOP)  # for those who are reached through a relay, which we are not
        yield
