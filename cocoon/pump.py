"""The one trio loop that drives a session machine over a stream: read, call, perform effects, sleep.

Both ends of `/cocoon/session/1` use it. The machine decides everything; here is only I/O and time:
frames are handed to the machine, what it sends goes out in order through one writer, its deadline is slept
to, its events go to a callback that must not block.

Bounds: at most `OUTBOX_FRAMES_MAX` frames wait for a peer that does not read; chunks are bounded by the
peer's own credit, so only a peer that asks without reading can reach the bound, and then the stream ends. On a wire
that is slower than the engine the machine is not asked for another frame before the last ones have left: output
waits there, goes together, and pauses the engine when it is much.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import trio

from .errors import CocoonError, LimitExceeded, StreamBroken
from .ports import Clock, Stream
from .serve.effects import Disconnect, Effects, Emit, Send
from .types import SECOND_NS

SESSION_PROTOCOL: Final = "/cocoon/session/1"

OUTBOX_FRAMES_MAX: Final = 1_024
"""256 requests in flight can each have an answer, a receipt and a refusal waiting, and a few pings."""

OUTBOX_FRAMES_BEHIND: Final = 8  # as many wait only when the wire is slower than we are
BEHIND_PAUSE_S: Final = 1.0  # after which time goes on all the same: heartbeats and time-outs are the machine's

SENT_POLL_S: Final = 0.01

FAREWELL_S: Final = 5.0  # for what was said before hanging up


class SessionMachine(Protocol):
    """What the two ends have in common."""

    def receive_bytes(self, data: bytes, *, now: int) -> Effects:
        """One frame from the peer. Never raises on a peer's account: a breach gives `Disconnect`."""
        ...

    def on_time(self, *, now: int) -> Effects:
        """To be called when the deadline has passed."""
        ...

    def deadline(self) -> int | None:
        """When, in nanoseconds since the epoch."""
        ...

    def disconnected(self, *, now: int) -> Effects:
        """The stream is gone; every open request gets its last event."""
        ...


class SessionPump:
    """Drives `machine` over `stream` until either ends. `perform` may be called from any task of the program."""

    def __init__(self, stream: Stream, machine: SessionMachine, clock: Clock, on_event: Callable[[Any], None]) -> None:
        self._stream = stream
        self._machine = machine
        self._clock = clock
        self._on_event = on_event
        self._outbox: deque[bytes] = deque()
        self._outbox_filled = trio.Event()
        self._caught_up = trio.Event()
        self._deadline_moved = trio.Event()
        self._deadline_slept_to: int | None = None
        self._scope = trio.CancelScope()
        self._is_ending = False
        self._is_writing = False
        self._ended = False
        self.reason: CocoonError | None = None
        """Why it ended; None while it runs and after an orderly end."""

    @property
    def is_ended(self) -> bool:
        """No more effects are performed."""
        return self._ended

    async def run(self) -> None:
        """Run until the peer leaves, breaks the protocol, or `end` is called. Never raises a `CocoonError`.

        Afterwards the machine has been told (`disconnected`), so every open request has had its last event.
        Cancellation closes the stream and tells the machine as well.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._keep_time)
                    await self._read()
                    nursery.cancel_scope.cancel()
        except* CocoonError as group:
            self.reason = self.reason or _first(group.exceptions)
        finally:
            self._ended = True
            for effect in self._machine.disconnected(now=self._clock.now()):
                if isinstance(effect, Emit):
                    self._on_event(effect.event)
            with trio.CancelScope(shield=True):
                await self._stream.aclose()  # bounded to a second by the port

    def end(self, reason: CocoonError | None = None) -> None:
        """Stop now. The machine's open requests fail with `StreamBroken`."""
        self.reason = self.reason or reason
        self._scope.cancel()

    def _end_when_sent(self, reason: CocoonError | None) -> None:
        """What was said before the farewell still leaves, if the peer takes it within a few seconds."""
        self.reason = self.reason or reason
        self._is_ending = True
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + FAREWELL_S)
        self._outbox_filled.set()

    def perform(self, effects: Effects) -> None:
        """Carry out what the machine asked for, in order."""
        for effect in effects:
            match effect:
                case Send():
                    if not self._ended:
                        self._enqueue(effect.data)
                case Emit(event=event):
                    self._on_event(event)
                case Disconnect(why=why):
                    self._end_when_sent(why)
        if self._machine.deadline() != self._deadline_slept_to:
            self._deadline_moved.set()

    async def wait_sent(self) -> None:
        """Return once every frame was handed to the stream, or it has ended."""
        while (self._outbox or self._is_writing) and not self._ended:  # noqa: ASYNC110 - at the end of a run only
            await trio.sleep(SENT_POLL_S)

    def _enqueue(self, frame: bytes) -> None:
        if len(self._outbox) >= OUTBOX_FRAMES_MAX:
            self.end(LimitExceeded("the peer does not read what it asked for"))
            return
        self._outbox.append(frame)
        self._outbox_filled.set()

    async def _read(self) -> None:
        while True:
            frame = await self._stream.receive()
            if frame is None:
                return
            self.perform(self._machine.receive_bytes(frame, now=self._clock.now()))

    async def _write(self) -> None:
        while True:
            while self._outbox:
                self._is_writing = True
                await self._stream.send(self._outbox.popleft())
                if len(self._outbox) < OUTBOX_FRAMES_BEHIND:
                    self._caught_up.set()
            self._is_writing = False
            if self._is_ending:
                self._scope.cancel()
            self._outbox_filled = trio.Event()
            await self._outbox_filled.wait()

    async def _keep_time(self) -> None:
        while True:
            due = self._deadline_slept_to = self._machine.deadline()
            self._deadline_moved = trio.Event()
            with trio.move_on_after(_seconds_until(due, self._clock.now())):
                await self._deadline_moved.wait()
            if len(self._outbox) >= OUTBOX_FRAMES_BEHIND:
                self._caught_up = trio.Event()
                with trio.move_on_after(BEHIND_PAUSE_S):
                    await self._caught_up.wait()
            now = self._clock.now()
            due = self._machine.deadline()
            if due is not None and due <= now:
                self.perform(self._machine.on_time(now=now))


def _seconds_until(due: int | None, now: int) -> float:
    return float("inf") if due is None else max(0, due - now) / SECOND_NS


def _first(errors: Iterable[BaseException]) -> CocoonError:
    for error in errors:
        if isinstance(error, CocoonError):
            return error
        if isinstance(error, BaseExceptionGroup):
            return _first(error.exceptions)
    return StreamBroken("the session ended")
