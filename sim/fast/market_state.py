"""What the fast market keeps: arrays with columns, and one heap of events. Times in virtual seconds, prices in nanoTON.

Not here: what happens (`market_kernel`), scenarios and summaries (`market`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sim.fast.chance import Words
from sim.fast.jit import njit
from sim.fast.state import Float64, Int64

# --- columns of `providers`: what they are, then what they do ------------------------------------------------
(
    MODEL,
    SLOTS,
    TOKENS_PER_S,
    FIRST_TOKEN_S,
    COST,  # of 10^6 output tokens
    PRICE,  # the same; a quarter of it for the prompt's
    CLAIMED_PER_S,
    CLAIMED_FIRST_S,
    RUNNING,
    QUEUED,
    EARNED,
    MADE,  # tokens
    PROMPTS,  # tokens read
    BUSY,  # slot-seconds
    BUSY_SINCE,
    SAID_WAIT_S,  # by its last beacon
    SAID_LOAD,
    SAID_AT,
    IS_SAYING,  # a beacon is on its way, or waits for its turn
    SERVED,
    PROVIDER_COLUMNS,
) = range(21)
SERVICES = 16  # the newest services that an expected wait is made from

# --- columns of `clients` ------------------------------------------------------------------------------------
RATE, VALUE_LOW, VALUE_HIGH, DEADLINE_S, TIME_VALUE, CLIENT_COLUMNS = range(6)

# --- columns of `known`, (clients, KNOWN, columns): what a client saw of a provider --------------------------
WHO, SUCCESSES, AT, SEEN_FIRST_S, SEEN_PER_S, BLOCKED_UNTIL, SESSION_UNTIL, KNOWN_COLUMNS = range(8)
KNOWN = 32  # providers that a client remembers; the one seen longest ago is forgotten

# --- columns of `jobs` ---------------------------------------------------------------------------------------
(
    CLIENT,
    PROVIDER,
    WANTED_MODEL,
    PROMPT,
    TOKENS,
    GOT,
    VALUE,
    WANTED_AT,
    STATUS,
    REFUSALS,
    ATTEMPTS,
    ACCEPTED_AT,
    FIRST_AT,
    STARTED_AT,
    GENERATION,
    EXCLUDED,  # how many providers in `excluded`
    JOB_COLUMNS,
) = range(17)
EXCLUDED_MAX = 28
CHOOSING, OPENING, WAITING, SERVING, OVER = range(5)

# --- columns of `trades`, and how they ended -----------------------------------------------------------------
T_CLIENT, T_PROVIDER, T_ENDED, T_AT, T_FIRST, T_END, T_TOKENS, T_PAID, T_VALUE, T_ATTEMPTS, T_REFUSALS, T_COLUMNS = (
    range(12)
)
DONE, LATE, FAILED, DECLINED = range(4)

# --- kinds of events -----------------------------------------------------------------------------------------
WANT, CHOOSE, ARRIVE, PIECE, DEADLINE, SAY = range(6)

# --- `core` --------------------------------------------------------------------------------------------------
(
    HEAP_SIZE,
    HEAP_ORDER,
    JOB_FREE,  # the last of `free`
    TRADES,
    EVENTS,
    FULL,  # the heap, the jobs or the trades are: the run is void
    RULE,
    MODELS,
    CORE,
) = range(9)
REAL, CHEAPEST, RANDOM, LEAST_LOAD, FULL_INFORMATION = range(5)

# --- `reals` -------------------------------------------------------------------------------------------------
NOW, UNTIL, SURGE_AT, SURGE_UNTIL, SURGE_FACTOR, REALS = range(6)

# --- columns of `models` -------------------------------------------------------------------------------------
PROMPT_MEAN, OUTPUT_MEDIAN, OUTPUT_SIGMA, WEIGHT, MODEL_COLUMNS = range(5)


class Market(NamedTuple):
    core: Int64
    reals: Float64
    providers: Float64
    services: Float64  # (providers, SERVICES), a ring
    queue: Int64  # (providers, longest queue): jobs
    serving: Int64  # (providers, most slots): jobs
    clients: Float64
    known: Float64
    jobs: Float64
    excluded: Int64  # (jobs, EXCLUDED_MAX)
    free: Int64
    trades: Float64
    models: Float64
    ways: Float64  # s, one way between two of them, each as likely
    heap_at: Float64
    heap_what: Int64  # (events, 2): order, kind ‖ generation ‖ index
    words: Words
    scores: Float64  # scratch, per provider
    picks: Int64  # scratch, per provider


@njit
def push(market: Market, at: float, kind: int, generation: int, index: int) -> None:
    """A binary heap by time, then by order."""
    core, times, what = market.core, market.heap_at, market.heap_what
    if core[HEAP_SIZE] == len(times):
        core[FULL] = 1
        return
    core[HEAP_ORDER] += 1
    order = core[HEAP_ORDER]
    here = core[HEAP_SIZE]
    core[HEAP_SIZE] += 1
    while here > 0:
        above = (here - 1) >> 1
        if times[above] <= at:  # who came before keeps its place
            break
        times[here] = times[above]
        what[here, 0], what[here, 1] = what[above, 0], what[above, 1]
        here = above
    times[here] = at
    what[here, 0] = order
    what[here, 1] = (kind << 56) | ((generation & 0xFFFFFF) << 32) | index


@njit
def pop(market: Market) -> int:
    """The first event's word; its time is NOW then. The heap must not be empty."""
    core, times, what = market.core, market.heap_at, market.heap_what
    market.reals[NOW] = times[0]
    found = what[0, 1]
    core[HEAP_SIZE] -= 1
    size = core[HEAP_SIZE]
    at, order, word = times[size], what[size, 0], what[size, 1]
    here = 0
    while True:
        below = 2 * here + 1
        if below >= size:
            break
        other = below + 1
        if other < size and (
            times[other] < times[below] or (times[other] == times[below] and what[other, 0] < what[below, 0])
        ):
            below = other
        if at < times[below] or (at == times[below] and order < what[below, 0]):
            break
        times[here] = times[below]
        what[here, 0], what[here, 1] = what[below, 0], what[below, 1]
        here = below
    times[here] = at
    what[here, 0], what[here, 1] = order, word
    return int(found)


def new_arrays(
    *,
    providers: Float64,
    clients: Float64,
    models: Float64,
    jobs: int,
    trades: int,
    queue: int,
    slots: int,
    ways: Float64,
    words: Words,
) -> Market:
    """A market in which nothing has happened. `jobs`: orders at one time at most; `trades`: in the whole run."""
    count = len(providers)
    known = np.zeros((len(clients), min(KNOWN, count), KNOWN_COLUMNS))
    known[:, :, WHO] = -1
    events = len(clients) + 4 * count + 6 * jobs
    core = np.zeros(CORE, np.int64)
    core[JOB_FREE] = jobs - 1
    return Market(
        core=core,
        reals=np.zeros(REALS),
        providers=providers,
        services=np.zeros((count, SERVICES)),
        queue=np.zeros((count, queue), np.int64),
        serving=np.zeros((count, slots), np.int64),
        clients=clients,
        known=known,
        jobs=np.zeros((jobs, JOB_COLUMNS)),
        excluded=np.zeros((jobs, EXCLUDED_MAX), np.int64),
        free=np.arange(jobs, dtype=np.int64)[::-1].copy(),
        trades=np.zeros((trades, T_COLUMNS)),
        models=models,
        ways=ways,
        heap_at=np.zeros(events),
        heap_what=np.zeros((events, 2), np.int64),
        words=words,
        scores=np.zeros(count),
        picks=np.zeros(max(count, 64), np.int64),
    )
