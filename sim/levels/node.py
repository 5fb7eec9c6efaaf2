"""One simulated node: its identity, its machines of this session, and its place in the network.

The machines are the shipped ones (`p2p.gossip.Router`, `p2p.kad.KadNode`), made anew each time the node comes up: a
restarted process remembers nothing, except what a market machine has persisted (`sim.levels.market`).

Not here: what happens to effects (`world.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from nacl.bindings import crypto_sign_seed_keypair

from p2p.gossip import Router
from p2p.kad import KadNode
from sim.rng import Stream

_ED25519_PREFIX = bytes.fromhex("002408011220")  # identity multihash of an ed25519 public key
_PORT = (4001).to_bytes(2, "big")

Wrap = Callable[[Any], Any]
"""A machine → what stands in its place: an adversary's own, or the same."""


class Identity:
    """What a node keeps over its restarts; a function of (seed, group, index in the group)."""

    __slots__ = ("addresses", "host", "key", "peer", "seed32")

    def __init__(self, seed: int, group: str, index: int, *, host: str) -> None:
        digest = blake2b(b"%d/%d/%b" % (seed, index, group.encode()), digest_size=40, person=b"sim node").digest()
        self.key = int.from_bytes(digest[:8], "little")  # for the network's draws
        self.seed32 = digest[8:]  # of its ed25519 key
        public, _ = crypto_sign_seed_keypair(self.seed32)
        self.peer = _ED25519_PREFIX + public
        self.host = host
        self.addresses = (b"\x04" + bytes(map(int, host.split("."))) + b"\x06" + _PORT,)


class Node:
    __slots__ = (
        "clock_offset",
        "dialled",
        "group",
        "identity",
        "index",
        "is_up",
        "kad",
        "kad_at",
        "last_now",
        "links",
        "market",
        "number",
        "peer",
        "roles",
        "router",
        "session",
        "state",
        "streams",
        "wraps",
    )

    def __init__(self, number: int, group: str, index: int, roles: tuple[str, ...], identity: Identity) -> None:
        self.number = number
        self.group = group
        self.index = index
        self.roles = roles
        self.identity = identity
        self.peer = identity.peer
        self.is_up = False
        self.session = 0  # how often it has come up: timers of an earlier session are void
        self.router: Router | None = None
        self.kad: KadNode | None = None
        self.kad_at: int | None = None  # when the DHT machine is woken next
        self.links: dict[bytes, Node] = {}  # connected peers
        self.dialled: dict[bytes, None] = {}  # those of them that this node dialled
        self.wraps: list[tuple[Wrap | None, Wrap | None]] = []  # for the router, for the DHT
        self.streams: dict[str, Stream] = {}
        self.clock_offset = 0  # of its wall clock, ns
        self.last_now = 0
        self.market: Any = None  # what the market attaches
        self.state: dict[str, Any] = {}  # for adversaries and chaos

    def __repr__(self) -> str:
        return f"<Node {self.number} {self.group}/{self.index}>"

    @property
    def name(self) -> str:
        return f"{self.group}/{self.index}"
