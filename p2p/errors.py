"""The errors of `p2p`: what can go wrong between peers, and whose doing it was.

`p2p` knows nothing of `cocoon`; `cocoon.adapters.network` maps these once. Texts hold peer ids, addresses,
protocol names and sizes only: never a frame's content, never a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2p.interface import DialFailure


class P2PError(Exception):
    """Root of every error that crosses the border of `p2p`."""


class SettingsInvalid(P2PError):
    """A setting or argument of the local program is wrong."""


class AddressInvalid(P2PError):
    """A multiaddr does not parse, or is of a kind this program does not know."""


class AddressRefused(P2PError):
    """A well-formed address that the dial policy forbids (private, loopback, multicast: rule G4)."""


class PeerIdInvalid(P2PError):
    """Not the base58 identifier of an ed25519 peer key."""


class NodeClosed(P2PError):
    """The local node has been closed."""


class ListenFailed(P2PError):
    """A listen address could not be bound: in use, not ours, or not permitted."""


class PeerUnreachable(P2PError):
    """The peer could not be reached, or does not answer. Root of the dial and open errors."""


class DialFailed(PeerUnreachable):
    """No address of the peer could be reached. `failures` says for each address why."""

    def __init__(self, peer: str, failures: Sequence[DialFailure]) -> None:
        listed = "; ".join(f"{f.address}: {f.reason}" for f in failures) or "no address known"
        super().__init__(f"cannot reach {peer}: {listed}")
        self.peer = peer
        self.failures = tuple(failures)


class NotConnected(PeerUnreachable):
    """Too few peers were connected in time. `failures` are the latest dial failures."""

    def __init__(self, message: str, failures: Sequence[DialFailure] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(failures)


class OpenFailed(PeerUnreachable):
    """The connection stands, but no stream could be opened on it in time."""


class ProtocolUnsupported(OpenFailed):
    """The peer answered, and does not speak the protocol."""


class StreamLimitReached(OpenFailed):
    """As many streams to this peer are open as the connection allows. Try again when one has ended."""


class PeerNotFound(P2PError):
    """The DHT knows no address of the peer."""


class DhtFailed(P2PError):
    """A DHT operation could not be carried out at all: switched off, or no peer to ask."""


class RecordInvalid(P2PError):
    """A DHT value that a validator, or a bound, refuses."""


class GossipDisabled(P2PError):
    """This node was opened without gossip."""


class MessageTooLarge(P2PError):
    """A message of the local program is over the size its receiver would take; nothing was sent."""


class StreamError(P2PError):
    """Root of what ends or spoils a stream."""


class StreamClosed(StreamError):
    """The stream has ended in order: the peer closed its side between two frames, or we closed ours."""


class StreamReset(StreamError):
    """The stream broke: reset by either side, the connection was lost, or it ended inside a frame."""


class FrameTooLarge(StreamError):
    """The peer announced a frame over the bound. Raised before the frame is read; the stream is reset."""


class FrameInvalid(StreamError):
    """The peer's length prefix is not a shortest-form uvarint. The stream is reset."""
