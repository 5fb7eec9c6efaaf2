"""Our two contracts from outside: their code, addresses, messages, and what their proven data cells say.

The bytes here and in `contracts/` are one format; `contracts/types.tlb` is its schema. A state counts only when its
code is ours *and* its address follows from its own data, because a state that no message led to can be deployed
under the right code as well.

Values in, values out. Not here: how a cell was proven (`proofs`), who pays for a message (`wallet`).
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from pytoniq_core import Address, Cell, begin_cell

from ...errors import ProofInvalid
from ...ports.chain import Entry, OperatorKey, SpendingAccount, StakeState, Transfer
from .cells import account_of, address, operation, state_init
from .hashmap import entries

RENT_NANO: Final = 50_000_000  # both contracts keep this for storage
NOTICE_S: Final = 86_400
KEYS_MAX: Final = 4
ENTRIES_MAX: Final = 33_500  # a larger map cannot be claimed from: 65,536 cells a transaction

VOUCHER_BYTES: Final = 92
SIGNATURE_BYTES: Final = 64

ACCOUNT_ERRORS: Final = {
    421: "not_owner",
    422: "not_open",
    423: "bad_signature",
    424: "nothing_new",
    425: "too_early",
    426: "low_value",
    427: "bad_key",
    0xFFFF: "unknown_op",
}
STAKE_ERRORS: Final = {
    501: "not_owner",
    502: "unbonding",
    503: "too_early",
    504: "bad_signature",
    505: "unknown_key",
    506: "same_digest",
    508: "nothing_staked",
    509: "low_value",
    510: "too_many_keys",
    512: "bad_key",
    513: "not_unbonding",
    0xFFFF: "unknown_op",
}

ADD_BOND: Final = 0xACC00001
CLAIM: Final = 0xACC00002
NOTICE: Final = 0xACC00003
ROLL: Final = 0xACC00004
PAID: Final = 0xACC000F1
RETURNED: Final = 0xACC000F2
DEPOSIT: Final = 0x57A4E001
REQUEST_UNBOND: Final = 0x57A4E002
WITHDRAW: Final = 0x57A4E003
SET_KEY: Final = 0x57A4E004
SLASH: Final = 0x57A4E005

ALL_NANO: Final = 2**64  # as `out` of a roll: everything that is free


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A compiled contract as it ships."""

    cell: Cell
    hash: bytes
    compiler: str


@cache
def contract_code(name: str) -> Code:
    """`account` or `stake`."""
    text = (resources.files("cocoon") / "data" / "contracts" / f"{name}.json").read_text()
    kept = json.loads(text)
    cell = Cell.one_from_boc(base64.b64decode(kept["code_boc_base64"]))
    assert cell.hash.hex() == kept["code_hash_hex"]
    return Code(cell=cell, hash=bytes(cell.hash), compiler=kept["compiler"])


# --- the spending account --------------------------------------------------------------------------------


def account_init(owner: Any, salt: int, *, code: Cell | None = None) -> Any:
    """The state that deploys a spending account."""
    data = (
        begin_cell()
        .store_address(owner)
        .store_uint(salt, 64)
        .store_uint(0, 256)
        .store_uint(0, 32)
        .store_uint(0, 32)
        .store_coins(0)
        .store_coins(0)
        .store_bit(0)
        .end_cell()
    )
    return state_init(code if code is not None else contract_code("account").cell, data)


def account_address(owner: bytes, salt: int) -> bytes:
    """Where the spending account of a wallet in workchain 0 is."""
    return account_of(account_init(address(owner), salt))


def read_account(
    account: bytes, *, code_hash: bytes, data: Cell, balance_nano: int, at_s: int, code: Code | None = None
) -> SpendingAccount:
    """What a proven state says. Raises `ProofInvalid` unless code, data and address belong together."""
    code = code if code is not None else contract_code("account")
    if code_hash != code.hash:
        raise ProofInvalid("this is not a spending account: its code is another")
    try:
        part = data.begin_parse()
        owner = part.load_address()
        salt = part.load_uint(64)
        key = part.load_bytes(32)
        epoch, unlock_at_s = part.load_uint(32), part.load_uint(32)
        bond_nano, reserved_nano = part.load_coins(), part.load_coins()
        root = part.load_maybe_ref()
        found = entries(root, key_bits=256, count_max=ENTRIES_MAX) if root is not None else {}
        ledger = {
            key.to_bytes(32, "big"): Entry(claimed_nano=leaf.load_uint(64), ceiling_nano=leaf.load_uint(64))
            for key, leaf in found.items()
        }
    except ProofInvalid:
        raise
    except Exception as error:  # the cell library raises whatever it trips over; here it only ever means bad data
        raise ProofInvalid("the account's data cannot be read") from error
    if not isinstance(owner, Address) or account_of(account_init(owner, salt, code=code.cell)) != account:
        raise ProofInvalid("the account's address does not follow from its data: the ledger is invented")
    return SpendingAccount(
        account=account,
        owner=bytes(owner.hash_part),
        owner_workchain=int(owner.wc),
        salt=salt,
        voucher_key=bytes(key),
        epoch=epoch,
        unlock_at_s=unlock_at_s,
        bond_nano=bond_nano,
        reserved_nano=reserved_nano,
        balance_nano=balance_nano,
        entries=ledger,
        at_s=at_s,
    )


def add_bond_body(*, query_id: int = 0) -> Cell:
    """AddBond."""
    return operation(ADD_BOND, query_id).end_cell()


