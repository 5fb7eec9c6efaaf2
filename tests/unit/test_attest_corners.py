"""Checks that no ordinary attack reaches first, each shown to bite on its own."""

import hashlib
import json
import struct
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from cocoon.adapters.tee.software import FIRMWARE_EVENTS, build_ccel, build_json_log, software_anchors, software_release
from cocoon.adapters.tee.software_keys import at, derive_key, issue, make_crl
from cocoon.adapters.tee.software_nvidia import DRIVER, DRIVER_INDEXES, sign_rim
from cocoon.attest import parts
from cocoon.attest.certs import check_crl, check_ocsp, load_ocsp, verify_chain
from cocoon.attest.eventlog import LogKind, read_log
from cocoon.attest.evidence import Hardware, Part, assemble, decode_hardware, encode_bundle
from cocoon.attest.gpu import xml
from cocoon.attest.gpu.report import read_report
from cocoon.attest.gpu.rim import verify_rim
from cocoon.attest.gpu.verify import check_revocation
from cocoon.attest.images import ImagePolicy
from cocoon.attest.policy import AgePolicy
from cocoon.attest.quote import read_quote
from cocoon.attest.trail import Trail
from cocoon.attest.verifier import Verifier
from cocoon.errors import (
    AttestationError,
    BindingMismatch,
    CertificateRevoked,
    EventLogInvalid,
    EvidenceMalformed,
    GpuReportInvalid,
    RevocationUnknown,
    RimInvalid,
    StaleEvidence,
)
from cocoon.types import Network
from cocoon.wire.codec import encode
from tests.fakes.attestation import DAY_S, INTEL, NOW, NOW_S, NVIDIA, enclave, evidence_of, expected, facts_of, policy

SHA384 = hashes.SHA384()
ANCHORS = software_anchors(Network.DEVNET)
MACHINE = enclave()
CHAIN = (MACHINE.device.leaf, MACHINE.device.brom, NVIDIA.provisioner, NVIDIA.identity, NVIDIA.root)


def reason_of(call):
    with pytest.raises(AttestationError) as refused:
        call()
    return refused.value.reason


# --- certificate chains ---


def key(label, curve=None):
    return derive_key(b"corner", label, curve or ec.SECP384R1())


def walk(*links, root=None, now_s=NOW_S):
    root = root or links[-1]
    return verify_chain(
        [link.certificate for link in links], root.certificate, now_s=now_s, prefix="x", error=GpuReportInvalid
    )


ROOT = issue("root", key("root"), None, authority=True, hash_algorithm=SHA384)
SHORT_ROOT = issue("root", key("root"), None, authority=True, path_length=0, hash_algorithm=SHA384)
MIDDLE = issue("middle", key("middle"), ROOT, authority=True, hash_algorithm=SHA384)
LEAF = issue("leaf", key("leaf"), MIDDLE, authority=False, hash_algorithm=SHA384)


def test_a_plain_chain_passes():
    assert len(walk(LEAF, MIDDLE, ROOT)) == 3


def test_a_chain_longer_than_its_root_allows_is_refused():
    assert reason_of(lambda: walk(LEAF, MIDDLE, SHORT_ROOT)) == "x-path-length"


def test_a_leaf_cannot_act_as_an_authority():
    under = issue("under", key("under"), LEAF, authority=False, hash_algorithm=SHA384)
    assert reason_of(lambda: walk(under, LEAF, MIDDLE, ROOT)) == "x-ca"


def test_a_weaker_key_is_refused():
    weak = issue("weak", key("weak", ec.SECP256R1()), MIDDLE, authority=False, hash_algorithm=SHA384)
    assert reason_of(lambda: walk(weak, MIDDLE, ROOT)) == "x-key"


