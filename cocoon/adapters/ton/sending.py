"""Sends from a W5R1 wallet and knows what became of it: every seqno is used for one message, and seen on the chain.

A message is offered again until the chain shows it executed, or until its time has passed, after which it can never
run. A batch of claims is one message. With a journal a message is on disk before it leaves: after a crash the same
transfers are not signed again while the first message may have run. Not here: keys (`wallet`), what to send
(`contracts`), what the receiver made of it (`outcome`).
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from ...errors import ConfigError, PaymentError, Unavailable
from ...ports.chain import TRANSFERS_MAX, Chain, ChainTransaction, Head, Transfer, WalletState
from ...types import format_ton
from .journal import Journal, PendingMessage
from .proofs import reading
from .wallet import WalletKey

VALID_S: Final = 120  # of a message
OFFER_EVERY_S: Final = 5.0  # servers drop messages without a word
LOOK_EVERY_S: Final = 0.5
FEE_NANO_MAX: Final = 20_000_000  # kept back for a message of one transfer; measured: below 3 mTON
FEE_PER_TRANSFER_NANO: Final = 5_000_000
HISTORY_DEPTH: Final = 32  # transactions of the wallet since the message was signed
LEFT_DEPTH: Final = 512  # the same for a message that was left behind, perhaps long ago
REUSE_LEFT_S: Final = 20  # a message that was left behind with less time than this is signed anew

ALREADY: Final = "This was already sent by a command that was interrupted. It is not sent a second time."
MEANWHILE: Final = "The message of a command that was interrupted was executed meanwhile."


class ChainWallet:
    """Implements `cocoon.ports.chain.Wallet`.

    `watch` sees the newest block while a message is waited for; `tell` what became of one that a crash left behind.
    """

    def __init__(
        self,
        key: WalletKey,
        chain: Chain,
        *,
        journal: Journal | None = None,
        watch: Callable[[Head], None] = lambda _: None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._key = key
        self._chain = chain
        self._journal = journal
        self._watch = watch
        self._tell = tell
        self._one_at_a_time = trio.Lock()

    @property
    def account(self) -> bytes:
        """The wallet's account id."""
        return self._key.account

    async def send(self, transfers: tuple[Transfer, ...]) -> None:
        """As the port says. Where a crash left the same transfers behind, those are finished, and not sent twice."""
        await self.run(transfers)

    async def run(self, transfers: tuple[Transfer, ...], *, purpose: str = "") -> ChainTransaction:
        """As `send`; the wallet's transaction that sent them. `purpose` is for `was_done`."""
        if not 1 <= len(transfers) <= TRANSFERS_MAX:
            raise ConfigError(f"a wallet message carries 1 to {TRANSFERS_MAX} transfers, not {len(transfers)}")
        async with self._alone():
            return await self._send(transfers, purpose)

    async def was_done(self, purpose: str) -> bool:
        """Whether a command that was killed had sent its message, and meant this by it. It is told once.

        A second run asks before it looks at anything that the first may have changed.
        """
        if self._journal is None:
            return False
        async with self._alone():
            left = await self._journal.load()
            if left is None or (await self._chain.wallet(self.account)).seqno <= left.seqno:
                return False
            ran = await self._executed(left, depth=LEFT_DEPTH)
            await self._journal.clear()
            if ran is None:
                return False
            _check_done(ran)
            self._tell(ALREADY if left.purpose == purpose else MEANWHILE)
            return left.purpose == purpose

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        async with self._one_at_a_time:
            if self._journal is None:
                yield
                return
            async with self._journal.locked():
                yield

    async def _send(self, transfers: tuple[Transfer, ...], purpose: str) -> ChainTransaction:
        state = await self._chain.wallet(self.account)
        digest = transfers_digest(transfers)
        left = await self._left_behind(state, digest)
        if isinstance(left, ChainTransaction):
            return left
        if left is None:
            _check_balance(state, transfers)
            left = await self._sign(state, transfers, digest, purpose)
        return await self._finish(left, is_deployed=state.is_deployed)

    async def _left_behind(self, state: WalletState, digest: bytes) -> PendingMessage | ChainTransaction | None:
        """The message to go on with, or what became of one that has run and carries the same; None: sign anew."""
        left = None if self._journal is None else await self._journal.load()
        if self._journal is None or left is None:
            return None
        if state.seqno > left.seqno:
            ran = await self._executed(left, depth=LEFT_DEPTH)
            await self._journal.clear()
            if ran is None:
                return None  # another message took its seqno: it can never run
            if left.transfers == digest:
                _check_done(ran)
                self._tell(ALREADY)
                return ran
            self._tell(MEANWHILE)
            return None
        is_alive = left.seqno == 0 or left.valid_until_s >= state.at_s + REUSE_LEFT_S
        if left.transfers == digest and is_alive:
            self._tell("Going on with the message of a command that was interrupted.")
            return left
        return None  # the next message has the same seqno, so at most one of the two can ever run

    async def _sign(
        self, state: WalletState, transfers: tuple[Transfer, ...], digest: bytes, purpose: str
    ) -> PendingMessage:
        before = await self._chain.transactions(self.account, after_lt=0, count_max=1)
        valid_until_s = state.at_s + VALID_S
        message = self._key.message(transfers, seqno=state.seqno, valid_until_s=valid_until_s)
        pending = PendingMessage(
            seqno=state.seqno,
            valid_until_s=valid_until_s,
            after_lt=before[0].lt if before else 0,
            transfers=digest,
            purpose=purpose,
            message=message.to_boc(),
        )
        if self._journal is not None:
            await self._journal.save(pending)
        return pending

    async def _finish(self, pending: PendingMessage, *, is_deployed: bool) -> ChainTransaction:
        """Raises as the port says; the journal is empty once the outcome is known."""
        try:
            await self._until_executed(pending, is_deployed)
        except _Expired:
            if self._journal is not None:
                await self._journal.clear()
            raise
        done = await self._executed(pending, depth=HISTORY_DEPTH)
        if self._journal is not None:
            await self._journal.clear()
        if done is None:
            raise PaymentError(
                "another program has used this wallet at the same time; our message did not run",
                advice="Use one wallet in one place.",
            )
        _check_done(done)
        return done

    async def _executed(self, pending: PendingMessage, *, depth: int) -> ChainTransaction | None:
        """The wallet's transaction that ran this message, if one did."""
        body_hash = _body_hash(pending.message)
        history = await self._chain.transactions(self.account, after_lt=pending.after_lt, count_max=depth)
        return next((done for done in history if done.body_hash == body_hash), None)

    async def _until_executed(self, pending: PendingMessage, was_deployed: bool) -> None:
        offered_at = -OFFER_EVERY_S
        refusal: Unavailable | None = None
        while True:
            if trio.current_time() - offered_at >= OFFER_EVERY_S:
                offered_at = trio.current_time()
                try:
                    await self._chain.submit(pending.message)
                except Unavailable as error:
                    refusal = error  # it may have arrived all the same
            try:
                state = await self._chain.wallet(self.account)
                if state.seqno <= pending.seqno:
                    self._watch(await self._chain.head())
            except Unavailable as error:
                refusal = error
            else:
                if state.seqno > pending.seqno:
                    return
                if state.at_s > pending.valid_until_s and was_deployed:
                    raise _Expired(
                        f"the message expired and was not executed{'' if refusal is None else f': {refusal}'}",
                        advice="Nothing was sent; try again.",
                    )
                if state.at_s > pending.valid_until_s + VALID_S:
                    raise Unavailable(
                        "the wallet's first message is still not executed",
                        advice="It may run yet: look at the wallet before sending again.",
                    )
            await trio.sleep(LOOK_EVERY_S)


