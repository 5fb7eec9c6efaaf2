"""For tests of programs that use `p2p`: a network in memory, and the contract that every implementation of the
interface passes. Nothing here opens a socket or imports libp2p."""

from p2p.testing.memory import MemoryNetwork

__all__ = ["MemoryNetwork"]
