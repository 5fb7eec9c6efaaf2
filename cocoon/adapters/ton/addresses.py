"""Addresses as people write and read them. Values only.

Two forms are read: `0:<64 hex digits>`, and the 48 characters of a wallet app, whose checksum, test flag and bounce
flag are honoured. Inside Cocoon an address is 32 bytes in workchain 0.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Final

from ...errors import ConfigError
from ...types import Network
from .cells import friendly

_RAW: Final = re.compile(r"(-?\d{1,3}):([0-9a-fA-F]{64})\Z")
_FRIENDLY: Final = re.compile(r"[A-Za-z0-9_/+-]{48}\Z")
_BOUNCEABLE, _PLAIN, _TEST_ONLY = 0x11, 0x51, 0x80


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedAddress:
    """`is_bounceable`: coins that the account cannot take come back."""

    account: bytes
    is_bounceable: bool


def parse_address(text: str, *, network: Network) -> ParsedAddress:
    """Raises `ConfigError` for a mistyped address, one of another workchain, and a test address on mainnet."""
    text = text.strip()
    if match := _RAW.match(text):
        return ParsedAddress(account=_in_basechain(int(match[1]), bytes.fromhex(match[2])), is_bounceable=False)
    if not _FRIENDLY.match(text):
        raise ConfigError(
            f"not a TON address: {text[:60]!r}", advice="It has 48 characters (UQ…, EQ…), or is 0: and 64 hex digits."
        )
    try:
        data = base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except binascii.Error as error:
        raise ConfigError(f"not a TON address: {text!r}") from error
    if binascii.crc_hqx(data[:34], 0).to_bytes(2, "big") != data[34:]:
        raise ConfigError("the address is mistyped: its checksum does not fit", advice="Copy it again, whole.")
    flags = data[0] & ~_TEST_ONLY
    if flags not in (_BOUNCEABLE, _PLAIN):
        raise ConfigError("not a TON address: it has unknown flags")
    if data[0] & _TEST_ONLY and network is Network.MAINNET:
        raise ConfigError("this address is for test networks only", advice="Take the mainnet form from your wallet.")
    workchain = int.from_bytes(data[1:2], "big", signed=True)
    return ParsedAddress(account=_in_basechain(workchain, data[2:34]), is_bounceable=flags == _BOUNCEABLE)


def wallet_address(account: bytes, network: Network) -> str:
    """The form for wallets: coins stay even where nothing is deployed yet."""
    return friendly(account, is_bounceable=False, is_test=network is not Network.MAINNET)


def contract_address(account: bytes, network: Network) -> str:
    """The form for contracts: what they refuse comes back."""
    return friendly(account, is_bounceable=True, is_test=network is not Network.MAINNET)


def _in_basechain(workchain: int, account: bytes) -> bytes:
    if workchain != 0:
        raise ConfigError(f"an address in workchain {workchain}", advice="Only addresses in workchain 0 are used here.")
    return account
