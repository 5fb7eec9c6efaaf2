"""Real quotes, logs, reports and RIMs, made by hardware or by Intel's and NVIDIA's services."""

import hashlib
import json
from pathlib import Path

import pytest

from cocoon.attest import quote as quotes
from cocoon.attest.eventlog import LogKind, detect_kind, read_log, replay, trim_ccel
from cocoon.attest.gpu.report import read_report
from cocoon.attest.gpu.rim import verify_rim
from cocoon.attest.gpu.verify import match_rims, pick_rims, verify_report
from cocoon.attest.policy import AgePolicy, GuestPolicy, TcbPolicy
from cocoon.attest.roots import hardware
from cocoon.attest.tdx import verify_quote
from cocoon.attest.trail import Trail
from cocoon.errors import (
    AttestationError,
    GpuReportInvalid,
    QuoteInvalid,
    RimInvalid,
    StaleEvidence,
    TcbOutOfDate,
    UnknownMeasurement,
)

ROOT = Path(__file__).parent.parent / "vectors" / "attestation"
VECTORS = {v["id"]: v for v in json.loads((ROOT / "vectors.json").read_text())}
CHECKED = [v["id"] for v in VECTORS.values() if v["kind"] in ("tdx", "rtmr", "gpu", "rim")]


def load(name):
    return (ROOT / name).read_bytes()


def run(vector):
    """Check one vector with the public verifier, under the default policy."""
    trail, at = Trail(), vector["at"]
    match vector["kind"]:
        case "tdx":
            quote = quotes.strip_padding(load(vector["quote"]))
            proven = verify_quote(quote, load(vector["collateral"]), anchors=hardware(), now_s=at, trail=trail)
            TcbPolicy().judge_quote(proven, at, trail)
            GuestPolicy().judge_quote(proven, trail)
            AgePolicy().judge_quote(proven, at, trail)
        case "rtmr":
            log, _, quote = map(load, vector["files"])
            events = read_log(log, detect_kind(log))
            assert len(events) == 43
            assert replay(events) == quotes.read_report(quote).report.rtmr
        case "gpu":
            nonce = bytes.fromhex(vector["nonce"])
            verify_report(
                load(vector["report"]), load(vector["chain"]), anchors=hardware(), now_s=at, nonce=nonce, trail=trail
            )
        case "rim":
            verify_rim(load(vector["files"][0]), anchors=hardware(), now_s=at, trail=trail)


@pytest.mark.parametrize("name", CHECKED)
def test_each_real_vector_gives_its_verdict_at_its_time(name):
    vector = VECTORS[name]
    if vector["verdict"] == "accepted":
        run(vector)
        return
    with pytest.raises(AttestationError) as refused:
        run(vector)
    assert vector["because"].split()[0] in refused.value.reason


def test_the_files_are_the_ones_that_the_list_names():
    for vector in VECTORS.values():
        for name, digest in vector["sha256"].items():
            assert hashlib.sha256(load(name)).hexdigest() == digest, name


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda q: q + b"x", "tdx.trailing-bytes"),
        (lambda q: q + b"\0", "tdx.trailing-bytes"),
        (lambda q: q + bytes(70) + b"x", "tdx.trailing-bytes"),
        (lambda q: q[:-1], "tdx.truncated"),
        (lambda q: q[:40], "tdx.truncated"),
        (lambda q: b"", "tdx.truncated"),
        (lambda q: b"\x03" + q[1:], "tdx.tee-type"),
        (lambda q: b"\x06" + q[1:], "tdx.version"),
        (lambda q: q[:4] + bytes(4) + q[8:], "tdx.tee-type"),
        (lambda q: q[:4] + b"\x82" + q[5:], "tdx.tee-type"),
        (lambda q: q[:2] + b"\x03" + q[3:], "tdx.key-type"),
        (lambda q: q[:12] + b"x" + q[13:], "tdx.qe-vendor"),
        (lambda q: q + bytes(20_000), "tdx.size"),
    ],
)
def test_a_real_quote_with_a_bent_frame_is_refused(change, reason):
    vector = VECTORS["uptodate-v4-dcapqvl"]
    exact = quotes.strip_padding(load(vector["quote"]))
    with pytest.raises(QuoteInvalid) as refused:
        verify_quote(change(exact), load(vector["collateral"]), anchors=hardware(), now_s=vector["at"], trail=Trail())
    assert refused.value.reason == reason


