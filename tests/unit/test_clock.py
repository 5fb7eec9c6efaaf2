"""Time goes on, whatever happens to the machine's clock."""

from __future__ import annotations

import time

from cocoon.adapters.clock import SystemClock, entropy
from cocoon.types import SECOND_NS


class Machine:
    """A machine whose clock somebody sets."""

    def __init__(self) -> None:
        self.wall = 1_000 * SECOND_NS
        self.monotonic = 5 * SECOND_NS

    def clock(self) -> SystemClock:
        return SystemClock(wall_ns=lambda: self.wall, monotonic_ns=lambda: self.monotonic)

    def passes(self, seconds: float) -> None:
        self.wall += int(seconds * SECOND_NS)
        self.monotonic += int(seconds * SECOND_NS)


def test_it_is_the_time_of_day() -> None:
    clock = SystemClock()
    assert abs(clock.now() - time.time_ns()) < SECOND_NS


def test_a_clock_set_back_neither_returns_nor_stops_and_catches_up() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.passes(10)
    before = clock.now()
    machine.wall -= 60 * SECOND_NS
    assert clock.now() == before
    machine.passes(10)
    assert clock.now() == before + 5 * SECOND_NS
    for _ in range(30):
        machine.passes(10)
        clock.now()
    assert clock.now() == machine.wall


def test_a_clock_set_forward_is_followed() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.wall += 3_600 * SECOND_NS
    assert clock.now() == machine.wall


def test_randomness_is_fresh() -> None:
    assert len({entropy(32) for _ in range(10)}) == 10
