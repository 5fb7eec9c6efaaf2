"""Any instant of a run again: re-execution from its seed, and what one node saw until then.

    python -m sim replay runs/first --until 12.3s --node 7

Nothing was pickled: the run's manifest has the scenario and the seed, and its checkpoints prove, second by second, that
this is the same run. When the code has changed since, the first checkpoint that differs says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import RunError
from .folder import RunFolder
from .job import execute
from .kernel import EPOCH_NS, SECOND
from .trace import Recording, Trace, TraceEvent

LAST_MAX = 1_000_000  # events shown


class _Reached(BaseException):
    """Ends a re-execution. Not an Exception: no level may take it for a failure of its own."""


@dataclass(slots=True, kw_only=True)
class Watch(Recording):
    """Follows a run: keeps the last events of a node, computes the checkpoints anew, stops after `until_ns`."""

    last: int = 40
    kept: deque[TraceEvent] = field(default_factory=deque)
    seen: int = 0
    own: Trace = field(default_factory=Trace)
    stops: bool = True

    def add(self, event: TraceEvent) -> None:
        if self.stops and event.t_ns > self.until_ns:
            raise _Reached
        self.own.add(*event)
        if event.t_ns >= self.start_ns and (self.node is None or event.node == self.node):
            self.seen += 1
            self.kept.append(event)
            if len(self.kept) > self.last:
                self.kept.popleft()


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    seed: int
    node: int | None
    until_ns: int  # since the start of the run
    checkpoints_equal: int
    parted_ns: int | None  # the end of the first second in which this differs from the recorded run
    events_seen: int
    events: Sequence[TraceEvent]
    trace_equal: bool | None  # None: it was not run to its end
    code_is_same: bool

    @property
    def is_good(self) -> bool:
        return self.parted_ns is None and self.trace_equal is not False

    def as_json(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "node": self.node,
            "until_s": self.until_ns / SECOND,
            "checkpoints_equal": self.checkpoints_equal,
            "parted_s": None if self.parted_ns is None else self.parted_ns / SECOND,
            "trace_equal": self.trace_equal,
            "code_is_same": self.code_is_same,
            "events_seen": self.events_seen,
            "events": [event_json(event) for event in self.events],
        }

    def as_text(self) -> str:
        whose = "all nodes" if self.node is None else f"node {self.node}"
        lines = [event_text(event) for event in self.events]
        hidden = self.events_seen - len(self.events)
        head = f"seed {self.seed}, {whose}, until {self.until_ns / SECOND:.9g} s: {self.events_seen:,} events"
        if hidden:
            head += f", the last {len(self.events):,} are"
        if self.parted_ns is not None:
            cause = "" if self.code_is_same else " (the code has changed since)"
            foot = f"NOT the recorded run: they part in the second that ends at {self.parted_ns / SECOND:g} s{cause}"
        elif self.trace_equal is False:
            foot = "NOT the recorded run: the traces differ after the last checkpoint"
        else:
            foot = f"the recorded run: {self.checkpoints_equal} checkpoints are equal"
            foot += ", and the trace hash" if self.trace_equal else ""
        return "\n".join([head, *lines, foot])


def replay(
    path: Path,
    *,
    until_ns: int | None = None,
    start_ns: int = 0,
    node: int | None = None,
    seed: int | None = None,
    last: int = 40,
) -> Replayed:
    """`until_ns` and `start_ns` count from the start of the run. Raises RunError when it cannot be run again."""
    run = Recorded.of(path, seed)
    scenario = run.folder.scenario()
    if node is not None and node < -1:
        raise RunError(f"node {node}: numbers start at 0 (and -1 is the world)")
    if not 0 <= last <= LAST_MAX:
        raise RunError(f"--last {last}: from 0 to {LAST_MAX:,}")
    end = round(scenario.run.until_s * SECOND)
    until = end if until_ns is None else min(until_ns, end)
    stops = until < end
    watch = Watch(start_ns=EPOCH_NS + start_ns, until_ns=EPOCH_NS + until, node=node, last=last, stops=stops)
    result = reexecute(run, watch)
    recorded = [(t_ns, digest) for t_ns, digest in run.checkpoints if t_ns <= watch.until_ns or not stops]
    parted = next((a[0] for a, b in zip(recorded, watch.own.checkpoints, strict=False) if tuple(a) != tuple(b)), None)
    if parted is None and not stops and len(recorded) != len(watch.own.checkpoints):
        parted = max(recorded, watch.own.checkpoints, key=len)[min(len(recorded), len(watch.own.checkpoints))][0]
    equal = sum(tuple(a) == tuple(b) for a, b in zip(recorded, watch.own.checkpoints, strict=False))
    return Replayed(
        seed=run.seed,
        node=node,
        until_ns=until,
        checkpoints_equal=equal,
        parted_ns=None if parted is None else parted - EPOCH_NS,
        events_seen=watch.seen,
        events=tuple(watch.kept),
        trace_equal=None if result is None else result["summary"]["trace_hash"] == run.trace_hash,
        code_is_same=run.code_is_same,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One seed of a run's folder: what is needed to run it again and to know that it is the same."""

    folder: RunFolder
    seed: int
    level: int
    checkpoints: Sequence[tuple[int, str]]
    trace_hash: str
    code_is_same: bool

    @classmethod
    def of(cls, path: Path, seed: int | None) -> Recorded:
        from .environment import source_hash

        folder = RunFolder.load(path)
        manifest = folder.manifest
        if manifest.get("kind") != "run":
            raise RunError(f"{path} is no single run: replay and diff take what `run --out` wrote")
        finished = {int(run["seed"]): run for run in manifest.get("runs", ())}
        if not finished:
            raise RunError(f"{path} was cut short before its first run ended: run it again")
        chosen = seed if seed is not None else next(iter(finished))
        if chosen not in finished:
            raise RunError(f"{path} has no finished run of seed {chosen}: it has {', '.join(map(str, finished))}")
        if manifest["level"] == 2:
            raise RunError("level 2 keeps no trace of single events: run it with --level 1")
        checkpoints = folder.read_json("checkpoints.json")[str(chosen)]
        return cls(
            folder=folder,
            seed=chosen,
            level=manifest["level"],
            checkpoints=[(int(t_ns), str(digest)) for t_ns, digest in checkpoints],
            trace_hash=finished[chosen]["trace_hash"],
            code_is_same=manifest["environment"]["source_hash"] == source_hash(),
        )


def reexecute(run: Recorded, recording: Recording) -> dict[str, Any] | None:
    """The result; None when the recording ended it before its end."""
    try:
        return execute(
            run.folder.scenario(), seed=run.seed, level=run.level, progress=lambda *_: None, recording=recording
        )
    except _Reached:
        return None
    except BaseExceptionGroup as group:  # trio's, at level 0
        _, rest = group.split(_Reached)
        if rest is not None:
            raise
        return None


def event_json(event: TraceEvent) -> dict[str, Any]:
    payload = event.payload.hex()
    return {"t_s": (event.t_ns - EPOCH_NS) / SECOND, "node": event.node, "kind": event.kind, "payload": payload}


def event_text(event: TraceEvent) -> str:
    payload = event.payload.hex()
    shown = payload if len(payload) <= 64 else payload[:64] + "…"
    return f"{(event.t_ns - EPOCH_NS) / SECOND:14.9f} s  {event.node:>6}  {event.kind:<12} {shown}".rstrip()
