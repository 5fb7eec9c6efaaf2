"""Processes of the bench: started, waited for, measured through /proc, ended."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from ...errors import Unavailable

READY_TIMEOUT_S: Final = 90.0
END_TIMEOUT_S: Final = 5.0


@dataclass(slots=True)
class Measured:
    """A process of ours. `ready` is what it printed when it could serve; `ready_s` how long that took."""

    name: str
    process: trio.Process
    ready: dict[str, Any] = field(default_factory=dict)
    ready_s: float = 0.0

    def cpu_s(self) -> float:
        """User and system CPU seconds of this process (and of its waited-for children), or NaN without /proc."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return float("nan")
        return sum(int(each) for each in fields[11:15]) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self) -> float:
        """Resident memory in MiB, or NaN."""
        try:
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) / 1024
        except OSError:
            pass
        return float("nan")


async def start_peer(name: str, words: Sequence[str], log: Path) -> Measured:
    """`python -m cocoon.cli.bench.peer WORDS`, ready. Raises `Unavailable` with the end of its log."""
    return await start(name, [sys.executable, "-m", "cocoon.cli.bench.peer", *words], log, waits_for_line=True)


async def start(
    name: str, command: Sequence[str], log: Path, *, waits_for_line: bool, environment: Mapping[str, str] | None = None
) -> Measured:
    """Any command; with `waits_for_line` until it prints one JSON object. `environment` is added to ours."""
    started = time.perf_counter()
    with log.open("ab") as errors:
        process = await trio.lowlevel.open_process(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if waits_for_line else errors,
            stderr=errors,
            env={**os.environ, **(environment or {})},
        )
    measured = Measured(name=name, process=process)
    if not waits_for_line:
        return measured
    assert process.stdout is not None
    line = b""
    with trio.move_on_after(READY_TIMEOUT_S):
        while b"\n" not in line:
            piece = await process.stdout.receive_some(4096)
            if not piece:
                break
            line += piece
    if b"\n" not in line:
        process.kill()
        raise Unavailable(f"{name} did not start", advice=_tail(log))
    measured.ready = json.loads(line.split(b"\n", 1)[0])
    measured.ready_s = time.perf_counter() - started
    return measured


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2_000:]


async def wait_port(port: int, *, timeout_s: float) -> float:
    """Seconds until something accepts on the port. Raises `Unavailable`."""
    started = time.perf_counter()
    with trio.move_on_after(timeout_s):
        while True:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.05)
                continue
            await stream.aclose()
            return time.perf_counter() - started
    raise Unavailable(f"nothing accepted on port {port} within {timeout_s:.0f} s")


async def end(measured: Measured) -> None:
    """SIGTERM, and SIGKILL after a while."""
    process = measured.process
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with trio.CancelScope(shield=True):
        with trio.move_on_after(END_TIMEOUT_S):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                await pipe.aclose()
