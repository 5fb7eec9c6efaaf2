"""How far it is and when it will be done, on stderr: one line, rewritten, on a terminal; else one now and then."""

from __future__ import annotations

import sys
import time

from .job import Job

TERMINAL_EVERY_S = 0.2
LOG_EVERY_S = 10.0


class Meter:
    """`quiet` shows nothing at all."""

    def __init__(self, jobs: int, *, done: int = 0, quiet: bool = False) -> None:
        self.jobs = jobs
        self.done = done
        self._at_start = done
        self._quiet = quiet
        self._started = time.monotonic()
        self._last = self._started
        self._shares: dict[str, float] = {}
        self._width = 0

    def progress(self, job: Job, share: float, note: str) -> None:
        self._shares[job.name] = min(1.0, share)
        self._show(note)

    def finished(self, job: Job) -> None:
        self._shares.pop(job.name, None)
        self.done += 1
        self._show("", is_due=self.done == self.jobs)

    def eta_s(self) -> float | None:
        fresh = self.done - self._at_start + sum(self._shares.values())
        if fresh <= 0.001:
            return None
        left = self.jobs - self._at_start - fresh
        return left * (time.monotonic() - self._started) / fresh

    def say(self, text: str) -> None:
        if not self._quiet:
            self.clear()
            print(text, file=sys.stderr)

    def clear(self) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            self._width = 0

    def _show(self, note: str, *, is_due: bool = False) -> None:
        now = time.monotonic()
        is_terminal = sys.stderr.isatty()
        is_early = now - self._last < (TERMINAL_EVERY_S if is_terminal else LOG_EVERY_S)
        if self._quiet or (is_early and not (is_due and is_terminal)):
            return
        self._last = now
        whole = (self.done + sum(self._shares.values())) / max(1, self.jobs)
        eta = self.eta_s()
        left = f", {_clock(eta)} left" if eta is not None and self.done < self.jobs else ""
        runs = f", {self.done} of {self.jobs} runs" if self.jobs > 1 else ""
        line = f"{whole:4.0%}{runs}{left}{', ' + note if note else ''}"
        if is_terminal:
            line = line[:110]
            sys.stderr.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            print(line, file=sys.stderr)
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
