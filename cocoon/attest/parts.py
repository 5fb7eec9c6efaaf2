"""Evidence checked for people: single parts, or one whole saved session, with every check listed.

A part alone can be genuine, fresh and well configured; it cannot be *trusted*, because nothing ties it to a key or
an accepted image. What a part leaves open is listed in `not_checked`. Only a whole session reaches a trust level.
These functions never raise for bad evidence: a refusal is their answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..errors import AttestationError, EventLogInvalid, EvidenceMalformed, GpuReportInvalid
from ..types import SECOND_NS, Network, TrustLevel
from . import limits
from .eventlog import Event, detect_kind, read_log, replay
from .evidence import assemble, decode_hardware, decode_saved
from .facts import Facts
from .gpu.report import GpuReport
from .gpu.rim import VerifiedRim, verify_rim
from .gpu.verify import check_revocation, match_rims, pick_rims, verify_report
from .policy import AgePolicy, GuestPolicy, TcbPolicy, TrustPolicy
from .quote import TdReport, read_report, strip_padding
from .roots import Anchors, hardware
from .tdx import VerifiedQuote, verify_quote
from .trail import Check, Trail
from .verifier import Expected, SessionEvidence, Verifier

Claims = dict[str, Any]
_GPU_TEXTS: Final = ("driver_version", "vbios_version", "driver_rim_id", "vbios_rim_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer about a part or a session. `reason` is the name of the failed check."""

    accepted: bool
    reason: str | None
    message: str
    checks: tuple[Check, ...]
    not_checked: tuple[str, ...]
    claims: Claims

    def as_json(self) -> dict[str, Any]:
        """One object for programs."""
        return {
            "verdict": "accepted" if self.accepted else "refused",
            "reason": self.reason,
            "message": self.message,
            "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in self.checks],
            "not_checked": list(self.not_checked),
            "claims": self.claims,
        }


def check_tdx(
    quote: bytes, collateral: bytes, *, now_s: int, event_log: bytes | None = None, anchors: Anchors | None = None
) -> Verdict:
    """A quote with its collateral under the default policy. Zeros of a quote device's buffer are cut off."""

    def run(trail: Trail, claims: Claims) -> None:
        exact = strip_padding(quote)
        claims.update(_report_claims(read_report(exact).report))
        proven = verify_quote(exact, collateral, anchors=anchors or hardware(), now_s=now_s, trail=trail)
        claims.update(_quote_claims(proven))
        TcbPolicy().judge_quote(proven, now_s, trail)
        GuestPolicy().judge_quote(proven, trail)
        AgePolicy().judge_quote(proven, now_s, trail)
        if event_log is None:
            trail.skipped("eventlog.replay")
        else:
            _replay(event_log, proven.report, trail, claims)
        for name in ("binding.report-data", "policy.images", "policy.ppid", "ratchet"):
            trail.skipped(name)

    return _verdict(run)


def check_event_log(log: bytes, *, quote: bytes | None = None) -> Verdict:
    """An event log, replayed, and compared with a quote's RTMRs if one is given (the quote itself is not checked)."""

    def run(trail: Trail, claims: Claims) -> None:
        if quote is None:
            events = _read(log, trail)
            claims.update(_log_claims(events))
            trail.skipped("eventlog.replay")
        else:
            with trail.step("tdx.format"):
                report = read_report(quote).report
            _replay(log, report, trail, claims)
        trail.skipped("tdx.signature-chain")

    return _verdict(run)


def check_rim(data: bytes, *, now_s: int, anchors: Anchors | None = None) -> Verdict:
    """A reference-measurement file."""

    def run(trail: Trail, claims: Claims) -> None:
        rim = verify_rim(data, anchors=anchors or hardware(), now_s=now_s, trail=trail)
        claims.update(_rim_claims(rim))
        for name in ("rim.ocsp", "gpu.rim-version", "gpu.measurements"):
            trail.skipped(name)

    return _verdict(run)


