"""Other `cocoon` processes, started and ended by this one: the demo's network is made of real processes.

Each child gets a pipe as standard input and `--exit-with-parent`: however this process ends, `kill -9` included, the
pipe closes and the child goes. A child says that it is ready with one JSON line on standard output.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from ..errors import Unavailable

READY_TIMEOUT_S: Final = 90.0  # five processes import libp2p side by side, on one slow core
TERMINATE_TIMEOUT_S: Final = 6.0  # then SIGKILL
LINE_BYTES_MAX: Final = 64 * 1024
LOG_TAIL_BYTES: Final = 2_000  # of a child that failed, shown with the error


@dataclass(slots=True, kw_only=True)
class Child:
    """A running child. `ready` is the object that it printed first."""

    name: str
    process: trio.Process
    ready: dict[str, Any]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid


@asynccontextmanager
async def children(logs: Path) -> AsyncIterator[ChildGroup]:
    """A group of children, all ended when the block ends, however it ends."""
    group = ChildGroup(logs)
    try:
        yield group
    finally:
        with trio.CancelScope(shield=True):
            await group.end_all()


class ChildGroup:
    """Starts children, and ends them."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._processes: list[trio.Process] = []

    async def start(self, name: str, words: Sequence[str]) -> Child:
        """Run `cocoon WORDS --json` and wait until it is ready. Raises `Unavailable` with the end of its log."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as errors:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "cocoon", *words, "--json", "--exit-with-parent"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C in the terminal is for us; we end the children in order
            )
        self._processes.append(process)
        with trio.move_on_after(READY_TIMEOUT_S):
            line = await _first_line(process)
            if line is None:
                await process.wait()
                raise Unavailable(
                    f"{name} ended while starting (exit code {process.returncode})",
                    advice=_tail(log),
                    retryable=False,
                )
            return Child(name=name, process=process, ready=json.loads(line))
        raise Unavailable(f"{name} was not ready within {READY_TIMEOUT_S:.0f} s", advice=_tail(log))

    async def end_all(self) -> None:
        """SIGTERM to all, and SIGKILL to those that are still there after `TERMINATE_TIMEOUT_S`."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        with trio.move_on_after(TERMINATE_TIMEOUT_S):
            for process in self._processes:
                await process.wait()
        for process in self._processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    await pipe.aclose()


async def _first_line(process: trio.Process) -> bytes | None:
    assert process.stdout is not None
    line = b""
    while b"\n" not in line:
        piece = await process.stdout.receive_some(4096)
        if not piece or len(line) > LINE_BYTES_MAX:
            return None
        line += piece
    return line.split(b"\n", 1)[0]


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
        return file.read().decode(errors="replace").strip() or "It said nothing."
