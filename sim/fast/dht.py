"""Kademlia lookups among up to a million nodes whose routing tables are not stored.

    found = run_lookups(1_000_000, 20_000, seed=7, k=20, alpha=3, paths=1)
    found.hops.mean(), found.found_closest.mean(), found.rpcs.mean()

Ids are sorted, so the nodes of a bucket are a range, found by an index of leading bits. What a node has in a bucket is
a sample of k of that range, drawn from (node, bucket) alone: the same at each visit, and nothing is kept. So a table
is what days of traffic leave: full where there are nodes (the warm tables of level 1).

A lookup is that of `p2p.kad.lookup`: disjoint paths, alpha questions in flight on each, answers in the order of their
random round trips, until the k nearest of each path have answered; 120 questions at most. Hops are the length of the
chain of answers that led to the closest node found: a peer of one's own table is one hop away.

Not here: the tables' upkeep, provider records, address groups. Ids have 64 bits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.fast.chance import Words, below, mix, seeded, u64
from sim.fast.jit import inline, kernel, njit, require_speed
from sim.fast.state import Float64, Int32, Int64

Ids = NDArray[np.uint64]

QUESTIONS_MAX = 120  # KadSettings.queries_per_lookup_max
QUESTION_WAYS = 8  # three round trips for a connection, one for the question
FAILURE_MS = 5_000.0  # the dial time-out
_CANDIDATES = 64  # per path: three times k and some; what is farther is never asked
_K_MAX = 20
_BITS = 64

NEW, ASKED, ANSWERED, FAILED = range(4)
NODE, STATE, DEPTH = range(3)  # columns of a path's candidates
HOPS, RPCS, CLOSEST, MILLISECONDS, COLUMNS = range(5)  # columns of the results

_ONE = np.uint64(1)
_NONE = np.uint64(0)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookups:
    """One entry per lookup."""

    hops: Int64
    rpcs: Int64
    found_closest: NDArray[np.bool_]
    duration_ms: Float64
    cpu_s: float


@inline
def leading_zeros(word: np.uint64) -> int:
    count = 0
    for shift in (32, 16, 8, 4, 2, 1):
        if word >> np.uint64(_BITS - shift) == _NONE:
            count += shift
            word = word << np.uint64(shift)
    return count if word >> np.uint64(_BITS - 1) else count + 1


@inline
def first_at(ids: Ids, index: Int32, shift: int, value: np.uint64) -> int:
    """The position of the first id that is not below the value."""
    at = int(index[int(value >> np.uint64(shift))])
    while at < len(ids) and ids[at] < value:
        at += 1
    return at


@njit
def bucket(ids: Ids, index: Int32, shift: int, node: int, prefix: int, k: int, picks: Int64, found: int) -> int:
    """What the node has in the bucket of those that share so many bits with it, appended to `picks`."""
    place = np.uint64(_BITS - 1 - prefix)
    low = ((ids[node] >> place) ^ _ONE) << place
    high = low + (_ONE << place)
    a = first_at(ids, index, shift, low)
    b = len(ids) if high == _NONE else first_at(ids, index, shift, high)
    size = b - a
    if size <= k:
        for each in range(a, b):
            picks[found] = each
            found += 1
        return found
    word = mix(np.uint64(node) * np.uint64(1_000_003) + np.uint64(prefix))
    step = size / k
    for each in range(k):  # one of each k-th part of the range
        word = mix(word + np.uint64(each))
        start = int(each * step)
        width = int((each + 1) * step) - start
        picks[found] = a + start + int(word % np.uint64(max(1, width)))
        found += 1
    return found


@njit
def closest_known(
    ids: Ids, index: Int32, shift: int, node: int, target: np.uint64, k: int, deepest: int, picks: Int64
) -> int:
    """The k that the node knows nearest to the target, or a few more, into `picks`: its bucket of the first difference,
    then the deeper ones, then the shallower ones one by one."""
    prefix = leading_zeros(ids[node] ^ target)
    found = 0
    if prefix < _BITS:
        found = bucket(ids, index, shift, node, prefix, k, picks, 0)
    if found >= k:
        return found
    for deeper in range(prefix + 1, deepest + 1):
        if found + k <= len(picks):
            found = bucket(ids, index, shift, node, deeper, k, picks, found)
    shallower = prefix - 1
    while found < k and shallower >= 0:
        found = bucket(ids, index, shift, node, shallower, k, picks, found)
        shallower -= 1
    return found


@njit
def offer(
    distances: Ids, path: Int64, count: int, distance: np.uint64, node: int, depth: int, belongs: Int64, mark: int
) -> int:
    """A candidate into the path's list, nearest first, unless some path has it. How many there are then."""
    if count == len(distances) and distance >= distances[count - 1]:
        return count
    if belongs[node] == mark:
        return count
    at = count
    if count == len(distances):
        at -= 1
        if path[at, STATE] == ASKED:
            return count
    else:
        count += 1
    while at > 0 and distances[at - 1] > distance:
        distances[at] = distances[at - 1]
        for column in range(3):
            path[at, column] = path[at - 1, column]
        at -= 1
    belongs[node] = mark
    distances[at] = distance
    path[at, NODE], path[at, STATE], path[at, DEPTH] = node, NEW, depth
    return count


