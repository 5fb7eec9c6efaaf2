"""Who a certificate proves, and every way in which one proves nobody. Vectors: libp2p/specs, tls/tls.md."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from p2p.driver.quic_certificate import (
    EXTENSION,
    SIGNED_PREFIX,
    CertificateRefused,
    decode_signed_key,
    encode_signed_key,
    make_certificate,
    verify_certificate,
)
from p2p.identity import peer_id_of_bytes, peer_id_of_seed, peer_id_to_bytes

NOW = datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
SEED = b"s" * 32

_HEAD = (
    "020204499602d2300a06082a8648ce3d040302302031123010060355040a13096c69627032702e696f310a300806035504051301313020170d"
    "3735303130313133303030305a180f34303936303130313133303030305a302031123010060355040a13096c69627032702e696f310a300806"
    "035504051301313059301306072a8648ce3d020106082a8648ce3d030107034200040c901d423c831ca85e27c73c263ba132721bb9d7a84c4f"
    "0380b2a6756fd601331c8870234dec878504c174144fa4b14b66a651691606d8173e55bd37e381569ea3"
)
ED25519 = (
    f"308201ae30820156a00302010{_HEAD[1:]}7c307a3078060a2b0601040183a25a0101046a3068042408011220a77f1d92fedb59dddaea5a1"
    "c4abd1ac2fbde7d7b879ed364501809923d7c11b90440d90d2769db992d5e6195dbb08e706b6651e024fda6cfb8846694a435519941cac215a"
    "8207792e42849cccc6cd8136c6e4bde92a58c5e08cfd4206eb5fe0bf909300a06082a8648ce3d0403020346003043021f50f6b6c52711a8817"
    "78718238f650c9fb48943ae6ee6d28427dc6071ae55e702203625f116a7a454db9c56986c82a25682f7248ea1cb764d322ea983ed36a31b77"
)
ECDSA = (
    f"308201f63082019da00302010{_HEAD[1:]}81c23081bf3081bc060a2b0601040183a25a01010481ad3081aa045f0803125b3059301306072"
    "a8648ce3d020106082a8648ce3d03010703420004bf30511f909414ebdd3242178fd290f093a551cf75c973155de0bb5a96fedf6cb5d52da75"
    "63e794b512f66e60c7f55ba8a3acf3dd72a801980d205e8a1ad29f2044730450220064ea8124774caf8f50e57f436aa62350ce652418c019df"
    "5d98a3ac666c9386a022100aa59d704a931b5f72fb9222cb6cc51f954d04a4e2e5450f8805fe8918f71eaae300a06082a8648ce3d040302034"
    "70030440220799395b0b6c1e940a7e4484705f610ab51ed376f19ff9d7c16757cfbf61b8d4302206205c03fbb0f95205c779be86581d3e31c0"
    "1871ad5d1f3435bcf375cb0e5088a"
)
SECP256K1 = (
    f"308201ba3082015fa00302010{_HEAD[1:]}8184308181307f060a2b0601040183a25a01010471306f0425080212210206dc6968726765b82"
    "0f050263ececf7f71e4955892776c0970542efd689d2382044630440220145e15a991961f0d08cd15425bb95ec93f6ffa03c5a385eedc34ecf"
    "464c7a8ab022026b3109b8a3f40ef833169777eb2aa337cfb6282f188de0666d1bcec2a4690dd300a06082a8648ce3d0403020349003046022"
    "100e1a217eeef9ec9204b3f774a08b70849646b6a1e6b8b27f93dc00ed58545d9fe022100b00dafa549d0f03547878338c7b15e7502888f6d4"
    "5db387e5ae6b5d46899cef0"
)


def vector(text: str) -> x509.Certificate:
    return x509.load_der_x509_certificate(bytes.fromhex(text))


def test_the_vector_of_the_specification_proves_the_peer_that_it_names() -> None:
    proved = verify_certificate([vector(ED25519)], now=NOW)
    assert peer_id_of_bytes(proved) == "12D3KooWM6CgA9iBFZmcYAHA6A2qvbAxqfkmrYiRQuz3XEsk4Ksv"


@pytest.mark.parametrize("text", [ECDSA, SECP256K1], ids=["ecdsa", "secp256k1"])
def test_valid_vectors_of_other_kinds_of_identity_are_refused_by_name(text: str) -> None:
    with pytest.raises(CertificateRefused, match="not ed25519"):
        verify_certificate([vector(text)], now=NOW)


def test_what_we_make_proves_us_now_and_not_years_later() -> None:
    certificate, key = make_certificate(SEED, now=NOW)
    for when in (NOW, NOW - DAY / 48, NOW + 365 * DAY):
        assert verify_certificate([certificate], now=when) == peer_id_to_bytes(peer_id_of_seed(SEED))
    assert len(certificate.public_bytes(serialization.Encoding.DER)) < 600
    assert key.public_key() == certificate.public_key()
    with pytest.raises(CertificateRefused, match="out of its time"):
        verify_certificate([certificate], now=NOW + 4000 * DAY)
    with pytest.raises(CertificateRefused, match="out of its time"):
        verify_certificate([certificate], now=NOW - DAY)


def forged(
    *,
    key: Any = None,
    signer: Any = None,
    signed_key: Callable[[bytes], bytes] | None = None,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    hash_algorithm: Any = None,
) -> x509.Certificate:
    """A certificate in which one thing is as the test wants it. `signed_key`: from the TLS key to the extension."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
    )
    if signed_key is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(EXTENSION, signed_key(public)), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    is_ed25519 = isinstance(signer or key, ed25519.Ed25519PrivateKey)
    return builder.sign(signer or key, None if is_ed25519 else hash_algorithm or hashes.SHA256())


