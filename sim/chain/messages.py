"""What the two contracts understand, as values; and the bodies (cells) that say the same on the real chain.

Each class is one operation of `contracts/account` or `contracts/stake`. `body_of` and `message_of` go to the real
format and back, so one story can be told to the reference ledger and to the TVM, and a whole node's transfers can be
read. Cells are imported only there.

Not here: what a message does (`rules`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cocoon.adapters.ton import contracts
from cocoon.errors import DecodeError


@dataclass(frozen=True, slots=True)
class Plain:
    """Coins, with a comment or without: a deposit to an account, rent to a stake."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """An operation that neither contract has."""

    op: int = 7


# --- the spending account --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddBond:
    """The value that comes along, less gas, joins the bond."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Pay this provider; `signature` is V's over the voucher that the contract rebuilds."""

    provider: bytes
    cumulative: int
    ceiling: int
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Notice:
    """The owner's clock towards a roll."""

    cancel: bool = False


@dataclass(frozen=True, slots=True)
class Roll:
    """Open, rotate, set the bond, take money out."""

    key: bytes
    bond: int
    out: int = 0


# --- the stake -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deposit:
    """The value that comes along, less gas and rent, is staked."""


@dataclass(frozen=True, slots=True)
class RequestUnbond:
    """The owner's clock towards a withdrawal."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Everything but rent, to the owner."""


@dataclass(frozen=True, slots=True)
class SetKey:
    """The first operator key, or the next, with its proof of possession."""

    key: bytes
    proof: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Slash:
    """Two (digest, signature) over one slot."""

    epoch: int
    slot: bytes
    first: tuple[bytes, bytes]
    second: tuple[bytes, bytes]


Message: TypeAlias = (
    Plain | Unknown | AddBond | Claim | Notice | Roll | Deposit | RequestUnbond | Withdraw | SetKey | Slash
)
PLAIN = Plain()

# --- on the real chain -----------------------------------------------------------------------------------


def body_of(message: Message) -> Any:
    """The cell that says this to the real contract; None for plain coins."""
    from pytoniq_core import begin_cell

    match message:
        case Plain():
            return None
        case Unknown(op):
            return begin_cell().store_uint(op, 32).store_uint(0, 64).end_cell()
        case AddBond():
            return contracts.add_bond_body()
        case Claim(provider, cumulative, ceiling, signature):
            voucher = bytes(44) + provider + cumulative.to_bytes(8, "big") + ceiling.to_bytes(8, "big")
            return contracts.claim_body(voucher, signature)
        case Notice(cancel):
            return contracts.notice_body(cancel=cancel)
        case Roll(key, bond, out):
            return contracts.roll_body(key=key, bond_nano=bond, out_nano=out)
        case Deposit():
            return contracts.deposit_body()
        case RequestUnbond():
            return contracts.request_unbond_body()
        case Withdraw():
            return contracts.withdraw_body()
        case SetKey(key, proof):
            return contracts.set_key_body(key=key, proof=proof)
        case Slash(epoch, slot, first, second):
            return contracts.slash_body(epoch=epoch, slot=slot, first=first, second=second)


def message_of(body: bytes) -> Message:
    """What a bag of cells says. Raises `DecodeError` for one that is cut short: the contracts exit with 9."""
    from pytoniq_core import Cell

    if not body:
        return PLAIN
    try:
        part = Cell.one_from_boc(body).begin_parse()
        if part.remaining_bits < 32:
            return PLAIN
        op = part.load_uint(32)
        if op == 0:
            return PLAIN
        if op not in _READERS:
            return Unknown(op)
        part.load_uint(64)
        message: Message = _READERS[op](part)
        return message
    except Exception as error:  # the cell library raises whatever it trips over
        raise DecodeError("the body of a message cannot be read") from error


def _signed(cell: Any) -> tuple[bytes, bytes]:
    part = cell.begin_parse()
    return bytes(part.load_bytes(32)), bytes(part.load_bytes(64))


_READERS: dict[int, Any] = {
    contracts.ADD_BOND: lambda part: AddBond(),
    contracts.CLAIM: lambda part: Claim(
        bytes(part.load_bytes(32)), part.load_uint(64), part.load_uint(64), bytes(part.load_bytes(64))
    ),
    contracts.NOTICE: lambda part: Notice(bool(part.load_bit())),
    contracts.ROLL: lambda part: Roll(bytes(part.load_bytes(32)), part.load_coins(), part.load_coins()),
    contracts.DEPOSIT: lambda part: Deposit(),
    contracts.REQUEST_UNBOND: lambda part: RequestUnbond(),
    contracts.WITHDRAW: lambda part: Withdraw(),
    contracts.SET_KEY: lambda part: SetKey(
        bytes(part.load_bytes(32)), bytes(part.load_ref().begin_parse().load_bytes(64))
    ),
    contracts.SLASH: lambda part: Slash(
        part.load_uint(32), bytes(part.load_bytes(32)), _signed(part.load_ref()), _signed(part.load_ref())
    ),
}
