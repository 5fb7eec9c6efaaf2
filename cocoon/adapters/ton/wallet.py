"""The wallet W5R1: its address, its signed messages with up to 255 transfers, and what its proven state says.

Source: github.com/ton-blockchain/wallet-contract-v5, Specification.md. One message spends one seqno, so a message that
has expired or whose seqno is gone can never run. Values in, cells out. Not here: waiting for the chain (`sending`),
words and files (`mnemonic`, `wallet_file`).
"""

from __future__ import annotations

import base64
from functools import cache
from typing import Any, Final

from nacl.signing import SigningKey
from pytoniq_core import Address, Cell, StateInit, begin_cell
from pytoniq_core.tlb.transaction import MessageAny

from ...errors import ConfigError, ProofInvalid
from ...ports.chain import TRANSFERS_MAX, Transfer
from ...types import Network, Secret
from .cells import account_of, address, external_message, internal_message, state_init

SIGNED_EXTERNAL: Final = 0x7369676E  # "sign"
SEND_MESSAGE: Final = 0x0EC3C86D
SEND_MODE: Final = 3  # the wallet pays the fees; a transfer that cannot be sent does not stop the others
CLIENT_CONTEXT: Final = 1 << 31  # workchain 0, version 0, subwallet 0
FIRST_VALID_UNTIL_S: Final = 0xFFFFFFFF  # of the message that deploys; its seqno already makes it unique

CODE_BASE64: Final = (
    "te6ccgECFAEAAoEAART/APSkE/S88sgLAQIBIAINAgFIAwQC3NAg10nBIJFbj2Mg1wsfIIIQZXh0br0hghBzaW50vbCSXwPgghBl"
    "eHRuuo60gCDXIQHQdNch+kAw+kT4KPpEMFi9kVvg7UTQgQFB1yH0BYMH9A5voTGRMOGAQNchcH/bPOAxINdJgQKAuZEw4HDiEA8C"
    "ASAFDAIBIAYJAgFuBwgAGa3OdqJoQCDrkOuF/8AAGa8d9qJoQBDrkOuFj8ACAUgKCwAXsyX7UTQcdch1wsfgABGyYvtRNDXCgCAA"
    "Gb5fD2omhAgKDrkPoCwBAvIOAR4g1wsfghBzaWduuvLgin8PAeaO8O2i7fshgwjXIgKDCNcjIIAg1yHTH9Mf0x/tRNDSANMfINMf"
    "0//XCgAK+QFAzPkQmiiUXwrbMeHywIffArNQB7Dy0IRRJbry4IVQNrry4Ib4I7vy0IgikvgA3gGkf8jKAMsfAc8Wye1UIJL4D95w"
    "2zzYEAP27aLt+wL0BCFukmwhjkwCIdc5MHCUIccAs44tAdcoIHYeQ2wg10nACPLgkyDXSsAC8uCTINcdBscSwgBSMLDy0InXTNc5"
    "MAGk6GwShAe78uCT10rAAPLgk+1V4tIAAcAAkVvg69csCBQgkXCWAdcsCBwS4lIQseMPINdKERITAJYB+kAB+kT4KPpEMFi68uCR"
    "7UTQgQFB1xj0BQSdf8jKAEAEgwf0U/Lgi44UA4MH9Fvy4Iwi1woAIW4Bs7Dy0JDiyFADzxYS9ADJ7VQAcjDXLAgkji0h8uCS0gDt"
    "RNDSAFETuvLQj1RQMJExnAGBAUDXIdcKAPLgjuLIygBYzxbJ7VST8sCN4gAQk1vbMeHXTNA="
)
CODE_HASH: Final = bytes.fromhex("20834b7b72b112147e1b2fb457b84e74d1a30f04f737d4f62a668e9552d2b72f")


@cache
def wallet_code() -> Cell:
    """The published code of W5R1."""
    code = Cell.one_from_boc(base64.b64decode(CODE_BASE64))
    assert code.hash == CODE_HASH
    return code


class WalletKey:
    """A wallet's key: everything that can be said about it without the chain."""

    __slots__ = ("_key", "account", "init", "network", "wallet_id")

    def __init__(self, seed: Secret, network: Network) -> None:
        self._key = SigningKey(seed.reveal())
        self.network = network
        self.wallet_id = (CLIENT_CONTEXT ^ int(network)) & 0xFFFFFFFF
        data = (
            begin_cell()
            .store_bit(1)
            .store_uint(0, 32)
            .store_uint(self.wallet_id, 32)
            .store_bytes(bytes(self._key.verify_key))
            .store_bit(0)
            .end_cell()
        )
        self.init: Any = state_init(wallet_code(), data)
        self.account = account_of(self.init)

    def __repr__(self) -> str:
        return f"WalletKey({self.account.hex()[:8]}…)"

    @property
    def public_key(self) -> bytes:
        """The ed25519 key in its data."""
        return bytes(self._key.verify_key)

    def message(self, transfers: tuple[Transfer, ...], *, seqno: int, valid_until_s: int) -> Cell:
        """A signed external message. Raises `ConfigError` for none or too many transfers."""
        if not 1 <= len(transfers) <= TRANSFERS_MAX:
            raise ConfigError(f"a wallet message carries 1 to {TRANSFERS_MAX} transfers, not {len(transfers)}")
        actions = Cell.empty()
        for transfer in transfers:
            actions = (
                begin_cell()
                .store_ref(actions)
                .store_uint(SEND_MESSAGE, 32)
                .store_uint(SEND_MODE, 8)
                .store_ref(_outgoing(transfer))
                .end_cell()
            )
        signed = (
            begin_cell()
            .store_uint(SIGNED_EXTERNAL, 32)
            .store_uint(self.wallet_id, 32)
            .store_uint(FIRST_VALID_UNTIL_S if seqno == 0 else valid_until_s, 32)
            .store_uint(seqno, 32)
            .store_bit(1)
            .store_ref(actions)
            .store_bit(0)
            .end_cell()
        )
        body = begin_cell().store_cell(signed).store_bytes(self._key.sign(signed.hash).signature).end_cell()
        return external_message(self.account, body, init=self.init if seqno == 0 else None)


def read_wallet(*, code_hash: bytes, data: Cell) -> int:
    """A deployed wallet's seqno. Raises `ProofInvalid` when it is no W5R1."""
    if code_hash != CODE_HASH:
        raise ProofInvalid("this is not a W5R1 wallet: its code is another")
    try:
        part = data.begin_parse()
        part.load_bit()
        return int(part.load_uint(32))
    except Exception as error:  # the cell library raises whatever it trips over; here it only ever means bad data
        raise ProofInvalid("the wallet's data cannot be read") from error


def _outgoing(transfer: Transfer) -> Cell:
    init = None
    if transfer.init:
        init = StateInit.deserialize(Cell.one_from_boc(transfer.init).begin_parse())
    body = Cell.one_from_boc(transfer.body) if transfer.body else None
    message = internal_message(
        None, address(transfer.to), transfer.amount_nano, body, init=init, bounce=transfer.bounce
    )
    assert isinstance(MessageAny.deserialize(message.begin_parse()).info.dest, Address)
    return message
