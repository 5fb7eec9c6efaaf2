"""The provider's half: a statement and the hardware evidence for it, in the one order that binds them together.

GPU reports answer a nonce of N, P and E; their digests go into S; the quote carries the hash of S. Signing S with O
and P is the caller's part, as it is at every trust level.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from ..types import Digest, Network
from .enclave import Enclave
from .evidence import GpuEvidence, encode_bundle
from .gpu.verify import evidence_digest
from .nonces import NoncePath
from .statement import MODE_SIMULATED, STATEMENT_VERSION, Statement, encode_statement, gpu_nonce, report_data


async def make_statement(
    enclave: Enclave,
    *,
    network: Network,
    nonce: bytes,
    peer: bytes,
    sealing_suite: int,
    sealing_key: bytes,
    operator: bytes,
    payout: bytes,
    models: Sequence[Digest],
) -> tuple[bytes, tuple[GpuEvidence, ...]]:
    """S in bytes, ready to be signed and sent verbatim, and the GPU evidence that it commits to.

    `nonce` is the client's, or the root over several clients' (`nonces.commit`). Raises `Unavailable`.
    """
    simulated = enclave.mode == MODE_SIMULATED
    gpus = await enclave.gpu_evidence(gpu_nonce(nonce, peer, sealing_key, simulated=simulated))
    statement = Statement(
        version=STATEMENT_VERSION,
        mode=enclave.mode,
        network=int(network),
        nonce=nonce,
        peer=peer,
        sealing_suite=sealing_suite,
        sealing_key=sealing_key,
        operator=operator,
        payout=payout,
        image=enclave.image,
        config=enclave.config,
        models=list(models),
        gpus=[evidence_digest(gpu.report, gpu.chain) for gpu in gpus],
    )
    return encode_statement(statement), gpus


async def make_hardware(
    enclave: Enclave,
    statement: bytes,
    gpus: tuple[GpuEvidence, ...],
    *,
    paths: Sequence[NoncePath] = (NoncePath(index=0, siblings=()),),
    by_digest: bool = False,
) -> tuple[tuple[bytes, ...], dict[Digest, bytes]]:
    """Hardware evidence for S: one message per nonce path, from a single quote, and the blobs named in them.

    With `by_digest` the static parts are only named, and the blobs have to be served. Raises `Unavailable`.
    """
    simulated = enclave.mode == MODE_SIMULATED
    bundle = await enclave.bundle(report_data=report_data(statement, simulated=simulated), gpus=gpus)
    messages = tuple(
        encode_bundle(replace(bundle, nonce_index=path.index, nonce_path=path.siblings), by_digest=by_digest)
        for path in paths
    )
    return messages, {hashlib.sha256(data).digest(): data for _, data in bundle.parts()}
