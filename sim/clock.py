"""Virtual time for trio: a clock that the kernel owns, so tasks and simulated events share one time.

    kernel = Kernel(seed=7)
    run_trio(kernel, main, until_ns=kernel.start_ns + 60 * SECOND)

`trio.testing.MockClock` takes two passes of trio's loop for each event. Here events stay in the kernel's heap, and a
task drains all of them that come before trio's next deadline at once; it stops where an event may have woken a task
(whoever wakes one from an event says so: `SimClock.woke`), so tasks run at the instant at which they were woken.

The order in which trio runs tasks that are ready at one instant is random, unless two private names of trio are set;
they are set here for the time of a run, seeded from the kernel's seed. A test checks that trio still obeys them.

Threads are not waited for: what runs under this clock must not use `trio.to_thread`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio
import trio._core._run as _trio_run
import trio.testing

from sim.errors import SimError
from sim.kernel import SECOND, Kernel

NEVER_S = 1e9  # a sleep that the next event ends
GRACE_S = 120.0  # for tasks to end in, after the end


class ClockStuck(SimError):
    """The run is over, and some task does not end when it is cancelled."""


def seconds_of(elapsed_ns: int) -> float:
    """Seconds for trio, such that `int(seconds * 1e9)` gives the nanoseconds back: a task that was woken for an instant
    and reads the clock in nanoseconds must not find that it is one too early, and go to sleep for ever."""
    seconds = elapsed_ns / SECOND
    return seconds if int(seconds * SECOND) >= elapsed_ns else math.nextafter(seconds, math.inf)


class SimClock(trio.abc.Clock):
    """trio's time is the kernel's: seconds since the start of the simulation."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.jumps = 0  # how often time was handed to trio: a measure of what tasks cost
        self._has_woken = False
        self._is_stuck = False

    # --- what trio asks ----------------------------------------------------------------------------------

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return seconds_of(self.kernel.now - self.kernel.start_ns)

    def deadline_to_sleep_time(self, deadline: float) -> float:
        if self._is_stuck:
            raise ClockStuck(f"tasks were still cleaning up {GRACE_S:g} s after the end")
        return 0.0 if deadline <= self.current_time() else NEVER_S

    # --- what the simulation does ------------------------------------------------------------------------

    def woke(self) -> None:
        """An event has made a task runnable: let it run before the next event."""
        self._has_woken = True

    def give_up(self) -> None:
        """trio ends at its next look at the clock, with TrioInternalError: the only way out of a shielded task."""
        self._is_stuck = True

    def instant_ns(self, seconds: float) -> int:
        """The first instant at which `current_time()` is not before that many seconds."""
        at = self.kernel.start_ns + math.ceil(seconds * SECOND)
        while seconds_of(at - self.kernel.start_ns) < seconds:
            at += 1
        return at

    async def drive(self, until_ns: int) -> None:
        """Let time pass until then, whether anything happens or not. One task at a time."""
        kernel = self.kernel
        while kernel.now < until_ns:
            await trio.testing.wait_all_tasks_blocked()
            wait_s = trio.lowlevel.current_statistics().seconds_to_next_deadline
            deadline_ns = until_ns
            if wait_s < math.inf:
                due_ns = self.instant_ns(self.current_time() + max(0.0, wait_s))
                if wait_s > 0:  # a deadline less than a nanosecond away must come, too
                    due_ns = max(due_ns, kernel.now + 1)
                deadline_ns = min(until_ns, due_ns)
            self.jumps += 1
            self._drain(deadline_ns)
        await trio.testing.wait_all_tasks_blocked()

    def _drain(self, until_ns: int) -> None:
        """Events up to that instant, or up to the first that has woken a task."""
        kernel = self.kernel
        self._has_woken = False
        while not self._has_woken:
            at = kernel.next_at()
            if at is None or at > until_ns:
                kernel.advance(until_ns)
                return
            kernel.step()


@contextmanager
def deterministic_scheduling(seed: int) -> Iterator[None]:
    """trio's order of tasks follows from the seed. Relies on two private names of trio."""
    was, state = _trio_run._ALLOW_DETERMINISTIC_SCHEDULING, _trio_run._r.getstate()
    setattr(_trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)  # noqa: B010 - trio declares it Final
    _trio_run._r.seed(seed)
    try:
        yield
    finally:
        setattr(_trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", was)  # noqa: B010
        _trio_run._r.setstate(state)


def run_trio(
    kernel: Kernel,
    main: Callable[[SimClock], Awaitable[None]],
    *,
    until_ns: int,
    on_end: Callable[[], Any] | None = None,
) -> None:
    """`main(clock)` in virtual time, until it is over or until that instant, when it is cancelled.

    `on_end` is called at that instant, while tasks still stand; then time goes on until they have cleaned up. What
    `main` raises comes out as trio gives it, in a group. Raises ClockStuck.
    """

    clock = SimClock(kernel)

    async def everything() -> None:
        running = trio.CancelScope()

        async def drive() -> None:
            await clock.drive(until_ns)
            if on_end is not None and not running.cancel_called:
                on_end()
            running.cancel()
            await clock.drive(until_ns + int(GRACE_S * SECOND))  # what is cancelled cleans up, and takes its time
            clock.give_up()
            await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drive)
            with running:
                await main(clock)
            nursery.cancel_scope.cancel()

    with deterministic_scheduling(kernel.seed):
        try:
            trio.run(everything, clock=clock)
        except trio.TrioInternalError as error:
            if isinstance(error.__cause__, ClockStuck):
                raise error.__cause__ from None
            raise
