"""Policies, releases and policy files: what a client can demand, and that nothing is demanded by accident."""

import hashlib
import json
from dataclasses import replace

import pytest
from nacl.signing import SigningKey

from cocoon.adapters.tee.software import software_release
from cocoon.attest import ratchet
from cocoon.attest.images import ImagePolicy
from cocoon.attest.judging import AllOf, AnyOf
from cocoon.attest.policy import AgePolicy, MinimumLevel, PpidPolicy, TcbPolicy, TrustPolicy
from cocoon.attest.policy_file import parse_policy
from cocoon.attest.release import encode_release, envelope, read_manifest, release_message, verify_release
from cocoon.attest.trail import Trail
from cocoon.errors import AttestationError, ConfigError, EvidenceMalformed, StaleEvidence, TrustRefused
from cocoon.types import SECOND_NS, Network, TrustLevel
from tests.fakes.attestation import DAY_S, NOW, NOW_S, evidence_of, expected, facts_of, policy, verifier

BUILDERS = [SigningKey(bytes([i]) * 32) for i in range(1, 4)]
KEYS = [key.verify_key.encode() for key in BUILDERS]
MANIFEST = encode_release(software_release())


def sign(manifest=MANIFEST, by=BUILDERS):
    return {key.verify_key.encode(): key.sign(release_message(manifest)).signature for key in by}


def check(data, *, builders=KEYS, threshold=2, now_s=NOW_S):
    return verify_release(data, builders=builders, threshold=threshold, now_s=now_s)


def test_a_release_signed_by_two_of_three_pinned_builders_is_accepted():
    release = check(envelope(MANIFEST, sign(by=BUILDERS[:2])))
    assert set(release.builders) == set(KEYS[:2])
    assert replace(release, builders=()) == software_release()


@pytest.mark.parametrize(
    ("data", "fields", "reason"),
    [
        (envelope(MANIFEST, sign(by=BUILDERS[:1])), {}, "release.signatures"),
        (envelope(MANIFEST, {}), {}, "release.signatures"),
        (envelope(MANIFEST, sign()), {"builders": []}, "release.builders"),
        (envelope(MANIFEST, sign()), {"threshold": 0}, "release.builders"),
        (envelope(MANIFEST, sign()), {"builders": [KEYS[0]] * 3}, "release.builders"),
        (envelope(MANIFEST.replace("software", "softwarE"), sign()), {}, "release.signatures"),
        (envelope(MANIFEST + " ", sign()), {}, "release.signatures"),
        (envelope(MANIFEST, {KEYS[0]: sign()[KEYS[0]], KEYS[1]: sign()[KEYS[0]]}), {}, "release.signatures"),
        (envelope(MANIFEST, sign(by=[SigningKey(b"x" * 32), SigningKey(b"y" * 32)])), {}, "release.signatures"),
        (envelope(MANIFEST, sign()), {"now_s": 1 << 39}, "release.expired"),
        (b"", {}, "release.format"),
        (b"[]", {}, "release.format"),
        (b'{"manifest":1,"signatures":[]}', {}, "release.format"),
        (b'{"manifest":"","signatures":[{}]}', {}, "release.format"),
        (b'{"manifest":"","signatures":7}', {}, "release.format"),
        (b'{"manifest":"","signatures":[],"more":1}', {}, "release.format"),
        (b" " * 300_000, {}, "release.size"),
    ],
)
def test_a_release_that_pinned_builders_did_not_sign_is_refused(data, fields, reason):
    with pytest.raises(AttestationError) as refused:
        check(data, **fields)
    assert refused.value.reason == reason


def test_one_builder_signing_twice_counts_once():
    twice = json.loads(envelope(MANIFEST, sign(by=BUILDERS[:1])))
    twice["signatures"] *= 2
    with pytest.raises(EvidenceMalformed):
        check(json.dumps(twice).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"mrtd": ["00"]},
        {"mrtd": "00"},
        {"image": "zz"},
        {"rtmr0": [1]},
        {"expires_s": -1},
        {"expires_s": True},
        {"models": "any"},
        {"name": ""},
        {"name": "a\nb"},
        {"rtmr3_before": [["x"]]},
        {"model_roots": []},
        {"unknown": 1},
    ],
)
def test_a_manifest_of_another_shape_is_refused_even_when_signed(change):
    manifest = json.dumps({**json.loads(MANIFEST), **change})
    with pytest.raises(EvidenceMalformed) as refused:
        check(envelope(manifest, sign(manifest)))
    assert refused.value.reason == "release.manifest"