def real_quote(at, **policies):
    vector, trail = VECTORS["uptodate-v4-dcapqvl"], Trail()
    quote = quotes.strip_padding(load(vector["quote"]))
    proven = verify_quote(quote, load(vector["collateral"]), anchors=hardware(), now_s=at, trail=trail)
    AgePolicy().judge_quote(proven, at, trail)
    return proven


ISSUED = 1_750_328_163  # the TCB info of the vector


def test_a_platform_id_and_every_date_are_read_from_a_real_quote():
    proven = real_quote(1_750_416_000)
    assert proven.tcb_status == "UpToDate"
    assert proven.ppid.hex() == "811dca2a26b952e85bb6448b097ba4fd"
    assert proven.fmspc.hex() == "b0c06f000000"
    assert proven.collateral.tcb_info.issued_s == ISSUED


def test_collateral_dated_after_now_is_refused():
    with pytest.raises(StaleEvidence) as refused:
        real_quote(ISSUED - 3600)
    assert refused.value.reason == "collateral.tcb-info-future"


def test_collateral_of_fifteen_days_is_refused_though_intel_lets_it_live_thirty():
    real_quote(ISSUED + 13 * 86400)
    with pytest.raises(StaleEvidence) as refused:
        real_quote(ISSUED + 15 * 86400)
    assert refused.value.reason.endswith("-too-old")


def test_collateral_past_its_end_is_refused():
    with pytest.raises(StaleEvidence) as refused:
        real_quote(ISSUED + 31 * 86400)
    assert refused.value.reason == "tdx.expired"


def test_collateral_of_another_family_is_refused():
    vector = VECTORS["uptodate-v4-dcapqvl"]
    other = load("tdx/collateral-90C06F-2026-02.json")
    with pytest.raises(AttestationError):
        verify_quote(
            quotes.strip_padding(load(vector["quote"])), other, anchors=hardware(), now_s=1_771_502_331, trail=Trail()
        )


def test_low_svn_is_named_as_a_tcb_refusal():
    with pytest.raises(TcbOutOfDate) as refused:
        run(VECTORS["tcb-too-low-v5-dcapqvl"])
    assert refused.value.reason == "tdx.tcb-level"


def test_a_trimmed_firmware_log_replays_the_same():
    log = load(VECTORS["rtmr-gcp-cos113"]["files"][0])
    assert len(trim_ccel(log)) < 20_000
    assert read_log(trim_ccel(log), LogKind.CCEL) == read_log(log, LogKind.CCEL)


def test_most_texts_in_a_real_firmware_log_prove_nothing():
    log = load(VECTORS["rtmr-gcp-cos113"]["files"][0])
    assert sum(event.proven for event in read_log(log, LogKind.CCEL)) == 13


H100 = VECTORS["h100-550.90.07"]


def gpu(report=None, chain=None, nonce=None, at=H100["at"]):
    return verify_report(
        load(H100["report"]) if report is None else report,
        load(H100["chain"]) if chain is None else chain,
        anchors=hardware(),
        now_s=at,
        nonce=nonce,
        trail=Trail(),
    )


def test_a_real_report_names_the_rims_that_nvidia_made_for_it():
    report = gpu().report
    assert report.driver_rim_id == "NV_GPU_DRIVER_GH100_550.90.07"
    assert report.vbios_rim_id == "NV_GPU_VBIOS_1010_0200_882_96009F0001"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r + b"\n", "gpu.trailing-bytes"),
        (lambda r: r[:-1], "gpu.truncated"),
        (lambda r: r[:60], "gpu.truncated"),
        (lambda r: b"", "gpu.truncated"),
        (lambda r: b"\x12" + r[1:], "gpu.format"),
        (lambda r: r[:41] + b"\x3f" + r[42:], "gpu.blocks"),
        (lambda r: r[:4] + b"\xff" + r[5:], "gpu.signature"),
        (lambda r: r[:60] + bytes([r[60] ^ 1]) + r[61:], "gpu.signature"),
        (lambda r: r[:-1] + bytes([r[-1] ^ 1]), "gpu.signature"),
        (lambda r: r[:-96] + bytes(96), "gpu.signature"),
        (lambda r: r + bytes(5000), "gpu.size"),
    ],
)
def test_a_bent_real_report_is_refused(change, reason):
    with pytest.raises(GpuReportInvalid) as refused:
        gpu(report=change(load(H100["report"])))
    assert refused.value.reason == reason


