"""X.509 for NVIDIA evidence: chains, revocation lists, OCSP answers. Strict where the evidence allows it.

All times are Unix seconds handed in. Intel's chains are not checked here: dcap-qvl does that.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from ..errors import (
    AttestationError,
    CertificateRevoked,
    EvidenceMalformed,
    RevocationUnknown,
    StaleEvidence,
)
from . import limits

_KNOWN_CRITICAL: Final = frozenset(
    (ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE)
)
_STRONG_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_SCALAR_BYTES: Final = 48  # P-384

# Everything that the X509 library raises for bytes it does not like; its errors have no common root.
X509_ERRORS: Final = (
    ValueError,
    TypeError,
    OverflowError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    Warning,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """When a revocation answer was made, and until when it holds, Unix seconds."""

    issued_s: int
    next_update_s: int


@contextmanager
def x509_errors(reason: str, error: type[AttestationError], what: str) -> Iterator[None]:
    """Whatever the X.509 library says about hostile bytes becomes one typed refusal."""
    try:
        yield
    except X509_ERRORS as cause:
        detail = " ".join(str(cause).split())[:120] or type(cause).__name__
        raise error(f"{what}: {detail}", reason=reason) from None


def load_pem_chain(data: bytes, *, what: str, reason: str) -> tuple[x509.Certificate, ...]:
    """The certificates in PEM text, leaf first. Raises `EvidenceMalformed`."""
    if len(data) > limits.PEM_BYTES_MAX:
        raise EvidenceMalformed(f"{what} of {len(data)} bytes is too long", reason=reason)
    if data.count(b"-----BEGIN") > limits.CERTIFICATES_MAX:
        raise EvidenceMalformed(f"{what} has more than {limits.CERTIFICATES_MAX} certificates", reason=reason)
    with x509_errors(reason, EvidenceMalformed, f"{what} cannot be read"):
        return tuple(x509.load_pem_x509_certificates(data))


def verify_chain(
    chain: Sequence[x509.Certificate],
    root: x509.Certificate,
    *,
    now_s: int,
    prefix: str,
    error: type[AttestationError],
) -> tuple[x509.Certificate, ...]:
    """The chain from leaf to `root`, each signed by the next, all valid now, all P-384.

    `chain` may end with the root itself or with a certificate that the root issued. Checks names, signatures,
    dates, CA flags, key usage and path lengths. Raises `error` with reason `<prefix>-…`.
    """
    if not 1 <= len(chain) <= limits.CERTIFICATES_MAX:
        raise error(f"a chain of {len(chain)} certificates", reason=f"{prefix}-length")
    full = tuple(chain)
    root_der = root.public_bytes(Encoding.DER)
    with x509_errors(f"{prefix}-certificate", error, "a certificate cannot be read"):
        if full[-1].public_bytes(Encoding.DER) != root_der:
            if full[-1].issuer != root.subject:
                raise error("the chain ends in another root than the pinned one", reason=f"{prefix}-root")
            full = (*full, root)
        for depth, certificate in enumerate(full):
            _check_certificate(certificate, depth, now_s, prefix, error)
    for child, parent in pairwise(full):
        try:
            child.verify_directly_issued_by(parent)
        except X509_ERRORS:
            raise error(f"{_name(child)} is not signed by {_name(parent)}", reason=f"{prefix}-signature") from None
    return full


def _check_certificate(
    certificate: x509.Certificate, depth: int, now_s: int, prefix: str, error: type[AttestationError]
) -> None:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise error(f"{_name(certificate)} has no P-384 key", reason=f"{prefix}-key")
    _require_strong_hash(certificate.signature_hash_algorithm, error, prefix)
    if now_s < certificate.not_valid_before_utc.timestamp():
        raise StaleEvidence(f"{_name(certificate)} is not valid yet", reason=f"{prefix}-not-yet-valid")
    if now_s > certificate.not_valid_after_utc.timestamp():
        raise StaleEvidence(f"{_name(certificate)} has expired", reason=f"{prefix}-expired")
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _KNOWN_CRITICAL:
            raise error(f"{_name(certificate)} has an unknown critical extension", reason=f"{prefix}-extension")
    if depth == 0:
        return
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        raise error(f"{_name(certificate)} is not a certificate authority", reason=f"{prefix}-ca") from None
    if not constraints.ca or not usage.key_cert_sign:
        raise error(f"{_name(certificate)} is not a certificate authority", reason=f"{prefix}-ca")
    if constraints.path_length is not None and constraints.path_length < depth - 1:
        raise error(f"{_name(certificate)} may not issue a chain this long", reason=f"{prefix}-path-length")


def _require_strong_hash(algorithm: hashes.HashAlgorithm | None, error: type[AttestationError], prefix: str) -> None:
    if not isinstance(algorithm, _STRONG_HASHES):
        raise error("a signature over a weak or unknown hash", reason=f"{prefix}-hash")


def verify_raw_ecdsa(certificate: x509.Certificate, signature: bytes, message: bytes) -> bool:
    """Whether 96 bytes r‖s are this P-384 certificate's ECDSA/SHA-384 signature over the message."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or len(signature) != 2 * _SCALAR_BYTES:
        return False
    r = int.from_bytes(signature[:_SCALAR_BYTES], "big")
    s = int.from_bytes(signature[_SCALAR_BYTES:], "big")
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def check_crl(
    data: bytes, *, issuer: x509.Certificate, subject: x509.Certificate, now_s: int, prefix: str
) -> Freshness:
    """Clear `subject` against its issuer's revocation list. Held certificates count as revoked.

    Raises `RevocationUnknown` (not this issuer's list, or not genuine), `StaleEvidence` or `CertificateRevoked`.
    """
    crl = load_crl(data, prefix=prefix)
    with x509_errors(f"{prefix}-format", RevocationUnknown, "the revocation list cannot be read"):
        if crl.issuer != issuer.subject:
            raise RevocationUnknown("the revocation list is of another issuer", reason=f"{prefix}-issuer")
        key = issuer.public_key()
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
        if not usage.crl_sign or not isinstance(key, ec.EllipticCurvePublicKey) or not crl.is_signature_valid(key):
            raise RevocationUnknown("the revocation list is not signed by its issuer", reason=f"{prefix}-signature")
        _require_strong_hash(crl.signature_hash_algorithm, RevocationUnknown, prefix)
        if any(extension.critical for extension in crl.extensions):
            raise RevocationUnknown("the revocation list covers only a part", reason=f"{prefix}-scope")
        issued, until = crl.last_update_utc, crl.next_update_utc
        if until is None:
            raise RevocationUnknown("the revocation list has no next update", reason=f"{prefix}-format")
        freshness = _freshness(issued, until, now_s, prefix, "the revocation list")
        if crl.get_revoked_certificate_by_serial_number(subject.serial_number) is not None:
            raise CertificateRevoked(f"{_name(subject)} is revoked", reason=f"{prefix}-revoked")
    return freshness


