"""The connection transport: Noise and yamux on a socket, wire-compatible with libp2p."""

from p2p.transport.link import Link, LinkClosed, LinkStream, open_link
from p2p.transport.machine import Connection, State
from p2p.transport.multistream import NegotiationFailed

__all__ = ["Connection", "Link", "LinkClosed", "LinkStream", "NegotiationFailed", "State", "open_link"]
