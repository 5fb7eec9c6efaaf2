"""What a client accepts: small objects that judge verified facts, and say in words what they demand.

Each object judges one thing and refuses by raising; none returns a bool. They compose with `AllOf` and `AnyOf`.
`TrustPolicy` is the usual whole: a level, and one object for each question below it. Everything fails closed: an
empty list refuses all, evidence without a quote refuses all, and simulated evidence is refused outside devnet
whatever a policy says (rule S8). A request may only tighten its client's policy: `tightened`.

Judging touches no bytes and takes microseconds, so it is done anew for every request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ..errors import (
    GpuReportInvalid,
    QuoteInvalid,
    StaleEvidence,
    TcbOutOfDate,
    TrustRefused,
    UnknownMeasurement,
)
from ..types import SECOND_NS, Network, TrustLevel
from .facts import Facts
from .images import ImagePolicy
from .judging import AllOf, Policy, quote_of
from .tdx import SEPT_VE_DISABLE, VerifiedQuote
from .trail import Trail

DAY_S: Final = 24 * 3600
# Intel still signs TCB info of older evaluations on request, under which a platform looks better than it is. What
# its standard channel gave when (seen: 17 on 2025-06-19, 18 on 2026-02-18) is the least that is taken later on.
TCB_EVALUATIONS: Final = ((1780272000, 18), (1751328000, 17))  # from 2026-06-01, from 2025-07-01
XFAM_ALLOWED: Final = 0x6DBE7  # x87 to AMX, CET, PKRU: state that TDX switches for the guest (as go-tdx-guest)
XFAM_REQUIRED: Final = 0x3  # x87 and SSE, always set

NOT_STOPPED: Final = (
    (
        "Not stopped: someone with physical access to the machine's memory bus (TEE.fail, WireTap, Battering RAM). "
        "A key stolen that way can forge all of this evidence; a host registry (ppid lists) narrows who could."
    ),
    "Not stopped: traffic analysis of sizes and times, refusal of service, rollback of the guest's disk.",
    "On Hopper, CPU and GPU are tied by keys and nonces, not in silicon.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MinimumLevel:
    """At least this level, on this network."""

    level: TrustLevel
    network: Network

    def judge(self, facts: Facts, *, now: int, trail: Trail) -> None:
        """Refuse weaker levels, other networks, and simulated evidence anywhere but on devnet."""
        trail.require(facts.network is self.network, "level.network", TrustRefused, "evidence of another network")
        trail.require(
            facts.level is not TrustLevel.SIMULATED or self.network is Network.DEVNET,
            "level.simulated-outside-devnet",
            TrustRefused,
            f"simulated evidence is refused on {self.network.label}",
        )
        trail.require(
            facts.level.rank >= self.level.rank,
            "level.too-weak",
            TrustRefused,
            f"the provider proves {facts.level.value}; {self.level.value} is demanded",
            success=facts.level.value,
        )

    def explain(self) -> tuple[str, ...]:
        """One sentence on the level."""
        return (f"Trust level {self.level.value} or stronger. {_LEVEL_WORDS[self.level]}",)


_LEVEL_WORDS: Final = {
    TrustLevel.CONFIDENTIAL: "The key that requests are sealed to lives in a TDX guest, bound to an H100 in "
    "confidential mode.",
    TrustLevel.CPU_CONFIDENTIAL: "The key that requests are sealed to lives in a TDX guest. No GPU is proven.",
    TrustLevel.SIMULATED: "Software pretends to be an enclave: this proves nothing. Devnet only.",
    TrustLevel.OPEN: "No enclave: the provider's operator can read prompts and answers.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbPolicy:
    """Which patch levels of the platform are good enough."""

    statuses: frozenset[str] = frozenset(("UpToDate",))
    advisories_tolerated: frozenset[str] = frozenset()
    evaluation_number_min: int | None = None  # None: what `TCB_EVALUATIONS` says of the time

    def judge(self, facts: Facts, *, now: int, trail: Trail) -> None:
        """Refuse other statuses, advisories that are not tolerated, and old TCB evaluations."""
        self.judge_quote(quote_of(facts, trail), now // SECOND_NS, trail)

    def judge_quote(self, quote: VerifiedQuote, now_s: int, trail: Trail) -> None:
        """The same, of a quote checked on its own."""
        trail.require(
            quote.tcb_status in self.statuses,
            "tdx.tcb-status",
            TcbOutOfDate,
            f"the platform's TCB is {quote.tcb_status}; accepted: {', '.join(sorted(self.statuses)) or 'none'}",
            success=quote.tcb_status,
        )
        # Advisories of an up-to-date platform are mitigated; on any other they are holes.
        standing = set(quote.advisories) if quote.tcb_status != "UpToDate" else set()
        unwanted = sorted(standing - self.advisories_tolerated)
        trail.require(
            not unwanted,
            "tdx.tcb-advisories",
            TcbOutOfDate,
            f"security advisories apply: {', '.join(unwanted[:8])}",
        )
        number_min = self._number_min(now_s)
        trail.require(
            quote.tcb_evaluation_number >= number_min,
            "tdx.tcb-evaluation",
            StaleEvidence,
            f"TCB evaluation {quote.tcb_evaluation_number} is older than {number_min}",
        )

    def _number_min(self, now_s: int) -> int:
        if self.evaluation_number_min is not None:
            return self.evaluation_number_min
        return next((number for since_s, number in TCB_EVALUATIONS if now_s >= since_s), 0)

    def explain(self) -> tuple[str, ...]:
        """Statuses and tolerated advisories."""
        tolerated = ", ".join(sorted(self.advisories_tolerated)) or "none"
        number = TCB_EVALUATIONS[0][1] if self.evaluation_number_min is None else self.evaluation_number_min
        return (
            (
                f"Platform TCB status: {', '.join(sorted(self.statuses)) or 'none'}; "
                f"advisories tolerated: {tolerated}; TCB evaluation {number} or newer."
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestPolicy:
    """How the guest must be configured. Attributes are matched exactly, so DEBUG, PKS and PERFMON are out."""

    attributes: int = SEPT_VE_DISABLE
    xfam_allowed: int = XFAM_ALLOWED
    mr_seam: frozenset[bytes] | None = None  # None: any TDX module that Intel's TCB info lists

    def judge(self, facts: Facts, *, now: int, trail: Trail) -> None:
        """Refuse other attributes, unknown extended state, owner values, and unlisted TDX modules."""
        self.judge_quote(quote_of(facts, trail), trail)

    def judge_quote(self, quote: VerifiedQuote, trail: Trail) -> None:
        """The same, of a quote checked on its own."""
        report = quote.report
        trail.require(
            report.td_attributes == self.attributes,
            "tdx.attributes",
            QuoteInvalid,
            f"guest attributes {report.td_attributes:#x}; only {self.attributes:#x} is accepted",
        )
        trail.require(
            report.xfam & XFAM_REQUIRED == XFAM_REQUIRED and not report.xfam & ~self.xfam_allowed,
            "tdx.xfam",
            QuoteInvalid,
            f"extended features {report.xfam:#x} outside {self.xfam_allowed:#x}",
        )
        trail.require(
            self.mr_seam is None or report.mr_seam in self.mr_seam,
            "tdx.mrseam",
            UnknownMeasurement,
            "the TDX module is not one that the policy lists",
        )

    def explain(self) -> tuple[str, ...]:
        """Attributes in words."""
        modules = "any that Intel lists" if self.mr_seam is None else f"one of {len(self.mr_seam)} pinned"
        return (
            (
                f"Guest: no debugging, no performance monitoring, attributes exactly {self.attributes:#x}; "
                f"TDX module: {modules}."
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgePolicy:
    """How old collateral may be. Intel's root CA CRL is renewed rarely: its own dates and the ratchet bound it."""

    tcb_info_s: int = 14 * DAY_S
    qe_identity_s: int = 14 * DAY_S
    pck_crl_s: int = 14 * DAY_S
    gpu_crl_s: int = 90 * DAY_S
    ocsp_s: int = 2 * DAY_S

    def judge(self, facts: Facts, *, now: int, trail: Trail) -> None:
        """Refuse what is too old or has expired since it was verified."""
        quote, now_s = quote_of(facts, trail), now // SECOND_NS
        self.judge_quote(quote, now_s, trail)
        for gpu in facts.gpus:
            for name, issued_s, age_s in (
                ("gpu.crl", gpu.crl_root.issued_s, self.gpu_crl_s),
                ("gpu.crl", gpu.crl_identity.issued_s, self.gpu_crl_s),
                ("gpu.ocsp", gpu.ocsp.issued_s, self.ocsp_s),
            ):
                _require_age(name, now_s, issued_s, age_s, trail)
            trail.require(now_s <= gpu.expires_s, "gpu.expired", StaleEvidence, "GPU evidence has expired since")

    def judge_quote(self, quote: VerifiedQuote, now_s: int, trail: Trail) -> None:
        """The same, of a quote checked on its own."""
        collateral = quote.collateral
        for name, issued_s, age_s in (
            ("collateral.tcb-info", collateral.tcb_info.issued_s, self.tcb_info_s),
            ("collateral.qe-identity", collateral.qe_identity.issued_s, self.qe_identity_s),
            ("collateral.pck-crl", collateral.pck_crl.issued_s, self.pck_crl_s),
        ):
            _require_age(name, now_s, issued_s, age_s, trail)
        trail.require(now_s <= quote.expires_s, "collateral.expired", StaleEvidence, "collateral has expired since")

    def explain(self) -> tuple[str, ...]:
        """Ages in days."""
        return (
            (
                f"Intel's TCB info at most {self.tcb_info_s // DAY_S} days old, "
                f"QE identity {self.qe_identity_s // DAY_S}, revocation list {self.pck_crl_s // DAY_S}; "
                f"NVIDIA's lists {self.gpu_crl_s // DAY_S} days, device status {self.ocsp_s // 3600} hours."
            ),
        )


