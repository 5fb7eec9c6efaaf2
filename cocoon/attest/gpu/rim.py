"""Reference measurements: NVIDIA's signed list of what a genuine driver or VBIOS measures (SWID XML, XMLDSig).

The order matters. The signature is checked first, over canonical bytes; then those very bytes are parsed again
and measurements are read from that second tree alone. So whatever else a file holds (a second payload, a moved
signature) can never be read as signed. Exactly one signature is taken: enveloped, a child of the root, with one
reference to the whole document, the two transforms and the algorithms that NVIDIA uses, and no others.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from ...errors import RimInvalid
from .. import limits
from ..certs import verify_chain, verify_raw_ecdsa, x509_errors
from ..roots import Anchors
from ..trail import Trail
from . import xml
from .xml import Element

DSIG: Final = "http://www.w3.org/2000/09/xmldsig#"
SWID: Final = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
SHA384_NS: Final = "http://www.w3.org/2001/04/xmlenc#sha384"
C14N_11: Final = "http://www.w3.org/2006/12/xml-c14n11"
ENVELOPED: Final = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
ECDSA_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#sha384"
_HASH_BYTES: Final = 48
_ACTIVE: Final = {"True": True, "true": True, "False": False, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRim:
    """A genuine RIM. `golden` maps each active index to the values of which any one will do."""

    product: str  # "GH100"
    version: str  # of the driver or VBIOS
    golden: dict[int, tuple[bytes, ...]]
    sha256: bytes  # of the file: the key under which it may be cached
    starts_s: int  # when the last certificate of its chain begins
    expires_s: int  # when the first of them ends
    signers: tuple[x509.Certificate, ...]  # leaf to root


def verify_rim(data: bytes, *, anchors: Anchors, now_s: int, trail: Trail) -> VerifiedRim:
    """Verify a RIM at a time. Raises `RimInvalid` or `StaleEvidence` with the failed check."""
    with trail.step("rim.xml", "well-formed, no document type, within bounds"):
        root = xml.parse(data)
        if root.name != (SWID, "SoftwareIdentity"):
            raise RimInvalid("not a SWID SoftwareIdentity document", reason="rim.root")
    with trail.step("rim.signature-form", "one enveloped signature over the whole document"):
        signature = _one_signature(root)
        signed_info, value, certificates = _read_signature(signature)
        digest = _expected_digest(signed_info)
    body = xml.canonical(root, without=signature)
    trail.require(
        hashlib.sha384(body).digest() == digest,
        "rim.digest",
        RimInvalid,
        "the document is not the one that was signed",
    )
    with trail.step("rim.chain", "signers end in the pinned root and are valid now"):
        chain = verify_chain(certificates, anchors.rim_root, now_s=now_s, prefix="rim.chain", error=RimInvalid)
    trail.require(
        verify_raw_ecdsa(chain[0], value, xml.canonical(signed_info)),
        "rim.signature",
        RimInvalid,
        "the signature does not verify",
    )
    with trail.step("rim.measurements", "read from the signed bytes only"):
        product, version, golden = _read_golden(xml.parse(body))
    return VerifiedRim(
        product=product,
        version=version,
        golden=golden,
        sha256=hashlib.sha256(data).digest(),
        starts_s=max(int(c.not_valid_before_utc.timestamp()) for c in chain),
        expires_s=min(int(c.not_valid_after_utc.timestamp()) for c in chain),
        signers=chain,
    )


# --- XMLDSig ---------------------------------------------------------------------------------------------


def _one_signature(root: Element) -> Element:
    found = [e for e in _walk(root) if e.name == (DSIG, "Signature")]
    if len(found) != 1 or not any(child is found[0] for child in root.children):
        raise RimInvalid(f"{len(found)} signatures, or one in the wrong place", reason="rim.signature-place")
    return found[0]


def _walk(element: Element) -> list[Element]:
    found = [element]
    for child in element.elements():
        found += _walk(child)
    return found


def _read_signature(signature: Element) -> tuple[Element, bytes, list[x509.Certificate]]:
    parts = signature.elements()
    if [part.name for part in parts] != [(DSIG, "SignedInfo"), (DSIG, "SignatureValue"), (DSIG, "KeyInfo")]:
        raise RimInvalid("an unusual signature element", reason="rim.signature-form")
    data = parts[2].elements()
    if len(data) != 1 or data[0].name != (DSIG, "X509Data"):
        raise RimInvalid("unusual key information", reason="rim.signature-form")
    encoded = data[0].elements()
    if not 1 <= len(encoded) <= limits.CERTIFICATES_MAX or any(e.name != (DSIG, "X509Certificate") for e in encoded):
        raise RimInvalid("an unusual list of certificates", reason="rim.signature-form")
    with x509_errors("rim.certificate", RimInvalid, "a signer's certificate cannot be read"):
        certificates = [x509.load_der_x509_certificate(_base64(e)) for e in encoded]
    return parts[0], _base64(parts[1]), certificates


def _expected_digest(signed_info: Element) -> bytes:
    parts = signed_info.elements()
    if [part.name for part in parts] != [
        (DSIG, "CanonicalizationMethod"),
        (DSIG, "SignatureMethod"),
        (DSIG, "Reference"),
    ]:
        raise RimInvalid("the signature has not exactly one reference", reason="rim.reference")
    method, algorithm, reference = parts
    inner = reference.elements()
    if [part.name for part in inner] != [(DSIG, "Transforms"), (DSIG, "DigestMethod"), (DSIG, "DigestValue")]:
        raise RimInvalid("an unusual reference", reason="rim.reference")
    if reference.attributes != {"URI": ""}:
        raise RimInvalid("the reference is not to the whole document", reason="rim.reference")
    transforms = inner[0].elements()
    if any(t.elements() for t in (*transforms, method, algorithm, inner[1])):
        raise RimInvalid("a transform with parameters", reason="rim.transforms")
    if [t.name for t in transforms] != [(DSIG, "Transform")] * 2 or [t.attributes for t in transforms] != [
        {"Algorithm": ENVELOPED},
        {"Algorithm": C14N_11},
    ]:
        raise RimInvalid("other transforms than enveloped signature and c14n 1.1", reason="rim.transforms")
    for element, expected in ((method, C14N_11), (algorithm, ECDSA_SHA384), (inner[1], SHA384)):
        if element.attributes != {"Algorithm": expected}:
            raise RimInvalid("an algorithm that NVIDIA's files do not use", reason="rim.algorithm")
    return _base64(inner[2])


def _base64(element: Element) -> bytes:
    try:
        return base64.b64decode("".join(element.text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RimInvalid("broken base64", reason="rim.base64") from None


# --- measurements ----------------------------------------------------------------------------------------


def _read_golden(root: Element) -> tuple[str, str, dict[int, tuple[bytes, ...]]]:
    metas = [e for e in root.elements() if e.name == (SWID, "Meta")]
    payloads = [e for e in root.elements() if e.name == (SWID, "Payload")]
    if len(metas) != 1 or len(payloads) != 1:
        raise RimInvalid("not exactly one Meta and one Payload", reason="rim.payload")
    product, version = metas[0].attribute("product"), metas[0].attribute("colloquialVersion")
    if not product or not version:
        raise RimInvalid("the RIM names no product or version", reason="rim.meta")
    seen: set[int] = set()
    golden: dict[int, tuple[bytes, ...]] = {}
    for resource in payloads[0].elements():
        index, active, values = _read_resource(resource)
        if index in seen:
            raise RimInvalid(f"measurement {index} is given twice", reason="rim.duplicate-index")
        seen.add(index)
        if active:
            golden[index] = values
    if not golden:
        raise RimInvalid("the RIM has no active measurement", reason="rim.empty")
    return product, version, golden


def _read_resource(resource: Element) -> tuple[int, bool, tuple[bytes, ...]]:
    if resource.name != (SWID, "Resource") or resource.attribute("type") != "Measurement":
        raise RimInvalid("a payload entry that is not a measurement", reason="rim.payload")
    index, count = resource.attribute("index"), resource.attribute("alternatives")
    active = _ACTIVE.get(resource.attribute("active") or "")
    if active is None or not _is_count(index, limits.RIM_MEASUREMENTS_MAX):
        raise RimInvalid("a measurement without index or active flag", reason="rim.measurement")
    if not _is_count(count, limits.RIM_ALTERNATIVES_MAX) or count == "0":
        raise RimInvalid("a measurement with no or too many alternatives", reason="rim.measurement")
    assert index is not None and count is not None
    values = []
    for number in range(int(count)):
        text = resource.attribute(f"Hash{number}", SHA384_NS) or ""
        try:
            value = bytes.fromhex(text)
        except ValueError:
            value = b""
        if len(value) != _HASH_BYTES or len(text) != 2 * _HASH_BYTES:
            raise RimInvalid(f"measurement {index} has a malformed value", reason="rim.measurement")
        values.append(value)
    return int(index), active, tuple(values)


def _is_count(text: str | None, limit: int) -> bool:
    return text is not None and len(text) <= 3 and text.isascii() and text.isdigit() and int(text) < limit