def load_crl(data: bytes, *, prefix: str) -> x509.CertificateRevocationList:
    """A DER revocation list within its bounds. Raises `RevocationUnknown`."""
    if len(data) > limits.CRL_BYTES_MAX:
        raise RevocationUnknown("the revocation list is too long", reason=f"{prefix}-size")
    with x509_errors(f"{prefix}-format", RevocationUnknown, "the revocation list cannot be read"):
        crl = x509.load_der_x509_crl(data)
        if len(crl) > limits.CRL_ENTRIES_MAX:
            raise RevocationUnknown("the revocation list has too many entries", reason=f"{prefix}-size")
    return crl


def load_ocsp(data: bytes, *, prefix: str) -> ocsp.OCSPResponse:
    """A successful OCSP answer about one certificate. Raises `RevocationUnknown`."""
    if len(data) > limits.OCSP_BYTES_MAX:
        raise RevocationUnknown("the OCSP answer is too long", reason=f"{prefix}-size")
    with x509_errors(f"{prefix}-format", RevocationUnknown, "the OCSP answer cannot be read"):
        answer = ocsp.load_der_ocsp_response(data)
        if answer.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise RevocationUnknown(
                f"the OCSP responder answered {answer.response_status.name}", reason=f"{prefix}-status"
            )
        if len(list(answer.responses)) != 1:
            raise RevocationUnknown("the OCSP answer covers several certificates", reason=f"{prefix}-format")
    return answer


