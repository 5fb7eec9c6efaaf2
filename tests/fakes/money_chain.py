"""A chain behind the port, in memory: real W5 messages in, the contracts' rules from the simulator's reference ledger.

Every message makes a block. It can be told to lose messages, to take them and say that it did not, to be away, and to
lie; and its clock can be moved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import trio
from pytoniq_core import Cell
from pytoniq_core.tlb.transaction import MessageAny

from cocoon.adapters.ton import contracts
from cocoon.adapters.ton.wallet import SEND_MESSAGE
from cocoon.errors import Unavailable
from cocoon.ports.chain import ChainTransaction, Head, SpendingAccount, StakeState, WalletState
from cocoon.types import Network
from sim.chain import Account, Ledger, Plain, Stake
from sim.chain.messages import Message, message_of

WALLET_FEE_NANO = 500_000


class FakeChain:
    """Implements `cocoon.ports.chain.Chain`."""

    def __init__(self, network: Network = Network.DEVNET) -> None:
        self.network = network
        self.ledger = Ledger(network=network)
        self.now_s = int(time.time())
        self.seqno = 100
        self.seqnos: dict[bytes, int] = {}
        self.history: dict[bytes, list[ChainTransaction]] = {}
        self.failure: Exception | None = None  # raised by every read
        self.loses_messages = False
        self.submitted: list[bytes] = []
        self.on_submit: Callable[[], None] = lambda: None
        self._lt = 0

    # --- the port ------------------------------------------------------------------------------------------

    async def head(self) -> Head:
        await self._read()
        return Head(seqno=self.seqno, root_hash=self.seqno.to_bytes(32, "big"), time_s=self.now_s)

    async def spending_account(self, account: bytes) -> SpendingAccount | None:
        await self._read()
        kept = self.ledger.contracts.get(account)
        if not isinstance(kept, Account):
            return None
        return kept.proven(account, balance=self.ledger.balance(account), at_s=self.now_s)

    async def stake(self, stake: bytes) -> StakeState | None:
        await self._read()
        kept = self.ledger.contracts.get(stake)
        if not isinstance(kept, Stake):
            return None
        return kept.proven(stake, balance=self.ledger.balance(stake), at_s=self.now_s)

    async def wallet(self, account: bytes) -> WalletState:
        await self._read()
        seqno = self.seqnos.get(account, 0)
        return WalletState(
            account=account,
            balance_nano=self.ledger.balance(account),
            seqno=seqno,
            is_deployed=seqno > 0,
            at_s=self.now_s,
        )

    async def transactions(self, account: bytes, *, after_lt: int, count_max: int) -> tuple[ChainTransaction, ...]:
        await self._read()
        newest = [one for one in reversed(self.history.get(account, [])) if one.lt > after_lt]
        return tuple(newest[:count_max])

    async def submit(self, message: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.submitted.append(message)
        self.on_submit()
        if not self.loses_messages:
            self.execute(message)

    # --- the chain -----------------------------------------------------------------------------------------

    def execute(self, message: bytes) -> None:
        """Run a wallet's message, if it may run. Raises `Unavailable` as a liteserver would."""
        external = MessageAny.deserialize(Cell.one_from_boc(message).begin_parse())
        wallet = bytes(external.info.dest.hash_part)
        part = external.body.begin_parse()
        part.load_uint(64)
        valid_until_s, seqno = part.load_uint(32), part.load_uint(32)
        if seqno != self.seqnos.get(wallet, 0) or valid_until_s <= self.now_s:
            raise Unavailable("the message was refused: exit code 133")
        part.load_bit()
        transfers = _transfers(part.load_ref())
        self.seqnos[wallet] = seqno + 1
        self.seqno += 1
        self.now_s += 1
        self._take(wallet, WALLET_FEE_NANO)
        self._note(wallet, body_hash=bytes(external.body.hash), exit_code=0)
        for transfer in transfers:
            self._deliver(wallet, transfer)

    def _deliver(self, wallet: bytes, transfer: Any) -> None:
        to, value = bytes(transfer.info.dest.hash_part), int(transfer.info.value.grams)
        if transfer.init is not None:
            deployed = _contract_of(transfer.init)
            if deployed is not None:
                self.ledger.deploy(to, deployed)
        body = bytes(transfer.body.to_boc()) if transfer.body.bits or transfer.body.refs else b""
        message: Message = message_of(body) if body else Plain()
        outcome = self.ledger.send(wallet, to, value, message, now_s=self.now_s)
        self._note(
            to, body_hash=bytes(transfer.body.hash), exit_code=outcome.exit_code, source=wallet, value_nano=value
        )
        for payment in outcome.payments:
            self._note(payment.to, body_hash=bytes(32), exit_code=None, source=to, value_nano=payment.amount)

    def _take(self, account: bytes, amount_nano: int) -> None:
        self.ledger.balances[account] = self.ledger.balance(account) - amount_nano
        self.ledger.given -= amount_nano

    def _note(
        self,
        account: bytes,
        *,
        body_hash: bytes,
        exit_code: int | None,
        source: bytes | None = None,
        value_nano: int = 0,
    ) -> None:
        self._lt += 1
        self.history.setdefault(account, []).append(
            ChainTransaction(
                account=account,
                lt=self._lt,
                hash=self._lt.to_bytes(32, "big"),
                time_s=self.now_s,
                source=source,
                value_nano=value_nano,
                body_hash=body_hash,
                body=b"",
                exit_code=exit_code,
                is_done=exit_code == 0,
                is_bounced=False,
                skipped_transfers=0,
                fees_nano=0,
            )
        )

    async def _read(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure


def _transfers(actions: Cell) -> list[Any]:
    """A W5 message's actions, the first first."""
    found: list[Any] = []
    while actions.bits:
        part = actions.begin_parse()
        previous = part.load_ref()
        assert part.load_uint(32) == SEND_MESSAGE
        part.load_uint(8)
        found.append(MessageAny.deserialize(part.load_ref().begin_parse()))
        actions = previous
    return found[::-1]


def _contract_of(init: Any) -> Account | Stake | None:
    """What a state init deploys, if it is one of ours."""
    data = init.data.begin_parse()
    if init.code.hash == contracts.contract_code("account").hash:
        return Account(owner=bytes(data.load_address().hash_part), salt=data.load_uint(64))
    if init.code.hash == contracts.contract_code("stake").hash:
        return Stake(owner=bytes(data.load_address().hash_part), unbond_delay_s=data.load_uint(32))
    return None