@pytest.mark.parametrize("gone", ["name", "version", "image", "mrtd", "rtmr0", "rtmr1", "rtmr2", "expires_s"])
def test_a_manifest_that_leaves_a_measurement_out_is_refused(gone):
    value = json.loads(MANIFEST)
    del value[gone]
    with pytest.raises(EvidenceMalformed):
        read_manifest(json.dumps(value).encode())


@pytest.mark.parametrize("empty", ["mrtd", "rtmr0", "rtmr1", "rtmr2", "mr_config_id"])
def test_an_empty_list_of_measurements_permits_nothing(empty):
    release = replace(software_release(), **{empty: frozenset()})
    with pytest.raises(AttestationError) as refused:
        policy(images=ImagePolicy(releases=(release,))).judge(facts_of(), now=NOW)
    assert refused.value.reason == f"image.{empty.replace('_', '-')}"


def test_any_of_several_releases_of_one_image_will_do():
    wrong = replace(software_release(), mrtd=frozenset((bytes(48),)))
    both = policy(images=ImagePolicy(releases=(wrong, software_release())))
    assert both.judge(facts_of(), now=NOW).level is TrustLevel.SIMULATED


def test_compositions_mean_what_they_say():
    facts = facts_of()
    yes = MinimumLevel(level=TrustLevel.OPEN, network=Network.DEVNET)
    no = PpidPolicy(allow=frozenset())
    AllOf(policies=(yes, yes)).judge(facts, now=NOW, trail=Trail())
    AnyOf(policies=(no, yes)).judge(facts, now=NOW, trail=Trail())
    for refusing in (AllOf(policies=(yes, no)), AnyOf(policies=(no, no))):
        with pytest.raises(TrustRefused):
            refusing.judge(facts, now=NOW, trail=Trail())


def test_hardware_demands_fail_closed_on_facts_without_a_quote():
    from cocoon.attest import statement as st

    open_facts = facts_of(evidence_of(statement={"mode": st.MODE_OPEN, "gpus": []}, bundle=lambda _: None))
    for demand in (TcbPolicy(), AgePolicy(), ImagePolicy(releases=(software_release(),)), PpidPolicy()):
        with pytest.raises(TrustRefused) as refused:
            demand.judge(open_facts, now=NOW, trail=Trail())
        assert refused.value.reason == "policy.no-quote"
    lax = TrustPolicy(level=TrustLevel.OPEN, network=Network.DEVNET)
    assert lax.judge(open_facts, now=NOW).level is TrustLevel.OPEN
    assert lax.judge(facts_of(), now=NOW).level is TrustLevel.OPEN  # nothing was demanded, so nothing is shown


def test_a_policy_says_what_it_trusts_and_what_it_does_not_stop():
    words = "\n".join(TrustPolicy(level=TrustLevel.CONFIDENTIAL, network=Network.MAINNET).explain())
    for needed in ("No image is accepted", "UpToDate", "TEE.fail", "physical access", "14 days", "Any machine"):
        assert needed in words
    assert "operator can read" in TrustPolicy(level=TrustLevel.OPEN, network=Network.MAINNET).explain()[0]
    assert "proves nothing" in policy().explain()[0]


# --- policy files ---


def read_from(files):
    return lambda name: files[name]


def parse(text, files=(), network=Network.DEVNET):
    return parse_policy(text, network=network, read=read_from(dict(files)), now_s=NOW_S)


FULL = f"""
level = "simulated"
[releases]
builders = ["{KEYS[0].hex()}", "{KEYS[1].hex()}", "{KEYS[2].hex()}"]
threshold = 2
files = ["release.json"]
[tcb]
statuses = ["UpToDate", "SWHardeningNeeded"]
advisories_tolerated = ["INTEL-SA-00615"]
evaluation_number_min = 18
[guest]
mr_seam = ["{"33" * 48}"]
[ages]
tcb_info_days = 7
ocsp_hours = 24
[ppid]
allow_files = ["hosts.txt"]
[gpu]
drivers = ["550.144.03"]
"""
HOSTS = f"# my hosts\n{hashlib.sha256(b'software-machine').digest()[:16].hex()}  # one\n\n".encode()
FILES = {"release.json": envelope(MANIFEST, sign()), "hosts.txt": HOSTS, "own.json": MANIFEST.encode()}


