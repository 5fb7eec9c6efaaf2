"""A wake-up for one waiting task: like `trio.Event`, but reusable and several times cheaper.

Made for the hot paths of a connection, where each stream has one reader and one writer. A second waiter is a bug.
"""

from __future__ import annotations

import trio
from trio.lowlevel import Abort, Task


class Signal:
    """`wait` sleeps until the next `notify`. A notify that nobody waits for is lost: check, then wait."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: Task | None = None

    def notify(self) -> None:
        task = self._task
        if task is not None:
            self._task = None
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        if self._task is not None:
            raise trio.BusyResourceError("another task already waits here")
        self._task = trio.lowlevel.current_task()

        def abort(_: object) -> Abort:
            self._task = None
            return Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
