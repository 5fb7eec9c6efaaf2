"""How a client of the fast market chooses: what it has seen, and `cocoon.market.selection`'s rule over it.

Expected cost over the squared success rate, a Thompson draw for the best 64, odds by the fourth power, the best of
three samples. The constants are imported from there, and so are the engine's from `sim.econ`. The other rules are those
that ours is compared with (`sim.econ.rules`).
"""

from __future__ import annotations

import math

import numpy as np

from cocoon.market.selection import (
    CLAIM_DISCOUNT,
    DRAW_MIN,
    ODDS_POWER,
    PRIOR_FAILURES,
    PRIOR_SUCCESSES,
    SAMPLES,
    SHORTLIST_MAX,
    TOKENS_PER_S_BELIEVED_MAX,
)
from sim.econ.engine import FIRST_FACTOR, SLOW_FACTOR
from sim.fast import market_state as state
from sim.fast.chance import Words, mix, uniform
from sim.fast.jit import njit
from sim.fast.market_state import Market
from sim.fast.state import Float64

BEACON_LIFE_S = 30.0
BEACON_WAIT_S_MAX = 60.0  # cocoon.market.selection.WAIT_BELIEVED_MS_MAX
FADE_S = 6 * 3600.0  # cocoon.market.history: a success weighs half after six hours
BETTER, WORSE = 0.2, 0.6
TYPICAL_S = 2.0  # of a service, before there was one

_32, _PAIR = np.uint64(32), np.uint64(0x1F123BB5)


# --- chance --------------------------------------------------------------------------------------------------


@njit
def normal(words: Words) -> float:
    return math.sqrt(-2.0 * math.log(1.0 - uniform(words))) * math.cos(2.0 * math.pi * uniform(words))


@njit
def gamma(words: Words, shape: float) -> float:
    """Marsaglia and Tsang; shape ≥ 1."""
    d = shape - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    while True:
        x = normal(words)
        v = 1.0 + c * x
        v = v * v * v
        if v > 0.0 and math.log(1.0 - uniform(words)) < 0.5 * x * x + d - d * v + d * math.log(v):
            return d * v


@njit
def beta(words: Words, a: float, b: float) -> float:
    x = gamma(words, a)
    y = gamma(words, b + 1.0) * (1.0 - uniform(words)) ** (1.0 / b) if b < 1.0 else gamma(words, b)
    return x / (x + y)


@njit
def odds(ratio: float) -> float:
    """To the power ODDS_POWER, by multiplication: as in plain Python, to the last bit."""
    found = 1.0
    for _ in range(ODDS_POWER):
        found *= ratio
    return found


@njit
def way_s(market: Market, client: int, provider: int) -> float:
    """One way between two of them: the same each time, drawn from their numbers."""
    word = mix((np.uint64(client) << _32) + np.uint64(provider) + _PAIR)
    return float(market.ways[int((word >> _32) % np.uint64(len(market.ways)))])


# --- what a client knows -------------------------------------------------------------------------------------


@njit
def entry_of(market: Market, client: int, provider: int) -> int:
    """Where the client remembers the provider; −1: nowhere."""
    known = market.known
    for place in range(known.shape[1]):
        if known[client, place, state.WHO] == provider:
            return place
    return -1


@njit
def remember(market: Market, client: int, provider: int) -> int:
    """The same, made if need be, in the place of whom it saw longest ago; what was known is faded to now."""
    known, now = market.known, market.reals[state.NOW]
    place = entry_of(market, client, provider)
    if place >= 0:
        age = now - known[client, place, state.AT]
        known[client, place, state.SUCCESSES] *= 0.5 ** (age / FADE_S)
        known[client, place, state.AT] = now
        return place
    place = 0
    for other in range(known.shape[1]):
        if known[client, other, state.WHO] < 0:
            place = other
            break
        if known[client, other, state.AT] < known[client, place, state.AT]:
            place = other
    known[client, place, :] = 0.0
    known[client, place, state.WHO] = provider
    known[client, place, state.AT] = now
    return place


@njit
def blend(old: float, new: float, is_worse: bool) -> float:
    return old + (WORSE if is_worse else BETTER) * (new - old)


