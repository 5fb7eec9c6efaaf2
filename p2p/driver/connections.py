"""The connection manager: not too many, protected ones kept, lost ones dialled again, addresses remembered.

What to close is decided by `p2p.trimming`; this file looks once in a while and acts. Not here: admission at the hard
limit (`swarm.py`), quotas of streams (`p2p.serving`).
"""

from __future__ import annotations

import logging
import random
import time
from collections import OrderedDict
from collections.abc import Sequence

import trio
from libp2p.abc import INetConn
from libp2p.peer.id import ID

from p2p.addresses import Address, parse_address, parse_addresses_of
from p2p.driver.swarm import CocoonSwarm, is_relayed
from p2p.driver.watch import ConnectionWatch
from p2p.errors import AddressInvalid, DialFailed, PeerIdInvalid, SettingsInvalid
from p2p.identity import peer_id_to_bytes
from p2p.interface import ADDRESS_BOOK_PEERS_MAX, AddressBook, Limits, PeerId, PeerInfo
from p2p.trimming import Held, choose_to_close
from p2p.watch import PeerWatch, keep_connected

log = logging.getLogger("p2p")

TRIM_S = 2.0  # 448 connections are no emergency; the hard limit is 512
UNREAD_S = 0.25  # what a fast network brings in this time is the overshoot
NOTE_S = 1.0  # after a change; more changes may come with it
SAVE_FIRST_S = 5.0
SAVE_S = 60.0
CACHED_WAIT_S = 5.0  # the bootstrap peers' head start, and the pause between two tries
CACHED_WAIT_MAX_S = 300.0
CACHED_PEERS_DIALLED_MAX = 4  # at one time, of those of earlier runs
ADDRESSES_PER_PEER_MAX = 16
CLOSE_TIMEOUT_S = 3.0
BANNED_TRIMMED_S = 20.0  # it has done nothing wrong; but who comes back at once is sent away at once, round and round
BANNED_OVERFULL_S = 60.0
ADDRESS_TTL_S = 24 * 3600


