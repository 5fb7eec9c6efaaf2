"""From a provider's machine to a client's verdict: single challenges, batches, and the operator's self-test."""

import hashlib
from dataclasses import replace

import pytest
import trio

from cocoon.adapters.tee import selftest
from cocoon.adapters.tee.software import SoftwareEnclave, software_anchors
from cocoon.attest import statement as st
from cocoon.attest.evidence import assemble, decode_hardware, missing_parts
from cocoon.attest.nonces import commit
from cocoon.attest.proving import make_hardware, make_statement
from cocoon.attest.verifier import SessionEvidence, Verifier
from cocoon.errors import AttestationError, BindingMismatch, TrustRefused
from cocoon.types import Network, TrustLevel
from tests.fakes.attestation import (
    MODEL,
    NONCE,
    NOW,
    NOW_S,
    OPERATOR,
    PAYOUT,
    PEER,
    SEALING_KEY,
    enclave,
    expected,
    policy,
)
from tests.fakes.attestation import verifier as make_verifier
from tests.unit.test_attest_cli import cocoon_verify


class PretendedHardware(SoftwareEnclave):
    """The software TEE's formats under the hardware's mode and domains: what a thief of Intel's key would make."""

    @property
    def mode(self):
        return st.MODE_TDX_GPU if self.with_gpu else st.MODE_TDX


def prove(nonces, *, by_digest=False, with_gpu=True, machine=None, network=Network.DEVNET):
    """Evidence for several clients from one quote: [(session evidence, hardware bytes)], blobs."""
    machine = enclave(with_gpu=with_gpu) if machine is None else machine

    async def main():
        root, paths = commit(nonces)
        statement, gpus = await make_statement(
            machine,
            network=network,
            nonce=root,
            peer=PEER.verify_key.encode(),
            sealing_suite=st.SUITE_X25519,
            sealing_key=SEALING_KEY,
            operator=OPERATOR.verify_key.encode(),
            payout=PAYOUT,
            models=[MODEL],
        )
        return statement, *await make_hardware(machine, statement, gpus, paths=paths, by_digest=by_digest)

    statement, messages, blobs = trio.run(main)
    signed = st.signed_statement(network, statement)
    evidence = SessionEvidence(
        statement=statement,
        operator_signature=OPERATOR.sign(signed).signature,
        peer_signature=PEER.sign(signed).signature,
        bundle=None,
    )
    return evidence, messages, blobs


@pytest.mark.parametrize("with_gpu", [True, False])
def test_what_a_provider_proves_a_client_accepts(with_gpu):
    evidence, (message,), _ = prove([NONCE], with_gpu=with_gpu)
    sent = replace(evidence, bundle=assemble(decode_hardware(message), {}))
    facts = make_verifier().verify(sent, expected(), now=NOW, seen={})
    assert policy().judge(facts, now=NOW).level is TrustLevel.SIMULATED
    assert len(facts.gpus) == int(with_gpu)


def hardware_session(with_gpu):
    machine = PretendedHardware(models=[MODEL], clock_s=lambda: NOW_S, with_gpu=with_gpu)
    evidence, (message,), _ = prove([NONCE], machine=machine, network=Network.MAINNET)
    return replace(evidence, bundle=assemble(decode_hardware(message), {}))


TRUSTED_AS_HARDWARE = replace(software_anchors(Network.DEVNET), is_hardware=True)


@pytest.mark.parametrize(("with_gpu", "level"), [(True, TrustLevel.CONFIDENTIAL), (False, TrustLevel.CPU_CONFIDENTIAL)])
def test_hardware_modes_reach_their_levels_under_roots_that_count_as_hardware(with_gpu, level):
    judge = Verifier(Network.MAINNET, anchors=TRUSTED_AS_HARDWARE)
    facts = judge.verify(hardware_session(with_gpu), expected(network=Network.MAINNET), now=NOW, seen={})
    assert facts.level is level
    assert facts.is_hardware
    assert not any(name.startswith("sim/") for name in facts.ratchet)
    demand = policy(level=TrustLevel.CPU_CONFIDENTIAL, network=Network.MAINNET)
    assert demand.judge(facts, now=NOW).level is level
    strict = policy(level=TrustLevel.CONFIDENTIAL, network=Network.MAINNET)
    if with_gpu:
        strict.judge(facts, now=NOW)
    else:
        with pytest.raises(TrustRefused):
            strict.judge(facts, now=NOW)


