"""A stand-in for Intel: roots, collateral and quotes in Intel's exact formats, signed by public keys.

Real `dcap-qvl` verifies what this makes, given this root instead of Intel's. It exists so that every verifier path
runs in tests and demos; its evidence carries another report-data domain and is refused outside devnet.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from ...attest.quote import INTEL_QE_VENDOR
from ...attest.tdx import SEPT_VE_DISABLE
from . import der
from .software_keys import PUBLIC_SEED, Identity, at, derive_key, issue, make_crl, raw_public, raw_signature

SHA256: Final = hashes.SHA256()
SGX_EXTENSION: Final = "1.2.840.113741.1.13.1"
QE_SIGNER: Final = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
CPU_SVN: Final = bytes((3, 3, 2, 2, 4, 1, 0, 5)) + bytes(8)
PCE_SVN: Final = 13
TEE_TCB_SVN: Final = bytes((7, 1, 3)) + bytes(13)
DAY_S: Final = 24 * 3600
COLLATERAL_LIFE_S: Final = 30 * DAY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class TdFields:
    """The fields of a simulated guest's report. Defaults are those of an ordinary, well-configured guest."""

    report_data: bytes
    mr_td: bytes = b"\x11" * 48
    rtmr: tuple[bytes, bytes, bytes, bytes] = (bytes(48),) * 4
    tee_tcb_svn: bytes = TEE_TCB_SVN
    mr_seam: bytes = b"\x33" * 48
    mr_signer_seam: bytes = bytes(48)
    seam_attributes: bytes = bytes(8)
    td_attributes: int = SEPT_VE_DISABLE
    xfam: int = 0x602E7
    mr_config_id: bytes = bytes(48)
    mr_owner: bytes = bytes(48)
    mr_owner_config: bytes = bytes(48)
    mr_service_td: bytes | None = None  # given: a TD report 1.5 in a version 5 quote

    def body(self) -> bytes:
        """The report as TDX lays it out."""
        body = (
            self.tee_tcb_svn
            + self.mr_seam
            + self.mr_signer_seam
            + self.seam_attributes
            + struct.pack("<QQ", self.td_attributes, self.xfam)
            + self.mr_td
            + self.mr_config_id
            + self.mr_owner
            + self.mr_owner_config
            + b"".join(self.rtmr)
            + self.report_data
        )
        return body if self.mr_service_td is None else body + self.tee_tcb_svn + self.mr_service_td


class SoftwareIntel:
    """Intel's certificate authorities, and the machines they know."""

    def __init__(self, *, seed: bytes = PUBLIC_SEED, fmspc: bytes = bytes.fromhex("90c06f000000")) -> None:
        self._seed = seed
        self.fmspc = fmspc
        self.root = self._authority("SGX Root CA", None, 1)
        self.pck_ca = self._authority("PCK Platform CA", self.root, 0)
        self.tcb_signer = issue(
            "SOFT-TEE TCB Signing",
            derive_key(seed, "tcb signing", ec.SECP256R1()),
            self.root,
            authority=False,
            hash_algorithm=SHA256,
        )

    def _authority(self, name: str, issuer: Identity | None, path_length: int) -> Identity:
        key = derive_key(self._seed, name, ec.SECP256R1())
        return issue(f"SOFT-TEE {name}", key, issuer, authority=True, path_length=path_length, hash_algorithm=SHA256)

    def machine(
        self, ppid: bytes, *, cpu_svn: bytes = CPU_SVN, pce_svn: int = PCE_SVN, fmspc: bytes | None = None
    ) -> Identity:
        """A machine's PCK certificate and key, with the full SGX extension."""
        extension = _sgx_extension(ppid, cpu_svn, pce_svn, self.fmspc if fmspc is None else fmspc)
        return issue(
            "SOFT-TEE PCK Certificate",
            derive_key(self._seed, f"pck {ppid.hex()}", ec.SECP256R1()),
            self.pck_ca,
            authority=False,
            hash_algorithm=SHA256,
            extensions=[x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX_EXTENSION), extension)],
        )

    def collateral(
        self,
        *,
        issued_s: int,
        status: str = "UpToDate",
        advisories: Sequence[str] = (),
        evaluation_number: int = 18,
        qe_status: str = "UpToDate",
        revoked_pcks: Sequence[int] = (),
        revoked_cas: Sequence[int] = (),
        life_s: int = COLLATERAL_LIFE_S,
        edit: dict[str, Any] | None = None,
    ) -> bytes:
        """Signed collateral as JSON. `edit` changes the TCB info before it is signed."""
        dates = {"issueDate": _iso(issued_s), "nextUpdate": _iso(issued_s + life_s)}
        tcb_info = json.dumps(
            {**_tcb_info(self.fmspc, dates, status, advisories, evaluation_number), **(edit or {})},
            separators=(",", ":"),
        )
        qe_identity = json.dumps(_qe_identity(dates, qe_status, evaluation_number), separators=(",", ":"))
        lists = {"issued_s": issued_s, "next_update_s": issued_s + life_s, "hash_algorithm": SHA256}
        chain = self.tcb_signer.pem + self.root.pem
        return json.dumps(
            {
                "pck_crl_issuer_chain": self.pck_ca.pem + self.root.pem,
                "root_ca_crl": make_crl(self.root, revoked=revoked_cas, **lists).hex(),  # type: ignore[arg-type]
                "pck_crl": make_crl(self.pck_ca, revoked=revoked_pcks, **lists).hex(),  # type: ignore[arg-type]
                "tcb_info_issuer_chain": chain,
                "tcb_info": tcb_info,
                "tcb_info_signature": self._sign(tcb_info),
                "qe_identity_issuer_chain": chain,
                "qe_identity": qe_identity,
                "qe_identity_signature": self._sign(qe_identity),
            }
        ).encode()

    def _sign(self, text: str) -> str:
        return raw_signature(self.tcb_signer.key, text.encode(), SHA256).hex()

    def quote(self, machine: Identity, fields: TdFields) -> bytes:
        """A quote of version 4, or of version 5 when the report has a service TD field."""
        attestation_key = derive_key(self._seed, "attestation", ec.SECP256R1())
        body = fields.body()
        version = 4 if fields.mr_service_td is None else 5
        header = struct.pack("<HHIHH", version, 2, 0x81, 0, 0) + INTEL_QE_VENDOR + bytes(20)
        signed = header + (b"" if version == 4 else struct.pack("<HI", 3, len(body))) + body
        authentication = bytes(range(32))
        report_data = hashlib.sha256(raw_public(attestation_key) + authentication).digest() + bytes(32)
        qe_report = _qe_report(report_data)
        chain = (machine.pem + self.pck_ca.pem + self.root.pem).encode()
        certification = (
            qe_report
            + raw_signature(machine.key, qe_report, SHA256)
            + struct.pack("<H", len(authentication))
            + authentication
            + struct.pack("<HI", 5, len(chain))
            + chain
        )
        signature = (
            raw_signature(attestation_key, signed, SHA256)
            + raw_public(attestation_key)
            + struct.pack("<HI", 6, len(certification))
            + certification
        )
        return signed + struct.pack("<I", len(signature)) + signature


