"""Proof that a report comes from a genuine H100, fresh for our nonce, running the firmware that NVIDIA lists.

`verify_report` proves the report, `match_rims` its measurements, `check_revocation` that no certificate of the
device is revoked. A whole device is proven only by all three (`verify_gpu`). What the report does *not* say is
whether the GPU is in DevTools mode: a dev-mode GPU is expected to miss the golden values, and the guest checks
with NVML as well (`cocoon.adapters.tee.nvml`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.x509 import ocsp

from ...errors import (
    EvidenceMalformed,
    GpuReportInvalid,
    RevocationUnknown,
    RimInvalid,
    StaleEvidence,
    UnknownMeasurement,
)
from .. import limits
from ..certs import (
    Freshness,
    check_crl,
    check_ocsp,
    is_ocsp_about,
    load_crl,
    load_ocsp,
    load_pem_chain,
    verify_chain,
    verify_raw_ecdsa,
    x509_errors,
)
from ..roots import Anchors
from ..trail import Trail
from .report import FWID, GpuReport, read_report
from .rim import VerifiedRim

CHIP: Final = "GH100"
CHAIN_LENGTH: Final = 5  # FMC, BROM, Provisioner, Identity, root
FWID_EXTENSION: Final = x509.ObjectIdentifier("2.23.133.5.4.1")  # DICE TCB info / composite device id
# OID 2.16.840.1.101.3.4.2.2 (SHA-384), then a 48-byte octet string
_FWID_OPENING: Final = bytes.fromhex("06096086480165030402020430")
_FWID_BYTES: Final = 48
_NVDEC0_INDEX: Final = 35


@dataclass(frozen=True, slots=True, kw_only=True)
class GenuineReport:
    """A report signed by a genuine H100. `chain` runs from the FMC leaf to the root."""

    report: GpuReport
    chain: tuple[x509.Certificate, ...]

    @property
    def device(self) -> str:
        """The device's identity: the leaf's serial, different for every GPU and boot firmware."""
        return f"{self.chain[0].serial_number:x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedGpu:
    """One GPU, proven. Times are Unix seconds."""

    device: str
    chip: str
    feature: str
    driver_version: str
    vbios_version: str
    matched: int  # golden values that were compared and fit
    driver_rim: bytes  # SHA-256 of the file
    vbios_rim: bytes
    crl_root: Freshness
    crl_identity: Freshness
    ocsp: Freshness
    rim_expires_s: int

    @property
    def expires_s(self) -> int:
        """When the first of its proofs ends."""
        return min(
            self.crl_root.next_update_s, self.crl_identity.next_update_s, self.ocsp.next_update_s, self.rim_expires_s
        )


def evidence_digest(report: bytes, chain: bytes) -> bytes:
    """What the statement S commits to for one GPU: SHA-384 over length-prefixed report and chain."""
    return hashlib.sha384(len(report).to_bytes(4, "big") + report + len(chain).to_bytes(4, "big") + chain).digest()


def verify_report(
    data: bytes, chain_pem: bytes, *, anchors: Anchors, now_s: int, nonce: bytes | None, trail: Trail
) -> GenuineReport:
    """Verify one report with its device chain. `nonce=None` leaves freshness unchecked and says so in the trail."""
    with trail.step("gpu.format", "an SPDM measurement report, every length exact"):
        report = read_report(data)
    with trail.step("gpu.chain-format"):
        given = load_pem_chain(chain_pem, what="the device chain", reason="gpu.chain-format")
    with trail.step("gpu.chain", "ends in the pinned NVIDIA device root"):
        chain = verify_chain(given, anchors.device_root, now_s=now_s, prefix="gpu.chain", error=GpuReportInvalid)
        if len(chain) != CHAIN_LENGTH:
            raise GpuReportInvalid(f"a chain of {len(chain)} certificates", reason="gpu.chain-length")
    trail.require(
        verify_raw_ecdsa(chain[0], report.signature, report.signed),
        "gpu.signature",
        GpuReportInvalid,
        "the report is not signed by this device",
        success="signed by the device",
    )
    _check_kind(report, chain, trail)
    _check_fwid(report, chain[0], trail)
    if nonce is None:
        trail.skipped("gpu.nonce")
    else:
        trail.require(
            report.nonce == nonce, "gpu.nonce", StaleEvidence, "the report answers another challenge than ours"
        )
    return GenuineReport(report=report, chain=chain)


def _check_kind(report: GpuReport, chain: tuple[x509.Certificate, ...], trail: Trail) -> None:
    with x509_errors("gpu.chip", GpuReportInvalid, "the identity certificate cannot be read"):
        subject = chain[CHAIN_LENGTH - 2].subject.rfc4514_string()
    trail.require(CHIP in subject, "gpu.chip", GpuReportInvalid, "the GPU is not an NVIDIA Hopper (GH100)")
    trail.require(
        report.feature == "single GPU",
        "gpu.feature",
        GpuReportInvalid,
        f"the GPU is in {report.feature} mode; only a single GPU is accepted",
        success=report.feature,
    )


def _check_fwid(report: GpuReport, leaf: x509.Certificate, trail: Trail) -> None:
    claimed = report.opaque.get(FWID, b"")
    trail.require(
        len(claimed) == _FWID_BYTES,
        "gpu.fwid-missing",
        GpuReportInvalid,
        "the report has no firmware id: the leaf cannot be tied to the firmware",
    )
    with x509_errors("gpu.fwid-missing", GpuReportInvalid, "the leaf names no firmware id"):
        extension = leaf.extensions.get_extension_for_oid(FWID_EXTENSION).value
        value = extension.value if isinstance(extension, x509.UnrecognizedExtension) else b""
    certified = {
        value[at : at + _FWID_BYTES]
        for at in (part + len(_FWID_OPENING) for part in _occurrences(value, _FWID_OPENING))
    }
    trail.require(
        certified == {claimed},
        "gpu.fwid",
        GpuReportInvalid,
        "the firmware id of the report is not the leaf's",
        success="the leaf vouches for this firmware",
    )


def _occurrences(data: bytes, part: bytes) -> list[int]:
    found, at = [], data.find(part)
    while at >= 0:
        found.append(at)
        at = data.find(part, at + 1)
    return found


def pick_rims(report: GpuReport, rims: Sequence[VerifiedRim], trail: Trail) -> dict[str, VerifiedRim]:
    """Which RIM is the driver's and which the VBIOS's, by the versions in the *signed* report.

    Raises `RimInvalid` when one is of another product or version, or given twice. Missing ones are just absent.
    """
    versions = {report.driver_version: "driver", report.vbios_version: "vbios"}
    picked: dict[str, VerifiedRim] = {}
    for rim in rims:
        part = versions.get(rim.version, versions.get(rim.version.upper()))
        trail.require(
            rim.product == CHIP and part is not None,
            "gpu.rim-version",
            RimInvalid,
            f"a RIM of {rim.product[:32]} {rim.version[:32]} is not of this GPU",
        )
        assert part is not None
        trail.require(part not in picked, "gpu.rim-twice", RimInvalid, f"two RIMs for the {part}")
        picked[part] = rim
    return picked


def match_rims(report: GpuReport, picked: dict[str, VerifiedRim], trail: Trail) -> int:
    """Compare every active golden value with the report. Returns how many were compared; raises on a mismatch."""
    golden: dict[int, tuple[bytes, ...]] = {}
    for rim in picked.values():
        clash = sorted(golden.keys() & rim.golden.keys())
        trail.require(
            not clash, "gpu.rim-conflict", RimInvalid, f"driver and VBIOS RIM both set measurement {clash[:4]}"
        )
        golden.update(rim.golden)
    if report.is_nvdec0_disabled:
        golden.pop(_NVDEC0_INDEX, None)
    wrong = sorted(i for i, values in golden.items() if report.blocks.get(i + 1) not in values)
    trail.require(
        not wrong,
        "gpu.measurements",
        UnknownMeasurement,
        f"measurements {wrong[:8]} are not what NVIDIA lists for this firmware",
        success=f"{len(golden)} of {len(golden)} golden values match",
    )
    return len(golden)


def check_revocation(
    chain: tuple[x509.Certificate, ...],
    *,
    crls: Sequence[bytes],
    ocsp_answers: Sequence[bytes],
    rims: Sequence[VerifiedRim],
    now_s: int,
    trail: Trail,
) -> tuple[Freshness, Freshness, Freshness]:
    """Clear every certificate between leaf and root; absent proof refuses.

    The root's list clears the Identity CA, the Identity CA's list the Provisioner; the one device is cleared by an
    OCSP answer about its BROM certificate (NVIDIA serves none for the leaf). Answers about RIM signers are
    honoured when given.
    """
    _, brom, provisioner, identity, root = chain
    if len(crls) > limits.CRLS_MAX or len(ocsp_answers) > limits.OCSP_ANSWERS_MAX:
        raise EvidenceMalformed("too many revocation answers", reason="gpu.revocation-count")
    with trail.step("gpu.crl-root", "Identity CA not revoked"):
        first = _clear_by_crl(crls, identity, root, now_s)
    with trail.step("gpu.crl-identity", "Provisioner CA not revoked"):
        second = _clear_by_crl(crls, provisioner, identity, now_s)
    answers = [load_ocsp(data, prefix="gpu.ocsp") for data in ocsp_answers]
    with trail.step("gpu.ocsp", "device not revoked"):
        about = [a for a in answers if is_ocsp_about(a, subject=brom, issuer=provisioner)]
        if not about:
            raise RevocationUnknown("no OCSP answer about this device", reason="gpu.ocsp-missing")
        third = min(
            (check_ocsp(a, subject=brom, issuer=provisioner, now_s=now_s, prefix="gpu.ocsp") for a in about),
            key=lambda freshness: freshness.issued_s,
        )
    _clear_rim_signers(rims, answers, now_s, trail)
    return first, second, third


def _clear_by_crl(crls: Sequence[bytes], subject: x509.Certificate, issuer: x509.Certificate, now_s: int) -> Freshness:
    for data in crls:
        if load_crl(data, prefix="gpu.crl").issuer == issuer.subject:
            return check_crl(data, issuer=issuer, subject=subject, now_s=now_s, prefix="gpu.crl")
    raise RevocationUnknown("a revocation list of the device chain is missing", reason="gpu.crl-missing")


def _clear_rim_signers(
    rims: Sequence[VerifiedRim], answers: Sequence[ocsp.OCSPResponse], now_s: int, trail: Trail
) -> None:
    for rim in rims:
        for subject, issuer in pairwise(rim.signers):
            for answer in answers:
                if is_ocsp_about(answer, subject=subject, issuer=issuer):
                    with trail.step("rim.ocsp", "RIM signer not revoked"):
                        check_ocsp(answer, subject=subject, issuer=issuer, now_s=now_s, prefix="rim.ocsp")


def verify_gpu(
    genuine: GenuineReport,
    rims: Sequence[VerifiedRim],
    *,
    crls: Sequence[bytes],
    ocsp_answers: Sequence[bytes],
    now_s: int,
    trail: Trail,
) -> VerifiedGpu:
    """All that is left once a report is genuine: both RIMs, all measurements, revocation."""
    report = genuine.report
    picked = pick_rims(report, rims, trail)
    for part in ("driver", "vbios"):
        trail.require(part in picked, f"gpu.rim-missing-{part}", RimInvalid, f"the {part}'s RIM is missing")
    matched = match_rims(report, picked, trail)
    crl_root, crl_identity, answer = check_revocation(
        genuine.chain, crls=crls, ocsp_answers=ocsp_answers, rims=rims, now_s=now_s, trail=trail
    )
    return VerifiedGpu(
        device=genuine.device,
        chip=CHIP,
        feature=report.feature,
        driver_version=report.driver_version,
        vbios_version=report.vbios_version,
        matched=matched,
        driver_rim=picked["driver"].sha256,
        vbios_rim=picked["vbios"].sha256,
        crl_root=crl_root,
        crl_identity=crl_identity,
        ocsp=answer,
        rim_expires_s=min(rim.expires_s for rim in picked.values()),
    )
