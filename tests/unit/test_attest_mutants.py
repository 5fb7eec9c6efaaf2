"""Tests that removing a single check made necessary: each kills a mutant that the other tables let live."""

import hashlib
import json
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from cocoon.adapters.tee.software import FIRMWARE_EVENTS, build_ccel, software_anchors
from cocoon.adapters.tee.software_keys import at, issue
from cocoon.adapters.tee.software_nvidia import SHA384_HASH
from cocoon.attest import limits, parts, tdx
from cocoon.attest import statement as st
from cocoon.attest.certs import check_ocsp, load_ocsp
from cocoon.attest.eventlog import LogKind, read_log
from cocoon.attest.gpu.report import read_report as read_gpu_report
from cocoon.attest.nonces import commit, committed_nonce
from cocoon.attest.policy import TrustPolicy
from cocoon.attest.quote import read_quote
from cocoon.attest.trail import Trail
from cocoon.errors import (
    EventLogInvalid,
    GpuReportInvalid,
    QuoteInvalid,
    RevocationUnknown,
    StaleEvidence,
    TrustRefused,
)
from cocoon.types import Network, TrustLevel
from tests.fakes.attestation import DAY_S, INTEL, NOW, NOW_S, NVIDIA, enclave, evidence_of, facts_of

ANCHORS = software_anchors(Network.DEVNET)
MACHINE = enclave()
QUOTE = MACHINE.quote(MACHINE.fields(bytes(64)))


def test_a_quote_whose_chain_stops_before_the_root_is_refused():
    root = INTEL.root.pem.encode()
    chain_at = QUOTE.index(b"-----BEGIN")
    shorter = QUOTE[chain_at:].replace(root, b"")
    cut = len(QUOTE) - chain_at - len(shorter)
    outer = 48 + 584
    sizes = {outer: 4, outer + 4 + 128 + 2: 4, chain_at - 4: 4}
    bent = bytearray(QUOTE[:chain_at] + shorter)
    for where, width in sizes.items():
        size = int.from_bytes(QUOTE[where : where + width], "little") - cut
        bent[where : where + width] = size.to_bytes(width, "little")
    verdict = parts.check_tdx(bytes(bent), INTEL.collateral(issued_s=NOW_S - 60), now_s=NOW_S, anchors=ANCHORS)
    assert verdict.reason == "tdx.root"


def test_two_readings_of_one_quote_must_agree(monkeypatch):
    """dcap-qvl and this package each parse the report; a difference between them is an attack on one of them."""
    real = tdx._run_dcap_qvl
    for name in ("report_data", "mr_td", "td_attributes", "xfam", "rt_mr0", "rt_mr3"):

        def other_reading(*args, name=name):
            claims = real(*args)
            claims["report"]["TD10"][name] = "00" * 48
            return claims

        monkeypatch.setattr(tdx, "_run_dcap_qvl", other_reading)
        with pytest.raises(QuoteInvalid) as refused:
            tdx.verify_quote(
                MACHINE.quote(replace(MACHINE.fields(b"\1" * 64))),
                INTEL.collateral(issued_s=NOW_S - 60),
                anchors=ANCHORS,
                now_s=NOW_S,
                trail=Trail(),
            )
        assert refused.value.reason == "tdx.same-reading"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"td_attributes": 1 << 28 | 1}, "tdx.debug"), ({"mr_service_td": b"\1" * 48}, "tdx.service-td")],
)
def test_what_no_policy_may_allow_is_refused_before_dcap_qvl_is_asked(monkeypatch, fields, reason):
    monkeypatch.setattr(tdx, "_run_dcap_qvl", lambda *_: pytest.fail("asked"))
    with pytest.raises(QuoteInvalid) as refused:
        tdx.verify_quote(
            MACHINE.quote(replace(MACHINE.fields(bytes(64)), **fields)),
            INTEL.collateral(issued_s=NOW_S - 60),
            anchors=ANCHORS,
            now_s=NOW_S,
            trail=Trail(),
        )
    assert refused.value.reason == reason


def test_collateral_of_another_family_is_refused_even_if_dcap_qvl_took_it(monkeypatch):
    real = tdx._run_dcap_qvl

    def lenient(*args):
        claims = real(*args)
        claims["platform"]["pck"]["fmspc"] = [0] * 6
        return claims

    monkeypatch.setattr(tdx, "_run_dcap_qvl", lenient)
    with pytest.raises(QuoteInvalid) as refused:
        tdx.verify_quote(QUOTE, INTEL.collateral(issued_s=NOW_S - 60), anchors=ANCHORS, now_s=NOW_S, trail=Trail())
    assert refused.value.reason == "tdx.fmspc"


def test_a_panic_of_the_native_library_is_a_refusal(monkeypatch):
    class PanicException(BaseException):
        pass

    class Broken:
        def __init__(self, _root):
            raise PanicException("index out of bounds")

    monkeypatch.setattr(tdx.dcap_qvl, "QuoteVerifier", Broken)
    verdict = parts.check_tdx(QUOTE, INTEL.collateral(issued_s=NOW_S - 60), now_s=NOW_S, anchors=ANCHORS)
    assert verdict.reason == "tdx.signature-chain"


