"""Proof that a TDX quote is genuine: the one place that calls dcap-qvl, and all that dcap-qvl does not check.

`verify_quote` answers "did this come from a TDX module on a platform that Intel vouches for?" and returns every
fact a policy may want to judge. It does not judge measurements, TCB status, advisories, collateral age or PPID:
`policy.py` does, afresh for every request. What no policy may ever allow (a debug guest, bytes after the quote,
an SGX quote, a revoked TCB) is refused here.

dcap-qvl is one vendor's library: keep this file the only one that imports it, so that it stays replaceable. Its
network functions are never called; collateral is handed in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Final

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..errors import (
    AttestationError,
    CertificateRevoked,
    QuoteInvalid,
    RevocationUnknown,
    StaleEvidence,
    TcbOutOfDate,
)
from . import limits
from .certs import X509_ERRORS, x509_errors
from .collateral import Collateral, read_collateral
from .quote import TdReport, pck_chain, read_quote
from .roots import Anchors
from .trail import Trail

ATTRIBUTE_DEBUG: Final = 1
SEPT_VE_DISABLE: Final = 1 << 28
PCK_CHAIN_LENGTH: Final = 3  # PCK, Platform or Processor CA, root
TCB_REVOKED: Final = "Revoked"

# What dcap-qvl says → the check that failed. First match wins; its texts are not an interface, so an unknown
# one still refuses, as "tdx.signature-chain". A test pins every row against the pinned version.
_REFUSALS: Final[tuple[tuple[str, str, type[AttestationError]], ...]] = (
    ("debug", "tdx.debug", QuoteInvalid),
    ("sept_ve", "tdx.attributes", QuoteInvalid),
    ("tud", "tdx.attributes", QuoteInvalid),
    ("reserved", "tdx.attributes", QuoteInvalid),
    ("pks", "tdx.attributes", QuoteInvalid),
    ("migration", "tdx.attributes", QuoteInvalid),
    ("service_td", "tdx.service-td", QuoteInvalid),
    ("service td", "tdx.service-td", QuoteInvalid),
    ("expired", "tdx.expired", StaleEvidence),
    ("unknownrevocationstatus", "tdx.crl", RevocationUnknown),
    ("tcb status is invalid", "tdx.tcb-revoked", TcbOutOfDate),
    ("tcb is revoked", "tdx.tcb-revoked", TcbOutOfDate),
    ("tcb status: revoked", "tdx.tcb-revoked", TcbOutOfDate),
    ("revoked", "tdx.revoked", CertificateRevoked),
    ("crl", "tdx.crl", RevocationUnknown),
    ("fmspc", "tdx.fmspc", QuoteInvalid),
    ("tcb level", "tdx.tcb-level", TcbOutOfDate),
    ("minimum required", "tdx.tcb-level", TcbOutOfDate),
    ("tdx module", "tdx.tcb-module", TcbOutOfDate),
    ("notvalidyet", "tdx.not-yet-valid", StaleEvidence),
    ("not valid yet", "tdx.not-yet-valid", StaleEvidence),
    ("unknownissuer", "tdx.root", QuoteInvalid),
    ("root", "tdx.root", QuoteInvalid),
    ("qe identity", "tdx.qe-identity", QuoteInvalid),
    ("qe report", "tdx.qe-report", QuoteInvalid),
    ("signature", "tdx.signature", QuoteInvalid),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedQuote:
    """A genuine quote. Times are Unix seconds."""

    version: int
    report: TdReport
    tcb_status: str  # Intel's word: UpToDate, SWHardeningNeeded, OutOfDate …
    advisories: tuple[str, ...]
    tcb_evaluation_number: int
    fmspc: bytes
    ppid: bytes  # names the machine; the key of host registries
    cpu_svn: bytes
    pce_svn: int
    collateral: Collateral
    expires_s: int  # the earliest nextUpdate or certificate end in the collateral


def verify_quote(quote: bytes, collateral: bytes, *, anchors: Anchors, now_s: int, trail: Trail) -> VerifiedQuote:
    """Verify a quote against collateral at a time. Raises an `AttestationError` that names the failed check."""
    with trail.step("tdx.format", "a TDX quote, every length exact"):
        form = read_quote(quote)
    with trail.step("collateral.format"):
        read = read_collateral(collateral)
    _check_not_future(read, now_s, trail)
    report = form.report
    trail.require(
        not report.td_attributes & ATTRIBUTE_DEBUG,
        "tdx.debug",
        QuoteInvalid,
        "a debug guest: its owner can read its memory",
        success="not a debug guest",
    )
    trail.require(
        not any(report.mr_service_td or b""),
        "tdx.service-td",
        QuoteInvalid,
        "a service TD is bound to the guest",
        success="no service TD",
    )
    trail.require(
        not any(report.mr_signer_seam) and not any(report.seam_attributes),
        "tdx.module-signer",
        QuoteInvalid,
        "the TDX module is not signed by Intel",
        success="Intel's TDX module",
    )
    with trail.step("tdx.signature-chain", "PCK, TCB and QE chains, both CRLs, QE report, quote signature"):
        claims = _run_dcap_qvl(quote, read, anchors, now_s)
    _check_chain_end(quote, anchors, trail)
    return _facts(claims, form.version, report, read, trail)


def platform_of(quote: bytes) -> tuple[bytes, str]:
    """The platform family (FMSPC) and the authority ("platform" or "processor") that a quote names, unverified.

    For providers, who have to fetch the collateral of their own machine. Raises `QuoteInvalid`.
    """
    try:
        parsed = dcap_qvl.parse_quote(quote)
        fmspc, ca = parsed.fmspc(), str(parsed.ca())
    except (ValueError, RuntimeError, TypeError) as error:
        raise QuoteInvalid(f"the quote names no platform: {_one_line(str(error))}", reason="tdx.fmspc") from None
    return (bytes.fromhex(fmspc) if isinstance(fmspc, str) else bytes(fmspc)), ca


def _run_dcap_qvl(quote: bytes, collateral: Collateral, anchors: Anchors, now_s: int) -> dict[str, Any]:
    if not 0 <= now_s < 1 << 40:
        raise StaleEvidence("the verification time is out of range", reason="tdx.time")
    try:
        parsed = dcap_qvl.QuoteCollateralV3.from_json(collateral.text)
        verifier = dcap_qvl.QuoteVerifier(anchors.intel_root)
        policy = dcap_qvl.QuotePolicy.claims_only(now_s)
        text = verifier.verify_with_policy(quote, parsed, now_s, policy).to_json()
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise _refusal(str(error), quote, collateral, anchors) from None
    except BaseException as error:  # a Rust panic is a BaseException; bytes from outside must not end the process
        if type(error).__name__ != "PanicException":
            raise
        raise QuoteInvalid("the quote breaks its parser", reason="tdx.signature-chain") from None
    claims: dict[str, Any] = json.loads(text)
    return claims


def _refusal(text: str, quote: bytes, collateral: Collateral, anchors: Anchors) -> AttestationError:
    lower, words = text.lower(), f"Intel's verification refuses the quote: {_one_line(text)}"
    for part, reason, kind in _REFUSALS:
        if part in lower:
            return kind(words, reason=reason)
    return _chain_refusal(quote, collateral, anchors) or QuoteInvalid(words, reason="tdx.signature-chain")


def _chain_refusal(quote: bytes, collateral: Collateral, anchors: Anchors) -> AttestationError | None:
    """Why a certificate chain was refused, where it can be told: dcap-qvl gives one text for all causes."""
    try:
        chain = x509.load_pem_x509_certificates(pck_chain(quote))
        lists = [x509.load_der_x509_crl(data) for data in (collateral.pck_crl_der, collateral.root_crl_der)]
        if chain[-1].public_bytes(Encoding.DER) != anchors.intel_root:
            return QuoteInvalid("the quote's certificates end in another root than Intel's", reason="tdx.root")
        signers = x509.load_pem_x509_certificates(collateral.tcb_signers.encode())
        for certificate in (*chain, *signers):
            if any(crl.get_revoked_certificate_by_serial_number(certificate.serial_number) for crl in lists):
                return CertificateRevoked(
                    "a certificate of the quote or its collateral is revoked", reason="tdx.revoked"
                )
    except (*X509_ERRORS, IndexError):
        return None
    return None


def _check_chain_end(quote: bytes, anchors: Anchors, trail: Trail) -> None:
    """The PEM text is outside the quote's signature, and PEM readers skip what they do not understand."""
    text = pck_chain(quote)
    with x509_errors("tdx.chain-text", QuoteInvalid, "the quote's certificates cannot be read"):
        chain = x509.load_pem_x509_certificates(text)
        exact = b"".join(link.public_bytes(Encoding.PEM) for link in chain)
        last = chain[-1].public_bytes(Encoding.DER)
    trail.require(
        last == anchors.intel_root and len(chain) == PCK_CHAIN_LENGTH,
        "tdx.root",
        QuoteInvalid,
        "the quote's certificates do not end in the pinned root",
    )
    trail.require(
        _joined(text) == _joined(exact),
        "tdx.chain-text",
        QuoteInvalid,
        "the quote's certificates hold other text besides",
    )


