"""Many stories, by the clock: 90 seconds in CI, hours in the long form. Says which seeds were reached.

python -m sim.chaos --seconds 90 --seed 1
python -m sim.chaos --seed 1234 --only --log      # one story again, with everything that was done to it
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from sim.chaos.faults import SLOW, Rates
from sim.chaos.story import Told, tell
from sim.rng import stream

LYING_EVERY: Final = 4  # every fourth story has disks that lose the last write although they acknowledged it
LYING_SHARE: Final = 0.5
SLOW_EVERY: Final = 6  # every sixth story takes hours of virtual time
FAILURES_MAX: Final = 5  # then it is enough


@dataclass(slots=True)
class Found:
    """What a run of stories found."""

    first_seed: int
    stories: int = 0
    requests: int = 0
    done: int = 0
    events: int = 0
    virtual_s: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    failures: list[Told] = field(default_factory=list)

    @property
    def next_seed(self) -> int:
        """The first that was not reached."""
        return self.first_seed + self.stories

    def add(self, told: Told) -> None:
        """One more."""
        self.stories += 1
        self.requests += told.requests
        self.done += told.done
        self.events += told.events
        self.virtual_s += told.virtual_s
        for what, count in told.faults.items():
            self.faults[what] = self.faults.get(what, 0) + count
        if told.violations:
            self.failures.append(told)

    def words(self) -> str:
        """For people."""
        struck = ", ".join(f"{count} {what}" for what, count in sorted(self.faults.items()))
        return (
            f"seeds {self.first_seed} to {self.next_seed - 1}: {self.stories} stories, "
            f"{self.virtual_s / 3600:.1f} virtual hours, {self.events:,} events, "
            f"{self.requests} requests ({self.done} done); {struck}; {len(self.failures)} broke a law"
        )


def rates_for(seed: int) -> Rates:
    """What strikes in this story: storms of different strength, and each kind of fault left out of some."""
    rng = stream(seed, "rates")
    strength = rng.choice((0.5, 1.0, 1.0, 2.0, 4.0))
    usual = SLOW if is_slow(seed) else Rates()
    changes: dict[str, Any] = {}
    for name in ("crash", "partition", "clock", "disk", "chain", "reorg", "loss"):
        per_s = getattr(usual, f"{name}_per_s")
        changes[f"{name}_per_s"] = per_s * strength * rng.choice((0.0, 1.0, 1.0, 1.0))
    changes["trap_share"] = usual.trap_share * rng.choice((0.0, 1.0, 5.0))
    if seed % LYING_EVERY == 0:
        changes["lying_share"] = LYING_SHARE
    return replace(usual, **changes)


def is_slow(seed: int) -> bool:
    """Whether this story takes hours."""
    return seed % SLOW_EVERY == SLOW_EVERY - 1


def run_stories(
    *, first_seed: int, seconds: float, stories_max: int = 10**9, say: Callable[[str], None] = lambda _: None
) -> Found:
    """Stories from this seed on until the time is up; at least one."""
    found = Found(first_seed)
    ends = time.monotonic() + seconds
    while found.stories < stories_max and len(found.failures) < FAILURES_MAX:
        seed = first_seed + found.stories
        told = tell(seed, rates_for(seed), is_slow=is_slow(seed))
        found.add(told)
        if told.violations:
            say(report(told))
        if time.monotonic() >= ends:
            break
    return found


def report(told: Told) -> str:
    """What is needed to see it again."""
    lines = [f"seed {told.seed} at commit {commit()}:"]
    lines += [f"  {violation}" for violation in told.violations]
    lines.append(f"  again: python -m sim.chaos --seed {told.seed} --only --log")
    if told.where:
        lines.append(told.where)
    return "\n".join(lines)


def commit() -> str:
    """Of this checkout; with a plus when files have changed since."""
    folder = Path(__file__).resolve().parent
    try:
        name = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],  # noqa: S607
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],  # noqa: S607
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{name}+" if changed else name


def main(argv: Sequence[str] | None = None) -> int:
    """0: every law held; 1: one did not."""
    parser = argparse.ArgumentParser(prog="python -m sim.chaos", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="of the first story")
    parser.add_argument("--seconds", type=float, default=90.0, help="how long to go on")
    parser.add_argument("--only", action="store_true", help="tell this one story")
    parser.add_argument("--log", action="store_true", help="say what was done to it")
    options = parser.parse_args(argv)
    if options.only:
        told = tell(options.seed, rates_for(options.seed), is_slow=is_slow(options.seed))
        if options.log:
            print("\n".join(told.log))
        print(report(told) if told.violations else f"seed {told.seed}: every law held ({told.requests} requests)")
        print(f"trace {told.trace}")
        return 1 if told.violations else 0
    found = run_stories(
        first_seed=options.seed, seconds=options.seconds, say=lambda text: print(text, file=sys.stderr, flush=True)
    )
    print(found.words())
    return 1 if found.failures else 0
