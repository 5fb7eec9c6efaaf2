"""Rows of connections and what is sent over them: the steps of which `mesh` and `gossip_kernel` are made.

Not here: when they happen.
"""

from __future__ import annotations

import numpy as np

from sim.fast import state
from sim.fast.chance import Words, below, mix, u64, uniform
from sim.fast.jit import inline, njit
from sim.fast.state import Float64, Int32, Int64, Model

_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_11 = np.uint64(11)
_PAIR = np.uint64(0x1F123BB5)
_SCALE = 2.0**-32
_DOUBLE = 2.0**-53
DIAL_WAYS = 6  # three round trips: TCP, Noise, and the stream


# --- rows ------------------------------------------------------------------------------------------------------


@inline
def find(nodes: Int32, links: Int32, owner: int, peer: int) -> int:
    """The slot of that peer in the owner's row, or −1."""
    first = int(nodes[owner, state.START])
    for slot in range(first, first + nodes[owner, state.COUNT]):
        if links[slot, state.PEER] == peer:
            return slot
    return -1


@inline
def is_in_mesh(nodes: Int32, owner: int, slot: int) -> bool:
    return bool(slot < nodes[owner, state.START] + nodes[owner, state.MESH])


@njit
def swap(links: Int32, marks: Int32, a: int, b: int) -> None:
    for column in range(2):
        links[a, column], links[b, column] = links[b, column], links[a, column]
    for column in range(marks.shape[1]):
        marks[a, column], marks[b, column] = marks[b, column], marks[a, column]


@njit
def add(nodes: Int32, links: Int32, marks: Int32, owner: int, peer: int, delay: int, backoff: int) -> bool:
    """A connection at the end of the row. False when the row is full, or has it."""
    if nodes[owner, state.COUNT] == nodes[owner, state.CAPACITY] or find(nodes, links, owner, peer) >= 0:
        return False
    slot = nodes[owner, state.START] + nodes[owner, state.COUNT]
    links[slot, state.PEER] = peer
    links[slot, state.DELAY] = max(delay, 1)
    marks[slot, :] = 0
    marks[slot, state.BACKOFF] = backoff
    nodes[owner, state.COUNT] += 1
    return True


@njit
def join(nodes: Int32, links: Int32, marks: Int32, owner: int, slot: int, now: int) -> int:
    """Into the mesh. Where the slot is now."""
    place = int(nodes[owner, state.START]) + int(nodes[owner, state.MESH])
    if slot < place:
        return slot
    swap(links, marks, slot, place)
    if marks.shape[1] > state.JOINED:
        marks[place, state.JOINED] = now
    nodes[owner, state.MESH] += 1
    return place


@njit
def leave(nodes: Int32, links: Int32, marks: Int32, owner: int, slot: int) -> int:
    """Out of the mesh. Where the slot is now."""
    last = int(nodes[owner, state.START]) + int(nodes[owner, state.MESH]) - 1
    if slot > last:
        return slot
    swap(links, marks, slot, last)
    nodes[owner, state.MESH] -= 1
    return last


@njit
def remove(nodes: Int32, links: Int32, marks: Int32, owner: int, peer: int) -> None:
    slot = find(nodes, links, owner, peer)
    if slot < 0:
        return
    slot = leave(nodes, links, marks, owner, slot)
    nodes[owner, state.COUNT] -= 1
    swap(links, marks, slot, nodes[owner, state.START] + nodes[owner, state.COUNT])


@inline
def pair_delay(core: Int64, reals: Float64, nodes: Int32, matrix: Float64, a: int, b: int) -> int:
    """Ticks from a to b; between two nodes of a uniform network the same both ways."""
    if matrix.size > 1:
        return int(matrix[nodes[a, state.REGION], nodes[b, state.REGION]])
    low, high = reals[state.LATENCY_LOW], reals[state.LATENCY_HIGH]
    word = mix(np.uint64(core[state.SALT]) ^ mix(np.uint64(min(a, b)) * _PAIR + (np.uint64(max(a, b)) << _32)))
    return int(low + (high - low) * (float(word >> _11) * _DOUBLE))


@inline
def is_known(marks: Int32, slot: int, now: int) -> bool:
    """Has the peer's hello come? Who did not say that it is in the topic is not sent anything, until it grafts."""
    return bool(now >= -(int(marks[slot, state.BACKOFF]) >> 1))


@inline
def hello_at(model: Model, at: int) -> int:
    """When a hello that would come at that time comes: never, where it is lost, or where the script says when."""
    loss = model.reals[state.LOSS]
    if not model.core[state.IS_MAINTAINED] or (loss > 0.0 and uniform(model.words) < loss):
        return state.NEVER
    return at


