"""What an attacker is: a budget in TON, what it knows, machines that it bends, actions that cost.

    class FastFail(Adversary):
        kind = "fast-fail"
        def wrap(self, machine): return FailingEngine(machine, self) if isinstance(machine, Engine) else machine

`wrap` gets the real machine of a node that was taken over and gives one that mutates or drops what it does. `plan` is
called once a second with a `View`, as wide as the stated knowledge, and answers with actions; each has a price, and
what the budget does not cover does not happen. Damage is counted where it is done, in nanoTON, so that damage per TON
spent can be reported: time lost at the victims' own value of time, money paid for nothing, services unpaid, answers
that were wrong.

Not here: the attacks themselves (`providers`, `payers`, `offers`, `overlay`), and who attaches them (`attach`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from cocoon.types import NANO_PER_TON
from sim.scenario import AdversarySpec, Value

# What an attacker pays, in nanoTON. A TON is taken for 2 dollars; sources and reasoning in the folder's README.
HOST_HOUR_NANO: Final = 5_000_000  # one address on a small rented machine: a cent an hour
IDENTITY_NANO: Final = 1_000  # a key pair
MESSAGE_NANO: Final = 50  # a kilobyte sent to a dozen neighbours
STAKE_YEAR_SHARE: Final = 0.05  # what locked coins would have earned
GPU_HOUR_NANO: Final = 1_000_000_000  # a rented H100: two dollars an hour


class Knowledge(Enum):
    """What an attacker sees."""

    LOCAL = "local"  # what its own nodes receive
    COLLUDING = "colluding"  # what any of them receives
    OMNISCIENT = "omniscient"  # everything


@dataclass(slots=True)
class Budget:
    """What it may spend, and on what it did. `limit_nano` 0: no limit."""

    limit_nano: int
    spent_nano: int = 0
    by_action: dict[str, int] = field(default_factory=dict)
    refused: int = 0

    def spend(self, action: str, nano: int) -> bool:
        """False, and nothing is spent, when there is not so much left."""
        if self.limit_nano and self.spent_nano + nano > self.limit_nano:
            self.refused += 1
            return False
        self.spent_nano += nano
        self.by_action[action] = self.by_action.get(action, 0) + nano
        return True


@dataclass(slots=True)
class Damage:
    """What it did to others, in nanoTON and in counts."""

    time_nano: int = 0  # waited for nothing, at the victims' own value of time
    paid_nano: int = 0  # paid for what was useless
    unpaid_nano: int = 0  # served and never paid
    value_nano: int = 0  # answers that did not come, or were wrong
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def total_nano(self) -> int:
        """All of it."""
        return self.time_nano + self.paid_nano + self.unpaid_nano + self.value_nano

    def count(self, what: str, by: int = 1) -> None:
        """One more of these."""
        self.counts[what] = self.counts.get(what, 0) + by


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What `plan` may look at. Parts that the knowledge does not cover are empty."""

    now: int
    own: tuple[int, ...]  # numbers of its nodes
    heard: tuple[Any, ...] = ()  # offers that its nodes (colluding: any of them) hold
    everything: Any = None  # omniscient: the market, or the world


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something that costs. `do` is called once it is paid for."""

    name: str
    cost_nano: int
    do: Callable[[], None]


class Adversary:
    """One attack. Subclasses say what they bend and what they do."""

    kind: str = ""
    takes: str = "provider"  # the role of nodes that it takes over: provider, client, gossip, dht

    def __init__(self, spec: AdversarySpec, *, index: int = 0) -> None:
        self.spec = spec
        self.index = index
        self.knowledge = Knowledge(spec.knowledge)
        self.budget = Budget(int(spec.budget_ton * NANO_PER_TON))
        self.damage = Damage()
        self.nodes: list[int] = []
        self.from_ns = 0
        self.until_ns = 1 << 62
        self.now: Callable[[], int] = lambda: 0

    # --- what an attack overrides ------------------------------------------------------------------------

    def wrap(self, machine: Any) -> Any:
        """The machine of a node that was taken over, bent. What an attack does not bend it gives back."""
        return machine

    def plan(self, view: View) -> list[Action]:
        """What to do now. Called once a second while active."""
        return []

    # --- what it may use ---------------------------------------------------------------------------------

    @property
    def is_active(self) -> bool:
        """Between its start and its end."""
        return self.from_ns <= self.now() < self.until_ns

    def param(self, name: str, default: float) -> float:
        """A number of the scenario's `params`."""
        value: Value = self.spec.params.get(name, default)
        return float(value) if isinstance(value, (int, float)) else default

    def word(self, name: str, default: str) -> str:
        """A word of the scenario's `params`."""
        return str(self.spec.params.get(name, default))

    def act(self, actions: list[Action]) -> None:
        """Do what is paid for, in order; stop at the first that is not."""
        for action in actions:
            if not self.budget.spend(action.name, action.cost_nano):
                return
            action.do()

    def summary(self) -> dict[str, Any]:
        """For the run's summary. `damage_per_ton` is null when nothing was spent."""
        spent, damage = self.budget.spent_nano, self.damage
        return {
            "kind": self.kind,
            "knowledge": self.knowledge.value,
            "nodes": len(self.nodes),
            "budget_nano": self.budget.limit_nano,
            "spent_nano": spent,
            "spent_on_nano": dict(sorted(self.budget.by_action.items())),
            "refused_actions": self.budget.refused,
            "damage_nano": damage.total_nano,
            "damage_of_nano": {
                "time": damage.time_nano,
                "paid": damage.paid_nano,
                "unpaid": damage.unpaid_nano,
                "value": damage.value_nano,
            },
            "damage_per_ton": round(damage.total_nano / spent, 6) if spent else None,
            "counts": dict(sorted(damage.counts.items())),
        }