@njit
def next_of(path: Int64, count: int, k: int) -> int:
    """The nearest unasked one among the k nearest that have not failed; −1: none."""
    considered = 0
    for at in range(count):
        if path[at, STATE] == NEW:
            return at
        if path[at, STATE] != FAILED:
            considered += 1
            if considered >= k:
                return -1
    return -1


@kernel
def true_closest(ids: Ids, index: Int32, shift: int, alive: NDArray[np.uint8], target: np.uint64, asker: int) -> int:
    """The node nearest to the target of all that are up, but the asker: by ever shorter prefixes."""
    for bits in range(_BITS - 1, -1, -1):
        place = np.uint64(_BITS - bits)
        low = _NONE if bits == 0 else (target >> place) << place
        high = _NONE if bits == 0 else low + (_ONE << place)
        a = first_at(ids, index, shift, low)
        b = len(ids) if high == _NONE else first_at(ids, index, shift, high)
        best = -1
        for each in range(a, b):
            if each != asker and alive[each] and (best < 0 or ids[each] ^ target < ids[best] ^ target):
                best = each
        if best >= 0:
            return best
    return -1


@kernel
def look_up_all(
    ids: Ids,
    index: Int32,
    alive: NDArray[np.uint8],
    numbers: Int64,
    delays: Float64,
    words: Words,
    results: Float64,
    belongs: Int64,
    distances: Ids,
    candidates: Int64,
    flights: Float64,
    picks: Int64,
) -> None:
    """`numbers`: k, alpha, paths, shift of the index, deepest bucket, first mark · `delays`: one way in ms, each as
    likely · flights: (paths · alpha, 3) time, path, candidate's node."""
    k, alpha, paths, shift, deepest, mark = numbers[:6]
    counts = numbers[6:]
    for lookup in range(len(results)):
        mark += 1
        asker = below(words, len(ids))
        while not alive[asker]:
            asker = below(words, len(ids))
        target = u64(words)
        belongs[asker] = mark
        for path in range(paths):
            counts[path] = 0
        flights[:, 0] = -1.0
        found = closest_known(ids, index, shift, asker, target, k, deepest, picks)
        # Seeds, nearest first, are dealt out to the paths in turn.
        for dealt in range(min(found, k)):
            best = -1
            for each in range(found):
                if picks[each] >= 0 and (best < 0 or ids[picks[each]] ^ target < ids[picks[best]] ^ target):
                    best = each
            node = picks[best]
            picks[best] = -1
            path = dealt % paths
            counts[path] = offer(
                distances[path], candidates[path], counts[path], ids[node] ^ target, node, 1, belongs, mark
            )
        now, asked = 0.0, 0
        while True:
            for path in range(paths):
                for slot in range(path * alpha, (path + 1) * alpha):
                    if flights[slot, 0] >= 0.0 or asked >= QUESTIONS_MAX:
                        continue
                    at = next_of(candidates[path], counts[path], k)
                    if at < 0:
                        break
                    candidates[path, at, STATE] = ASKED
                    asked += 1
                    node = candidates[path, at, NODE]
                    took = FAILURE_MS
                    if alive[node]:
                        took = QUESTION_WAYS * delays[below(words, len(delays))]
                    flights[slot, 0] = now + took
                    flights[slot, 1] = path
                    flights[slot, 2] = node
            first = -1
            for slot in range(paths * alpha):
                if flights[slot, 0] >= 0.0 and (first < 0 or flights[slot, 0] < flights[first, 0]):
                    first = slot
            if first < 0:
                break
            now, path, node = flights[first, 0], int(flights[first, 1]), int(flights[first, 2])
            flights[first, 0] = -1.0
            at = 0
            while candidates[path, at, NODE] != node:
                at += 1
            if not alive[node]:
                candidates[path, at, STATE] = FAILED
                continue
            candidates[path, at, STATE] = ANSWERED
            depth = candidates[path, at, DEPTH] + 1
            found = closest_known(ids, index, shift, node, target, k, deepest, picks)
            for each in range(found):
                other = picks[each]
                counts[path] = offer(
                    distances[path], candidates[path], counts[path], ids[other] ^ target, other, depth, belongs, mark
                )
        nearest, hops, distance = -1, 0, _ALL
        for path in range(paths):
            for at in range(counts[path]):
                if candidates[path, at, STATE] == ANSWERED:
                    if nearest < 0 or distances[path, at] < distance:
                        nearest, hops = candidates[path, at, NODE], candidates[path, at, DEPTH]
                        distance = distances[path, at]
                    break
        results[lookup, HOPS] = hops
        results[lookup, RPCS] = asked
        results[lookup, CLOSEST] = nearest == true_closest(ids, index, shift, alive, target, asker)
        results[lookup, MILLISECONDS] = now
    numbers[5] = mark


