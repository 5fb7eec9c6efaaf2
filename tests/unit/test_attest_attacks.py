"""The attack table: one thing wrong in a session's evidence, and the one named check that stops it.

Everything is made by the software TEE, so each row signs what an attacker could sign, and the very code that judges
hardware refuses it. `test_the_untouched_session_passes` keeps the rows honest: without the change all is accepted.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from cryptography.x509 import ocsp
from nacl.signing import SigningKey

from cocoon.adapters.tee.software import (
    FIRMWARE_EVENTS,
    anchors_of,
    build_ccel,
    build_json_log,
    software_anchors,
    software_release,
)
from cocoon.adapters.tee.software_nvidia import (
    DRIVER,
    DRIVER_INDEXES,
    VBIOS,
    VBIOS_INDEXES,
    SoftwareNvidia,
    golden_measurements,
    sign_rim,
)
from cocoon.attest import statement as st
from cocoon.attest.eventlog import LogKind
from cocoon.attest.evidence import GpuEvidence, assemble, decode_hardware, encode_bundle
from cocoon.attest.images import ImagePolicy
from cocoon.attest.judging import AllOf, AnyOf
from cocoon.attest.policy import GpuPolicy, GuestPolicy, MinimumLevel, PpidPolicy, TcbPolicy, TrustPolicy
from cocoon.attest.trail import Trail
from cocoon.attest.verifier import Verifier
from cocoon.errors import (
    AttestationError,
    BindingMismatch,
    CertificateRevoked,
    EventLogInvalid,
    EvidenceMalformed,
    GpuReportInvalid,
    QuoteInvalid,
    RevocationUnknown,
    RimInvalid,
    StaleEvidence,
    TcbOutOfDate,
    TrustRefused,
    UnknownMeasurement,
)
from cocoon.types import Network, TrustLevel
from tests.fakes.attestation import (
    DAY_S,
    INTEL,
    MODEL,
    NONCE,
    NOW,
    NOW_S,
    NVIDIA,
    OTHER_INTEL,
    OTHER_NVIDIA,
    PEER,
    enclave,
    evidence_of,
    expected,
    facts_of,
    policy,
    verifier,
)

MALLORY = SigningKey(b"M" * 32)
OTHER_DIGEST = hashlib.sha256(b"other").digest()
MACHINE = enclave()


def first_gpu(bundle):
    return bundle.gpus[0]


def with_gpu(bundle, **changes):
    return replace(bundle, gpus=(replace(bundle.gpus[0], **changes),))


def flip(data, at):
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def collateral_with(**changes):
    """Collateral whose outer JSON is edited after signing."""

    def change(bundle):
        outer = json.loads(bundle.collateral)
        for name, edit in changes.items():
            outer[name] = edit(outer[name])
        return replace(bundle, collateral=json.dumps(outer).encode())

    return change


def logs_with(runtime=None, ccel=FIRMWARE_EVENTS):
    """Logs that replay to the quote but hold other events: the quote is made over them."""
    made = [(LogKind.CCEL, build_ccel(ccel))]
    if runtime is not None:
        made.append((LogKind.JSON, build_json_log(runtime)))
    return tuple(made)


def machine_with_logs(logs):
    machine = enclave()
    machine.logs = lambda: logs
    return machine


def runtime(*, image=None, config=None, models=(MODEL,), seal=((("cocoon/seal"), b""),), before=(), after=()):
    return [
        *before,
        ("cocoon/image", MACHINE.image if image is None else image),
        ("cocoon/config", MACHINE.config if config is None else config),
        *[("cocoon/model", model) for model in models],
        *seal,
        *after,
    ]


def edit_log(edit):
    def change(bundle):
        rows = json.loads(bundle.logs[1][1])
        edit(rows)
        return replace(bundle, logs=(bundle.logs[0], (LogKind.JSON, json.dumps(rows).encode())))

    return change


RIM_BODY = NVIDIA.rim(DRIVER, DRIVER_INDEXES)


def rim_with(edit):
    """The driver RIM edited after signing."""
    return lambda bundle: replace(bundle, rims=(edit(bundle.rims[0]), bundle.rims[1]))


def wrapped_rim(data):
    """XML signature wrapping: the signed document moved inside, hostile measurements outside."""
    text = data.decode()
    payload = text[text.index("<ns0:Payload>") : text.index("</ns0:Payload>") + len("</ns0:Payload>")]
    hostile = payload.replace('active="False"', 'active="False" forged="x"')
    return text.replace("<ns0:Payload>", hostile + "<ns0:Payload>", 1).encode()


def second_signature(data):
    text = data.decode()
    signature = text[text.index("<ds:Signature") : text.index("</ds:Signature>") + len("</ds:Signature>")]
    return text.replace(signature, signature + signature).encode()


def nested_signature(data):
    text = data.decode()
    signature = text[text.index("<ds:Signature") : text.index("</ds:Signature>") + len("</ds:Signature>")]
    return text.replace(signature, "").replace("</ns0:Payload>", signature + "</ns0:Payload>").encode()


BOMB = (
    b'<!DOCTYPE r [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
    b'<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]><r>&c;</r>'
)


@dataclass(frozen=True)
class Attack:
    """`make` are keywords of `evidence_of`; `known` of `expected`; the rest bends clock, ratchet or anchors."""

    name: str
    reason: str
    error: type[AttestationError]
    make: dict[str, Any] = field(default_factory=dict)
    known: dict[str, Any] = field(default_factory=dict)
    later_s: int = 0
    seen: dict[str, int] = field(default_factory=dict)
    verifier: Any = None
    policy: Any = None


A = Attack
FAMILY = INTEL.fmspc.hex()

ATTACKS = [
    # --- replay and relay
    A("replayed session", "statement.mismatch", BindingMismatch, known={"nonce": bytes(32)}),
    A("relay to an honest enclave", "statement.mismatch", BindingMismatch, known={"peer": MALLORY.verify_key.encode()}),
    A(
        "front that swaps the operator",
        "statement.mismatch",
        BindingMismatch,
        known={"operator": MALLORY.verify_key.encode()},
    ),
    A("front that swaps the payout", "statement.mismatch", BindingMismatch, known={"payout": bytes(32)}),
    A("another model than the offer's", "statement.mismatch", BindingMismatch, known={"model": OTHER_DIGEST}),
    A("another image than the offer's", "statement.image", BindingMismatch, known={"image": OTHER_DIGEST}),
    A("evidence of another network", "statement.mismatch", BindingMismatch, {"statement": {"network": -239}}),
    A("statement not signed by O", "statement.signature", BindingMismatch, {"operator": MALLORY}),
    A("statement not signed by P", "statement.signature", BindingMismatch, {"peer": MALLORY}),
    A(
        "statement edited after signing",
        "statement.signature",
        BindingMismatch,
        {
            "session": lambda s: replace(
                s, statement=s.statement.replace(MODEL, MODEL[:-1] + b"x")[:-1] + s.statement[-1:]
            )
        },
        known={"model": MODEL[:-1] + b"x"},
    ),
    A(
        "statement is not CBOR",
        "statement.format",
        EvidenceMalformed,
        {"session": lambda s: replace(s, statement=b"\xff")},
    ),
    A(
        "statement with a byte more",
        "statement.format",
        EvidenceMalformed,
        {"session": lambda s: replace(s, statement=s.statement + b"\0")},
    ),
    A("statement of a later version", "statement.mismatch", BindingMismatch, {"statement": {"version": 2}}),
    A(
        "quote replayed from another statement",
        "binding.report-data",
        BindingMismatch,
        {"report_data": hashlib.sha512(b"yesterday").digest()},
    ),
    A(
        "swapped sealing key",
        "binding.report-data",
        BindingMismatch,
        {"statement": {"sealing_key": OTHER_DIGEST}, "report_data": MACHINE.fields(bytes(64)).report_data},
    ),
    A("GPU report replayed for an old nonce", "gpu.nonce", StaleEvidence, {"gpu_nonce": bytes(32)}),
    A(
        "GPU report made for another key E",
        "gpu.nonce",
        StaleEvidence,
        {"gpu_nonce": st.gpu_nonce(NONCE, PEER.verify_key.encode(), OTHER_DIGEST, simulated=True)},
    ),
    A("nonce path outside its tree", "nonce.path", StaleEvidence, {"bundle": lambda b: replace(b, nonce_index=1)}),
    A(
        "nonce path to a foreign root",
        "statement.mismatch",
        BindingMismatch,
        {"bundle": lambda b: replace(b, nonce_path=(OTHER_DIGEST,))},
    ),
    # --- downgrade
    A("unknown mode", "statement.mode", EvidenceMalformed, {"statement": {"mode": 9}}),
    A(
        "claims hardware with simulated evidence",
        "tdx.crl",
        RevocationUnknown,
        {"statement": {"mode": st.MODE_TDX_GPU}},
    ),
    A(
        "claims to be open beside evidence",
        "statement.mode-evidence",
        BindingMismatch,
        {"statement": {"mode": st.MODE_OPEN}},
    ),
    A("evidence left out", "evidence.missing", EvidenceMalformed, {"bundle": lambda b: None}),
    A(
        "hardware domain on a simulated quote",
        "binding.report-data",
        BindingMismatch,
        {"report_data": hashlib.sha512(b"cocoon/report-data/v1\0" + b"S").digest()},
    ),
    A(
        "simulated evidence without software roots",
        "level.simulated-refused",
        TrustRefused,
        verifier=lambda: verifier(software=None),
    ),
    A(
        "open where simulated is demanded",
        "level.too-weak",
        TrustRefused,
        {"statement": {"mode": st.MODE_OPEN, "gpus": []}, "bundle": lambda b: None},
    ),
    A(
        "simulated where confidential is demanded",
        "level.too-weak",
        TrustRefused,
        policy=lambda: policy(level=TrustLevel.CONFIDENTIAL),
    ),
    A(
        "no GPU evidence for a statement with a GPU",
        "gpu.count",
        BindingMismatch,
        {"bundle": lambda b: replace(b, gpus=())},
    ),
    # --- quote
    A(
        "SGX quote",
        "tdx.tee-type",
        QuoteInvalid,
        {"bundle": lambda b: replace(b, quote=b.quote[:4] + bytes(4) + b.quote[8:])},
    ),
    A(
        "bytes behind the quote",
        "tdx.trailing-bytes",
        QuoteInvalid,
        {"bundle": lambda b: replace(b, quote=b.quote + b"x")},
    ),
    A(
        "zeros behind the quote",
        "tdx.trailing-bytes",
        QuoteInvalid,
        {"bundle": lambda b: replace(b, quote=b.quote + bytes(70))},
    ),
    A("cut-off quote", "tdx.truncated", QuoteInvalid, {"bundle": lambda b: replace(b, quote=b.quote[:-10])}),
    A("oversize quote", "tdx.size", QuoteInvalid, {"bundle": lambda b: replace(b, quote=b.quote + bytes(20_000))}),
    A(
        "inner length that leaves room",
        "tdx.inner-length",
        QuoteInvalid,
        {"bundle": lambda b: replace(b, quote=flip(b.quote, 48 + 584 + 4 + 128 + 2))},
    ),
    A("debug guest", "tdx.debug", QuoteInvalid, {"fields": {"td_attributes": 1 << 28 | 1}}),
    A("guest without SEPT_VE_DISABLE", "tdx.attributes", QuoteInvalid, {"fields": {"td_attributes": 0}}),
    A("guest with protection keys", "tdx.attributes", QuoteInvalid, {"fields": {"td_attributes": 1 << 28 | 1 << 30}}),
    A(
        "guest with performance monitoring",
        "tdx.attributes",
        QuoteInvalid,
        {"fields": {"td_attributes": 1 << 28 | 1 << 63}},
    ),
    A("guest that may be migrated", "tdx.attributes", QuoteInvalid, {"fields": {"td_attributes": 1 << 28 | 1 << 29}}),
    A("unknown extended state", "tdx.xfam", QuoteInvalid, {"fields": {"xfam": 0x602E7 | 1 << 40}}),
    A("service TD bound to the guest", "tdx.service-td", QuoteInvalid, {"fields": {"mr_service_td": b"\1" * 48}}),
    A("TDX module of another signer", "tdx.module-signer", QuoteInvalid, {"fields": {"mr_signer_seam": b"\1" * 48}}),
    A("TDX module with attributes", "tdx.module-signer", QuoteInvalid, {"fields": {"seam_attributes": b"\1" * 8}}),
    A("TDX module too old", "tdx.tcb-level", TcbOutOfDate, {"fields": {"tee_tcb_svn": bytes((1, 1, 3)) + bytes(13)}}),
    A(
        "unlisted TDX module",
        "tdx.mrseam",
        UnknownMeasurement,
        policy=lambda: policy(guest=GuestPolicy(mr_seam=frozenset((bytes(48),)))),
    ),
    A(
        "quote of a foreign root",
        "tdx.root",
        QuoteInvalid,
        {"bundle": lambda b: replace(b, quote=enclave(intel=OTHER_INTEL).quote(enclave().fields(bytes(64))))},
    ),
    A("foreign root in quote and collateral", "tdx.crl", RevocationUnknown, {"machine": enclave(intel=OTHER_INTEL)}),
    # --- collateral
    A("platform out of date", "tdx.tcb-status", TcbOutOfDate, {"collateral": {"status": "OutOfDate"}}),
    A("platform needs hardening", "tdx.tcb-status", TcbOutOfDate, {"collateral": {"status": "SWHardeningNeeded"}}),
    A("quoting enclave out of date", "tdx.tcb-status", TcbOutOfDate, {"collateral": {"qe_status": "OutOfDate"}}),
    A(
        "advisory that is not tolerated",
        "tdx.tcb-advisories",
        TcbOutOfDate,
        {"collateral": {"status": "SWHardeningNeeded", "advisories": ["INTEL-SA-00615"]}},
        policy=lambda: policy(tcb=TcbPolicy(statuses=frozenset(("SWHardeningNeeded",)))),
    ),
    A("TCB level revoked", "tdx.tcb-revoked", TcbOutOfDate, {"collateral": {"status": "Revoked"}}),
    A(
        "PCK certificate revoked",
        "tdx.revoked",
        CertificateRevoked,
        {
            "collateral": {
                "revoked_pcks": [
                    INTEL.machine(hashlib.sha256(b"software-machine").digest()[:16]).certificate.serial_number
                ]
            }
        },
    ),
    A(
        "PCK authority revoked",
        "tdx.revoked",
        CertificateRevoked,
        {"collateral": {"revoked_cas": [INTEL.pck_ca.certificate.serial_number]}},
    ),
    A(
        "TCB signer revoked",
        "tdx.revoked",
        CertificateRevoked,
        {"collateral": {"revoked_cas": [INTEL.tcb_signer.certificate.serial_number]}},
    ),
    A(
        "TCB info edited",
        "tdx.signature",
        QuoteInvalid,
        {"bundle": collateral_with(tcb_info=lambda t: t.replace('"isvsvn":6', '"isvsvn":1'))},
    ),
    A(
        "QE identity edited",
        "tdx.signature",
        QuoteInvalid,
        {"bundle": collateral_with(qe_identity=lambda t: t.replace('"isvprodid":2', '"isvprodid":3'))},
    ),
    A("TCB info of another family", "tdx.fmspc", QuoteInvalid, {"collateral": {"edit": {"fmspc": "00806F050000"}}}),
    A("root CRL left out", "collateral.crl", EvidenceMalformed, {"bundle": collateral_with(root_ca_crl=lambda _: "")}),
    A(
        "PCK CRL of another authority",
        "tdx.signature-chain",
        QuoteInvalid,
        {"bundle": lambda b: collateral_with(pck_crl=lambda _: json.loads(b.collateral)["root_ca_crl"])(b)},
    ),
    A(
        "collateral with an unknown field",
        "collateral.fields",
        EvidenceMalformed,
        {"bundle": lambda b: replace(b, collateral=b.collateral[:-1] + b',"x":1}')},
    ),
    A(
        "collateral that says a field twice",
        "collateral.json",
        EvidenceMalformed,
        {"bundle": lambda b: replace(b, collateral=b.collateral[:-1] + b',"tcb_info":""}')},
    ),
    A(
        "collateral nested without end",
        "collateral.json",
        EvidenceMalformed,
        {"bundle": lambda b: replace(b, collateral=b"[" * 100_000)},
    ),
    A(
        "collateral of fifteen days",
        "collateral.tcb-info-too-old",
        StaleEvidence,
        {"collateral": {"issued_s": NOW_S - 15 * DAY_S}},
    ),
    A("collateral past its end", "tdx.expired", StaleEvidence, {"collateral": {"issued_s": NOW_S - 31 * DAY_S}}),
    A(
        "collateral of tomorrow",
        "collateral.tcb-info-future",
        StaleEvidence,
        {"collateral": {"issued_s": NOW_S + DAY_S}},
    ),
    A(
        "TCB evaluation older than shipped",
        "tdx.tcb-evaluation",
        StaleEvidence,
        {"collateral": {"evaluation_number": 17}},
    ),
    # --- ratchet
    A("TCB evaluation number went back", "ratchet.tcb-number", StaleEvidence, seen={f"sim/number/tcb/{FAMILY}": 19}),
    A("TCB info older than seen", "ratchet.tcb", StaleEvidence, seen={f"sim/date/tcb/{FAMILY}": NOW_S + 3 * DAY_S}),
    A("QE identity older than seen", "ratchet.qe", StaleEvidence, seen={"sim/date/qe": NOW_S + 3 * DAY_S}),
    A(
        "PCK CRL older than seen",
        "ratchet.pck-crl",
        StaleEvidence,
        seen={f"sim/date/pck-crl/{INTEL.pck_ca.certificate.subject.rfc4514_string()}": NOW_S + 3 * DAY_S},
    ),
    A("root CRL older than seen", "ratchet.root-crl", StaleEvidence, seen={"sim/date/root-crl": NOW_S + 3 * DAY_S}),
    A(
        "NVIDIA CRL older than seen",
        "ratchet.gpu-crl-root",
        StaleEvidence,
        seen={"sim/date/gpu-crl-root": NOW_S + 3 * DAY_S},
    ),
    # --- event log
    A("event log left out", "eventlog.replay", EventLogInvalid, {"bundle": lambda b: replace(b, logs=())}),
    A("run-time log left out", "eventlog.replay", EventLogInvalid, {"bundle": lambda b: replace(b, logs=b.logs[:1])}),
    A("event dropped", "eventlog.replay", EventLogInvalid, {"bundle": edit_log(lambda rows: rows.pop(0))}),
    A("events swapped", "eventlog.replay", EventLogInvalid, {"bundle": edit_log(lambda rows: rows.reverse())}),
    A(
        "payload changed, digest kept",
        "eventlog.payload",
        EventLogInvalid,
        {"bundle": edit_log(lambda rows: rows[2].update(event_payload=OTHER_DIGEST.hex()))},
    ),
    A(
        "event renamed as firmware",
        "eventlog.unproven",
        EventLogInvalid,
        {"bundle": edit_log(lambda rows: rows[1].update(event_type=5))},
    ),
    A(
        "event for register seven",
        "eventlog.register",
        EventLogInvalid,
        {"bundle": edit_log(lambda rows: rows[0].update(imr=7))},
    ),
    A(
        "log cut off",
        "eventlog.truncated",
        EventLogInvalid,
        {"bundle": lambda b: replace(b, logs=((LogKind.CCEL, b.logs[0][1][:-5]), b.logs[1]))},
    ),
    A("never sealed", "eventlog.seal", EventLogInvalid, {"machine": machine_with_logs(logs_with(runtime(seal=())))}),
    A(
        "measured after the seal",
        "eventlog.seal",
        EventLogInvalid,
        {"machine": machine_with_logs(logs_with(runtime(after=[("cocoon/model", OTHER_DIGEST)])))},
    ),
    A(
        "sealed twice",
        "eventlog.seal",
        EventLogInvalid,
        {"machine": machine_with_logs(logs_with(runtime(after=[("cocoon/seal", b"")])))},
    ),
    A(
        "good image, evil config",
        "binding.config",
        BindingMismatch,
        {"machine": machine_with_logs(logs_with(runtime(config=OTHER_DIGEST)))},
    ),
    A(
        "good image, evil model",
        "binding.models",
        BindingMismatch,
        {"machine": machine_with_logs(logs_with(runtime(models=(OTHER_DIGEST,))))},
    ),
    A(
        "a model besides",
        "binding.models",
        BindingMismatch,
        {"machine": machine_with_logs(logs_with(runtime(models=(MODEL, OTHER_DIGEST))))},
    ),
    A(
        "statement names an image that was not measured",
        "binding.image",
        BindingMismatch,
        {"statement": {"image": OTHER_DIGEST}},
    ),
    A(
        "statement names a model that was not measured",
        "binding.models",
        BindingMismatch,
        {"statement": {"models": [OTHER_DIGEST]}},
        known={"model": OTHER_DIGEST},
    ),
    A(
        "unlisted event before Cocoon's own",
        "image.rtmr3",
        UnknownMeasurement,
        {"machine": machine_with_logs(logs_with(runtime(before=[("app-compose", b"evil")])))},
    ),
    # --- image
    A(
        "unknown image",
        "image.unknown",
        UnknownMeasurement,
        policy=lambda: policy(images=ImagePolicy(releases=(software_release(image=OTHER_DIGEST),))),
    ),
    A("empty allow-list", "image.none-accepted", UnknownMeasurement, policy=lambda: policy(images=ImagePolicy())),
    A("wrong MRTD", "image.mrtd", UnknownMeasurement, {"fields": {"mr_td": b"\2" * 48}}),
    A(
        "unlisted kernel",
        "image.rtmr1",
        UnknownMeasurement,
        {"machine": machine_with_logs(logs_with(runtime(), ccel=[*FIRMWARE_EVENTS, (1, b"rootkit")]))},
    ),
    A(
        "unlisted machine shape",
        "image.rtmr0",
        UnknownMeasurement,
        {"machine": machine_with_logs(logs_with(runtime(), ccel=[*FIRMWARE_EVENTS, (0, b"shape")]))},
    ),
    A(
        "unlisted command line",
        "image.rtmr2",
        UnknownMeasurement,
        {"machine": machine_with_logs(logs_with(runtime(), ccel=[*FIRMWARE_EVENTS, (2, b"init=/bin/sh")]))},
    ),
    A("config id set by the host", "image.mr-config-id", UnknownMeasurement, {"fields": {"mr_config_id": b"\1" * 48}}),
    A("owner set by the host", "image.mr-owner", UnknownMeasurement, {"fields": {"mr_owner": b"\1" * 48}}),
    A(
        "expired release",
        "release.expired",
        StaleEvidence,
        policy=lambda: policy(images=ImagePolicy(releases=(replace(software_release(), expires_s=NOW_S),))),
    ),
    A(
        "weights that no release lists",
        "image.model-root",
        UnknownMeasurement,
        policy=lambda: policy(images=ImagePolicy(releases=(replace(software_release(), models="listed"),))),
    ),
    A(
        "denied machine",
        "ppid.denied",
        TrustRefused,
        policy=lambda: policy(ppid=PpidPolicy(deny=frozenset((hashlib.sha256(b"software-machine").digest()[:16],)))),
    ),
    A(
        "machine not on the list",
        "ppid.unlisted",
        TrustRefused,
        policy=lambda: policy(ppid=PpidPolicy(allow=frozenset())),
    ),
    # --- GPU report
    A(
        "foreign GPU report swapped in",
        "binding.gpu-digest",
        BindingMismatch,
        {"bundle": lambda b: with_gpu(b, report=NVIDIA.report(NVIDIA.device("other"), NONCE))},
    ),
    A(
        "foreign chain swapped in",
        "binding.gpu-digest",
        BindingMismatch,
        {"bundle": lambda b: with_gpu(b, chain=NVIDIA.device("other").chain)},
    ),
    A(
        "report of one GPU under the chain of another",
        "gpu.signature",
        GpuReportInvalid,
        {"gpus": lambda g: (replace(g[0], chain=NVIDIA.device("other").chain),)},
    ),
    A(
        "report signed by a stranger",
        "gpu.signature",
        GpuReportInvalid,
        {"report": {"signer": NVIDIA.device("other").leaf.key}},
    ),
    A(
        "measurement flipped",
        "gpu.signature",
        GpuReportInvalid,
        {"gpus": lambda g: (replace(g[0], report=flip(g[0].report, 60)),)},
    ),
    A(
        "opaque field flipped",
        "gpu.signature",
        GpuReportInvalid,
        {"gpus": lambda g: (replace(g[0], report=flip(g[0].report, len(g[0].report) - 97)),)},
    ),
    A(
        "signature flipped",
        "gpu.signature",
        GpuReportInvalid,
        {"gpus": lambda g: (replace(g[0], report=flip(g[0].report, len(g[0].report) - 1)),)},
    ),
    A(
        "byte behind the report",
        "gpu.trailing-bytes",
        GpuReportInvalid,
        {"gpus": lambda g: (replace(g[0], report=g[0].report + b"\0"),)},
    ),
    A(
        "two GPUs in the evidence, one in S",
        "gpu.count",
        BindingMismatch,
        {"bundle": lambda b: replace(b, gpus=b.gpus * 2)},
    ),
    A("the same GPU counted twice", "gpu.count", BindingMismatch, {"gpus": lambda g: g * 2}),
    A(
        "device chain of a foreign root",
        "gpu.chain-signature",
        GpuReportInvalid,
        {"machine": enclave(nvidia=OTHER_NVIDIA), "bundle": lambda b: replace(b, rims=NVIDIA.rims())},
    ),
    A(
        "RIMs of a foreign root with the same name",
        "rim.chain-signature",
        RimInvalid,
        {"machine": enclave(nvidia=OTHER_NVIDIA)},
    ),
    A("Blackwell device", "gpu.chip", GpuReportInvalid, {"machine": enclave(nvidia=SoftwareNvidia(chip="GB100"))}),
    A("firmware id missing", "gpu.fwid-missing", GpuReportInvalid, {"report": {"changes": {20: None}}}),
    A("firmware id of another firmware", "gpu.fwid", GpuReportInvalid, {"report": {"changes": {20: b"\7" * 48}}}),
    A("multi-GPU mode", "gpu.feature", GpuReportInvalid, {"report": {"changes": {36: b"\1\0"}}}),
    A("protected PCIe mode", "gpu.feature", GpuReportInvalid, {"report": {"changes": {36: b"\2\0"}}}),
    A(
        "protected PCIe of an old driver",
        "gpu.feature",
        GpuReportInvalid,
        {"report": {"changes": {36: None, 21: b"\xaa"}}},
    ),
    A("unknown mode of the GPU", "gpu.feature", GpuReportInvalid, {"report": {"changes": {36: b"\x09\0"}}}),
    A("driver version left out", "gpu.opaque-text", GpuReportInvalid, {"report": {"changes": {3: None}}}),
    A("VBIOS version left out", "gpu.vbios-version", GpuReportInvalid, {"report": {"changes": {6: None}}}),
    A("developer firmware", "gpu.measurements", UnknownMeasurement, {"report": {"measurements": {25: b"\7" * 48}}}),
    A("VBIOS modified", "gpu.measurements", UnknownMeasurement, {"report": {"measurements": {3: b"\7" * 48}}}),
    A(
        "driver on the deny list",
        "gpu.driver",
        GpuReportInvalid,
        policy=lambda: policy(gpu=GpuPolicy(drivers_denied=frozenset((DRIVER,)))),
    ),
    A(
        "driver not on the list",
        "gpu.driver",
        GpuReportInvalid,
        policy=lambda: policy(gpu=GpuPolicy(drivers=frozenset())),
    ),
    # --- RIMs
    A("driver RIM left out", "gpu.rim-missing-driver", RimInvalid, {"bundle": lambda b: replace(b, rims=b.rims[1:])}),
    A("VBIOS RIM left out", "gpu.rim-missing-vbios", RimInvalid, {"bundle": lambda b: replace(b, rims=b.rims[:1])}),
    A("RIM given twice", "gpu.rim-twice", RimInvalid, {"bundle": lambda b: replace(b, rims=b.rims[:1] * 2)}),
    A(
        "RIM of another driver",
        "gpu.rim-version",
        RimInvalid,
        {"bundle": lambda b: replace(b, rims=(NVIDIA.rim("535.1", DRIVER_INDEXES), b.rims[1]))},
    ),
    A(
        "RIM of another product",
        "gpu.rim-version",
        RimInvalid,
        {"bundle": lambda b: replace(b, rims=(NVIDIA.rim(DRIVER, DRIVER_INDEXES, product="LS10"), b.rims[1]))},
    ),
    A(
        "both RIMs set one index",
        "gpu.rim-conflict",
        RimInvalid,
        {"bundle": lambda b: replace(b, rims=(b.rims[0], NVIDIA.rim(VBIOS, VBIOS_INDEXES | {25})))},
    ),
    A(
        "RIM with no active value",
        "rim.empty",
        RimInvalid,
        {"bundle": lambda b: replace(b, rims=(NVIDIA.rim(DRIVER, ()), b.rims[1]))},
    ),
    A(
        "RIM of a foreign root",
        "rim.chain-root",
        RimInvalid,
        {
            "bundle": lambda b: replace(
                b,
                rims=(
                    NVIDIA.rim(
                        DRIVER, DRIVER_INDEXES, signer=NVIDIA.device("x").leaf, chain=(NVIDIA.device("x").leaf,)
                    ),
                    b.rims[1],
                ),
            )
        },
    ),
    A(
        "RIM signed by another key than its chain's",
        "rim.signature",
        RimInvalid,
        {
            "bundle": lambda b: replace(
                b, rims=(NVIDIA.rim(DRIVER, DRIVER_INDEXES, signer=OTHER_NVIDIA.rim_signer), b.rims[1])
            )
        },
    ),
    A(
        "golden value edited",
        "rim.digest",
        RimInvalid,
        {"bundle": rim_with(lambda r: r.replace(golden_measurements()[25].hex().encode(), b"07" * 48))},
    ),
    A("unsigned measurements put first", "rim.digest", RimInvalid, {"bundle": rim_with(wrapped_rim)}),
    A(
        "signature removed",
        "rim.signature-place",
        RimInvalid,
        {"bundle": rim_with(lambda r: r[: r.index(b"<ds:Signature")] + r[r.index(b"</ds:Signature>") + 15 :])},
    ),
    A("second signature", "rim.signature-place", RimInvalid, {"bundle": rim_with(second_signature)}),
    A("signature moved inside", "rim.signature-place", RimInvalid, {"bundle": rim_with(nested_signature)}),
    A("document type declared", "rim.doctype", RimInvalid, {"bundle": rim_with(lambda r: b"<!DOCTYPE x>" + r)}),
    A("entity bomb", "rim.doctype", RimInvalid, {"bundle": rim_with(lambda r: BOMB)}),
    A(
        "external entity",
        "rim.doctype",
        RimInvalid,
        {"bundle": rim_with(lambda r: b'<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><x>&f;</x>')},
    ),
    A("elements nested without end", "rim.xml-bomb", RimInvalid, {"bundle": rim_with(lambda r: b"<a>" * 5000)}),
    A("elements without end", "rim.xml-bomb", RimInvalid, {"bundle": rim_with(lambda r: b"<a>" + b"<b/>" * 9000)}),
    A(
        "attributes without end",
        "rim.xml-bomb",
        RimInvalid,
        {"bundle": rim_with(lambda r: b"<a " + b" ".join(b'a%d=""' % i for i in range(900)) + b"/>")},
    ),
    A("RIM too long", "rim.size", RimInvalid, {"bundle": rim_with(lambda r: r + b" " * 200_000)}),
    A(
        "golden index twice",
        "rim.duplicate-index",
        RimInvalid,
        {
            "bundle": lambda b: replace(
                b,
                rims=(
                    sign_rim(
                        RIM_BODY[: RIM_BODY.index(b"<ds:Signature")].decode().replace('index="1"', 'index="0"')
                        + "</SoftwareIdentity>",
                        NVIDIA.rim_signer,
                        (NVIDIA.rim_signer, NVIDIA.rim_ca),
                    ),
                    b.rims[1],
                ),
            )
        },
    ),
    # --- revocation of GPUs
    A("NVIDIA CRLs left out", "gpu.crl-missing", RevocationUnknown, {"bundle": lambda b: replace(b, crls=())}),
    A(
        "one NVIDIA CRL left out",
        "gpu.crl-missing",
        RevocationUnknown,
        {"bundle": lambda b: replace(b, crls=b.crls[:1])},
    ),
    A(
        "NVIDIA CRLs of a foreign root",
        "gpu.crl-signature",
        RevocationUnknown,
        {"bundle": lambda b: replace(b, crls=OTHER_NVIDIA.crls(issued_s=NOW_S - 60))},
    ),
    A(
        "NVIDIA CRL expired",
        "gpu.crl-expired",
        StaleEvidence,
        {"bundle": lambda b: replace(b, crls=NVIDIA.crls(issued_s=NOW_S - 31 * DAY_S))},
    ),
    A(
        "NVIDIA CRL of tomorrow",
        "gpu.crl-future",
        StaleEvidence,
        {"bundle": lambda b: replace(b, crls=NVIDIA.crls(issued_s=NOW_S + DAY_S))},
    ),
    A(
        "NVIDIA CRL too old",
        "gpu.crl-too-old",
        StaleEvidence,
        {"bundle": lambda b: replace(b, crls=NVIDIA.crls(issued_s=NOW_S - 91 * DAY_S, life_s=365 * DAY_S))},
    ),
    A(
        "Identity CA revoked",
        "gpu.crl-revoked",
        CertificateRevoked,
        {
            "bundle": lambda b: replace(
                b, crls=NVIDIA.crls(issued_s=NOW_S - 60, revoked_identities=[NVIDIA.identity.certificate.serial_number])
            )
        },
    ),
    A(
        "Provisioner CA revoked",
        "gpu.crl-revoked",
        CertificateRevoked,
        {
            "bundle": lambda b: replace(
                b,
                crls=NVIDIA.crls(
                    issued_s=NOW_S - 60, revoked_provisioners=[NVIDIA.provisioner.certificate.serial_number]
                ),
            )
        },
    ),
    A("OCSP answer left out", "gpu.ocsp-missing", RevocationUnknown, {"bundle": lambda b: replace(b, ocsp=())}),
    A(
        "OCSP answer about another device",
        "gpu.ocsp-missing",
        RevocationUnknown,
        {"bundle": lambda b: replace(b, ocsp=(NVIDIA.ocsp_answer(NVIDIA.device("other"), issued_s=NOW_S - 60),))},
    ),
    A(
        "device revoked",
        "gpu.ocsp-revoked",
        CertificateRevoked,
        {
            "bundle": lambda b: replace(
                b, ocsp=(NVIDIA.ocsp_answer(MACHINE.device, issued_s=NOW_S - 60, status=ocsp.OCSPCertStatus.REVOKED),)
            )
        },
    ),
    A(
        "device unknown to the responder",
        "gpu.ocsp-unknown",
        RevocationUnknown,
        {
            "bundle": lambda b: replace(
                b, ocsp=(NVIDIA.ocsp_answer(MACHINE.device, issued_s=NOW_S - 60, status=ocsp.OCSPCertStatus.UNKNOWN),)
            )
        },
    ),
    A(
        "revoked answer behind a good one",
        "gpu.ocsp-revoked",
        CertificateRevoked,
        {
            "bundle": lambda b: replace(
                b,
                ocsp=(
                    *b.ocsp,
                    NVIDIA.ocsp_answer(MACHINE.device, issued_s=NOW_S - 60, status=ocsp.OCSPCertStatus.REVOKED),
                ),
            )
        },
    ),
    A(
        "OCSP answer of three days",
        "gpu.ocsp-too-old",
        StaleEvidence,
        {"bundle": lambda b: replace(b, ocsp=(NVIDIA.ocsp_answer(MACHINE.device, issued_s=NOW_S - 3 * DAY_S),))},
    ),
    A(
        "OCSP answer past its end",
        "gpu.ocsp-expired",
        StaleEvidence,
        {"bundle": lambda b: replace(b, ocsp=(NVIDIA.ocsp_answer(MACHINE.device, issued_s=NOW_S - 8 * DAY_S),))},
    ),
    A(
        "OCSP answer of tomorrow",
        "gpu.ocsp-future",
        StaleEvidence,
        {"bundle": lambda b: replace(b, ocsp=(NVIDIA.ocsp_answer(MACHINE.device, issued_s=NOW_S + DAY_S),))},
    ),
    A(
        "OCSP answer of a foreign responder",
        "gpu.ocsp-signature",
        RevocationUnknown,
        {
            "bundle": lambda b: replace(
                b, ocsp=(NVIDIA.ocsp_answer(MACHINE.device, issued_s=NOW_S - 60, responder=OTHER_NVIDIA.responder),)
            )
        },
    ),
    A(
        "OCSP answer signed by the device itself",
        "gpu.ocsp-responder",
        RevocationUnknown,
        {
            "bundle": lambda b: replace(
                b, ocsp=(NVIDIA.ocsp_answer(MACHINE.device, issued_s=NOW_S - 60, responder=MACHINE.device.brom),)
            )
        },
    ),
    A(
        "OCSP answer that is junk",
        "gpu.ocsp-format",
        RevocationUnknown,
        {"bundle": lambda b: replace(b, ocsp=(b"junk",))},
    ),
    # --- time
    A("facts used after ten minutes", "facts.expired", StaleEvidence, later_s=601),
    A("facts used with a clock set back", "facts.expired", StaleEvidence, later_s=-1),
]


def attack(case):
    """Verify, then judge, as a client does."""
    make = dict(case.make)
    sent = evidence_of(make.pop("machine", None), **make)
    judge = (case.verifier or verifier)()
    facts = judge.verify(sent, expected(**case.known), now=NOW, seen=case.seen)
    return (case.policy or policy)().judge(facts, now=NOW + case.later_s * 10**9)


def test_the_untouched_session_passes():
    assert attack(A("none", "", AttestationError)).level is TrustLevel.SIMULATED


@pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
def test_each_attack_is_refused_by_its_own_check(case):
    with pytest.raises(case.error) as refused:
        attack(case)
    assert refused.value.reason == case.reason
    assert type(refused.value) is case.error
    assert refused.value.exit_code == 3


def test_the_table_is_long_and_its_names_differ():
    assert len(ATTACKS) >= 60
    assert len({case.name for case in ATTACKS}) == len(ATTACKS)
    assert len({case.reason for case in ATTACKS}) >= 60


@pytest.mark.parametrize("network", [Network.MAINNET, Network.TESTNET])
def test_simulated_evidence_every_config_on_mainnet_refused(network):
    """No set of anchors, mode or policy lets simulated evidence through outside devnet (rule S8)."""
    with pytest.raises(TrustRefused):
        software_anchors(network)
    with pytest.raises(TrustRefused):
        anchors_of(network, OTHER_INTEL, OTHER_NVIDIA)
    with pytest.raises(TrustRefused):
        Verifier(network, software=software_anchors(Network.DEVNET))
    sent = evidence_of(statement={"network": int(network)})
    message = st.signed_statement(network, sent.statement)
    sent = replace(
        sent,
        operator_signature=SigningKey(b"O" * 32).sign(message).signature,
        peer_signature=SigningKey(b"P" * 32).sign(message).signature,
    )
    with pytest.raises(TrustRefused) as refused:
        Verifier(network).verify(sent, expected(network=network), now=NOW, seen={})
    assert refused.value.reason == "level.simulated-outside-devnet"
    # Even facts that were made on devnet are refused by a policy of another network, at every level.
    facts = facts_of()
    for level in TrustLevel:
        for stolen in (facts, replace(facts, network=network)):
            with pytest.raises(TrustRefused):
                TrustPolicy(level=level, network=network).judge(stolen, now=NOW)


def test_a_provider_that_swaps_anything_after_verification_is_caught_by_the_next_statement():
    """Key, image, model and GPU are all inside H(S): a cached session cannot change them, a new one shows them."""
    honest = facts_of()
    for change in (
        {"sealing_key": OTHER_DIGEST},
        {"image": OTHER_DIGEST},
        {"models": [MODEL, OTHER_DIGEST]},
        {"gpus": [bytes(48)]},
    ):
        sent = evidence_of(statement=change)
        assert st.statement_digest(sent.statement) != honest.digest
        with pytest.raises(AttestationError):
            facts_of(sent)


@pytest.mark.parametrize("where", range(0, 4096, 61))
def test_no_bit_of_the_quote_can_be_flipped(where):
    def bend(bundle):
        return replace(bundle, quote=flip(bundle.quote, where % (48 + 584 + 4 + 128 + 6 + 384 + 64 + 34)))

    with pytest.raises(AttestationError):
        facts_of(evidence_of(bundle=bend))


@pytest.mark.parametrize("where", range(0, 4000, 67))
def test_no_bit_of_the_gpu_report_can_be_flipped(where):
    def bend(gpus):
        return (replace(gpus[0], report=flip(gpus[0].report, where % len(gpus[0].report))),)

    with pytest.raises(AttestationError):
        facts_of(evidence_of(gpus=bend))


def test_a_refusal_leaves_the_verifier_as_it_was():
    judge = verifier()
    good = evidence_of()
    judge.verify(good, expected(), now=NOW, seen={})
    for case in ATTACKS[:20]:
        make = dict(case.make)
        try:
            judge.verify(evidence_of(make.pop("machine", None), **make), expected(**case.known), now=NOW, seen={})
        except AttestationError:
            pass
    judge.verify(good, expected(), now=NOW, seen={})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d[:-1], "evidence.format"),
        (lambda d: d + b"\0", "evidence.format"),
        (lambda d: b"", "evidence.format"),
        (lambda d: d * 20, "evidence.format"),
    ],
)
def test_bent_evidence_bytes_are_refused(change, reason):
    data = encode_bundle(evidence_of().bundle)
    decode_hardware(data)
    with pytest.raises(EvidenceMalformed) as refused:
        decode_hardware(change(data))
    assert refused.value.reason == reason


def test_parts_fetched_by_digest_must_be_what_was_named():
    bundle = evidence_of().bundle
    sparse = decode_hardware(encode_bundle(bundle, by_digest=True))
    blobs = {hashlib.sha256(data).digest(): data for _, data in bundle.parts()}
    assert assemble(sparse, blobs) == bundle
    with pytest.raises(EvidenceMalformed) as refused:
        assemble(sparse, {})
    assert refused.value.reason == "evidence.part-missing"
    with pytest.raises(EvidenceMalformed) as refused:
        assemble(sparse, dict.fromkeys(blobs, b"something else"))
    assert refused.value.reason == "evidence.part-digest"


def test_an_empty_composition_refuses():
    facts = facts_of()
    for empty in (AllOf(policies=()), AnyOf(policies=())):
        with pytest.raises(TrustRefused):
            empty.judge(facts, now=NOW, trail=Trail())


def test_a_request_can_tighten_but_never_loosen():
    strict = policy(level=TrustLevel.CONFIDENTIAL)
    assert strict.tightened(level=TrustLevel.OPEN).level is TrustLevel.CONFIDENTIAL
    demanding = policy().tightened(MinimumLevel(level=TrustLevel.CONFIDENTIAL, network=Network.DEVNET))
    with pytest.raises(TrustRefused):
        demanding.judge(facts_of(), now=NOW)


def test_lax_cache_strict_request_refused():
    """Facts that one policy accepted are judged anew by the next (rule S8)."""
    facts = facts_of()
    policy().judge(facts, now=NOW)
    with pytest.raises(TrustRefused):
        policy(ppid=PpidPolicy(allow=frozenset())).judge(facts, now=NOW)


def test_gpu_evidence_cannot_be_lent_to_another_key():
    """A report made for one P and E answers another nonce than the one a second enclave must show."""
    lent = NVIDIA.report(MACHINE.device, st.gpu_nonce(NONCE, bytes(32), OTHER_DIGEST, simulated=True))
    with pytest.raises(StaleEvidence) as refused:
        facts_of(evidence_of(gpus=lambda g: (GpuEvidence(report=lent, chain=g[0].chain),)))
    assert refused.value.reason == "gpu.nonce"