def honest(public: bytes) -> bytes:
    identity = ed25519.Ed25519PrivateKey.from_private_bytes(SEED)
    identity_key = peer_id_to_bytes(peer_id_of_seed(SEED))[2:]
    return encode_signed_key(identity_key, identity.sign(SIGNED_PREFIX + public))


def test_an_ed25519_or_p384_tls_key_is_as_good_as_ours() -> None:
    for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())):
        certificate = forged(key=key, signed_key=honest)
        assert verify_certificate([certificate], now=NOW) == peer_id_to_bytes(peer_id_of_seed(SEED))


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"?")


def test_an_unknown_extension_is_ignored_unless_it_is_critical() -> None:
    verify_certificate([forged(signed_key=honest, extensions=((UNKNOWN, False),))], now=NOW)
    with pytest.raises(CertificateRefused, match="critical extension"):
        verify_certificate([forged(signed_key=honest, extensions=((UNKNOWN, True),))], now=NOW)


CASES = {
    "no extension": (lambda: forged(), "without libp2p's extension"),
    "another's signature": (lambda: forged(signed_key=lambda public: honest(public + b"x")), "did not sign"),
    "a signature of zeros": (
        lambda: forged(signed_key=lambda _: encode_signed_key(peer_id_to_bytes(peer_id_of_seed(SEED))[2:], bytes(64))),
        "did not sign",
    ),
    "not signed by its own key": (
        lambda: forged(signed_key=honest, signer=ec.generate_private_key(ec.SECP256R1())),
        "malformed certificate: InvalidSignature",
    ),
    "an RSA key": (
        lambda: forged(key=rsa.generate_private_key(public_exponent=65537, key_size=2048), signed_key=honest),
        "neither ECDSA nor ed25519",
    ),
    "another curve": (
        lambda: forged(key=ec.generate_private_key(ec.SECP256K1()), signed_key=honest),
        "neither ECDSA nor ed25519",
    ),
    "a weak hash": (lambda: forged(signed_key=honest, hash_algorithm=hashes.SHA224()), "weak hash"),
    "padding of five kilobytes": (
        lambda: forged(
            signed_key=honest,
            extensions=((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), bytes(5000)), False),),
        ),
        "over its bound",
    ),
    "a key that does not parse": (lambda: forged(signed_key=lambda _: b"\x30\x03abc"), "does not parse"),
    "bytes behind the key": (lambda: forged(signed_key=lambda public: honest(public) + b"x"), "bytes behind"),
    "a long key": (lambda: forged(signed_key=lambda _: b"\x30\x81" + bytes(200)), "too long"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_proves_nobody(case: str) -> None:
    make, words = CASES[case]
    with pytest.raises(CertificateRefused, match=words):
        verify_certificate([make()], now=NOW)


def test_a_chain_of_two_or_of_none_proves_nobody() -> None:
    certificate, _ = make_certificate(SEED, now=NOW)
    for chain in ([], [certificate, certificate]):
        with pytest.raises(CertificateRefused, match="certificates instead of one"):
            verify_certificate(chain, now=NOW)


def test_a_signed_key_cut_anywhere_is_refused() -> None:
    whole = encode_signed_key(b"k" * 36, b"s" * 64)
    assert decode_signed_key(whole) == (b"k" * 36, b"s" * 64)
    for size in range(len(whole)):
        with pytest.raises(CertificateRefused):
            decode_signed_key(whole[:size])