def _require_age(name: str, now_s: int, issued_s: int, age_s: int, trail: Trail) -> None:
    trail.require(
        now_s - issued_s <= age_s,
        f"{name}-too-old",
        StaleEvidence,
        f"{name} is {(now_s - issued_s) // 3600} hours old; at most {age_s // 3600}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PpidPolicy:
    """Which machines. `allow=None` takes any; a set takes only its members, an empty one nobody."""

    allow: frozenset[bytes] | None = None
    deny: frozenset[bytes] = frozenset()

    def judge(self, facts: Facts, *, now: int, trail: Trail) -> None:
        """Refuse denied and unlisted machines."""
        ppid = quote_of(facts, trail).ppid
        trail.require(ppid not in self.deny, "ppid.denied", TrustRefused, "the machine is on the deny list")
        trail.require(
            self.allow is None or ppid in self.allow,
            "ppid.unlisted",
            TrustRefused,
            "the machine is not in the list of accepted hosts",
        )

    def explain(self) -> tuple[str, ...]:
        """Who may own the machine."""
        if self.allow is None:
            return (f"Any machine, whoever owns it, except {len(self.deny)} denied ones.",)
        return (f"Only {len(self.allow)} listed machines, less {len(self.deny)} denied ones.",)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPolicy:
    """Which GPU firmware, beyond that NVIDIA lists it. `drivers=None` takes any listed version."""

    drivers: frozenset[str] | None = None
    drivers_denied: frozenset[str] = frozenset()

    def judge(self, facts: Facts, *, now: int, trail: Trail) -> None:
        """Refuse unlisted and denied driver versions."""
        for gpu in facts.gpus:
            trail.require(
                gpu.driver_version not in self.drivers_denied
                and (self.drivers is None or gpu.driver_version in self.drivers),
                "gpu.driver",
                GpuReportInvalid,
                f"GPU driver {gpu.driver_version} is not accepted",
            )

    def explain(self) -> tuple[str, ...]:
        """Driver versions."""
        if self.drivers is None:
            return ("GPU: a Hopper whose driver and VBIOS measurements NVIDIA signed.",)
        return (f"GPU: a Hopper with driver {', '.join(sorted(self.drivers)) or 'none'}.",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """An acceptance: the level that may be shown, for this `now` and this policy only."""

    level: TrustLevel
    facts: Facts = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustPolicy:
    """A client's whole policy."""

    level: TrustLevel
    network: Network
    tcb: TcbPolicy = TcbPolicy()
    guest: GuestPolicy = GuestPolicy()
    ages: AgePolicy = AgePolicy()
    images: ImagePolicy = field(default_factory=ImagePolicy)  # accepts none
    ppid: PpidPolicy = PpidPolicy()
    gpu: GpuPolicy = GpuPolicy()
    extra: tuple[Policy, ...] = ()  # what a request added: it can only tighten

    def judge(self, facts: Facts, *, now: int, trail: Trail | None = None) -> Judgement:
        """Accept the facts at `now` (ns), or raise. A policy of level `open` asks for nothing, and shows `open`."""
        trail = Trail() if trail is None else trail
        MinimumLevel(level=self.level, network=self.network).judge(facts, now=now, trail=trail)
        trail.require(
            facts.verified_ns <= now < facts.expires_ns,
            "facts.expired",
            StaleEvidence,
            "the evidence has to be asked for again",
        )
        if self.level is not TrustLevel.OPEN:
            AllOf(policies=self._parts()).judge(facts, now=now, trail=trail)
        for policy in self.extra:
            policy.judge(facts, now=now, trail=trail)
        level = facts.level if self.level is not TrustLevel.OPEN else TrustLevel.OPEN
        return Judgement(level=level, facts=facts)

    def _parts(self) -> tuple[Policy, ...]:
        return (self.tcb, self.guest, self.ages, self.images, self.ppid, self.gpu)

    def tightened(self, *policies: Policy, level: TrustLevel | None = None) -> TrustPolicy:
        """This policy and more. A lower `level` than ours is ignored (rule S8: requests may only tighten)."""
        stricter = self.level if level is None or level.rank < self.level.rank else level
        return TrustPolicy(
            level=stricter,
            network=self.network,
            tcb=self.tcb,
            guest=self.guest,
            ages=self.ages,
            images=self.images,
            ppid=self.ppid,
            gpu=self.gpu,
            extra=(*self.extra, *policies),
        )

    def explain(self) -> tuple[str, ...]:
        """In sentences: what is trusted, and what it does not stop."""
        lines = list(MinimumLevel(level=self.level, network=self.network).explain())
        if self.level is not TrustLevel.OPEN:
            lines += AllOf(policies=self._parts()).explain()
        for extra in self.extra:
            lines += extra.explain()
        if self.level in (TrustLevel.CONFIDENTIAL, TrustLevel.CPU_CONFIDENTIAL):
            lines += NOT_STOPPED
        return tuple(lines)
