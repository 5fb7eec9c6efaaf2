"""A stand-in for NVIDIA: device chains, reports, RIMs, revocation lists and OCSP answers in their exact formats."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from ...attest.gpu import xml
from ...attest.gpu.report import BLOCKS, REQUEST_OPENING, RESPONSE_OPENING
from ...attest.gpu.rim import C14N_11, DSIG, ECDSA_SHA384, ENVELOPED, SHA384, SHA384_NS, SWID
from ...attest.gpu.verify import FWID_EXTENSION
from . import der
from .software_keys import PUBLIC_SEED, Identity, at, derive_key, issue, make_crl, raw_signature

SHA384_HASH: Final = hashes.SHA384()
DAY_S: Final = 24 * 3600
DRIVER: Final = "550.144.03"
VBIOS: Final = "96.00.9F.00.01"
VBIOS_FIELD: Final = bytes.fromhex("009f009601000000")
DRIVER_INDEXES: Final = frozenset(range(20, 41))
VBIOS_INDEXES: Final = frozenset(range(1, 13))


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One simulated H100."""

    brom: Identity
    leaf: Identity
    chain: bytes  # PEM, leaf to root
    fwid: bytes
    measurements: dict[int, bytes] = field(repr=False)


class SoftwareNvidia:
    """NVIDIA's certificate authorities, and the devices and firmware they vouch for."""

    def __init__(self, *, seed: bytes = PUBLIC_SEED, chip: str = "GH100") -> None:
        self._seed = seed
        self._chip = chip
        self.root = self._issue("Device Identity CA", None)
        self.identity = self._issue(f"{chip} Identity", self.root)
        self.provisioner = self._issue(f"{chip} Provisioner ICA 1", self.identity)
        self.responder = self._issue(
            "OCSP Responder",
            self.provisioner,
            authority=False,
            extensions=[x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])],
        )
        self.rim_root = self._issue("CoRIM signing Root CA", None)
        self.rim_ca = self._issue(f"Reference Value {chip} CA", self.rim_root)
        self.rim_signer = self._issue("RIM L4 Signer", self.rim_ca, authority=False)

    def _issue(
        self,
        name: str,
        issuer: Identity | None,
        *,
        authority: bool = True,
        extensions: Sequence[x509.ExtensionType] = (),
    ) -> Identity:
        return issue(
            f"SOFT-TEE {name}",
            derive_key(self._seed, name, ec.SECP384R1()),
            issuer,
            authority=authority,
            hash_algorithm=SHA384_HASH,
            extensions=extensions,
        )

    def device(self, serial: str, *, fwid_in_leaf: bytes | None = None) -> Device:
        """A device with its own BROM and FMC certificates."""
        fwid = hashlib.sha384(f"fmc {serial}".encode()).digest()
        brom = self._issue(f"GH100 A01 GSP BROM {serial}", self.provisioner)
        dice = der.sequence(
            der.integer(1),
            der.sequence(der.oid("2.16.840.1.101.3.4.2.2"), der.octets(fwid_in_leaf or fwid)),
        )
        leaf = self._issue(
            f"GH100 A01 GSP FMC LF {serial}",
            brom,
            authority=False,
            extensions=[x509.UnrecognizedExtension(FWID_EXTENSION, dice)],
        )
        chain = (leaf, brom, self.provisioner, self.identity, self.root)
        return Device(
            brom=brom,
            leaf=leaf,
            chain="".join(link.pem for link in chain).encode(),
            fwid=fwid,
            measurements=golden_measurements(),
        )

    def report(
        self,
        device: Device,
        nonce: bytes,
        *,
        driver: str = DRIVER,
        changes: dict[int, bytes | None] | None = None,
        measurements: dict[int, bytes] | None = None,
        signer: ec.EllipticCurvePrivateKey | None = None,
    ) -> bytes:
        """A signed report. `changes` replaces or drops opaque fields; `measurements` replaces blocks."""
        blocks = {**device.measurements, **(measurements or {})}
        record = b"".join(struct.pack("<BBHBH", index + 1, 1, 51, 1, 48) + blocks[index] for index in range(BLOCKS))
        fields: dict[int, bytes | None] = {
            6: VBIOS_FIELD,
            15: b"882\0",
            17: b"1010\0",
            18: b"0200\0",
            3: driver.encode() + b"\0",
            11: b"\x55",
            20: device.fwid,
            21: b"\x55",
            36: bytes(2),
            **(changes or {}),
        }
        opaque = b"".join(struct.pack("<HH", kind, len(v)) + v for kind, v in fields.items() if v is not None)
        signed = (
            REQUEST_OPENING
            + nonce
            + b"\0"
            + RESPONSE_OPENING
            + bytes((0, 0, BLOCKS))
            + len(record).to_bytes(3, "little")
            + record
            + hashlib.sha256(b"response nonce" + nonce).digest()
            + struct.pack("<H", len(opaque))
            + opaque
        )
        return signed + raw_signature(signer or device.leaf.key, signed, SHA384_HASH)

    # --- revocation ---

    def crls(
        self,
        *,
        issued_s: int,
        life_s: int = 30 * DAY_S,
        revoked_identities: Sequence[int] = (),
        revoked_provisioners: Sequence[int] = (),
    ) -> tuple[bytes, bytes]:
        """The root's list and the Identity CA's list."""
        return (
            make_crl(
                self.root,
                issued_s=issued_s,
                next_update_s=issued_s + life_s,
                revoked=revoked_identities,
                hash_algorithm=SHA384_HASH,
            ),
            make_crl(
                self.identity,
                issued_s=issued_s,
                next_update_s=issued_s + life_s,
                revoked=revoked_provisioners,
                hash_algorithm=SHA384_HASH,
            ),
        )

    def ocsp_answer(
        self,
        device: Device,
        *,
        issued_s: int,
        life_s: int = 7 * DAY_S,
        status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
        responder: Identity | None = None,
    ) -> bytes:
        """The delegated responder's answer about the device's BROM certificate."""
        signer = responder or self.responder
        revoked = status is ocsp.OCSPCertStatus.REVOKED
        builder = (
            ocsp.OCSPResponseBuilder()
            .add_response(
                cert=device.brom.certificate,
                issuer=self.provisioner.certificate,
                algorithm=SHA384_HASH,
                cert_status=status,
                this_update=at(issued_s),
                next_update=at(issued_s + life_s),
                revocation_time=at(issued_s - DAY_S) if revoked else None,
                revocation_reason=None,
            )
            .responder_id(ocsp.OCSPResponderEncoding.HASH, signer.certificate)
            .certificates([signer.certificate])
        )
        return builder.sign(signer.key, SHA384_HASH).public_bytes(Encoding.DER)

    # --- reference measurements ---

    def rim(
        self,
        version: str,
        active: Collection[int],
        *,
        product: str | None = None,
        golden: dict[int, bytes] | None = None,
        signer: Identity | None = None,
        chain: Sequence[Identity] | None = None,
    ) -> bytes:
        """A signed RIM in which `active` indexes have the golden value."""
        values = {**golden_measurements(), **(golden or {})}
        rows = "".join(
            f'<ns0:Resource type="Measurement" index="{i}" active="{i in active}" alternatives="1" '
            f'ns2:Hash0="{values[i].hex()}" name="Measurement_{i}" size="48"/>'
            for i in range(BLOCKS)
        )
        name = product or self._chip
        body = (
            f'<SoftwareIdentity xmlns="{SWID}" xmlns:ns0="{SWID}" xmlns:ns2="{SHA384_NS}" name="{name}" '
            f'tagId="software-tee" version="1.0"><ns0:Meta colloquialVersion="{version}" edition="GPU" '
            f'product="{name}"/><ns0:Payload>{rows}</ns0:Payload></SoftwareIdentity>'
        )
        return sign_rim(
            body,
            signer or self.rim_signer,
            chain or (self.rim_signer, self.rim_ca, self.rim_root),
        )

    def rims(self, *, driver: str = DRIVER) -> tuple[bytes, bytes]:
        """Driver and VBIOS RIM of every simulated device."""
        return self.rim(driver, DRIVER_INDEXES), self.rim(VBIOS, VBIOS_INDEXES)


