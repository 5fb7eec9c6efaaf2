"""One heartbeat of one node, as `p2p.gossip.mesh` does it: prune, graft, outbound quota, opportunistic graft, gossip.

Scores are P1 and P2 of gossipsub v1.1, in steps of 1 / SCORE_ONE; nobody misbehaves at this level, so P3 to P7 are left
out, and none is negative.
"""

from __future__ import annotations

from sim.fast import state
from sim.fast.chance import below
from sim.fast.jit import inline, njit
from sim.fast.links import gossip_ids, is_known, join, leave, send_graft, send_ihave, send_news, send_prune
from sim.fast.state import Float64, Int32, Model


@inline
def score_of(core: state.Int64, reals: Float64, marks: Int32, slot: int, in_mesh: bool, now: int) -> int:
    if not core[state.HAS_SCORES]:
        return 0
    first = float(marks[slot, state.SCORE]) / state.SCORE_ONE
    value = reals[state.FIRST_WEIGHT] * min(first, reals[state.FIRST_CAP])
    if in_mesh:
        value += reals[state.TIME_WEIGHT] * min(float(now - marks[slot, state.JOINED]), reals[state.TIME_CAP])
    return int(min(value, reals[state.TOPIC_CAP]) * state.SCORE_ONE)


@inline
def is_outbound(marks: Int32, slot: int) -> int:
    return int(marks[slot, state.BACKOFF] & 1)


@inline
def may_graft(core: state.Int64, marks: Int32, slot: int, now: int) -> bool:
    until = int(marks[slot, state.BACKOFF]) >> 1
    if until > 0:
        return bool(now >= until + core[state.BACKOFF_SLACK])
    return now >= -until


@inline
def shuffle_picks(model: Model, count: int, wanted: int) -> None:
    """The first `wanted` of `count` picks become a random choice of them, in random order."""
    scratch = model.scratch
    for index in range(min(wanted, count - 1)):
        other = index + below(model.words, count - index)
        held = scratch[state.PICKS, index]
        scratch[state.PICKS, index] = scratch[state.PICKS, other]
        scratch[state.PICKS, other] = held


@njit
def candidates(model: Model, node: int, now: int, outbound_only: bool) -> int:
    """Slots that may be grafted, into the scratch row PICKS."""
    nodes, marks, found = model.nodes, model.marks, 0
    first = int(nodes[node, state.START])
    for slot in range(first + nodes[node, state.MESH], first + nodes[node, state.COUNT]):
        if may_graft(model.core, marks, slot, now) and (is_outbound(marks, slot) or not outbound_only):
            model.scratch[state.PICKS, found] = slot
            found += 1
    return found


@njit
def graft_picks(model: Model, node: int, count: int, now: int) -> None:
    """Graft the first `count` picks. Joining moves slots, so picks that were moved are followed."""
    nodes, scratch = model.nodes, model.scratch
    for index in range(count):
        slot = int(scratch[state.PICKS, index])
        place = int(nodes[node, state.START]) + int(nodes[node, state.MESH])
        joined = join(nodes, model.links, model.marks, node, slot, now)
        for later in range(index + 1, count):
            if scratch[state.PICKS, later] == place:
                scratch[state.PICKS, later] = slot
        send_graft(model, node, joined, now)
        send_news(model, node, joined, now)


@njit
def shrink(model: Model, node: int, now: int) -> None:
    """Down to D: the best D_score stay, the rest is drawn, with D_out outbound ones among those that stay."""
    core, nodes, marks = model.core, model.nodes, model.marks
    picks, ranks = model.scratch[state.PICKS], model.scratch[state.RANKS]
    first, count = int(nodes[node, state.START]), int(nodes[node, state.MESH])
    for index in range(count):
        picks[index] = first + index
    shuffle_picks(model, count, count)
    for index in range(count):
        ranks[index] = score_of(core, model.reals, marks, picks[index], True, now)
    best = min(core[state.DEGREE_SCORE], count)
    for index in range(best):  # those with equal scores keep their random order
        top = index
        for other in range(index + 1, count):
            if ranks[other] > ranks[top]:
                top = other
        slot, rank = picks[top], ranks[top]
        for other in range(top, index, -1):
            picks[other] = picks[other - 1]
            ranks[other] = ranks[other - 1]
        picks[index], ranks[index] = slot, rank
    for index in range(best, count):  # the rest anew, at random
        other = index + below(model.words, count - index)
        slot = picks[index]
        picks[index] = picks[other]
        picks[other] = slot
    kept = min(core[state.DEGREE], count)
    outbound = 0
    for index in range(kept):
        outbound += is_outbound(marks, picks[index])
    loser = kept - 1
    for index in range(kept, count):
        if outbound >= core[state.DEGREE_OUT]:
            break
        if is_outbound(marks, picks[index]):
            while loser >= best and is_outbound(marks, picks[loser]):
                loser -= 1
            if loser < best:
                break
            slot = picks[index]
            picks[index] = picks[loser]
            picks[loser] = slot
            outbound += 1
            loser -= 1
    # Leaving moves the last slot of the mesh to where the leaver was: the highest slots leave first.
    for index in range(kept + 1, count):
        slot, at = picks[index], index
        while at > kept and picks[at - 1] < slot:
            picks[at] = picks[at - 1]
            at -= 1
        picks[at] = slot
    for index in range(kept, count):
        send_prune(model, node, leave(nodes, model.links, marks, node, picks[index]), 1, now)


