"""The first event in which two runs part.

First their checkpoints are compared: that names the virtual second. Then both are run again from their seeds, with a
recording of that second alone, and the two lists of events are compared. So nothing but hashes is ever kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import RunError
from .kernel import EPOCH_NS, SECOND
from .replay import Recorded, Watch, event_json, event_text, reexecute
from .trace import Recording, TraceEvent, first_difference, parting_second

BEFORE = 3  # events shown that both have
ANSWERS_MAX = 40  # numbers of the scenario that differ, named


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    seeds: tuple[int, int]
    settings: Sequence[tuple[str, Any, Any]]  # of the two scenarios
    second: tuple[float, float] | None  # None: the traces are equal
    a: TraceEvent | None = None  # None: that run has no more events there
    b: TraceEvent | None = None
    before: Sequence[TraceEvent] = ()
    why_not: str = ""  # the event could not be found

    @property
    def is_good(self) -> bool:
        return self.second is None

    def as_json(self) -> dict[str, Any]:
        return {
            "equal": self.second is None,
            "seeds": list(self.seeds),
            "settings": [{"path": path, "a": a, "b": b} for path, a, b in self.settings],
            "second": None if self.second is None else list(self.second),
            "a": None if self.a is None else event_json(self.a),
            "b": None if self.b is None else event_json(self.b),
            "before": [event_json(event) for event in self.before],
            "why_not": self.why_not or None,
        }

    def as_text(self) -> str:
        lines = [f"setting {path}: {a} in A, {b} in B" for path, a, b in self.settings]
        if self.second is None:
            return "\n".join([*lines, "the traces are equal"])
        lines.append(f"the traces part between {self.second[0]:g} s and {self.second[1]:g} s")
        if self.why_not:
            return "\n".join([*lines, self.why_not])
        lines += ["  both: " + event_text(event) for event in self.before]
        lines += [f"  {name}:  " + (event_text(one) if one else "no more events") for name, one in self._sides()]
        return "\n".join(lines)

    def _sides(self) -> tuple[tuple[str, TraceEvent | None], ...]:
        return ("A", self.a), ("B", self.b)


def diff(path_a: Path, path_b: Path, *, seed: int | None = None) -> Difference:
    """Raises RunError when one of the two is no run, or they are of different levels."""
    a, b = Recorded.of(path_a, seed), Recorded.of(path_b, seed)
    if a.level != b.level:
        raise RunError(f"A is of level {a.level} and B of level {b.level}: their events are not the same things")
    settings = _settings(a.folder.manifest["scenario"], b.folder.manifest["scenario"])[:ANSWERS_MAX]
    seeds = (a.seed, b.seed)
    if a.trace_hash == b.trace_hash:
        return Difference(seeds=seeds, settings=settings, second=None)
    part = parting_second(a.checkpoints, b.checkpoints)
    if part is None:  # equal up to the last full second
        part = (a.checkpoints[-1][0] if a.checkpoints else EPOCH_NS, 0)
    start = max(part[0], EPOCH_NS)
    until = part[1] or None
    shown_end = until or EPOCH_NS + round(a.folder.scenario().run.until_s * SECOND)
    second = ((start - EPOCH_NS) / SECOND, (shown_end - EPOCH_NS) / SECOND)
    recorded: list[Sequence[TraceEvent]] = []
    for name, run in (("A", a), ("B", b)):
        window = _Window(start_ns=start, until_ns=until or 2**62)
        reexecute(run, window)
        if until is not None and (changed := window.first_wrong(run.checkpoints)) is not None:
            cause = "with other code; check its commit out" if not run.code_is_same else "and the code is the same"
            why = f"{name} runs otherwise now (from {(changed - EPOCH_NS) / SECOND:g} s on): it was made {cause}"
            return Difference(seeds=seeds, settings=settings, second=second, why_not=why)
        if window.is_full:
            why = f"more than {window.events_max:,} events in that second of {name}"
            return Difference(seeds=seeds, settings=settings, second=second, why_not=why)
        recorded.append(window.events)
    at = first_difference(*recorded)
    if at is None:
        why = "the events of that second are equal now: the code has changed since"
        return Difference(seeds=seeds, settings=settings, second=second, why_not=why)
    one, other = (events[at] if at < len(events) else None for events in recorded)
    before = recorded[0][max(0, at - BEFORE) : at]
    return Difference(seeds=seeds, settings=settings, second=second, a=one, b=other, before=before)


class _Window(Recording):
    """Records one second, and checks the checkpoints before it on the way."""

    __slots__ = ("_watch",)

    def __init__(self, *, start_ns: int, until_ns: int) -> None:
        super().__init__(start_ns=start_ns, until_ns=until_ns)
        self._watch = Watch(start_ns=2**62, until_ns=until_ns, last=0)

    def add(self, event: TraceEvent) -> None:
        self._watch.add(event)  # ends the run after the window
        super().add(event)

    def first_wrong(self, checkpoints: Sequence[tuple[int, str]]) -> int | None:
        """The first recorded checkpoint up to the window's start that this run has not."""
        for mine, recorded in zip(self._watch.own.checkpoints, checkpoints, strict=False):
            if recorded[0] > self.start_ns:
                return None
            if tuple(mine) != tuple(recorded):
                return recorded[0]
        return None


def _settings(a: Any, b: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        found: list[tuple[str, Any, Any]] = []
        for key in dict.fromkeys([*a, *b]):
            found += _settings(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
        return found
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return _settings(dict(enumerate(a)), dict(enumerate(b)), path)
    return [] if a == b else [(path, a, b)]