def test_an_unknown_critical_extension_is_refused():
    builder = (
        x509.CertificateBuilder()
        .subject_name(LEAF.certificate.subject)
        .issuer_name(MIDDLE.certificate.subject)
        .public_key(LEAF.key.public_key())
        .serial_number(7)
        .not_valid_before(LEAF.certificate.not_valid_before_utc)
        .not_valid_after(LEAF.certificate.not_valid_after_utc)
        .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), critical=True)
    )
    odd = replace(LEAF, certificate=builder.sign(MIDDLE.key, SHA384))
    assert reason_of(lambda: walk(odd, MIDDLE, ROOT)) == "x-extension"


def test_a_weak_hash_is_refused():
    weak = issue("weak", key("weak hash"), MIDDLE, authority=False, hash_algorithm=hashes.SHA224())
    assert reason_of(lambda: walk(weak, MIDDLE, ROOT)) == "x-hash"
    assert reason_of(lambda: clear(crl(hash_algorithm=hashes.SHA224()))) == "x-hash"


def test_certificates_outside_their_dates_are_refused():
    assert reason_of(lambda: walk(LEAF, MIDDLE, ROOT, now_s=0)) == "x-not-yet-valid"
    assert reason_of(lambda: walk(LEAF, MIDDLE, ROOT, now_s=1 << 33)) == "x-expired"


# --- revocation ---


def crl(**fields):
    return make_crl(
        NVIDIA.root, **{"issued_s": NOW_S - 60, "next_update_s": NOW_S + DAY_S, "hash_algorithm": SHA384, **fields}
    )


def clear(data, subject=NVIDIA.identity, issuer=NVIDIA.root):
    return check_crl(data, issuer=issuer.certificate, subject=subject.certificate, now_s=NOW_S, prefix="x")


def test_a_list_of_another_issuer_or_a_part_of_one_clears_nothing():
    assert reason_of(lambda: clear(crl(), subject=NVIDIA.provisioner, issuer=NVIDIA.identity)) == "x-issuer"
    partial = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(NVIDIA.root.certificate.subject)
        .last_update(NVIDIA.root.certificate.not_valid_before_utc)
        .next_update(NVIDIA.root.certificate.not_valid_after_utc)
        .add_extension(x509.IssuingDistributionPoint(None, None, True, False, None, False, False), critical=True)
        .sign(NVIDIA.root.key, SHA384)
    )

    assert reason_of(lambda: clear(partial.public_bytes(Encoding.DER))) == "x-scope"
    assert reason_of(lambda: clear(b"x" * 200_000)) == "x-size"
    assert reason_of(lambda: clear(b"junk")) == "x-format"


def test_too_many_answers_are_refused_before_any_is_read():
    def run():
        check_revocation(CHAIN_CERTS, crls=[b""] * 5, ocsp_answers=[], rims=[], now_s=NOW_S, trail=Trail())

    assert reason_of(run) == "gpu.revocation-count"


CHAIN_CERTS = tuple(link.certificate for link in CHAIN)


def ocsp_about(link, issuer, status=None):

    status = status or ocsp.OCSPCertStatus.GOOD

    revoked = status is ocsp.OCSPCertStatus.REVOKED
    answer = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=link.certificate,
            issuer=issuer.certificate,
            algorithm=SHA384,
            cert_status=status,
            this_update=at(NOW_S - 60),
            next_update=at(NOW_S + DAY_S),
            revocation_time=at(NOW_S - DAY_S) if revoked else None,
            revocation_reason=None,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, issuer.certificate)
        .sign(issuer.key, SHA384)
    )

    return answer.public_bytes(Encoding.DER)


def test_an_answer_signed_by_the_issuer_itself_counts():
    answer = load_ocsp(ocsp_about(MACHINE.device.brom, NVIDIA.provisioner), prefix="x")
    check_ocsp(
        answer,
        subject=MACHINE.device.brom.certificate,
        issuer=NVIDIA.provisioner.certificate,
        now_s=NOW_S,
        prefix="x",
    )
    other = NVIDIA.device("other").brom.certificate
    assert (
        reason_of(
            lambda: check_ocsp(answer, subject=other, issuer=NVIDIA.provisioner.certificate, now_s=NOW_S, prefix="x")
        )
        == "x-subject"
    )


