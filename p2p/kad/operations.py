"""What a program asks of the DHT, each as a small machine over one lookup.

An operation says which message to send to which peer, takes answers, and ends with a result. It knows no ids of
requests, no time and no table: `KadNode` gives it those.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2p.kad.lookup import Lookup
from p2p.kad.messages import KadMessage, KadPeer, Kind, Record
from p2p.kad.store import ValueStore


@dataclass(frozen=True, slots=True)
class PeerFound:
    peer: KadPeer | None


@dataclass(frozen=True, slots=True)
class ClosestFound:
    peers: tuple[KadPeer, ...]


@dataclass(frozen=True, slots=True)
class ProvidersFound:
    providers: tuple[KadPeer, ...]
    asked: int  # peers that answered: 0 means that nobody could be asked


@dataclass(frozen=True, slots=True)
class Provided:
    told: int


@dataclass(frozen=True, slots=True)
class ValueFound:
    value: bytes | None
    copies: int  # peers that had this very value


@dataclass(frozen=True, slots=True)
class ValuePut:
    told: int


Result = PeerFound | ClosestFound | ProvidersFound | Provided | ValueFound | ValuePut


class Operation:
    """Base: find the closest peers. Subclasses change the question, or go on after the lookup."""

    def __init__(self, lookup: Lookup, *, count: int) -> None:
        self.lookup = lookup
        self._count = count

    def question(self) -> KadMessage:
        """What each peer on the way is asked."""
        return KadMessage(kind=Kind.FIND_NODE, key=self.lookup.key)

    def next_asks(self) -> list[tuple[KadPeer, KadMessage]]:
        question = self.question()
        return [(peer, question) for peer in self.lookup.next_peers()]

    def answered(self, peer: KadPeer, message: KadMessage) -> None:
        self.lookup.answered(peer.peer, message.closer)

    def failed(self, peer: KadPeer) -> None:
        self.lookup.failed(peer.peer)

    @property
    def is_over(self) -> bool:
        return self.lookup.is_over

    def result(self) -> Result:
        return ClosestFound(tuple(self.lookup.closest_answered(self._count)))


class FindPeer(Operation):
    """Ends with the first answer that names the peer with an address."""

    def __init__(self, lookup: Lookup, *, count: int) -> None:
        super().__init__(lookup, count=count)
        self._found: KadPeer | None = None

    def answered(self, peer: KadPeer, message: KadMessage) -> None:
        super().answered(peer, message)
        for known in message.closer:
            if known.peer == self.lookup.key and known.addresses:
                self._found = known
                self.lookup.stop()
                return

    def result(self) -> Result:
        return PeerFound(self._found)


class FindProviders(Operation):
    """Gathers the providers that all answers name, ours first, until there are enough."""

    def __init__(self, lookup: Lookup, *, count: int, known: list[KadPeer], me: bytes) -> None:
        super().__init__(lookup, count=count)
        self._me = me
        self._found: dict[bytes, KadPeer] = {}
        self._asked = 0
        self._collect(tuple(known))

    def question(self) -> KadMessage:
        return KadMessage(kind=Kind.GET_PROVIDERS, key=self.lookup.key)

    def answered(self, peer: KadPeer, message: KadMessage) -> None:
        super().answered(peer, message)
        self._asked += 1
        self._collect(message.providers)

    def _collect(self, providers: tuple[KadPeer, ...]) -> None:
        for provider in providers:
            if provider.peer == self._me:
                continue
            known = self._found.get(provider.peer)
            if known is None or not known.addresses:
                self._found[provider.peer] = provider
        if len(self._found) >= self._count:
            self.lookup.stop()

    def result(self) -> Result:
        return ProvidersFound(tuple(self._found.values())[: self._count], self._asked)


class _Tell(Operation):
    """Find the closest, then tell each of them."""

    def __init__(self, lookup: Lookup, *, count: int, message: KadMessage) -> None:
        super().__init__(lookup, count=count)
        self._message = message
        self._told = 0
        self._waiting: dict[bytes, None] | None = None  # None: still looking

    def next_asks(self) -> list[tuple[KadPeer, KadMessage]]:
        if self._waiting is None:
            if not self.lookup.is_over:
                return super().next_asks()
            closest = self.lookup.closest_answered(self._count)
            self._waiting = {peer.peer: None for peer in closest}
            return [(peer, self._message) for peer in closest]
        return []

    def answered(self, peer: KadPeer, message: KadMessage) -> None:
        if self._waiting is None:
            super().answered(peer, message)
        elif peer.peer in self._waiting:
            del self._waiting[peer.peer]
            self._told += 1

    def failed(self, peer: KadPeer) -> None:
        if self._waiting is None:
            super().failed(peer)
        else:
            self._waiting.pop(peer.peer, None)

    @property
    def is_over(self) -> bool:
        return self._waiting is not None and not self._waiting


class Provide(_Tell):
    def __init__(self, lookup: Lookup, *, count: int, ourselves: KadPeer) -> None:
        message = KadMessage(kind=Kind.ADD_PROVIDER, key=lookup.key, providers=(ourselves,))
        super().__init__(lookup, count=count, message=message)

    def result(self) -> Result:
        return Provided(self._told)


class PutValue(_Tell):
    def __init__(self, lookup: Lookup, *, count: int, value: bytes) -> None:
        message = KadMessage(kind=Kind.PUT_VALUE, key=lookup.key, record=Record(lookup.key, value))
        super().__init__(lookup, count=count, message=message)

    def result(self) -> Result:
        return ValuePut(self._told)


class GetValue(Operation):
    """ "Collect at least Q responses from distinct nodes", keep the best, and correct who had worse."""

    def __init__(self, lookup: Lookup, *, count: int, store: ValueStore, quorum: int, known: bytes | None) -> None:
        super().__init__(lookup, count=count)
        self._store = store
        self._quorum = quorum
        self._best = known
        self._holders: list[KadPeer] = []
        self._outdated: list[KadPeer] = []
        self._responses = 0 if known is None else 1
        self._has_corrected = False

    def question(self) -> KadMessage:
        return KadMessage(kind=Kind.GET_VALUE, key=self.lookup.key)

    def answered(self, peer: KadPeer, message: KadMessage) -> None:
        """A record in it is valid: `KadNode` has seen to that."""
        if self._has_corrected:
            return
        super().answered(peer, message)
        if message.record is None:
            return
        value = message.record.value
        self._responses += 1
        if self._best is None or self._store.better(self.lookup.key, self._best, value):
            self._outdated += self._holders
            self._holders = [peer]
            self._best = value
        elif value == self._best:
            self._holders.append(peer)
        else:
            self._outdated.append(peer)
        if self._responses >= self._quorum:
            self.lookup.stop()

    def next_asks(self) -> list[tuple[KadPeer, KadMessage]]:
        if not self.lookup.is_over:
            return super().next_asks()
        if self._has_corrected or self._best is None:
            return []
        # "Nodes that returned worse records are updated via a direct PUT_VALUE RPC call when the lookup completes"
        self._has_corrected = True
        record = Record(self.lookup.key, self._best)
        message = KadMessage(kind=Kind.PUT_VALUE, key=self.lookup.key, record=record)
        return [(peer, message) for peer in self._outdated]

    def result(self) -> Result:
        return ValueFound(self._best, len(self._holders))
