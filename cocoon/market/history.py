"""What this client itself saw of providers: success, speed, and a breaker. Never anybody else's word.

Keyed by stake address, or by O when unstaked (rule K7), so that a reboot, which changes P, whitewashes nothing.
Successes and failures fade with a half-life, so that an old quarrel ends. Speed is a peak-sensitive EWMA: slower
than expected counts at once, faster only gradually.

Not here: any score received over the network (there is none), and what a choice makes of it (`selection`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Annotated, Final

from msgspec import Meta

from ..errors import DecodeError, LimitExceeded
from ..ports import StoredReputation
from ..types import SECOND_NS, Digest
from ..wire.codec import decode_as, encode
from ..wire.messages import U32, U63, Bytes32, Message

OPERATORS_MAX: Final = 4_096  # beyond this the operator that was seen longest ago is forgotten
MODELS_PER_OPERATOR_MAX: Final = 16  # speeds kept per operator; the oldest goes first
FADE_HALF_LIFE_NS: Final = 6 * 3_600 * SECOND_NS  # a failure weighs half after six hours
BREAKER_FIRST_NS: Final = 4 * SECOND_NS
BREAKER_FACTOR: Final = 4  # each further failure in a row: 4, 16, 64 … seconds
BREAKER_MAX_NS: Final = 1_024 * SECOND_NS
SPEED_WEIGHT: Final = 0.2  # of a new, better measurement; a worse one counts 0.6
SPEED_WEIGHT_WORSE: Final = 0.6
PACKED_BYTES_MAX: Final = 2_048


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Measured here, of one model at one operator."""

    first_token_ms: float
    tokens_per_s: float
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What we know of one operator at one moment. Counts are faded, so they are not whole numbers."""

    successes: float = 0.0
    failures: float = 0.0
    failures_in_row: int = 0
    blocked_until_ns: int = 0
    at_ns: int = 0
    speeds: tuple[tuple[Digest, Speed], ...] = ()

    def speed(self, model: Digest) -> Speed | None:
        """Of this model, if we ever had an answer."""
        return next((speed for digest, speed in self.speeds if digest == model), None)


NOTHING_OBSERVED: Final = Observed()


class History:
    """First-hand observations of at most `operators_max` operators."""

    def __init__(self, *, operators_max: int = OPERATORS_MAX) -> None:
        self._operators_max = operators_max
        self._observed: OrderedDict[bytes, Observed] = OrderedDict()
        self._changed: dict[bytes, None] = {}

    def __len__(self) -> int:
        return len(self._observed)

    def observed(self, key: bytes) -> Observed:
        """What is known; `key` is `ListedOffer.reputation_key`."""
        return self._observed.get(key, NOTHING_OBSERVED)

    def succeeded(
        self, key: bytes, *, model: Digest, first_token_ms: float, tokens_per_s: float | None, now: int
    ) -> None:
        """A request ended well. `tokens_per_s` is None when there were too few tokens to tell."""
        seen = self._faded(key, now)
        known = seen.speed(model)
        if known is None:
            speed = Speed(first_token_ms=first_token_ms, tokens_per_s=tokens_per_s or 0.0, at_ns=now)
        else:
            rate = known.tokens_per_s
            if tokens_per_s is not None:
                rate = _blend(rate, tokens_per_s, is_worse=tokens_per_s < rate) if rate else tokens_per_s
            speed = Speed(
                first_token_ms=_blend(
                    known.first_token_ms, first_token_ms, is_worse=first_token_ms > known.first_token_ms
                ),
                tokens_per_s=rate,
                at_ns=now,
            )
        others = tuple(entry for entry in seen.speeds if entry[0] != model)
        self._put(
            key,
            replace(
                seen,
                successes=seen.successes + 1,
                failures_in_row=0,
                blocked_until_ns=0,
                speeds=((model, speed), *others)[:MODELS_PER_OPERATOR_MAX],
            ),
        )

    def failed(self, key: bytes, *, now: int) -> None:
        """A request failed by the provider's fault, or it could not be reached: the breaker opens for longer."""
        seen = self._faded(key, now)
        in_row = seen.failures_in_row + 1
        pause = min(BREAKER_FIRST_NS * BREAKER_FACTOR ** min(in_row - 1, 8), BREAKER_MAX_NS)
        self._put(
            key,
            replace(
                seen,
                failures=seen.failures + 1,
                failures_in_row=in_row,
                blocked_until_ns=max(seen.blocked_until_ns, now + pause),
            ),
        )

    def refused(self, key: bytes, *, retry_after_ms: int, now: int) -> None:
        """It said that it is busy: no failure, but leave it alone for as long as it asks (bounded)."""
        seen = self._faded(key, now)
        pause = min(max(retry_after_ms, 0) * 1_000_000, BREAKER_MAX_NS)
        self._put(key, replace(seen, blocked_until_ns=max(seen.blocked_until_ns, now + pause)))

    def take_changed(self) -> tuple[StoredReputation, ...]:
        """What changed since the last call, for `Store.save_reputation`."""
        changed = tuple(
            StoredReputation(key=key, observed=pack(seen), at_ns=seen.at_ns)
            for key in self._changed
            if (seen := self._observed.get(key)) is not None
        )
        self._changed.clear()
        return changed

    def restore(self, stored: StoredReputation) -> None:
        """Take over what an earlier run kept; something unreadable is left out, for it is only a memory."""
        try:
            seen = unpack(stored.observed)
        except (DecodeError, LimitExceeded):
            return
        if stored.key not in self._observed:
            self._put(stored.key, seen)
            self._changed.pop(stored.key, None)

    def _faded(self, key: bytes, now: int) -> Observed:
        seen = self.observed(key)
        keep = 0.5 ** (max(0, now - seen.at_ns) / FADE_HALF_LIFE_NS)
        return replace(seen, successes=seen.successes * keep, failures=seen.failures * keep, at_ns=now)

    def _put(self, key: bytes, observed: Observed) -> None:
        self._observed[key] = observed
        self._observed.move_to_end(key)
        self._changed[key] = None
        if len(self._observed) > self._operators_max:
            gone, _ = self._observed.popitem(last=False)
            self._changed.pop(gone, None)