def claim_body(voucher: bytes, signature: bytes, *, query_id: int = 0) -> Cell:
    """Claim what a 92-byte voucher says: provider and both amounts; the contract rebuilds the rest."""
    assert len(voucher) == VOUCHER_BYTES and len(signature) == SIGNATURE_BYTES
    return operation(CLAIM, query_id).store_bytes(voucher[44:]).store_bytes(signature).end_cell()


def notice_body(*, cancel: bool = False, query_id: int = 0) -> Cell:
    """Notice."""
    return operation(NOTICE, query_id).store_bit(int(cancel)).end_cell()


def roll_body(*, key: bytes, bond_nano: int, out_nano: int = 0, query_id: int = 0) -> Cell:
    """Roll: opens, rotates, withdraws."""
    return operation(ROLL, query_id).store_bytes(key).store_coins(bond_nano).store_coins(out_nano).end_cell()


# --- the stake -------------------------------------------------------------------------------------------


def stake_init(owner: Any, unbond_delay_s: int, *, code: Cell | None = None) -> Any:
    """The state that deploys a stake."""
    data = (
        begin_cell()
        .store_address(owner)
        .store_uint(unbond_delay_s, 32)
        .store_coins(0)
        .store_uint(0, 32)
        .store_uint(0, 32)
        .store_bit(0)
        .end_cell()
    )
    return state_init(code if code is not None else contract_code("stake").cell, data)


def stake_address(owner: bytes, unbond_delay_s: int) -> bytes:
    """Where the stake of a wallet in workchain 0 is."""
    return account_of(stake_init(address(owner), unbond_delay_s))


def read_stake(
    stake: bytes, *, code_hash: bytes, data: Cell, balance_nano: int, at_s: int, code: Code | None = None
) -> StakeState:
    """What a proven state says. Raises `ProofInvalid` unless code, data and address belong together."""
    code = code if code is not None else contract_code("stake")
    if code_hash != code.hash:
        raise ProofInvalid("this is not a stake: its code is another")
    try:
        part = data.begin_parse()
        owner = part.load_address()
        unbond_delay_s = part.load_uint(32)
        stake_nano = part.load_coins()
        unlock_at_s, epoch = part.load_uint(32), part.load_uint(32)
        root = part.load_maybe_ref()
        found = entries(root, key_bits=32, count_max=KEYS_MAX) if root is not None else {}
        keys = {
            key: OperatorKey(key=bytes(leaf.load_bytes(32)), retired_at_s=leaf.load_uint(32))
            for key, leaf in found.items()
        }
    except ProofInvalid:
        raise
    except Exception as error:  # as above
        raise ProofInvalid("the stake's data cannot be read") from error
    if not isinstance(owner, Address) or account_of(stake_init(owner, unbond_delay_s, code=code.cell)) != stake:
        raise ProofInvalid("the stake's address does not follow from its data: it is invented")
    return StakeState(
        stake=stake,
        owner=bytes(owner.hash_part),
        owner_workchain=int(owner.wc),
        unbond_delay_s=unbond_delay_s,
        staked_nano=max(0, min(stake_nano, balance_nano - RENT_NANO)),
        unlock_at_s=unlock_at_s,
        epoch=epoch,
        keys=keys,
        balance_nano=balance_nano,
        at_s=at_s,
    )


def deposit_body(*, query_id: int = 0) -> Cell:
    """Deposit."""
    return operation(DEPOSIT, query_id).end_cell()


def request_unbond_body(*, query_id: int = 0) -> Cell:
    """RequestUnbond."""
    return operation(REQUEST_UNBOND, query_id).end_cell()


def withdraw_body(*, query_id: int = 0) -> Cell:
    """Withdraw."""
    return operation(WITHDRAW, query_id).end_cell()


def set_key_body(*, key: bytes, proof: bytes, query_id: int = 0) -> Cell:
    """SetKey; `proof` is the new key's signature over `possession_bytes`."""
    return operation(SET_KEY, query_id).store_bytes(key).store_ref(_bytes_cell(proof)).end_cell()


def slash_body(
    *, epoch: int, slot: bytes, first: tuple[bytes, bytes], second: tuple[bytes, bytes], query_id: int = 0
) -> Cell:
    """Slash; each part is a digest and the operator's signature over the statement."""
    return (
        operation(SLASH, query_id)
        .store_uint(epoch, 32)
        .store_bytes(slot)
        .store_ref(_bytes_cell(b"".join(first)))
        .store_ref(_bytes_cell(b"".join(second)))
        .end_cell()
    )


def possession_bytes(network_wire: bytes, stake: bytes, key: bytes) -> bytes:
    """The 72 bytes that a new operator key signs to be registered."""
    assert len(network_wire) == 4 and len(stake) == len(key) == 32
    return b"CSP1" + network_wire + stake + key


# --- transfers -------------------------------------------------------------------------------------------


def transfer(
    to: bytes, amount_nano: int, body: Cell | None = None, *, init: Any = None, bounce: bool = True
) -> Transfer:
    """A message for a wallet to send."""
    return Transfer(
        to=to,
        amount_nano=amount_nano,
        body=b"" if body is None else body.to_boc(),
        init=b"" if init is None else init.serialize().to_boc(),
        bounce=bounce,
    )


def _bytes_cell(data: bytes) -> Cell:
    return begin_cell().store_bytes(data).end_cell()
