"""The simulated network: latency, jitter, loss, bandwidth, NAT and partitions. `network.py` first."""

from sim.net.latency import Latency, MatrixLatency, RegionLatency, UniformLatency
from sim.net.nat import Nat, Reach
from sim.net.network import Network
from sim.net.regions import RegionSet, load_matrix, load_regions

__all__ = [
    "Latency",
    "MatrixLatency",
    "Nat",
    "Network",
    "Reach",
    "RegionLatency",
    "RegionSet",
    "UniformLatency",
    "load_matrix",
    "load_regions",
]