@njit
def connect(model: Model, dialer: int, listener: int, there: int, back: int, now: int) -> bool:
    """Both rows get a slot, or neither. Each may graft the other once its hello is here. `there`, `back`: delays."""
    core, nodes, links, marks = model.core, model.nodes, model.links, model.marks
    if not add(nodes, links, marks, dialer, listener, there, 1 - 2 * hello_at(model, now + back)):
        return False
    back_mark = core[state.OUTBOUND_BOTH] - 2 * hello_at(model, now + there)
    if not add(nodes, links, marks, listener, dialer, back, back_mark):
        remove(nodes, links, marks, dialer, listener)
        core[state.REFUSED] += 1
        return False
    return True


@njit
def drop_row(nodes: Int32, links: Int32, marks: Int32, node: int) -> None:
    """A node has gone: its connections end on both sides, at once."""
    first = int(nodes[node, state.START])
    for slot in range(first, first + nodes[node, state.COUNT]):
        remove(nodes, links, marks, links[slot, state.PEER], node)
    nodes[node, state.COUNT] = 0
    nodes[node, state.MESH] = 0


# --- sending ---------------------------------------------------------------------------------------------------


@inline
def push(core: Int64, ring: Int32, chunks: Int32, events: Int64, first: int, second: int) -> None:
    """An event, by its two words. Never into the bucket that is being read."""
    bucket = first >> (state.TIME_SHIFT + state.BUCKET_SHIFT)
    if bucket <= core[state.BUCKET]:
        bucket = core[state.BUCKET] + 1
    index = bucket & (state.RING - 1)
    chunk = int(ring[index, state.TAIL])
    if chunk < 0 or chunks[chunk, state.USED] == state.CHUNK:
        fresh = core[state.FREE_CHUNK]
        if fresh >= 0:
            core[state.FREE_CHUNK] = chunks[fresh, state.NEXT]
            core[state.FREE_CHUNKS] -= 1
        else:
            fresh = core[state.TOP_CHUNK]
            core[state.TOP_CHUNK] += 1
        chunks[fresh, state.NEXT] = -1
        chunks[fresh, state.USED] = 0
        if chunk < 0:
            ring[index, state.HEAD] = fresh
        else:
            chunks[chunk, state.NEXT] = fresh
        ring[index, state.TAIL] = fresh
        chunk = fresh
    used = int(chunks[chunk, state.USED])
    events[chunk, 2 * used] = first
    events[chunk, 2 * used + 1] = second
    chunks[chunk, state.USED] = used + 1


@inline
def arrival(
    core: Int64, reals: Float64, flows: Float64, words: Words, owner: int, delay: int, size: int, now: int
) -> int:
    """When an RPC gets to the peer: loss, uplink, delay, jitter. −1: never."""
    word = u64(words)
    core[state.SENT_BYTES] += size
    if reals[state.LOSS] > 0.0 and float(word & _LOW) * _SCALE < reals[state.LOSS]:
        core[state.LOST] += 1
        return -1
    departure = float(now)
    if core[state.HAS_BANDWIDTH]:
        per_byte = flows[owner, state.UP_PER_BYTE]
        if per_byte > 0.0:
            begin = max(departure, flows[owner, state.UP_BUSY])
            limit = flows[owner, state.QUEUE_BYTES] * per_byte
            if limit > 0.0 and begin - departure > limit:
                core[state.DROPPED] += 1
                return -1
            departure = begin + size * per_byte
            flows[owner, state.UP_BUSY] = departure
    return int(departure + delay * (1.0 + reals[state.JITTER] * (float(word >> _32) * _SCALE)) + 0.5)


@inline
def words_of(
    core: Int64, flows: Float64, at: int, kind: int, field: int, size: int, peer: int, owner: int
) -> tuple[int, int]:
    """The two words of an event at that time."""
    if core[state.HAS_BANDWIDTH] and flows[peer, state.DOWN_PER_BYTE] > 0.0:
        kind = kind | state.QUEUED
    steps = (size + (1 << state.SIZE_SHIFT) - 1) >> state.SIZE_SHIFT
    first = (at << state.TIME_SHIFT) | (kind << state.KIND_SHIFT) | field
    return first, (steps << 48) | (peer << 24) | owner


@njit
def plan(model: Model, at: int, kind: int, field: int, node: int, other: int) -> None:
    """Something that happens at a node by itself, without a message."""
    first = (at << state.TIME_SHIFT) | (kind << state.KIND_SHIFT) | field
    push(model.core, model.ring, model.chunks, model.events, first, (node << 24) | other)


@njit
def dial(model: Model, node: int, other: int, now: int) -> None:
    """A connection that takes its round trips, or fails in silence."""
    if other != node and model.nodes[other, state.ALIVE]:
        way = pair_delay(model.core, model.reals, model.nodes, model.matrix, node, other)
        plan(model, now + DIAL_WAYS * way, state.DIAL, model.nodes[node, state.SESSION] & 0xFFFF, node, other)


