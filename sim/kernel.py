"""Virtual time: one heap of events, ordered by (time in ns, order of scheduling), and nothing else.

    kernel = Kernel(seed=7)
    kernel.after(MILLISECOND, deliver, message)      # deliver(message) happens at kernel.now + 1 ms
    kernel.run(kernel.now + 60 * SECOND)

Ties are broken by the order of scheduling, so a run is a function of its seed. Time is integer nanoseconds since the
Unix epoch, as every machine of `p2p` and `cocoon` wants it, and never runs backwards: what is asked for in the past
happens now. An event that is no longer wanted is let through and ignored by its handler; there is no cancelling.

Not here: randomness (`rng`), links (`net`), trio (`clock`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import heappop, heappush
from typing import Any

from sim.errors import KernelOverflow
from sim.trace import Trace

MICROSECOND = 1_000
MILLISECOND = 1_000_000
SECOND = 1_000_000_000
EPOCH_NS = 1_700_000_000 * SECOND  # where virtual time starts: some instant that machines take for the present

PENDING_MAX = 20_000_000  # events in the heap, about 4 GB: more is a loop that feeds itself
_SLICE = 32_768  # events between two looks at the bound and two reports of progress

_Event = tuple[int, int, Callable[..., None], tuple[Any, ...]]


class Kernel:
    def __init__(self, seed: int, *, start_ns: int = EPOCH_NS, trace: Trace | None = None) -> None:
        self.seed = seed
        self.start_ns = start_ns
        self.now = start_ns
        self.events = 0  # executed so far; exact between calls of run()
        self.trace = trace or Trace()
        self._heap: list[_Event] = []
        self._seq = 0
        self._is_stopped = False

    def at(self, t_ns: int, fn: Callable[..., None], *args: object) -> None:
        """`fn(*args)` at that time, or now if it has passed."""
        if t_ns < self.now:
            t_ns = self.now
        self._seq = seq = self._seq + 1
        heappush(self._heap, (t_ns, seq, fn, args))

    def after(self, delay_ns: int, fn: Callable[..., None], *args: object) -> None:
        self._seq = seq = self._seq + 1
        heappush(self._heap, (self.now + delay_ns if delay_ns > 0 else self.now, seq, fn, args))

    @property
    def elapsed_s(self) -> float:
        """Virtual seconds since the start."""
        return (self.now - self.start_ns) / SECOND

    @property
    def pending(self) -> int:
        return len(self._heap)

    def next_at(self) -> int | None:
        """When the next event is; None when there is none."""
        return self._heap[0][0] if self._heap else None

    def stop(self) -> None:
        """`run` returns after the event that is running; time stays where it is."""
        self._is_stopped = True

    def run(self, until_ns: int, *, on_progress: Callable[[int], None] | None = None) -> None:
        """Run every event up to and including `until_ns`; then it is `until_ns`.

        `on_progress(now)` is called every few ten thousand events. What an event raises ends the run and passes
        through; the event counts as executed, and the run may go on. Raises KernelOverflow when the heap grows over
        its bound.
        """
        self._is_stopped = False
        heap = self._heap
        while heap and heap[0][0] <= until_ns and not self._is_stopped:
            self._run_slice(heap, until_ns)
            if len(heap) > PENDING_MAX:
                raise KernelOverflow(f"{len(heap):,} events are waiting: something feeds itself")
            if on_progress is not None:
                on_progress(self.now)
        if not self._is_stopped and until_ns > self.now:
            self.now = until_ns

    def step(self) -> bool:
        """Run the next event. False when there is none."""
        if not self._heap:
            return False
        t_ns, _, fn, args = heappop(self._heap)
        self.now = t_ns
        self.events += 1
        fn(*args)
        return True

    def advance(self, to_ns: int) -> None:
        """It is that time now, if it was not already. Only for whoever has run every event before."""
        if to_ns > self.now:
            self.now = to_ns

    def _run_slice(self, heap: list[_Event], until_ns: int) -> None:
        count = 0
        pop = heappop
        try:
            while heap and count < _SLICE:
                event = pop(heap)
                t_ns = event[0]
                if t_ns > until_ns:
                    heappush(heap, event)
                    return
                self.now = t_ns
                count += 1
                event[2](*event[3])
                if self._is_stopped:
                    return
        finally:
            self.events += count


@contextmanager
def quiet_collector() -> Iterator[None]:
    """What exists now is left out of garbage collection, and collections are rare: for a long run over a built world.

    The cycle collector would walk ten thousand nodes again and again, and find nothing: it costs a third of a run."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