def _iso(seconds: int) -> str:
    return at(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def _sgx_extension(ppid: bytes, cpu_svn: bytes, pce_svn: int, fmspc: bytes) -> bytes:
    base = SGX_EXTENSION
    tcb = [der.sequence(der.oid(f"{base}.2.{i + 1}"), der.integer(svn)) for i, svn in enumerate(cpu_svn)]
    tcb.append(der.sequence(der.oid(f"{base}.2.17"), der.integer(pce_svn)))
    tcb.append(der.sequence(der.oid(f"{base}.2.18"), der.octets(cpu_svn)))
    flags = [der.sequence(der.oid(f"{base}.7.{i}"), der.boolean(True)) for i in (1, 2, 3)]
    return der.sequence(
        der.sequence(der.oid(f"{base}.1"), der.octets(ppid)),
        der.sequence(der.oid(f"{base}.2"), der.sequence(*tcb)),
        der.sequence(der.oid(f"{base}.3"), der.octets(bytes(2))),
        der.sequence(der.oid(f"{base}.4"), der.octets(fmspc)),
        der.sequence(der.oid(f"{base}.5"), der.enumerated(1)),
        der.sequence(der.oid(f"{base}.6"), der.octets(hashlib.sha256(ppid).digest()[:16])),
        der.sequence(der.oid(f"{base}.7"), der.sequence(*flags)),
    )


def _tcb_info(
    fmspc: bytes, dates: dict[str, str], status: str, advisories: Sequence[str], number: int
) -> dict[str, Any]:
    signer = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    day = "2024-11-13T00:00:00Z"
    module_level = {"tcb": {"isvsvn": 6}, "tcbDate": day, "tcbStatus": "UpToDate"}
    level = {
        "tcb": {
            "sgxtcbcomponents": [{"svn": svn} for svn in CPU_SVN],
            "pcesvn": PCE_SVN,
            "tdxtcbcomponents": [{"svn": svn} for svn in (5, 0, 3, *([0] * 13))],
        },
        "tcbDate": day,
        "tcbStatus": status,
        "advisoryIDs": list(advisories),
    }
    return {
        "id": "TDX",
        "version": 3,
        **dates,
        "fmspc": fmspc.hex().upper(),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": number,
        "tdxModule": signer,
        "tdxModuleIdentities": [{"id": "TDX_01", **signer, "tcbLevels": [module_level]}],
        "tcbLevels": [level],
    }


def _qe_identity(dates: dict[str, str], status: str, number: int) -> dict[str, Any]:
    return {
        "id": "TD_QE",
        "version": 2,
        **dates,
        "tcbEvaluationDataNumber": number,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11" + "00" * 15,
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": QE_SIGNER.hex().upper(),
        "isvprodid": 2,
        "tcbLevels": [{"tcb": {"isvsvn": 4}, "tcbDate": "2024-11-13T00:00:00Z", "tcbStatus": status}],
    }


def _qe_report(report_data: bytes) -> bytes:
    report = (
        b"\x03" * 16
        + bytes(4 + 28)
        + bytes.fromhex("1500000000000000e700000000000000")
        + b"\x44" * 32
        + bytes(32)
        + QE_SIGNER
        + bytes(96)
        + struct.pack("<HH", 2, 6)
        + bytes(60)
        + report_data
    )
    assert len(report) == 384
    return report
