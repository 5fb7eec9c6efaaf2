"""From a provider's machine to a client's verdict: single challenges, batches, and the operator's self-test."""

import hashlib
from dataclasses import replace

import pytest
import trio

from cocoon.adapters.tee import selftest
from cocoon.attest import statement as st
from cocoon.attest.evidence import assemble, decode_hardware, missing_parts
from cocoon.attest.nonces import commit
from cocoon.attest.proving import make_hardware, make_statement
from cocoon.attest.verifier import SessionEvidence
from cocoon.errors import BindingMismatch
from cocoon.types import Network, TrustLevel
from tests.fakes.attestation import MODEL, NONCE, NOW, OPERATOR, PAYOUT, PEER, SEALING_KEY, enclave, expected, policy
from tests.fakes.attestation import verifier as make_verifier
from tests.unit.test_attest_cli import cocoon_verify


def prove(nonces, *, by_digest=False, with_gpu=True):
    """Evidence for several clients from one quote: [(session evidence, hardware bytes)], blobs."""
    machine = enclave(with_gpu=with_gpu)

    async def main():
        root, paths = commit(nonces)
        statement, gpus = await make_statement(
            machine,
            network=Network.DEVNET,
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
    signed = st.signed_statement(Network.DEVNET, statement)
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
