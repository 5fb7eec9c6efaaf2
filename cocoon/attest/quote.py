"""Reading a TDX quote, byte for byte: versions 4 and 5, TD reports 1.0 and 1.5, and nothing else.

The signature is checked elsewhere (`tdx.py`, by dcap-qvl). This file settles what dcap-qvl leaves open: that the
quote is of TDX and not SGX, that every inner length adds up, and that nothing follows the end. Layout: Intel TDX
DCAP Quote Generation Library and Quote Verification Library, appendix 3 ("Quote format").

Quote devices hand out a fixed buffer, so quotes saved from them end in zeros (real ones: 70 and 3,065 of them).
`strip_padding` takes those off; in a session they are refused, because the producer strips them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from ..errors import QuoteInvalid
from . import limits

HEADER_BYTES: Final = 48
REPORT_10_BYTES: Final = 584
REPORT_15_BYTES: Final = 648
TEE_TYPE_SGX: Final = 0
TEE_TYPE_TDX: Final = 0x81
KEY_TYPE_ECDSA_P256: Final = 2
INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
BODY_TYPES: Final = {2: REPORT_10_BYTES, 3: REPORT_15_BYTES}  # of version 5; 1 is SGX, 4 has unpublished fields
PADDING_BYTES_MIN: Final = 8  # a stray byte or word is not a buffer's rest
QE_REPORT_BYTES: Final = 384
CERTIFICATION_QE_REPORT: Final = 6
CERTIFICATION_PCK_CHAIN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """What the TDX module reports of a guest. All values are raw bytes, as in the quote."""

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: int  # 64 bits, little-endian in the quote
    xfam: int  # 64 bits
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    mr_service_td: bytes | None = None  # TD report 1.5 only


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteForm:
    """The unverified reading of a quote."""

    version: int
    report: TdReport
    report_span: tuple[int, int]
    bytes_after: int  # bytes behind the quote's own end; always 0 from `read_quote`


def strip_padding(quote: bytes) -> bytes:
    """A quote without the zeros of its device's buffer. Anything else behind the quote stays, to be refused."""
    form = read_report(quote)
    tail = quote[len(quote) - form.bytes_after :]
    if len(tail) >= PADDING_BYTES_MIN and not any(tail):
        return quote[: len(quote) - len(tail)]
    return quote


def read_quote(quote: bytes) -> QuoteForm:
    """The fields of a quote that fills its bytes exactly. Raises `QuoteInvalid`."""
    form = read_report(quote)
    if form.bytes_after:
        raise QuoteInvalid(f"{form.bytes_after} bytes follow the quote", reason="tdx.trailing-bytes")
    _check_signature_lengths(quote, form.report_span[1])
    return form


def read_report(quote: bytes) -> QuoteForm:
    """The TD report inside a quote; bytes after the quote are counted, not refused (kernels pad their buffer)."""
    if len(quote) > limits.QUOTE_BYTES_MAX:
        raise QuoteInvalid(f"a quote of {len(quote)} bytes; at most {limits.QUOTE_BYTES_MAX}", reason="tdx.size")
    if len(quote) < HEADER_BYTES + REPORT_10_BYTES + 4:
        raise QuoteInvalid(f"a quote of {len(quote)} bytes is too short", reason="tdx.truncated")
    version, key_type, tee_type = struct.unpack_from("<HHI", quote)
    if version not in (3, 4, 5):
        raise QuoteInvalid(f"quote version {version}; only 4 and 5 are known", reason="tdx.version")
    if version == 3 or tee_type == TEE_TYPE_SGX:
        raise QuoteInvalid("an SGX quote, not a TDX one", reason="tdx.tee-type", advice="Ask for a TDX guest's quote.")
    if tee_type != TEE_TYPE_TDX:
        raise QuoteInvalid(f"TEE type {tee_type:#x} is not TDX", reason="tdx.tee-type")
    if key_type != KEY_TYPE_ECDSA_P256:
        raise QuoteInvalid(f"attestation key type {key_type} is not ECDSA P-256", reason="tdx.key-type")
    if quote[12:28] != INTEL_QE_VENDOR:
        raise QuoteInvalid("the quoting enclave is not Intel's", reason="tdx.qe-vendor")
    at, size = HEADER_BYTES, REPORT_10_BYTES
    if version == 5:
        body_type, size = struct.unpack_from("<HI", quote, at)
        at += 6
        if BODY_TYPES.get(body_type) != size:
            raise QuoteInvalid(f"body type {body_type} of {size} bytes is unknown", reason="tdx.body-type")
    end = at + size
    if end + 4 > len(quote):
        raise QuoteInvalid("the quote ends inside the TD report", reason="tdx.truncated")
    signature_bytes = int.from_bytes(quote[end : end + 4], "little")
    after = len(quote) - (end + 4 + signature_bytes)
    if after < 0:
        raise QuoteInvalid("the quote ends inside its signature", reason="tdx.truncated")
    return QuoteForm(version=version, report=_td_report(quote[at:end]), report_span=(at, end), bytes_after=after)


def pck_chain(quote: bytes) -> bytes:
    """The PEM chain of the platform's key, leaf first, in a quote that `read_quote` took."""
    form = read_report(quote)
    inner = quote[form.report_span[1] + 4 + 128 + 6 :]
    at = QE_REPORT_BYTES + 64
    at += 2 + int.from_bytes(inner[at : at + 2], "little")
    return inner[at + 6 :].rstrip(b"\0")


def _td_report(body: bytes) -> TdReport:
    fields = struct.unpack_from("<16s48s48s8sQQ48s48s48s48s48s48s48s48s64s", body)
    return TdReport(
        tee_tcb_svn=fields[0],
        mr_seam=fields[1],
        mr_signer_seam=fields[2],
        seam_attributes=fields[3],
        td_attributes=fields[4],
        xfam=fields[5],
        mr_td=fields[6],
        mr_config_id=fields[7],
        mr_owner=fields[8],
        mr_owner_config=fields[9],
        rtmr=(fields[10], fields[11], fields[12], fields[13]),
        report_data=fields[14],
        mr_service_td=body[600:648] if len(body) == REPORT_15_BYTES else None,
    )


def _check_signature_lengths(quote: bytes, end: int) -> None:
    """Every length inside the signature section must end exactly where the one around it does."""
    data = quote[end + 4 :]
    outer = 64 + 64  # quote signature, attestation key
    if len(data) < outer + 6:
        raise QuoteInvalid("the signature section is too short", reason="tdx.truncated")
    kind, size = struct.unpack_from("<HI", data, outer)
    inner = data[outer + 6 :]
    if kind != CERTIFICATION_QE_REPORT or size != len(inner):
        raise QuoteInvalid("the certification data has a wrong type or length", reason="tdx.inner-length")
    at = QE_REPORT_BYTES + 64
    if len(inner) < at + 2:
        raise QuoteInvalid("the QE report is cut off", reason="tdx.inner-length")
    at += 2 + int.from_bytes(inner[at : at + 2], "little")
    if len(inner) < at + 6:
        raise QuoteInvalid("the QE authentication data is cut off", reason="tdx.inner-length")
    kind, size = struct.unpack_from("<HI", inner, at)
    if kind != CERTIFICATION_PCK_CHAIN or size != len(inner) - at - 6:
        raise QuoteInvalid("the PCK certificate chain has a wrong type or length", reason="tdx.inner-length")
