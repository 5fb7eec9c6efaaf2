"""What a person reads of a verdict: every check by its name, in order, and a refusal under the name that stands here.

These lists are pinned: a check that vanishes, changes its name or moves before a cheaper one is a change on purpose.
"""

from __future__ import annotations

import pytest

from cocoon.adapters.tee.software import software_anchors
from cocoon.attest import statement as st
from cocoon.attest import verifier as verifying
from cocoon.attest.tdx import platform_of
from cocoon.attest.trail import Trail
from cocoon.attest.verifier import Verifier
from cocoon.errors import AttestationError, TrustRefused
from cocoon.types import Network, TrustLevel
from tests.fakes.attestation import NOW, NVIDIA, enclave, evidence_of, expected, facts_of, policy, verifier

STATEMENT = "statement.network nonce.path statement.signature statement.image statement.mode"
QUOTE = """
    evidence.missing level.simulated-outside-devnet tdx.format collateral.format collateral.tcb-info-future
    collateral.qe-identity-future collateral.pck-crl-future collateral.root-crl-future tdx.debug tdx.service-td
    tdx.module-signer tdx.signature-chain tdx.root tdx.chain-text tdx.same-reading tdx.fmspc tdx.tcb-revoked
    binding.report-data eventlog.format eventlog.replay eventlog.replay eventlog.replay eventlog.replay
    eventlog.unproven eventlog.seal binding.image binding.config binding.models gpu.count
"""
RIM = "rim.xml rim.signature-form rim.digest rim.chain rim.signature rim.measurements"
GPU = """
    binding.gpu-digest gpu.format gpu.chain-format gpu.chain gpu.signature gpu.chip gpu.feature gpu.fwid-missing
    gpu.fwid gpu.nonce gpu.rim-version gpu.rim-twice gpu.rim-version gpu.rim-twice gpu.rim-missing-driver
    gpu.rim-missing-vbios gpu.rim-conflict gpu.rim-conflict gpu.measurements gpu.crl-root gpu.crl-identity gpu.ocsp
    gpu.distinct
"""
RATCHET = """
    ratchet.tcb-number ratchet.qe-number ratchet.tcb ratchet.qe ratchet.pck-crl ratchet.root-crl ratchet.gpu-crl-root
    ratchet.gpu-crl-identity
"""
POLICY = """
    level.network level.simulated-outside-devnet level.too-weak facts.expired policy.empty tdx.tcb-status
    tdx.tcb-advisories tdx.tcb-evaluation tdx.attributes tdx.xfam tdx.mrseam collateral.tcb-info-too-old
    collateral.qe-identity-too-old collateral.pck-crl-too-old collateral.expired gpu.crl-too-old gpu.crl-too-old
    gpu.ocsp-too-old gpu.expired image.none-accepted policy.empty release.valid image.mrtd image.rtmr0 image.rtmr1
    image.rtmr2 image.mr-config-id image.mr-owner image.rtmr3 image.models ppid.denied ppid.unlisted gpu.driver
"""


def names(trail):
    return [check.name for check in trail]


def open_session():
    return evidence_of(statement={"mode": st.MODE_OPEN, "gpus": []}, bundle=lambda _: None)


def test_a_good_session_passes_exactly_these_checks_in_this_order():
    checks = facts_of().checks
    assert names(checks) == f"{STATEMENT} {QUOTE} {RIM} {RIM} {GPU} {RATCHET}".split()
    assert all(check.passed for check in checks)


def test_a_second_session_names_its_known_reference_values_and_checks_all_else_again():
    client = verifier()
    client.verify(evidence_of(), expected(), now=NOW, seen={})
    again = client.verify(evidence_of(), expected(), now=NOW, seen={})
    assert names(again.checks) == f"{STATEMENT} {QUOTE} rim.signature rim.signature {GPU} {RATCHET}".split()
    assert sum("verified before" in check.detail for check in again.checks) == 2


