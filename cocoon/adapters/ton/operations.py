"""What people and roles do with the contracts, each as the transfer that does it, with the right value attached.

What is attached and not used comes back, except where it is the point: a deposit, a bond. Values in, transfers out; a
`Wallet` sends them. Not here: whether it is wise (`cocoon.pay`), what the chain made of it (`reader`).
"""

from __future__ import annotations

from typing import Final

from nacl.signing import SigningKey
from pytoniq_core import Cell

from ...errors import ConfigError
from ...market.equivocation import EquivocationProof
from ...pay.voucher import SignedVoucher
from ...ports.chain import Transfer
from ...types import NANO_PER_TON, Nano, Network
from . import contracts
from .cells import address

CLAIM_ATTACHED_NANO: Final = NANO_PER_TON // 50  # enough for a map of thousands at the dearest prices; comes back
OWNER_ATTACHED_NANO: Final = NANO_PER_TON // 20  # stays in the contract as a deposit, less gas
SLASH_ATTACHED_NANO: Final = NANO_PER_TON // 20  # comes back with the reward
OPEN_MIN_NANO: Final = NANO_PER_TON // 10  # rent and gas at the dearest prices
UNBOND_DELAY_MIN_S: Final = 7 * 86_400  # what peers accept; longer than any voucher or dispute lives

# --- the spending account --------------------------------------------------------------------------------


def open_account(
    owner: bytes, salt: int, *, voucher_key: bytes, deposit_nano: Nano, bond_nano: Nano
) -> tuple[bytes, Transfer]:
    """Deploys and opens an account of the wallet `owner`; its address and the transfer. Raises `ConfigError`."""
    if deposit_nano < bond_nano + OPEN_MIN_NANO:
        raise ConfigError("the deposit does not cover the bond, rent and gas")
    init = contracts.account_init(address(owner), salt)
    body = contracts.roll_body(key=voucher_key, bond_nano=bond_nano)
    account = contracts.account_address(owner, salt)
    return account, contracts.transfer(account, deposit_nano, body, init=init)


def top_up(account: bytes, amount_nano: Nano) -> Transfer:
    """A deposit; anybody may make it."""
    return contracts.transfer(account, amount_nano)


def add_bond(account: bytes, amount_nano: Nano) -> Transfer:
    """Raises the bond by a little less than this: its gas is kept back."""
    return contracts.transfer(account, amount_nano, contracts.add_bond_body())


def give_notice(account: bytes, *, cancel: bool = False) -> Transfer:
    """Starts the 24 hours towards a roll, or calls them off. The owner's wallet sends it."""
    return contracts.transfer(account, OWNER_ATTACHED_NANO, contracts.notice_body(cancel=cancel))


def roll(account: bytes, *, voucher_key: bytes, bond_nano: Nano, out_nano: Nano = 0) -> Transfer:
    """A new epoch: a new key, another bond, money out (`contracts.ALL_NANO`: all). The owner's wallet sends it."""
    body = contracts.roll_body(key=voucher_key, bond_nano=bond_nano, out_nano=out_nano)
    return contracts.transfer(account, OWNER_ATTACHED_NANO, body)


def claims(vouchers: tuple[SignedVoucher, ...]) -> tuple[Transfer, ...]:
    """One transfer for each; a wallet sends them in one message. Anybody may: the named provider is paid."""
    return tuple(
        contracts.transfer(
            signed.voucher.account,
            CLAIM_ATTACHED_NANO,
            contracts.claim_body(signed.voucher.encode(), signed.signature),
        )
        for signed in vouchers
    )


# --- the stake -------------------------------------------------------------------------------------------


def open_stake(owner: bytes, *, unbond_delay_s: int, network: Network, operator: SigningKey) -> tuple[bytes, Transfer]:
    """Deploys a stake of the wallet `owner` and registers the operator key; its address and the transfer.

    Raises `ConfigError` for a delay that no peer would accept.
    """
    if not UNBOND_DELAY_MIN_S <= unbond_delay_s < 1 << 31:
        raise ConfigError(f"the unbonding delay is at least {UNBOND_DELAY_MIN_S} s")
    stake = contracts.stake_address(owner, unbond_delay_s)
    init = contracts.stake_init(address(owner), unbond_delay_s)
    return stake, contracts.transfer(stake, OPEN_MIN_NANO, _set_key(stake, network, operator), init=init)


def rotate_operator_key(stake: bytes, *, network: Network, operator: SigningKey) -> Transfer:
    """Makes this the current key; the old one answers for a whole unbonding period more."""
    return contracts.transfer(stake, OWNER_ATTACHED_NANO, _set_key(stake, network, operator))


def deposit_stake(stake: bytes, amount_nano: Nano) -> Transfer:
    """Stakes a little less than this: gas, and the first time rent, are kept back."""
    return contracts.transfer(stake, amount_nano, contracts.deposit_body())


def request_unbond(stake: bytes) -> Transfer:
    """Starts the clock towards a withdrawal."""
    return contracts.transfer(stake, OWNER_ATTACHED_NANO, contracts.request_unbond_body())


def withdraw_stake(stake: bytes) -> Transfer:
    """Takes everything out but the rent, when the clock has run out."""
    return contracts.transfer(stake, OWNER_ATTACHED_NANO, contracts.withdraw_body())


def slash(proof: EquivocationProof) -> Transfer:
    """Shows a proof of equivocation to the stake that it names. Raises `ConfigError` when no contract can check it."""
    if not proof.is_slashable:
        raise ConfigError("the proof does not name one stake and one key epoch, so no contract can check it")
    body = contracts.slash_body(
        epoch=proof.first.key_epoch,
        slot=proof.slot,
        first=(proof.first.digest, proof.first.signature),
        second=(proof.second.digest, proof.second.signature),
    )
    return contracts.transfer(proof.first.stake, SLASH_ATTACHED_NANO, body)


def _set_key(stake: bytes, network: Network, operator: SigningKey) -> Cell:
    key = bytes(operator.verify_key)
    proof = operator.sign(contracts.possession_bytes(network.wire, stake, key)).signature
    return contracts.set_key_body(key=key, proof=proof)
