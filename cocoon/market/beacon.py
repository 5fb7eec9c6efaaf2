"""Load beacons: how busy a provider says it is, signed by P.

A hint for ranking and never the truth: the provider's own answer to a request is. Lives 30 seconds, sent on change
and at most every 5 seconds. Not here: rates and time (`book`), when to send one (`publisher`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ..errors import OfferInvalid
from ..types import MILLISECOND_NS, SECOND_NS, Digest, Network
from ..wire import limits
from ..wire.codec import decode_as, encode
from ..wire.messages import Beacon, SignedBeacon
from ..wire.signing import Domain, signed_bytes, verify

BEACON_VERSION: Final = 1
BEACON_LIFE_NS: Final = 30 * SECOND_NS
MODEL_PREFIX_BYTES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a provider says of itself."""

    running: int
    queued: int
    slots: int
    kv_free_permille: int = 1000
    wait_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedBeacon:
    """A beacon whose signature is *not* checked."""

    message: bytes = field(repr=False)
    beacon_bytes: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    beacon: Beacon


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedBeacon:
    """A beacon with P's signature checked."""

    message: bytes = field(repr=False)  # the encoded SignedBeacon, as received
    beacon: Beacon

    @property
    def expiry_ns(self) -> int:
        """From when on it says nothing any more."""
        return self.beacon.at_ms * MILLISECOND_NS + BEACON_LIFE_NS


def make_beacon(
    load: Load,
    *,
    network: Network,
    peer: bytes,
    operator: bytes,
    model: Digest,
    now: int,
    sign_as_peer: Callable[[bytes], bytes],
) -> bytes:
    """An encoded `SignedBeacon`."""
    beacon_bytes = encode(
        Beacon(
            version=BEACON_VERSION,
            network=int(network),
            peer=peer,
            operator=operator,
            model_prefix=model[:MODEL_PREFIX_BYTES],
            at_ms=now // MILLISECOND_NS,
            running=min(load.running, 0xFFFF),
            queued=min(load.queued, 0xFFFF),
            slots=min(load.slots, 0xFFFF),
            kv_free_permille=max(0, min(load.kv_free_permille, 1000)),
            wait_ms=min(load.wait_ms, 0xFFFF_FFFF),
        )
    )
    signature = sign_as_peer(signed_bytes(Domain.BEACON, network, beacon_bytes))
    return encode(SignedBeacon(beacon=beacon_bytes, signature=signature))


def parse_beacon(message: bytes, *, network: Network) -> ParsedBeacon:
    """Bytes, shape and static rules. Raises `LimitExceeded`, `DecodeError` or `OfferInvalid`."""
    signed = decode_as(message, SignedBeacon, bytes_max=limits.SIGNED_BEACON_BYTES_MAX)
    beacon = decode_as(signed.beacon, Beacon, bytes_max=limits.BEACON_BYTES_MAX)
    if beacon.version != BEACON_VERSION:
        raise OfferInvalid(f"a beacon of version {beacon.version}; we know {BEACON_VERSION}")
    if beacon.network != network:
        raise OfferInvalid(f"a beacon for another network than {network.label}")
    return ParsedBeacon(message=message, beacon_bytes=signed.beacon, signature=signed.signature, beacon=beacon)


def verify_parsed_beacon(parsed: ParsedBeacon) -> VerifiedBeacon:
    """P's signature. Raises `BadSignature`."""
    network = Network(parsed.beacon.network)
    verify(parsed.beacon.peer, parsed.signature, signed_bytes(Domain.BEACON, network, parsed.beacon_bytes))
    return VerifiedBeacon(message=parsed.message, beacon=parsed.beacon)
