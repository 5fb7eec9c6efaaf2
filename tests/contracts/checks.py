"""Named checks that run against a contract's code: the shipped one must pass all, every mutant must fail one."""

from __future__ import annotations

from collections.abc import Callable

from cocoon.adapters.devnet.tvm import Tvm
from cocoon.adapters.ton.contracts import Code

Check = Callable[[Tvm, Code], None]


class Checks:
    """A list that functions join by decoration."""

    def __init__(self) -> None:
        self.all: list[Check] = []

    def __call__(self, check: Check) -> Check:
        self.all.append(check)
        return check

    @property
    def names(self) -> list[str]:
        """For pytest's ids."""
        return [check.__name__ for check in self.all]
