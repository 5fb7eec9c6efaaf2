"""Every parser of evidence against hostile bytes: a typed refusal or a value, never a crash, a hang or much memory.

Inputs are noise, and good files with pieces cut, flipped, doubled or swapped: those reach the deep branches. The
long form runs the same with many more examples.
"""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from cocoon.adapters.tee.software import build_ccel, build_json_log, software_release
from cocoon.attest import parts
from cocoon.attest.certs import check_ocsp, load_crl, load_ocsp, load_pem_chain
from cocoon.attest.collateral import read_collateral
from cocoon.attest.eventlog import LogKind, detect_kind, read_log, replay
from cocoon.attest.evidence import assemble, decode_hardware, decode_saved, encode_bundle
from cocoon.attest.gpu import xml
from cocoon.attest.gpu.report import read_report as read_gpu_report
from cocoon.attest.policy_file import parse_policy
from cocoon.attest.quote import read_quote, read_report, strip_padding
from cocoon.attest.release import encode_release, envelope, read_manifest, verify_release
from cocoon.errors import CocoonError
from cocoon.types import Network
from tests.fakes.attestation import INTEL, NOW_S, NVIDIA, enclave, evidence_of

ROOT = Path(__file__).parent.parent / "vectors" / "attestation"
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "120"))
COMMON = {"deadline": 2000, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
MACHINE = enclave()
AT = 1_750_416_000


def load(name):
    return (ROOT / name).read_bytes()


QUOTE = strip_padding(load("tdx/uptodate-v4-dcapqvl.quote.bin"))
QUOTE_5 = load("tdx/tcb-too-low-v5-dcapqvl.quote.bin")
COLLATERAL = load("tdx/collateral-B0C06F-2025-06.json")
REPORT = load("gpu/h100-550.90.07.report.bin")
CHAIN = load("gpu/h100-550.90.07.chain.pem")
RIM = load("gpu/rim-driver-GH100-550.144.03.xml")
CCEL = build_ccel([(0, b"one"), (1, b"two"), (2, b"three")])
LOG = build_json_log([("cocoon/image", bytes(32)), ("cocoon/seal", b"")])
CRL = NVIDIA.crls(issued_s=NOW_S)[0]
OCSP = NVIDIA.ocsp_answer(MACHINE.device, issued_s=NOW_S)
HARDWARE = encode_bundle(evidence_of().bundle)
RELEASE = envelope(encode_release(software_release()), {})
POLICY = b'level = "confidential"\n[tcb]\nstatuses = ["UpToDate"]\n[ppid]\nallow_files = ["x"]\n'


NASTY = [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"[[[[", b"{{{{"]


@some.composite
def bent(draw, *seeds):
    """Noise, or a good file with a few edits."""
    data = bytearray(draw(some.sampled_from(seeds)))
    if draw(some.integers(0, 9)) == 0:
        return draw(some.binary(max_size=300))
    for _ in range(draw(some.integers(1, 4))):
        at = draw(some.integers(0, max(0, len(data) - 1)))
        size = draw(some.integers(0, 64))
        match draw(some.integers(0, 5)):
            case 0:
                data[at : at + 1] = bytes([draw(some.integers(0, 255))])
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = data[at : at + size]
            case 3:
                data[at:at] = draw(some.binary(max_size=16))
            case 4:
                del data[at:]
            case 5:
                data[at : at + 4] = draw(
                    some.sampled_from([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"[[[[", b"{{{{"])
                )
    return bytes(data)


def tolerate(call):
    """Run it; only the project's own refusals may come out."""
    try:
        return call()
    except CocoonError:
        return None


def split_log(data):
    events = read_log(data, detect_kind(data))
    return replay(events)


def ocsp_of(data):
    answer = load_ocsp(data, prefix="gpu.ocsp")
    check_ocsp(
        answer,
        subject=MACHINE.device.brom.certificate,
        issuer=NVIDIA.provisioner.certificate,
        now_s=NOW_S,
        prefix="gpu.ocsp",
    )


TARGETS = {
    "quote": (lambda d: (read_quote(d), read_report(d)), (QUOTE, QUOTE_5)),
    "collateral": (read_collateral, (COLLATERAL, INTEL.collateral(issued_s=NOW_S))),
    "ccel": (lambda d: read_log(d, LogKind.CCEL), (CCEL,)),
    "json log": (lambda d: read_log(d, LogKind.JSON), (LOG,)),
    "either log": (split_log, (CCEL, LOG)),
    "gpu report": (read_gpu_report, (REPORT,)),
    "gpu chain": (lambda d: load_pem_chain(d, what="chain", reason="x"), (CHAIN,)),
    "xml": (lambda d: xml.canonical(xml.parse(d)), (RIM[:3000] + b"</ns0:Payload></SoftwareIdentity>", RIM)),
    "crl": (lambda d: load_crl(d, prefix="gpu.crl"), (CRL,)),
    "ocsp": (ocsp_of, (OCSP,)),
    "hardware": (lambda d: assemble(decode_hardware(d), {}), (HARDWARE,)),
    "saved": (decode_saved, (b"cocoon-evidence\x01" + HARDWARE,)),
    "release": (lambda d: verify_release(d, builders=[bytes(32)], threshold=1, now_s=0), (RELEASE,)),
    "manifest": (read_manifest, (json.loads(RELEASE)["manifest"].encode(),)),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_takes_any_bytes_and_answers_with_a_value_or_its_own_error(name):
    parse, seeds = TARGETS[name]

    @settings(max_examples=EXAMPLES, **COMMON)
    @given(bent(*seeds))
    def run(data):
        tolerate(lambda: parse(data))

    run()


@settings(max_examples=EXAMPLES, **COMMON)
@given(bent(POLICY))
def test_a_policy_file_is_read_or_refused(data):
    text = data.decode("utf-8", "replace")
    tolerate(lambda: parse_policy(text, network=Network.MAINNET, read=lambda _: b"", now_s=0))


@settings(max_examples=EXAMPLES, **COMMON)
@given(bent(QUOTE, QUOTE_5), some.booleans())
def test_a_bent_quote_is_never_accepted_unless_it_is_the_good_one(data, padded):
    verdict = parts.check_tdx(data + bytes(70 if padded else 0), COLLATERAL, now_s=AT)
    # Certificates are signed themselves; only white space between their PEM lines may differ.
    assert not verdict.accepted or b"".join(data.rstrip(b"\0").split()) == b"".join(QUOTE.rstrip(b"\0").split())
    json.dumps(verdict.as_json())


@settings(max_examples=EXAMPLES, **COMMON)
@given(bent(COLLATERAL))
def test_bent_collateral_never_crashes_the_verifier(data):
    json.dumps(parts.check_tdx(QUOTE, data, now_s=AT).as_json())


@settings(max_examples=EXAMPLES, **COMMON)
@given(bent(REPORT), bent(CHAIN), some.booleans())
def test_a_bent_report_is_never_accepted(report, chain, keep_chain):
    verdict = parts.check_gpu(report, CHAIN if keep_chain else chain, now_s=1_772_323_200)
    assert not verdict.accepted or report == REPORT
    json.dumps(verdict.as_json())


@settings(max_examples=EXAMPLES, **COMMON)
@given(bent(RIM))
def test_a_bent_rim_is_accepted_only_with_the_same_measurements(data):
    verdict = parts.check_rim(data, now_s=1_748_736_000)
    if verdict.accepted:  # white space outside the root, or a certificate that is not needed
        assert verdict.claims["version"] == "550.144.03"
        assert verdict.claims["active"] == 21


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_the_same_for_long(name):
    parse, seeds = TARGETS[name]

    @settings(max_examples=20_000, **COMMON)
    @given(bent(*seeds))
    def run(data):
        tolerate(lambda: parse(data))

    run()
