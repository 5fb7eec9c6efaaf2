"""The simulated chain behind `cocoon.ports.chain`: what whole nodes see of it.

    port = SimChainPort(chain, clock)                  # a `Chain`
    wallet = SimWallet(port, account)                  # a `Wallet`: one message, several transfers, each seqno once

Reads are immediate (a real reader takes round trips: give nodes their links' latency elsewhere); a wallet's `send`
waits for the block that executed it to be final, or for the message to expire, as the real adapter does.
"""

from __future__ import annotations

from typing import Final

import trio

from cocoon.errors import PaymentError, ProofInvalid, Unavailable
from cocoon.ports import Clock
from cocoon.ports.chain import ChainTransaction, Head, SpendingAccount, StakeState, WalletState
from cocoon.ports.chain import Transfer as PortTransfer
from cocoon.types import SECOND_NS, Network
from sim.chain.chain import EXPIRY_NS, ChainEvent, SimChain, Transfer, WalletMessage
from sim.chain.messages import body_of, message_of
from sim.chain.rules import Account, Contract, Stake

LOOK_AGAIN_S: Final = 1.0
TRANSACTIONS_MAX: Final = 4_096  # kept per chain; older ones are forgotten


class SimChainPort:
    """A `cocoon.ports.chain.Chain`. Whoever drives the chain calls `took` with what `on_time` gave."""

    def __init__(self, chain: SimChain, clock: Clock) -> None:
        self.chain = chain
        self.clock = clock
        self._done: dict[int, ChainEvent] = {}
        self._transactions: list[ChainTransaction] = []
        self._lt = 0

    @property
    def network(self) -> Network:
        """Which network this is."""
        return self.chain.ledger.network

    async def head(self) -> Head:
        """The newest final block."""
        await trio.lowlevel.checkpoint()
        self._catch_up()
        return self.chain.head(now=self.clock.now())

    async def spending_account(self, account: bytes) -> SpendingAccount | None:
        """None: absent. `ProofInvalid` when it is something else."""
        await trio.lowlevel.checkpoint()
        self._catch_up()
        state = self.chain.spending_account(account, now=self.clock.now())
        if state is None and isinstance(self.chain.ledger.contracts.get(account), Stake):
            raise ProofInvalid("this is not a spending account: its code is another")
        return state

    async def stake(self, stake: bytes) -> StakeState | None:
        """None: absent. `ProofInvalid` when it is something else."""
        await trio.lowlevel.checkpoint()
        self._catch_up()
        state = self.chain.stake(stake, now=self.clock.now())
        if state is None and isinstance(self.chain.ledger.contracts.get(stake), Account):
            raise ProofInvalid("this is not a stake: its code is another")
        return state

    async def wallet(self, account: bytes) -> WalletState:
        """Balance; the seqno counts what this wallet has sent and had executed."""
        await trio.lowlevel.checkpoint()
        self._catch_up()
        now = self.clock.now()
        seqno = sum(event.message.wallet == account for event in self._done.values())
        return WalletState(
            account=account,
            balance_nano=self.chain.wallet_nano(account, now=now),
            seqno=seqno,
            is_deployed=seqno > 0,
            at_s=self.chain.head(now=now).time_s,
        )

    async def transactions(self, account: bytes, *, after_lt: int, count_max: int) -> tuple[ChainTransaction, ...]:
        """The newest first, as far as they are kept."""
        await trio.lowlevel.checkpoint()
        self._catch_up()
        self.chain.head(now=self.clock.now())
        found = [each for each in reversed(self._transactions) if each.account == account and each.lt > after_lt]
        return tuple(found[:count_max])

    async def submit(self, message: bytes) -> None:
        """Wallets here hand over values, not signed bytes."""
        raise Unavailable("the simulated chain takes messages from its own wallets only")

    async def deliver(self, message: WalletMessage) -> ChainEvent:
        """Submit, and wait until it is final. Raises `Unavailable` when it was not executed in time."""
        number = self.chain.submit(message, now=self.clock.now())
        give_up_ns = self.clock.now() + EXPIRY_NS + 2 * SECOND_NS * int(1 + self.chain.terms.block_time_s)
        while self.clock.now() < give_up_ns:
            await trio.sleep(LOOK_AGAIN_S)
            self._catch_up()
            event = self._done.get(number)
            if event is not None and event.height + self.chain.terms.finality_blocks <= self.chain.height:
                return event
        raise Unavailable("the message has expired unexecuted")

    def took(self, events: tuple[ChainEvent, ...]) -> None:
        """What the chain did, told by its driver."""
        for event in events:
            if event.is_undone:
                self._done.pop(event.number, None)
                continue
            self._done[event.number] = event
            self._note(event)

    def _catch_up(self) -> None:
        if self.chain.deadline() <= self.clock.now():
            self.took(self.chain.on_time(now=self.clock.now()))

    def _note(self, event: ChainEvent) -> None:
        for transfer, outcome in zip(event.message.transfers, event.outcomes, strict=False):
            self._lt += 1
            body = body_of(transfer.message)
            boc = b"" if body is None else bytes(body.to_boc())
            self._transactions.append(
                ChainTransaction(
                    account=transfer.to,
                    lt=self._lt,
                    hash=self._lt.to_bytes(32, "big"),
                    time_s=self.clock.now() // SECOND_NS,
                    source=event.message.wallet,
                    value_nano=transfer.value,
                    body_hash=bytes(32) if body is None else bytes(body.hash),
                    body=boc,
                    exit_code=outcome.exit_code,
                    is_done=outcome.is_done,
                    is_bounced=False,
                    skipped_transfers=0,
                    fees_nano=outcome.fee_nano,
                )
            )
        del self._transactions[:-TRANSACTIONS_MAX]


class SimWallet:
    """A `cocoon.ports.chain.Wallet` over a balance of the reference ledger."""

    def __init__(self, port: SimChainPort, account: bytes) -> None:
        self._port = port
        self._account = account
        self._sending = trio.Lock()

    @property
    def account(self) -> bytes:
        """The wallet's account id."""
        return self._account

    async def send(self, transfers: tuple[PortTransfer, ...], *, deploys: dict[bytes, Contract] | None = None) -> None:
        """Returns when the chain shows it. Raises `PaymentError` when too poor, `Unavailable` when not executed.

        `deploys`: contracts that come along, by address; the bags of cells in `init` are not run here.
        """
        needed = sum(transfer.amount_nano for transfer in transfers) + self._port.chain.ledger.fees.wallet_nano
        if self._port.chain.ledger.balance(self._account) < needed:
            raise PaymentError("the wallet does not hold so much", advice="Send it coins.")
        values = tuple(
            Transfer(
                to=transfer.to,
                value=transfer.amount_nano,
                message=message_of(transfer.body),
                deploys=(deploys or {}).get(transfer.to),
            )
            for transfer in transfers
        )
        async with self._sending:  # each seqno once
            await self._port.deliver(WalletMessage(wallet=self._account, transfers=values))
