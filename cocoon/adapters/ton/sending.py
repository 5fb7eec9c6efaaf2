"""Sends from a W5R1 wallet and knows what became of it: every seqno is used for one message, and seen on the chain.

A message is offered again until the chain shows it executed, or until its time has passed, after which it can never
run. A batch of claims is one message. Not here: keys (`wallet`), what to send (`contracts`).
"""

from __future__ import annotations

from typing import Final

import trio

from ...errors import ConfigError, PaymentError, Unavailable
from ...ports.chain import TRANSFERS_MAX, Chain, Transfer
from ...types import format_ton
from .proofs import reading
from .wallet import WalletKey

VALID_S: Final = 120  # of a message
OFFER_EVERY_S: Final = 5.0  # servers drop messages without a word
LOOK_EVERY_S: Final = 0.5
FEE_NANO_MAX: Final = 20_000_000  # kept back for a message of one transfer; measured: below 3 mTON
FEE_PER_TRANSFER_NANO: Final = 5_000_000
HISTORY_DEPTH: Final = 32  # transactions of the wallet since the message was signed


class ChainWallet:
    """Implements `cocoon.ports.chain.Wallet`."""

    def __init__(self, key: WalletKey, chain: Chain) -> None:
        self._key = key
        self._chain = chain
        self._one_at_a_time = trio.Lock()

    @property
    def account(self) -> bytes:
        """The wallet's account id."""
        return self._key.account

    async def send(self, transfers: tuple[Transfer, ...]) -> None:
        """As the port says."""
        if not 1 <= len(transfers) <= TRANSFERS_MAX:
            raise ConfigError(f"a wallet message carries 1 to {TRANSFERS_MAX} transfers, not {len(transfers)}")
        async with self._one_at_a_time:
            await self._send(transfers)

    async def _send(self, transfers: tuple[Transfer, ...]) -> None:
        state = await self._chain.wallet(self.account)
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
        before = await self._chain.transactions(self.account, after_lt=0, count_max=1)
        after_lt = before[0].lt if before else 0
        valid_until_s = state.at_s + VALID_S
        message = self._key.message(transfers, seqno=state.seqno, valid_until_s=valid_until_s)
        with reading("our own message"):
            body_hash = bytes(_body_hash(message))
        await self._until_executed(message.to_boc(), state.seqno, valid_until_s, state.is_deployed)
        for done in await self._chain.transactions(self.account, after_lt=after_lt, count_max=HISTORY_DEPTH):
            if done.body_hash == body_hash:
                if not done.is_done or done.skipped_transfers:
                    raise PaymentError("the wallet ran the message, but not every transfer could be sent")
                return
        raise PaymentError(
            "another program has used this wallet at the same time; our message did not run",
            advice="Use one wallet in one place.",
        )

    async def _until_executed(self, message: bytes, seqno: int, valid_until_s: int, was_deployed: bool) -> None:
        offered_at = -OFFER_EVERY_S
        refusal: Unavailable | None = None
        while True:
            if trio.current_time() - offered_at >= OFFER_EVERY_S:
                offered_at = trio.current_time()
                try:
                    await self._chain.submit(message)
                except Unavailable as error:
                    refusal = error  # it may have arrived all the same
            try:
                state = await self._chain.wallet(self.account)
            except Unavailable as error:
                refusal = error
            else:
                if state.seqno > seqno:
                    return
                if state.at_s > valid_until_s and was_deployed:
                    raise Unavailable(
                        f"the message expired and was not executed{'' if refusal is None else f': {refusal}'}",
                        advice="Nothing was sent; try again.",
                    )
                if state.at_s > valid_until_s + VALID_S:
                    raise Unavailable(
                        "the wallet's first message is still not executed",
                        advice="It may run yet: look at the wallet before sending again.",
                    )
            await trio.sleep(LOOK_EVERY_S)


def _body_hash(message: object) -> bytes:
    from pytoniq_core.tlb.transaction import MessageAny

    return bytes(MessageAny.deserialize(message.begin_parse()).body.hash)  # type: ignore[attr-defined]