def test_open_facts_of_another_network_are_refused():
    open_facts = facts_of(evidence_of(statement={"mode": st.MODE_OPEN, "gpus": []}, bundle=lambda _: None))
    with pytest.raises(TrustRefused) as refused:
        TrustPolicy(level=TrustLevel.OPEN, network=Network.TESTNET).judge(open_facts, now=NOW)
    assert refused.value.reason == "level.network"


def test_a_log_over_its_bound_is_refused_unread():
    for kind in LogKind:
        with pytest.raises(EventLogInvalid) as refused:
            read_log(b"\xff" * (limits.EVENT_LOG_BYTES_MAX + 1), kind)
        assert refused.value.reason == "eventlog.size"


@pytest.mark.parametrize("step", [1, 7])
def test_every_beginning_of_good_evidence_is_refused_with_its_own_error(step):
    report = NVIDIA.report(MACHINE.device, bytes(32))
    for size in range(0, len(report), step * 13):
        with pytest.raises(GpuReportInvalid):
            read_gpu_report(report[:size])
    for size in range(0, len(QUOTE), step * 17):
        with pytest.raises(QuoteInvalid):
            read_quote(QUOTE[:size])
    log = build_ccel(FIRMWARE_EVENTS)
    for size in range(0, len(log), step * 5):
        try:
            read_log(log[:size], LogKind.CCEL)  # a log cut between two events is a shorter log
        except EventLogInvalid:
            continue


def answer(*, responder, next_update=True):
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=MACHINE.device.brom.certificate,
            issuer=NVIDIA.provisioner.certificate,
            algorithm=SHA384_HASH,
            cert_status=ocsp.OCSPCertStatus.GOOD,
            this_update=at(NOW_S - 60),
            next_update=at(NOW_S + DAY_S) if next_update else None,
            revocation_time=None,
            revocation_reason=None,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, responder.certificate)
        .certificates([responder.certificate])
    )
    return load_ocsp(builder.sign(responder.key, hashes.SHA384()).public_bytes(Encoding.DER), prefix="x")


def clear(about):
    return check_ocsp(
        about,
        subject=MACHINE.device.brom.certificate,
        issuer=NVIDIA.provisioner.certificate,
        now_s=NOW_S,
        prefix="x",
    )


def test_a_responders_certificate_must_be_valid_now():
    clear(answer(responder=NVIDIA.responder))
    for dates in (
        {"not_after": at(NOW_S - 1)},
        {"not_before": at(NOW_S + 1)},
    ):
        old = issue(
            "old responder",
            NVIDIA.responder.key,
            NVIDIA.provisioner,
            authority=False,
            hash_algorithm=SHA384_HASH,
            extensions=[x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])],
            **dates,
        )
        with pytest.raises(StaleEvidence) as refused:
            clear(answer(responder=old))
        assert refused.value.reason == "x-expired"


def test_an_answer_that_never_ends_clears_nobody():
    with pytest.raises(RevocationUnknown) as refused:
        clear(answer(responder=NVIDIA.responder, next_update=False))
    assert refused.value.reason == "x-format"


def test_bad_json_dates_are_refused():
    made = json.loads(INTEL.collateral(issued_s=NOW_S - 60))
    for bad in ("2026-01-01", "", "9" * 30):
        tcb = json.loads(made["tcb_info"])
        outer = {**made, "tcb_info": json.dumps({**tcb, "issueDate": bad})}
        verdict = parts.check_tdx(QUOTE, json.dumps(outer).encode(), now_s=NOW_S, anchors=ANCHORS)
        assert verdict.reason == "collateral.fields"


def test_one_quote_answers_a_thousand_and_twenty_four_clients_and_a_longer_path_is_refused():
    nonces = [hashlib.sha256(bytes([i >> 8, i & 255])).digest() for i in range(1 << limits.NONCE_PATH_MAX)]
    root, paths = commit(nonces)
    last = paths[-1]
    assert committed_nonce(nonces[-1], index=last.index, path=last.siblings) == root
    with pytest.raises(StaleEvidence, match="outside its tree"):
        committed_nonce(nonces[-1], index=last.index, path=(*last.siblings, bytes(32)))
    with pytest.raises(AssertionError):
        commit([*nonces, bytes(32)])


@pytest.mark.parametrize("text", [b"a firmware event", b"cocoon/image"])
def test_a_firmware_event_in_rtmr3_is_refused_even_when_its_text_is_proven(text):
    """It replays and its text hashes to its digest; but only run-time events may stand in RTMR3."""
    machine = enclave()
    logs = machine.logs()
    bent = ((LogKind.CCEL, build_ccel([*FIRMWARE_EVENTS, (3, text)])), logs[1])
    machine.logs = lambda: bent
    assert next(event.proven for kind, data in bent for event in read_log(data, kind) if event.rtmr == 3) is True
    with pytest.raises(EventLogInvalid) as refused:
        facts_of(evidence_of(machine))
    assert refused.value.reason == "eventlog.unproven"
