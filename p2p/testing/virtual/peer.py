"""One peer of a virtual network: the real gossip router and the real DHT node, and what they have told so far.

Attackers are subclasses that answer otherwise: override `on_rpc`, `on_question` or `on_time`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from p2p import gossip, kad
from p2p.gossip import GossipSettings, Message, Router, Rpc
from p2p.interface import RecordValidator
from p2p.kad import KadMessage, KadNode, KadSettings, Result

if TYPE_CHECKING:
    from p2p.testing.virtual.network import VirtualNetwork

_ED25519_PREFIX = bytes.fromhex("002408011220")  # identity multihash of an ed25519 public key


def id_of(name: str) -> bytes:
    """A peer id of the right form. Nobody knows its private key: virtual peers sign nothing unless told how."""
    return _ED25519_PREFIX + hashlib.sha256(b"virtual peer " + name.encode()).digest()


def ip4_address(host: str, port: int = 4001) -> bytes:
    """/ip4/<host>/tcp/<port> in binary form."""
    return b"\x04" + bytes(map(int, host.split("."))) + b"\x06" + port.to_bytes(2, "big")


class Operation:
    """A lookup of a virtual peer. `result` is None until it has ended."""

    def __init__(self, started_at: int) -> None:
        self.started_at = started_at
        self.ended_at: int | None = None
        self.result: Result | None = None


class VirtualPeer:
    def __init__(
        self,
        network: VirtualNetwork,
        name: str,
        *,
        host: str,
        seed: object,
        gossip_settings: GossipSettings,
        kad_settings: KadSettings,
        validators: Mapping[str, RecordValidator],
        groups_of: kad.GroupsOf,
        sign: Callable[[bytes], bytes] | None,
        verify: Callable[[Message], bool] | None,
        validate: gossip.Validate,
        peer_id: bytes | None,
    ) -> None:
        now = network.now
        self.network = network
        self.name = name
        self.peer = peer_id or id_of(name)
        self.addresses = (ip4_address(host),)
        self.host = host
        self.is_up = True
        self.links: dict[bytes, bool] = {}  # connected peers, and whether we dialled
        self.heard: list[tuple[int, str, bytes]] = []  # time, topic, data
        self.dial_offers: list[bytes] = []  # peers that peer exchange offered
        self.operations: dict[int, Operation] = {}
        self.router = Router(
            self.peer,
            settings=gossip_settings,
            rng=random.Random(f"{seed}/{name}/gossip"),  # noqa: S311 - no secrets in a simulation
            now=now,
            sign=sign,
            verify=verify,
            validate=validate,
        )
        self.kad = KadNode(
            self.peer,
            settings=kad_settings,
            rng=random.Random(f"{seed}/{name}/kad"),  # noqa: S311 - as above
            now=now,
            addresses=lambda: self.addresses,
            validators=validators,
            groups_of=groups_of,
        )

    # --- what a program asks -----------------------------------------------------------------------------

    def join(self, topic: str) -> None:
        self._gossip(self.router.join(topic, now=self.network.now))

    def leave(self, topic: str) -> None:
        self._gossip(self.router.leave(topic, now=self.network.now))

    def publish(self, topic: str, data: bytes) -> None:
        self._gossip(self.router.publish(topic, data, now=self.network.now))

    def find_providers(self, key: bytes, *, count_max: int = 20) -> Operation:
        return self._start(*self.kad.find_providers(key, count_max=count_max, now=self.network.now))

    def provide(self, key: bytes) -> Operation:
        return self._start(*self.kad.provide(key, now=self.network.now))

    def find_peer(self, peer: bytes) -> Operation:
        return self._start(*self.kad.find_peer(peer, now=self.network.now))

    def put_value(self, key: bytes, value: bytes) -> Operation:
        """Raises RecordInvalid."""
        return self._start(*self.kad.put_value(key, value, now=self.network.now))

    def get_value(self, key: bytes) -> Operation:
        return self._start(*self.kad.get_value(key, now=self.network.now))

    def _start(self, operation_id: int, effects: list[kad.Effect]) -> Operation:
        operation = self.operations[operation_id] = Operation(self.network.now)
        self._kad(effects)
        return operation

    # --- what the network says ---------------------------------------------------------------------------

    def on_connected(self, other: VirtualPeer, *, is_outbound: bool) -> None:
        now = self.network.now
        self.links[other.peer] = is_outbound
        self._gossip(
            self.router.peer_changed(
                other.peer, connected=True, now=now, address=other.host, is_outbound=is_outbound, has_idontwant=True
            )
        )
        if not self.network.has_dht:
            return
        self._kad(
            self.kad.peer_changed(
                other.peer,
                connected=True,
                is_server=other.kad.settings.is_server,
                addresses=other.addresses,
                now=now,
            )
        )

    def on_disconnected(self, other: bytes) -> None:
        self.links.pop(other, None)
        self._gossip(self.router.peer_changed(other, connected=False, now=self.network.now))
        if self.network.has_dht:
            self._kad(self.kad.peer_changed(other, connected=False, now=self.network.now))

    def on_rpc(self, source: bytes, rpc: Rpc) -> None:
        self._gossip(self.router.receive(source, rpc, now=self.network.now))

    def on_question(self, source: bytes, question: KadMessage) -> KadMessage | None:
        """The answer to a DHT request; None: the stream is reset."""
        for effect in self.kad.receive(source, question, now=self.network.now):
            if isinstance(effect, kad.Send):
                return effect.message
        return None

    def on_answer(self, request_id: int, answer: KadMessage | None) -> None:
        now = self.network.now
        if answer is None:
            self._kad(self.kad.failed(request_id, now=now))
        else:
            self._kad(self.kad.answered(request_id, answer, now=now))

    def on_time(self) -> None:
        now = self.network.now
        if now >= self.router.deadline():
            self._gossip(self.router.on_time(now=now))
        if self.network.has_dht and now >= self.kad.deadline():
            self._kad(self.kad.on_time(now=now))

    def deadline(self) -> int:
        if not self.network.has_dht:
            return self.router.deadline()
        return min(self.router.deadline(), self.kad.deadline())

    # --- effects -----------------------------------------------------------------------------------------

    def _gossip(self, effects: list[gossip.Effect]) -> None:
        for effect in effects:
            if type(effect) is gossip.Send:
                for target in effect.peers:
                    self.network.send_rpc(self, target, effect.rpc)
            elif type(effect) is gossip.Deliver:
                message = effect.message
                self.heard.append((self.network.now, message.topic, message.data))
                self.network.note(b"heard", self.peer, message.id or b"")
            elif type(effect) is gossip.Disconnect:
                self.network.disconnect(self.peer, effect.peer)
            elif type(effect) is gossip.Dial:
                self.dial_offers.append(effect.peer)

    def _kad(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, kad.Ask):
                self.network.ask(self, effect)
            elif isinstance(effect, kad.Done):
                operation = self.operations.pop(effect.operation_id, None)
                if operation is not None:
                    operation.result = effect.result
                    operation.ended_at = self.network.now
        self.network.reschedule(self)
