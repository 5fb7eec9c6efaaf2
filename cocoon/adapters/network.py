"""`cocoon.ports.Network` over a `p2p` node: values translated, and every `P2PError` mapped once.

The only file of `cocoon` that imports `p2p`, so it is also where another package of that name is noticed: a file
`p2p.py` beside somebody's script would otherwise answer in place of ours.

Not here: keys on disk, addresses to listen at, bootstrap lists. The composition roots pass them in.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Final

import nacl.bindings
import trio

from ..errors import (
    CocoonError,
    ConfigError,
    LimitExceeded,
    LocalProtocolError,
    RemoteProtocolError,
    StoreError,
    StreamBroken,
    Unavailable,
)
from ..ports import (
    Clock,
    Connection,
    DialFailure,
    GossipMessage,
    Handler,
    KnownPeer,
    Network,
    PeerAddresses,
    Store,
    Stream,
    Subscription,
    Validator,
    Verdict,
)
from ..types import PeerId, Secret

try:
    import p2p
    from p2p.addresses import parse_address, parse_peer_address
    from p2p.identity import peer_id_of_seed, public_key_of_seed
except ImportError as _error:
    import sys

    _found = getattr(sys.modules.get("p2p"), "__file__", None) or "an unknown place"
    raise ConfigError(
        f"another package named p2p ({_found}) hides the one that belongs to cocoon",
        advice="Rename that file or folder, or uninstall that package; then start again.",
    ) from _error

log = logging.getLogger("cocoon.network")

LAST_SAVE_S: Final = 2.0  # a shutdown has more to do than this


@asynccontextmanager
async def open_network(
    *,
    seed: Secret,
    listen: Iterable[str] = (),
    announce: Iterable[str] = (),
    bootstrap: Iterable[str] = (),
    serves_dht: bool,
    relay: bool = False,
    allow_private_addresses: bool,
    agent: str = "cocoon",
    store: Store | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[PeerNetwork]:
    """One peer on real sockets. `allow_private_addresses` is for the devnet only (rule G4).

    With a `store` (and the `clock`) peers that were reached are remembered in it, and tried when no bootstrap peer
    answers. A client has none: whom it dials first would tell one run of it from another's (rule H2).
    Unreachable bootstrap peers are no error here: `PeerNetwork.wait_connected` says. Raises `ConfigError` for an
    address that does not parse or cannot be listened at. The first call imports
    libp2p, which takes a second or two.
    """
    settings = p2p.NodeSettings(
        listen=tuple(listen),
        announce=tuple(announce),
        bootstrap=tuple(bootstrap),
        dht_mode=p2p.DhtMode.SERVER if serves_dht else p2p.DhtMode.CLIENT,
        relay=relay,
        allow_private_addresses=allow_private_addresses,
        agent=agent,
    )
    async with AsyncExitStack() as stack:
        if store is not None and clock is not None:
            book = await stack.enter_async_context(_remembered_peers(store, clock))
            settings = replace(settings, address_book=book)
        with _mapped_while_opening():
            for address in settings.bootstrap:
                parse_peer_address(address)
            node = await stack.enter_async_context(p2p.open_node(settings, key=seed.reveal()))
        yield PeerNetwork(node, seed=seed)


class StoredPeers:
    """`p2p`'s address book in our store. `p2p` calls it between two steps of its own; a task writes."""

    def __init__(self, store: Store, clock: Clock, known: Iterable[KnownPeer]) -> None:
        self._store = store
        self._clock = clock
        self._known = tuple(known)
        self._unsaved: tuple[KnownPeer, ...] = ()
        self._changed = trio.Event()

    def load(self) -> Sequence[p2p.PeerInfo]:
        """Those of earlier runs, the latest first."""
        return [p2p.PeerInfo(peer=each.peer, addresses=each.addresses) for each in self._known]

    def save(self, peers: Sequence[p2p.PeerInfo]) -> None:
        """The latest first; times that fall keep that order in the store."""
        now = self._clock.now()
        self._unsaved = tuple(
            KnownPeer(peer=PeerId(info.peer), addresses=info.addresses, seen_ns=now - place)
            for place, info in enumerate(peers)
        )
        self._changed.set()

    async def run(self) -> None:
        """Write whatever is saved, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            await self.flush()

    async def flush(self) -> None:
        """Write what is not written. A store that fails is logged: the network goes on without it."""
        peers = self._unsaved
        if not peers:
            return
        try:
            await self._store.remember_peers(peers)
        except StoreError as error:
            log.warning("peers.not_remembered", extra={"error": type(error).__name__})
            return
        if self._unsaved is peers:
            self._unsaved = ()


@asynccontextmanager
async def _remembered_peers(store: Store, clock: Clock) -> AsyncIterator[StoredPeers]:
    """The block is the life of the node; its last save is written after it. An exception comes out as it was."""
    book = StoredPeers(store, clock, await store.known_peers(count_max=p2p.interface.ADDRESS_BOOK_PEERS_MAX))
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(book.run)
        try:
            yield book
        except BaseException as error:  # handed on below, outside of the nursery
            failure = error
        nursery.cancel_scope.cancel()
    with trio.move_on_after(LAST_SAVE_S) as scope:
        scope.shield = True
        await book.flush()
    if failure is not None:
        raise failure


def warm_up() -> None:
    """Import what `open_network` will need, a second or two of work. Call it in a thread while waiting for others."""
    import p2p.driver  # noqa: F401


def peer_of_seed(seed: Secret) -> PeerId:
    """The peer id that a key seed gives."""
    return PeerId(peer_id_of_seed(seed.reveal()))


class PeerNetwork(Network):
    """A `p2p` node, of either kind (sockets or memory), as the roles see it. Does not own the node."""

    def __init__(self, node: p2p.Node, *, seed: Secret) -> None:
        self._node = node
        self._seed = seed
        self._peer_key = public_key_of_seed(seed.reveal())

    @property
    def peer(self) -> PeerId:
        """Our own peer id."""
        return PeerId(self._node.peer)

    @property
    def peer_key(self) -> bytes:
        """P's public half."""
        return self._peer_key

    def sign(self, message: bytes) -> bytes:
        """P's signature over these bytes."""
        signed = nacl.bindings.crypto_sign(message, self._seed.reveal() + self._peer_key)
        return bytes(signed[: nacl.bindings.crypto_sign_BYTES])

    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs, each ending in `/p2p/<peer>`."""
        return tuple(self._node.addresses())

    async def wait_connected(self, *, timeout_s: float) -> None:
        """Return once another peer is connected; raises `Unavailable` with every dial that failed."""
        with _mapped():
            await self._node.wait_connected(timeout_s=timeout_s)

    async def connect(self, target: PeerAddresses) -> None:
        """Be connected to the peer. Raises `Unavailable`."""
        with _mapped():
            await self._node.connect(target.peer, _without_peer(target))

    async def open_stream(self, target: PeerAddresses, protocol: str, *, frame_bytes_max: int) -> Stream:
        """A new stream, dialling if needed. Raises `Unavailable`."""
        with _mapped():
            stream = await self._node.open_stream(
                target.peer, protocol, addresses=_without_peer(target), frame_bytes_max=frame_bytes_max
            )
        return PeerStream(stream)

    def handle(self, protocol: str, handler: Handler, *, frame_bytes_max: int, streams_per_peer_max: int = 4) -> None:
        """Serve a protocol."""

        async def serve(stream: p2p.Stream) -> None:
            try:
                await handler(PeerStream(stream))
            except RemoteProtocolError:
                await stream.reset()  # the peer's doing: it sees the stream break, and we have nothing to report

        with _mapped():
            self._node.handle(
                protocol, serve, frame_bytes_max=frame_bytes_max, streams_per_peer_max=streams_per_peer_max
            )

    async def subscribe(self, topic: str, validator: Validator) -> Subscription:
        """Join a topic."""

        def judge(forwarder: p2p.PeerId, data: bytes) -> p2p.Verdict:
            return _VERDICTS[validator(PeerId(forwarder), data)]

        with _mapped():
            return PeerSubscription(await self._node.subscribe(topic, judge))

    async def publish(self, topic: str, data: bytes) -> int:
        """Gossip a message."""
        with _mapped():
            return await self._node.publish(topic, data)

    async def provide(self, key: bytes) -> None:
        """Announce in the DHT. Raises `Unavailable` when no other peer could be told."""
        with _mapped():
            await self._node.provide(key)

    async def find_providers(self, key: bytes, *, count_max: int) -> tuple[PeerAddresses, ...]:
        """Who provides this key. Raises `Unavailable` when there is nobody to ask."""
        with _mapped():
            found = await self._node.find_providers(key, count_max=count_max)
        return tuple(PeerAddresses(peer=PeerId(info.peer), addresses=info.addresses) for info in found)

    def connections(self) -> tuple[Connection, ...]:
        """Live connections."""
        return tuple(
            Connection(
                peer=PeerId(info.peer),
                address=info.address,
                outbound=info.direction is p2p.Direction.OUTBOUND,
                opened_ns=info.opened_at,
                agent=info.agent or "",
            )
            for info in self._node.connections()
        )

    def dial_failures(self) -> tuple[DialFailure, ...]:
        """Recent failed dials, newest first."""
        return tuple(
            DialFailure(peer=PeerId(failed.peer), address=failed.address, reason=failed.reason, at_ns=failed.at)
            for failed in self._node.dial_failures()
        )

    def reachability(self) -> p2p.Reachability:
        """How others can reach us, as they said themselves."""
        return self._node.reachability()

    def statistics(self) -> p2p.Statistics:
        """Counters since the start."""
        return self._node.statistics()


class PeerStream(Stream):
    """A `p2p` stream as the roles see it: a clean end is None, everything else is `StreamBroken`."""

    __slots__ = ("_stream",)

    def __init__(self, stream: p2p.Stream) -> None:
        self._stream = stream

    @property
    def peer(self) -> PeerId:
        """The authenticated peer at the other end."""
        return PeerId(self._stream.peer)

    async def send(self, frame: bytes) -> None:
        """Send one frame. Raises `StreamBroken`; `LocalProtocolError` when the frame is over the bound."""
        try:
            await self._stream.send(frame)
        except p2p.P2PError as error:
            raise _translate(error) from error

    async def receive(self) -> bytes | None:
        """The next frame, or None after a clean end."""
        try:
            return await self._stream.receive()
        except p2p.StreamClosed:
            return None
        except p2p.P2PError as error:
            raise _translate(error) from error

    async def aclose(self) -> None:
        """End both directions."""
        await self._stream.aclose()


class PeerSubscription(Subscription):
    """Accepted messages of one topic."""

    def __init__(self, subscription: p2p.Subscription) -> None:
        self._subscription = subscription

    def __aiter__(self) -> AsyncIterator[GossipMessage]:
        return self

    async def __anext__(self) -> GossipMessage:
        message = await self._subscription.__anext__()
        return GossipMessage(topic=message.topic, data=message.data, forwarder=PeerId(message.forwarder))

    async def aclose(self) -> None:
        """Leave the topic."""
        await self._subscription.aclose()


_VERDICTS = {
    Verdict.ACCEPT: p2p.Verdict.ACCEPT,
    Verdict.REJECT: p2p.Verdict.REJECT,
    Verdict.IGNORE: p2p.Verdict.IGNORE,
}

# Most specific first: the first row whose class matches gives the error.
_ERRORS: tuple[tuple[type[p2p.P2PError], type[CocoonError]], ...] = (
    (p2p.FrameTooLarge, LimitExceeded),
    (p2p.StreamError, StreamBroken),
    (p2p.MessageTooLarge, LocalProtocolError),
    (p2p.GossipDisabled, LocalProtocolError),
    (p2p.SettingsInvalid, LocalProtocolError),
    (p2p.P2PError, Unavailable),
)


def _translate(error: p2p.P2PError) -> CocoonError:
    for known, ours in _ERRORS:
        if isinstance(error, known):
            return ours(str(error))
    raise AssertionError("the last row matches every P2PError")


@contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except p2p.P2PError as error:
        raise _translate(error) from error


@contextmanager
def _mapped_while_opening() -> Iterator[None]:
    """The same errors mean something else before the node stands: the person's own settings are at fault."""
    try:
        yield
    except p2p.ListenFailed as error:
        raise ConfigError(
            str(error), advice="Choose another address with --listen, or stop the program that uses this one."
        ) from error
    except (p2p.SettingsInvalid, p2p.AddressInvalid, p2p.PeerIdInvalid) as error:
        raise ConfigError(str(error), advice="An address looks like /ip4/192.0.2.7/tcp/4642/p2p/12D3KooW…") from error
    except p2p.P2PError as error:
        raise _translate(error) from error


def _without_peer(target: PeerAddresses) -> tuple[str, ...]:
    """The addresses as `p2p` wants them: without the trailing peer, and only those that mean this peer."""
    kept = []
    for text in target.addresses:
        try:
            address = parse_address(text)
        except p2p.AddressInvalid:
            kept.append(text)  # p2p reports it as a failure of this one address, with the others
            continue
        if address.peer in (None, target.peer):
            kept.append(str(address.without_peer))
    return tuple(kept)