class LookupModel:
    """Nodes with random ids. `alive`: who is up; all, if it is left out."""

    def __init__(self, nodes: int, *, seed: int, alive: NDArray[np.bool_] | None = None) -> None:
        """Raises NumbaMissing."""
        require_speed(nodes)
        generator = np.random.Generator(np.random.PCG64(int(seeded(seed, "fast.ids")[0])))
        ids = np.unique(generator.integers(0, 2**64, nodes, dtype=np.uint64))
        while len(ids) < nodes:
            ids = np.unique(np.append(ids, generator.integers(0, 2**64, nodes - len(ids), dtype=np.uint64)))
        bits = max(1, min(24, nodes.bit_length() - 1))
        self.ids = ids
        self._shift = _BITS - bits
        starts = np.arange(1 << bits, dtype=np.uint64) << np.uint64(self._shift)
        self._index = np.searchsorted(ids, starts).astype(np.int32)
        self.alive = np.ones(nodes, np.uint8) if alive is None else alive.astype(np.uint8)
        self._belongs = np.zeros(nodes, np.int64)
        self._mark = 0
        self._words = seeded(seed, "fast.lookups")
        neighbours = ids[1:] ^ ids[:-1]
        self._deepest = _BITS - int(neighbours.min()).bit_length() if nodes > 1 else 0

    def look_up(self, count: int, *, k: int, alpha: int, paths: int, ways_ms: Float64 | None = None) -> Lookups:
        """So many lookups of random keys by random nodes that are up. Goes on where the last call ended. `ways_ms`:
        delays of one way, each as likely; U(10, 150) if they are left out."""
        ways = np.linspace(10.0, 150.0, 1_001) if ways_ms is None else ways_ms
        width = max(_CANDIDATES, 3 * k + 4)
        results = np.zeros((count, COLUMNS), np.float64)
        numbers = np.array([k, alpha, paths, self._shift, self._deepest, self._mark, *([0] * paths)], np.int64)
        started = time.process_time()
        with np.errstate(over="ignore"):  # plain-Python kernels multiply words that wrap around
            look_up_all(
                self.ids,
                self._index,
                self.alive,
                numbers,
                ways,
                self._words,
                results,
                self._belongs,
                np.zeros((paths, width), np.uint64),
                np.zeros((paths, width, 3), np.int64),
                np.zeros((paths * alpha, 3), np.float64),
                np.zeros(k * _BITS + k, np.int64),
            )
        self._mark = int(numbers[5])
        return Lookups(
            hops=results[:, HOPS].astype(np.int64),
            rpcs=results[:, RPCS].astype(np.int64),
            found_closest=results[:, CLOSEST] > 0,
            duration_ms=results[:, MILLISECONDS],
            cpu_s=time.process_time() - started,
        )


def run_lookups(nodes: int, count: int, *, seed: int, k: int = 20, alpha: int = 3, paths: int = 2) -> Lookups:
    return LookupModel(nodes, seed=seed).look_up(count, k=k, alpha=alpha, paths=paths)


def true_closest_of(model: LookupModel, target: int, asker: int) -> int:
    """The number of the node that is up and nearest to the target, but the asker; −1: none."""
    return int(true_closest(model.ids, model._index, model._shift, model.alive, np.uint64(target), asker))
