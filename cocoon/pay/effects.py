"""What payer and payee ask their driver to do, and what they tell it.

The driver performs `Persist` first, alone: `await store.save_payments(records)`, then `machine.persisted(records)`.
Only that call gives the `Send`s and credits that depend on it, so nothing can leave before it is on disk.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ports import PaymentRecord
from ..types import Digest, Nano
from .refusals import Fault
from .voucher import SignedVoucher

# --- events ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class RequestKey:
    """One request of one session, at the provider."""

    session: Digest
    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VoucherAccepted:
    """A voucher is on disk; it paid `amount_nano` more. Tokens that waited may leave: look at every open request."""

    account: bytes
    amount_nano: Nano
    paid_nano: Nano


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditChanged:
    """A new proof changed what may leave; look at every open request of this account."""

    account: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CeilingWanted:
    """Half of the unsecured credit is used: ask the client to sign a reservation up to this amount."""

    account: bytes
    ceiling_nano: Nano


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentStopped:
    """These requests get no more credit: fail them with `payment_required`."""

    account: bytes
    fault: Fault
    requests: tuple[RequestKey, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimConfirmed:
    """The chain is proven to have paid us."""

    account: bytes
    amount_nano: Nano


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignClaim:
    """The chain shows more claimed for our address than our ledger holds: another machine, or a lost database (M1)."""

    account: bytes
    claimed_nano: Nano
    held_nano: Nano


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRolled:
    """The account began a new epoch; `lost_nano` of the old one's vouchers was not claimed in time."""

    account: bytes
    epoch: int
    lost_nano: Nano


@dataclass(frozen=True, slots=True, kw_only=True)
class FundsShort:
    """The payer owes this but will not sign it: the account or the spending cap does not cover it."""

    payout: bytes
    owed_nano: Nano


PayeeEvent = (
    VoucherAccepted | CreditChanged | CeilingWanted | PaymentStopped | ClaimConfirmed | ForeignClaim | EpochRolled
)
PayerEvent = FundsShort | EpochRolled

# --- effects ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Persist:
    """Keep these, then call `persisted(records)`; on `StoreError` call `persist_failed(records)`."""

    records: tuple[PaymentRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Give this voucher to a session with that payout address; without one, drop it: the next Open carries it."""

    payout: bytes
    voucher: SignedVoucher


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Claim these on chain, in one wallet message; on an error call `submit_failed(claims)`."""

    claims: tuple[SignedVoucher, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prove:
    """Look this account up on chain; call `account_proven`, or `account_unreachable`."""

    account: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit:
    """Tell the role."""

    event: PayeeEvent | PayerEvent


Effect = Persist | Send | Submit | Prove | Emit
Effects = tuple[Effect, ...]
