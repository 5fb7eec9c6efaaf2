"""What a provider answers to `Hello`: the statement S, signed by O and P. One path for all trust levels (rule K4).

At trust level `open` there is no hardware evidence and S says so in its mode; S is signed all the same, so a key
swapped on the way is caught at every level. In an enclave the GPUs answer a nonce made of N, P and E, their reports'
digests go into S, and the quote is made over the hash of S. The large static parts (collateral, event logs, RIMs,
revocation lists) are named by digest and served as blobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import trio

from ..attest.enclave import Enclave
from ..attest.evidence import encode_bundle
from ..attest.gpu.verify import evidence_digest
from ..attest.statement import (
    MODE_OPEN,
    MODE_SIMULATED,
    MODE_TDX,
    MODE_TDX_GPU,
    STATEMENT_VERSION,
    SUITE_X25519,
    Statement,
    encode_statement,
    gpu_nonce,
    report_data,
    signed_statement,
)
from ..blobs import BlobShelf
from ..errors import LimitExceeded
from ..ports import Network as PeerNetwork
from ..ports import Signer
from ..types import NO_DIGEST, SECOND_NS, Digest, Network, PeerId, TeeKind

HELLOS_PER_PEER_MAX: Final = 20
"""A session says Hello once in ten minutes; reconnecting clients need a few more. Evidence costs signatures (S6)."""

HELLO_REFILL_NS: Final = 6 * SECOND_NS
PEERS_REMEMBERED_MAX: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedStatement:
    """S and what proves it, ready to send."""

    statement: bytes
    operator_signature: bytes
    peer_signature: bytes
    hardware: bytes


class EvidenceMaker:
    """Makes one signed statement per Hello; with an enclave, one at a time (quotes take tens of milliseconds)."""

    def __init__(
        self,
        *,
        network_id: Network,
        network: PeerNetwork,
        signer: Signer,
        payout: bytes,
        models: list[Digest],
        enclave: Enclave | None,
        shelf: BlobShelf,
    ) -> None:
        self._network_id = network_id
        self._network = network
        self._signer = signer
        self._payout = payout
        self._models = models
        self._enclave = enclave
        self._shelf = shelf
        self._one_at_a_time = trio.Lock()

    @property
    def tee(self) -> TeeKind:
        """What our offers may promise."""
        return TeeKind.NONE if self._enclave is None else _TEE_OF_MODE[self._enclave.mode]

    @property
    def image(self) -> Digest:
        """The image digest of our offers; zeros without a TEE."""
        return NO_DIGEST if self._enclave is None else self._enclave.image

    async def evidence(self, *, nonce: bytes, sealing_key: bytes) -> SignedStatement:
        """S for this nonce and the present sealing key, with O's and P's signatures. Raises `Unavailable`."""
        if self._enclave is None:
            return await self._sign(self._statement(nonce, sealing_key, mode=MODE_OPEN, gpus=[]), hardware=b"")
        async with self._one_at_a_time:
            return await self._from_enclave(self._enclave, nonce, sealing_key)

    async def _from_enclave(self, enclave: Enclave, nonce: bytes, sealing_key: bytes) -> SignedStatement:
        simulated = enclave.mode == MODE_SIMULATED
        gpus = await enclave.gpu_evidence(gpu_nonce(nonce, self._network.peer_key, sealing_key, simulated=simulated))
        digests = [evidence_digest(gpu.report, gpu.chain) for gpu in gpus]
        statement = self._statement(nonce, sealing_key, mode=enclave.mode, gpus=digests)
        bundle = await enclave.bundle(report_data=report_data(statement, simulated=simulated), gpus=gpus)
        self._shelf.put(data for _, data in bundle.parts())
        return await self._sign(statement, hardware=encode_bundle(bundle, by_digest=True))

    def _statement(self, nonce: bytes, sealing_key: bytes, *, mode: int, gpus: list[bytes]) -> bytes:
        enclave = self._enclave
        return encode_statement(
            Statement(
                version=STATEMENT_VERSION,
                mode=mode,
                network=int(self._network_id),
                nonce=nonce,
                peer=self._network.peer_key,
                sealing_suite=SUITE_X25519,
                sealing_key=sealing_key,
                operator=self._signer.operator,
                payout=self._payout,
                image=enclave.image if enclave is not None else NO_DIGEST,
                config=enclave.config if enclave is not None else NO_DIGEST,
                models=self._models,
                gpus=gpus,
            )
        )

    async def _sign(self, statement: bytes, *, hardware: bytes) -> SignedStatement:
        return SignedStatement(
            statement=statement,
            operator_signature=await self._signer.sign_statement(statement),
            peer_signature=self._network.sign(signed_statement(self._network_id, statement)),
            hardware=hardware,
        )


_TEE_OF_MODE: Final = {
    MODE_SIMULATED: TeeKind.SIMULATED,
    MODE_TDX: TeeKind.TDX,
    MODE_TDX_GPU: TeeKind.TDX | TeeKind.NVIDIA_CC,
}


class HelloLimiter:
    """A token bucket per peer, so that nobody makes us sign without end."""

    def __init__(self) -> None:
        self._buckets: dict[PeerId, tuple[int, int]] = {}  # peer → (tokens, as of)

    def take(self, peer: PeerId, *, now: int) -> None:
        """Count one Hello of this peer. Raises `LimitExceeded` when it has had its share."""
        tokens, since = self._buckets.pop(peer, (HELLOS_PER_PEER_MAX, now))
        refill = (now - since) // HELLO_REFILL_NS
        tokens = min(HELLOS_PER_PEER_MAX, tokens + refill)
        since = now if tokens == HELLOS_PER_PEER_MAX else since + refill * HELLO_REFILL_NS
        if tokens == 0:
            self._buckets[peer] = (0, since)
            raise LimitExceeded("too many handshakes from one peer")
        self._buckets[peer] = (tokens - 1, since)
        while len(self._buckets) > PEERS_REMEMBERED_MAX:
            del self._buckets[next(iter(self._buckets))]