def test_another_nonce_is_a_replay():
    with pytest.raises(StaleEvidence) as refused:
        gpu(nonce=bytes(32))
    assert refused.value.reason == "gpu.nonce"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c[1:], "gpu.chain-length"),
        (lambda c: c[:1] + c[2:], "gpu.chain-signature"),
        (lambda c: [c[1], c[0], *c[2:]], "gpu.chain-ca"),
        (lambda c: c[:3], "gpu.chain-root"),
        (lambda c: c * 2, "gpu.chain-format"),
        (lambda c: [], "gpu.chain-format"),
    ],
)
def test_a_bent_real_device_chain_is_refused(change, reason):
    end = b"-----END CERTIFICATE-----\n"
    pem = load(H100["chain"])
    links = [part + end for part in pem.replace(b"\r", b"").split(end) if part.strip()]
    assert len(links) == 5
    with pytest.raises(AttestationError) as refused:
        gpu(chain=b"".join(change(links)))
    assert refused.value.reason == reason


def test_a_chain_without_its_root_is_completed_from_the_pin():
    end = b"-----END CERTIFICATE-----\n"
    links = [part + end for part in load(H100["chain"]).replace(b"\r", b"").split(end) if part.strip()]
    assert len(gpu(chain=b"".join(links[:4])).chain) == 5


def rim(name="gpu/rim-driver-GH100-550.144.03.xml", at=1_748_736_000, data=None):
    return verify_rim(load(name) if data is None else data, anchors=hardware(), now_s=at, trail=Trail())


def test_a_real_rim_of_another_driver_does_not_fit_a_real_report():
    with pytest.raises(RimInvalid) as refused:
        pick_rims(gpu().report, [rim()], Trail())
    assert refused.value.reason == "gpu.rim-version"


def test_a_real_vbios_rim_fits_the_report_that_it_was_made_for_and_no_other():
    vbios = rim("gpu/rim-vbios-1010_0200_882_96005E0001.xml", 1_717_200_000)
    fitting = read_report(load("gpu/h100-535.86.09-nofwid.report.bin"))
    assert match_rims(fitting, pick_rims(fitting, [vbios], Trail()), Trail()) == 12
    with pytest.raises(UnknownMeasurement) as refused:
        match_rims(gpu().report, {"vbios": vbios}, Trail())
    assert refused.value.reason == "gpu.measurements"


def test_an_expired_rim_signer_is_refused():
    for at, reason in ((1_900_000_000, "rim.chain-expired"), (1_700_000_000, "rim.chain-not-yet-valid")):
        with pytest.raises(StaleEvidence) as refused:
            rim(at=at)
        assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.replace(b'active="False"', b'active="True"', 1), "rim.digest"),
        (lambda d: d.replace(b'colloquialVersion="550.144.03"', b'colloquialVersion="550.90.07"'), "rim.digest"),
        (lambda d: b'<!DOCTYPE x [<!ENTITY a "b">]>' + d, "rim.doctype"),
        (lambda d: b"<?target data?>" + d, "rim.xml-instruction"),
        (lambda d: d.replace(b"</ns0:Payload>", b"<![CDATA[ ]]></ns0:Payload>"), "rim.xml-cdata"),
        (lambda d: d.replace(b' name="GH100"', b' name="GH100" xml:base="x"', 1), "rim.xml-attribute"),
        (lambda d: d[:-20], "rim.xml"),
        (lambda d: b"", "rim.xml"),
        (lambda d: d + b"<more/>", "rim.xml"),
        (lambda d: d.replace(b'URI=""', b'URI="#x"'), "rim.reference"),
        (lambda d: d.replace(b"xmldsig-more#sha384", b"xmldsig-more#sha224"), "rim.algorithm"),
        (lambda d: d.replace(b"ecdsa-sha384", b"hmac-sha384"), "rim.algorithm"),
        (lambda d: d.replace(b"#enveloped-signature", b"#base64"), "rim.transforms"),
        (lambda d: d.replace(b"SoftwareIdentity", b"Software"), "rim.root"),
        (lambda d: d.replace(b"<ds:SignatureValue>TM4D", b"<ds:SignatureValue>TM4E"), "rim.signature"),
        (lambda d: d.replace(b"<ds:SignatureValue>TM4D", b"<ds:SignatureValue>T"), "rim.base64"),
        (lambda d: d + b" " * 200_000, "rim.size"),
    ],
)
def test_an_edited_real_rim_is_refused(change, reason):
    with pytest.raises(AttestationError) as refused:
        rim(data=change(load("gpu/rim-driver-GH100-550.144.03.xml")))
    assert refused.value.reason == reason


def test_a_comment_changes_nothing_because_the_canonical_form_drops_it():
    data = load("gpu/rim-driver-GH100-550.144.03.xml").replace(b"</ns0:Payload>", b"<!-- x --></ns0:Payload>")
    assert rim(data=data).golden == rim().golden
