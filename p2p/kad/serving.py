"""The server's half of a DHT node: one request in, one answer or refusal out. kad-dht/README.md, "RPC messages"."""

from __future__ import annotations

from dataclasses import dataclass

from p2p.errors import RecordInvalid
from p2p.kad.keys import is_multihash
from p2p.kad.messages import KadMessage, KadPeer, Kind, Record, kad_id
from p2p.kad.settings import KadSettings
from p2p.kad.store import ProviderStore, ValueStore
from p2p.kad.table import Entry, RoutingTable


@dataclass(frozen=True, slots=True)
class Send:
    """The answer to the request that `receive` was called with."""

    peer: bytes
    message: KadMessage


@dataclass(frozen=True, slots=True)
class Refuse:
    """ "On any error, the stream is reset." `is_hostile`: nobody honest sends such a request."""

    peer: bytes
    is_hostile: bool = False


class Server:
    def __init__(
        self,
        me: bytes,
        settings: KadSettings,
        *,
        table: RoutingTable,
        providers: ProviderStore,
        values: ValueStore,
    ) -> None:
        self._id = kad_id(me)
        self._settings = settings
        self._table = table
        self._providers = providers
        self._values = values

    def receive(self, peer: bytes, message: KadMessage, *, now: int) -> list[Send | Refuse]:
        """Nothing: the request is taken, and its kind has no answer. A client refuses everything (rule H2)."""
        if not self._settings.is_server:
            return [Refuse(peer)]
        if message.kind is Kind.ADD_PROVIDER:
            return self._add_provider(peer, message, now=now)
        answer = self._answer(peer, message, now=now)
        return [Refuse(peer, is_hostile=_is_malformed(message)) if answer is None else Send(peer, answer)]

    def _answer(self, peer: bytes, message: KadMessage, *, now: int) -> KadMessage | None:
        key = message.key
        match message.kind:
            case Kind.PING:
                return KadMessage(kind=Kind.PING)
            case Kind.FIND_NODE if key:
                return KadMessage(kind=Kind.FIND_NODE, key=key, closer=self._closer(key, peer))
            case Kind.GET_PROVIDERS if key:
                return KadMessage(
                    kind=Kind.GET_PROVIDERS,
                    key=key,
                    closer=self._closer(key, peer),
                    providers=tuple(self._providers.get(key, now=now)),
                )
            case Kind.GET_VALUE if key:
                value = self._values.get(key, now=now)
                record = None if value is None else Record(key, value)
                return KadMessage(kind=Kind.GET_VALUE, key=key, record=record, closer=self._closer(key, peer))
            case Kind.PUT_VALUE if key and message.record is not None:
                try:
                    self._values.put(key, message.record, now=now)
                except RecordInvalid:
                    return None  # "The record is rejected if the validation fails."
                return KadMessage(kind=Kind.PUT_VALUE, key=key, record=message.record)
            case _:
                return None

    def _add_provider(self, peer: bytes, message: KadMessage, *, now: int) -> list[Send | Refuse]:
        """ "The target node verifies `key` is a valid CID" (of which only the multihash is sent), "all providerPeers
        that match the RPC sender's PeerID are recorded". There is no answer, also when our store is full."""
        sender = [provider for provider in message.providers if provider.peer == peer]
        if not message.key or not sender:
            return [Refuse(peer, is_hostile=True)]  # a record for somebody else
        if not is_multihash(message.key):
            return [Refuse(peer)]
        if not self._providers.is_crowded or self._is_near(message.key):
            self._providers.add(message.key, sender[0], now=now)
        return []

    def _is_near(self, key: bytes) -> bool:
        """Are we among the 2k nodes that we know to be nearest to the key? Else it is not ours to keep."""
        target = kad_id(key)
        count = 2 * self._settings.replication
        closest = self._table.closest(target, count)
        return len(closest) < count or self._id ^ target < closest[-1].id ^ target

    def _closer(self, key: bytes, asker: bytes) -> tuple[KadPeer, ...]:
        count = self._settings.replication
        entries = self._table.closest(kad_id(key), count + 1)
        return tuple([public(entry) for entry in entries if entry.peer != asker][:count])


def public(entry: Entry) -> KadPeer:
    """What others are told of an entry."""
    return KadPeer(entry.peer, entry.addresses)


def _is_malformed(message: KadMessage) -> bool:
    return not message.key or (message.kind is Kind.PUT_VALUE and message.record is None)
