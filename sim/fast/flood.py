"""First deliveries of one message over a mesh that stands, exactly, and nothing else: a million nodes in a second.

    arrival, hops = flood(rows, source)

Without queues, loss and churn a node's first copy comes by the shortest way, so this is Dijkstra's problem. Buckets as
wide as the shortest delay make it linear (Denardo and Fox, 1979): whatever stands in the bucket of the present is
final, because nothing sent from now on can arrive in it. Duplicates follow by arithmetic: every node forwards once to
each mesh peer but the one it had the message from (`copies`).
"""

from __future__ import annotations

import numpy as np

from sim.errors import WorldInvalid
from sim.fast import state
from sim.fast.jit import kernel, require_speed
from sim.fast.state import Int32, Int64, Rows

NEVER = 2**31 - 1
_RING_MAX = 1 << 20


@kernel
def _flood(nodes: Int32, links: Int32, arrival: Int32, hops: Int32, ring: Int32, after: Int32, where: Int64) -> None:
    """`ring`: first entry per bucket · `after`: next entry of a bucket, per slot of a link · where: source, width."""
    source, width = where
    buckets = len(ring)
    arrival[source] = 0
    waiting = 0
    for slot in range(nodes[source, state.START], nodes[source, state.START] + nodes[source, state.MESH]):
        place = (links[slot, state.DELAY] // width) % buckets
        after[slot] = ring[place]
        ring[place] = slot
        waiting += 1
        if links[slot, state.DELAY] < arrival[links[slot, state.PEER]]:
            arrival[links[slot, state.PEER]] = links[slot, state.DELAY]
            hops[links[slot, state.PEER]] = 1
    bucket = 0
    while waiting > 0:
        slot = int(ring[bucket % buckets])
        ring[bucket % buckets] = -1
        while slot >= 0:
            following = int(after[slot])
            waiting -= 1
            node = int(links[slot, state.PEER])
            at = int(arrival[node])
            after[slot] = -1
            if at // width == bucket and hops[node] > 0:
                depth = hops[node]
                hops[node] = -depth  # settled
                for out in range(nodes[node, state.START], nodes[node, state.START] + nodes[node, state.MESH]):
                    peer = int(links[out, state.PEER])
                    reached = at + links[out, state.DELAY]
                    if reached < arrival[peer]:
                        arrival[peer] = reached
                        hops[peer] = depth + 1
                        place = (reached // width) % buckets
                        after[out] = ring[place]
                        ring[place] = out
                        waiting += 1
            slot = following
        bucket += 1


def flood(rows: Rows, source: int) -> tuple[Int32, Int32]:
    """Ticks until each node has its first copy (NEVER where none comes), and over how many hops; 0 at the source.
    Raises NumbaMissing, WorldInvalid."""
    count = len(rows.nodes)
    require_speed(count)
    delays = rows.links[:, state.DELAY]
    width = max(1, int(delays.min(initial=NEVER)))
    buckets = int(delays.max(initial=1)) // width + 2
    if buckets > _RING_MAX:
        raise WorldInvalid("the longest delay is a million times the shortest: use the calendar instead")
    arrival = np.full(count, NEVER, np.int32)
    hops = np.zeros(count, np.int32)
    ring = np.full(buckets, -1, np.int32)
    after = np.full(len(rows.links), -1, np.int32)
    _flood(rows.nodes, rows.links, arrival, hops, ring, after, np.array([source, width], np.int64))
    return arrival, np.abs(hops)


def copies(rows: Rows, source: int) -> int:
    """Messages sent when all is over: everybody forwards once to its mesh, less the link it came by."""
    reached = int((flood(rows, source)[0] != NEVER).sum())
    return int(rows.nodes[:, state.MESH].sum()) - (reached - 1)
