"""Runs a command's trio program: signals, a clean end, and no survivor.

Ctrl-C, SIGTERM and a closed terminal cancel the program, which then closes what it opened. A second signal, or an end
that takes longer than `SHUTDOWN_MAX_S`, ends the process at once. With `--exit-with-parent` (hidden; the demo's
processes have it) the end of standard input counts as SIGTERM, so that a demo that was killed leaves nobody behind.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from .console import EXIT_INTERRUPTED

SHUTDOWN_MAX_S: Final = 8.0  # streams get a second each, the gateway two, the engine as long as one token
ORPHAN_GRACE_S: Final = 5.0  # for a process whose parent is gone: it has nobody to report to

EXIT_TERMINATED: Final = 143


def run_program(program: Callable[[], Awaitable[int | None]], *, is_service: bool) -> int:
    """Run it to the end; the exit code. A service that is stopped by a signal has done its work: 0."""
    received: list[signal.Signals] = []

    async def supervise() -> int:
        code: int | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(_watch_signals, nursery.cancel_scope, received)
            code = await program()
            nursery.cancel_scope.cancel()
        return code or 0

    code = trio.run(supervise)
    if not received:
        return code
    if is_service:
        return 0
    return EXIT_INTERRUPTED if received[0] == signal.SIGINT else EXIT_TERMINATED


async def _watch_signals(
    scope: trio.CancelScope,
    received: list[signal.Signals],
    task_status: Any = trio.TASK_STATUS_IGNORED,
) -> None:
    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # the terminal was closed; `nohup` ignores it, and so do we
        wanted.append(signal.SIGHUP)
    with trio.open_signal_receiver(*wanted) as signals:
        task_status.started()
        async for number in signals:
            if received:
                os._exit(EXIT_INTERRUPTED)  # asked twice: the person does not want to wait
            received.append(signal.Signals(number))
            _end_after(SHUTDOWN_MAX_S)
            scope.cancel()


def exit_with_parent() -> None:
    """End this process soon after standard input ends."""

    def watch() -> None:
        try:
            while os.read(0, 4096):
                pass
        except OSError:
            pass
        _end_after(ORPHAN_GRACE_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _end_after(seconds: float) -> None:
    def end() -> None:
        sys.stderr.flush()
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True  # an ordinary end does not wait for it
    timer.start()
