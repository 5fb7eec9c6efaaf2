"""What the spending account does with money, in the fewest lines that say it: the contract is compared with this.

Fees are outside: a step says what the balance was before it, and the model what it must be after, apart from gas that
the sender of an owner's message leaves behind. Written from the specification page, not from the Tolk.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

RENT = 50_000_000
NOTICE_S = 86_400


@dataclass(frozen=True)
class Line:
    """One provider's."""

    claimed: int = 0
    ceiling: int = 0


@dataclass(frozen=True)
class Model:
    """The account's state, apart from its balance."""

    epoch: int = 0
    unlock_at: int = 0
    bond: int = 0
    lines: dict[bytes, Line] = field(default_factory=dict)

    @property
    def reserved(self) -> int:
        """What is the providers' alone."""
        return sum(line.ceiling - line.claimed for line in self.lines.values())

    def claim(self, balance: int, payee: bytes, cumulative: int, ceiling: int) -> tuple[Model, int, int] | None:
        """The state after, what was paid, what was burnt; None: refused as nothing new."""
        line = self.lines.get(payee, Line())
        bond = min(self.bond, max(0, balance - RENT))
        funds = max(0, balance - RENT - bond)
        free = max(0, funds - self.reserved)
        due = max(0, cumulative - line.claimed)
        own = min(due, line.ceiling - line.claimed, funds)
        from_free = min(due - own, free)
        from_bond = min(due - own - from_free, bond // 2)
        paid = own + from_free + from_bond
        claimed = line.claimed + paid
        kept = max(line.ceiling, claimed)
        grant = min(max(0, ceiling - kept), free - from_free)
        if paid + grant == 0:
            return None
        lines = {**self.lines, payee: Line(claimed, kept + grant)}
        return replace(self, bond=bond - 2 * from_bond, lines=lines), paid, from_bond

    def notice(self, now: int, *, cancel: bool) -> Model:
        """The clock towards a roll."""
        return replace(self, unlock_at=0 if cancel else now + NOTICE_S)

    def may_roll(self, now: int) -> bool:
        """Whether the owner may roll now."""
        return self.epoch == 0 or (self.unlock_at != 0 and now >= self.unlock_at)

    def roll(self, now: int, bond: int) -> Model:
        """A new epoch."""
        return Model(epoch=now, bond=bond)