def is_ocsp_about(answer: ocsp.OCSPResponse, *, subject: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the answer's certificate id is this certificate of this issuer."""
    with x509_errors("gpu.ocsp-format", RevocationUnknown, "the OCSP answer cannot be read"):
        algorithm = answer.hash_algorithm
        key = issuer.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return (
            answer.serial_number == subject.serial_number
            and answer.issuer_key_hash == _hash(algorithm, key)
            and answer.issuer_name_hash == _hash(algorithm, issuer.subject.public_bytes())
        )


def check_ocsp(
    answer: ocsp.OCSPResponse, *, subject: x509.Certificate, issuer: x509.Certificate, now_s: int, prefix: str
) -> Freshness:
    """Clear `subject` by an OCSP answer signed by its issuer or by a responder the issuer delegated (RFC 6960).

    Raises `RevocationUnknown`, `StaleEvidence` or `CertificateRevoked`.
    """
    if not is_ocsp_about(answer, subject=subject, issuer=issuer):
        raise RevocationUnknown("the OCSP answer is about another certificate", reason=f"{prefix}-subject")
    with x509_errors(f"{prefix}-signature", RevocationUnknown, "the OCSP answer is not genuine"):
        signer = _ocsp_signer(answer, issuer, now_s, prefix)
        key = signer.public_key()
        algorithm = answer.signature_hash_algorithm
        _require_strong_hash(algorithm, RevocationUnknown, prefix)
        if not isinstance(key, ec.EllipticCurvePublicKey) or algorithm is None:
            raise RevocationUnknown("the OCSP responder has no EC key", reason=f"{prefix}-signature")
        key.verify(answer.signature, answer.tbs_response_bytes, ec.ECDSA(algorithm))
    with x509_errors(f"{prefix}-format", RevocationUnknown, "the OCSP answer cannot be read"):
        until = answer.next_update_utc
        if until is None:
            raise RevocationUnknown("the OCSP answer has no next update", reason=f"{prefix}-format")
        freshness = _freshness(answer.this_update_utc, until, now_s, prefix, "the OCSP answer")
        status = answer.certificate_status
    if status is ocsp.OCSPCertStatus.REVOKED:
        raise CertificateRevoked(f"{_name(subject)} is revoked", reason=f"{prefix}-revoked")
    if status is not ocsp.OCSPCertStatus.GOOD:
        raise RevocationUnknown(f"the responder does not know {_name(subject)}", reason=f"{prefix}-unknown")
    return freshness


def _ocsp_signer(answer: ocsp.OCSPResponse, issuer: x509.Certificate, now_s: int, prefix: str) -> x509.Certificate:
    if not answer.certificates:
        return issuer
    responder = answer.certificates[0]
    if responder == issuer:
        return issuer
    responder.verify_directly_issued_by(issuer)
    usages = [e.value for e in responder.extensions if isinstance(e.value, x509.ExtendedKeyUsage)]
    if not any(ExtendedKeyUsageOID.OCSP_SIGNING in usage for usage in usages):
        raise RevocationUnknown("the OCSP answer's signer may not sign it", reason=f"{prefix}-responder")
    if not responder.not_valid_before_utc.timestamp() <= now_s <= responder.not_valid_after_utc.timestamp():
        raise StaleEvidence("the OCSP responder's certificate is not valid now", reason=f"{prefix}-expired")
    return responder


def _freshness(issued: datetime.datetime, until: datetime.datetime, now_s: int, prefix: str, what: str) -> Freshness:
    if now_s > until.timestamp():
        raise StaleEvidence(f"{what} has expired", reason=f"{prefix}-expired")
    if issued.timestamp() > now_s + limits.CLOCK_SKEW_S:
        raise StaleEvidence(f"{what} is dated in the future", reason=f"{prefix}-future")
    return Freshness(issued_s=int(issued.timestamp()), next_update_s=int(until.timestamp()))


def _hash(algorithm: hashes.HashAlgorithm, data: bytes) -> bytes:
    digest = hashes.Hash(algorithm)
    digest.update(data)
    return digest.finalize()


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()[:60] or "a nameless certificate"
