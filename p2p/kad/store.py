"""What a server keeps for others: who provides what, and small records. Bounded per key, per peer and in total.

Source: kad-dht/README.md, "Content routing", "Value routing", "Entry validation".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from p2p.errors import RecordInvalid
from p2p.interface import RecordValidator
from p2p.kad.messages import KEY_BYTES_MAX, KadPeer, Record
from p2p.kad.settings import NANOSECONDS, KadSettings


class _Provider(NamedTuple):
    addresses: tuple[bytes, ...]
    expires_at: int


class ProviderStore:
    """Key → its providers. When a bound is reached newcomers are refused; nothing valid is pushed out."""

    def __init__(self, settings: KadSettings) -> None:
        self._settings = settings
        self._keys: dict[bytes, dict[bytes, _Provider]] = {}
        self._per_peer: dict[bytes, int] = {}
        self._records = 0

    def __len__(self) -> int:
        return self._records

    @property
    def is_crowded(self) -> bool:
        return self._records * 2 > self._settings.providers_kept_max

    def add(self, key: bytes, provider: KadPeer, *, now: int) -> bool:
        settings = self._settings
        providers = self._keys.get(key, {})
        if provider.peer not in providers:
            if (
                self._records >= settings.providers_kept_max
                or len(providers) >= settings.providers_per_key_max
                or self._per_peer.get(provider.peer, 0) >= settings.keys_per_provider_max
                or (not providers and len(self._keys) >= settings.provider_keys_max)
            ):
                return False
            self._records += 1
            self._per_peer[provider.peer] = self._per_peer.get(provider.peer, 0) + 1
        expires_at = now + int(settings.providers_ttl_s * NANOSECONDS)
        self._keys.setdefault(key, {})[provider.peer] = _Provider(provider.addresses, expires_at)
        return True

    def get(self, key: bytes, *, now: int) -> list[KadPeer]:
        return [
            KadPeer(peer, provider.addresses)
            for peer, provider in self._keys.get(key, {}).items()
            if provider.expires_at > now
        ]

    def expire(self, *, now: int) -> None:
        for key in list(self._keys):
            providers = self._keys[key]
            for peer in [peer for peer, provider in providers.items() if provider.expires_at <= now]:
                del providers[peer]
                self._records -= 1
                self._per_peer[peer] -= 1
                if not self._per_peer[peer]:
                    del self._per_peer[peer]
            if not providers:
                del self._keys[key]


class ValueStore:
    """Key → the best valid record seen. Keys are `/namespace/…`; a namespace without a validator is refused."""

    def __init__(self, settings: KadSettings, validators: Mapping[str, RecordValidator]) -> None:
        self._settings = settings
        self._validators = validators
        self._values: dict[bytes, tuple[bytes, int]] = {}  # value, expires_at

    def __len__(self) -> int:
        return len(self._values)

    def validate(self, key: bytes, record: Record) -> None:
        """Raises RecordInvalid."""
        if len(key) > KEY_BYTES_MAX:
            raise RecordInvalid("key too long")
        if record.key != key:
            raise RecordInvalid("a record under another key")
        if len(record.value) > self._settings.value_bytes_max:
            raise RecordInvalid("value too long")
        self.validator(key).validate(key, record.value)

    def better(self, key: bytes, old: bytes, new: bytes) -> bool:
        """Is `new` strictly better than `old`? Both are valid."""
        return old != new and self.validator(key).select(key, [old, new]) == 1

    def put(self, key: bytes, record: Record, *, now: int) -> None:
        """Keep a record unless a better one is here. Raises RecordInvalid, also when the store is full."""
        self.validate(key, record)
        known = self.get(key, now=now)
        if known is None and len(self._values) >= self._settings.values_max:
            raise RecordInvalid("no room for another record")
        if known is not None and self.better(key, record.value, known):
            raise RecordInvalid("a better record is here")
        self._values[key] = (record.value, now + int(self._settings.values_ttl_s * NANOSECONDS))

    def get(self, key: bytes, *, now: int) -> bytes | None:
        value, expires_at = self._values.get(key, (None, 0))
        return value if expires_at > now else None

    def expire(self, *, now: int) -> None:
        for key in [key for key, (_, expires_at) in self._values.items() if expires_at <= now]:
            del self._values[key]

    def validator(self, key: bytes) -> RecordValidator:
        """Raises RecordInvalid for a key of no known namespace."""
        parts = key.split(b"/", 2)
        if len(parts) == 3 and not parts[0]:
            validator = self._validators.get(parts[1].decode("ascii", "replace"))
            if validator is not None:
                return validator
        raise RecordInvalid("a key of no known namespace")
