"""What both stores agree on: bounds, and which seq follows."""

from __future__ import annotations

from typing import Final

from ..errors import LocalProtocolError, StoreError
from ..ports import PaymentRecord, StoredEarning, StoredVoucher
from ..types import DIGEST_BYTES, MILLISECOND_NS, Digest

RECEIPTS_MAX: Final = 100_000  # about 60 MB; months of a busy client
PROOFS_MAX: Final = 4_096
REPUTATION_MAX: Final = 8_192
PEERS_MAX: Final = 1_024
CLAIMS_MAX: Final = 100_000  # confirmed ones beyond it are forgotten: years of a busy provider
EARNING_ROWS_MAX: Final = 200_000  # the oldest days are forgotten beyond it: a year of 500 clients a day
AMOUNT_MAX: Final = (1 << 63) - 1  # SQLite's integers; twice all coins there are
EARNING_MAX: Final = 1 << 53  # of one record, so that sums of a thousand of the largest still fit
MODEL_NAME_MAX: Final = 256  # more than an offer's name may have

SEQ_MAX: Final = (1 << 63) - 1
_LUCK_BITS: Final = 20


def following_seq(last: int | None, *, now: int, luck: bytes) -> int:
    """Unix milliseconds and 20 random bits, or a random step beyond the last one if that is higher.

    A restored backup forgets the seqs given out since; time puts the next one above them all. A copied database
    runs at the same time as its original; the random bits keep the two apart (one chance in a million, per shared
    millisecond, of what would otherwise be certain). Raises `StoreError` when there is none left.
    """
    step = int.from_bytes(luck, "big") & ((1 << _LUCK_BITS) - 1)
    seq = ((now // MILLISECOND_NS) << _LUCK_BITS) | step
    if last is not None and seq <= last:
        seq = last + 1 + step
    if seq > SEQ_MAX:
        raise StoreError("no seq is left for this peer and model", advice="Set the clock right; use a new peer key.")
    return seq


def check_slot_digest(slot: Digest, digest: Digest) -> None:
    """Raises `LocalProtocolError` unless both are SHA-256 digests."""
    if len(slot) != DIGEST_BYTES or len(digest) != DIGEST_BYTES:
        raise LocalProtocolError("a slot or digest of the wrong length")


def check_payments(records: tuple[PaymentRecord, ...]) -> None:
    """Raises `LocalProtocolError` for ids of a wrong length or amounts that do not fit; then nothing is kept."""
    for record in records:
        if len(record.account) != DIGEST_BYTES or len(record.provider) != DIGEST_BYTES:
            raise LocalProtocolError("an account or payout address of the wrong length")
        if isinstance(record, StoredEarning):
            _check_earning(record)
            continue
        if not 0 <= record.ceiling_nano <= AMOUNT_MAX:
            raise LocalProtocolError("an amount that cannot be kept")
        if isinstance(record, StoredVoucher) and not 0 <= record.cumulative_nano <= AMOUNT_MAX:
            raise LocalProtocolError("an amount that cannot be kept")


def _check_earning(record: StoredEarning) -> None:
    counts = (
        record.day,
        record.requests,
        record.prompt_tokens,
        record.cached_tokens,
        record.completion_tokens,
        record.due_nano,
    )
    if len(record.model) != DIGEST_BYTES or len(record.model_name) > MODEL_NAME_MAX:
        raise LocalProtocolError("a model of the wrong shape")
    if not all(0 <= count <= EARNING_MAX for count in counts):
        raise LocalProtocolError("a figure that cannot be kept")