def test_a_stapled_answer_that_revokes_a_rim_signer_is_honoured():

    def stapled(status):
        answer = ocsp_about(NVIDIA.rim_signer, NVIDIA.rim_ca, status)
        return facts_of(evidence_of(bundle=lambda b: replace(b, ocsp=(*b.ocsp, answer))))

    assert any(check.name == "rim.ocsp" for check in stapled(ocsp.OCSPCertStatus.GOOD).checks)
    with pytest.raises(CertificateRevoked) as refused:
        stapled(ocsp.OCSPCertStatus.REVOKED)
    assert refused.value.reason == "rim.ocsp-revoked"


# --- RIM content, signed by a genuine signer ---

RIM_TEXT = NVIDIA.rim(DRIVER, DRIVER_INDEXES).decode()
RIM_BODY = RIM_TEXT[: RIM_TEXT.index("<ds:Signature")] + "</SoftwareIdentity>"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda b: b.replace('index="5"', 'index="999"'), "rim.measurement"),
        (lambda b: b.replace('index="5"', 'index="-5"'), "rim.measurement"),
        (lambda b: b.replace('active="True"', 'active="maybe"', 1), "rim.measurement"),
        (lambda b: b.replace('alternatives="1"', 'alternatives="0"', 1), "rim.measurement"),
        (lambda b: b.replace('alternatives="1"', 'alternatives="2"', 1), "rim.measurement"),
        (lambda b: b.replace('alternatives="1"', 'alternatives="99"', 1), "rim.measurement"),
        (lambda b: b.replace('ns2:Hash0="', 'ns2:Hash0="00', 1), "rim.measurement"),
        (lambda b: b.replace('ns2:Hash0="', 'ns2:Hash0=" ', 1), "rim.measurement"),
        (lambda b: b.replace('ns2:Hash0="', 'Hash0="', 1), "rim.measurement"),
        (lambda b: b.replace('type="Measurement"', 'type="Other"', 1), "rim.payload"),
        (lambda b: b.replace("</ns0:Payload>", "<ns0:File/></ns0:Payload>"), "rim.payload"),
        (lambda b: b.replace("</ns0:Payload>", "</ns0:Payload><ns0:Payload/>"), "rim.payload"),
        (lambda b: b.replace('product="GH100"', 'product=""'), "rim.meta"),
        (lambda b: b.replace("<ns0:Meta ", "<ns0:Beta "), "rim.payload"),
    ],
)
def test_even_a_signed_rim_must_have_the_shape(edit, reason):
    data = sign_rim(edit(RIM_BODY), NVIDIA.rim_signer, (NVIDIA.rim_signer, NVIDIA.rim_ca, NVIDIA.rim_root))
    assert reason_of(lambda: verify_rim(data, anchors=ANCHORS, now_s=NOW_S, trail=Trail())) == reason


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("<ds:X509Data>", "<ds:X509Data><ds:X509SKI/>", "rim.signature-form"),
        ("<ds:KeyInfo>", "<ds:KeyInfo><ds:KeyName/>", "rim.signature-form"),
        ("</ds:Transforms>", "<ds:Transform/></ds:Transforms>", "rim.transforms"),
        ("</ds:SignedInfo>", "<ds:Reference/></ds:SignedInfo>", "rim.reference"),
        ("<ds:Transforms>", "<ds:Manifest/><ds:Transforms>", "rim.reference"),
        ("<ds:X509Certificate>", "<ds:X509Certificate>AAAA", "rim.certificate"),
    ],
)
def test_an_unusual_signature_is_not_interpreted(old, new, reason):
    data = RIM_TEXT.replace(old, new, 1).encode()
    assert reason_of(lambda: verify_rim(data, anchors=ANCHORS, now_s=NOW_S, trail=Trail())) == reason


