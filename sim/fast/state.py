"""What the gossip model keeps: one named tuple of arrays that kernels read and write in place, and their columns.

Few arrays with columns instead of many arrays: every array that is handed to a kernel's function costs time, at each
call and in compiling. Time is in ticks of `tick_ns`, from 1 at the start of the run, so that 0 means never. A node's
connections are a row of slots [START, START + COUNT) of `links`: those in its mesh first, the others after them.
Forwarding reads the first MESH slots in sequence and nothing else, which is where the speed comes from.

Not here: what happens to all that (`links`, `mesh`, `gossip_kernel`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.fast.chance import Words, seeded

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

# --- the calendar ----------------------------------------------------------------------------------------------
BUCKET_SHIFT = 4  # ticks per bucket, as a power of two: 160 µs with ticks of 10 µs
RING = 8_192  # buckets: 1.3 s ahead; what is later goes round again
CHUNK = 32  # events per block of a bucket: half a kilobyte, read in sequence
HEAD, TAIL = 0, 1  # columns of `ring`: chunks of a bucket
NEXT, USED = 0, 1  # columns of `chunks`

# --- events: [time ‖ kind ‖ field][size ‖ node ‖ from] ---------------------------------------------------------
# NEWS is an IHAVE with a graft, RESPONSE a message that was asked for, DIAL a connection that is about to stand (node
# dials from), UPKEEP a node's look at its connections.
MESSAGE, IHAVE, IWANT, GRAFT, PRUNE, IDONTWANT, NEWS, RESPONSE, DIAL, UPKEEP = range(10)
QUEUED = 16  # added to a kind: it stands before the receiver's downlink
TIME_SHIFT = 21
KIND_SHIFT = 16
AGE_SHIFT = 6  # an IHAVE carries how long it was under way, in steps of 64 ticks
SIZE_SHIFT = 3  # sizes travel in steps of eight bytes
NODES_MAX = 1 << 24  # a node's number in an event has 24 bits
SLOTS_MAX = 1 << 16  # a message's slot has 16

# --- columns of `nodes` ----------------------------------------------------------------------------------------
START, COUNT, MESH, CAPACITY, ALIVE, SINCE, PHASE, TICKS, SESSION, REGION, NODE_COLUMNS = range(11)

# --- columns of `flows`, ticks and ticks per byte; 0: no limit -------------------------------------------------
UP_PER_BYTE, DOWN_PER_BYTE, UP_BUSY, DOWN_BUSY, QUEUE_BYTES, FLOW_COLUMNS = range(6)

# --- columns of `links` and of `marks`, one row per slot -------------------------------------------------------
PEER, DELAY = 0, 1
BACKOFF = 0  # twice a tick, plus 1 where we dialled; > 1: not grafted before; < 0: its hello arrives then
SCORE, JOINED = 1, 2  # P2 in steps of 1 / SCORE_ONE, and when it came into the mesh; only with scores
MASK_LOW, MASK_HIGH = 3, 4  # IDONTWANT, a bit per message slot; only with v1.2
SCORE_ONE = 1 << 16
NEVER = 1 << 29  # the tick of a hello that was lost

# --- columns of `messages`, a ring: message m has slot m % slots -----------------------------------------------
NUMBER, SOURCE, AT, SIZE, MESSAGE_COLUMNS = range(5)
ASKED_BITS = 2  # of an unseen message's mark: how many were asked

# --- columns and operations of `script`, see `links.run_script` ------------------------------------------------
SCRIPT_COLUMNS = 6  # at, kind, a, b, x, y
PUBLISH, UP, DOWN, CONNECT, DISCONNECT, MESH_ON, MESH_OFF, HELLO = range(8)

# --- counters: the first entries of `core` ---------------------------------------------------------------------
(
    SENT_MESSAGE,
    SENT_IHAVE,
    SENT_IWANT,
    SENT_GRAFT,
    SENT_PRUNE,
    SENT_IDONTWANT,
    SENT_BYTES,
    DELIVERED,  # first copies, the publisher's own not among them
    TIMELY,  # those of nodes that were up when the message was published
    DUPLICATES,
    RECOVERED,  # first copies that came by IWANT
    LOST,
    DROPPED,  # at a full queue
    STALE,  # copies older than the memory for messages
    REFUSED,  # connections that found a full row
    PUBLISHED,
    EXPECTED,  # nodes up at the time of publishing, less the publisher and those that left before they had it
    COUNTERS,
) = range(18)

# --- where the kernel is: the next ones ------------------------------------------------------------------------
(
    EVENTS,
    BUCKET,
    OPEN_CHUNK,
    POSITION,
    FREE_CHUNK,
    FREE_CHUNKS,
    TOP_CHUNK,
    SCRIPT_AT,
    BEAT_AT,
    BEAT_ROUND,
    OLDEST,  # message that may still be spoken of
    NEWEST,
    ALIVE_COUNT,
    PLACES,
) = range(COUNTERS, COUNTERS + 14)
NOT_OPEN = -2

# --- rules: the last ones; real numbers in `reals` -------------------------------------------------------------
(
    DEGREE,
    DEGREE_LOW,
    DEGREE_HIGH,
    DEGREE_LAZY,
    DEGREE_SCORE,
    DEGREE_OUT,
    HEARTBEAT,
    GOSSIP_WINDOWS,
    HISTORY_WINDOWS,
    FOLLOWUP,
    PRUNE_BACKOFF,
    BACKOFF_SLACK,
    FLOOD_PUBLISH,
    HAS_SCORES,
    HAS_IDONTWANT,
    IDONTWANT_BYTES_MIN,
    OPPORTUNISTIC_TICKS,
    OPPORTUNISTIC_PEERS,
    IDS_MAX,
    IS_MAINTAINED,
    DIALS,
    HAS_BANDWIDTH,
    HAS_CHURN,
    MESSAGE_BYTES,
    IDS_BYTES,
    ID_BYTES,
    GRAFT_BYTES,
    PRUNE_BYTES,
    KEEP,
    BIN_TICKS,
    SALT,
    PX_PEERS,
    PX_DIALS_MAX,
    OUTBOUND_BOTH,
    UPKEEP_TICKS,
    REDIALS_MAX,
    CORE,
) = range(PLACES, PLACES + 37)
(
    GOSSIP_FACTOR,
    OPPORTUNISTIC_BELOW,
    TIME_WEIGHT,
    TIME_CAP,
    FIRST_WEIGHT,
    FIRST_CAP,
    FIRST_DECAY,
    TOPIC_CAP,
    JITTER,
    LOSS,
    LATENCY_LOW,
    LATENCY_HIGH,
    PX_SCORE_MIN,
    REALS,
) = range(14)

CHANCE, TRACE = 0, 1  # `words`
IDS, PICKS, RANKS = 0, 1, 2  # `scratch`


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Numbers that do not change during a run, by the names of p2p.gossip.settings. Durations in ticks."""

    degree: int = 6
    degree_low: int = 4
    degree_high: int = 12
    degree_lazy: int = 6
    degree_score: int = 4
    degree_out: int = 2
    heartbeat: int = 100_000
    gossip_windows: int = 3
    history_windows: int = 5
    followup: int = 300_000
    prune_backoff: int = 6_000_000
    backoff_slack: int = 100_000
    flood_publish: bool = True
    has_scores: bool = True
    has_idontwant: bool = False
    idontwant_bytes_min: int = 2048
    opportunistic_ticks: int = 60
    opportunistic_peers: int = 2
    ids_max: int = 5000
    is_maintained: bool = True  # False: the script says who is in whose mesh
    dials: int = 20
    has_bandwidth: bool = False
    has_churn: bool = False
    message_bytes: int = 100  # of the wire form, beyond the payload
    ids_bytes: int = 20  # of an IHAVE or IWANT, beyond its ids
    id_bytes: int = 34  # of each id
    graft_bytes: int = 20
    prune_bytes: int = 24
    keep: int = 2_000_000  # messages older than that are forgotten
    bin_ticks: int = 10  # of the delay histogram
    salt: int = 0  # of the latencies between pairs
    px_peers: int = 16  # peers offered with a PRUNE
    px_dials_max: int = 8
    outbound_both: bool = False  # v1.0 knows no difference between who dialled and who was dialled
    upkeep_ticks: int = 0  # between two looks at one's connections, about; 0: never
    redials_max: int = 4  # at each
    gossip_factor: float = 0.25
    opportunistic_below: float = 2.0
    time_weight: float = 0.0  # P1, per tick in the mesh
    time_cap: float = 0.0  # in ticks
    first_weight: float = 1.0  # P2
    first_cap: float = 50.0
    first_decay: float = 0.97  # per heartbeat
    topic_cap: float = 100.0
    jitter: float = 0.0  # a delay is multiplied by 1 … 1 + jitter
    loss: float = 0.0
    latency_low: float = 1_000.0  # of a pair, uniform; unless there is a matrix
    latency_high: float = 15_000.0
    px_score_min: float = 10.0  # of who prunes, to dial whom it offers

    def arrays(self) -> tuple[Int64, Float64]:
        """`core` and `reals`, with the kernel at its start."""
        core, reals = np.zeros(CORE, np.int64), np.zeros(REALS, np.float64)
        names: Mapping[str, Any] = globals()
        for rule in fields(self):
            target = reals if rule.type == "float" else core
            target[names[rule.name.upper()]] = getattr(self, rule.name)
        core[OPEN_CHUNK] = NOT_OPEN
        core[FREE_CHUNK] = core[NEWEST] = -1
        return core, reals