@njit
def succeeded(market: Market, client: int, provider: int, first_s: float, per_s: float) -> None:
    known = market.known
    place = remember(market, client, provider)
    seen = known[client, place]
    seen[state.SUCCESSES] += 1
    seen[state.BLOCKED_UNTIL] = 0.0
    if seen[state.SEEN_FIRST_S] == 0.0:
        seen[state.SEEN_FIRST_S], seen[state.SEEN_PER_S] = first_s, per_s
        return
    seen[state.SEEN_FIRST_S] = blend(seen[state.SEEN_FIRST_S], first_s, first_s > seen[state.SEEN_FIRST_S])
    if per_s > 0.0:
        seen[state.SEEN_PER_S] = blend(seen[state.SEEN_PER_S], per_s, per_s < seen[state.SEEN_PER_S])


# --- prices and waits ------------------------------------------------------------------------------------------


@njit
def price_of(row: Float64, prompt: float, tokens: float) -> float:
    """As `due_nano`: a quarter of the price for the prompt, rounded up."""
    return float(math.ceil((math.floor(row[state.PRICE] / 4) * prompt + row[state.PRICE] * tokens) / 1e6))


@njit
def place_of(row: Float64) -> float:
    """Of one more request in the queue."""
    return float(max(0.0, row[state.RUNNING] + row[state.QUEUED] + 1 - row[state.SLOTS]))


@njit
def wait_of(market: Market, provider: int, place: float) -> float:
    """What a place in the queue costs, by the middle one of the last services."""
    row, served = market.providers[provider], market.services[provider]
    if place <= 0.0:
        return 0.0
    count = int(min(row[state.SERVED], state.SERVICES))
    typical = TYPICAL_S
    if count:
        for each in range(count):
            smaller, same = 0, 0
            for other in range(count):
                smaller += served[other] < served[each]
                same += served[other] == served[each]
            if smaller <= count // 2 < smaller + same:
                typical = served[each]
                break
    return float(typical * place / row[state.SLOTS])


# --- choosing ------------------------------------------------------------------------------------------------


@njit
def is_excluded(market: Market, job: int, provider: int) -> bool:
    is_found = False
    for each in range(int(market.jobs[job, state.EXCLUDED])):
        is_found = is_found or market.excluded[job, each] == provider
    return is_found


@njit
def expected_cost(market: Market, job: int, provider: int, place: int) -> float:
    """Price, and the worth of the time that it is believed to take."""
    row, known = market.providers[provider], market.known
    client, now = int(market.jobs[job, state.CLIENT]), market.reals[state.NOW]
    tokens = market.jobs[job, state.TOKENS]
    first_s = row[state.CLAIMED_FIRST_S] / CLAIM_DISCOUNT
    per_s = min(row[state.CLAIMED_PER_S] * CLAIM_DISCOUNT, TOKENS_PER_S_BELIEVED_MAX)
    if place >= 0 and known[client, place, state.SEEN_FIRST_S] > 0.0:
        first_s = known[client, place, state.SEEN_FIRST_S]
        if known[client, place, state.SEEN_PER_S] > 0.0:
            per_s = known[client, place, state.SEEN_PER_S]
    if now < row[state.SAID_AT] + BEACON_LIFE_S:
        first_s += min(row[state.SAID_WAIT_S], BEACON_WAIT_S_MAX)
    price = price_of(row, market.jobs[job, state.PROMPT], tokens)
    return float(max(1.0, price + market.clients[client, state.TIME_VALUE] * (first_s + tokens / per_s)))


