"""The certificate by which two peers know one another on QUIC: libp2p/specs, tls/tls.md.

A fresh TLS key signs its own certificate; an extension carries the peer's identity key and that key's signature over
the TLS key. Whoever completes the handshake holds the TLS key, so he is the peer. Both sides show one.

Taken from strangers: one certificate of at most 4 KiB, with an ECDSA or ed25519 key (RSA is slow to check and nobody's
default), of an ed25519 identity, as everywhere in this network. Not here: TLS itself (aioquic).
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtensionOID, NameOID

from p2p.errors import P2PError
from p2p.identity import peer_id_of_seed, peer_id_to_bytes
from p2p.noise import NoiseError, verify_ed25519

EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
SIGNED_PREFIX = b"libp2p-tls-handshake:"
CERTIFICATE_BYTES_MAX = 4096  # ours has 400
SIGNED_KEY_BYTES_MAX = 120  # an ed25519 key and signature need 106: every length has one byte
BEFORE = datetime.timedelta(hours=1)  # clocks differ
AFTER = datetime.timedelta(days=3650)  # a node makes a new one at each start
UNDERSTOOD = frozenset(
    (EXTENSION, ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE)
)
_SEQUENCE, _OCTETS = 0x30, 0x04
_MULTIHASH_HEAD_BYTES = 2  # "identity, 36 bytes": behind it a peer id is the key's own message


class CertificateRefused(P2PError):
    """The other side's certificate does not prove an identity. The text says what is wrong with it."""


def make_certificate(seed: bytes, *, now: datetime.datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate of the identity that grows from the 32-byte `seed`, and its TLS key: P-256, which every libp2p
    understands."""
    key = ec.generate_private_key(ec.SECP256R1())
    identity_key = peer_id_to_bytes(peer_id_of_seed(seed))[_MULTIHASH_HEAD_BYTES:]
    signature = ed25519.Ed25519PrivateKey.from_private_bytes(seed).sign(SIGNED_PREFIX + _public_bytes(key.public_key()))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "libp2p")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE)
        .not_valid_after(now + AFTER)
        .add_extension(
            x509.UnrecognizedExtension(EXTENSION, encode_signed_key(identity_key, signature)), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def verify_certificate(chain: Sequence[x509.Certificate], *, now: datetime.datetime) -> bytes:
    """The 38-byte peer id that the chain proves. Raises CertificateRefused."""
    if len(chain) != 1:
        raise CertificateRefused(f"{len(chain)} certificates instead of one")
    try:
        return _verify(chain[0], now)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise CertificateRefused(f"a malformed certificate: {type(error).__name__}") from error
    except NoiseError as error:
        raise CertificateRefused("an identity that is not ed25519, or did not sign this key") from error


def _verify(certificate: x509.Certificate, now: datetime.datetime) -> bytes:
    if len(certificate.public_bytes(serialization.Encoding.DER)) > CERTIFICATE_BYTES_MAX:
        raise CertificateRefused("a certificate over its bound")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise CertificateRefused("a certificate out of its time")
    key = certificate.public_key()
    signed_key = None
    for extension in certificate.extensions:
        if extension.oid == EXTENSION and isinstance(extension.value, x509.UnrecognizedExtension):
            signed_key = extension.value.value
        elif extension.critical and extension.oid not in UNDERSTOOD:
            raise CertificateRefused("a critical extension that we do not know")
    if signed_key is None:
        raise CertificateRefused("a certificate without libp2p's extension")
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1)):
        algorithm = certificate.signature_hash_algorithm
        if not isinstance(algorithm, (hashes.SHA256, hashes.SHA384, hashes.SHA512)):
            raise CertificateRefused("a certificate signed over a weak hash")
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(algorithm))
    elif isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(certificate.signature, certificate.tbs_certificate_bytes)
    else:
        raise CertificateRefused("a TLS key that is neither ECDSA nor ed25519")
    identity_key, signature = decode_signed_key(signed_key)
    return verify_ed25519(identity_key, signature, SIGNED_PREFIX + _public_bytes(key))


def _public_bytes(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


# --- SignedKey ::= SEQUENCE { publicKey OCTET STRING, signature OCTET STRING }, in DER ------------------------------


def encode_signed_key(identity_key: bytes, signature: bytes) -> bytes:
    body = bytes((_OCTETS, len(identity_key))) + identity_key + bytes((_OCTETS, len(signature))) + signature
    assert len(body) < 0x80, "an ed25519 identity is short"
    return bytes((_SEQUENCE, len(body))) + body


def decode_signed_key(data: bytes) -> tuple[bytes, bytes]:
    """Raises CertificateRefused."""
    if len(data) > SIGNED_KEY_BYTES_MAX:
        raise CertificateRefused("an identity that is not ed25519: too long")
    body, rest = _take(_SEQUENCE, data)
    identity_key, signature_and_rest = _take(_OCTETS, body)
    signature, more = _take(_OCTETS, signature_and_rest)
    if rest or more:
        raise CertificateRefused("bytes behind the signed key")
    return identity_key, signature


def _take(tag: int, data: bytes) -> tuple[bytes, bytes]:
    if len(data) < 2 or data[0] != tag or data[1] >= 0x80 or len(data) < 2 + data[1]:
        raise CertificateRefused("a signed key that does not parse")
    end = 2 + data[1]
    return data[2:end], data[end:]
