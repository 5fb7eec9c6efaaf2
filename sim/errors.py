"""What can go wrong in a simulation, as errors that say what to do. Scenario errors have a file and a line."""

from __future__ import annotations


class SimError(Exception):
    """Root of the simulator's own errors."""


class KernelOverflow(SimError):
    """More events are waiting than any scenario needs: a handler schedules itself again without end."""


class WorldInvalid(SimError):
    """A world that cannot be built: more dials than nodes, a matrix without a row for a node, and the like."""