@njit
def choose_real(market: Market, job: int) -> int:
    """As `cocoon.market.selection.select`; −1: nobody, or nobody worth it."""
    jobs, known, words, now = market.jobs, market.known, market.words, market.reals[state.NOW]
    client = int(jobs[job, state.CLIENT])
    scores, picks = market.scores, market.picks
    listed = 0
    for attempt in range(2):  # the second time those whose breaker is open: better than nobody
        for provider in range(len(market.providers)):
            row = market.providers[provider]
            if row[state.MODEL] != jobs[job, state.WANTED_MODEL] or is_excluded(market, job, provider):
                continue
            if price_of(row, jobs[job, state.PROMPT], jobs[job, state.TOKENS]) > jobs[job, state.VALUE]:
                continue
            place = entry_of(market, client, provider)
            if attempt == 0 and place >= 0 and known[client, place, state.BLOCKED_UNTIL] > now:
                continue
            successes = 0.0
            if place >= 0:
                successes = known[client, place, state.SUCCESSES]
            rate = (PRIOR_SUCCESSES + successes) / (PRIOR_SUCCESSES + successes + PRIOR_FAILURES)
            score = expected_cost(market, job, provider, place) / (rate * rate)
            at = listed
            if listed == SHORTLIST_MAX:
                if score >= scores[listed - 1]:
                    continue
                at = listed - 1
            else:
                listed += 1
            while at > 0 and scores[at - 1] > score:
                scores[at] = scores[at - 1]
                picks[at] = picks[at - 1]
                at -= 1
            scores[at] = score
            picks[at] = provider
        if listed:
            break
    if listed == 0:
        return -1
    best = math.inf
    for each in range(listed):
        place = entry_of(market, client, picks[each])
        successes = 0.0
        if place >= 0:
            successes = known[client, place, state.SUCCESSES]
        draw = max(DRAW_MIN, beta(words, PRIOR_SUCCESSES + successes, PRIOR_FAILURES))
        scores[each] = expected_cost(market, job, picks[each], place) / (draw * draw)
        best = min(best, scores[each])
    total = 0.0
    for each in range(listed):
        total += odds(best / scores[each])
    chosen = -1
    for _ in range(SAMPLES):
        left = uniform(words) * total
        found = listed - 1
        for each in range(listed):
            left -= odds(best / scores[each])
            if left < 0.0:
                found = each
                break
        if chosen < 0 or scores[found] < scores[chosen]:
            chosen = found
    provider = picks[chosen]
    is_first = jobs[job, state.ATTEMPTS] == 0
    if is_first and expected_cost(market, job, provider, entry_of(market, client, provider)) > jobs[job, state.VALUE]:
        return -1
    return int(provider)


@njit
def true_cost(market: Market, job: int, provider: int) -> float:
    """Price, and the worth of the time that its engine would take from now."""
    row, tokens = market.providers[provider], market.jobs[job, state.TOKENS]
    load = min(1.0, (row[state.RUNNING] + 1) / row[state.SLOTS])
    seconds = row[state.FIRST_TOKEN_S] * (1 + FIRST_FACTOR * load)
    seconds += tokens * (1 + SLOW_FACTOR * load) / row[state.TOKENS_PER_S] + wait_of(market, provider, place_of(row))
    price = price_of(row, market.jobs[job, state.PROMPT], tokens)
    return float(price + market.clients[int(market.jobs[job, state.CLIENT]), state.TIME_VALUE] * seconds)


@njit
def choose_plain(market: Market, job: int, rule: int) -> int:
    """The rules that ours is compared with: the least of one number; −1: nobody."""
    jobs, now = market.jobs, market.reals[state.NOW]
    best, least = -1, math.inf
    for provider in range(len(market.providers)):
        row = market.providers[provider]
        if row[state.MODEL] != jobs[job, state.WANTED_MODEL] or is_excluded(market, job, provider):
            continue
        if price_of(row, jobs[job, state.PROMPT], jobs[job, state.TOKENS]) > jobs[job, state.VALUE]:
            continue
        if rule == state.CHEAPEST:
            number = row[state.PRICE]
        elif rule == state.LEAST_LOAD:
            said = row[state.SAID_LOAD] if now < row[state.SAID_AT] + BEACON_LIFE_S else 0.0
            number = said + 1e-6 * uniform(market.words)
        elif rule == state.RANDOM:
            number = uniform(market.words)
        else:
            number = true_cost(market, job, provider)
        if number < least:
            best, least = provider, number
    if rule == state.FULL_INFORMATION and best >= 0 and least > jobs[job, state.VALUE]:
        return -1
    return best