def test_a_session_without_an_enclave_passes_the_checks_of_its_statement():
    facts = facts_of(open_session())
    assert names(facts.checks) == f"{STATEMENT} statement.mode-evidence".split()
    assert (facts.level, facts.quote, facts.gpus, facts.runtime) == (TrustLevel.OPEN, None, (), ())


def test_the_policy_judges_exactly_these_things_in_this_order():
    trail = Trail()
    policy().judge(facts_of(), now=NOW, trail=trail)
    assert names(trail.checks) == POLICY.split()


def test_every_refusal_is_the_last_line_of_its_trail_with_its_name_and_reason():
    trail = Trail()
    with pytest.raises(AttestationError) as caught:
        verifier().verify(evidence_of(), expected(payout=bytes(32)), now=NOW, seen={}, trail=trail)
    last = trail.checks[-1]
    assert (last.name, last.passed) == (caught.value.reason, False) == ("statement.mismatch", False)
    assert last.detail == str(caught.value)
    assert "payout" in last.detail


def test_a_refusal_that_no_check_recorded_is_recorded_with_its_text(monkeypatch):
    def elsewhere(*_):
        raise TrustRefused("said elsewhere", reason="some.where")

    monkeypatch.setattr(verifying.ratchet, "check", elsewhere)
    trail = Trail()
    with pytest.raises(TrustRefused):
        verifier().verify(evidence_of(), expected(), now=NOW, seen={}, trail=trail)
    assert (trail.checks[-1].name, trail.checks[-1].detail) == ("some.where", "said elsewhere")


@pytest.mark.parametrize("network", [Network.MAINNET, Network.TESTNET])
def test_software_anchors_outside_the_devnet_are_refused_by_name(network):
    with pytest.raises(TrustRefused) as caught:
        Verifier(network, software=software_anchors(Network.DEVNET))
    assert caught.value.reason == "level.simulated-outside-devnet"


def test_verified_reference_values_are_kept_within_a_bound_and_the_oldest_go_first(monkeypatch):
    monkeypatch.setattr(verifying, "RIM_CACHE_MAX", 2)
    client = verifier()
    client.verify(evidence_of(), expected(), now=NOW, seen={})
    driver, vbios = client._rims
    assert len(client._rims) == 2  # exactly as many as there may be
    client._rims[True, b"older"] = client._rims.pop(driver)
    client.verify(evidence_of(), expected(), now=NOW, seen={})
    assert list(client._rims) == [driver, vbios]
    assert len(NVIDIA.rims()) == 2


@pytest.mark.parametrize(
    "sent",
    [
        evidence_of(statement={"mode": st.MODE_OPEN, "gpus": []}),
        evidence_of(statement={"mode": st.MODE_OPEN, "gpus": [bytes(48)]}, bundle=lambda _: None),
    ],
    ids=["evidence beside an open statement", "a GPU in an open statement"],
)
def test_a_statement_that_claims_nothing_comes_with_nothing(sent):
    with pytest.raises(AttestationError) as refused:
        facts_of(sent)
    assert refused.value.reason == "statement.mode-evidence"


def test_a_refusal_stands_in_its_trail_once():
    for changes in ({"payout": bytes(32)}, {"nonce": bytes(32)}, {"image": bytes(32)}):
        trail = Trail()
        with pytest.raises(AttestationError):
            verifier().verify(evidence_of(), expected(**changes), now=NOW, seen={}, trail=trail)
        assert [check.passed for check in trail.checks].count(False) == 1


def test_a_provider_learns_its_platform_from_its_own_quote():
    machine = enclave()
    quote = machine.quote(machine.fields(bytes(64)))
    assert platform_of(quote) == (machine.intel.fmspc, "platform")
    with pytest.raises(AttestationError) as refused:
        platform_of(quote[:600])
    assert refused.value.reason == "tdx.fmspc"
