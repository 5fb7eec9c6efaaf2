"""The devnet's accounts: messages go in, transactions come out, in order, with a clock that is ours to set.

One basechain shard. A message to the masterchain has no account to arrive at and is dropped. Blocking; one thread.
Not here: blocks and proofs (`blocks`), who may ask (`queries`), the virtual machine (`tvm`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from pytoniq_core import Address, Cell, begin_cell
from pytoniq_core.tlb.account import ShardAccount
from pytoniq_core.tlb.transaction import MessageAny, Transaction

from ..ton.cells import internal_message
from .tvm import MessageRefused, Tvm

LT_STEP: Final = 1_000_000  # far more than one transaction uses
TRANSACTIONS_PER_RUN_MAX: Final = 2_000  # a chain of messages that pays for itself must still end
NO_ACCOUNT: Final = (
    begin_cell().store_ref(begin_cell().store_bit(0).end_cell()).store_uint(0, 256).store_uint(0, 64).end_cell()
)
NOWHERE: Final = Address((0, bytes(32)))


@dataclass(frozen=True)
class Applied:
    """One transaction as it happened."""

    account: bytes
    lt: int
    cell: Cell

    @cached_property
    def parsed(self) -> Any:
        """pytoniq-core's `Transaction`."""
        return Transaction.deserialize(self.cell.begin_parse())

    @property
    def exit_code(self) -> int | None:
        """The contract's exit code; None when it did not run."""
        code: int | None = getattr(self.parsed.description.compute_ph, "exit_code", None)
        return code

    @property
    def gas(self) -> int:
        """Gas used."""
        return int(getattr(self.parsed.description.compute_ph, "gas_used", 0) or 0)

    @property
    def action_code(self) -> int | None:
        """The action phase's result code; None when there was none."""
        action = self.parsed.description.action
        return None if action is None else int(action.result_code)

    @property
    def fees_nano(self) -> int:
        """What the network took here."""
        return int(self.parsed.total_fees.grams)

    @property
    def is_done(self) -> bool:
        """The contract ran, and everything that it wanted to send was sent."""
        return self.exit_code in (0, 1) and self.action_code in (None, 0)


class Ledger:
    """All accounts, and the clock."""

    def __init__(self, tvm: Tvm, *, now_s: int) -> None:
        self.tvm = tvm
        self.now_s = now_s
        self.lt = LT_STEP
        self.accounts: dict[bytes, Cell] = {}  # account id → ShardAccount
        self.waiting: deque[Cell] = deque()

    def shard_account(self, account: bytes) -> Cell:
        """Its `ShardAccount` cell, also when it does not exist."""
        return self.accounts.get(account, NO_ACCOUNT)

    def account(self, account: bytes) -> Any:
        """pytoniq-core's `Account`, or None."""
        cell = self.accounts.get(account)
        return None if cell is None else ShardAccount.deserialize(cell.begin_parse()).account

    def balance_nano(self, account: bytes) -> int:
        """What it holds; 0 when it does not exist."""
        parsed = self.account(account)
        return 0 if parsed is None or parsed.storage is None else int(parsed.storage.balance.grams)

    def data(self, account: bytes) -> Cell | None:
        """The data cell of an active account."""
        parsed = self.account(account)
        init = None if parsed is None else getattr(parsed.storage.state, "state_init", None)
        return None if init is None else init.data

    def mint(self, account: bytes, amount_nano: int, *, init: Any = None) -> list[Applied]:
        """Coins from nowhere: the devnet's genesis and faucet."""
        return self.run(internal_message(NOWHERE, Address((0, account)), amount_nano, init=init, bounce=False))

    def run(self, message: Cell) -> list[Applied]:
        """Deliver a message and everything that follows from it.

        Raises `MessageRefused` when an external message is not accepted; then nothing has changed.
        """
        done = self._apply(message)
        self.waiting.extend(_messages_out(done))
        return [done, *self.drain(TRANSACTIONS_PER_RUN_MAX - 1)]

    def drain(self, count_max: int) -> list[Applied]:
        """Deliver what waits, at most so many; the rest waits for the next call."""
        done: list[Applied] = []
        while self.waiting and len(done) < count_max:
            message = self.waiting.popleft()
            try:
                applied = self._apply(message)
            except MessageRefused:
                continue  # to where no account can be; the coins are gone, as they would be on a real chain
            self.waiting.extend(_messages_out(applied))
            done.append(applied)
        return done

    def _apply(self, message: Cell) -> Applied:
        destination = MessageAny.deserialize(message.begin_parse()).info.dest
        if not isinstance(destination, Address) or destination.wc != 0:
            raise MessageRefused("only the basechain is here", exit_code=None)
        account = bytes(destination.hash_part)
        lt = self.lt + LT_STEP
        transaction, after = self.tvm.run_transaction(
            account=self.shard_account(account), message=message, now_s=self.now_s, lt=lt
        )
        self.lt = lt
        self.accounts[account] = after
        return Applied(account=account, lt=lt, cell=transaction)


def _messages_out(applied: Applied) -> list[Cell]:
    return [message.serialize() for message in applied.parsed.out_msgs if message.is_internal]
