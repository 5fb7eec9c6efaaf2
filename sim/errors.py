"""What can go wrong in a simulation, as errors that say what to do. Scenario errors have a file and a line."""

from __future__ import annotations

from typing import NamedTuple


class SimError(Exception):
    """Root of the simulator's own errors."""


class KernelOverflow(SimError):
    """More events are waiting than any scenario needs: a handler schedules itself again without end."""


class WorldInvalid(SimError):
    """A world that cannot be built: more dials than nodes, a matrix without a row for a node, and the like."""


class Problem(NamedTuple):
    where: str  # "file.toml:12", or "--set net.loss=2"
    key: str
    message: str  # what is wrong, and what to write instead

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.message}" if self.key else f"{self.where}: {self.message}"


class ScenarioError(SimError):
    """A scenario that cannot be read. Each problem says where it stands and what to write instead."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class RunError(SimError):
    """A run that cannot start or go on: a folder that is in use, a disk that is full, a level that is not there."""
