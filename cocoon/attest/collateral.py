"""Reading Intel's collateral (TCB info, QE identity, CRLs) for what dcap-qvl does not judge: its dates.

dcap-qvl checks the signatures and that nothing has expired. It does not mind collateral that is 29 days old, nor
dated after now; so both ends of every date are read here. The values come from the very strings whose signatures
dcap-qvl verifies; use them only after it has.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography import x509

from ..errors import EvidenceMalformed
from . import limits
from .certs import X509_ERRORS

FIELDS: Final = (
    "pck_crl_issuer_chain",
    "root_ca_crl",
    "pck_crl",
    "tcb_info_issuer_chain",
    "tcb_info",
    "tcb_info_signature",
    "qe_identity_issuer_chain",
    "qe_identity",
    "qe_identity_signature",
)
_HEX_FIELDS: Final = frozenset(("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dated:
    """When a signed thing was issued and until when it holds, Unix seconds."""

    issued_s: int
    next_update_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """Intel's collateral for one platform family, read but not verified."""

    text: str = field(repr=False)  # the JSON that dcap-qvl takes
    tcb_info: Dated
    qe_identity: Dated
    pck_crl: Dated
    root_crl: Dated
    pck_crl_issuer: str
    pck_crl_der: bytes = field(repr=False)
    root_crl_der: bytes = field(repr=False)
    tcb_signers: str = field(repr=False)  # PEM
    tcb_evaluation_number: int
    qe_evaluation_number: int
    fmspc: bytes


def read_collateral(data: bytes) -> Collateral:
    """The dates and numbers in collateral JSON (dcap-qvl's `QuoteCollateralV3` form).

    Raises `EvidenceMalformed` for anything that is not exactly that object.
    """
    if len(data) > limits.COLLATERAL_BYTES_MAX:
        raise EvidenceMalformed(
            f"collateral of {len(data)} bytes; at most {limits.COLLATERAL_BYTES_MAX}", reason="collateral.size"
        )
    outer = _object(data, "collateral")
    # Newer tools add the PCK chain, which the quote carries already; anything else is refused.
    unknown = set(outer) - set(FIELDS) - {"pck_certificate_chain"}
    missing = [name for name in FIELDS if not isinstance(outer.get(name), str)]
    if unknown or missing:
        raise EvidenceMalformed(
            f"collateral lacks {', '.join(missing) or 'nothing'}, has {len(unknown)} unknown fields",
            reason="collateral.fields",
        )
    try:
        binary = {name: bytes.fromhex(outer[name]) for name in _HEX_FIELDS}
    except ValueError:
        raise EvidenceMalformed("collateral holds broken hex", reason="collateral.fields") from None
    tcb = _object(_utf8(outer["tcb_info"]), "TCB info")
    qe = _object(_utf8(outer["qe_identity"]), "QE identity")
    pck_crl, pck_issuer = _crl_dates(binary["pck_crl"], "PCK CRL")
    root_crl, _ = _crl_dates(binary["root_ca_crl"], "root CA CRL")
    try:
        fmspc = bytes.fromhex(tcb["fmspc"])
        tcb_number, qe_number = tcb["tcbEvaluationDataNumber"], qe["tcbEvaluationDataNumber"]
        if type(tcb_number) is not int or type(qe_number) is not int or len(fmspc) != 6:
            raise ValueError
        tcb_dates, qe_dates = _json_dates(tcb), _json_dates(qe)
    except (KeyError, TypeError, ValueError):
        raise EvidenceMalformed("TCB info or QE identity lacks a field", reason="collateral.fields") from None
    text = {name: outer[name] for name in FIELDS}
    if "pck_certificate_chain" in outer:
        text["pck_certificate_chain"] = outer["pck_certificate_chain"]
    return Collateral(
        text=json.dumps(text),
        tcb_info=tcb_dates,
        qe_identity=qe_dates,
        pck_crl=pck_crl,
        root_crl=root_crl,
        pck_crl_issuer=pck_issuer,
        pck_crl_der=binary["pck_crl"],
        root_crl_der=binary["root_ca_crl"],
        tcb_signers=outer["tcb_info_issuer_chain"],
        tcb_evaluation_number=tcb_number,
        qe_evaluation_number=qe_number,
        fmspc=fmspc,
    )


def read_json(data: bytes, what: str, *, depth_max: int, reason: str) -> Any:
    """JSON from outside: nesting bounded before parsing, no duplicate keys, no NaN. Raises `EvidenceMalformed`."""
    depth = deepest = 0
    in_string = escaped = False
    for byte in data:  # one pass, so that no parser recurses on hostile nesting
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
            if deepest > depth_max:
                raise EvidenceMalformed(f"{what} nests deeper than {depth_max}", reason=reason)
        elif byte in b"]}":
            depth -= 1
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise EvidenceMalformed(f"{what} is not well-formed JSON", reason=reason) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _object(data: bytes, what: str) -> dict[str, Any]:
    value = read_json(data, what, depth_max=limits.COLLATERAL_JSON_DEPTH_MAX, reason="collateral.json")
    if not isinstance(value, dict):
        raise EvidenceMalformed(f"{what} is not a JSON object", reason="collateral.json")
    return value


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise EvidenceMalformed("collateral holds text that is not Unicode", reason="collateral.json") from None


def _json_dates(value: dict[str, Any]) -> Dated:
    return Dated(issued_s=_timestamp(value["issueDate"]), next_update_s=_timestamp(value["nextUpdate"]))


def _timestamp(text: str) -> int:
    when = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")
    return int(when.replace(tzinfo=datetime.UTC).timestamp())


def _crl_dates(data: bytes, what: str) -> tuple[Dated, str]:
    try:
        crl = x509.load_der_x509_crl(data)
        issued, until, issuer = crl.last_update_utc, crl.next_update_utc, crl.issuer.rfc4514_string()
    except X509_ERRORS:
        raise EvidenceMalformed(f"the {what} is not a CRL", reason="collateral.crl") from None
    if until is None:
        raise EvidenceMalformed(f"the {what} has no next update", reason="collateral.crl")
    return Dated(issued_s=int(issued.timestamp()), next_update_s=int(until.timestamp())), issuer
