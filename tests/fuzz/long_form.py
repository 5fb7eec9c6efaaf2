"""The long form of a suite of attacks: rounds until enough time was spent, in as many runs as it takes.

    form = LongForm("gossip and DHT")
    while form.is_due:
        with form.round() as number: …; form.note(memory_mib=12); form.count(messages=99)

`COCOON_LONG_S` says for how long (default 30 minutes). `COCOON_LONG_STATE` names a file that keeps how far each suite
got, so that a run which was stopped goes on with the next round; a round that failed is repeated. Without it a run
begins anew.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LONG_FORM_S = 30 * 60.0


class LongForm:
    def __init__(self, suite: str) -> None:
        name = os.environ.get("COCOON_LONG_STATE")
        self._state = Path(name) if name else None
        self._suite = suite
        self._duration_s = float(os.environ.get("COCOON_LONG_S", LONG_FORM_S))
        known = self._load().get(suite, {})
        self.rounds: int = known.get("rounds", 0)
        self.spent_s: float = known.get("spent_s", 0.0)
        self.most: dict[str, float] = known.get("most", {})  # of each figure noted, over all rounds
        self.sums: dict[str, int] = known.get("sums", {})

    @property
    def is_due(self) -> bool:
        return self.spent_s < self._duration_s

    def note(self, **figures: float) -> None:
        for name, value in figures.items():
            self.most[name] = max(value, self.most.get(name, value))

    def count(self, **figures: int) -> None:
        for name, value in figures.items():
            self.sums[name] = value + self.sums.get(name, 0)

    @contextmanager
    def round(self) -> Iterator[int]:
        """The number of a round. It counts, and is written down, when the block ends without an error."""
        started = time.monotonic()
        yield self.rounds
        self.rounds += 1
        self.spent_s += time.monotonic() - started
        if self._state is not None:
            ours = {"rounds": self.rounds, "spent_s": self.spent_s, "most": self.most, "sums": self.sums}
            everything = self._load() | {self._suite: ours}
            beside = self._state.with_name(self._state.name + ".new")
            beside.write_text(json.dumps(everything, indent=1))
            beside.replace(self._state)

    def __str__(self) -> str:
        most = [f"{name} at most {value:g}" for name, value in self.most.items()]
        figures = ", ".join([f"{value:,} {name}" for name, value in self.sums.items()] + most)
        return f"{self._suite}: {self.rounds} rounds in {self.spent_s / 60:.1f} minutes; {figures}"

    def _load(self) -> dict[str, Any]:
        if self._state is None or not self._state.exists():
            return {}
        found: dict[str, Any] = json.loads(self._state.read_text())
        return found
