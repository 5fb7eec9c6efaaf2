"""The driver's parts as level 0 opens them: with the scenario's settings, counted, and asked what programs do not ask.

Not here: the nodes and their workloads (`whole.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import p2p.driver.node
from p2p.driver.gossip_driver import Gossip
from p2p.driver.kad_driver import Dht
from p2p.gossip import Send
from p2p.kad import ClosestFound
from sim.levels.counts import Sent
from sim.levels.dht import kad_settings
from sim.levels.gossip import gossip_settings
from sim.net.sockets import SimHost, current_host
from sim.scenario import DhtSpec, GossipSpec, Scenario

NEVER_S = 1e9


def clock_host(host: SimHost) -> Any:
    """Sockets and entropy of what runs within are the host's."""
    return host.hosts.as_host(host)


class CountedGossip(Gossip):
    """The driver's gossip, and what it sends is counted."""

    def __init__(self, *args: Any, sent: Sent, **named: Any) -> None:
        super().__init__(*args, **named)
        self._sent = sent

    def _enqueue(self, effect: Send) -> None:
        self._sent.count(effect.rpc, len(effect.peers))
        super()._enqueue(effect)


class AskedDht(Dht):
    """The driver's DHT, which can also be asked for the peers closest to a key."""

    async def find_closest(self, key: bytes) -> list[bytes]:
        await self._wait_known()
        result = await self._result(*self.node.find_closest(key, now=self._now()))
        return [found.peer for found in result.peers] if isinstance(result, ClosestFound) else []


@contextmanager
def scenario_settings(scenario: Scenario, sent: Sent, roles: list[tuple[str, ...]]) -> Iterator[None]:
    """Nodes that are opened within it have the scenario's settings of gossip and DHT, which the driver fixes."""
    module: Any = p2p.driver.node
    was = module.Gossip, module.Dht
    spec = scenario.gossip or GossipSpec()
    module.Gossip = partial(CountedGossip, settings=gossip_settings(spec), sent=sent)
    settings = kad_settings(scenario.dht or DhtSpec())
    quiet = replace(settings, refresh_first_s=NEVER_S)  # a node without the role knows whom it is connected to, no more

    def new_dht(*args: Any, **named: Any) -> Dht:
        host = current_host()
        has_role = host is not None and "dht" in roles[host.number]
        return AskedDht(*args, settings=settings if has_role else quiet, **named)

    module.Dht = new_dht
    try:
        yield
    finally:
        module.Gossip, module.Dht = was
