"""The contract of `p2p.interface`, as plain async functions: each takes something that opens nodes, and raises
AssertionError where a promise is broken. Every implementation passes all of `CHECKS`.

They run in real time and in virtual time, so they wait for conditions, never for a guess.
"""

from p2p.testing.contract import connections, dht, gossip, streams
from p2p.testing.contract.tools import CHECKS, Check, OpenNode

__all__ = ["CHECKS", "Check", "OpenNode", "connections", "dht", "gossip", "streams"]
