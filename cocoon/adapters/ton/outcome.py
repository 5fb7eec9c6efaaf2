"""What a contract made of a message that our wallet sent it: waits for it, and gives its refusal its name.

A wallet that ran a message has only sent it. The receiver may refuse: the coins come back then, less a fee. Reads
proven history through the `Chain` port; sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import trio
from pytoniq_core import Cell

from ...errors import PaymentError, Unavailable
from ...ports.chain import Chain, ChainTransaction, Head, Transfer
from ...types import Nano
from .sending import ChainWallet

LOOK_EVERY_S: Final = 0.5
WAIT_S: Final = 90.0  # between two shards of a busy network a message takes seconds
HISTORY_DEPTH: Final = 64  # transactions of the receiver since the message was sent; strangers may send, too


async def send_and_see(
    chain: Chain,
    wallet: ChainWallet,
    transfers: tuple[Transfer, ...],
    *,
    errors: Mapping[int, str],
    purpose: str = "",
    watch: Callable[[Head], None] = lambda _: None,
) -> ChainTransaction:
    """Send, and return once every receiver has done what it was asked to; the wallet's transaction.

    Raises `PaymentError` with the contract's own reason when one refuses, `Unavailable` when it is not seen in time,
    and what `Wallet.send` raises.
    """
    sent = await wallet.run(transfers, purpose=purpose)
    with trio.move_on_after(WAIT_S):
        for transfer in transfers:
            await _seen(chain, sent, transfer, errors=errors, watch=watch)
        return sent
    raise Unavailable(
        f"the wallet has sent the message, but its receiver has not run it after {WAIT_S:.0f} s",
        advice="Look at its status in a minute, before sending anything again.",
    )


async def came_back(
    chain: Chain, sent: ChainTransaction, *, source: bytes, watch: Callable[[Head], None] = lambda _: None
) -> Nano:
    """What `source` sent the wallet in answer to `sent`; 0 when nothing is seen in time. Raises as the port says."""
    found: ChainTransaction | None = None
    with trio.move_on_after(WAIT_S):
        while found is None:
            history = await chain.transactions(sent.account, after_lt=sent.lt, count_max=HISTORY_DEPTH)
            found = next((each for each in history if each.source == source), None)
            if found is None:
                watch(await chain.head())
                await trio.sleep(LOOK_EVERY_S)
    return 0 if found is None else found.value_nano


async def _seen(
    chain: Chain,
    sent: ChainTransaction,
    transfer: Transfer,
    *,
    errors: Mapping[int, str],
    watch: Callable[[Head], None],
) -> None:
    body_hash = bytes((Cell.one_from_boc(transfer.body) if transfer.body else Cell.empty()).hash)
    while True:
        try:
            history = await chain.transactions(transfer.to, after_lt=sent.lt, count_max=HISTORY_DEPTH)
            found = next((each for each in history if _is_it(each, sent.account, transfer, body_hash)), None)
            if found is not None:
                break
            watch(await chain.head())
        except Unavailable:
            pass  # the servers are away for a moment; `move_on_after` bounds it
        await trio.sleep(LOOK_EVERY_S)
    if not found.is_done:
        name = errors.get(found.exit_code or 0, f"exit code {found.exit_code}")
        raise PaymentError(
            f"the contract refused the message: {name.replace('_', ' ')}",
            advice="What was sent with it came back to the wallet, less fees.",
        )


def _is_it(done: ChainTransaction, sender: bytes, transfer: Transfer, body_hash: bytes) -> bool:
    return done.source == sender and done.body_hash == body_hash and done.value_nano == transfer.amount_nano
