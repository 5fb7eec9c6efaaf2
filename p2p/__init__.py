"""Cocoon's peer-to-peer network: streams of bounded frames, gossip and a DHT between ed25519 peers.

`p2p` knows nothing of `cocoon`, and importing it does not import libp2p: that happens in `open_node`, in the
one package (`p2p.driver`) that may.

    async with p2p.open_node(p2p.NodeSettings(), key=seed) as node: ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from p2p.errors import (
    AddressInvalid,
    AddressRefused,
    DhtFailed,
    DialFailed,
    FrameInvalid,
    FrameTooLarge,
    GossipDisabled,
    ListenFailed,
    MessageTooLarge,
    NodeClosed,
    NotConnected,
    OpenFailed,
    P2PError,
    PeerIdInvalid,
    PeerNotFound,
    PeerUnreachable,
    ProtocolUnsupported,
    RecordInvalid,
    SettingsInvalid,
    StreamClosed,
    StreamError,
    StreamLimitReached,
    StreamReset,
)
from p2p.interface import (
    AddressBook,
    ConnectionInfo,
    DhtMode,
    DialFailure,
    Direction,
    GossipMessage,
    Limits,
    Node,
    NodeSettings,
    PeerConnected,
    PeerDisconnected,
    PeerEvent,
    PeerEvents,
    PeerId,
    PeerInfo,
    Reach,
    Reachability,
    ReachSettings,
    RecordValidator,
    RelayLimits,
    RelayUse,
    Statistics,
    Stream,
    StreamHandler,
    Subscription,
    Validator,
    Verdict,
)


@asynccontextmanager
async def open_node(settings: NodeSettings, *, key: bytes) -> AsyncIterator[Node]:
    """A node on real sockets, through libp2p. `key` is the 32-byte ed25519 seed of its identity.

    Unreachable bootstrap peers are no error here: see `Node.wait_connected`. Raises ListenFailed,
    SettingsInvalid, AddressInvalid. The first call imports libp2p, which takes a second or two.
    """
    from p2p.driver import open_libp2p_node

    async with open_libp2p_node(settings, key=key) as node:
        yield node


__all__ = [
    "AddressBook",
    "AddressInvalid",
    "AddressRefused",
    "ConnectionInfo",
    "DhtFailed",
    "DhtMode",
    "DialFailed",
    "DialFailure",
    "Direction",
    "FrameInvalid",
    "FrameTooLarge",
    "GossipDisabled",
    "GossipMessage",
    "Limits",
    "ListenFailed",
    "MessageTooLarge",
    "Node",
    "NodeClosed",
    "NodeSettings",
    "NotConnected",
    "OpenFailed",
    "P2PError",
    "PeerConnected",
    "PeerDisconnected",
    "PeerEvent",
    "PeerEvents",
    "PeerId",
    "PeerIdInvalid",
    "PeerInfo",
    "PeerNotFound",
    "PeerUnreachable",
    "ProtocolUnsupported",
    "Reach",
    "ReachSettings",
    "RecordInvalid",
    "RecordValidator",
    "Reachability",
    "RelayLimits",
    "RelayUse",
    "SettingsInvalid",
    "Statistics",
    "Stream",
    "StreamClosed",
    "StreamError",
    "StreamHandler",
    "StreamLimitReached",
    "StreamReset",
    "Subscription",
    "Validator",
    "Verdict",
    "open_node",
]
