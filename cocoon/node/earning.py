"""The provider's money, driven: one `Payee` over all sessions, its keeper, its proofs and its claims.

Not here: what a voucher is worth or when to claim (`cocoon.pay`), the sessions themselves (`serving`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..pay.account import AccountRules
from ..pay.voucher import SignedVoucher
from ..pay.window import WINDOW_TOKENS_MAX
from ..ports.chain import Chain, Transfer, Wallet
from ..types import Nano


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderPayments:
    """Where a provider is paid, and what it needs to be sure of it. Without this a provider serves unpaid."""

    payout: bytes  # account id in workchain 0; exactly one running provider each (rule M1)
    chain: Chain
    wallet: Wallet | None  # sends the claims and pays their gas; None: vouchers are kept, and claimed elsewhere
    claim_transfers: Callable[[tuple[SignedVoucher, ...]], tuple[Transfer, ...]]
    rules: AccountRules
    claim_cost_nano: Nano  # of one claim, its share of a wallet message included
    unpaid_tokens_max: int = WINDOW_TOKENS_MAX  # the ceiling of the window of unpaid tokens
    voucher_step_nano: Nano = 0  # a client need not pay earlier than this much is due
