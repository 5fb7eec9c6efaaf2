"""Joins the contracts to the roles that pay and are paid: what `cocoon.pay` has to be told of them, in one place.

The composition roots (`cli`, `api`) call these. Not here: opening accounts, files, words, or any decision.
"""

from __future__ import annotations

from typing import Final

from nacl.signing import SigningKey
from pytoniq_core import Address

from ...client.settings import PaymentAccount
from ...node.earning import ProviderPayments
from ...pay.account import AccountRules, rent_30d_bound_nano
from ...ports.chain import Chain, Wallet
from ...types import NANO_PER_TON, Nano, Secret
from . import contracts, operations
from .cells import account_of

CLAIM_COST_NANO: Final = 1_500_000
"""A claim at 64 entries (0.87 mTON) and its wallet message (0.47), June 2026: see `contracts/account`."""


def account_rules() -> AccountRules:
    """How accounts are judged: by the code of our own contract."""
    return AccountRules(address_of=_address_of, rent_30d_nano=rent_30d_bound_nano)


def provider_payments(
    chain: Chain,
    *,
    payout: bytes,
    wallet: Wallet | None,
    claim_cost_nano: Nano = CLAIM_COST_NANO,
) -> ProviderPayments:
    """For `open_provider(…, payments=…)`. `wallet` pays the gas of claims; without one, vouchers are only kept."""
    return ProviderPayments(
        payout=payout,
        chain=chain,
        wallet=wallet,
        claim_transfers=operations.claims,
        rules=account_rules(),
        claim_cost_nano=claim_cost_nano,
    )


def payment_account(
    chain: Chain,
    *,
    account: bytes,
    voucher_seed: Secret,
    spend_max_nano: Nano,
    reserve_max_nano: Nano = NANO_PER_TON,
) -> PaymentAccount:
    """For `ClientSettings(payment=…)`. `voucher_seed` is V's ed25519 seed, 32 bytes."""
    key = SigningKey(voucher_seed.reveal())
    return PaymentAccount(
        account=account,
        voucher_key=bytes(key.verify_key),
        sign=lambda message: key.sign(message).signature,
        chain=chain,
        rules=account_rules(),
        spend_max_nano=spend_max_nano,
        reserve_max_nano=reserve_max_nano,
    )


def _address_of(workchain: int, owner: bytes, salt: int) -> bytes:
    return account_of(contracts.account_init(Address((workchain, owner)), salt))
