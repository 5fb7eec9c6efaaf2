"""Faults, drawn from a seed, done to a world and the market on it: crashes at any step, partitions, clocks, disks,
chain.

    faults = Faults(world, market, rates, rng=stream(seed, "chaos")); faults.begin(until_ns)
    faults.heal()                  # everything up, joined, in time, on chain

A crash comes at a random instant, or (a trap) within the few milliseconds around a write, which is where order
matters: before it, between its commit and its acknowledgement, after that. What was not committed is gone or, as torn
writes are, there all the same. Not here: what must hold meanwhile (`laws`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from cocoon.types import MILLISECOND_NS, SECOND_NS
from sim.econ.client import ClientPeer
from sim.econ.env import SimDisk
from sim.econ.provider import ProviderPeer
from sim.rng import Stream

KEEPALIVE_NS: Final = 10 * SECOND_NS  # connections over a cut end when a keep-alive notices
SLOW_DISK_NS: Final = 400 * MILLISECOND_NS


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How often each fault comes, per second of virtual time, and how long it lasts (exponential, mean)."""

    crash_per_s: float = 0.05
    crash_for_s: float = 6.0
    trap_share: float = 0.004  # of writes around which their node dies
    torn_share: float = 0.5  # of crashes whose unacknowledged writes reached the disk
    lying_share: float = 0.0  # of providers' crashes that lose the last write although it was acknowledged
    partition_per_s: float = 0.02
    partition_for_s: float = 12.0
    clock_per_s: float = 0.03
    clock_jump_s: float = 45.0
    disk_per_s: float = 0.04
    disk_for_s: float = 4.0
    chain_per_s: float = 0.02
    chain_for_s: float = 20.0
    reorg_per_s: float = 0.01
    reorg_blocks_max: int = 1
    loss_per_s: float = 0.02
    loss_for_s: float = 5.0
    loss: float = 0.3


SLOW: Final = Rates(
    crash_per_s=1 / 1_000,
    crash_for_s=300.0,
    partition_per_s=1 / 3_000,
    partition_for_s=500.0,
    clock_per_s=1 / 3_000,
    clock_jump_s=500.0,
    disk_per_s=1 / 2_000,
    disk_for_s=100.0,
    chain_per_s=1 / 4_000,
    chain_for_s=2_500.0,
    reorg_per_s=1 / 2_000,
    loss_per_s=1 / 2_000,
    loss_for_s=60.0,
)
"""For stories of hours: everything comes seldom and lasts."""


