"""One hash of everything that happened, with a checkpoint for each virtual second.

    trace.add(now, node, "rpc", payload)     # ~1 µs; every handler of a simulation calls it
    trace.hexdigest()                        # equal in two processes: they did the same, in the same order
    trace.checkpoints                        # [(end of a second, hash so far), …]: to a second, where two runs part

To find the very event, the second where checkpoints part is run again with a `Recording` of it, in both runs, and the
two lists are compared: `first_difference`. Nothing else is ever kept, so a run of millions of events needs no room.

Not here: metrics, and event rows for analysis (`sim.out`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from struct import Struct
from typing import NamedTuple

SECOND_NS = 1_000_000_000
HASH_BYTES = 16
_HEAD = Struct("<qiHH")  # time, node, length of the kind, length of the payload (modulo 2¹⁶: it only separates)
_FLUSH_BYTES = 1 << 16  # hashed at once: one call to BLAKE2b per few thousand events
CHECKPOINTS_MAX = 1_000_000  # eleven days of virtual time; later seconds get none
RECORDED_MAX = 2_000_000  # events in one recording: about 400 MB


class TraceEvent(NamedTuple):
    t_ns: int
    node: int
    kind: str
    payload: bytes


class Checkpoint(NamedTuple):
    t_ns: int  # the end of a virtual second in which something happened
    digest: str  # of everything before it


@dataclass(slots=True, kw_only=True)
class Recording:
    """Keeps the events of [start_ns, until_ns), of one node or (None) of all. `is_full`: there were more than kept."""

    start_ns: int
    until_ns: int
    node: int | None = None
    events_max: int = RECORDED_MAX
    events: list[TraceEvent] = field(default_factory=list)
    is_full: bool = False

    def add(self, event: TraceEvent) -> None:
        if self.start_ns <= event.t_ns < self.until_ns and (self.node is None or event.node == self.node):
            if len(self.events) < self.events_max:
                self.events.append(event)
            else:
                self.is_full = True


class Trace:
    __slots__ = ("_buffer", "_hash", "_kinds", "_second_end", "checkpoints", "events", "recording")

    def __init__(self, recording: Recording | None = None) -> None:
        self.checkpoints: list[tuple[int, str]] = []
        self.events = 0
        self.recording = recording
        self._hash = blake2b(digest_size=HASH_BYTES)
        self._buffer = bytearray()
        self._kinds: dict[str, tuple[bytes, int]] = {}
        self._second_end: int | None = None

    def add(self, t_ns: int, node: int, kind: str, payload: bytes = b"") -> None:
        """Times must not fall. `node` −1 is the world; `payload` is a digest or a few bytes, as the caller likes."""
        if self._second_end is None or t_ns >= self._second_end:
            self._turn(t_ns)
        coded = self._kinds.get(kind)
        if coded is None:
            name = kind.encode()
            coded = self._kinds[kind] = (name, len(name))
        buffer = self._buffer
        buffer += _HEAD.pack(t_ns, node, coded[1], len(payload) & 0xFFFF)
        buffer += coded[0]
        buffer += payload
        self.events += 1
        if len(buffer) > _FLUSH_BYTES:
            self._flush()
        if self.recording is not None:
            self.recording.add(TraceEvent(t_ns, node, kind, payload))

    def hexdigest(self) -> str:
        self._flush()
        return self._hash.hexdigest()

    def _turn(self, t_ns: int) -> None:
        """A new second begins: a checkpoint for the one that has ended, if anything happened in it."""
        if self._second_end is not None and len(self.checkpoints) < CHECKPOINTS_MAX:
            self.checkpoints.append(Checkpoint(self._second_end, self.hexdigest()))
        self._second_end = (t_ns // SECOND_NS + 1) * SECOND_NS

    def _flush(self) -> None:
        self._hash.update(self._buffer)
        self._buffer.clear()


def first_difference(a: Sequence[TraceEvent], b: Sequence[TraceEvent]) -> int | None:
    """The index of the first event in which two recordings differ; None when they are equal."""
    for index, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return index
    return None if len(a) == len(b) else min(len(a), len(b))


def parting_second(a: Sequence[tuple[int, str]], b: Sequence[tuple[int, str]]) -> tuple[int, int] | None:
    """Between which instants (from, until, in ns) two runs part, by their checkpoints; None when these are equal.

    `from` is 0 when they differ from the start. When one is the beginning of the other, the part that the other has
    more is where they differ.
    """
    last = 0
    for one, other in zip(a, b, strict=False):
        if tuple(one) != tuple(other):
            return last, max(one[0], other[0])
        last = one[0]
    if len(a) == len(b):
        return None
    longer = a if len(a) > len(b) else b
    return last, longer[min(len(a), len(b))][0]
