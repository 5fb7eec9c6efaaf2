"""The chain port over the small accounts of `tests.fakes.pay`, in virtual time, with ways to fail.

Proofs show the ledger as it is; claims take one "block" to run. For whole markets that pay; `tests.fakes.chain` is the
one with real messages, for what builds and signs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from cocoon.errors import CocoonError, PaymentError, Unavailable
from cocoon.pay.voucher import VOUCHER_BYTES, SignedVoucher, parse_voucher
from cocoon.ports import Clock
from cocoon.ports.chain import ChainTransaction, Head, SpendingAccount, StakeState, Transfer, WalletState
from cocoon.types import NANO_PER_TON, SECOND_NS, Network
from tests.fakes.pay import FakeAccount

BLOCK_S = 1.0
CLAIM_ATTACHED_NANO = NANO_PER_TON // 50


def claim_transfers(vouchers: Sequence[SignedVoucher]) -> tuple[Transfer, ...]:
    """As the contracts' `operations.claims`, with the voucher itself for a body."""
    return tuple(
        Transfer(to=each.voucher.account, amount_nano=CLAIM_ATTACHED_NANO, body=each.encode()) for each in vouchers
    )


class LedgerChain:
    """`failure` is raised by every read while it is set; `lies` changes what a proof shows."""

    def __init__(self, clock: Clock, *, delay_s: float = 0.05) -> None:
        self._clock = clock
        self._delay_s = delay_s
        self.accounts: dict[bytes, FakeAccount] = {}
        self.paid: dict[bytes, int] = {}  # by payout address
        self.failure: CocoonError | None = None
        self.lies: Callable[[SpendingAccount], SpendingAccount] = lambda state: state
        self.looked_up = 0

    @property
    def network(self) -> Network:
        return Network.DEVNET

    async def head(self) -> Head:
        await self._answer()
        return Head(seqno=1, root_hash=bytes(32), time_s=self._clock.now() // SECOND_NS)

    async def spending_account(self, account: bytes) -> SpendingAccount | None:
        await self._answer()
        self.looked_up += 1
        found = self.accounts.get(account)
        return None if found is None else self.lies(found.state(self._clock.now()))

    async def stake(self, stake: bytes) -> StakeState | None:
        await self._answer()
        return None

    async def wallet(self, account: bytes) -> WalletState:
        await self._answer()
        return WalletState(account=account, balance_nano=0, seqno=0, is_deployed=False, at_s=0)

    async def transactions(self, account: bytes, *, after_lt: int, count_max: int) -> tuple[ChainTransaction, ...]:
        await self._answer()
        return ()

    async def submit(self, message: bytes) -> None:
        await self._answer()

    def claim(self, signed: SignedVoucher) -> None:
        """What the contract does with it."""
        account = self.accounts.get(signed.voucher.account)
        if account is not None:
            provider = signed.voucher.provider
            self.paid[provider] = self.paid.get(provider, 0) + account.claim(signed)

    async def _answer(self) -> None:
        await trio.sleep(self._delay_s)
        if self.failure is not None:
            raise self.failure


class LedgerWallet:
    """Runs claims on the ledger, one block later. `is_poor`: it cannot pay for gas."""

    def __init__(self, chain: LedgerChain, *, account: bytes = b"\xcc" * 32) -> None:
        self._chain = chain
        self.account = account
        self.is_poor = False
        self.messages: list[tuple[Transfer, ...]] = []

    async def send(self, transfers: tuple[Transfer, ...]) -> None:
        await trio.sleep(BLOCK_S)
        if self._chain.failure is not None:
            raise Unavailable("the message expired and was not executed")
        if self.is_poor:
            raise PaymentError("the wallet is empty")
        self.messages.append(transfers)
        for transfer in transfers:
            self._chain.claim(parse_voucher(transfer.body[:VOUCHER_BYTES], transfer.body[VOUCHER_BYTES:]))
