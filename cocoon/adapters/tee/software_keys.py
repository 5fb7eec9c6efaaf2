"""Keys and certificates of the software TEE. **Every key here follows from a public seed and proves nothing.**

The roots have fixed dates and deterministic signatures, so that every process on a devnet makes the same root
certificate and can verify every other's simulated evidence without exchanging anything.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

HashAlgorithm = hashes.SHA256 | hashes.SHA384
UTC: Final = datetime.UTC
FIRST_DAY: Final = datetime.datetime(2020, 1, 1, tzinfo=UTC)
LAST_DAY: Final = datetime.datetime(2049, 12, 31, tzinfo=UTC)
PUBLIC_SEED: Final = b"cocoon software TEE: a public seed, these keys prove nothing"
ORGANIZATION: Final = "Cocoon software TEE (NOT REAL)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        """The certificate in PEM."""
        return self.certificate.public_bytes(Encoding.PEM).decode()


def derive_key(seed: bytes, label: str, curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
    """The key of this label under this seed."""
    raw = hashlib.sha512(seed + b"\0" + label.encode()).digest()
    # 512 bits against group orders of 256 and 384 bits: never zero, and bias does not matter for public keys.
    return ec.derive_private_key(int.from_bytes(raw[: curve.key_size // 8 - 1], "big") + 1, curve)


def at(seconds: int) -> datetime.datetime:
    """Unix seconds as an aware datetime."""
    return datetime.datetime.fromtimestamp(seconds, UTC)


def issue(
    common_name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: Identity | None,
    *,
    authority: bool,
    hash_algorithm: HashAlgorithm,
    path_length: int | None = None,
    extensions: Sequence[x509.ExtensionType] = (),
    not_before: datetime.datetime = FIRST_DAY,
    not_after: datetime.datetime = LAST_DAY,
    crl_sign: bool | None = None,
) -> Identity:
    """A certificate with the extensions that Intel's and NVIDIA's have. `issuer=None` signs itself."""
    public = key.public_key()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
        ]
    )
    signer = key if issuer is None else issuer.key
    serial = hashlib.sha256(public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)).digest()[:16]
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if issuer is None else issuer.certificate.subject)
        .public_key(public)
        .serial_number(int.from_bytes(serial, "big") >> 1 | 1)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(authority, path_length if authority else None), critical=True)
        .add_extension(_usage(authority, authority if crl_sign is None else crl_sign), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(_DISTRIBUTION, critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return Identity(certificate=builder.sign(signer, hash_algorithm, ecdsa_deterministic=True), key=key)


# dcap-qvl wants a distribution point on certificates that a CRL covers; the name resolves nowhere.
_DISTRIBUTION: Final = x509.CRLDistributionPoints(
    [x509.DistributionPoint([x509.UniformResourceIdentifier("https://software-tee.invalid/crl")], None, None, None)]
)


def _usage(authority: bool, crl_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=not authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def make_crl(
    issuer: Identity,
    *,
    issued_s: int,
    next_update_s: int,
    revoked: Sequence[int] = (),
    hash_algorithm: HashAlgorithm,
    signer: ec.EllipticCurvePrivateKey | None = None,
) -> bytes:
    """A revocation list in DER. `signer` other than the issuer's key makes a forged one."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(at(issued_s))
        .next_update(at(next_update_s))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at(issued_s)).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(signer or issuer.key, hash_algorithm).public_bytes(Encoding.DER)


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes, hash_algorithm: HashAlgorithm) -> bytes:
    """r‖s, each as long as the curve's order."""
    size = key.curve.key_size // 8
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hash_algorithm, deterministic_signing=True)))
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def raw_public(key: ec.EllipticCurvePrivateKey) -> bytes:
    """x‖y."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
