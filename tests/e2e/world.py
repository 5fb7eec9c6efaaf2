"""Real `cocoon` processes for end-to-end tests: started with a mark in their environment, so that any that is left
behind can be found, and in a temporary directory of their own, so that anything left there can be seen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.fakes.devnet import PACKAGES, need_node

READY_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 120.0
MARK = "COCOON_TEST_MARK"


class World:
    """One test's processes and files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        self._count = 0

    def bring_packages(self) -> None:
        """The devnet's npm packages, fetched once for all tests. Skips where Node.js is absent."""
        need_node()
        folder = self.folder / "home" / "devnet"
        folder.mkdir(parents=True)
        (folder / "npm").symlink_to(PACKAGES)

    def environment(self) -> dict[str, str]:
        """Marked, with homes and temporary files inside the test's folder."""
        return {
            **os.environ,
            MARK: self.mark,
            "TMPDIR": str(self.temporary),
            "COCOON_HOME": str(self.folder / "home"),
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """`cocoon WORDS` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "cocoon", *words],
            env=self.environment(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )

    @contextmanager
    def service(self, *words: str) -> Iterator[Service]:
        """`cocoon WORDS --json`, once it is ready; ended with SIGTERM."""
        self._count += 1
        log = self.folder / f"service-{self._count}-{words[0]}.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "cocoon", *words, "--json"],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        service = Service(process, log)
        try:
            service.wait_ready()
            yield service
        finally:
            service.stop()

    def survivors(self) -> list[str]:
        """Command lines of processes of this test that still run."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with suppress(OSError):
                if f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        return found

    def wait_no_survivors(self, timeout_s: float) -> list[str]:
        """Empty as soon as none is left; otherwise those that are, after the time."""
        until = time.monotonic() + timeout_s
        while (left := self.survivors()) and time.monotonic() < until:
            time.sleep(0.1)
        return left


class Service:
    """A running command that said that it is ready."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self.ready: dict[str, Any] = {}

    def wait_ready(self) -> None:
        """Read the first object, or fail with the log."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # ends with the process; the processes end by their own time-outs
        assert line, f"it ended with {self.process.wait()}: {self.log.read_text()[-2000:]}"
        self.ready = json.loads(line)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, timeout_s: float = 20.0) -> int:
        """Send a signal and wait; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            assert self.process.stdout is not None
            self.process.stdout.close()
