"""libp2p's swarm with its dialling and admission replaced (traps 4, 5, 9 and 10, and the dial policy).

Dialling: every address side by side, no 250 ms wait, no negative cache, and never an address that the policy
forbids, whoever asks: we, the DHT or gossip. Admission: a place is held for as long as a connection lives,
not, as in the library, for as long as the node does. Overrides private names of libp2p 0.8.1.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import trio
from libp2p.abc import IMuxedConn, INetConn
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.transport.exceptions import SecurityUpgradeFailure
from multiaddr import Multiaddr

from p2p.addresses import Address, DialPolicy, HostKind, Transport, parse_address
from p2p.banned import BanList
from p2p.counters import Counters
from p2p.errors import AddressInvalid, AddressRefused, DialFailed, P2PError
from p2p.interface import DialFailure, Limits

log = logging.getLogger("p2p")

CONNECTIONS_PER_PEER_MAX = 4  # two when dials cross, two more for a peer that came back before we noticed
NAME_ADDRESSES_MAX = 4  # of what a host name resolves to
CLOSE_TIMEOUT_S = 3.0
QUIC_WAIT_S = 0.25  # the head start of a peer's other addresses: QUIC costs several times as much CPU here


def connection_config(limits: Limits) -> ConnectionConfig:
    return ConnectionConfig(
        max_connections=limits.connections_max,
        high_watermark=limits.connections_max,
        low_watermark=0,  # never dial on its own account: rule G4
        min_connections=0,
        max_connections_per_peer=CONNECTIONS_PER_PEER_MAX,
        inbound_upgrade_timeout=limits.handshake_timeout_s,
        outbound_upgrade_timeout=limits.dial_timeout_s,
        inbound_stream_protocol_negotiation_timeout=limits.handshake_timeout_s,
        outbound_stream_protocol_negotiation_timeout=limits.open_timeout_s,
    )


class _NoAutoConnector(AutoConnector):  # type: ignore[misc]
    """The library dials peers of its address book by itself, up to half of the maximum, whatever the low
    watermark says. Rule G4: only selected candidates are dialled."""

    async def run_background_task(self, nursery: trio.Nursery) -> None:
        return None

    async def maybe_connect(self) -> None:
        return None


class CocoonSwarm(Swarm):  # type: ignore[misc]
    def __init__(self, *args: Any, limits: Limits, policy: DialPolicy, counters: Counters, **kwargs: Any) -> None:
        super().__init__(*args, connection_config=connection_config(limits), **kwargs)
        self.limits = limits
        self.policy = policy
        self.counters = counters
        self.failures: deque[DialFailure] = deque(maxlen=limits.dial_failures_kept_max)
        self.auto_connector = _NoAutoConnector(swarm=self)
        self.bans = BanList()
        self._turns: dict[ID, tuple[trio.Lock, list[None]]] = {}
        self._inbound = 0

    # --- dialling ----------------------------------------------------------------------------------------

    def live_connections(self, peer_id: ID) -> list[INetConn]:
        """Direct ones before relayed ones, older ones before newer ones."""
        live = [c for c in self.connections.get(peer_id, []) if not c.is_closed and not c.muxed_conn.is_closed]
        return sorted(live, key=is_relayed)

    def direct_connections(self, peer_id: ID) -> list[INetConn]:
        return [c for c in self.live_connections(peer_id) if not is_relayed(c)]

    async def dial_peer(self, peer_id: ID) -> list[INetConn]:
        """What the library's own parts call: connect to the addresses that the peer store knows."""
        if live := self.live_connections(peer_id):
            return live
        try:
            return [await self.dial(peer_id, self.known_addresses(peer_id))]
        except DialFailed as error:
            raise SwarmException(str(error)) from error

    def known_addresses(self, peer_id: ID) -> tuple[Address, ...]:
        try:
            known = self.peerstore.addrs(peer_id)
        except PeerStoreError:
            return ()
        addresses = []
        for multiaddr in known:
            try:
                addresses.append(parse_address(str(multiaddr)).without_peer)
            except AddressInvalid:
                continue  # of a transport that we do not have
        return tuple(dict.fromkeys(addresses))

    async def dial(self, peer_id: ID, addresses: Sequence[Address]) -> INetConn:
        """One connection to `peer_id`: an existing one, or the first of `addresses` that works. Concurrent
        calls for one peer take turns, so the later ones find what the first has opened. Raises DialFailed."""
        lock, waiting = self._turns.setdefault(peer_id, (trio.Lock(), []))
        waiting.append(None)
        try:
            async with lock:
                if live := self.live_connections(peer_id):
                    return live[0]
                return await self._dial_all(peer_id, addresses)
        finally:
            waiting.pop()
            if not waiting:
                self._turns.pop(peer_id, None)

    async def _dial_all(self, peer_id: ID, addresses: Sequence[Address]) -> INetConn:
        won: list[INetConn] = []
        failures: list[DialFailure] = []
        places = trio.CapacityLimiter(self.limits.dial_parallel_max)
        async with trio.open_nursery() as nursery:

            async def attempt(address: Address) -> None:
                if address.transport is Transport.QUIC and not others_failed.is_set():
                    with trio.move_on_after(QUIC_WAIT_S):
                        await others_failed.wait()
                async with places:
                    try:
                        won.append(await self._dial_one(peer_id, address))
                    except (DialError, AddressRefused) as error:
                        failures.append(self._note_failure(peer_id, str(address), str(error)))
                        if len(failures) >= others:
                            others_failed.set()
                        return
                nursery.cancel_scope.cancel()

            tried = list(dict.fromkeys(addresses))[: self.limits.addresses_per_dial_max]
            others = sum(address.transport is not Transport.QUIC for address in tried)
            others_failed = trio.Event()
            if not others:
                others_failed.set()
            for address in tried:
                nursery.start_soon(attempt, address)
        if not won:
            if not failures:
                failures.append(self._note_failure(peer_id, "", "no address known"))
            raise DialFailed(str(peer_id), failures)
        for surplus in won[1:]:
            await surplus.close()
        return won[0]

    def _note_failure(self, peer_id: ID, address: str, reason: str) -> DialFailure:
        self.counters.dials_failed += 1
        failure = DialFailure(peer=str(peer_id), address=address, reason=reason, at=time.time_ns())
        self.failures.appendleft(failure)
        return failure

    async def _dial_one(self, peer_id: ID, address: Address) -> INetConn:
        self.policy.check(address)
        if address.relay in (str(peer_id), str(self.get_peer_id())):
            raise DialError("a peer is not its own relay")
        self.counters.dials += 1
        try:
            with trio.fail_after(self.limits.dial_timeout_s):
                last: DialError | AddressRefused | None = None
                for kind, host in await self._resolve(address):
                    try:
                        self.policy.check_host(host)
                        multiaddr = Multiaddr(str(replace(address, kind=kind, host=host, peer=str(peer_id))))
                        return await self._dial_addr_single_attempt(multiaddr, peer_id)
                    except AddressRefused as error:
                        last = error
                    except SwarmException as error:
                        last = DialError(_reason_of(error))
                raise last or DialError("the name has no address")
        except trio.TooSlowError:
            raise DialError(f"timed out after {self.limits.dial_timeout_s:g} s") from None

    async def _resolve(self, address: Address) -> list[tuple[HostKind, str]]:
        if not address.kind.is_name:
            return [(address.kind, address.host)]
        wanted = {HostKind.DNS4: (HostKind.IP4,), HostKind.DNS6: (HostKind.IP6,)}.get(
            address.kind, (HostKind.IP4, HostKind.IP6)
        )
        try:
            found = await trio.socket.getaddrinfo(address.host, address.port, type=trio.socket.SOCK_STREAM)
        except OSError as error:
            raise DialError(f"the name does not resolve: {error.strerror}") from error
        families = {trio.socket.AF_INET: HostKind.IP4, trio.socket.AF_INET6: HostKind.IP6}
        hosts = [(families[family], str(where[0])) for family, _, _, _, where in found if family in families]
        return [pair for pair in dict.fromkeys(hosts) if pair[0] in wanted][:NAME_ADDRESSES_MAX]

    # --- streams -----------------------------------------------------------------------------------------

    async def new_stream(self, peer_id: ID) -> Any:
        """What the library's own parts call: a stream on the newest live connection, dialled if need be."""
        if not self.live_connections(peer_id):
            await self.dial_peer(peer_id)
        live = self.direct_connections(peer_id) or self.live_connections(peer_id)
        try:
            return await live[-1].new_stream()
        except Exception as error:
            raise SwarmException(f"no stream to {peer_id}") from error

    def _trim_connections(self, peer_id: ID) -> None:
        """Crossing dials leave two connections, and each side trimming "the worse" may close both. So both
        stay, and only what exceeds the bound goes, the newest first."""
        connections = [connection for connection in self.connections[peer_id] if not connection.is_closed]
        for surplus in connections[CONNECTIONS_PER_PEER_MAX:]:
            if self.background_nursery is not None:
                self.background_nursery.start_soon(self._close_connection_async, surplus)
        self.connections[peer_id] = connections[:CONNECTIONS_PER_PEER_MAX]

    # --- admission ---------------------------------------------------------------------------------------

    async def send_away(self, peer_id: ID, *, for_s: float) -> None:
        """Close all connections to a peer, and take none from it for a while."""
        self.bans.add(str(peer_id), now=trio.current_time(), for_s=for_s)
        for connection in self.live_connections(peer_id):
            with trio.move_on_after(CLOSE_TIMEOUT_S):
                await connection.close()

    async def add_conn(self, muxed_conn: IMuxedConn, direction: str = "unknown") -> Any:
        """As the library's; only that one which ends while it is being added is not kept for ever: its end removes it
        from a list that it is not in yet. Raises SwarmException."""
        connection = await super().add_conn(muxed_conn, direction=direction)
        if connection.is_closed:
            self.remove_conn(connection)
            await connection._notify_disconnected()  # the library may have said "connected" after it
            raise SwarmException("the connection was closed at once")
        return connection

    async def _handle_inbound_connection(self, connection: Any, maddr: Multiaddr) -> None:
        if self._inbound >= self.limits.connections_max:
            await _close_quietly(connection)
            return
        self._inbound += 1
        try:
            admitted = await self._admit(connection)
            if admitted is not None:
                await admitted.event_closed.wait()
        finally:
            self._inbound -= 1

    async def _admit(self, connection: IMuxedConn) -> Any | None:
        """The swarm's connection, or None: whatever a stranger does here ends his own connection only. Our transports
        bring connections that are secured and muxed."""
        if self.bans.is_banned(str(connection.peer_id), now=trio.current_time()):
            log.debug("connection.refused", extra={"error": "Banned"})
            await _close_quietly(connection)
            return None
        try:
            return await self.add_conn(connection, direction="inbound")
        except Exception as error:
            log.debug("connection.refused", extra={"error": type(error).__name__})
            await _close_quietly(connection)
            return None


def is_relayed(connection: INetConn) -> bool:
    return bool(getattr(connection.muxed_conn, "is_relayed", False))


class RelayRefused(P2PError):
    """The relay would not, or could not, connect us. The text is for `DialFailure.reason`."""


class DialError(Exception):
    """Why one address failed, in words for `DialFailure.reason`."""


async def _close_quietly(connection: Any) -> None:
    try:
        await connection.close()
    except Exception as error:
        log.debug("connection.close_failed", extra={"error": type(error).__name__})


def _reason_of(error: BaseException) -> str:
    """The deepest cause that a person can use, without the library's words around it."""
    cause: BaseException | None = error
    seen: list[BaseException] = []
    while cause is not None and len(seen) < 16:
        seen.append(cause)
        cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__ or cause.__context__
    for known in reversed(seen):
        if isinstance(known, OSError) and known.errno:
            return os.strerror(known.errno).lower()
    for known in reversed(seen):
        if isinstance(known, RelayRefused):
            return str(known)
        if isinstance(known, PeerIDMismatchesPubkey):
            return "another peer answered"
        if isinstance(known, SecurityUpgradeFailure):
            return "the secure handshake failed"
    return f"connection failed: {type(seen[-1]).__name__}"