class _Expired(Unavailable):
    """The message can never run."""

    @property
    def code(self) -> str:
        """To others it is what it is to the port."""
        return "unavailable"


def transfers_digest(transfers: tuple[Transfer, ...]) -> bytes:
    """Which transfers these are: two messages that carry the same are the same payment."""
    digest = hashlib.sha256()
    for transfer in transfers:
        for part in (transfer.to, transfer.body, transfer.init):
            digest.update(len(part).to_bytes(4, "big") + part)
        digest.update(transfer.amount_nano.to_bytes(16, "big") + bytes([transfer.bounce]))
    return digest.digest()


def _check_balance(state: WalletState, transfers: tuple[Transfer, ...]) -> None:
    needed_nano = (
        sum(transfer.amount_nano for transfer in transfers)
        + FEE_NANO_MAX
        + FEE_PER_TRANSFER_NANO * (len(transfers) - 1)
    )
    if state.balance_nano < needed_nano:
        raise PaymentError(
            f"the wallet holds {format_ton(state.balance_nano)} TON, and {format_ton(needed_nano)} are needed "
            "with fees kept back",
            advice="Top the wallet up; nothing was sent.",
        )


def _check_done(done: ChainTransaction) -> None:
    if not done.is_done or done.skipped_transfers:
        raise PaymentError("the wallet ran the message, but not every transfer could be sent")


def _body_hash(message: bytes) -> bytes:
    from pytoniq_core import Cell
    from pytoniq_core.tlb.transaction import MessageAny

    with reading("our own message"):
        return bytes(MessageAny.deserialize(Cell.one_from_boc(message).begin_parse()).body.hash)