class Model(NamedTuple):
    core: Int64  # counters, place, rules
    reals: Float64
    nodes: Int32  # (N, NODE_COLUMNS)
    flows: Float64  # (N, FLOW_COLUMNS); one row where there are no limits
    links: Int32  # (slots, 2)
    marks: Int32  # (slots, 1, 3 or 5)
    messages: Int64  # (message slots, MESSAGE_COLUMNS)
    seen: Int32  # (N, message slots): tick of arrival; 0 never; < 0 asked for, until −(value >> ASKED_BITS)
    order: Int32  # nodes by the phase of their heartbeat
    script: Int64  # (operations, SCRIPT_COLUMNS), by time
    ring: Int32  # (RING, 2)
    chunks: Int32  # (chunks, 2)
    events: Int64  # (chunks, 2 · CHUNK)
    delays: Int64  # (2, bins) histogram of first deliveries: all, and those to nodes that were up at the publishing
    words: Words
    scratch: Int64  # (3, longest row or message ring)
    matrix: Float64  # (regions, regions) ticks; 1 × 1: latencies are uniform


class Rows(NamedTuple):
    """A network before it runs."""

    nodes: Int32
    links: Int32
    marks: Int32


def new_rows(capacity: NDArray[Any], *, has_scores: bool, has_idontwant: bool) -> Rows:
    count = len(capacity)
    nodes = np.zeros((count, NODE_COLUMNS), np.int32)
    nodes[1:, START] = np.cumsum(capacity)[:-1]
    nodes[:, CAPACITY] = capacity
    nodes[:, ALIVE] = 1
    slots = int(capacity.sum())
    width = 5 if has_idontwant else 3 if has_scores else 1
    return Rows(nodes=nodes, links=np.zeros((slots, 2), np.int32), marks=np.zeros((slots, width), np.int32))


def draw_phases(nodes: Int32, *, heartbeat: int, seed: int) -> None:
    generator = np.random.Generator(np.random.PCG64(int(seeded(seed, "fast.phases")[0])))
    nodes[:, PHASE] = generator.integers(0, heartbeat, len(nodes))


def grown(model: Model) -> Model:
    """Twice as many chunks. The old ones are copied: a run does it a few times, at its start."""
    count = len(model.chunks)
    events = np.empty((2 * count, 2 * CHUNK), np.int64)
    events[:count] = model.events
    return model._replace(chunks=np.concatenate([model.chunks, np.full((count, 2), -1, np.int32)]), events=events)
