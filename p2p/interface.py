"""What the rest of the program sees of the peer-to-peer network: values, settings and four protocols.

Two implementations keep these promises and pass one contract suite (`p2p.testing.contract`): the libp2p
driver (`p2p.open_node`) and the memory network (`p2p.testing.MemoryNetwork`). Everything runs under trio.

What is not here: the meaning of any frame or message. Bytes go in, bytes come out, with bounds.

Cancellation: every `async` method may be cancelled. What that leaves behind is said at the method; where
nothing is said, nothing is left behind.

Times named `*_at` are nanoseconds since the Unix epoch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Protocol

PeerId = str
"""A peer's public key as text: base58btc of the libp2p identity multihash, such as `12D3Koo…`."""

KIB = 1024
MIB = 1024 * KIB

DHT_KEY_BYTES = 32  # every key of ours is a SHA-256
FRAME_BYTES_CEILING = 32 * MIB  # no protocol may ask for larger frames: one must fit memory many times over
GOSSIP_MESSAGE_BYTES_MAX = 64 * KIB  # an offer is 1 KiB; the rest is room for proofs
KAD_PREFIX = "/cocoon/kad/1.0.0"
ADDRESS_BOOK_PEERS_MAX = 256  # more than a start ever needs


class Verdict(Enum):
    """What a validator says of a gossip message. REJECT blames the forwarder, so say it only of what every
    peer judges alike (rule G1); IGNORE drops the message and blames nobody."""

    ACCEPT = "accept"
    REJECT = "reject"
    IGNORE = "ignore"


Validator = Callable[[PeerId, bytes], Verdict]
"""(forwarding neighbour, data) → verdict. Synchronous and fast: it runs before a message is delivered or
forwarded. It should not raise; if it does, the message is ignored and the error is logged by type."""


class RecordValidator(Protocol):
    """Judges the values of one DHT namespace. Both must be pure: every node has to come to the same answer."""

    def validate(self, key: bytes, value: bytes) -> None:
        """Raises RecordInvalid. Runs on bytes of strangers."""

    def select(self, key: bytes, values: list[bytes]) -> int:
        """The index of the best of at least one valid value. "Decisions made by select should be stable." """


class Direction(Enum):
    INBOUND = "inbound"
    OUTBOUND = "outbound"


class DhtMode(Enum):
    """SERVER stores and answers for others; CLIENT only asks (a client peer's choice, rule H2)."""

    SERVER = "server"
    CLIENT = "client"


# --- values ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerInfo:
    peer: PeerId
    addresses: tuple[str, ...]  # without the trailing /p2p/<peer>


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionInfo:
    peer: PeerId
    address: str  # the remote end as we see it; "" when the transport does not say
    direction: Direction
    opened_at: int
    agent: str | None  # the peer's own words about its software (identify); bounded, not to be trusted
    relayed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DialFailure:
    peer: PeerId
    address: str
    reason: str  # short and for people: "refused by policy: loopback", "timed out after 5 s"
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipMessage:
    topic: str
    data: bytes
    forwarder: PeerId  # the neighbour it came from; our own id for messages that we published
    source: PeerId  # who signed it at the gossip layer


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConnected:
    """The first connection to a peer stands."""

    peer: PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerDisconnected:
    """The last connection to a peer is gone."""

    peer: PeerId


PeerEvent = PeerConnected | PeerDisconnected


