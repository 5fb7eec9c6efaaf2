"""The voucher: 92 bytes that the account contract rebuilds, signed by V.

    "CSV1" ‖ network i32 ‖ account 32 ‖ epoch u32 ‖ provider 32 ‖ cumulative u64 ‖ ceiling u64        big-endian

Both amounts are cumulative over an epoch and never fall, so the newest voucher is all that anybody has to keep, and a
repeated one changes nothing. `provider` is the payout address. Not here: whether the money is there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..errors import DecodeError, LocalProtocolError
from ..types import DIGEST_BYTES, Digest, Nano, Network
from ..wire import limits
from ..wire.signing import SIGNATURE_BYTES, domain_hash

Sign = Callable[[bytes], bytes]
"""V's signature over exactly these bytes."""

Verify = Callable[[bytes, bytes, bytes], None]
"""(key, signature, message): raises `BadSignature`; `cocoon.wire.signing.verify`."""

TAG: Final = b"CSV1"
VOUCHER_BYTES: Final = 92
SIGNED_VOUCHER_BYTES: Final = VOUCHER_BYTES + SIGNATURE_BYTES  # as it rides in `Open.voucher`
EPOCH_MAX: Final = 0xFFFF_FFFF

_LAYOUT: Final = struct.Struct(">4si32sI32sQQ")
assert _LAYOUT.size == VOUCHER_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Voucher:
    """Promises `provider` the cumulative amount of this epoch, and asks that it be reserved up to the ceiling."""

    network: Network
    account: bytes
    epoch: int
    provider: bytes
    cumulative_nano: Nano
    ceiling_nano: Nano = 0

    def encode(self) -> bytes:
        """The 92 bytes. Raises `LocalProtocolError` for what no contract would take."""
        if len(self.account) != DIGEST_BYTES or len(self.provider) != DIGEST_BYTES:
            raise LocalProtocolError("a voucher needs account ids of 32 bytes")
        if not 0 < self.epoch <= EPOCH_MAX:
            raise LocalProtocolError("a voucher needs an epoch: the account was never opened")
        if not 0 <= self.cumulative_nano <= limits.NANO_MAX or not 0 <= self.ceiling_nano <= limits.NANO_MAX:
            raise LocalProtocolError("a voucher's amount is out of bounds")
        return _LAYOUT.pack(
            TAG, int(self.network), self.account, self.epoch, self.provider, self.cumulative_nano, self.ceiling_nano
        )

    def rises_to(self, newer: Voucher) -> bool:
        """Whether `newer` may follow this one: neither amount falls."""
        return newer.cumulative_nano >= self.cumulative_nano and newer.ceiling_nano >= self.ceiling_nano


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedVoucher:
    """A voucher and V's signature over its 92 bytes. Made by `sign_voucher` or `parse_voucher`."""

    voucher: Voucher
    signature: bytes

    def encode(self) -> bytes:
        """The 156 bytes that ride in `Open.voucher`."""
        return self.voucher.encode() + self.signature


def sign_voucher(voucher: Voucher, sign: Sign) -> SignedVoucher:
    """Have V sign it. Persist before it leaves."""
    return SignedVoucher(voucher=voucher, signature=sign(voucher.encode()))


def parse_voucher(data: bytes, signature: bytes) -> SignedVoucher:
    """The voucher in these 92 bytes; its signature is not judged here. Raises `DecodeError`."""
    if len(data) != VOUCHER_BYTES or len(signature) != SIGNATURE_BYTES:
        raise DecodeError("a voucher or its signature has the wrong length")
    tag, network, account, epoch, provider, cumulative, ceiling = _LAYOUT.unpack(data)
    if tag != TAG or epoch == 0:
        raise DecodeError("not a voucher")
    try:
        known = Network(network)
    except ValueError as error:
        raise DecodeError("a voucher for no known network") from error
    if cumulative > limits.NANO_MAX or ceiling > limits.NANO_MAX:
        raise DecodeError("a voucher for more coins than there are")
    return SignedVoucher(
        voucher=Voucher(
            network=known,
            account=account,
            epoch=epoch,
            provider=provider,
            cumulative_nano=cumulative,
            ceiling_nano=ceiling,
        ),
        signature=signature,
    )


def parse_open_voucher(data: bytes) -> SignedVoucher | None:
    """What `Open.voucher` holds: nothing, or a voucher and its signature. Raises `DecodeError`."""
    return parse_voucher(data[:VOUCHER_BYTES], data[VOUCHER_BYTES:]) if data else None


def ledger_id(network: Network, payout: bytes) -> Digest:
    """What a provider holds in its store before it takes vouchers for this address (rule M1)."""
    return domain_hash("voucher-ledger", network.wire, payout)


def signer_id(network: Network, account: bytes) -> Digest:
    """What a client holds in its store before it signs for this account: two signers would contradict each other."""
    return domain_hash("voucher-signer", network.wire, account)
