"""What the steps of the contracts cost, from the table that the contracts' own tests measure and keep exact.

    fees = Fees("2026-06")
    fees.claim_nano(entries=12, is_own=True)

Between two measured map sizes the smaller one's figure is taken. Not here: storage rent, which the reference ledger
does not take (0.05 TON stay in every contract for it), and the price of forwarding, which is part of the figures.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Final

GAS_TABLE: Final = Path(__file__).resolve().parents[2] / "contracts" / "gas.json"
PRICES: Final = ("2026-06", "2025-12")
_GAS_PRICE: Final = {"2026-06": 4_369_067, "2025-12": 26_214_400}  # nanoTON per gas, times 2¹⁶: TON's config 21
_WALLET_NANO: Final = {"2026-06": 470_000, "2025-12": 2_800_000}  # one W5 message (reference figure, computed)
_CLAIM = re.compile(r"account: claim, (own|new) entry (?:of|beside) (\d+)\Z")


@cache
def _table() -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = json.loads(GAS_TABLE.read_text())
    return found


class Fees:
    """Fees under one set of prices: nanoTON that the sender of a message pays beside what the message moves."""

    def __init__(self, prices: str = PRICES[0], *, multiplier: float = 1.0, flat_nano: int = 0) -> None:
        """`flat_nano`: every message to a contract costs this, its wallet's part included, whatever it does."""
        if prices not in PRICES:
            raise ValueError(f"no prices of {prices!r}; there are {', '.join(PRICES)}")
        self._prices = prices
        self._multiplier = multiplier
        self._flat_nano = flat_nano
        self._claims: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        for name in _table():
            match = _CLAIM.match(name)
            if match is not None:
                self._claims[match[1] == "own"].append((int(match[2]), self._nano(name)))
        for rows in self._claims.values():
            rows.sort()
        self._first_claim = self._nano("account: claim, first entry")
        self._step = {
            name: self._nano(f"{name}")
            for name in (
                "account: open",
                "account: deposit",
                "account: add bond",
                "account: notice",
                "account: withdraw all, 128 entries",
                "stake: set first key",
                "stake: rotate key",
                "stake: deposit",
                "stake: request unbond",
                "stake: withdraw",
                "stake: slash",
            )
        }
        short = self._nano("account: short claim with burn, own entry of 128")
        # the burning message and its gas
        self.burn_nano = 0 if flat_nano else short - self._nano("account: claim, own entry of 128")

    def step_nano(self, name: str) -> int:
        """One of the steps that do not depend on the map, by its name in the table."""
        return self._step[name]

    def claim_nano(self, *, entries: int, is_own: bool) -> int:
        """A claim against a map of so many entries, this provider's included when it has one."""
        if entries == 0:
            return self._first_claim
        fee = self._claims[is_own][0][1]
        for size, nano in self._claims[is_own]:
            if size > entries:
                break
            fee = nano
        return fee

    @property
    def wallet_nano(self) -> int:
        """A wallet's own message, however many transfers it carries."""
        return 0 if self._flat_nano else int(_WALLET_NANO[self._prices] * self._multiplier)

    @property
    def refusal_nano(self) -> int:
        """A message that is refused and bounces: about 2,000 gas and the way back."""
        return self._flat_nano or self._gas_nano(2_000) + self._step["account: deposit"]

    def kept_back_nano(self, gas: int = 20_000) -> int:
        """What `calculateGasFee` gives inside a contract: never more than the chain's own price, whatever we assume."""
        return -(-gas * _GAS_PRICE[self._prices] >> 16)

    def _gas_nano(self, gas: int) -> int:
        return int((gas * _GAS_PRICE[self._prices] >> 16) * self._multiplier)

    def _nano(self, name: str) -> int:
        return self._flat_nano or int(_table()[name][f"fees_nano_{self._prices}"] * self._multiplier)