def _blend(old: float, new: float, *, is_worse: bool) -> float:
    weight = SPEED_WEIGHT_WORSE if is_worse else SPEED_WEIGHT
    return old + weight * (new - old)


# --- packing ---------------------------------------------------------------------------------------------


class _PackedSpeed(Message, frozen=True):
    model: Bytes32
    first_token_us: U63
    milli_tokens_per_s: U63
    at_ns: U63


class _Packed(Message, frozen=True):
    milli_successes: U63
    milli_failures: U63
    failures_in_row: U32
    blocked_until_ns: U63
    at_ns: U63
    speeds: Annotated[list[_PackedSpeed], Meta(max_length=MODELS_PER_OPERATOR_MAX)]


def pack(observed: Observed) -> bytes:
    """Bytes for the store; floats are kept to a thousandth."""
    return encode(
        _Packed(
            milli_successes=round(observed.successes * 1000),
            milli_failures=round(observed.failures * 1000),
            failures_in_row=min(observed.failures_in_row, 0xFFFF_FFFF),
            blocked_until_ns=observed.blocked_until_ns,
            at_ns=observed.at_ns,
            speeds=[
                _PackedSpeed(
                    model=model,
                    first_token_us=round(speed.first_token_ms * 1000),
                    milli_tokens_per_s=round(speed.tokens_per_s * 1000),
                    at_ns=speed.at_ns,
                )
                for model, speed in observed.speeds
            ],
        )
    )


def unpack(data: bytes) -> Observed:
    """The reverse. Raises `DecodeError` or `LimitExceeded`."""
    packed = decode_as(data, _Packed, bytes_max=PACKED_BYTES_MAX)
    return Observed(
        successes=packed.milli_successes / 1000,
        failures=packed.milli_failures / 1000,
        failures_in_row=packed.failures_in_row,
        blocked_until_ns=packed.blocked_until_ns,
        at_ns=packed.at_ns,
        speeds=tuple(
            (
                speed.model,
                Speed(
                    first_token_ms=speed.first_token_us / 1000,
                    tokens_per_s=speed.milli_tokens_per_s / 1000,
                    at_ns=speed.at_ns,
                ),
            )
            for speed in packed.speeds
        ),
    )
