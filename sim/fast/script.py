"""What happens by itself: messages are published, nodes come and go, and in a replay connections and meshes change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.fast import state
from sim.fast.jit import njit
from sim.fast.links import (
    connect,
    dial_some,
    drop_row,
    find,
    is_known,
    join,
    leave,
    plan_upkeep,
    remove,
    send_message,
    send_news,
)
from sim.fast.state import Int64, Model


@dataclass(frozen=True, slots=True)
class Operation:
    """PUBLISH a: node, b: message, x: bytes · UP, DOWN a · CONNECT a dials b, x, y: ticks there and back ·
    DISCONNECT a, b · HELLO a hears that b is in the topic · MESH_ON, MESH_OFF: b in a's mesh. Messages are numbered
    from 0 in order of time."""

    at: int
    kind: int
    a: int
    b: int = 0
    x: int = 0
    y: int = 0


def script_of(operations: list[Operation]) -> Int64:
    """In order of time; operations at one instant keep their order."""
    ordered = sorted(operations, key=lambda operation: operation.at)
    columns = [(o.at, o.kind, o.a, o.b, o.x, o.y) for o in ordered]
    return np.array(columns, np.int64).reshape(-1, state.SCRIPT_COLUMNS)


@njit
def forget(model: Model, slot: int) -> None:
    """A message slot is taken anew."""
    model.seen[:, slot] = 0
    marks = model.marks
    if marks.shape[1] > state.MASK_HIGH:
        column = state.MASK_LOW if slot & 32 == 0 else state.MASK_HIGH
        for index in range(len(marks)):
            marks[index, column] &= ~(1 << (slot & 31))


@njit
def order_by_hello(model: Model, first: int, count: int) -> None:
    """Slots into the scratch row PICKS, in the order in which the peers said hello: the router's order of members, and
    so that of the uplink. The nearest come first. (Of those once pruned, only the distance is left.)"""
    links, marks = model.links, model.marks
    picks, keys = model.scratch[state.PICKS], model.scratch[state.RANKS]
    for index in range(count):
        slot = first + index
        backoff = int(marks[slot, state.BACKOFF]) >> 1
        key = -backoff if backoff <= 0 else int(links[slot, state.DELAY])
        at = index
        while at > 0 and keys[at - 1] > key:
            keys[at] = keys[at - 1]
            picks[at] = picks[at - 1]
            at -= 1
        keys[at] = key
        picks[at] = slot


@njit
def publish(model: Model, node: int, number: int, size: int, now: int) -> None:
    core, messages, nodes = model.core, model.messages, model.nodes
    slot = number % len(messages)
    core[state.NEWEST] = number
    if messages[slot, state.NUMBER] >= 0:
        forget(model, slot)
    messages[slot, state.NUMBER] = number
    messages[slot, state.SOURCE] = node
    messages[slot, state.AT] = now
    messages[slot, state.SIZE] = size
    if not nodes[node, state.ALIVE]:
        messages[slot, state.SOURCE] = -1
        return
    core[state.PUBLISHED] += 1
    core[state.EXPECTED] += core[state.ALIVE_COUNT] - 1
    model.seen[node, slot] = now
    first = int(nodes[node, state.START])
    meshed = first + nodes[node, state.MESH]
    count = nodes[node, state.COUNT] if core[state.FLOOD_PUBLISH] else nodes[node, state.MESH]
    if core[state.HAS_BANDWIDTH] and core[state.FLOOD_PUBLISH]:
        order_by_hello(model, first, count)
        for index in range(count):
            each = int(model.scratch[state.PICKS, index])
            if each < meshed or is_known(model.marks, each, now):
                send_message(model, node, each, state.MESSAGE, slot, now)
    else:
        for each in range(first, first + count):
            if each < meshed or is_known(model.marks, each, now):
                send_message(model, node, each, state.MESSAGE, slot, now)


@njit
def go_up(model: Model, node: int, now: int) -> None:
    core, nodes = model.core, model.nodes
    if nodes[node, state.ALIVE]:  # from the start: it begins to look after its connections
        plan_upkeep(model, node, now)
        return
    nodes[node, state.ALIVE] = 1
    nodes[node, state.SINCE] = now
    nodes[node, state.TICKS] = 0
    nodes[node, state.SESSION] += 1
    core[state.ALIVE_COUNT] += 1
    model.seen[node, :] = 0
    if core[state.IS_MAINTAINED]:
        dial_some(model, node, core[state.DIALS], now)
        plan_upkeep(model, node, now)


@njit
def go_down(model: Model, node: int) -> None:
    """What it had not got yet, it is not expected to get."""
    core, nodes, messages = model.core, model.nodes, model.messages
    if not nodes[node, state.ALIVE]:
        return
    for number in range(core[state.OLDEST], core[state.NEWEST] + 1):
        slot = number % len(messages)
        is_expected = messages[slot, state.SOURCE] >= 0 and messages[slot, state.AT] >= nodes[node, state.SINCE]
        if is_expected and model.seen[node, slot] <= 0:
            core[state.EXPECTED] -= 1
    nodes[node, state.ALIVE] = 0
    core[state.ALIVE_COUNT] -= 1
    drop_row(nodes, model.links, model.marks, node)


@njit
def run_script(model: Model, index: int) -> None:
    """One operation."""
    nodes, links, marks = model.nodes, model.links, model.marks
    now, kind, a, b, x, y = model.script[index]
    if kind == state.PUBLISH:
        publish(model, a, b, x, now)
    elif kind == state.UP:
        go_up(model, a, now)
    elif kind == state.DOWN:
        go_down(model, a)
    elif kind == state.CONNECT:
        connect(model, a, b, x, y, now)
    elif kind == state.DISCONNECT:
        remove(nodes, links, marks, a, b)
        remove(nodes, links, marks, b, a)
    else:
        slot = find(nodes, links, a, b)
        if slot >= 0 and kind == state.HELLO:
            marks[slot, state.BACKOFF] = (marks[slot, state.BACKOFF] & 1) - 2 * now
        elif slot >= 0 and kind == state.MESH_ON:
            send_news(model, a, join(nodes, links, marks, a, slot, now), now)
        elif slot >= 0:
            leave(nodes, links, marks, a, slot)
