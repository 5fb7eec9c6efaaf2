"""One simulated session's evidence, every step of which a test can bend before it is signed or after.

`evidence_of(...)` makes a session that verifies; each keyword changes one thing. Clock and nonce are fixed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
from nacl.signing import SigningKey

from cocoon.adapters.tee.software import SoftwareEnclave, software_anchors, software_release
from cocoon.adapters.tee.software_intel import SoftwareIntel
from cocoon.adapters.tee.software_nvidia import SoftwareNvidia
from cocoon.attest import statement as st
from cocoon.attest.evidence import Bundle, GpuEvidence
from cocoon.attest.facts import Facts
from cocoon.attest.gpu.verify import evidence_digest
from cocoon.attest.images import ImagePolicy
from cocoon.attest.policy import TrustPolicy
from cocoon.attest.trail import Trail
from cocoon.attest.verifier import Expected, SessionEvidence, Verifier
from cocoon.types import SECOND_NS, Network, TrustLevel

NOW_S = 1_790_000_000
NOW = NOW_S * SECOND_NS
DAY_S = 24 * 3600
MODEL = hashlib.sha256(b"model").digest()
OPERATOR, PEER = SigningKey(b"O" * 32), SigningKey(b"P" * 32)
NONCE = hashlib.sha256(b"nonce").digest()
SEALING_KEY = hashlib.sha256(b"sealing key").digest()
PAYOUT = hashlib.sha256(b"payout").digest()
INTEL, NVIDIA = SoftwareIntel(), SoftwareNvidia()
OTHER_INTEL, OTHER_NVIDIA = SoftwareIntel(seed=b"mallory"), SoftwareNvidia(seed=b"mallory")


def drive(coroutine: Any) -> Any:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waited")


def enclave(**fields: Any) -> SoftwareEnclave:
    """A simulated machine at the fixed time."""
    return SoftwareEnclave(**{"models": [MODEL], "clock_s": lambda: NOW_S, **fields})


def evidence_of(
    machine: SoftwareEnclave | None = None,
    *,
    nonce: bytes = NONCE,
    gpu_nonce: bytes | None = None,
    report: dict[str, Any] | None = None,  # keywords of SoftwareNvidia.report
    gpus: Callable[[tuple[GpuEvidence, ...]], tuple[GpuEvidence, ...]] | None = None,  # before S commits to them
    statement: dict[str, Any] | None = None,  # fields of S, before it is signed
    operator: SigningKey = OPERATOR,
    peer: SigningKey = PEER,
    report_data: bytes | None = None,
    fields: dict[str, Any] | None = None,  # fields of the TD report
    collateral: dict[str, Any] | None = None,  # keywords of SoftwareIntel.collateral
    bundle: Callable[[Bundle], Bundle | None] | None = None,  # after everything is made
    session: Callable[[SessionEvidence], SessionEvidence] | None = None,
) -> SessionEvidence:
    """What the provider sends."""
    machine = enclave() if machine is None else machine
    asked = (
        st.gpu_nonce(nonce, PEER.verify_key.encode(), SEALING_KEY, simulated=True) if gpu_nonce is None else gpu_nonce
    )
    if report is None:
        shown = drive(machine.gpu_evidence(asked))
    else:
        made = machine.nvidia.report(machine.device, asked, **report)
        shown = (GpuEvidence(report=made, chain=machine.device.chain),)
    shown = shown if gpus is None else gpus(shown)
    said = st.Statement(
        version=st.STATEMENT_VERSION,
        mode=machine.mode,
        network=int(Network.DEVNET),
        nonce=nonce,
        peer=PEER.verify_key.encode(),
        sealing_suite=st.SUITE_X25519,
        sealing_key=SEALING_KEY,
        operator=OPERATOR.verify_key.encode(),
        payout=PAYOUT,
        image=machine.image,
        config=machine.config,
        models=list(machine.models),
        gpus=[evidence_digest(gpu.report, gpu.chain) for gpu in shown],
    )
    said = msgspec.structs.replace(said, **(statement or {}))
    data = st.encode_statement(said)
    bound = st.report_data(data, simulated=True) if report_data is None else report_data
    parts = drive(machine.bundle(report_data=bound, gpus=shown))
    if fields is not None:
        parts = replace(parts, quote=machine.quote(replace(machine.fields(bound), **fields)))
    if collateral is not None:
        parts = replace(parts, collateral=machine.intel.collateral(**{"issued_s": NOW_S - 60, **collateral}))
    message = st.signed_statement(Network.DEVNET, data)
    sent = SessionEvidence(
        statement=data,
        operator_signature=operator.sign(message).signature,
        peer_signature=peer.sign(message).signature,
        bundle=parts if bundle is None else bundle(parts),
    )
    return sent if session is None else session(sent)


def expected(**fields: Any) -> Expected:
    """What the client knows."""
    return Expected(
        **{
            "network": Network.DEVNET,
            "nonce": NONCE,
            "peer": PEER.verify_key.encode(),
            "operator": OPERATOR.verify_key.encode(),
            "model": MODEL,
            "payout": PAYOUT,
            **fields,
        }
    )


def verifier(**fields: Any) -> Verifier:
    """A client's verifier on devnet that takes the software TEE's public roots."""
    return Verifier(Network.DEVNET, **{"software": software_anchors(Network.DEVNET), **fields})


def policy(**fields: Any) -> TrustPolicy:
    """A policy that accepts the software TEE's own release, and nothing weaker."""
    return TrustPolicy(
        **{
            "level": TrustLevel.SIMULATED,
            "network": Network.DEVNET,
            "images": ImagePolicy(releases=(software_release(),)),
            **fields,
        }
    )


def facts_of(sent: SessionEvidence | None = None, *, now: int = NOW, trail: Trail | None = None) -> Facts:
    """Verified facts of a session, by default the good one."""
    return verifier().verify(sent or evidence_of(), expected(), now=now, seen={}, trail=trail)
