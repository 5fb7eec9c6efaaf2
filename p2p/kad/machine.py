"""A node of the Kademlia DHT as a pure machine: requests, answers, peers and time in; effects out.

    node = KadNode(me, settings=…, rng=random.Random(seed), now=now, addresses=lambda: …)
    operation, effects = node.find_providers(key, count_max=20, now=now)
    effects = node.answered(request_id, message, now=now)      # or garbled, delivered, failed(request_id)
    effects = node.receive(peer, request, now=now)             # the answer on that stream, or Refuse, or nothing
    effects = node.peer_changed(peer, connected=True, is_server=True, addresses=…, now=now)
    effects = node.on_time(now=now)                            # when deadline() has passed

Wire-compatible with libp2p/specs, kad-dht/README.md, whose words are quoted where they are implemented.
The driver carries an Ask to its peer (dialling if need be) and reports every one of them, once.

Keys of providers are SHA-256 digests here and multihashes on the wire (`keys.py`).
Not here: streams, dialling, the dial policy, persistence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from p2p.errors import P2PError, RecordInvalid
from p2p.interface import RecordValidator
from p2p.kad.keys import is_multihash, provider_key
from p2p.kad.lookup import Lookup
from p2p.kad.messages import KadMessage, KadPeer, Kind, Record, kad_id
from p2p.kad.offences import Offences
from p2p.kad.operations import (
    FindPeer,
    FindProviders,
    GetValue,
    Operation,
    Provide,
    PutValue,
    Result,
)
from p2p.kad.serving import Refuse, Send, Server, public
from p2p.kad.settings import NANOSECONDS, KadSettings
from p2p.kad.store import ProviderStore, ValueStore
from p2p.kad.table import GroupsOf, RoutingTable, network_groups
from p2p.randomness import Randomness


@dataclass(frozen=True, slots=True)
class Ask:
    """Send `message` to the peer and report its answer under `request_id`, within the request time-out."""

    request_id: int
    peer: KadPeer
    message: KadMessage

    @property
    def has_answer(self) -> bool:
        """ADD_PROVIDER has none: report `delivered` when it is sent."""
        return self.message.kind is not Kind.ADD_PROVIDER


@dataclass(frozen=True, slots=True)
class Done:
    operation_id: int
    result: Result


Effect = Ask | Send | Refuse | Done


class TooManyOperations(P2PError):
    """Local refusal: as many lookups are running as allowed."""


class _Request(NamedTuple):
    operation_id: int | None  # None: a liveness check
    peer: KadPeer
    message: KadMessage
    deadline: int


class KadNode:
    def __init__(
        self,
        me: bytes,
        *,
        settings: KadSettings,
        rng: Randomness,
        now: int,
        addresses: Callable[[], tuple[bytes, ...]],
        validators: Mapping[str, RecordValidator] | None = None,
        groups_of: GroupsOf = network_groups,
    ) -> None:
        """`addresses`: our own, as others may dial them. `groups_of`: see `table.network_groups`."""
        self._me = me
        self._settings = settings
        self._rng = rng
        self._addresses = addresses
        self._groups_of = groups_of
        self.table = RoutingTable(me, settings, groups_of=groups_of)
        self.offences = Offences(settings)
        self.providers = ProviderStore(settings)
        self.values = ValueStore(settings, validators or {})
        self._server = Server(me, settings, table=self.table, providers=self.providers, values=self.values)
        self._operations: dict[int, tuple[Operation, int]] = {}  # id → operation, deadline
        self._requests: dict[int, _Request] = {}
        self._next_id = 1
        self._own_keys: dict[bytes, int] = {}  # digest → when to announce it again
        self._next_tick = now + int(settings.tick_s * NANOSECONDS)
        self._first_refresh = self._next_refresh = now + int(settings.refresh_first_s * NANOSECONDS)

    @property
    def settings(self) -> KadSettings:
        return self._settings

    # --- what a program asks -------------------------------------------------------------------------------

    def find_peer(self, peer: bytes, *, now: int) -> tuple[int, list[Effect]]:
        """Ends in PeerFound."""
        known = self.table.get(peer)
        lookup = self._lookup(peer, now=now)
        operation = FindPeer(lookup, count=1)
        if known is not None and known.addresses:
            operation.answered(KadPeer(peer), KadMessage(kind=Kind.FIND_NODE, closer=(public(known),)))
        return self._start(operation, now=now)

    def find_closest(self, key: bytes, *, now: int) -> tuple[int, list[Effect]]:
        """Ends in ClosestFound."""
        return self._start(Operation(self._lookup(key, now=now), count=self._settings.replication), now=now)

    def find_providers(self, digest: bytes, *, count_max: int, now: int) -> tuple[int, list[Effect]]:
        """Ends in ProvidersFound, ourselves never among them. `digest`: SHA-256, 32 bytes."""
        key = provider_key(digest)
        known = self.providers.get(key, now=now)
        operation = FindProviders(self._lookup(key, now=now), count=count_max, known=known, me=self._me)
        return self._start(operation, now=now)

    def provide(self, digest: bytes, *, now: int, keep: bool = False) -> tuple[int, list[Effect]]:
        """Ends in Provided. With `keep` it is announced again every `republish_s`, until `stop_providing`."""
        key = provider_key(digest)
        if keep and len(self._own_keys) < self._settings.own_keys_max:
            self._own_keys[digest] = now + int(self._settings.republish_s * NANOSECONDS)
        ourselves = KadPeer(self._me, self._addresses())
        operation = Provide(self._lookup(key, now=now), count=self._settings.replication, ourselves=ourselves)
        return self._start(operation, now=now)

    def stop_providing(self, digest: bytes) -> None:
        self._own_keys.pop(digest, None)

    def put_value(self, key: bytes, value: bytes, *, now: int) -> tuple[int, list[Effect]]:
        """Ends in ValuePut. Raises RecordInvalid for what our own validator refuses."""
        self.values.put(key, Record(key, value), now=now)
        operation = PutValue(self._lookup(key, now=now), count=self._settings.replication, value=value)
        return self._start(operation, now=now)

    def get_value(self, key: bytes, *, now: int) -> tuple[int, list[Effect]]:
        """Ends in ValueFound."""
        operation = GetValue(
            self._lookup(key, now=now),
            count=self._settings.replication,
            store=self.values,
            quorum=self._settings.value_quorum,
            known=self.values.get(key, now=now),
        )
        return self._start(operation, now=now)

    def cancel(self, operation_id: int) -> None:
        """Forget an operation. Its requests may still be answered; nothing comes of it."""
        self._operations.pop(operation_id, None)

    # --- input ---------------------------------------------------------------------------------------------

    def peer_changed(
        self, peer: bytes, *, connected: bool, now: int, is_server: bool = False, addresses: tuple[bytes, ...] = ()
    ) -> list[Effect]:
        """A connected peer that serves our protocol is a candidate for the table. A lost connection says nothing:
        peers of the DHT need not stay connected."""
        if connected and is_server and not self.offences.is_banned(peer, now=now):
            was_empty = len(self.table) == 0
            self.table.heard(peer, addresses, now=now)
            if was_empty and len(self.table):
                self._next_refresh = max(now, self._first_refresh)  # the first peer: look around
        return []

    def receive(self, peer: bytes, message: KadMessage, *, now: int) -> list[Effect]:
        """A request: a Send that answers it, a Refuse, or nothing when it is taken and has no answer."""
        return [*self._server.receive(peer, message, now=now)]

    def answered(self, request_id: int, message: KadMessage, *, now: int) -> list[Effect]:
        """The answer to an Ask. One that does not fit its question counts as none, and against the peer."""
        request = self._requests.get(request_id)
        if request is None:
            return []
        if not self._is_answer(request.message, message):
            return self.garbled(request_id, now=now)
        del self._requests[request_id]
        if not self.offences.is_banned(request.peer.peer, now=now):
            self.table.heard(request.peer.peer, request.peer.addresses, now=now)
        return self._continue(request, message, now=now)

    def garbled(self, request_id: int, *, now: int) -> list[Effect]:
        """An Ask was answered with what no honest peer answers: bytes that are no message of the DHT, if not worse."""
        request = self._requests.get(request_id)
        effects = self.failed(request_id, now=now)
        if request is not None and self.offences.count(request.peer.peer, now=now):
            self.table.remove(request.peer.peer)
        return effects

    def delivered(self, request_id: int, *, now: int) -> list[Effect]:
        """An Ask that has no answer was sent, over a stream that the peer had agreed to."""
        request = self._requests.get(request_id)
        if request is None:
            return []
        return self.answered(request_id, KadMessage(kind=request.message.kind, key=request.message.key), now=now)

    def ban(self, peer: bytes, *, now: int) -> None:
        """Neither in the table nor asked, for `ban_s`: the driver has seen enough of the peer's requests."""
        self.offences.ban(peer, now=now)
        self.table.remove(peer)

    def failed(self, request_id: int, *, now: int) -> list[Effect]:
        """An Ask without an answer: no route, refused, timed out."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return []
        self.table.failed(request.peer.peer)
        return self._continue(request, None, now=now)

    def deadline(self) -> int:
        return min(self._next_tick, self._next_refresh)

    def on_time(self, *, now: int) -> list[Effect]:
        effects: list[Effect] = []
        if now >= self._next_tick:
            self._next_tick = now + int(self._settings.tick_s * NANOSECONDS)
            self.providers.expire(now=now)
            self.values.expire(now=now)
            self.offences.expire(now=now)
            effects += self._give_up(now=now)
            effects += self._check_liveness(now=now)
            effects += self._republish(now=now)
        if now >= self._next_refresh and now >= self._first_refresh:
            effects += self._refresh(now=now)
        return effects

    # --- operations ----------------------------------------------------------------------------------------

    def _lookup(self, key: bytes, *, now: int) -> Lookup:
        if len(self._operations) >= self._settings.lookups_max:
            raise TooManyOperations(f"{len(self._operations)} lookups are running")
        seeds = [public(entry) for entry in self.table.closest(kad_id(key), self._settings.replication)]
        return Lookup(
            key,
            me=self._me,
            seeds=seeds,
            settings=self._settings,
            groups_of=self._groups_of,
            avoid=self.offences.banned(now=now),
        )

    def _start(self, operation: Operation, *, now: int) -> tuple[int, list[Effect]]:
        operation_id = self._take_id()
        deadline = now + int(self._settings.lookup_timeout_s * NANOSECONDS)
        self._operations[operation_id] = (operation, deadline)
        return operation_id, self._advance(operation_id, now=now)

    def _advance(self, operation_id: int, *, now: int) -> list[Effect]:
        operation, _ = self._operations[operation_id]
        effects: list[Effect] = [
            self._ask(operation_id, peer, message, now=now) for peer, message in operation.next_asks()
        ]
        if operation.is_over:
            del self._operations[operation_id]
            effects.append(Done(operation_id, operation.result()))
        return effects

    def _ask(self, operation_id: int | None, peer: KadPeer, message: KadMessage, *, now: int) -> Ask:
        request_id = self._take_id()
        deadline = now + int(self._settings.request_timeout_s * NANOSECONDS)
        self._requests[request_id] = _Request(operation_id, peer, message, deadline)
        return Ask(request_id, peer, message)

    def _continue(self, request: _Request, message: KadMessage | None, *, now: int) -> list[Effect]:
        if request.operation_id is None or request.operation_id not in self._operations:
            return []
        operation, _ = self._operations[request.operation_id]
        if message is None:
            operation.failed(request.peer)
        else:
            operation.answered(request.peer, message)
        return self._advance(request.operation_id, now=now)

    def _is_answer(self, question: KadMessage, answer: KadMessage) -> bool:
        """Could an honest peer have answered this? Some implementations leave out the key, or a record's echo."""
        if answer.kind is not question.kind or answer.key not in (question.key, b""):
            return False
        if not all(is_multihash(known.peer) for known in (*answer.closer, *answer.providers)):
            return False
        if answer.record is None:
            return True
        if question.kind is Kind.PUT_VALUE:
            return answer.record == question.record
        try:
            self.values.validate(question.key, answer.record)
        except RecordInvalid:
            return False  # validators are pure: whoever kept it asked none
        return True

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id

    # --- upkeep --------------------------------------------------------------------------------------------

    def _give_up(self, *, now: int) -> list[Effect]:
        """Requests that the driver never reported, and operations that take too long."""
        effects: list[Effect] = []
        slack = int(self._settings.tick_s * NANOSECONDS)
        for request_id in [i for i, r in self._requests.items() if r.deadline + slack <= now]:
            effects += self.failed(request_id, now=now)
        for operation_id in [i for i, (_, deadline) in self._operations.items() if deadline <= now]:
            operation, _ = self._operations.pop(operation_id)
            effects.append(Done(operation_id, operation.result()))
        return effects

    def _check_liveness(self, *, now: int) -> list[Effect]:
        question = KadMessage(kind=Kind.FIND_NODE, key=self._me)
        return [self._ask(None, public(entry), question, now=now) for entry in self.table.due_for_check(now=now)]

    def _republish(self, *, now: int) -> list[Effect]:
        effects: list[Effect] = []
        for key in [key for key, due in self._own_keys.items() if due <= now]:
            try:
                effects += self.provide(key, now=now, keep=True)[1]
            except TooManyOperations:
                break  # they stay due
        return effects

    def _refresh(self, *, now: int) -> list[Effect]:
        """ "We generate a random node ID and we look it up"; and our own, which fills the nearest buckets."""
        settings = self._settings
        is_empty = len(self.table) < settings.replication // 2
        interval = settings.refresh_interval_empty_s if is_empty else settings.refresh_interval_s
        self._next_refresh = now + int(interval * NANOSECONDS)
        if not len(self.table):
            return []
        effects: list[Effect] = []
        try:
            for key in (self._me, self._rng.randbytes(32)):
                effects += self.find_closest(key, now=now)[1]
        except TooManyOperations:
            pass  # busy nodes learn peers anyway
        return effects
