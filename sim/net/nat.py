"""Who can dial whom, by the class of NAT that a node is behind.

public     anybody dials it
cone       a hole can be punched with help of a relay: it works for PUNCHED of the pairs of cones
symmetric  no hole: other hidden nodes reach it through a relay only

Between a public and a hidden node there is always a direct connection: the hidden one dials, asked to through a relay.

The share is that of DCUtR in the wild, 70 % ± 7.1 % of 4.4 million tries over TCP and QUIC alike (Trautwein and
others, "Challenging Tribal Knowledge", arXiv 2510.27500). Which pairs succeed is a function of their keys, so it does
not change within a run.
"""

from __future__ import annotations

from enum import Enum

from sim.net.latency import pair_uniform

PUNCHED = 0.70
_SALT = 0x9E3779B97F4A7C15  # so that the draw is not the pair's latency again


class Nat(Enum):
    PUBLIC = "public"
    CONE = "cone"
    SYMMETRIC = "symmetric"


class Reach(Enum):
    DIRECT = "direct"
    RELAYED = "relayed"


def reach(dialer: Nat, listener: Nat, *, key_dialer: int, key_listener: int) -> Reach:
    """How a connection from `dialer` to `listener` comes about. Whether there is a relay is the network's to know."""
    if Nat.PUBLIC in (dialer, listener):
        return Reach.DIRECT  # or reversed: a relay tells the hidden side, and that one dials
    if dialer is Nat.CONE and listener is Nat.CONE and pair_uniform(key_dialer ^ _SALT, key_listener) < PUNCHED:
        return Reach.DIRECT
    return Reach.RELAYED
