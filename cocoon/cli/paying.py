"""How the services are paid and pay: joins the home's wallet, stake and spending account to the roles.

A provider is told where it is paid (`--payout`) and by which stake it answers (`--stake`); a client pays from the
home's account, if there is one. What the chain has to say is asked before anything is offered or asked for: a provider
does not start with a stake that is not there.

Not here: the roles (`cocoon.node`, `cocoon.client`), opening accounts and stakes (`account`, `stake`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from ..api import paying as api_paying
from ..errors import CocoonError, ConfigError, PaymentError, ProofInvalid, Unavailable
from ..types import NO_DIGEST, format_ton
from .console import Console
from .earnings import payout_of
from .money import check_mainnet, open_wallet_with, opened_chain
from .options import Setup

if TYPE_CHECKING:
    from ..adapters.ton.wallet import WalletKey
    from ..client.settings import PaymentAccount
    from ..node.earning import ProviderPayments
    from ..ports.chain import Chain, StakeState

STAKE_PATIENCE_S: Final = 60.0  # a machine that boots has no network yet, and a deposit takes a few blocks
STAKE_POLL_S: Final = 0.5
PAYOUT_WALLET: Final = "wallet"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderMoney:
    """What goes into a provider's settings. Without payments it serves unpaid; without a stake its address is zero."""

    payments: ProviderPayments | None = None
    stake: bytes = NO_DIGEST
    key_epoch: int = 0
    words: str = "Nobody is paid: prices are shown and counted only. Pass --payout wallet to be paid."


def unlock_for_claims(prepared: Setup) -> WalletKey | None:
    """The wallet that sends claims, or None where nobody is paid or claims are made elsewhere.

    Asks for the passphrase, so call it before trio runs. Raises `ConfigError`.
    """
    provider = prepared.config.provider
    if provider.payout is None and not provider.stake:
        return None
    check_mainnet(prepared)
    if provider.payout is None:
        raise ConfigError("--stake says who answers, but not who is paid", advice="Add --payout wallet.")
    if provider.payout != PAYOUT_WALLET:
        payout_of(prepared)  # a mistyped address is said now, not once the model is loaded
        return None
    from ..adapters.ton.wallet_file import open_wallet

    return open_wallet_with(prepared, open_wallet)


@asynccontextmanager
async def opened_money(
    prepared: Setup, console: Console, *, wallet_key: WalletKey | None, operator: bytes
) -> AsyncIterator[ProviderMoney]:
    """Where this provider is paid; `operator` is O's public half.

    Raises `ConfigError`; `PaymentError` for a stake that is not there; `Unavailable` when the chain cannot be read.
    """
    config = prepared.config
    if config.provider.payout is None:
        yield ProviderMoney()
        return
    from ..adapters.ton.addresses import wallet_address
    from ..adapters.ton.journal import FileJournal
    from ..adapters.ton.paying import provider_payments
    from ..adapters.ton.sending import ChainWallet

    network = config.network_id
    payout = payout_of(prepared)
    async with opened_chain(prepared) as chain:
        stake, key_epoch = NO_DIGEST, 0
        words = f"Paid to {wallet_address(payout, network)}"
        if config.provider.stake:
            state = await _staked(prepared, console, chain, operator)
            stake, key_epoch = state.stake, state.epoch
            words += f", answering with a stake of {format_ton(state.staked_nano)} TON"
        wallet = None
        if wallet_key is not None:
            journal = FileJournal(prepared.home.wallet_path(network))
            wallet = ChainWallet(wallet_key, chain, journal=journal, tell=console.say)
        else:
            words += "; vouchers are kept here, and claimed by `cocoon claims --now` from any wallet"
        yield ProviderMoney(
            payments=provider_payments(chain, payout=payout, wallet=wallet),
            stake=stake,
            key_epoch=key_epoch,
            words=words + ".",
        )


async def _staked(prepared: Setup, console: Console, chain: Chain, operator: bytes) -> StakeState:
    """The home's stake, once the chain has it, bonded and for our key. Raises `PaymentError`, `Unavailable`."""
    from ..adapters.ton.kept import load_stake

    network = prepared.config.network_id
    kept = load_stake(prepared.home.stake_path(network), network=network)
    if kept is None:
        raise PaymentError(
            f"this home has no stake on {network.label}", advice="Make one with `cocoon stake deposit TON`."
        )
    state: StakeState | None = None
    failure: CocoonError | None = None
    console.progress("looking at the stake on the chain …")
    with trio.move_on_after(STAKE_PATIENCE_S):
        while True:
            try:
                state = await chain.stake(kept.stake)
                failure = None
            except (Unavailable, ProofInvalid) as error:
                failure = error
            if state is not None and state.staked_nano and state.epoch:
                break
            await trio.sleep(STAKE_POLL_S)
    if failure is not None:
        raise failure
    if state is None or not state.staked_nano or not state.epoch:
        raise PaymentError("nothing is staked yet", advice="Run `cocoon stake deposit TON`, and then this again.")
    if state.unlock_at_s:
        raise PaymentError("the stake is unbonding, so nobody would count on it", advice="Leave out --stake.")
    if state.keys[state.epoch].key != operator:
        raise PaymentError(
            "the stake is registered for another operator key than the one in this home",
            advice="Restore operator.key from a backup, or run `cocoon stake rotate`.",
        )
    return state


@asynccontextmanager
async def opened_account(prepared: Setup, console: Console) -> AsyncIterator[PaymentAccount | None]:
    """The home's spending account, if it has one and may use it. Raises `ConfigError`.

    The chain's answer is only shown: without it requests say so themselves. The spending caps are the caller's.
    """
    from ..adapters.ton.addresses import contract_address

    async with api_paying.opened_account(prepared.home, prepared.config) as payment:
        if payment is not None:
            shown = contract_address(payment.account, prepared.config.network_id)
            try:
                state = await payment.chain.spending_account(payment.account)
            except CocoonError as error:
                console.explain_briefly(error)
                console.say(f"Requests will be paid from {shown} once the chain can be read.")
            else:
                if state is None or state.epoch == 0:
                    console.say(f"The spending account {shown} is not open: finish it with `cocoon account open`.")
                else:
                    console.say(f"Paying from {shown}, which holds {format_ton(state.balance_nano)} TON.")
        yield payment
