"""trio under the simulation's clock: one time for tasks and events, and an order that follows from the seed."""

from __future__ import annotations

import subprocess
import sys
import time

import trio
import trio._core._run as trio_run

from sim.clock import deterministic_scheduling, run_trio, seconds_of
from sim.kernel import MILLISECOND, SECOND, Kernel
from sim.rng import stream


def test_trio_still_has_the_private_names_that_make_its_order_follow_a_seed():
    """The canary: when trio changes them, runs of whole nodes no longer repeat, and this says why."""

    def order(seed: int) -> list[int]:
        ran: list[int] = []

        async def main() -> None:
            async def note(number: int) -> None:
                await trio.lowlevel.checkpoint()
                ran.append(number)

            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(note, number)

        with deterministic_scheduling(seed):
            trio.run(main)
        return ran

    before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING  # hypothesis switches it on, for its own runs of trio
    assert order(1) == order(1) == order(1)
    assert order(1) != order(2)
    after = trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    assert after == before


def test_tasks_and_events_see_one_time_in_one_order():
    kernel, seen = Kernel(1), []

    async def main(clock) -> None:
        kernel.after(500 * MILLISECOND, lambda: seen.append(("event", clock.current_time())))
        kernel.after(1500 * MILLISECOND, lambda: seen.append(("event", clock.current_time())))
        await trio.sleep(1)
        seen.append(("task", trio.current_time()))
        await trio.sleep(1)
        seen.append(("task", trio.current_time()))

    run_trio(kernel, main, until_ns=kernel.start_ns + 10 * SECOND)
    assert seen == [("event", 0.5), ("task", 1.0), ("event", 1.5), ("task", 2.0)]
    assert kernel.elapsed_s == 2.0  # the run is over when main is


def test_a_task_that_an_event_wakes_runs_at_that_instant_and_before_the_next_event():
    kernel, seen = Kernel(1), []

    async def main(clock) -> None:
        ready = trio.Event()

        def wake() -> None:
            ready.set()
            clock.woke()

        kernel.after(MILLISECOND, wake)
        kernel.after(2 * MILLISECOND, lambda: seen.append("event at 2 ms"))
        await ready.wait()
        seen.append(f"task at {trio.current_time() * 1000:g} ms")
        await trio.sleep(1)

    run_trio(kernel, main, until_ns=kernel.start_ns + SECOND)
    assert seen == ["task at 1 ms", "event at 2 ms"]


def test_events_between_two_deadlines_cost_no_pass_of_trios_loop():
    kernel, jumps = Kernel(1), []

    def tick(left: int) -> None:
        if left:
            kernel.after(MILLISECOND, tick, left - 1)

    async def main(clock) -> None:
        tick(20_000)
        for _ in range(20):
            await trio.sleep(1)
        jumps.append(clock.jumps)

    began = time.process_time()
    run_trio(kernel, main, until_ns=kernel.start_ns + 30 * SECOND)
    assert kernel.events == 20_000
    assert jumps[0] <= 25
    assert time.process_time() - began < 2.0


def test_what_is_cut_off_at_the_end_may_clean_up_in_its_own_time():
    kernel, seen = Kernel(1), []

    async def main(clock) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)
            seen.append(trio.current_time())

    ends = []
    run_trio(kernel, main, until_ns=kernel.start_ns + SECOND, on_end=lambda: ends.append(kernel.elapsed_s))
    assert ends == [1.0]
    assert seen == [4.0]


def test_nanoseconds_survive_the_way_through_trios_seconds():
    chance = stream(1, "instants")
    for _ in range(100_000):
        elapsed_ns = chance.below(10 ** chance.between(1, 16))
        assert int(seconds_of(elapsed_ns) * 1e9) in (elapsed_ns, elapsed_ns + 1)


def test_a_task_that_waits_for_an_instant_in_nanoseconds_wakes_when_it_has_come():
    """As the muxer's keep-alive does, which spun for ever at one instant when time came back a nanosecond short."""
    kernel, turns = Kernel(1), []

    async def main(clock) -> None:
        chance = stream(2, "deadlines")
        deadline_ns = 0
        for _ in range(2000):
            deadline_ns += chance.below(SECOND)
            while int(trio.current_time() * 1e9) < deadline_ns:
                await trio.sleep_until(deadline_ns / 1e9)
                turns.append(deadline_ns)

    run_trio(kernel, main, until_ns=kernel.start_ns + 3000 * SECOND)
    assert len(turns) <= 2000


STUCK = """
import trio
from sim.clock import run_trio
from sim.kernel import SECOND, Kernel

async def main(clock):
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()

kernel = Kernel(1)
run_trio(kernel, main, until_ns=kernel.start_ns + SECOND)
"""


def test_a_task_that_never_ends_is_named_as_the_fault_instead_of_a_hanging_run():
    """In a process of its own: trio leaves its tasks behind when it is ended like this."""
    ended = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "ClockStuck: tasks were still cleaning up" in ended.stderr