class ConnectionManager:
    def __init__(
        self,
        swarm: CocoonSwarm,
        *,
        watch: PeerWatch,
        connections: ConnectionWatch,
        limits: Limits,
        book: AddressBook | None,
    ) -> None:
        self._swarm = swarm
        self._watch = watch
        self._connections = connections
        self._limits = limits
        self._book = book
        self._protected: dict[PeerId, trio.CancelScope] = {}
        self._good: OrderedDict[PeerId, tuple[str, ...]] = OrderedDict()  # the latest last
        self._is_changed = False
        self._nursery: trio.Nursery | None = None
        self.trimmed = 0

    def start(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        nursery.start_soon(self._trim_again_and_again)
        nursery.start_soon(self._bound_unread_bytes)
        if self._book is not None:
            self._load(self._book)
            nursery.start_soon(self._remember, self._book)
            nursery.start_soon(self._try_cached_peers)

    def close(self) -> None:
        if self._book is not None:
            self._note_good()
            self._save(self._book)

    # --- protection --------------------------------------------------------------------------------------

    def protect(self, peer: PeerId, addresses: Sequence[str]) -> None:
        peer_id = ID(peer_id_to_bytes(peer))
        given = parse_addresses_of(peer, addresses)
        if self._nursery is None or peer == str(self._swarm.get_peer_id()):
            return
        if peer not in self._protected and len(self._protected) >= self._limits.protected_peers_max:
            raise SettingsInvalid(f"at most {self._limits.protected_peers_max} peers can be protected")
        self.unprotect(peer)
        self._swarm.bans.lift(peer)
        scope = self._protected[peer] = trio.CancelScope()
        self._nursery.start_soon(self._keep, peer_id, given, scope)

    def unprotect(self, peer: PeerId) -> None:
        scope = self._protected.pop(peer, None)
        if scope is not None:
            scope.cancel()

    def is_protected(self, peer: PeerId) -> bool:
        return peer in self._protected

    async def _keep(self, peer_id: ID, given: Sequence[Address], scope: trio.CancelScope) -> None:
        async def wait_lost() -> None:
            while self._swarm.live_connections(peer_id):
                await self._watch.wait_change()

        async def dial() -> None:
            await self._swarm.dial(peer_id, list(given) or self._swarm.known_addresses(peer_id))

        with scope:
            await keep_connected(dial, wait_lost, random.Random())  # noqa: S311 - spreads load, nothing secret

    # --- bounds ------------------------------------------------------------------------------------------

    async def _trim_again_and_again(self) -> None:
        while True:
            await trio.sleep(TRIM_S)
            await self.trim()

    async def trim(self) -> None:
        """Close what is too much now."""
        open_now = {id(c): c for c in self._swarm.get_connections() if not c.is_closed}
        held = [
            Held(
                key=key,
                peer=str(c.muxed_conn.peer_id),
                opened_at=self._connections.opened_at(c),
                streams=_streams(c),
                protected=self.is_protected(str(c.muxed_conn.peer_id)),
                inbound=c.direction.name == "INBOUND",
            )
            for key, c in open_now.items()
        ]
        chosen = choose_to_close(
            held, high=self._limits.connections_high, low=self._limits.connections_low, now=time.time_ns()
        )
        if chosen:
            log.info("connections.trimmed", extra={"closed": len(chosen), "open": len(held)})
        for key in chosen:
            self._swarm.bans.add(str(open_now[key].muxed_conn.peer_id), now=trio.current_time(), for_s=BANNED_TRIMMED_S)
            await self._close(open_now[key])
            self.trimmed += 1

    async def _bound_unread_bytes(self) -> None:
        """Each connection is bounded by itself; this bounds their sum."""
        while True:
            await trio.sleep(UNREAD_S)
            while True:
                connections = [c for c in self._swarm.get_connections() if not c.muxed_conn.is_closed]
                if sum(map(_unread_bytes, connections)) <= self._limits.unread_bytes_total_max:
                    break
                fullest = max(connections, key=_unread_bytes)
                log.warning("connections.too_much_unread", extra={"peer": str(fullest.muxed_conn.peer_id)})
                await self._swarm.send_away(fullest.muxed_conn.peer_id, for_s=BANNED_OVERFULL_S)

    async def _close(self, connection: INetConn) -> None:
        with trio.move_on_after(CLOSE_TIMEOUT_S):
            await connection.close()

    # --- addresses from one run to the next --------------------------------------------------------------

    def _load(self, book: AddressBook) -> None:
        for info in reversed(list(book.load())[:ADDRESS_BOOK_PEERS_MAX]):
            try:
                peer_id_to_bytes(info.peer)
                addresses = parse_addresses_of(info.peer, info.addresses)
            except (AddressInvalid, PeerIdInvalid):
                continue
            if addresses and info.peer != str(self._swarm.get_peer_id()):
                self._good[info.peer] = tuple(map(str, addresses[:ADDRESSES_PER_PEER_MAX]))

    async def _remember(self, book: AddressBook) -> None:
        """Peers are noted at once, because those of a look-up are soon gone; the book is told now and then."""
        save_at = trio.current_time() + SAVE_FIRST_S
        while True:
            with trio.move_on_after(SAVE_FIRST_S):
                await self._watch.wait_change()
            await trio.sleep(NOTE_S)
            self._note_good()
            if trio.current_time() >= save_at:
                self._save(book)
                save_at = trio.current_time() + SAVE_S

    def _note_good(self) -> None:
        """The addresses that we have dialled and that answered, directly, are worth keeping."""
        for connection in self._swarm.get_connections():
            if connection.direction.name == "INBOUND" or is_relayed(connection):
                continue
            addresses = connection.muxed_conn.get_transport_addresses()
            if not addresses:
                continue
            peer, address = str(connection.muxed_conn.peer_id), str(addresses[0])
            earlier = self._good.pop(peer, ())
            self._good[peer] = tuple(dict.fromkeys((address, *earlier)))[:ADDRESSES_PER_PEER_MAX]
            self._is_changed = self._is_changed or earlier != self._good[peer]
        while len(self._good) > ADDRESS_BOOK_PEERS_MAX:
            self._good.popitem(last=False)

    def _save(self, book: AddressBook) -> None:
        if self._is_changed:
            self._is_changed = False
            try:
                book.save([PeerInfo(peer=peer, addresses=found) for peer, found in reversed(self._good.items())])
            except Exception as error:  # the program's own store: the network goes on without it
                log.warning("address_book.save_failed", extra={"error": type(error).__name__})

    async def _try_cached_peers(self) -> None:
        """While no bootstrap peer answers, some of those who were there before may: a few at a time, until one does.
        Half of them are the latest; the others come by chance, so that nobody who fills the book decides alone."""
        untried: list[PeerId] = []
        wait_s = CACHED_WAIT_S
        while True:
            await trio.sleep(wait_s)
            if self._watch.peers:
                untried, wait_s = [], CACHED_WAIT_S
                continue
            if not untried:
                untried = list(self._good)
            latest = untried[-CACHED_PEERS_DIALLED_MAX // 2 :]
            others = untried[: -len(latest)]
            chosen = latest + random.sample(others, min(CACHED_PEERS_DIALLED_MAX - len(latest), len(others)))
            untried = [peer for peer in untried if peer not in chosen]
            async with trio.open_nursery() as nursery:
                for peer in chosen:
                    nursery.start_soon(self._try, peer)
            if not untried:
                wait_s = min(2 * wait_s, CACHED_WAIT_MAX_S)  # all of them are silent: it may be our own line

    async def _try(self, peer: PeerId) -> None:
        try:
            await self._swarm.dial(ID(peer_id_to_bytes(peer)), [parse_address(a) for a in self._good[peer]])
        except DialFailed:
            pass  # told by dial_failures()


def _streams(connection: INetConn) -> int:
    session = getattr(connection.muxed_conn, "session", None)
    return len(session.streams) if session is not None else 0


def _unread_bytes(connection: INetConn) -> int:
    session = getattr(connection.muxed_conn, "session", None)
    return int(session.unread_bytes) if session is not None else 0