def test_any_of_a_measurements_alternatives_will_do():
    wrong, good = "07" * 48, hashlib.sha384(b"golden 25").hexdigest()
    one = f'alternatives="1" ns2:Hash0="{good}"'
    body = RIM_BODY.replace(one, f'alternatives="2" ns2:Hash0="{wrong}" ns2:Hash1="{good}"')
    assert body != RIM_BODY
    rim = sign_rim(body, NVIDIA.rim_signer, (NVIDIA.rim_signer, NVIDIA.rim_ca))
    facts_of(evidence_of(bundle=lambda b: replace(b, rims=(rim, b.rims[1]))))


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"<p:a/>", "rim.xml-namespace"),
        (b'<a p:x=""/>', "rim.xml-namespace"),
        (b'<a xmlns:p="u"><p:b:c/></a>', "rim.xml"),
        (b'<a xmlns:xml="u"/>', "rim.xml"),
        (b'<a xmlns:p=""/>', "rim.xml"),
        (b'<a xmlns:p="u" xmlns:q="u" p:x="" q:x=""/>', "rim.xml-attribute"),
        (b'<a x="" x=""/>', "rim.xml"),
        (b"<a>&nbsp;</a>", "rim.xml"),
        (b"<a>\xff</a>", "rim.xml"),
        (b"\xff\xfe<\0a\0/\0>\0", "rim.xml"),
    ],
)
def test_names_and_prefixes_are_taken_strictly(document, reason):
    assert reason_of(lambda: xml.parse(document)).startswith(reason)


@pytest.mark.parametrize(
    ("document", "canonical"),
    [
        (b'<a b="2" a="1"/>', b'<a a="1" b="2"></a>'),
        (b"<?xml version='1.0' encoding='utf-8'?>\n<a/>\n", b"<a></a>"),
        (b'<a xmlns="u"><b xmlns="u"/></a>', b'<a xmlns="u"><b></b></a>'),
        (b'<a xmlns="u"><b xmlns=""/></a>', b'<a xmlns="u"><b xmlns=""></b></a>'),
        (b'<p:a xmlns:p="u" xmlns:q="v"/>', b'<p:a xmlns:p="u" xmlns:q="v"></p:a>'),
        (b'<a xmlns:q="u" xmlns:p="v" p:z="1" q:z="2" y="3"/>',
         b'<a xmlns:p="v" xmlns:q="u" y="3" q:z="2" p:z="1"></a>'),
        (b"<a>\r\n&gt;&#13;&amp;'\"</a>", b"<a>\n&gt;&#xD;&amp;'\"</a>"),
        (b'<a b="&quot;&#9;&#10;&gt;"/>', b'<a b="&quot;&#x9;&#xA;>"></a>'),
        (b"<a><!-- gone -->x<!-- too --></a>", b"<a>x</a>"),
    ],
)  # fmt: skip
def test_the_canonical_form_is_the_standards(document, canonical):
    """Canonical XML 1.1, sections 1.1 and 2.3, and the examples in its section 3 that this reader takes."""
    assert xml.canonical(xml.parse(document)) == canonical


# --- reports and logs ---


def test_opaque_fields_may_not_repeat_or_run_over():
    report = NVIDIA.report(MACHINE.device, bytes(32))
    first = report.index(struct.pack("<HH", 6, 8))
    doubled = report[:first] + struct.pack("<H", 15) + report[first + 2 :]
    over = report[: first + 2] + b"\xff\xff" + report[first + 4 :]
    size_at = first - 2
    size = int.from_bytes(report[size_at:first], "little")
    ragged = report[:size_at] + struct.pack("<H", size + 3) + report[first:-96] + b"\1\0\1" + report[-96:]
    crowd = b"".join(struct.pack("<HH", 1000 + i, 0) for i in range(70))
    crowded = report[:size_at] + struct.pack("<H", size + len(crowd)) + report[first:-96] + crowd + report[-96:]
    for bad in (doubled, over, ragged, crowded):
        assert reason_of(lambda bad=bad: read_report(bad)) == "gpu.opaque"


def test_a_report_with_another_number_of_blocks_is_no_hopper():
    report = NVIDIA.report(MACHINE.device, bytes(32))
    assert reason_of(lambda: read_report(report[:41] + b"\x20" + report[42:])) == "gpu.blocks"