def check_gpu(
    report: bytes,
    chain: bytes,
    *,
    now_s: int,
    rims: Sequence[bytes] = (),
    nonce: bytes | None = None,
    crls: Sequence[bytes] = (),
    ocsp_answers: Sequence[bytes] = (),
    anchors: Anchors | None = None,
) -> Verdict:
    """A GPU report with its device chain, and with whatever else is given."""

    def run(trail: Trail, claims: Claims) -> None:
        roots = anchors or hardware()
        genuine = verify_report(report, chain, anchors=roots, now_s=now_s, nonce=nonce, trail=trail)
        found = genuine.report
        claims.update(
            device=genuine.device,
            **{
                name: _said(found, name)
                for name in ("driver_version", "vbios_version", "driver_rim_id", "vbios_rim_id")
            },
            feature=found.feature,
            nonce=found.nonce.hex(),
            measurements={str(index): value.hex() for index, value in sorted(found.blocks.items())},
        )
        if len(rims) > limits.RIMS_MAX:
            raise EvidenceMalformed("more than two RIMs", reason="gpu.rim-count")
        verified = [verify_rim(data, anchors=roots, now_s=now_s, trail=trail) for data in rims]
        picked = pick_rims(found, verified, trail) if verified else {}
        if picked:
            claims["golden_matched"] = match_rims(found, picked, trail)
        for part in ("driver", "vbios"):
            if part not in picked:
                trail.skipped(f"gpu.measurements-{part}")
        if crls or ocsp_answers:
            check_revocation(
                genuine.chain, crls=crls, ocsp_answers=ocsp_answers, rims=verified, now_s=now_s, trail=trail
            )
        else:
            for name in ("gpu.crl-root", "gpu.crl-identity", "gpu.ocsp"):
                trail.skipped(name)
        for name in ("binding.gpu-digest", "ratchet"):
            trail.skipped(name)

    return _verdict(run)


PolicyFor = Callable[[Network, TrustLevel], TrustPolicy]
"""Which policy judges a saved session of this network that claims this level."""


def check_saved(
    data: bytes, *, now: int, policy_for: PolicyFor, software: Callable[[Network], Anchors] | None = None
) -> Verdict:
    """A saved session as a whole, at a time (ns). `software` gives anchors for simulated evidence on devnet."""

    def run(trail: Trail, claims: Claims) -> None:
        saved = decode_saved(data)
        network = Network(saved.network)
        claims.update(
            network=network.label, peer=saved.peer.hex(), operator=saved.operator.hex(), saved_s=saved.saved_s
        )
        bundle = None
        if saved.hardware:
            hardware_part = decode_hardware(saved.hardware, bytes_max=limits.SAVED_BYTES_MAX)
            bundle = assemble(hardware_part, {})
        verifier = Verifier(network, software=software(network) if software and network is Network.DEVNET else None)
        facts = verifier.verify(
            SessionEvidence(
                statement=saved.statement,
                operator_signature=saved.operator_signature,
                peer_signature=saved.peer_signature,
                bundle=bundle,
            ),
            Expected(
                network=network,
                nonce=saved.nonce,
                peer=saved.peer,
                operator=saved.operator,
                model=saved.model,
                payout=saved.payout,
            ),
            now=now,
            seen={},
            trail=trail,
        )
        claims.update(_facts_claims(facts))
        trail.skipped("ratchet")
        policy = policy_for(network, facts.level)
        claims["policy"] = list(policy.explain())
        claims["level"] = policy.judge(facts, now=now, trail=trail).level.value

    return _verdict(run)


def _verdict(run: Callable[[Trail, Claims], None]) -> Verdict:
    trail, claims = Trail(), Claims()
    try:
        run(trail, claims)
    except AttestationError as error:
        if not trail.checks or trail.checks[-1].passed:
            trail.failed(error.reason, str(error))
        return Verdict(
            accepted=False,
            reason=error.reason,
            message=str(error),
            checks=tuple(trail.checks),
            not_checked=tuple(trail.not_checked),
            claims=claims,
        )
    return Verdict(
        accepted=True,
        reason=None,
        message="every check passed",
        checks=tuple(trail.checks),
        not_checked=tuple(trail.not_checked),
        claims=claims,
    )


