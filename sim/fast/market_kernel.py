"""The fast market's event loop: orders, admission, engines, beacons.

How a client chooses is in `market_choice`. Not modelled: hedges, failures of providers, vouchers that hold output back,
offers that arrive late.
"""

from __future__ import annotations

import math

from sim.econ.engine import FIRST_FACTOR, PIECE_TOKENS, SLOW_FACTOR
from sim.fast import market_state as state
from sim.fast.chance import below, uniform
from sim.fast.jit import kernel, njit
from sim.fast.market_choice import (
    choose_plain,
    choose_real,
    entry_of,
    normal,
    place_of,
    price_of,
    remember,
    succeeded,
    wait_of,
    way_s,
)
from sim.fast.market_state import Market, pop, push
from sim.fast.state import Float64

SHED_WAIT_S, QUEUE_WAIT_S, SHEDS, SHEDS_MAX = 1.0, 30.0, 4, 24  # sim.econ.client: how patient a client is
RETRY_S = 0.4
BEACON_S = 5.0  # at most one in so long
SESSION_WAYS, REQUEST_WAYS = 9, 1  # dialling, evidence and authentication; a request on a session that is open
SESSION_S = 45.0  # idle, then it is left
TOKENS_MIN, TOKENS_MAX, PROMPT_MAX = 8, 4_096, 16_000


# --- engines -------------------------------------------------------------------------------------------------


@njit
def account(row: Float64, now: float) -> None:
    row[state.BUSY] += row[state.RUNNING] * (now - row[state.BUSY_SINCE])
    row[state.BUSY_SINCE] = now


@njit
def load_changed(market: Market, provider: int) -> None:
    """A beacon, now or five seconds after the last one."""
    row, now = market.providers[provider], market.reals[state.NOW]
    if not row[state.IS_SAYING]:
        row[state.IS_SAYING] = 1.0
        push(market, max(now, row[state.SAID_AT] + BEACON_S), state.SAY, 0, provider)


@njit
def start_job(market: Market, provider: int, job: int) -> None:
    row, jobs, now = market.providers[provider], market.jobs, market.reals[state.NOW]
    account(row, now)
    market.serving[provider, int(row[state.RUNNING])] = job
    row[state.RUNNING] += 1
    row[state.PROMPTS] += jobs[job, state.PROMPT]
    jobs[job, state.STATUS] = state.SERVING
    jobs[job, state.STARTED_AT] = now
    load = row[state.RUNNING] / row[state.SLOTS]
    at = now + row[state.FIRST_TOKEN_S] * (1 + FIRST_FACTOR * load)
    push(market, at, state.PIECE, int(jobs[job, state.GENERATION]), job)


@njit
def leave_engine(market: Market, job: int) -> None:
    """Out of its slot or its place in the queue; who waits moves up."""
    jobs, provider = market.jobs, int(market.jobs[job, state.PROVIDER])
    row, now = market.providers[provider], market.reals[state.NOW]
    if jobs[job, state.STATUS] == state.WAITING:
        line, length = market.queue[provider], int(row[state.QUEUED])
        at = 0
        while at < length and line[at] != job:
            at += 1
        for each in range(at, length - 1):
            line[each] = line[each + 1]
        row[state.QUEUED] -= 1
    elif jobs[job, state.STATUS] == state.SERVING:
        account(row, now)
        line, length = market.serving[provider], int(row[state.RUNNING])
        for each in range(length):
            if line[each] == job:
                line[each] = line[length - 1]
                break
        row[state.RUNNING] -= 1
        while row[state.QUEUED] > 0 and row[state.RUNNING] < row[state.SLOTS]:
            line = market.queue[provider]
            following = line[0]
            for each in range(int(row[state.QUEUED]) - 1):
                line[each] = line[each + 1]
            row[state.QUEUED] -= 1
            start_job(market, provider, following)
    jobs[job, state.STATUS] = state.CHOOSING
    load_changed(market, provider)


# --- orders --------------------------------------------------------------------------------------------------


@njit
def end_order(market: Market, job: int, how: int) -> None:
    core, jobs, now = market.core, market.jobs, market.reals[state.NOW]
    if core[state.TRADES] == len(market.trades):
        core[state.FULL] = 1
        return
    trade = market.trades[core[state.TRADES]]
    core[state.TRADES] += 1
    provider = int(jobs[job, state.PROVIDER])
    trade[state.T_CLIENT] = jobs[job, state.CLIENT]
    trade[state.T_PROVIDER] = provider
    trade[state.T_ENDED] = how
    trade[state.T_AT] = jobs[job, state.WANTED_AT]
    trade[state.T_FIRST] = jobs[job, state.FIRST_AT]
    trade[state.T_END] = now
    trade[state.T_TOKENS] = jobs[job, state.GOT]
    if jobs[job, state.GOT] > 0:
        paid = price_of(market.providers[provider], jobs[job, state.PROMPT], jobs[job, state.GOT])
        trade[state.T_PAID] = paid
        market.providers[provider, state.EARNED] += paid
    trade[state.T_VALUE] = jobs[job, state.VALUE]
    trade[state.T_ATTEMPTS] = jobs[job, state.ATTEMPTS]
    trade[state.T_REFUSALS] = jobs[job, state.REFUSALS]
    jobs[job, state.STATUS] = state.OVER
    jobs[job, state.GENERATION] += 1
    core[state.JOB_FREE] += 1
    market.free[core[state.JOB_FREE]] = job