def test_a_firmware_log_ends_where_it_ends():
    log = build_ccel(FIRMWARE_EVENTS)
    read_log(log + b"\xff" * 64, LogKind.CCEL)
    read_log(log + bytes(64), LogKind.CCEL)
    assert reason_of(lambda: read_log(log + b"\xff" * 8 + b"more", LogKind.CCEL)) == "eventlog.trailing-bytes"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"digest": "00"}, "eventlog.digest"),
        ({"digest": 1}, "eventlog.json"),
        ({"imr": "0"}, "eventlog.json"),
        ({"imr": True}, "eventlog.json"),
        ({"event": 1}, "eventlog.json"),
        ({"event": "x" * 300}, "eventlog.size"),
        ({"event_type": -1}, "eventlog.register"),
        ({"event_type": 1 << 40}, "eventlog.register"),
    ],
)
def test_a_json_event_of_another_shape_is_refused(row, reason):
    good = {"imr": 0, "event_type": 1, "digest": "00" * 48, "event": "", "event_payload": ""}
    read_log(json.dumps([good]).encode(), LogKind.JSON)
    assert reason_of(lambda: read_log(json.dumps([{**good, **row}]).encode(), LogKind.JSON)) == reason


def test_a_firmware_event_described_in_words_is_never_proven():
    row = {"imr": 0, "event_type": 1, "digest": hashlib.sha384(b"words").hexdigest(), "event_payload": "wörds"}
    assert read_log(json.dumps([row]).encode(), LogKind.JSON)[0].proven is False


def test_dstacks_whole_answer_is_taken_as_its_log():
    log = build_json_log([("cocoon/seal", b"")])
    whole = json.dumps({"quote": "00", "event_log": log.decode()}).encode()
    assert read_log(whole, LogKind.JSON) == read_log(log, LogKind.JSON)
    assert reason_of(lambda: read_log(b'{"event_log": "["}', LogKind.JSON)) == "eventlog.json"


# --- messages ---


def hardware(**fields):
    good = decode_hardware(encode_bundle(evidence_of().bundle))
    return encode(Hardware(**{name: getattr(good, name) for name in Hardware.__struct_fields__} | fields))


def part(kind, data=b"x"):
    return Part(kind=kind, digest=hashlib.sha256(data).digest(), data=data)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"version": 2}, "evidence.version"),
        ({"parts": [part(9)]}, "evidence.part-kind"),
        ({"parts": [part(1), part(1)]}, "evidence.part-size"),
        ({"parts": [part(4)] * 3}, "evidence.part-size"),
        ({"parts": [part(4, b"x" * 140_000)]}, "evidence.part-size"),
        ({"gpus": decode_hardware(encode_bundle(evidence_of().bundle)).gpus * 2}, "evidence.format"),
        ({"nonce_path": [bytes(32)] * 11}, "evidence.format"),
    ],
)
def test_hardware_evidence_of_another_shape_is_refused(fields, reason):
    decode_hardware(hardware())
    assert reason_of(lambda: decode_hardware(hardware(**fields))) == reason


def test_evidence_without_collateral_is_incomplete():
    sparse = decode_hardware(hardware(parts=[]))
    assert reason_of(lambda: assemble(sparse, {})) == "evidence.part-missing"


def test_a_blob_larger_than_its_kind_is_refused():
    big = b"x" * 140_000
    named = decode_hardware(hardware(parts=[Part(kind=4, digest=hashlib.sha256(big).digest(), data=b"")]))
    assert reason_of(lambda: assemble(named, {hashlib.sha256(big).digest(): big})) == "evidence.part-size"


# --- time ---