class Reach(Enum):
    UNKNOWN = "unknown"  # nobody has tried yet
    DIRECT = "directly"
    RELAY = "by relay"
    NOT = "not"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reachability:
    """How others can reach this node, as they said themselves; never a guess from our own addresses."""

    reach: Reach
    reason: str  # one sentence for people: what was tried, and what it showed
    addresses: tuple[str, ...]  # where peers got through, or the relayed ones; ends in /p2p/<our id>
    observed: tuple[str, ...]  # our address as connected peers see it: another than ours means a NAT
    peers_asked: int  # whose latest answer counts
    peers_reached: int  # those of them who could dial us


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Counters since the node was opened. They only rise, `*_open` apart."""

    connections_open: int
    streams_open: int
    streams_opened: int
    streams_accepted: int
    streams_refused: int  # over a peer's quota
    frames_sent: int
    frames_received: int
    bytes_sent: int
    bytes_received: int
    frames_refused: int  # too large or malformed
    gossip_published: int
    gossip_received: int  # validated and handed to a subscription
    gossip_rejected: int
    gossip_ignored: int
    gossip_dropped: int  # a subscriber's queue was full
    handler_errors: int  # exceptions that ended a stream, and nothing else
    dials: int
    dials_failed: int


# --- settings --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    connections_max: int = 512  # ~0.2 MB each; beyond it inbound ones are refused and dials fail
    connections_high: int = 448  # over it, idle connections are closed …
    connections_low: int = 320  # … until so many are left; protected peers and new ones stay
    protected_peers_max: int = 256
    streams_per_peer_max: int = 128  # inbound, all protocols together; a session is one stream
    dial_timeout_s: float = 5.0  # for one address, handshake included
    dial_parallel_max: int = 8  # addresses of one peer tried at the same time
    addresses_per_dial_max: int = 16  # a hostile address list must not become a port scan
    open_timeout_s: float = 10.0  # a stream, negotiation included, without the dial
    handshake_timeout_s: float = 10.0  # an inbound stream must name its protocol within this time
    dial_failures_kept_max: int = 64
    gossip_queue_max: int = 1024  # messages waiting for one subscriber
    peer_event_queue_max: int = 1024
    gossip_message_bytes_max: int = GOSSIP_MESSAGE_BYTES_MAX
    stream_window_bytes: int = 256 * KIB  # what a peer may have in flight unread on one stream (yamux's default)
    unread_bytes_max: int = 16 * MIB  # of all streams of one connection; over it the fullest stream is reset
    unread_bytes_total_max: int = 256 * MIB  # of all connections; over it the fullest connection is closed


class AddressBook(Protocol):
    """Keeps peers from one run to the next, for a start when no bootstrap peer answers. The program brings it, for
    example as a table of its store. Both are called on the node's own thread and should be quick."""

    def load(self) -> Sequence[PeerInfo]:
        """Called once, when the node opens. At most `ADDRESS_BOOK_PEERS_MAX` are used, the first ones."""

    def save(self, peers: Sequence[PeerInfo]) -> None:
        """Peers whose addresses have worked, the latest first, at most `ADDRESS_BOOK_PEERS_MAX`: replaces what was
        saved before. Called now and then when something has changed, and when the node closes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """What a relay gives to others (circuit relay v2). Sealed bytes only pass through it."""

    circuit_duration_s: float = 120.0  # enough to punch a hole, or for an answer
    circuit_bytes: int = 2 * MIB  # each way: the text of a long answer many times over
    circuits_max: int = 32  # 128 MiB at worst, in two minutes
    circuits_per_peer_max: int = 8
    reservations_max: int = 128
    reservations_per_host_max: int = 16  # of one IP address: a household, not a farm
    reservation_ttl_s: float = 3600.0


class RelayUse(Enum):
    """When to hold a place at a relay, so that others reach us through it."""

    NEVER = "never"
    WHEN_NEEDED = "when needed"  # once peers have said that they cannot dial us
    ALWAYS = "always"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachSettings:
    """How this node finds out whether it can be reached, and what it does about it."""

    check: bool = True  # ask connected peers to dial us, and do the same for them (AutoNAT)
    check_delay_s: float = 15.0  # after the first connection; a program of a few seconds never asks
    check_interval_s: float = 600.0  # between checks, a tenth of it while the answer is unknown
    relay_use: RelayUse = RelayUse.WHEN_NEEDED
    relays: tuple[str, ...] = ()  # multiaddrs with /p2p/<peer>, tried first; then connected peers that relay
    reservations_max: int = 2
    hole_punching: bool = True  # try to turn a relayed connection into a direct one (DCUtR)
    upnp: bool = False  # ask the local router to forward our port
    mdns: bool = False  # find peers on the local network; with private addresses allowed only


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)  # empty: dial only
    announce: tuple[str, ...] = ()  # what to tell others instead of the listen addresses (behind NAT)
    bootstrap: tuple[str, ...] = ()  # multiaddrs that end in /p2p/<peer>; kept connected in the background
    dht_mode: DhtMode = DhtMode.SERVER
    kad_prefix: str = KAD_PREFIX
    validators: Mapping[str, RecordValidator] = field(default_factory=dict)  # DHT namespaces whose values we keep
    gossip: bool = True
    address_book: AddressBook | None = None  # where peers of earlier runs are kept; None: nowhere
    relay: bool = False  # relay for others, within `relay_limits` (circuit relay v2): for public nodes
    relay_limits: RelayLimits = field(default_factory=RelayLimits)
    reach: ReachSettings = field(default_factory=ReachSettings)
    allow_private_addresses: bool = False  # True only on a development network and in tests (rule G4)
    agent: str = "cocoon"
    limits: Limits = field(default_factory=Limits)


# --- protocols -------------------------------------------------------------------------------------------


class Stream(Protocol):
    """Frames both ways between two peers, in order, each whole or not at all.

    One task may send while another receives; two concurrent senders (or receivers) take turns.
    """

    @property
    def peer(self) -> PeerId: ...

    @property
    def protocol(self) -> str: ...

    async def send(self, frame: bytes) -> None:
        """Hand one frame to the muxer; returns when it has taken all of it, waiting for the peer's window.

        Raises MessageTooLarge (over the bound; the stream stays good), StreamClosed (we closed our side),
        StreamReset. Cancelled while it waits for its turn, it leaves the stream as it was; once it has begun
        to write, it resets the stream, because half a frame may be on its way.
        """

    async def receive(self) -> bytes:
        """The next frame. Raises StreamClosed (the peer ended between frames), StreamReset, FrameTooLarge,
        FrameInvalid. Cancelled, it loses nothing: the next call goes on where this one stopped."""

    async def close_write(self) -> None:
        """Say that no more frames will come from here. Reading goes on. Never raises."""

    async def aclose(self) -> None:
        """End both directions in order. Never raises, takes at most 1 s (then resets). Idempotent."""

    async def reset(self) -> None:
        """Break the stream: the peer sees StreamReset. Never raises, takes at most 1 s. Idempotent."""

    async def __aenter__(self) -> Stream: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """aclose(), or reset() when the block failed."""


StreamHandler = Callable[[Stream], Awaitable[None]]
"""Serves one inbound stream. When it returns the stream is closed; when it raises the stream is reset, the
error is logged by type only, and everything else goes on."""


class Subscription(Protocol):
    """The accepted messages of one topic, ours included, oldest first. Iteration ends after `aclose`."""

    @property
    def topic(self) -> str: ...

    @property
    def dropped(self) -> int:
        """Messages lost because the reader was slower than the network: the newest are dropped."""

    def __aiter__(self) -> AsyncIterator[GossipMessage]: ...

    async def __anext__(self) -> GossipMessage: ...

    async def aclose(self) -> None:
        """Leave the topic. Idempotent."""


class PeerEvents(Protocol):
    """Connections that came and went. Starts with PeerConnected for every peer connected at the time."""

    @property
    def dropped(self) -> int: ...

    def __aiter__(self) -> AsyncIterator[PeerEvent]: ...

    async def __anext__(self) -> PeerEvent: ...

    async def aclose(self) -> None: ...


class Node(Protocol):
    """One peer of the network. Made by `p2p.open_node` or `MemoryNetwork.open_node`, both context managers;
    leaving the block ends every task, stream and connection within a few seconds.

    After that every method that would use the network raises NodeClosed.
    """

    @property
    def peer(self) -> PeerId: ...

    def addresses(self) -> tuple[str, ...]:
        """What others can dial: multiaddrs that end in /p2p/<our id>."""

    async def wait_connected(self, *, timeout_s: float, peers_min: int = 1) -> None:
        """Return once `peers_min` peers are connected. Raises NotConnected with the dial failures so far."""

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Be connected to `peer`; at once when that is so already.

        All addresses are tried side by side (`dial_parallel_max`), the first that works wins, and no
        earlier failure is held against any of them. Addresses that the dial policy forbids are not tried.
        Raises DialFailed, which lists every address with its reason; AddressInvalid and PeerIdInvalid are
        failures of one address, or of the argument.
        """

    async def disconnect(self, peer: PeerId) -> None:
        """Close all connections to `peer`. Its streams end with StreamReset. Never raises."""

    def protect(self, peer: PeerId, addresses: Sequence[str] = ()) -> None:
        """Never close the connection to `peer` to make room, and when it is lost, dial again (`addresses`, else
        those known) with a growing wait, until `unprotect`. Raises SettingsInvalid over `protected_peers_max`,
        AddressInvalid, PeerIdInvalid."""

    def unprotect(self, peer: PeerId) -> None:
        """Treat `peer` as any other again. Its connection stays for now."""

    async def open_stream(
        self, peer: PeerId, protocol: str, *, addresses: Sequence[str] = (), frame_bytes_max: int
    ) -> Stream:
        """A new stream, connecting first if need be (to `addresses`, else to those known already).

        A connection that turns out to be dead (the peer restarted) is dropped and dialled anew, once.
        Raises DialFailed, ProtocolUnsupported, OpenFailed (time-out included). At most
        `open_timeout_s` after the connection stands.
        """

    def handle(
        self,
        protocol: str,
        handler: StreamHandler,
        *,
        frame_bytes_max: int,
        streams_per_peer_max: int,
        streams_max: int = 1024,
    ) -> None:
        """Serve `protocol` from now on. Streams over the peer's quota, or over `streams_max` of all peers together,
        are reset at once. Replaces an earlier handler of the same protocol."""

    async def subscribe(self, topic: str, validator: Validator) -> Subscription:
        """Join `topic`. Only what `validator` accepts is delivered and forwarded. One subscription per
        topic at a time: a second one raises SettingsInvalid."""

    async def publish(self, topic: str, data: bytes) -> int:
        """Send to the topic's neighbours; returns how many there were (0: nobody heard it). Our own
        subscription gets it too. Raises MessageTooLarge, GossipDisabled."""

    async def provide(self, key: bytes) -> None:
        """Announce in the DHT that this peer provides `key` (32 bytes). Lasts hours: repeat it. Raises
        DhtFailed when no other peer could be told."""

    async def find_providers(self, key: bytes, *, count_max: int) -> tuple[PeerInfo, ...]:
        """Peers that announced `key`, ours never among them; empty when there are none. Raises DhtFailed
        when there is nobody to ask."""

    async def find_peer(self, peer: PeerId) -> PeerInfo:
        """The addresses of `peer`. Raises PeerNotFound."""

    async def put_value(self, key: bytes, value: bytes) -> None:
        """Keep a small value in the DHT under `/namespace/…`, for up to 36 hours. `NodeSettings.validators` must
        know the namespace, here and where it is kept. Raises RecordInvalid (refused by the validator, too long, or
        worse than what is here), DhtFailed when no other peer took it."""

    async def get_value(self, key: bytes) -> bytes | None:
        """The best valid value that the DHT has, corrected where a peer had a worse one. None when there is none.
        Raises RecordInvalid for a key of no known namespace, DhtFailed when there is nobody to ask."""

    def connections(self) -> tuple[ConnectionInfo, ...]: ...

    def dial_failures(self) -> tuple[DialFailure, ...]:
        """The latest failures, newest first, at most `dial_failures_kept_max`."""

    def peer_events(self) -> PeerEvents: ...

    def reachability(self) -> Reachability:
        """How others can reach this node, as far as is known by now."""

    def statistics(self) -> Statistics: ...
