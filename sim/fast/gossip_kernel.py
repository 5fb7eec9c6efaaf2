"""The event loop of the gossip model: one bucket of the calendar after the other, until an instant.

In a bucket: the script's operations, then the heartbeats that are due, then events in the order in which they were
sent. Two events less than a bucket (80 µs) apart may change places; nothing else differs from an exact event heap.

The loop can stop anywhere and go on, because all it knows is in the model's arrays: Python takes over once a virtual
second for progress and checkpoints, and whenever the calendar needs more room.
"""

from __future__ import annotations

import numpy as np

from sim.fast import state
from sim.fast.chance import mix
from sim.fast.jit import kernel, njit
from sim.fast.links import (
    arrival,
    back_off,
    connect,
    dial,
    dial_some,
    find,
    is_in_mesh,
    join,
    last_beat,
    leave,
    pair_delay,
    plan_upkeep,
    push,
    send_message,
    send_news,
    send_prune,
    transmit,
    words_of,
)
from sim.fast.mesh import beat, is_outbound, score_of, shuffle_picks
from sim.fast.script import run_script
from sim.fast.state import Float64, Model

DONE, FULL = 0, 1

_PRIME = np.uint64(0x100000001B3)
_20 = np.uint64(20)
_44 = np.uint64(44)


@njit
def forward(model: Model, node: int, sender: int, message: int, now: int) -> None:
    """To the mesh, but not to where it came from, nor to its source, nor to who said IDONTWANT."""
    core, reals, flows, links, marks = model.core, model.reals, model.flows, model.links, model.marks
    ring, chunks, events, words = model.ring, model.chunks, model.events, model.words
    source = model.messages[message, state.SOURCE]
    size = model.messages[message, state.SIZE] + core[state.MESSAGE_BYTES]
    first = int(model.nodes[node, state.START])
    end = first + model.nodes[node, state.MESH]
    if core[state.HAS_IDONTWANT] and model.messages[message, state.SIZE] >= core[state.IDONTWANT_BYTES_MIN]:
        for slot in range(first, end):
            peer = links[slot, state.PEER]
            if peer != sender and peer != source:
                core[state.SENT_IDONTWANT] += 1
                transmit(model, node, slot, state.IDONTWANT, message, core[state.IDS_BYTES] + core[state.ID_BYTES], now)
    column = state.MASK_LOW if message & 32 == 0 else state.MASK_HIGH
    for slot in range(first, end):
        peer = int(links[slot, state.PEER])
        if peer == sender or peer == source:  # noqa: SIM109 - a tuple costs time in a kernel
            continue
        if core[state.HAS_IDONTWANT] and (marks[slot, column] >> (message & 31)) & 1:
            continue
        core[state.SENT_MESSAGE] += 1
        at = arrival(core, reals, flows, words, node, links[slot, state.DELAY], size, now)
        if at >= 0:
            low, high = words_of(core, flows, at, state.MESSAGE, message, size, peer, node)
            push(core, ring, chunks, events, low, high)


