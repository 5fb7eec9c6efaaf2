"""Which provider gets a request: filter, score, sample. Pure; what it returns explains and replays itself.

Filter by what the caller demands (model, trust, features, context, price) and by the breaker. Then, as measured in
simulation against seven other rules (p95 of the first token 4.6 s where least-load had 24, price below the mean):

    cost  = price of the request + value of time · (time to first token + tokens / speed)
    score = cost ÷ (a Thompson draw of the success rate)²
    sample three with odds score⁻⁴, take the best of them

Speeds are first-hand where we have any, else the provider's claim less a quarter; a beacon adds the wait that it
admits. So a liar wins at most until its first answer, and newcomers get their chance.

Nothing here knows a stake's size: stake buys visibility, never rank. Not here: dialling, asking, retrying
(`cocoon.client`); evidence (`cocoon.attest`): trust is filtered by what an offer claims and proven in the session.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final

from ..errors import CocoonError, InvalidRequest, NoProvider, PriceTooHigh, TrustRefused
from ..types import Digest, Feature, Nano, PeerId, Prices, TrustLevel, due_nano, format_ton
from .book import ListedOffer
from .dice import Dice
from .history import NOTHING_OBSERVED, History, Observed
from .offer import NO_FEATURES, VerifiedOffer

SHORTLIST_MAX: Final = 64  # offers that get a Thompson draw; with more, the best by expectation
SAMPLES: Final = 3
ODDS_POWER: Final = 4
PRIOR_SUCCESSES: Final = 3.0  # a newcomer's success rate is drawn from Beta(3, 0.6): mean 0.83
PRIOR_FAILURES: Final = 0.6
CLAIM_DISCOUNT: Final = 0.75  # of an advertised speed, until seen
UNKNOWN_TOKENS_PER_S: Final = 5.0  # for who claims nothing
UNKNOWN_FIRST_TOKEN_MS: Final = 1_000.0
TOKENS_PER_S_BELIEVED_MAX: Final = 1_000.0  # a claim beyond this gains nothing
DRAW_MIN: Final = 0.02
WAIT_BELIEVED_MS_MAX: Final = 60_000
VALUE_OF_TIME_NANO_PER_S: Final = 50_000  # 0.00005 TON: ten seconds weigh like a 1,000-token answer at 0.5 TON/M
LISTED_MAX: Final = 10  # providers named in an error
_TRUST_RANK: Final = {level: level.rank for level in TrustLevel}


class Reason(Enum):
    """Why an offer was not considered."""

    MODEL = "model"
    EXCLUDED = "excluded"  # tried before in this request
    TRUST = "trust"
    FEATURES = "features"
    CONTEXT = "context"
    PRICE = "price"
    BLOCKED = "blocked"  # the breaker is open


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceCeiling:
    """The most that the caller pays per million tokens and per request; None where it does not care."""

    input_nano: Nano | None = None
    output_nano: Nano | None = None
    request_nano: Nano | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a request needs and what it may cost."""

    model: Digest
    trust_min: TrustLevel
    spend_max_nano: Nano  # for the whole request at worst: prompt plus `output_tokens_max`
    prompt_tokens: int  # an estimate from above
    output_tokens_max: int
    output_tokens_expected: int = 300
    features: Feature = NO_FEATURES
    ceiling: PriceCeiling = field(default_factory=PriceCeiling)
    excluded: frozenset[Digest] = frozenset()  # offer digests that this request already tried
    excluded_providers: frozenset[PeerId] = frozenset()
    value_of_time_nano_per_s: Nano = VALUE_OF_TIME_NANO_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An offer and what we know of it, frozen at the time of choosing."""

    listed: ListedOffer
    observed: Observed = NOTHING_OBSERVED

    @property
    def offer(self) -> VerifiedOffer:
        """The offer itself."""
        return self.listed.offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A candidate that passed, and the numbers behind its place."""

    candidate: Candidate
    price_nano: Nano  # of the expected request
    first_token_ms: float
    tokens_per_s: float
    is_first_hand: bool
    cost_nano: float
    success_draw: float
    score: float  # lower is better

    @property
    def offer(self) -> VerifiedOffer:
        """The offer itself."""
        return self.candidate.offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """A candidate that did not pass, and why."""

    candidate: Candidate
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A decision with everything that led to it. `replay` gives the same one again."""

    wish: Wish
    now: int
    seed: bytes
    candidates: tuple[Candidate, ...] = field(repr=False)
    ranked: tuple[Scored, ...]  # the chosen one first, then the order for retries
    filtered: tuple[Filtered, ...]

    @property
    def chosen(self) -> Scored | None:
        """Who gets the request."""
        return self.ranked[0] if self.ranked else None

    @property
    def cheapest_nano(self) -> Nano | None:
        """What the cheapest offer would cost at worst that fails for its price alone."""
        prices = [worst_nano(each.candidate.offer, self.wish) for each in self.filtered if each.reason is Reason.PRICE]
        return min(prices, default=None)

    def error(self, *, tried: Sequence[str] = ()) -> CocoonError:
        """The error to raise when nobody is left. `tried` says where offers were looked for, and earlier attempts."""
        return _explain_nobody(self, tried)

    def as_record(self) -> dict[str, Any]:
        """The decision as plain JSON values, for `why`. Holds no request text."""
        return {
            "at_ns": self.now,
            "seed": self.seed.hex(),
            "model": self.wish.model.hex(),
            "ranked": [
                {
                    "offer": scored.offer.digest.hex(),
                    "provider": scored.offer.provider,
                    "price_nano": scored.price_nano,
                    "first_token_ms": round(scored.first_token_ms, 1),
                    "tokens_per_s": round(scored.tokens_per_s, 1),
                    "first_hand": scored.is_first_hand,
                    "success_draw": round(scored.success_draw, 4),
                    "score": round(scored.score, 1),
                }
                for scored in self.ranked
            ],
            "filtered": [
                {
                    "offer": each.candidate.offer.digest.hex(),
                    "provider": each.candidate.offer.provider,
                    "reason": each.reason.value,
                    "detail": each.detail,
                }
                for each in self.filtered
            ],
        }


def gather(listed: Iterable[ListedOffer], history: History) -> tuple[Candidate, ...]:
    """Offers with our own observations, in an order that does not depend on arrival."""
    return tuple(
        Candidate(listed=each, observed=history.observed(each.reputation_key))
        for each in sorted(listed, key=lambda each: each.offer.digest)
    )


def select(candidates: Sequence[Candidate], wish: Wish, *, now: int, seed: bytes) -> Choice:
    """Choose. `seed` is 32 fresh random bytes; the same arguments give the same choice."""
    filtered: list[Filtered] = []
    passed: list[Candidate] = []
    blocked: list[tuple[Candidate, Filtered]] = []
    for candidate in candidates:
        refusal = _refusal(candidate, wish, now)
        if refusal is None:
            passed.append(candidate)
        elif refusal.reason is Reason.BLOCKED:
            blocked.append((candidate, refusal))
        else:
            filtered.append(refusal)
    if passed or not blocked:
        filtered.extend(refusal for _, refusal in blocked)
    else:  # better somebody who failed lately than nobody
        passed = [candidate for candidate, _ in blocked]
    dice = Dice(seed)
    expected = sorted(
        (_score(candidate, wish) for candidate in passed),
        key=lambda each: (each.score, each.offer.digest),
    )
    scored = [_draw(each, dice) for each in expected[:SHORTLIST_MAX]]
    chosen = _sample(scored, dice)
    ranked = sorted(scored, key=lambda each: (each is not chosen, each.score, each.offer.digest))
    return Choice(
        wish=wish,
        now=now,
        seed=seed,
        candidates=tuple(candidates),
        ranked=(*ranked, *expected[SHORTLIST_MAX:]),
        filtered=tuple(filtered),
    )


def replay(choice: Choice) -> Choice:
    """The same decision, made again from what was recorded."""
    return select(choice.candidates, choice.wish, now=choice.now, seed=choice.seed)


def worst_nano(offer: VerifiedOffer, wish: Wish) -> Nano:
    """What the request costs if the prompt and the answer are as long as they may be."""
    return due_nano(
        offer.prices,
        input_tokens=wish.prompt_tokens,
        cached_tokens=0,
        output_tokens=min(wish.output_tokens_max, offer.offer.output_tokens_max),
    )


# --- filter ----------------------------------------------------------------------------------------------


def _refusal(candidate: Candidate, wish: Wish, now: int) -> Filtered | None:
    verified = candidate.offer
    offer = verified.offer

    def no(reason: Reason, detail: str) -> Filtered:
        return Filtered(candidate=candidate, reason=reason, detail=detail)

    if offer.model != wish.model:
        return no(Reason.MODEL, "another model")
    if verified.digest in wish.excluded or verified.provider in wish.excluded_providers:
        return no(Reason.EXCLUDED, "tried before")
    if _TRUST_RANK[verified.claimed_trust] < _TRUST_RANK[wish.trust_min]:
        return no(Reason.TRUST, f"offers {verified.claimed_trust.value} only")
    missing = int(wish.features) & ~offer.features
    if missing:
        names = ", ".join(feature.name.lower() for feature in Feature if feature & missing and feature.name)
        return no(Reason.FEATURES, f"cannot do {names}")
    if wish.prompt_tokens >= offer.context_tokens_max:
        return no(Reason.CONTEXT, f"takes {offer.context_tokens_max} tokens")
    prices = verified.prices
    if (price := _price_refusal(prices, wish.ceiling)) is not None:
        return no(Reason.PRICE, price)
    worst = due_nano(
        prices,
        input_tokens=wish.prompt_tokens,
        cached_tokens=0,
        output_tokens=min(wish.output_tokens_max, offer.output_tokens_max),
    )
    if worst > wish.spend_max_nano:
        return no(Reason.PRICE, f"may cost {format_ton(worst)} TON")
    if candidate.observed.blocked_until_ns > now:
        wait_s = (candidate.observed.blocked_until_ns - now) / 1e9
        return no(Reason.BLOCKED, f"failed or was busy lately; next try in {wait_s:.0f} s")
    return None


def _price_refusal(prices: Prices, ceiling: PriceCeiling) -> str | None:
    for name, asked, most in (
        ("input", prices.input_nano, ceiling.input_nano),
        ("output", prices.output_nano, ceiling.output_nano),
        ("request", prices.request_nano, ceiling.request_nano),
    ):
        if most is not None and asked > most:
            unit = "a request" if name == "request" else f"a million {name} tokens"
            return f"asks {format_ton(asked)} TON for {unit}"
    return None


# --- score -----------------------------------------------------------------------------------------------


def _score(candidate: Candidate, wish: Wish) -> Scored:
    """By the expected success rate."""
    verified = candidate.offer
    claims = verified.offer.speed
    observed = candidate.observed
    speed = observed.speed(verified.model)
    first_token_ms = claims.first_token_p50_ms / CLAIM_DISCOUNT or UNKNOWN_FIRST_TOKEN_MS
    tokens_per_s = min(claims.tokens_per_s_p50 * CLAIM_DISCOUNT, TOKENS_PER_S_BELIEVED_MAX) or UNKNOWN_TOKENS_PER_S
    if speed is not None:
        first_token_ms = speed.first_token_ms
        tokens_per_s = speed.tokens_per_s or tokens_per_s
    beacon = candidate.listed.beacon
    if beacon is not None:
        first_token_ms += min(beacon.beacon.wait_ms, WAIT_BELIEVED_MS_MAX)
    tokens = min(wish.output_tokens_expected, wish.output_tokens_max, verified.offer.output_tokens_max)
    price = due_nano(verified.prices, input_tokens=wish.prompt_tokens, cached_tokens=0, output_tokens=tokens)
    cost = max(1.0, price + wish.value_of_time_nano_per_s * (first_token_ms / 1000 + tokens / tokens_per_s))
    a, b = _beliefs(candidate.observed)
    success = a / (a + b)
    return Scored(
        candidate=candidate,
        price_nano=price,
        first_token_ms=first_token_ms,
        tokens_per_s=tokens_per_s,
        is_first_hand=speed is not None,
        cost_nano=cost,
        success_draw=success,
        score=cost / success**2,
    )


def _draw(expected: Scored, dice: Dice) -> Scored:
    """By a Thompson draw of the success rate instead."""
    success = max(DRAW_MIN, dice.beta(*_beliefs(expected.candidate.observed)))
    return replace(expected, success_draw=success, score=expected.cost_nano / success**2)


def _beliefs(observed: Observed) -> tuple[float, float]:
    return PRIOR_SUCCESSES + observed.successes, PRIOR_FAILURES + observed.failures


def _sample(scored: list[Scored], dice: Dice) -> Scored | None:
    if not scored:
        return None
    best = min(each.score for each in scored)
    weights = [(best / each.score) ** ODDS_POWER for each in scored]
    return min((scored[dice.pick(weights)] for _ in range(SAMPLES)), key=lambda each: each.score)


# --- nobody ----------------------------------------------------------------------------------------------

_WORDS: Final = {
    Reason.MODEL: "offers another model",
    Reason.EXCLUDED: "was tried already",
    Reason.TRUST: "offers less trust than asked for",
    Reason.FEATURES: "lacks a feature that the request needs",
    Reason.CONTEXT: "has too small a context",
    Reason.PRICE: "asks more than allowed",
    Reason.BLOCKED: "failed lately",
}


def _explain_nobody(choice: Choice, tried: Sequence[str]) -> CocoonError:
    relevant = [each for each in choice.filtered if each.reason is not Reason.MODEL]
    reasons = {each.reason for each in relevant}
    cheapest = choice.cheapest_nano
    if reasons and reasons <= {Reason.CONTEXT}:
        largest = max(each.candidate.offer.offer.context_tokens_max for each in relevant)
        return InvalidRequest(
            f"the prompt has about {choice.wish.prompt_tokens} tokens; the largest context on offer is {largest}",
            param="messages",
            kind="context_length_exceeded",
        )
    if cheapest is not None and reasons <= {Reason.PRICE, Reason.CONTEXT, Reason.FEATURES, Reason.TRUST}:
        lowest = min(
            (each for each in relevant if each.reason is Reason.PRICE),
            key=lambda each: worst_nano(each.candidate.offer, choice.wish),
        )
        return PriceTooHigh(
            f"every provider asks more than allowed; the cheapest may cost {format_ton(cheapest)} TON "
            f"({lowest.detail}), the limit is {format_ton(choice.wish.spend_max_nano)} TON",
            advice="Raise the spending limit or price ceiling, or ask for fewer tokens.",
        )
    if reasons == {Reason.TRUST}:
        return TrustRefused(
            f"no provider of this model claims trust level {choice.wish.trust_min.value}; nothing was sent",
            advice="Wait for such a provider, or state a lower trust level if the prompt may be read by strangers.",
        )
    lines = []
    for reason in Reason:
        count = sum(each.reason is reason for each in relevant)
        if count:
            lines.append(f"{count} {'provider' if count == 1 else 'providers'}: {_WORDS[reason]}")
    lines.extend(tried[:LISTED_MAX])
    what = "no provider can serve this request" if relevant else "nobody offers this model"
    return NoProvider(what, advice="\n".join(lines))
