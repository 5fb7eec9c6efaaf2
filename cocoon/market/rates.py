"""Token buckets on integer nanoseconds, alone and by key with a bound on how many there are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """One token every `interval_ns`, and up to `burst` saved."""

    interval_ns: int
    burst: int


class Bucket:
    """A token bucket as one number: the time at which it will be full again."""

    __slots__ = ("_full_at", "_rate")

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._full_at = 0

    def has_token(self, now: int) -> bool:
        """Whether one may be taken now."""
        return self._full_at - now <= self._rate.interval_ns * (self._rate.burst - 1)

    def take(self, now: int) -> bool:
        """Take one if there is one."""
        if not self.has_token(now):
            return False
        self._full_at = max(self._full_at, now) + self._rate.interval_ns
        return True

    def is_full(self, now: int) -> bool:
        """Whether it could be forgotten without anybody gaining by it."""
        return self._full_at <= now


K = TypeVar("K", bound=Hashable)


class Buckets(Generic[K]):
    """One bucket per key. Beyond `count_max` the key that was used longest ago is forgotten."""

    def __init__(self, rate: Rate, *, count_max: int) -> None:
        self._rate = rate
        self._count_max = count_max
        self._buckets: OrderedDict[K, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def has_token(self, key: K, now: int) -> bool:
        """Whether `take` would succeed."""
        bucket = self._buckets.get(key)
        return bucket is None or bucket.has_token(now)

    def take(self, key: K, now: int) -> bool:
        """Take one of this key's tokens if there is one."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(self._rate)
            if len(self._buckets) > self._count_max:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket.take(now)

    def forget_full(self, now: int) -> None:
        """Drop the buckets that are full: a new one is the same."""
        for key in [key for key, bucket in self._buckets.items() if bucket.is_full(now)]:
            del self._buckets[key]
