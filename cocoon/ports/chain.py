"""The chain as the rest of Cocoon sees it: proven states of our contracts and wallets, and messages to send.

Every state that comes out of here was proven against a block that is recent and trusted; nobody above this port
sees a server's word. Absence is proven too. Accounts are 32-byte ids in workchain 0. Values only; no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from ..types import Nano, Network

TRANSFERS_MAX: Final = 255  # of one wallet message (W5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The newest trusted masterchain block."""

    seqno: int
    root_hash: bytes
    time_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One provider's line in a spending account. `ceiling_nano - claimed_nano` is reserved for it."""

    claimed_nano: Nano
    ceiling_nano: Nano


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendingAccount:
    """A spending account's proven state. That code, data and address fit is already checked."""

    account: bytes
    owner: bytes
    owner_workchain: int
    salt: int
    voucher_key: bytes  # V; zeros while epoch is 0
    epoch: int  # time of the last roll; 0: never opened, and no voucher is worth anything
    unlock_at_s: int  # 0: no notice; otherwise from when the owner may roll
    bond_nano: Nano  # as stored; rent may have eaten into it
    reserved_nano: Nano
    balance_nano: Nano  # the real balance is the ledger
    entries: Mapping[bytes, Entry]
    at_s: int  # time of the block that proves it


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorKey:
    """An operator key in a stake; `retired_at_s` 0: the current one."""

    key: bytes
    retired_at_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StakeState:
    """A stake's proven state. That code, data and address fit is already checked."""

    stake: bytes
    owner: bytes
    owner_workchain: int
    unbond_delay_s: int
    staked_nano: Nano  # what a slash would take now
    unlock_at_s: int  # 0: bonded
    epoch: int  # of the current key; 0: none
    keys: Mapping[int, OperatorKey]  # by epoch
    balance_nano: Nano
    at_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WalletState:
    """A wallet's proven state; `is_deployed` False: it may hold coins, but has sent nothing yet."""

    account: bytes
    balance_nano: Nano
    seqno: int
    is_deployed: bool
    at_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One message that a wallet sends. `body` and `init` are bags of cells; empty: none."""

    to: bytes
    amount_nano: Nano
    body: bytes = field(default=b"", repr=False)
    init: bytes = field(default=b"", repr=False)
    bounce: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainTransaction:
    """One transaction of an account, proven by its hash chain from the account's state."""

    account: bytes
    lt: int
    hash: bytes
    time_s: int
    source: bytes | None  # None: an external message
    value_nano: Nano  # what came in with the message
    body_hash: bytes  # of the incoming message's body: tells a sender its own message
    body: bytes = field(repr=False)  # of the incoming message, a bag of cells
    exit_code: int | None  # None: the contract did not run
    is_done: bool  # it ran, and everything it wanted to send was sent
    is_bounced: bool  # the incoming message is one that came back
    skipped_transfers: int  # that a wallet could not send and passed over
    fees_nano: Nano


class Chain(Protocol):
    """Proven reads, and messages out. Every method raises `Unavailable` when no trusted, recent answer can be had,
    `ChainDisagrees` when servers contradict one another, and `ProofInvalid` when a server was caught lying."""

    @property
    def network(self) -> Network:
        """Which network this is."""
        ...

    async def head(self) -> Head:
        """The newest trusted block, not older than the adapter's limit."""
        ...

    async def spending_account(self, account: bytes) -> SpendingAccount | None:
        """None: proven to be absent, or not deployed. `ProofInvalid` also when it is something else."""
        ...

    async def stake(self, stake: bytes) -> StakeState | None:
        """None: proven to be absent, or not deployed. `ProofInvalid` also when it is something else."""
        ...

    async def wallet(self, account: bytes) -> WalletState:
        """Balance and seqno; zeros for an account that does not exist."""
        ...

    async def transactions(self, account: bytes, *, after_lt: int, count_max: int) -> tuple[ChainTransaction, ...]:
        """The newest first, down to but without `after_lt`."""
        ...

    async def submit(self, message: bytes) -> None:
        """Hand an external message (a bag of cells) to every server. That it was taken proves nothing."""
        ...


class Wallet(Protocol):
    """Sends transfers from one wallet, several in one message, each seqno once."""

    @property
    def account(self) -> bytes:
        """The wallet's account id."""
        ...

    async def send(self, transfers: tuple[Transfer, ...]) -> None:
        """Returns when the chain shows that the message was executed. At most `TRANSFERS_MAX`.

        Raises `PaymentError` when the wallet is too poor, and `Unavailable` when the outcome is not known or the
        message has expired unexecuted; the text says which. Cancellation leaves the message possibly executed.
        """
        ...
