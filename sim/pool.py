"""Jobs on all cores: long-lived worker processes, each at the end of a pipe.

Not `concurrent.futures`: its idle workers outlive a parent that was killed, and it has no progress. Here a worker ends
when its pipe does, whatever happened to the parent. `SIGINT` is the parent's business; it ends the workers by SIGTERM,
upon which they close their files in an orderly way.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from .errors import RunError, SimError
from .job import Job, run_job

PROGRESS_EVERY_S = 0.25
IDLE_WAIT_S = 5.0  # for idle workers to see that their pipe has ended
STOP_WAIT_S = 10.0  # for files to be closed, then a worker is killed

OnProgress = Callable[[Job, float, str], None]


def cores() -> int:
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_jobs(jobs: Sequence[Job], *, workers: int, on_progress: OnProgress) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Results as they come. Raises RunError when a job fails or its process dies; those done before stay done."""
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, run_job(job, lambda share, note, job=job: on_progress(job, share, note))
        return
    yield from _in_processes(jobs, min(workers, len(jobs)), on_progress)


def _in_processes(jobs: Sequence[Job], workers: int, on_progress: OnProgress) -> Iterator[tuple[Job, dict[str, Any]]]:
    context = multiprocessing.get_context("spawn")  # a fork would copy threads of pyarrow and numba
    waiting = deque(jobs)
    busy: dict[Connection, Job] = {}
    processes: list[BaseProcess] = []
    pipes: list[Connection] = []
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
            busy[ours] = waiting.popleft()
            ours.send(busy[ours])
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                job = busy[ready]
                try:
                    kind, *rest = ready.recv()
                except EOFError:
                    raise RunError(f"{job.name}: its process died (out of memory?)") from None
                if kind == "progress":
                    on_progress(job, *rest)
                elif kind == "failed":
                    raise RunError(f"{job.name}: {rest[0]}")
                else:
                    del busy[ready]
                    yield job, rest[0]
                    if waiting:
                        busy[ready] = waiting.popleft()
                        ready.send(busy[ready])
    finally:
        for pipe in pipes:
            pipe.close()  # the end of every worker that is waiting for a job
        if not busy:
            _join(processes, IDLE_WAIT_S)
        for one in processes:
            if one.is_alive():
                one.terminate()
        _join(processes, STOP_WAIT_S)
        for one in processes:
            if one.is_alive():
                one.kill()


def _join(processes: Sequence[BaseProcess], seconds: float) -> None:
    until = time.monotonic() + seconds
    for one in processes:
        one.join(max(0.01, until - time.monotonic()))


def _work(pipe: Connection) -> None:
    """A worker's life: jobs from the pipe, one after the other, until the pipe ends or SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = _Worker(pipe)
    signal.signal(signal.SIGTERM, worker.stop)
    try:
        worker.serve()
    except KeyboardInterrupt:  # whatever it was doing has closed its files
        return


class _Worker:
    """During a job SIGTERM waits for the next report of progress: an exception in the middle of a destructor or of a
    compiled function would be printed and lost."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._last = 0.0
        self._is_busy = False
        self._is_stopping = False

    def stop(self, *_: object) -> None:
        self._is_stopping = True
        if not self._is_busy:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise KeyboardInterrupt

    def serve(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while not self._is_stopping:
                job = self._pipe.recv()
                self._is_busy = True
                self._pipe.send(self._answer(job))
                self._is_busy = False

    def _answer(self, job: Job) -> tuple[str, object]:
        try:
            return "done", run_job(job, self._report)
        except SimError as problem:
            return "failed", str(problem)
        except MemoryError:
            return "failed", "out of memory: fewer nodes, fewer workers (-j), or level 2"
        except Exception:  # the boundary between a level and who waits for it: a defect is told, with its trace
            return "failed", f"the level has a defect\n{traceback.format_exc()}"

    def _report(self, done_share: float, note: str) -> None:
        if self._is_stopping:
            raise KeyboardInterrupt
        now = time.monotonic()
        if now - self._last >= PROGRESS_EVERY_S:
            self._last = now
            self._pipe.send(("progress", done_share, note))
