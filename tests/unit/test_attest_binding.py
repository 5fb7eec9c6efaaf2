"""Byte vectors of what ties quote, GPU, keys and statement together: a second implementation must match these."""

import hashlib
import json
from pathlib import Path

import pytest

from cocoon.attest import statement as st
from cocoon.attest.gpu.verify import evidence_digest
from cocoon.attest.nonces import commit
from cocoon.attest.release import release_message
from cocoon.types import Network

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "attestation" / "binding.json").read_text())
N, P, E, O = (bytes([i]) * 32 for i in range(1, 5))  # noqa: E741 - the design's names


def statement():
    return st.encode_statement(
        st.Statement(
            version=1,
            mode=st.MODE_TDX_GPU,
            network=int(Network.MAINNET),
            nonce=N,
            peer=P,
            sealing_suite=st.SUITE_X25519,
            sealing_key=E,
            operator=O,
            payout=bytes([5]) * 32,
            image=bytes([6]) * 32,
            config=bytes([7]) * 32,
            models=[bytes([8]) * 32],
            gpus=[evidence_digest(b"report", b"chain")],
        )
    )


def computed():
    data = statement()
    root, paths = commit([N, P, E])
    return {
        "statement": data.hex(),
        "statement_digest": st.statement_digest(data).hex(),
        "statement_signed": st.signed_statement(Network.MAINNET, data).hex(),
        "report_data": st.report_data(data, simulated=False).hex(),
        "report_data_simulated": st.report_data(data, simulated=True).hex(),
        "gpu_nonce": st.gpu_nonce(N, P, E, simulated=False).hex(),
        "gpu_nonce_simulated": st.gpu_nonce(N, P, E, simulated=True).hex(),
        "gpu_evidence_digest": evidence_digest(b"report", b"chain").hex(),
        "nonce_root_of_three": root.hex(),
        "nonce_path_of_second": [sibling.hex() for sibling in paths[1].siblings],
        "release_message_of_braces": release_message("{}").hex(),
    }


@pytest.mark.parametrize("name", sorted(VECTORS))
def test_each_byte_vector_is_met(name):
    assert computed()[name] == VECTORS[name]


def test_the_domains_are_the_ones_of_the_design():
    data = statement()
    assert st.report_data(data, simulated=False) == hashlib.sha512(b"cocoon/report-data/v1\0" + data).digest()
    assert st.gpu_nonce(N, P, E, simulated=False) == hashlib.sha256(b"cocoon/gpu-nonce/v1\0" + N + P + E).digest()


def test_simulated_and_real_bindings_never_meet():
    data = statement()
    assert st.report_data(data, simulated=True) != st.report_data(data, simulated=False)
    assert st.gpu_nonce(N, P, E, simulated=True) != st.gpu_nonce(N, P, E, simulated=False)


def test_length_prefixes_keep_report_and_chain_apart():
    assert evidence_digest(b"ab", b"c") != evidence_digest(b"a", b"bc")
