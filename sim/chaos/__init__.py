"""Chaos: faults drawn from a seed, laws that must hold all the same. `story` tells one; `python -m sim.chaos` many."""

from sim.chaos.attach import ChaosPart, attach_chaos
from sim.chaos.faults import Faults, Rates
from sim.chaos.laws import Laws
from sim.chaos.run import Found, run_stories
from sim.chaos.story import Story, Told, tell

__all__ = ["ChaosPart", "Faults", "Found", "Laws", "Rates", "Story", "Told", "attach_chaos", "run_stories", "tell"]