def _joined(pem: bytes) -> bytes:
    """PEM without its line ends, which tools write differently."""
    return b"".join(pem.replace(b"\r\n", b"\n").split(b"\n"))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


def _facts(
    claims: dict[str, Any], version: int, report: TdReport, collateral: Collateral, trail: Trail
) -> VerifiedQuote:
    body = claims["report"].get("TD10") or claims["report"].get("TD15", {}).get("base") or {}
    # dcap-qvl and this package must have read one and the same report.
    trail.require(
        (body.get("report_data"), body.get("mr_td"), body.get("td_attributes"), body.get("xfam"))
        == (
            report.report_data.hex(),
            report.mr_td.hex(),
            report.td_attributes.to_bytes(8, "little").hex(),
            report.xfam.to_bytes(8, "little").hex(),
        )
        and all(body.get(f"rt_mr{i}") == value.hex() for i, value in enumerate(report.rtmr)),
        "tdx.same-reading",
        QuoteInvalid,
        "two readings of the quote differ",
    )
    pck = claims["platform"]["pck"]
    fmspc = bytes(pck["fmspc"])
    trail.require(fmspc == collateral.fmspc, "tdx.fmspc", QuoteInvalid, "the TCB info is of another platform family")
    status = str(claims["tcb"]["status"])
    trail.require(status != TCB_REVOKED, "tdx.tcb-revoked", TcbOutOfDate, "Intel has revoked this TCB level")
    return VerifiedQuote(
        version=version,
        report=report,
        tcb_status=status,
        advisories=tuple(sorted(map(str, claims["tcb"]["advisory_ids"]))),
        tcb_evaluation_number=min(collateral.tcb_evaluation_number, collateral.qe_evaluation_number),
        fmspc=fmspc,
        ppid=bytes(pck["ppid"]),
        cpu_svn=bytes(pck["cpu_svn"]),
        pce_svn=int(pck["pce_svn"]),
        collateral=replace(collateral, text="", pck_crl_der=b"", root_crl_der=b"", tcb_signers=""),  # dates remain
        expires_s=min(
            int(claims["earliest_expiration_date"]),
            int(claims["qe_iden_earliest_expiration_date"]),
            collateral.tcb_info.next_update_s,
            collateral.qe_identity.next_update_s,
            collateral.pck_crl.next_update_s,
            collateral.root_crl.next_update_s,
        ),
    )


def _check_not_future(collateral: Collateral, now_s: int, trail: Trail) -> None:
    """No part of the collateral may be dated after now; dcap-qvl minds only some of them."""
    for name, dated in (
        ("tcb-info", collateral.tcb_info),
        ("qe-identity", collateral.qe_identity),
        ("pck-crl", collateral.pck_crl),
        ("root-crl", collateral.root_crl),
    ):
        trail.require(
            dated.issued_s <= now_s + limits.CLOCK_SKEW_S,
            f"collateral.{name}-future",
            StaleEvidence,
            f"the {name} is dated in the future",
            success="not dated after now",
        )