@njit
def on_choose(market: Market, job: int) -> None:
    core, jobs, now = market.core, market.jobs, market.reals[state.NOW]
    if jobs[job, state.REFUSALS] >= SHEDS_MAX:
        end_order(market, job, state.FAILED)
        return
    rule = core[state.RULE]
    provider = choose_real(market, job) if rule == state.REAL else choose_plain(market, job, rule)
    if provider < 0:
        if jobs[job, state.ATTEMPTS] == 0 and jobs[job, state.REFUSALS] == 0:
            end_order(market, job, state.DECLINED)
            return
        jobs[job, state.EXCLUDED] = 0  # better somebody who refused before than nobody
        push(market, now + RETRY_S, state.CHOOSE, int(jobs[job, state.GENERATION]), job)
        return
    if jobs[job, state.EXCLUDED] < state.EXCLUDED_MAX:
        market.excluded[job, int(jobs[job, state.EXCLUDED])] = provider
        jobs[job, state.EXCLUDED] += 1
    client = int(jobs[job, state.CLIENT])
    place = remember(market, client, provider)
    is_open = now < market.known[client, place, state.SESSION_UNTIL]
    ways = REQUEST_WAYS if is_open else SESSION_WAYS
    market.known[client, place, state.SESSION_UNTIL] = now + SESSION_S
    jobs[job, state.PROVIDER] = provider
    jobs[job, state.ATTEMPTS] += 1
    jobs[job, state.STATUS] = state.OPENING
    at = now + ways * way_s(market, client, provider)
    push(market, at, state.ARRIVE, int(jobs[job, state.GENERATION]), job)


@njit
def on_arrive(market: Market, job: int) -> None:
    """At the provider: admitted, queued, or refused unbilled."""
    jobs, now = market.jobs, market.reals[state.NOW]
    provider, client = int(jobs[job, state.PROVIDER]), int(jobs[job, state.CLIENT])
    row = market.providers[provider]
    is_patient = market.core[state.RULE] != state.REAL or jobs[job, state.REFUSALS] >= SHEDS
    place = place_of(row)
    most = QUEUE_WAIT_S if is_patient else SHED_WAIT_S
    if place > 0 and (place > 2 * row[state.SLOTS] or wait_of(market, provider, place) > most):
        retry = max(0.2, wait_of(market, provider, 1.0))
        back = way_s(market, client, provider)
        at = remember(market, client, provider)
        known = market.known[client, at]
        known[state.BLOCKED_UNTIL] = max(known[state.BLOCKED_UNTIL], now + back + min(retry, 1024.0))
        jobs[job, state.REFUSALS] += 1
        jobs[job, state.ATTEMPTS] -= 1
        jobs[job, state.STATUS] = state.CHOOSING
        push(market, now + back, state.CHOOSE, int(jobs[job, state.GENERATION]), job)
        return
    jobs[job, state.ACCEPTED_AT] = now
    if row[state.RUNNING] < row[state.SLOTS]:
        start_job(market, provider, job)
    else:
        market.queue[provider, int(row[state.QUEUED])] = job
        row[state.QUEUED] += 1
        jobs[job, state.STATUS] = state.WAITING
    load_changed(market, provider)


@njit
def on_piece(market: Market, job: int) -> None:
    jobs, now = market.jobs, market.reals[state.NOW]
    provider, client = int(jobs[job, state.PROVIDER]), int(jobs[job, state.CLIENT])
    row = market.providers[provider]
    left = jobs[job, state.TOKENS] - jobs[job, state.GOT]
    count = 1.0 if jobs[job, state.GOT] == 0 else min(float(PIECE_TOKENS), left)
    if jobs[job, state.GOT] == 0:
        jobs[job, state.FIRST_AT] = now + way_s(market, client, provider)
    jobs[job, state.GOT] += count
    row[state.MADE] += count
    left -= count
    if left > 0:
        load = row[state.RUNNING] / row[state.SLOTS]
        at = now + min(float(PIECE_TOKENS), left) * (1 + SLOW_FACTOR * load) / row[state.TOKENS_PER_S]
        push(market, at, state.PIECE, int(jobs[job, state.GENERATION]), job)
        return
    market.services[provider, int(row[state.SERVED]) % state.SERVICES] = now - jobs[job, state.STARTED_AT]
    row[state.SERVED] += 1
    leave_engine(market, job)
    decode = now + way_s(market, client, provider) - jobs[job, state.FIRST_AT]
    per_s = jobs[job, state.GOT] / decode if decode > 0 else 0.0
    succeeded(market, client, provider, jobs[job, state.FIRST_AT] - jobs[job, state.ACCEPTED_AT], per_s)
    place = entry_of(market, client, provider)
    market.known[client, place, state.SESSION_UNTIL] = now + SESSION_S
    market.reals[state.NOW] = now + way_s(market, client, provider)  # when the client has it
    is_late = market.reals[state.NOW] - jobs[job, state.WANTED_AT] > market.clients[client, state.DEADLINE_S]
    end_order(market, job, state.LATE if is_late else state.DONE)
    market.reals[state.NOW] = now