def test_a_full_policy_file_judges_as_it_reads():
    full = parse(FULL, FILES)
    assert full.judge(facts_of(), now=NOW).level is TrustLevel.SIMULATED
    assert full.ages.tcb_info_s == 7 * DAY_S
    assert full.tcb.statuses == {"UpToDate", "SWHardeningNeeded"}
    assert "signed by 3 builders" in "\n".join(full.explain())
    week = facts_of(evidence_of(collateral={"issued_s": NOW_S - 8 * DAY_S}))
    with pytest.raises(StaleEvidence):
        full.judge(week, now=NOW)


def test_own_measurements_need_no_builder():
    own = parse('level = "simulated"\n[[image]]\nmanifest = "own.json"\n', FILES)
    assert own.judge(facts_of(), now=NOW).level is TrustLevel.SIMULATED


@pytest.mark.parametrize(
    "text",
    [
        "",
        "level = 1",
        'level = "confidentail"',
        'level = "confidential"\nlevle = 1',
        'level = "confidential"\n[tcb]\nstatus = []',
        'level = "confidential"\n[tcb]\nstatuses = ["Fine"]',
        'level = "confidential"\n[tcb]\nstatuses = "UpToDate"',
        'level = "confidential"\n[tcb]\nstatuses = ["Revoked"]',
        'level = "confidential"\n[ages]\ntcb_info_days = 9000',
        'level = "confidential"\n[ages]\ntcb_info_days = 1.5',
        'level = "confidential"\n[ages]\ntcb_info_days = true',
        'level = "confidential"\n[guest]\nmr_seam = ["00"]',
        'level = "confidential"\n[ppid]\nallow_files = ["bad.txt"]',
        'level = "confidential"\n[ppid]\nallow_files = ["binary"]',
        'level = "confidential"\n[[image]]\npath = "x"',
        'level = "confidential"\nimage = 1',
        'level = "confidential"\ntcb = 1',
        "level = ",
        "#" * 300_000,
    ],
)
def test_a_policy_file_with_a_mistake_is_refused_not_read_leniently(text):
    with pytest.raises(ConfigError):
        parse(text, {"bad.txt": b"1234", "binary": b"\xff\xfe"})


def test_an_empty_allow_file_allows_nobody():
    with pytest.raises(TrustRefused) as refused:
        parse(FULL, {**FILES, "hosts.txt": b"# none yet\n"}).judge(facts_of(), now=NOW)
    assert refused.value.reason == "ppid.unlisted"


def test_releases_without_builders_or_threshold_are_refused():
    for gone in ("threshold = 2\n", "threshold = 2"):
        with pytest.raises(TrustRefused):
            parse(FULL.replace(gone, ""), FILES)


@pytest.mark.parametrize("network", [Network.MAINNET, Network.TESTNET])
def test_a_policy_file_cannot_accept_simulated_evidence_outside_devnet(network):
    with pytest.raises(ConfigError):
        parse('level = "simulated"', network=network)
    with pytest.raises(TrustRefused):
        parse('level = "open"', network=network).judge(facts_of(), now=NOW)


# --- facts and ratchets ---


def test_facts_live_ten_minutes_and_not_longer_than_what_they_rest_on():
    facts = facts_of()
    assert facts.expires_ns == NOW + 600 * SECOND_NS
    short = facts_of(evidence_of(collateral={"issued_s": NOW_S - 60, "life_s": 180}))
    assert short.expires_ns == (NOW_S + 120) * SECOND_NS


def test_a_ratchet_advances_with_what_is_newer_and_refuses_what_is_older():
    newer = facts_of()
    assert newer.ratchet["sim/number/qe"] == 18
    seen = dict(newer.ratchet)
    again = verifier().verify(evidence_of(), expected(), now=NOW, seen=seen)
    assert again.ratchet == {}
    day_old = evidence_of(collateral={"issued_s": NOW_S - DAY_S})
    verifier().verify(day_old, expected(), now=NOW, seen=seen)  # within the grace
    three_days_old = evidence_of(collateral={"issued_s": NOW_S - 3 * DAY_S})
    with pytest.raises(StaleEvidence):
        verifier().verify(three_days_old, expected(), now=NOW, seen=seen)
    verifier().verify(three_days_old, expected(), now=NOW, seen={})


def test_simulated_and_real_evidence_have_ratchets_of_their_own():
    facts = facts_of()
    real = ratchet.values(facts.quote, facts.gpus, is_hardware=True)
    assert not set(real) & set(facts.ratchet)


def test_a_verified_rim_is_not_verified_twice_but_still_expires():
    judge, trail = verifier(), Trail()
    judge.verify(evidence_of(), expected(), now=NOW, seen={})
    judge.verify(evidence_of(), expected(), now=NOW, seen={}, trail=trail)
    assert any("verified before" in check.detail for check in trail.checks)