def test_what_expires_between_verification_and_request_is_refused_by_the_request():
    facts = facts_of(evidence_of(collateral={"issued_s": NOW_S - 60, "life_s": 180}))
    ages = AgePolicy()
    with pytest.raises(StaleEvidence) as refused:
        ages.judge(facts, now=NOW + 200 * 10**9, trail=Trail())
    assert refused.value.reason == "collateral.expired"
    short = evidence_of(bundle=lambda b: replace(b, crls=NVIDIA.crls(issued_s=NOW_S - 60, life_s=180)))
    with pytest.raises(StaleEvidence) as refused:
        ages.judge(facts_of(short), now=NOW + 200 * 10**9, trail=Trail())
    assert refused.value.reason == "gpu.expired"


def test_a_release_is_not_valid_before_its_day():
    release = replace(software_release(), not_before_s=NOW_S + 1)
    with pytest.raises(StaleEvidence) as refused:
        policy(images=ImagePolicy(releases=(release,))).judge(facts_of(), now=NOW)
    assert refused.value.reason == "release.not-yet-valid"


@pytest.mark.parametrize("now_s", [0, -5, 1 << 41])
def test_a_clock_far_off_refuses(now_s):
    with pytest.raises(AttestationError):
        Verifier(Network.DEVNET, software=ANCHORS).verify(evidence_of(), expected(), now=now_s * 10**9, seen={})


def test_a_verifier_of_one_network_serves_no_other():
    with pytest.raises(BindingMismatch) as refused:
        Verifier(Network.TESTNET).verify(evidence_of(), expected(), now=NOW, seen={})
    assert refused.value.reason == "statement.network"


def test_text_between_a_quotes_certificates_is_refused():
    quote = MACHINE.quote(MACHINE.fields(bytes(64)))
    end = quote.index(b"-----END CERTIFICATE-----\n") + len(b"-----END CERTIFICATE-----")
    bent = quote[:end] + b"\x0b" + quote[end + 1 :]
    verdict = parts.check_tdx(bent, INTEL.collateral(issued_s=NOW_S - 60), now_s=NOW_S, anchors=ANCHORS)
    assert verdict.reason == "tdx.chain-text"


def test_more_rims_than_a_gpu_has_are_refused():
    gpu = evidence_of().bundle.gpus[0]
    verdict = parts.check_gpu(gpu.report, gpu.chain, rims=[b""] * 3, now_s=NOW_S, anchors=ANCHORS)
    assert verdict.reason == "gpu.rim-count"


def test_a_report_without_version_texts_is_genuine_but_fits_no_rim():
    report = NVIDIA.report(MACHINE.device, bytes(32), changes={3: None, 17: None})
    chain, rim = MACHINE.device.chain, NVIDIA.rims()[0]
    alone = parts.check_gpu(report, chain, now_s=NOW_S, anchors=ANCHORS)
    assert alone.accepted
    assert alone.claims["driver_rim_id"] is None
    assert parts.check_gpu(report, chain, rims=[rim], now_s=NOW_S, anchors=ANCHORS).reason == "gpu.opaque-text"


def test_lengths_inside_a_quotes_signature_cannot_point_outside():
    quote = MACHINE.quote(MACHINE.fields(bytes(64)))
    authentication = 48 + 584 + 4 + 128 + 6 + 384 + 64
    for size in (len(quote) - authentication, len(quote) - authentication - 5, 0xFFFF, 33):
        bent = quote[:authentication] + struct.pack("<H", size) + quote[authentication + 2 :]
        assert reason_of(lambda bent=bent: read_quote(bent)) == "tdx.inner-length"
    for size in (3, 130, 400, 130 + 6 + 384 + 64 + 1):
        end = 48 + 584
        bent = quote[:end] + struct.pack("<I", size) + quote[end + 4 : end + 4 + size]
        assert reason_of(lambda bent=bent: read_quote(bent)) in ("tdx.truncated", "tdx.inner-length")


def test_each_refusal_kind_is_its_own_class():
    kinds = {
        RevocationUnknown, RimInvalid, EvidenceMalformed, EventLogInvalid, GpuReportInvalid, CertificateRevoked,
    }  # fmt: skip
    assert len({kind("x").code for kind in kinds}) == len(kinds)
    assert all(kind("x").reason == kind("x").code for kind in kinds)
