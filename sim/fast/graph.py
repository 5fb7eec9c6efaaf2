"""Who is connected with whom at the start: every node dials so many others at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.errors import WorldInvalid
from sim.fast import state
from sim.fast.chance import Words, below, seeded, uniform
from sim.fast.jit import inline, kernel
from sim.fast.links import pair_delay
from sim.fast.state import Float64, Int32, Int64, Rows, Rules, new_rows

ROW_ROOM = 3  # with churn, a row has room for so many times its first connections


@kernel
def _draw_dials(nodes: Int32, picks: Int32, words: Words) -> None:
    """(nodes, dials), −1 before: different peers each. Where two dial each other, the second dial is void, and so is
    one to or from a node that is down."""
    count, dials = picks.shape
    for node in range(count):
        made = 0
        while made < dials:
            other = below(words, count)
            is_known = other == node
            for index in range(made):
                is_known = is_known or picks[node, index] == other
            if not is_known:
                picks[node, made] = other
                made += 1
    for node in range(count):
        for index in range(dials):
            other = picks[node, index]
            is_void = not nodes[node, state.ALIVE] or not nodes[other, state.ALIVE]
            if other < node:
                for each in range(dials):
                    is_void = is_void or picks[other, each] == node
            if is_void:
                picks[node, index] = -1 - other


@kernel
def _count(picks: Int32, degree: Int64) -> None:
    for node in range(picks.shape[0]):
        for index in range(picks.shape[1]):
            if picks[node, index] >= 0:
                degree[node] += 1
                degree[picks[node, index]] += 1


@inline
def _put(nodes: Int32, links: Int32, marks: Int32, owner: int, peer: int, delay: int, backoff: int) -> None:
    slot = nodes[owner, state.START] + nodes[owner, state.COUNT]
    links[slot, state.PEER] = peer
    links[slot, state.DELAY] = max(1, delay)
    marks[slot, state.BACKOFF] = backoff
    nodes[owner, state.COUNT] += 1


@kernel
def _fill(
    nodes: Int32, links: Int32, marks: Int32, picks: Int32, core: Int64, reals: Float64, matrix: Float64, words: Words
) -> None:
    for node in range(picks.shape[0]):
        for index in range(picks.shape[1]):
            other = int(picks[node, index])
            if other >= 0:
                there = pair_delay(core, reals, nodes, matrix, node, other)
                back = pair_delay(core, reals, nodes, matrix, other, node)
                hello, answer = back, there
                if reals[state.LOSS] > 0.0:
                    hello = state.NEVER if uniform(words) < reals[state.LOSS] else back
                    answer = state.NEVER if uniform(words) < reals[state.LOSS] else there
                _put(nodes, links, marks, node, other, there, 1 - 2 * hello)
                _put(nodes, links, marks, other, node, back, core[state.OUTBOUND_BOTH] - 2 * answer)


def random_rows(
    nodes: int,
    rules: Rules,
    *,
    seed: int,
    dials: int | None = None,
    region: NDArray[np.int32] | None = None,
    alive: NDArray[np.bool_] | None = None,
    matrix: Float64 | None = None,
    spare: int = 0,
    all_in_mesh: bool = False,
) -> Rows:
    """`spare`: slots per node for connections to come. `all_in_mesh`: a mesh that stands, for propagation alone. Raises
    WorldInvalid."""
    count = rules.dials if dials is None else dials
    if count >= nodes:
        raise WorldInvalid(f"gossip.dials: {nodes} nodes cannot dial {count} others each")
    with np.errstate(over="ignore"):  # plain-Python kernels multiply words that wrap around
        picks = np.full((nodes, count), -1, np.int32)
        known = np.zeros((nodes, state.NODE_COLUMNS), np.int32)
        known[:, state.ALIVE] = 1 if alive is None else alive
        _draw_dials(known, picks, seeded(seed, "fast.dials"))
        capacity = np.zeros(nodes, np.int64)
        _count(picks, capacity)
        capacity += spare
        if rules.has_churn:
            capacity = np.maximum(capacity, 2 * count) * ROW_ROOM + 8
        rows = new_rows(capacity, has_scores=rules.has_scores, has_idontwant=rules.has_idontwant)
        rows.nodes[:, state.ALIVE] = known[:, state.ALIVE]
        if region is not None:
            rows.nodes[:, state.REGION] = region
        core, reals = rules.arrays()
        pairs = one_by_one() if matrix is None else matrix
        words = seeded(seed, "fast.hellos")
        _fill(rows.nodes, rows.links, rows.marks, picks, core, reals, pairs, words)
    if all_in_mesh:
        rows.nodes[:, state.MESH] = rows.nodes[:, state.COUNT]
    return rows


def one_by_one() -> Float64:
    """The matrix of a uniform network: none."""
    return np.zeros((1, 1), np.float64)