def golden_measurements() -> dict[int, bytes]:
    """What genuine simulated firmware measures, index 0–63."""
    return {i: hashlib.sha384(f"golden {i}".encode()).digest() for i in range(BLOCKS)}


def sign_rim(body: str, signer: Identity, chain: Sequence[Identity]) -> bytes:
    """An enveloped XMLDSig as NVIDIA makes it: digest of the body, then the signature over SignedInfo."""
    digest = base64.b64encode(hashlib.sha384(xml.canonical(xml.parse(body.encode()))).digest()).decode()
    info = (
        f'<ds:SignedInfo><ds:CanonicalizationMethod Algorithm="{C14N_11}"/>'
        f'<ds:SignatureMethod Algorithm="{ECDSA_SHA384}"/><ds:Reference URI=""><ds:Transforms>'
        f'<ds:Transform Algorithm="{ENVELOPED}"/><ds:Transform Algorithm="{C14N_11}"/></ds:Transforms>'
        f'<ds:DigestMethod Algorithm="{SHA384}"/><ds:DigestValue>{digest}</ds:DigestValue>'
        f"</ds:Reference></ds:SignedInfo>"
    )
    certificates = "".join(
        f"<ds:X509Certificate>{base64.b64encode(link.der).decode()}</ds:X509Certificate>" for link in chain
    )

    def wrap(value: str) -> str:
        signature = (
            f'<ds:Signature xmlns:ds="{DSIG}">{info}<ds:SignatureValue>{value}</ds:SignatureValue>'
            f"<ds:KeyInfo><ds:X509Data>{certificates}</ds:X509Data></ds:KeyInfo></ds:Signature>"
        )
        end = body.rindex("</")
        return body[:end] + signature + body[end:]

    unsigned = xml.parse(wrap("").encode())
    signed_info = unsigned.elements()[-1].elements()[0]
    value = raw_signature(signer.key, xml.canonical(signed_info), SHA384_HASH)
    return wrap(base64.b64encode(value).decode()).encode()
