"""Where offers are found: gossip topics by shard, and DHT keys that move each hour.

A shard is the first 6 bits of the model id, so a client joins only the topics of the models that it wants. A
model has four DHT keys an hour (salts 0–3), looked up together; where the chain is known, the hash of a
masterchain block of that hour is mixed in, so keys cannot be computed far in advance (rule G2). Four salts raise
the cost of an eclipse; they are not a wall.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from ..types import SECOND_NS, Digest, Network

SHARDS: Final = 64
SALTS: Final = 4
HOUR_S: Final = 3_600
EARLY_S: Final = 600  # next hour's keys are published this early, last hour's looked up this long (rule G2)

NO_BLOCKS: Final[Mapping[int, bytes]] = {}


def shard_of(model: Digest) -> int:
    """0–63: the first 6 bits of the model id (or of its prefix in a beacon)."""
    return model[0] >> 2


def offers_topic(network: Network, shard: int) -> str:
    """The topic of signed offers."""
    assert 0 <= shard < SHARDS
    return f"/cocoon/{network.label}/offers/{shard}"


def load_topic(network: Network, shard: int) -> str:
    """The topic of load beacons."""
    assert 0 <= shard < SHARDS
    return f"/cocoon/{network.label}/load/{shard}"


def hour_of(now: int) -> int:
    """Hours since the Unix epoch."""
    return now // (HOUR_S * SECOND_NS)


def model_keys(network: Network, model: Digest, hour: int, *, block_hash: bytes = b"") -> tuple[bytes, ...]:
    """The four DHT keys of a model in one hour. `block_hash` is 32 bytes, or empty where no chain is known.

    SHA-256("cocoon/model/1" ‖ network ‖ model id ‖ salt (u8) ‖ hour (u32) [‖ block hash]).
    """
    assert len(model) == 32 and len(block_hash) in (0, 32)
    head = b"cocoon/model/1" + network.wire + model
    tail = hour.to_bytes(4, "big") + block_hash
    return tuple(hashlib.sha256(head + bytes((salt,)) + tail).digest() for salt in range(SALTS))


def provide_hours(now: int) -> tuple[int, ...]:
    """Hours whose keys a provider announces now: this one, and the next in its last ten minutes."""
    hour = hour_of(now)
    return (hour, hour + 1) if _second_of_hour(now) >= HOUR_S - EARLY_S else (hour,)


def lookup_hours(now: int) -> tuple[int, ...]:
    """Hours whose keys a client asks for now: this one, and the last during its first ten minutes."""
    hour = hour_of(now)
    return (hour, hour - 1) if _second_of_hour(now) < EARLY_S else (hour,)


def lookup_keys(
    network: Network, model: Digest, *, now: int, block_hashes: Mapping[int, bytes] = NO_BLOCKS
) -> tuple[bytes, ...]:
    """All keys under which providers of the model may be found now: four, or eight after the turn of the hour.

    `block_hashes` gives the masterchain block hash per hour where it is known.
    """
    return tuple(
        key
        for hour in lookup_hours(now)
        for key in model_keys(network, model, hour, block_hash=block_hashes.get(hour, b""))
    )


def _second_of_hour(now: int) -> int:
    return now // SECOND_NS % HOUR_S
