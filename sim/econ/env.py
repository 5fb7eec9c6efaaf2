"""The world that a peer of the market sees: time, a wire, keys, signatures, disks. All of it belongs to one simulation.

    env = Env(kernel=…, wire=network, seed=7)
    conn = Conn(env, a, b, …); conn.send(a, message)         # ordered and reliable, as a stream is
    wake = Wake(env.kernel, machine.deadline, on_time); wake.look()   # after every call of the machine

Keys, signatures and seals are in `crypto.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from cocoon.types import MILLISECOND_NS, Network
from sim.econ.crypto import SignatureMemo, SimCrypto
from sim.kernel import Kernel
from sim.rng import Stream, stream

RETRANSMIT_NS: Final = 250 * MILLISECOND_NS  # after a lost frame; doubles
RETRANSMIT_MAX_NS: Final = 8_000 * MILLISECOND_NS
FRAME_OVERHEAD_BYTES: Final = 60  # TCP/IP, Noise and yamux around one frame


class Wire(Protocol):
    """Carries bytes between nodes by number; `sim.net.Network` and the overlay's world are such."""

    def send(self, src: int, dst: int, size: int, deliver: Callable[..., None], *args: object) -> bool:
        """`deliver(*args)` when it arrives; False: it never will."""
        ...


@dataclass(slots=True, kw_only=True)
class Env:
    """What all peers of one simulation share."""

    kernel: Kernel
    wire: Wire
    seed: int
    network: Network = Network.DEVNET
    memo: SignatureMemo = field(default_factory=SignatureMemo)
    crypto: SimCrypto = field(default_factory=SimCrypto)

    @property
    def now(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return self.kernel.now

    def rng(self, purpose: str, node: int = 0) -> Stream:
        """A stream of its own."""
        return stream(self.seed, purpose, node)

    def note(self, node: int, kind: str, payload: bytes = b"") -> None:
        """Into the trace."""
        self.kernel.trace.add(self.kernel.now, node, kind, payload)


class Wake:
    """Calls a machine when its deadline has passed. `look` after every call of the machine.

    A deadline that is later than the wake that is planned costs nothing: the wake looks again.
    """

    __slots__ = ("_at", "_deadline", "_kernel", "_on_time", "is_dead", "offset_ns")

    def __init__(self, kernel: Kernel, deadline: Callable[[], int | None], on_time: Callable[[], None]) -> None:
        self._kernel = kernel
        self._deadline = deadline
        self._on_time = on_time
        self._at: int | None = None
        self.is_dead = False
        self.offset_ns = 0  # how far the node's own clock is ahead

    def look(self) -> None:
        """The deadline may have come nearer."""
        when = self._deadline()
        if when is None or self.is_dead:
            return
        when = max(when - self.offset_ns, self._kernel.now)
        if self._at is None or when < self._at:
            self._at = when
            self._kernel.at(when, self._fire, when)

    def shift(self, offset_ns: int) -> None:
        """The node's clock was set: what is due is due at another time of the world."""
        self.offset_ns = offset_ns
        self._at = None
        self.look()

    def _fire(self, at: int) -> None:
        if self.is_dead or self._at != at:
            return
        self._at = None
        when = self._deadline()
        if when is not None and when - self.offset_ns <= self._kernel.now:
            self._on_time()
        self.look()


@dataclass(frozen=True, slots=True)
class Syn:
    """A round trip of the handshakes below the session: TCP, Noise, the muxer."""

    number: int


class Conn:
    """One stream between two nodes: frames arrive whole, once, in order, or the stream breaks.

    A frame that the wire loses is sent again after a quarter of a second, then a half, and so on: what TCP would do.
    When it could not be delivered for `patience_ns`, both ends hear that the stream is broken.
    """

    __slots__ = (
        "_arrived", "_env", "_handlers", "_held", "_next", "_on_broken", "_sent", "_stuck_since", "a", "b",
        "bytes", "frames", "is_open", "patience_ns",
    )  # fmt: skip

    def __init__(self, env: Env, a: int, b: int, *, patience_ns: int = 60_000 * MILLISECOND_NS) -> None:
        self._env = env
        self.a, self.b = a, b
        self.is_open = True
        self.bytes = self.frames = 0
        self.patience_ns = patience_ns
        self._sent = {a: 0, b: 0}
        self._arrived: dict[int, int] = {a: 0, b: 0}  # next number expected at
        self._held: dict[int, dict[int, Any]] = {a: {}, b: {}}
        self._handlers: dict[int, Callable[[Any], None]] = {}
        self._on_broken: dict[int, Callable[[], None]] = {}
        self._stuck_since: dict[int, int] = {}

    def listen(self, node: int, handler: Callable[[Any], None], on_broken: Callable[[], None]) -> None:
        """What happens at this end."""
        self._handlers[node] = handler
        self._on_broken[node] = on_broken

    def send(self, source: int, message: Any, size: int) -> None:
        """To the other end."""
        if not self.is_open:
            return
        number = self._sent[source]
        self._sent[source] += 1
        self.bytes += size
        self.frames += 1
        self._put(source, number, message, size + FRAME_OVERHEAD_BYTES, 0, self._env.now)

    def _put(self, source: int, number: int, message: Any, size: int, tries: int, since_ns: int) -> None:
        if not self.is_open:
            return
        target = self.b if source == self.a else self.a
        if self._env.wire.send(source, target, size, self._arrive, target, number, message):
            return
        if self._env.now - since_ns >= self.patience_ns:
            self.break_off()
            return
        wait_ns = min(RETRANSMIT_NS << min(tries, 8), RETRANSMIT_MAX_NS)
        self._env.kernel.after(wait_ns, self._put, source, number, message, size, tries + 1, since_ns)

    def _arrive(self, target: int, number: int, message: Any) -> None:
        if not self.is_open:
            return
        held = self._held[target]
        held[number] = message
        while self.is_open and self._arrived[target] in held:
            ready = held.pop(self._arrived[target])
            self._arrived[target] += 1
            self._handlers.get(target, _ignore)(ready)

    def close(self, by: int) -> None:
        """This end hangs up; the other hears of it after what was sent before."""
        if self.is_open:
            self.send(by, None, 0)

    def break_off(self) -> None:
        """Both ends hear at once that it is over."""
        if self.is_open:
            self.is_open = False
            for on_broken in tuple(self._on_broken.values()):
                on_broken()

    def drop(self, by: int) -> None:
        """This end is gone without a word; the other hears of it after a while (a reset, or silence)."""
        self._on_broken.pop(by, None)
        self._handlers[by] = _ignore
        self._env.kernel.after(RETRANSMIT_NS, self.break_off)


def _ignore(_: Any) -> None:
    pass


class SimDisk:
    """Records that survive a crash. A write takes `write_ns`; those that come meanwhile are one commit together.

    `crash` loses what is not committed, and may lose the last commit that was acknowledged, where the disk lies.
    """

    def __init__(self, env: Env, node: int, *, write_ns: int = 2 * MILLISECOND_NS) -> None:
        self._env = env
        self._node = node
        self.write_ns = write_ns
        self.fails = False  # commits fail
        self.on_save: Callable[[], None] | None = None  # for who wants to break in between
        self.commits = 0
        self._kept: dict[Any, Any] = {}
        self._waiting: deque[tuple[tuple[Any, ...], Callable[[bool], None]]] = deque()
        self._is_writing = False
        self._generation = 0
        self._undo: list[tuple[Any, Any]] = []  # of the last commit

    def save(
        self,
        records: tuple[Any, ...],
        keys: tuple[Any, ...],
        merge: Callable[[Any, Any], Any],
        done: Callable[[bool], None],
    ) -> None:
        """Keep all or none of these; `merge(kept, record)` says what stays under a key. `done(True)` once committed."""
        if self.on_save is not None and records:
            self.on_save()
        self._waiting.append((tuple(zip(keys, records, [merge] * len(records), strict=True)), done))
        if not self._is_writing:
            self._is_writing = True
            self._env.kernel.after(self.write_ns, self._commit, self._generation)

    def _commit(self, generation: int) -> None:
        if generation != self._generation:
            return
        batch, self._waiting = self._waiting, deque()
        self._is_writing = False
        if self.fails:
            for _, done in batch:
                done(False)
            return
        self._undo = []
        for writes, _ in batch:
            self._write(writes)
        self.commits += 1
        for _, done in batch:
            done(True)

    def _write(self, writes: tuple[Any, ...]) -> None:
        for key, record, merge in writes:
            before = self._kept.get(key)
            self._undo.append((key, before))
            self._kept[key] = merge(before, record)

    def crash(self, *, keeps_unacknowledged: bool = False, loses_last: bool = False) -> None:
        """The process is gone. What was being written may have reached the disk all the same; the last commit, though
        acknowledged, may not have."""
        self._generation += 1
        self._is_writing = False
        waiting, self._waiting = self._waiting, deque()
        if loses_last:
            for key, before in reversed(self._undo):
                if before is None:
                    self._kept.pop(key, None)
                else:
                    self._kept[key] = before
        self._undo = []
        if keeps_unacknowledged:
            for writes, _ in waiting:
                self._write(writes)

    def values(self) -> list[Any]:
        """Everything kept, in the order of the first write."""
        return list(self._kept.values())
