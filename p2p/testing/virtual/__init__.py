"""The overlay in virtual time: thousands of gossip routers and DHT nodes in one process, no sockets, no bytes, and no
clock but the simulation's. `network.py` first."""

from p2p.testing.virtual.faults import Faults
from p2p.testing.virtual.network import VirtualNetwork
from p2p.testing.virtual.peer import Operation, VirtualPeer, id_of, ip4_address

__all__ = ["Faults", "Operation", "VirtualNetwork", "VirtualPeer", "id_of", "ip4_address"]
