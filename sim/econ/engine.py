"""A provider's engine in virtual time: slots, a queue, and tokens that come slower the fuller it is.

The model is that of the reference measurements: with load k = running / slots a request's first token takes
first_token · (1 + k), and then tokens come at tokens_per_s / (1 + k/2). Output comes in pieces, so that a run of
hundreds of tokens is a dozen events. A lying or failing provider is an `Engine` that an adversary wraps.

Not here: admission by money (`provider`), sessions, prices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cocoon.market.beacon import Load
from cocoon.types import SECOND_NS
from sim.kernel import Kernel

PIECE_TOKENS: Final = 16  # of output that comes at once: a quarter of the first unpaid window
SERVICE_SAMPLES: Final = 16  # the newest services that an expected wait is made from
FIRST_FACTOR: Final = 1.0
SLOW_FACTOR: Final = 0.5


@dataclass(slots=True, eq=False)
class Job:
    """One request in the engine. `on_tokens(job, count)`, then `on_end(job, None | what failed)`, once."""

    prompt_tokens: int
    tokens: int  # that the answer has when it is whole
    on_tokens: Callable[[Job, int], None]
    on_end: Callable[[Job, str | None], None]
    made: int = 0
    is_over: bool = False
    is_paused: bool = False  # nobody takes its output
    is_wrong: bool = False  # another model's answer
    started_ns: int = 0
    generation: int = 0  # of its pending event: a cancelled or paused job's old events mean nothing
    extra: dict[str, object] = field(default_factory=dict)


class Engine:
    """See the file's head."""

    def __init__(
        self, kernel: Kernel, *, slots: int, tokens_per_s: float, first_token_ms: float, queue_max: int | None = None
    ) -> None:
        self.kernel = kernel
        self.slots = slots
        self.tokens_per_s = tokens_per_s
        self.first_token_ms = first_token_ms
        self.queue_max = 2 * slots if queue_max is None else queue_max
        self.running: list[Job] = []
        self.queue: deque[Job] = deque()
        self.on_load: Callable[[], None] = lambda: None
        self.tokens_made = 0
        self.busy_ns = 0  # slot-nanoseconds in use
        self._busy_since_ns = kernel.now
        self._service_ns: deque[int] = deque(maxlen=SERVICE_SAMPLES)

    # --- what it says ------------------------------------------------------------------------------------

    def load(self) -> Load:
        """What its beacon says."""
        return Load(
            running=len(self.running), queued=len(self.queue), slots=self.slots, wait_ms=self.wait_ms(self.place())
        )

    def place(self) -> int:
        """Of one more request in the queue: 0 when there is a slot for it."""
        return max(0, len(self.running) + len(self.queue) + 1 - self.slots)

    def wait_ms(self, place: int) -> int:
        """What a place in the queue costs, from what requests took lately."""
        if place == 0:
            return 0
        served = sorted(self._service_ns)
        typical_ns = served[len(served) // 2] if served else 2 * SECOND_NS
        return int(typical_ns / 1_000_000 * place / self.slots)

    def refuses(self, wait_ms_max: int) -> int | None:
        """None: it takes one more; else after how many ms to ask again."""
        place = self.place()
        if place == 0:
            return None
        if place > self.queue_max or self.wait_ms(place) > wait_ms_max:
            return max(200, self.wait_ms(1))
        return None

    def expected_s(self, tokens: int) -> float:
        """How long a request of so many tokens would take from now, truly: for who knows everything."""
        k = min(1.0, (len(self.running) + 1) / self.slots)
        run = self.first_token_ms / 1_000 * (1 + FIRST_FACTOR * k) + tokens * (1 + SLOW_FACTOR * k) / self.tokens_per_s
        return run + self.wait_ms(self.place()) / 1_000

    # --- what it does ------------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Run it now or when a slot is free. Ask `refuses` first."""
        if len(self.running) < self.slots:
            self._start(job)
        else:
            self.queue.append(job)
        self.on_load()

    def cancel(self, job: Job) -> None:
        """Stop it; it ends without another word."""
        if job.is_over:
            return
        job.is_over = True
        if job in self.running:
            self._free(job)
        else:
            self.queue.remove(job)
        self.on_load()

    def pause(self, job: Job) -> None:
        """Its output is not taken: it keeps its slot and waits."""
        job.is_paused = True
        job.generation += 1

    def resume(self, job: Job) -> None:
        """Go on."""
        if job.is_paused and not job.is_over:
            job.is_paused = False
            self._next_piece(job)

    def stop(self) -> None:
        """The machine is gone: no job of it is heard of again."""
        for job in (*self.running, *self.queue):
            job.is_over = True
        self._account()
        self.running.clear()
        self.queue.clear()

    def _start(self, job: Job) -> None:
        self._account()
        self.running.append(job)
        job.started_ns = self.kernel.now
        k = len(self.running) / self.slots
        self._later(job, self.first_token_ms / 1_000 * (1 + FIRST_FACTOR * k), self._piece)

    def _next_piece(self, job: Job) -> None:
        k = len(self.running) / self.slots
        count = min(PIECE_TOKENS, job.tokens - job.made)
        self._later(job, count * (1 + SLOW_FACTOR * k) / self.tokens_per_s, self._piece)

    def _later(self, job: Job, seconds: float, then: Callable[[Job], None]) -> None:
        job.generation += 1
        self.kernel.after(int(seconds * SECOND_NS), self._fire, job, job.generation, then)

    def _fire(self, job: Job, generation: int, then: Callable[[Job], None]) -> None:
        if not job.is_over and job.generation == generation:
            then(job)

    def _piece(self, job: Job) -> None:
        count = 1 if job.made == 0 else min(PIECE_TOKENS, job.tokens - job.made)
        count = min(count, job.tokens - job.made)
        job.made += count
        self.tokens_made += count
        is_last = job.made >= job.tokens
        if count:
            job.on_tokens(job, count)
        if is_last:
            self.finish(job, None)
        elif not job.is_over and not job.is_paused:
            self._next_piece(job)

    def finish(self, job: Job, why: str | None) -> None:
        """It is over: whole (None), or failed."""
        if job.is_over:
            return
        job.is_over = True
        self._service_ns.append(self.kernel.now - job.started_ns)
        self._free(job)
        job.on_end(job, why)
        self.on_load()

    def _free(self, job: Job) -> None:
        self._account()
        self.running.remove(job)
        while self.queue and len(self.running) < self.slots:
            self._start(self.queue.popleft())

    def _account(self) -> None:
        now = self.kernel.now
        self.busy_ns += len(self.running) * (now - self._busy_since_ns)
        self._busy_since_ns = now

    def utilisation(self, elapsed_ns: int) -> float:
        """Share of slot-time in use since the start."""
        self._account()
        return self.busy_ns / (elapsed_ns * self.slots) if elapsed_ns else 0.0