# --- event logs ------------------------------------------------------------------------------------------


def _read(log: bytes, trail: Trail) -> tuple[Event, ...]:
    with trail.step("eventlog.format"):
        return read_log(log, detect_kind(log))


def _replay(log: bytes, report: TdReport, trail: Trail, claims: Claims) -> None:
    events = _read(log, trail)
    claims.update(_log_claims(events))
    for number, (ours, theirs) in enumerate(zip(replay(events), report.rtmr, strict=True)):
        trail.require(
            ours == theirs,
            f"eventlog.rtmr{number}",
            EventLogInvalid,
            f"the log does not replay to RTMR{number}",
        )


# --- claims ----------------------------------------------------------------------------------------------


def _log_claims(events: tuple[Event, ...]) -> Claims:
    return {
        "events": len(events),
        "events_proven": sum(event.proven for event in events),
        "replayed": {f"rtmr{i}": value.hex() for i, value in enumerate(replay(events))},
        "runtime": [
            {"event": event.name, "payload": event.payload.hex()}
            for event in events
            if event.rtmr == 3 and event.proven
        ],
    }


def _report_claims(report: TdReport) -> Claims:
    return {
        "mrtd": report.mr_td.hex(),
        **{f"rtmr{i}": value.hex() for i, value in enumerate(report.rtmr)},
        "report_data": report.report_data.hex(),
        "mrseam": report.mr_seam.hex(),
        "mr_config_id": report.mr_config_id.hex(),
        "mr_owner": report.mr_owner.hex(),
        "mr_owner_config": report.mr_owner_config.hex(),
        "td_attributes": f"{report.td_attributes:#018x}",
        "xfam": f"{report.xfam:#018x}",
        "tee_tcb_svn": report.tee_tcb_svn.hex(),
    }


def _quote_claims(quote: VerifiedQuote) -> Claims:
    collateral = quote.collateral
    return {
        "quote_version": quote.version,
        "tcb_status": quote.tcb_status,
        "advisories": list(quote.advisories),
        "tcb_evaluation_number": quote.tcb_evaluation_number,
        "fmspc": quote.fmspc.hex(),
        "ppid": quote.ppid.hex(),
        "cpu_svn": quote.cpu_svn.hex(),
        "pce_svn": quote.pce_svn,
        "tcb_info_issued_s": collateral.tcb_info.issued_s,
        "qe_identity_issued_s": collateral.qe_identity.issued_s,
        "pck_crl_issued_s": collateral.pck_crl.issued_s,
        "expires_s": quote.expires_s,
    }


def _said(report: GpuReport, name: str) -> str | None:
    """A text that the report may leave out; what needs it refuses on its own."""
    try:
        return str(getattr(report, name))
    except GpuReportInvalid:
        return None


def _rim_claims(rim: VerifiedRim) -> Claims:
    return {
        "product": rim.product,
        "version": rim.version,
        "active": len(rim.golden),
        "sha256": rim.sha256.hex(),
        "expires_s": rim.expires_s,
    }


def _facts_claims(facts: Facts) -> Claims:
    said = facts.statement
    claims: Claims = {
        "proves": facts.level.value,
        "statement": facts.digest.hex(),
        "sealing_key": said.sealing_key.hex(),
        "payout": said.payout.hex(),
        "image": said.image.hex(),
        "config": said.config.hex(),
        "models": [model.hex() for model in said.models],
        "gpus": [
            {"device": g.device, "driver_version": g.driver_version, "vbios_version": g.vbios_version}
            for g in facts.gpus
        ],
        "expires_s": facts.expires_ns // SECOND_NS,
    }
    if facts.quote is not None:
        claims["quote"] = {**_report_claims(facts.quote.report), **_quote_claims(facts.quote)}
    return claims