@pytest.mark.parametrize("with_gpu", [True, False])
def test_the_same_session_is_refused_under_the_real_roots(with_gpu):
    with pytest.raises(AttestationError):
        Verifier(Network.MAINNET).verify(
            hardware_session(with_gpu), expected(network=Network.MAINNET), now=NOW, seen={}
        )


def test_a_gpu_mode_without_gpu_and_a_cpu_mode_with_one_are_refused():
    class Liar(PretendedHardware):
        mode = property(lambda self: st.MODE_TDX if self.with_gpu else st.MODE_TDX_GPU)

    for with_gpu in (True, False):
        machine = Liar(models=[MODEL], clock_s=lambda: NOW_S, with_gpu=with_gpu)
        evidence, (message,), _ = prove([NONCE], machine=machine, network=Network.MAINNET)
        sent = replace(evidence, bundle=assemble(decode_hardware(message), {}))
        judge = Verifier(Network.MAINNET, anchors=TRUSTED_AS_HARDWARE)
        with pytest.raises(BindingMismatch) as refused:
            judge.verify(sent, expected(network=Network.MAINNET), now=NOW, seen={})
        assert refused.value.reason == "gpu.count"


def test_simulated_bindings_do_not_pass_as_hardware_even_under_the_same_roots():
    """The domains alone keep them apart: a simulated quote over S does not carry the hardware's report data."""
    machine = PretendedHardware(models=[MODEL], clock_s=lambda: NOW_S)
    sent = hardware_session(True)
    simulated = machine.quote(machine.fields(st.report_data(sent.statement, simulated=True)))
    bent = replace(sent, bundle=replace(sent.bundle, quote=simulated))
    with pytest.raises(BindingMismatch) as refused:
        Verifier(Network.MAINNET, anchors=TRUSTED_AS_HARDWARE).verify(
            bent, expected(network=Network.MAINNET), now=NOW, seen={}
        )
    assert refused.value.reason == "binding.report-data"


def test_one_quote_answers_many_clients_and_each_only_its_own():
    nonces = [hashlib.sha256(bytes([i])).digest() for i in range(5)]
    evidence, messages, _ = prove(nonces)
    for nonce, message in zip(nonces, messages, strict=True):
        sent = replace(evidence, bundle=assemble(decode_hardware(message), {}))
        make_verifier().verify(sent, expected(nonce=nonce), now=NOW, seen={})
    stranger = replace(evidence, bundle=assemble(decode_hardware(messages[0]), {}))
    with pytest.raises(BindingMismatch):
        make_verifier().verify(stranger, expected(nonce=bytes(32)), now=NOW, seen={})


def test_static_parts_are_fetched_once_and_known_ones_not_at_all():
    evidence, (message,), blobs = prove([NONCE], by_digest=True)
    assert len(message) < 20_000
    hardware = decode_hardware(message)
    assert {digest for _, digest in missing_parts(hardware, {})} == set(blobs)
    assert missing_parts(hardware, blobs) == ()
    make_verifier().verify(replace(evidence, bundle=assemble(hardware, blobs)), expected(), now=NOW, seen={})


def test_the_operators_self_test_writes_a_file_that_verifies(tmp_path, capsys):
    out = tmp_path / "self.evidence"
    assert selftest.main([str(out), "--software", "--model", MODEL.hex()]) == 0
    code, answer = cocoon_verify(out)
    assert code == 0, answer["message"]
    assert answer["claims"]["level"] == "simulated"
    assert selftest.main([str(out), "--software", "--model", "12"]) == 1
    assert selftest.main([str(out), "--no-gpu", "--model", MODEL.hex()]) == 1
    assert "error:" in capsys.readouterr().err
