"""The gossip model: a network, a script of what happens, and a loop that runs it.

    model = GossipModel(rules=…, rows=…, script=…, slots=64, tick_ns=10_000, seed=7)
    model.run_until(60.0)
    model.counts()["message"], model.delay_quantile_ms(0.99), model.arrivals()

What is modelled: first copies, duplicates, IHAVE, IWANT, GRAFT and PRUNE with their races, peer exchange, IDONTWANT,
loss, jitter, FIFO up- and downlinks, nodes that come and go. What is left out, against the real router: penalties and
the graylist (nobody misbehaves here), P3, rate limits, more than one topic, and that messages of one stream never
overtake each other.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from sim.errors import WorldInvalid
from sim.fast import gossip_kernel, state
from sim.fast.chance import seeded
from sim.fast.graph import one_by_one
from sim.fast.jit import require_speed
from sim.fast.state import Float64, Int64, Model, Rows, Rules

DELAY_BINS = 600_001  # of 0.1 ms each: a minute; the last one holds the rest
BIN_NS = 100_000
_FIRST_CHUNKS = 1 << 14


class GossipModel:
    def __init__(
        self,
        *,
        rules: Rules,
        rows: Rows,
        script: Int64,
        slots: int,
        tick_ns: int,
        seed: int,
        flows: Float64 | None = None,
        matrix: Float64 | None = None,
    ) -> None:
        """`slots`: messages that are remembered at one time. `flows`: (nodes, FLOW_COLUMNS) where links have a
        bandwidth. Raises NumbaMissing, WorldInvalid."""
        count = len(rows.nodes)
        require_speed(count)
        if not 0 < count < state.NODES_MAX or not 0 < slots <= state.SLOTS_MAX:
            raise WorldInvalid(f"{count:,} nodes with {slots:,} messages at a time are not for the fast model")
        widest = max(int(rows.nodes[:, state.CAPACITY].max()), slots) + 1
        core, reals = rules.arrays()
        core[state.BIN_TICKS] = max(1, BIN_NS // tick_ns)
        core[state.ALIVE_COUNT] = int(rows.nodes[:, state.ALIVE].sum())
        messages = np.zeros((slots, state.MESSAGE_COLUMNS), np.int64)
        messages[:, state.NUMBER] = -1
        chunks = max(_FIRST_CHUNKS, 8 * widest)
        self.tick_ns = tick_ns
        self.cpu_s = 0.0
        self.model = Model(
            core=core,
            reals=reals,
            nodes=rows.nodes,
            flows=np.zeros((1, state.FLOW_COLUMNS), np.float64) if flows is None else flows,
            links=rows.links,
            marks=rows.marks,
            messages=messages,
            seen=np.zeros((count, slots), np.int32),
            order=np.argsort(rows.nodes[:, state.PHASE], kind="stable").astype(np.int32),
            script=script,
            ring=np.full((state.RING, 2), -1, np.int32),
            chunks=np.full((chunks, 2), -1, np.int32),
            events=np.empty((chunks, 2 * state.CHUNK), np.int64),
            delays=np.zeros((2, DELAY_BINS), np.int64),
            words=np.array([seeded(seed, "fast.gossip")[0], 0xCBF29CE484222325], np.uint64),
            scratch=np.zeros((3, widest), np.int64),
            matrix=one_by_one() if matrix is None else matrix,
        )

    @property
    def events(self) -> int:
        """Arrivals of messages and control, heartbeats, and operations of the script."""
        return int(self.model.core[state.EVENTS])

    @property
    def now_s(self) -> float:
        return float(self.model.core[state.BUCKET] << state.BUCKET_SHIFT) * self.tick_ns / 1e9

    def run_until(self, seconds: float) -> None:
        """Up to that virtual time, to a bucket's precision."""
        until = int(seconds * 1e9) // self.tick_ns
        started = time.process_time()
        with np.errstate(over="ignore"):  # plain-Python kernels multiply words that wrap around
            while gossip_kernel.run(self.model, until) == gossip_kernel.FULL:
                self.model = state.grown(self.model)
        self.cpu_s += time.process_time() - started

    def reset_counts(self) -> None:
        """What happened so far is not counted: the end of the warm-up. Events go on."""
        self.model.core[: state.COUNTERS] = 0
        self.model.delays[:] = 0

    # --- results -----------------------------------------------------------------------------------------

    def counter(self, which: int) -> int:
        return int(self.model.core[which])

    def counts(self) -> dict[str, int]:
        """Sent, by kind."""
        return {
            "message": self.counter(state.SENT_MESSAGE),
            "ihave": self.counter(state.SENT_IHAVE),
            "iwant": self.counter(state.SENT_IWANT),
            "graft": self.counter(state.SENT_GRAFT),
            "prune": self.counter(state.SENT_PRUNE),
            "idontwant": self.counter(state.SENT_IDONTWANT),
        }

    def delays(self, *, timely: bool = False) -> Int64:
        """How many first deliveries took so many steps of BIN_NS. `timely`: to nodes that were up at the publishing."""
        found: Int64 = self.model.delays[int(timely)]
        return found

    def delay_quantile_ms(self, share: float, *, timely: bool = False) -> float:
        """Of first deliveries, to 0.1 ms. 0 where there were none."""
        delays = self.delays(timely=timely)
        total = int(delays.sum())
        if total == 0:
            return 0.0
        index = int(np.searchsorted(np.cumsum(delays), share * total))
        return (min(index, len(delays) - 1) + 0.5) * BIN_NS / 1e6

    def delay_histogram(self, bin_ms: float, bins: int) -> list[int]:
        """The last bar holds the rest."""
        width = max(1, round(bin_ms * 1e6 / BIN_NS))
        delays = self.delays()
        found = [int(delays[index * width : (index + 1) * width].sum()) for index in range(bins - 1)]
        return [*found, int(delays.sum()) - sum(found)]

    def arrivals(self) -> NDArray[np.int64]:
        """(nodes, messages) in ticks, 0 where it never came, for messages still remembered, in the order of their
        numbers."""
        numbers = self.model.messages[:, state.NUMBER]
        known = np.flatnonzero(numbers >= 0)
        order = known[np.argsort(numbers[known])]
        seen: NDArray[np.int64] = np.maximum(self.model.seen[:, order], 0).astype(np.int64)
        return seen

    def digest(self) -> str:
        """Of every first delivery so far with its time, and of every draw."""
        return f"{int(self.model.words[state.TRACE]):016x}{int(self.model.words[state.CHANCE]):016x}"