@njit
def plan_want(market: Market, client: int) -> None:
    reals, now = market.reals, market.reals[state.NOW]
    rate = market.clients[client, state.RATE]
    if rate <= 0.0:
        return
    if reals[state.SURGE_AT] > 0.0 and reals[state.SURGE_AT] <= now < reals[state.SURGE_UNTIL]:
        rate *= reals[state.SURGE_FACTOR]
    wait = -math.log(1.0 - uniform(market.words)) / rate
    if now + wait < reals[state.UNTIL]:
        push(market, now + wait, state.WANT, 0, client)


@njit
def on_want(market: Market, client: int) -> None:
    core, jobs, words, now = market.core, market.jobs, market.words, market.reals[state.NOW]
    plan_want(market, client)
    if core[state.JOB_FREE] < 0:
        core[state.FULL] = 1
        return
    job = market.free[core[state.JOB_FREE]]
    core[state.JOB_FREE] -= 1
    generation = jobs[job, state.GENERATION]
    jobs[job, :] = 0.0
    jobs[job, state.GENERATION] = generation
    total, model = 0.0, 0
    for each in range(core[state.MODELS]):
        total += market.models[each, state.WEIGHT]
    left = uniform(words) * total
    while model < core[state.MODELS] - 1 and left >= market.models[model, state.WEIGHT]:
        left -= market.models[model, state.WEIGHT]
        model += 1
    spec = market.models[model]
    tokens = round(spec[state.OUTPUT_MEDIAN] * math.exp(spec[state.OUTPUT_SIGMA] * normal(words)))
    prompt = round(spec[state.PROMPT_MEAN] * 0.8 * math.exp(0.6 * normal(words)))
    low, high = market.clients[client, state.VALUE_LOW], market.clients[client, state.VALUE_HIGH]
    jobs[job, state.CLIENT] = client
    jobs[job, state.PROVIDER] = -1
    jobs[job, state.WANTED_MODEL] = model
    jobs[job, state.TOKENS] = min(max(float(tokens), TOKENS_MIN), TOKENS_MAX)
    jobs[job, state.PROMPT] = min(max(float(prompt), 1.0), PROMPT_MAX)
    jobs[job, state.VALUE] = low + below(words, int(high - low) + 1)
    jobs[job, state.WANTED_AT] = now
    push(market, now + market.clients[client, state.DEADLINE_S], state.DEADLINE, int(generation), job)
    on_choose(market, job)


@njit
def on_say(market: Market, provider: int) -> None:
    """The beacon leaves; clients hear of it a little later, all at once."""
    row, reals = market.providers[provider], market.reals
    row[state.IS_SAYING] = 0.0
    row[state.SAID_AT] = reals[state.NOW]
    row[state.SAID_WAIT_S] = wait_of(market, provider, place_of(row))
    row[state.SAID_LOAD] = (row[state.RUNNING] + row[state.QUEUED]) / row[state.SLOTS]


@kernel
def run(market: Market, until: float) -> None:
    """Everything before that time, or until FULL."""
    core, jobs = market.core, market.jobs
    while core[state.HEAP_SIZE] > 0 and market.heap_at[0] < until and not core[state.FULL]:
        word = pop(market)
        core[state.EVENTS] += 1
        kind, generation, index = word >> 56, (word >> 32) & 0xFFFFFF, word & 0xFFFFFFFF
        if kind == state.WANT:
            on_want(market, index)
        elif kind == state.SAY:
            on_say(market, index)
        elif int(jobs[index, state.GENERATION]) & 0xFFFFFF != generation:
            continue  # of an order that is over
        elif kind == state.CHOOSE:
            on_choose(market, index)
        elif kind == state.ARRIVE:
            on_arrive(market, index)
        elif kind == state.PIECE:
            on_piece(market, index)
        else:
            if jobs[index, state.STATUS] == state.WAITING or jobs[index, state.STATUS] == state.SERVING:
                leave_engine(market, index)
            end_order(market, index, state.LATE if jobs[index, state.GOT] > 0 else state.FAILED)


@kernel
def begin(market: Market) -> None:
    """Every client's first wish."""
    for client in range(len(market.clients)):
        plan_want(market, client)