@njit
def graft_opportunistically(model: Model, node: int, now: int) -> None:
    core, reals, nodes, marks = model.core, model.reals, model.nodes, model.marks
    picks, ranks = model.scratch[state.PICKS], model.scratch[state.RANKS]
    first, count = int(nodes[node, state.START]), int(nodes[node, state.MESH])
    for index in range(count):
        value, at = score_of(core, reals, marks, first + index, True, now), index
        while at > 0 and ranks[at - 1] > value:
            ranks[at] = ranks[at - 1]
            at -= 1
        ranks[at] = value
    median = ranks[count // 2]
    if median >= reals[state.OPPORTUNISTIC_BELOW] * state.SCORE_ONE:
        return
    found, better = candidates(model, node, now, False), 0
    for index in range(found):
        if score_of(core, reals, marks, picks[index], False, now) > median:
            picks[better] = picks[index]
            better += 1
    wanted = core[state.OPPORTUNISTIC_PEERS]
    shuffle_picks(model, better, wanted)
    graft_picks(model, node, min(better, wanted), now)


@njit
def maintain(model: Model, node: int, now: int) -> None:
    core, nodes = model.core, model.nodes
    size, degree = int(nodes[node, state.MESH]), core[state.DEGREE]
    if size < core[state.DEGREE_LOW]:
        found = candidates(model, node, now, False)
        shuffle_picks(model, found, degree - size)
        graft_picks(model, node, min(found, degree - size), now)
    elif size > core[state.DEGREE_HIGH]:
        shrink(model, node, now)
    size = int(nodes[node, state.MESH])
    if size >= core[state.DEGREE_LOW] and core[state.DEGREE_OUT] > 0:
        first, missing = int(nodes[node, state.START]), core[state.DEGREE_OUT]
        for slot in range(first, first + size):
            missing -= is_outbound(model.marks, slot)
        if missing > 0:
            found = candidates(model, node, now, True)
            shuffle_picks(model, found, missing)
            graft_picks(model, node, min(found, missing), now)
    is_time = nodes[node, state.TICKS] % core[state.OPPORTUNISTIC_TICKS] == 0
    if is_time and core[state.HAS_SCORES] and nodes[node, state.MESH] > 1:
        graft_opportunistically(model, node, now)


@njit
def emit_gossip(model: Model, node: int, now: int) -> None:
    core, nodes, marks = model.core, model.nodes, model.marks
    ids = gossip_ids(model, node, now - core[state.GOSSIP_WINDOWS] * core[state.HEARTBEAT], now)
    if not ids:
        return
    first, found = int(nodes[node, state.START]), 0
    for slot in range(first + nodes[node, state.MESH], first + nodes[node, state.COUNT]):
        if is_known(marks, slot, now):
            model.scratch[state.PICKS, found] = slot
            found += 1
    wanted = max(core[state.DEGREE_LAZY], int(found * model.reals[state.GOSSIP_FACTOR]))
    shuffle_picks(model, found, wanted)
    for index in range(min(found, wanted)):
        send_ihave(model, node, int(model.scratch[state.PICKS, index]), state.IHAVE, ids, now)


@njit
def beat(model: Model, node: int, now: int) -> None:
    core, nodes, marks = model.core, model.nodes, model.marks
    nodes[node, state.TICKS] += 1
    if core[state.HAS_SCORES]:
        first = int(nodes[node, state.START])
        for slot in range(first, first + nodes[node, state.COUNT]):
            marks[slot, state.SCORE] = int(marks[slot, state.SCORE] * model.reals[state.FIRST_DECAY])
    if core[state.IS_MAINTAINED]:
        maintain(model, node, now)
    if core[state.DEGREE_LAZY] > 0 and core[state.NEWEST] >= core[state.OLDEST]:
        emit_gossip(model, node, now)