class Faults:
    """See the file's head. `market` may be None: then nodes crash, split, and lose their clocks."""

    def __init__(self, world: Any, market: Any, rates: Rates, *, rng: Stream) -> None:
        self.world = world
        self.market = market
        self.rates = rates
        self.rng = rng
        self.counts: dict[str, int] = {}
        self.log: list[str] = []
        self._kernel = world.kernel
        self._until_ns = 0
        self._is_on = False
        self._partitions: set[int] = set()
        self._down: set[int] = set()
        self._peers: dict[int, ProviderPeer | ClientPeer] = {}
        self._loss_before = world.network.loss
        if market is not None:
            self._peers = {peer.number: peer for peer in (*market.providers, *market.clients)}
            for peer in self._peers.values():
                disk_of(peer).on_save = self._trap_for(peer)

    def begin(self, until_ns: int) -> None:
        """From now on, until then."""
        self._is_on = True
        self._until_ns = until_ns
        rates = self.rates
        self._every(rates.crash_per_s, self._crash_somebody)
        self._every(rates.partition_per_s, self._part)
        self._every(rates.clock_per_s, self._jump)
        self._every(rates.loss_per_s, self._lose)
        if self.market is not None:
            self._every(rates.disk_per_s, self._break_disk)
            self._every(rates.chain_per_s, self._stop_chain)
            self._every(rates.reorg_per_s, self._reorganise)

    def heal(self) -> None:
        """No more faults, and none that lasts."""
        self._is_on = False
        for partition in sorted(self._partitions):
            self.world.network.heal(partition)
        self._partitions.clear()
        self.world.network.loss = self._loss_before
        if self.market is not None:
            chain = self.market.chain
            chain.out_until_ns = 0
            chain.terms = replace(chain.terms, fail_rate=0.0)
        for peer in self._peers.values():
            disk_of(peer).fails = False
            disk_of(peer).write_ns = 2 * MILLISECOND_NS
            disk_of(peer).on_save = None
        for node in self.world.nodes:
            self._shift(node, -node.clock_offset)
            if not node.is_up:
                self.world.start(node)
        self._down.clear()

    def _every(self, per_s: float, fault: Callable[[], None]) -> None:
        if per_s <= 0:
            return
        wait_ns = int(self.rng.exponential(1 / per_s) * SECOND_NS)
        if self._kernel.now + wait_ns < self._until_ns:
            self._kernel.after(wait_ns, self._strike, per_s, fault)

    def _strike(self, per_s: float, fault: Callable[[], None]) -> None:
        if self._is_on:
            fault()
            self._every(per_s, fault)

    def _count(self, what: str, detail: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        at_s = (self._kernel.now - self._kernel.start_ns) / SECOND_NS
        self.log.append(f"{at_s:9.3f} s  {what} {detail}")

    def _for(self, mean_s: float) -> int:
        return int(min(5 * mean_s, self.rng.exponential(mean_s)) * SECOND_NS)

    # --- crashes -----------------------------------------------------------------------------------------

    def _crash_somebody(self) -> None:
        up = [node for node in self.world.nodes if node.is_up]
        if len(up) > 2:
            self.crash(self.rng.choice(up))

    def crash(self, node: Any) -> None:
        """Now; it comes back after a while."""
        if not node.is_up or not self._is_on:
            return
        peer = self._peers.get(node.number)
        keeps = self.rng.chance(self.rates.torn_share)
        lies = isinstance(peer, ProviderPeer) and self.rng.chance(self.rates.lying_share)
        self._count("lying crash" if lies else "crash", f"{node.name}{' (torn write kept)' if keeps else ''}")
        if peer is not None:  # before the world tells it, with what happens to its disk
            peer.crash(keeps_unacknowledged=keeps, loses_last=lies)
        self.world.crash(node)
        self._down.add(node.number)
        self._kernel.after(self._for(self.rates.crash_for_s), self._come_back, node)

    def _come_back(self, node: Any) -> None:
        if node.number in self._down:
            self._down.discard(node.number)
            self.world.start(node)

    def _trap_for(self, peer: ProviderPeer | ClientPeer) -> Callable[[], None]:
        node = self.world.nodes[peer.number]

        def trap() -> None:
            if self._is_on and self.rng.chance(self.rates.trap_share):
                after_ns = self.rng.below(2 * disk_of(peer).write_ns + 2)
                self._kernel.after(after_ns, self.crash, node)

        return trap

    # --- the network -------------------------------------------------------------------------------------

    def _part(self) -> None:
        nodes = self.world.nodes
        side = self.rng.sample(nodes, self.rng.between(1, max(1, len(nodes) // 2)))
        number = self.world.network.partition([node.number for node in side])
        self._partitions.add(number)
        self._count("partition", ", ".join(node.name for node in side))
        self._kernel.after(self._for(self.rates.partition_for_s), self._join, number)
        self._kernel.after(KEEPALIVE_NS, self._cut)

    def _join(self, number: int) -> None:
        self._partitions.discard(number)
        self.world.network.heal(number)

    def _cut(self) -> None:
        for node in self.world.nodes:
            for other in list(node.links.values()):
                if self.world.network.is_parted(node.number, other.number):
                    self.world.disconnect(node, other)

    def _lose(self) -> None:
        self._count("loss", f"{self.rates.loss:.0%}")
        self.world.network.loss = self.rates.loss
        self._kernel.after(self._for(self.rates.loss_for_s), self._lose_no_more)

    def _lose_no_more(self) -> None:
        self.world.network.loss = self._loss_before

    # --- clocks, disks, the chain ------------------------------------------------------------------------

    def _jump(self) -> None:
        node = self.rng.choice(self.world.nodes)
        by_ns = int(self.rng.uniform(-1, 1) * self.rates.clock_jump_s * SECOND_NS)
        self._count("clock", f"{node.name} by {by_ns / SECOND_NS:+.1f} s")
        self._shift(node, by_ns - node.clock_offset)

    def _shift(self, node: Any, by_ns: int) -> None:
        if by_ns:
            self.world.shift_clock(node, by_ns)
            if node.number in self._peers:
                self._peers[node.number].shift_clock(by_ns)

    def _break_disk(self) -> None:
        peer = self.rng.choice(list(self._peers.values()))
        disk = disk_of(peer)
        if self.rng.chance(0.5):
            disk.fails = True
            self._count("disk", f"of {peer.setup.name} fails")
        else:
            disk.write_ns = SLOW_DISK_NS
            self._count("disk", f"of {peer.setup.name} is slow")
        self._kernel.after(self._for(self.rates.disk_for_s), self._mend_disk, disk)

    def _mend_disk(self, disk: SimDisk) -> None:
        disk.fails = False
        disk.write_ns = 2 * MILLISECOND_NS

    def _stop_chain(self) -> None:
        for_ns = self._for(self.rates.chain_for_s)
        self._count("chain", f"away for {for_ns / SECOND_NS:.0f} s")
        self.market.chain.out_until_ns = self._kernel.now + for_ns

    def _reorganise(self) -> None:
        depth = self.rng.between(1, self.rates.reorg_blocks_max)
        self._count("reorg", f"of {depth}")
        self.market.chain.reorganise_next(depth=depth, lost_share=0.5, now=self._kernel.now)


def disk_of(peer: ProviderPeer | ClientPeer) -> SimDisk:
    """Where its money is kept."""
    return peer.till.disk if isinstance(peer, ProviderPeer) else peer.purse.disk
