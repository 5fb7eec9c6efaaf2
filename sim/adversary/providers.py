"""Providers that lie or fail: bait prices, invented speed, idle beacons, black holes, stalls, swapped models, padded
bills.

Each bends the provider's engine, its offer, or its bill; sessions, offers and payees stay the real machines, so
whatever those catch is caught. Baiting costs nothing but the host; a working engine costs what a rented GPU costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cocoon.market.beacon import Load
from cocoon.market.offer import OfferSpec
from sim.adversary.base import GPU_HOUR_NANO, HOST_HOUR_NANO, Action, Adversary, View
from sim.econ.engine import Engine, Job
from sim.rng import Stream

FAIL_MS = 50  # a black hole answers at once


class LyingProvider(Adversary):
    """What they share: a bait price, the cost of the machine, and harm to whoever came."""

    takes = "provider"
    bait = 0.55  # of its honest price
    has_gpu = False
    rng: Stream

    def wrap(self, machine: Any) -> Any:
        """Engine and offer."""
        if isinstance(machine, Engine):
            return self.bend(machine)
        if isinstance(machine, OfferSpec):
            return self.advertise(machine)
        return machine

    def advertise(self, spec: OfferSpec) -> OfferSpec:
        """A bait price."""
        factor = self.param("price_factor", self.bait)
        prices = spec.prices
        return replace(
            spec,
            prices=replace(
                prices,
                input_nano=round(prices.input_nano * factor),
                cached_input_nano=round(prices.cached_input_nano * factor),
                output_nano=round(prices.output_nano * factor),
            ),
        )

    def bend(self, engine: Engine) -> Engine:
        """The engine as it really behaves."""
        return engine

    def plan(self, view: View) -> list[Action]:
        """Rent for each machine, by the second."""
        hour = GPU_HOUR_NANO if self.has_gpu else HOST_HOUR_NANO
        return [Action(name="hosts", cost_nano=len(view.own) * hour // 3_600, do=_nothing)]


def _nothing() -> None:
    pass


class Bent(Engine):
    """An engine that an adversary has bent: behaves as the inner one until the attack is active."""

    def __init__(self, inner: Engine, adversary: LyingProvider) -> None:
        super().__init__(
            inner.kernel,
            slots=inner.slots,
            tokens_per_s=inner.tokens_per_s,
            first_token_ms=inner.first_token_ms,
            queue_max=inner.queue_max,
        )
        self.adversary = adversary


class FailingEngine(Bent):
    """Takes everything and fails at once."""

    def refuses(self, wait_ms_max: int) -> int | None:
        """Never."""
        return None if self.adversary.is_active else super().refuses(wait_ms_max)

    def load(self) -> Load:
        """Always idle."""
        if not self.adversary.is_active:
            return super().load()
        return Load(running=0, queued=0, slots=self.slots)

    def _start(self, job: Job) -> None:
        if not self.adversary.is_active:
            super()._start(job)
            return
        self._account()
        self.running.append(job)
        job.started_ns = self.kernel.now
        self._later(job, FAIL_MS / 1_000, self._fail)

    def _fail(self, job: Job) -> None:
        self.adversary.damage.count("failed_requests")
        self.finish(job, "the engine failed")


class FastFail(LyingProvider):
    """The black hole of every rule that looks at time or load."""

    kind = "fast-fail"

    def bend(self, engine: Engine) -> Engine:
        return FailingEngine(engine, self)


class StallingEngine(Bent):
    """Sends a part of most answers and then nothing more."""

    def submit(self, job: Job) -> None:
        """Decide which ones."""
        adversary = self.adversary
        if adversary.is_active and adversary.rng.chance(adversary.param("stall_share", 0.7)):
            job.extra["stalls_at"] = max(1, int(job.tokens * adversary.param("after_share", 0.2)))
        super().submit(job)

    def load(self) -> Load:
        """Always idle."""
        if not self.adversary.is_active:
            return super().load()
        return Load(running=0, queued=0, slots=self.slots)

    def _piece(self, job: Job) -> None:
        stalls_at = job.extra.get("stalls_at")
        if isinstance(stalls_at, int) and job.made >= stalls_at:
            self.adversary.damage.count("stalled_requests")
            return  # the slot stays taken until the client gives up
        super()._piece(job)


class Stall(LyingProvider):
    """Fine at first sight."""

    kind = "stall"
    has_gpu = True

    def bend(self, engine: Engine) -> Engine:
        return StallingEngine(engine, self)


class SpeedLiar(LyingProvider):
    """Claims several times the speed that it has, at a low price."""

    kind = "speed-liar"
    bait = 0.8

    def advertise(self, spec: OfferSpec) -> OfferSpec:
        factor = self.param("claims_factor", 2.0)
        claimed = replace(
            spec,
            tokens_per_s_p50=round(spec.tokens_per_s_p50 * factor),
            first_token_p50_ms=max(1, round(spec.first_token_p50_ms / factor)),
            first_token_p95_ms=max(1, round(spec.first_token_p95_ms / factor)),
        )
        return super().advertise(claimed)

    def bend(self, engine: Engine) -> Engine:
        slow = self.param("real_factor", 0.35)
        engine.tokens_per_s *= slow
        engine.first_token_ms /= slow
        return engine


class IdleLooking(Bent):
    """Its beacon knows no load, and it queues whatever comes."""

    def load(self) -> Load:
        """Idle, always."""
        if not self.adversary.is_active:
            return super().load()
        return Load(running=0, queued=0, slots=self.slots)

    def refuses(self, wait_ms_max: int) -> int | None:
        """Only when the queue is absurdly long."""
        if not self.adversary.is_active:
            return super().refuses(wait_ms_max)
        return None if len(self.queue) < 8 * self.slots else 1_000


class LoadLiar(LyingProvider):
    """Looks idle to whoever believes beacons."""

    kind = "load-liar"
    bait = 0.9
    has_gpu = True

    def bend(self, engine: Engine) -> Engine:
        return IdleLooking(engine, self)


class PriceLiar(LyingProvider):
    """Bait and switch: offers at a price at which it serves nobody."""

    kind = "price-liar"
    bait = 0.3

    def bend(self, engine: Engine) -> Engine:
        return RefusingEngine(engine, self)


class RefusingEngine(Bent):
    """Always just full."""

    def refuses(self, wait_ms_max: int) -> int | None:
        if not self.adversary.is_active:
            return super().refuses(wait_ms_max)
        self.adversary.damage.count("refusals")
        return 1

    def load(self) -> Load:
        if not self.adversary.is_active:
            return super().load()
        return Load(running=0, queued=0, slots=self.slots)


class ModelSwap(LyingProvider):
    """Answers from another, cheaper model under the same name."""

    kind = "model-swap"
    bait = 0.6
    has_gpu = True

    def bend(self, engine: Engine) -> Engine:
        return SwappingEngine(engine, self)


class SwappingEngine(Bent):
    """Wrong, and faster."""

    def submit(self, job: Job) -> None:
        """Marked, so that the simulation knows."""
        if self.adversary.is_active:
            job.is_wrong = True
            self.adversary.damage.count("wrong_answers")
        super().submit(job)


class TokenInflation(LyingProvider):
    """Bills more than there was: a longer prompt than it got (`mode = "prompt"`), or answers padded with empty words
    (`mode = "padding"`, which no receipt shows)."""

    kind = "token-inflation"
    bait = 0.85
    has_gpu = True

    def bend(self, engine: Engine) -> Engine:
        return PaddingEngine(engine, self) if self.word("mode", "prompt") == "padding" else engine

    def bill(self) -> Callable[[int, int], int]:
        """How many prompt tokens it says there were, of those declared."""

        def inflated(prompt: int, declared: int) -> int:
            if not self.is_active or self.word("mode", "prompt") != "prompt":
                return prompt
            self.damage.count("inflated_bills")
            return declared

        return inflated


class PaddingEngine(Bent):
    """Longer than it need be, up to what the client declared."""

    def submit(self, job: Job) -> None:
        """More of the same."""
        if self.adversary.is_active:
            most = job.extra.get("output_tokens_max", job.tokens)
            padded = min(int(job.tokens * self.adversary.param("factor", 1.5)), int(str(most)))
            self.adversary.damage.count("padded_tokens", padded - job.tokens)
            job.tokens = max(job.tokens, padded)
        super().submit(job)


PROVIDER_ATTACKS: tuple[type[LyingProvider], ...] = (
    FastFail,
    Stall,
    SpeedLiar,
    LoadLiar,
    PriceLiar,
    ModelSwap,
    TokenInflation,
)
