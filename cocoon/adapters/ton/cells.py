"""Cells that everything on TON is made of: addresses, state inits, messages. Values in, cells out; no I/O.

Accounts are 32 bytes everywhere in Cocoon: the id in workchain 0.
"""

from __future__ import annotations

from typing import Any, Final

from pytoniq_core import Address, Cell, StateInit, begin_cell
from pytoniq_core.tlb.transaction import CurrencyCollection, ExternalMsgInfo, InternalMsgInfo, MessageAny

ACCOUNT_BYTES: Final = 32


def address(account: bytes) -> Address:
    """Account id → pytoniq-core's `Address`."""
    assert len(account) == ACCOUNT_BYTES
    return Address((0, account))


def friendly(account: bytes, *, is_bounceable: bool, is_test: bool) -> str:
    """The 48 characters that people see."""
    return str(address(account).to_str(is_bounceable=is_bounceable, is_test_only=is_test))


def state_init(code: Cell, data: Cell) -> Any:
    """pytoniq-core's `StateInit`."""
    return StateInit(code=code, data=data)


def account_of(init: Any) -> bytes:
    """The account id that this state init deploys to."""
    return bytes(init.serialize().hash)


def internal_message(
    source: Any, destination: Any, value_nano: int, body: Cell | None = None, *, init: Any = None, bounce: bool = True
) -> Cell:
    """An internal message, with the fields that the chain fills in left zero."""
    info = InternalMsgInfo(
        ihr_disabled=True,
        bounce=bounce,
        bounced=False,
        src=source,
        dest=destination,
        value=CurrencyCollection(value_nano),
        ihr_fee=0,
        fwd_fee=0,
        created_lt=0,
        created_at=0,
    )
    return MessageAny(info=info, init=init, body=body if body is not None else Cell.empty()).serialize()


def external_message(destination: bytes, body: Cell, *, init: Any = None) -> Cell:
    """A message from outside, for a wallet."""
    info = ExternalMsgInfo(src=None, dest=address(destination), import_fee=0)
    return MessageAny(info=info, init=init, body=body).serialize()


def comment(text: str) -> Cell:
    """A text that wallets and explorers show; at most 120 bytes."""
    data = text.encode()
    assert len(data) <= 120
    return begin_cell().store_uint(0, 32).store_bytes(data).end_cell()


def operation(code: int, query_id: int = 0) -> Any:
    """A builder that starts with an operation and a query id."""
    return begin_cell().store_uint(code, 32).store_uint(query_id, 64)
