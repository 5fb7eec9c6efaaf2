"""Attackers with a budget and stated knowledge. `base` says what an attack is, `attach` puts a scenario's onto a
world."""

from sim.adversary.attach import KINDS, AdversaryPart, attach_adversaries, attach_to_market, make_adversary
from sim.adversary.base import Action, Adversary, Budget, Damage, Knowledge, View

__all__ = [
    "KINDS",
    "Action",
    "Adversary",
    "AdversaryPart",
    "Budget",
    "Damage",
    "Knowledge",
    "View",
    "attach_adversaries",
    "attach_to_market",
    "make_adversary",
]
