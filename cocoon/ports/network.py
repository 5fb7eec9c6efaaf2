"""The peer-to-peer network as the roles see it. Errors are those of `cocoon.errors`, whatever carries it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ..types import PeerId


class Verdict(Enum):
    """What to do with a gossip message (rule G1): REJECT only what every peer judges alike."""

    ACCEPT = "accept"
    REJECT = "reject"
    IGNORE = "ignore"


Validator = Callable[[PeerId, bytes], Verdict]
"""(forwarding neighbour, message) → verdict; synchronous and quick, because it runs before forwarding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAddresses:
    """A peer and multiaddrs (as text) at which it may be reached."""

    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One live connection."""

    peer: PeerId
    address: str
    outbound: bool
    opened_ns: int
    agent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DialFailure:
    """Why a peer could not be reached."""

    peer: PeerId
    address: str
    reason: str
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipMessage:
    """An accepted message of a topic that we joined. `forwarder` is the neighbour it came from."""

    topic: str
    data: bytes
    forwarder: PeerId


class Stream(Protocol):
    """A two-way stream of length-prefixed frames to one authenticated peer."""

    @property
    def peer(self) -> PeerId:
        """The peer at the other end, proven by the connection's handshake."""
        ...

    async def send(self, frame: bytes) -> None:
        """Send one frame; waits while the peer does not read. Raises `StreamBroken`."""
        ...

    async def receive(self) -> bytes | None:
        """The next frame, or None when the peer ended its side cleanly between frames.

        Raises `StreamBroken` or `LimitExceeded`. Cancelling loses nothing.
        """
        ...

    async def aclose(self) -> None:
        """End both directions. Never raises, never waits for longer than a second."""
        ...


Handler = Callable[[Stream], Awaitable[None]]


class Subscription(Protocol):
    """Accepted messages of one topic, in a bounded queue that drops the oldest."""

    def __aiter__(self) -> AsyncIterator[GossipMessage]: ...

    async def aclose(self) -> None:
        """Leave the topic."""
        ...


class Network(Protocol):
    """One peer of the overlay."""

    @property
    def peer(self) -> PeerId:
        """Our own peer id."""
        ...

    @property
    def peer_key(self) -> bytes:
        """P's public half: 32 bytes of ed25519."""
        ...

    def sign(self, message: bytes) -> bytes:
        """P's signature over these bytes (the private half stays in the adapter)."""
        ...

    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs, each ending in `/p2p/<peer>`, at which we listen."""
        ...

    async def connect(self, target: PeerAddresses) -> None:
        """Be connected to the peer. Raises `Unavailable`, which lists every address tried and why it failed."""
        ...

    async def open_stream(self, target: PeerAddresses, protocol: str, *, frame_bytes_max: int) -> Stream:
        """A new stream, dialling if needed. Raises `Unavailable`."""
        ...

    def handle(self, protocol: str, handler: Handler, *, frame_bytes_max: int, streams_per_peer_max: int = 4) -> None:
        """Serve a protocol. An exception in a handler ends that stream, never the node."""
        ...

    async def subscribe(self, topic: str, validator: Validator) -> Subscription:
        """Join a topic; `validator` decides before anything is forwarded."""
        ...

    async def publish(self, topic: str, data: bytes) -> int:
        """Gossip a message; the number of neighbours it went to."""
        ...

    async def provide(self, key: bytes) -> None:
        """Announce in the DHT that we provide this 32-byte key."""
        ...

    async def find_providers(self, key: bytes, *, count_max: int) -> tuple[PeerAddresses, ...]:
        """Who provides this key. Empty when nobody is found; raises `Unavailable` without any DHT peer."""
        ...

    def connections(self) -> tuple[Connection, ...]:
        """Live connections."""
        ...

    def dial_failures(self) -> tuple[DialFailure, ...]:
        """The most recent failed dials, newest first."""
        ...


def targets(peers: Sequence[PeerAddresses]) -> dict[PeerId, PeerAddresses]:
    """Merge by peer, keeping the order of first sight and every distinct address."""
    merged: dict[PeerId, PeerAddresses] = {}
    for entry in peers:
        known = merged.get(entry.peer)
        addresses = dict.fromkeys((*known.addresses, *entry.addresses) if known else entry.addresses)
        merged[entry.peer] = PeerAddresses(peer=entry.peer, addresses=tuple(addresses))
    return merged
