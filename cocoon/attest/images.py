"""Which images a client accepts, with which models: a quote's measurements against release manifests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..errors import UnknownMeasurement
from ..types import SECOND_NS
from .facts import Facts
from .judging import AnyOf, quote_of
from .release import MODELS_MEASURED, Release, check_release_time, unknown_image
from .trail import Trail
from .verifier import DIGEST_BYTES, EVENT_CONFIG, EVENT_IMAGE, EVENT_MODEL, EVENT_SEAL

_COCOON_EVENTS: Final = (EVENT_IMAGE, EVENT_CONFIG, EVENT_MODEL, EVENT_SEAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePolicy:
    """Which images, with which models. No releases refuse everything."""

    releases: tuple[Release, ...] = ()

    def judge(self, facts: Facts, *, now: int, trail: Trail) -> None:
        """Match every measurement with the release that the statement names. Raises at the first that differs."""
        quote_of(facts, trail)
        image = facts.statement.image
        trail.require(
            bool(self.releases), "image.none-accepted", UnknownMeasurement, "the policy accepts no image at all"
        )
        candidates = [release for release in self.releases if release.image == image]
        if not candidates:
            error = unknown_image(image)
            trail.failed(error.reason, str(error))
            raise error
        AnyOf(policies=tuple(_OneRelease(release=r) for r in candidates)).judge(facts, now=now, trail=trail)

    def explain(self) -> tuple[str, ...]:
        """Names of the releases."""
        if not self.releases:
            return ("No image is accepted: every provider is refused until a release is added.",)
        names = ", ".join(f"{r.name} {r.version} (signed by {len(r.builders)} builders)" for r in self.releases[:8])
        return (f"Images: {names}.",)


@dataclass(frozen=True, slots=True, kw_only=True)
class _OneRelease:
    release: Release

    def judge(self, facts: Facts, *, now: int, trail: Trail) -> None:
        release, quote = self.release, quote_of(facts, trail)
        report = quote.report
        with trail.step("release.valid"):
            check_release_time(release, now // SECOND_NS)
        for name, value, accepted in (
            ("image.mrtd", report.mr_td, release.mrtd),
            ("image.rtmr0", report.rtmr[0], release.rtmr0),
            ("image.rtmr1", report.rtmr[1], release.rtmr1),
            ("image.rtmr2", report.rtmr[2], release.rtmr2),
            ("image.mr-config-id", report.mr_config_id, release.mr_config_id),
        ):
            trail.require(
                value in accepted,
                name,
                UnknownMeasurement,
                f"{name.split('.')[1]} {value.hex()[:16]}… is not of {release.name} {release.version}",
            )
        trail.require(
            not any(report.mr_owner) and not any(report.mr_owner_config),
            "image.mr-owner",
            UnknownMeasurement,
            "the host set owner values that nothing measures",
        )
        self._judge_runtime(facts, trail)
        self._judge_models(facts, trail)

    def _judge_runtime(self, facts: Facts, trail: Trail) -> None:
        expected = self.release.rtmr3_before
        before = [event for event in facts.runtime if event.name not in _COCOON_EVENTS]
        first = facts.runtime[: len(before)]
        trail.require(
            len(before) == len(expected)
            and list(first) == before
            and all(
                event.name == name and payload in (None, event.payload)
                for event, (name, payload) in zip(before, expected, strict=True)
            ),
            "image.rtmr3",
            UnknownMeasurement,
            "RTMR3 holds run-time events that the release does not list",
        )

    def _judge_models(self, facts: Facts, trail: Trail) -> None:
        if self.release.models == MODELS_MEASURED:
            trail.passed("image.models", "the image checks weights itself")
            return
        roots = dict(self.release.model_roots)
        for event in facts.runtime:
            if event.name == EVENT_MODEL:
                model, root = event.payload[:DIGEST_BYTES], event.payload[DIGEST_BYTES:]
                trail.require(
                    bool(root) and roots.get(model) == root,
                    "image.model-root",
                    UnknownMeasurement,
                    f"the release lists no such weights for model {model.hex()[:16]}…",
                )

    def explain(self) -> tuple[str, ...]:
        return (f"{self.release.name} {self.release.version}",)