@njit
def on_first_copy(model: Model, node: int, sender: int, message: int, now: int, kind: int) -> None:
    core = model.core
    age = now - model.messages[message, state.AT]
    if age < 0 or age > core[state.KEEP]:
        core[state.STALE] += 1  # its slot may be another message's by now
        return
    if core[state.HAS_CHURN] or core[state.HAS_SCORES]:
        slot = find(model.nodes, model.links, node, sender)
        if slot < 0:
            return  # the connection is gone
        if core[state.HAS_SCORES]:
            most = int(model.reals[state.FIRST_CAP] * state.SCORE_ONE)
            model.marks[slot, state.SCORE] = min(model.marks[slot, state.SCORE] + state.SCORE_ONE, most)
    model.seen[node, message] = now
    core[state.DELIVERED] += 1
    if kind == state.RESPONSE:
        core[state.RECOVERED] += 1
    step = min(age // core[state.BIN_TICKS], model.delays.shape[1] - 1)
    model.delays[0, step] += 1
    if model.nodes[node, state.SINCE] <= model.messages[message, state.AT]:
        core[state.TIMELY] += 1
        model.delays[1, step] += 1
    word = (np.uint64(now) << _20) ^ (np.uint64(message) << _44) ^ np.uint64(node)
    model.words[state.TRACE] = (model.words[state.TRACE] ^ mix(word)) * _PRIME
    forward(model, node, sender, message, now)


@njit
def on_ihave(model: Model, node: int, sender: int, kind: int, age: int, now: int) -> None:
    """Ask for what we have not seen: of two peers at a time, again after the follow-up time."""
    core, seen = model.core, model.seen
    back = find(model.nodes, model.links, node, sender)
    if back < 0:
        return
    sent_at = now - (age << state.AGE_SHIFT)
    windows = core[state.GOSSIP_WINDOWS] - (kind == state.NEWS)
    since = last_beat(core, model.nodes, sender, sent_at) - windows * core[state.HEARTBEAT]
    slots, asked = len(model.messages), 0
    for number in range(core[state.OLDEST], core[state.NEWEST] + 1):
        slot = number % slots
        mark = int(seen[node, slot])
        if mark > 0 or not since < seen[sender, slot] <= sent_at:
            continue
        count, until = -mark & 3, -mark >> state.ASKED_BITS
        if count >= 2 and now < until:
            continue
        count = count + 1 if now < until else 1
        seen[node, slot] = -(((now + core[state.FOLLOWUP]) << state.ASKED_BITS) | count)
        size = core[state.ID_BYTES]
        if asked == 0:
            core[state.SENT_IWANT] += 1
            size += core[state.IDS_BYTES]
        transmit(model, node, back, state.IWANT, slot, size, now)
        asked += 1


@njit
def on_iwant(model: Model, node: int, sender: int, message: int, now: int) -> None:
    core = model.core
    back = find(model.nodes, model.links, node, sender)
    seen = int(model.seen[node, message])
    oldest = last_beat(core, model.nodes, node, now) - (core[state.HISTORY_WINDOWS] - 1) * core[state.HEARTBEAT]
    if back < 0 or seen <= oldest or seen <= 0:
        return
    column = state.MASK_LOW if message & 32 == 0 else state.MASK_HIGH
    if core[state.HAS_IDONTWANT] and (model.marks[back, column] >> (message & 31)) & 1:
        return
    send_message(model, node, back, state.RESPONSE, message, now)


@njit
def on_graft(model: Model, node: int, sender: int, now: int) -> None:
    core, nodes, marks = model.core, model.nodes, model.marks
    slot = find(nodes, model.links, node, sender)
    if slot < 0 or is_in_mesh(nodes, node, slot):
        return
    mark = int(marks[slot, state.BACKOFF])
    if mark < 0:  # whoever grafts is in the topic
        mark = mark & 1
        marks[slot, state.BACKOFF] = mark
    is_full = nodes[node, state.MESH] >= core[state.DEGREE_HIGH] and not mark & 1
    if now < mark >> 1:
        send_prune(model, node, slot, 0, now)
    elif is_full:
        send_prune(model, node, slot, 1, now)
    else:
        send_news(model, node, join(nodes, model.links, marks, node, slot, now), now)


@njit
def on_prune(model: Model, node: int, sender: int, slot: int, with_px: int, now: int) -> None:
    """Out of the mesh, and a few of the peers that a trusted pruner offers are dialled."""
    core, nodes, links, marks = model.core, model.nodes, model.links, model.marks
    score = score_of(core, model.reals, marks, slot, is_in_mesh(nodes, node, slot), now)
    back_off(model, leave(nodes, links, marks, node, slot), now)
    if not with_px or not core[state.HAS_SCORES] or score < model.reals[state.PX_SCORE_MIN] * state.SCORE_ONE:
        return
    first, offered = int(nodes[sender, state.START]), 0
    for each in range(first, first + nodes[sender, state.COUNT]):
        model.scratch[state.PICKS, offered] = each
        offered += 1
    shuffle_picks(model, offered, core[state.PX_PEERS])
    dials = 0
    for index in range(min(offered, core[state.PX_PEERS])):
        other = int(links[model.scratch[state.PICKS, index], state.PEER])
        if dials < core[state.PX_DIALS_MAX] and other != node and find(nodes, links, node, other) < 0:
            dial(model, node, other, now)
            dials += 1


@njit
def on_dialled(model: Model, node: int, other: int, session: int, now: int) -> None:
    core, nodes = model.core, model.nodes
    if session == nodes[node, state.SESSION] & 0xFFFF:
        there = pair_delay(core, model.reals, nodes, model.matrix, node, other)
        back = pair_delay(core, model.reals, nodes, model.matrix, other, node)
        connect(model, node, other, there, back, now)


@njit
def on_upkeep(model: Model, node: int, session: int, now: int) -> None:
    """What a connection manager does: keep up the number of connections that were dialled."""
    core, nodes = model.core, model.nodes
    if session != nodes[node, state.SESSION] & 0xFFFF:
        return
    first, count, dialled = int(nodes[node, state.START]), int(nodes[node, state.COUNT]), 0
    for slot in range(first, first + count):
        dialled += is_outbound(model.marks, slot)
    if core[state.OUTBOUND_BOTH]:
        dialled = count // 2
    missing = min(core[state.DIALS] - max(dialled, count // 2), core[state.REDIALS_MAX])
    dial_some(model, node, missing, now)
    plan_upkeep(model, node, now)


@njit
def on_control(model: Model, node: int, sender: int, kind: int, field: int, now: int) -> None:
    nodes, links, marks = model.nodes, model.links, model.marks
    if kind == state.IHAVE or kind == state.NEWS:
        on_ihave(model, node, sender, kind, field, now)
    elif kind == state.IWANT:
        on_iwant(model, node, sender, field, now)
    elif kind == state.GRAFT:
        on_graft(model, node, sender, now)
    elif kind == state.DIAL:
        on_dialled(model, node, sender, field, now)
    elif kind == state.UPKEEP:
        on_upkeep(model, node, field, now)
    else:
        slot = find(nodes, links, node, sender)
        if slot < 0:
            return
        if kind == state.PRUNE:
            on_prune(model, node, sender, slot, field, now)
        else:
            column = state.MASK_LOW if field & 32 == 0 else state.MASK_HIGH
            marks[slot, column] |= 1 << (field & 31)


@njit
def through_downlink(core: state.Int64, flows: Float64, node: int, size: int, now: int) -> int:
    """When the last byte is through the receiver's downlink: first come, first served. −1: its queue is full."""
    begin = max(float(now), flows[node, state.DOWN_BUSY])
    limit = flows[node, state.QUEUE_BYTES] * flows[node, state.DOWN_PER_BYTE]
    if limit > 0.0 and begin - now > limit:
        core[state.DROPPED] += 1
        return -1
    end = begin + size * flows[node, state.DOWN_PER_BYTE]
    flows[node, state.DOWN_BUSY] = end
    return int(end + 0.5)


@njit
def on_queued(model: Model, first: int, second: int) -> None:
    """It has come to the receiver's downlink, and comes again as what it is when it is through."""
    now, kind, field = first >> state.TIME_SHIFT, (first >> state.KIND_SHIFT) & 15, first & 0xFFFF
    node, size = (second >> 24) & 0xFFFFFF, (second >> 48) << state.SIZE_SHIFT
    end = through_downlink(model.core, model.flows, node, size, now)
    if end < 0:
        return
    if kind == state.IHAVE or kind == state.NEWS:
        field = min(field + ((end - now) >> state.AGE_SHIFT), state.SLOTS_MAX - 1)
    again = (end << state.TIME_SHIFT) | (kind << state.KIND_SHIFT) | field
    push(model.core, model.ring, model.chunks, model.events, again, second)


@njit
def has_room(model: Model) -> bool:
    """For the most that one event, heartbeat or operation can send: three RPCs per slot of the longest row."""
    core = model.core
    left = core[state.FREE_CHUNKS] + len(model.chunks) - core[state.TOP_CHUNK]
    return bool(left > 3 * model.scratch.shape[1] + 4)


@njit
def open_bucket(model: Model, bucket: int) -> bool:
    """The script and the heartbeats of a bucket, then its events are taken out of the ring. False: no room."""
    core, script, nodes = model.core, model.script, model.nodes
    end = (bucket + 1) << state.BUCKET_SHIFT
    while core[state.SCRIPT_AT] < len(script) and script[core[state.SCRIPT_AT], 0] < end:
        if not has_room(model):
            return False
        run_script(model, core[state.SCRIPT_AT])
        core[state.SCRIPT_AT] += 1
        core[state.EVENTS] += 1
    while True:
        node = int(model.order[core[state.BEAT_AT]])
        at = core[state.BEAT_ROUND] * core[state.HEARTBEAT] + nodes[node, state.PHASE]
        if at >= end:
            break
        if not has_room(model):
            return False
        since = nodes[node, state.SINCE]
        if nodes[node, state.ALIVE] and at >= since + core[state.HEARTBEAT]:  # a period after the start at first
            beat(model, node, at)
            core[state.EVENTS] += 1
        core[state.BEAT_AT] += 1
        if core[state.BEAT_AT] == len(model.order):
            core[state.BEAT_AT] = 0
            core[state.BEAT_ROUND] += 1
    index = bucket & (state.RING - 1)
    core[state.OPEN_CHUNK] = model.ring[index, state.HEAD]
    core[state.POSITION] = 0
    model.ring[index, state.HEAD] = -1
    model.ring[index, state.TAIL] = -1
    return True


@njit
def read_chunk(model: Model, chunk: int, bucket: int) -> bool:
    """Its events from POSITION on. False: no room."""
    core, chunks, events, seen, nodes = model.core, model.chunks, model.events, model.seen, model.nodes
    has_churn = core[state.HAS_CHURN]
    spare = 3 * model.scratch.shape[1] + 4
    position = core[state.POSITION]
    while position < chunks[chunk, state.USED]:
        if core[state.FREE_CHUNKS] + len(chunks) - core[state.TOP_CHUNK] <= spare:
            core[state.POSITION] = position
            return False
        first, second = events[chunk, 2 * position], events[chunk, 2 * position + 1]
        position += 1
        if first >> (state.TIME_SHIFT + state.BUCKET_SHIFT) > bucket:  # of a later round of the ring
            push(core, model.ring, chunks, events, first, second)
            continue
        kind, field = (first >> state.KIND_SHIFT) & 31, first & 0xFFFF
        node, sender = (second >> 24) & 0xFFFFFF, second & 0xFFFFFF
        if has_churn and not (nodes[node, state.ALIVE] and nodes[sender, state.ALIVE]):
            continue
        if kind & state.QUEUED:
            on_queued(model, first, second)
            continue
        core[state.EVENTS] += 1
        if kind == state.MESSAGE or kind == state.RESPONSE:
            if seen[node, field] > 0:
                core[state.DUPLICATES] += 1
            else:
                on_first_copy(model, node, sender, field, first >> state.TIME_SHIFT, kind)
        else:
            on_control(model, node, sender, kind, field, first >> state.TIME_SHIFT)
    return True


@kernel
def run(model: Model, until: int) -> int:
    """Everything before that tick. DONE; or FULL: give the calendar more chunks and call again."""
    core, chunks, messages = model.core, model.chunks, model.messages
    last = until >> state.BUCKET_SHIFT
    while core[state.BUCKET] < last:
        bucket = core[state.BUCKET]
        if core[state.OPEN_CHUNK] == state.NOT_OPEN:
            oldest = (bucket << state.BUCKET_SHIFT) - core[state.KEEP]
            while core[state.OLDEST] <= core[state.NEWEST]:
                if messages[core[state.OLDEST] % len(messages), state.AT] >= oldest:
                    break
                core[state.OLDEST] += 1
            if not open_bucket(model, bucket):
                return FULL
        while core[state.OPEN_CHUNK] >= 0:
            chunk = core[state.OPEN_CHUNK]
            if not read_chunk(model, chunk, bucket):
                return FULL
            core[state.OPEN_CHUNK] = chunks[chunk, state.NEXT]
            core[state.POSITION] = 0
            chunks[chunk, state.NEXT] = core[state.FREE_CHUNK]
            core[state.FREE_CHUNK] = chunk
            core[state.FREE_CHUNKS] += 1
        core[state.OPEN_CHUNK] = state.NOT_OPEN
        core[state.BUCKET] = bucket + 1
    return DONE