@njit
def dial_some(model: Model, node: int, count: int, now: int) -> None:
    """Different random nodes; who is away is not replaced."""
    picks, made = model.scratch[state.PICKS], 0
    count = min(count, len(picks), len(model.nodes) - 1)
    while made < count:
        other = below(model.words, len(model.nodes))
        is_known = other == node
        for index in range(made):
            is_known = is_known or picks[index] == other
        if not is_known:
            picks[made] = other
            made += 1
            dial(model, node, other, now)


@njit
def plan_upkeep(model: Model, node: int, now: int) -> None:
    period = model.core[state.UPKEEP_TICKS]
    if period > 0:
        at = now + period // 2 + below(model.words, period)
        plan(model, at, state.UPKEEP, model.nodes[node, state.SESSION] & 0xFFFF, node, 0)


@njit
def transmit(model: Model, owner: int, slot: int, kind: int, field: int, size: int, now: int) -> None:
    """One RPC from the owner to the peer of that slot. IHAVE and NEWS carry how long they were under way."""
    core, links = model.core, model.links
    at = arrival(core, model.reals, model.flows, model.words, owner, int(links[slot, state.DELAY]), size, now)
    if at < 0:
        return
    if kind == state.IHAVE or kind == state.NEWS:
        field = min((at - now) >> state.AGE_SHIFT, state.SLOTS_MAX - 1)
    peer = int(links[slot, state.PEER])
    first, second = words_of(core, model.flows, at, kind, field, size, peer, owner)
    push(core, model.ring, model.chunks, model.events, first, second)


@njit
def send_ihave(model: Model, owner: int, slot: int, kind: int, ids: int, now: int) -> None:
    """Counted always; under way only if it can matter: what the peer has, it will not ask for."""
    core, seen = model.core, model.seen
    core[state.SENT_IHAVE] += 1
    told = min(ids, core[state.IDS_MAX])
    size = core[state.IDS_BYTES] + told * core[state.ID_BYTES]
    if not core[state.HAS_BANDWIDTH]:
        peer = model.links[slot, state.PEER]
        is_news = False
        for index in range(told):
            if seen[peer, model.scratch[state.IDS, index]] <= 0:
                is_news = True
                break
        if not is_news:
            core[state.SENT_BYTES] += size
            return
    transmit(model, owner, slot, kind, 0, size, now)


@njit
def gossip_ids(model: Model, node: int, since: int, until: int) -> int:
    """Message slots that the node heard in (since, until], into the scratch row IDS: what its IHAVE says."""
    core, messages, seen, scratch = model.core, model.messages, model.seen, model.scratch
    slots, found = len(messages), 0
    for number in range(core[state.OLDEST], core[state.NEWEST] + 1):
        slot = number % slots
        if since < seen[node, slot] <= until:
            scratch[state.IDS, found] = slot
            found += 1
    return found


@inline
def last_beat(core: Int64, nodes: Int32, node: int, now: int) -> int:
    """When the node's last heartbeat was."""
    return int(now - (now - nodes[node, state.PHASE]) % core[state.HEARTBEAT])


@njit
def send_news(model: Model, owner: int, slot: int, now: int) -> None:
    """IHAVE for a peer that has just come into the mesh."""
    core = model.core
    since = last_beat(core, model.nodes, owner, now) - (core[state.GOSSIP_WINDOWS] - 1) * core[state.HEARTBEAT]
    ids = gossip_ids(model, owner, since, now)
    if ids:
        send_ihave(model, owner, slot, state.NEWS, ids, now)


@njit
def send_graft(model: Model, owner: int, slot: int, now: int) -> None:
    model.core[state.SENT_GRAFT] += 1
    transmit(model, owner, slot, state.GRAFT, 0, model.core[state.GRAFT_BYTES], now)


@inline
def back_off(model: Model, slot: int, now: int) -> None:
    marks = model.marks
    marks[slot, state.BACKOFF] = 2 * (now + model.core[state.PRUNE_BACKOFF]) + (marks[slot, state.BACKOFF] & 1)


@njit
def send_prune(model: Model, owner: int, slot: int, with_px: int, now: int) -> None:
    """Starts the backoff on this side. `with_px`: it offers other peers."""
    model.core[state.SENT_PRUNE] += 1
    back_off(model, slot, now)
    transmit(model, owner, slot, state.PRUNE, with_px, model.core[state.PRUNE_BYTES], now)


@njit
def send_message(model: Model, owner: int, slot: int, kind: int, message: int, now: int) -> None:
    core = model.core
    core[state.SENT_MESSAGE] += 1
    size = model.messages[message, state.SIZE] + core[state.MESSAGE_BYTES]
    transmit(model, owner, slot, kind, message, size, now)
