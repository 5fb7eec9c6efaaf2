"""What a provider answers to `Hello`: the statement S, signed by O and P. One path for all trust levels (rule K4).

At trust level `open` there is no hardware evidence and S says so in its mode; S is signed all the same, so a key
swapped on the way is caught at every level. In an enclave the GPUs answer a nonce made of N, P and E, their reports'
digests go into S, and the quote is made over the hash of S. The large static parts (collateral, event logs, RIMs,
revocation lists) are named by digest and served as blobs.

A quote takes about 50 ms and the device makes one at a time. So whoever waits while one is being made shares the next:
S then holds the Merkle root over all their nonces, and each client gets the path to its own (rule S6).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import trio

from ..attest import limits
from ..attest.enclave import Enclave
from ..attest.nonces import commit
from ..attest.proving import make_hardware, make_statement
from ..attest.statement import (
    MODE_OPEN,
    MODE_SIMULATED,
    MODE_TDX,
    MODE_TDX_GPU,
    STATEMENT_VERSION,
    SUITE_X25519,
    Statement,
    encode_statement,
    signed_statement,
)
from ..blobs import BlobShelf
from ..errors import CocoonError, LimitExceeded, Unavailable
from ..ports import Clock, Signer
from ..ports import Network as PeerNetwork
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


@dataclass(slots=True, kw_only=True, eq=False)
class _Asked:
    """A Hello that waits for its evidence."""

    nonce: bytes
    sealing_key: bytes
    answer: SignedStatement | None = field(default=None, repr=False)
    failure: str | None = None


class EvidenceMaker:
    """Makes one signed statement per Hello; in an enclave, one for all the Hellos that wait together."""

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
        clock: Clock,
    ) -> None:
        self._network_id = network_id
        self._network = network
        self._signer = signer
        self._payout = payout
        self._models = models
        self._enclave = enclave
        self._shelf = shelf
        self._clock = clock
        self.made_ns: int | None = None  # when the newest evidence was handed out
        self._one_at_a_time = trio.Lock()
        self._asked: list[_Asked] = []  # as many as there are sessions; each withdraws its own

    @property
    def tee(self) -> TeeKind:
        """What our offers may promise."""
        return TeeKind.NONE if self._enclave is None else _TEE_OF_MODE[self._enclave.mode]

    @property
    def image(self) -> Digest:
        """The image digest of our offers; zeros without a TEE."""
        return NO_DIGEST if self._enclave is None else self._enclave.image

    async def evidence(self, *, nonce: bytes, sealing_key: bytes) -> SignedStatement:
        """S for this nonce and the present sealing key, with O's and P's signatures. Raises `Unavailable`.

        Whoever gets the lock works for all who wait with the same key. When it is cancelled, the next one does.
        """
        enclave = self._enclave
        if enclave is None:
            statement = self._open_statement(nonce, sealing_key)
            operator_signature, peer_signature = await self._signatures(statement)
            self.made_ns = self._clock.now()
            return SignedStatement(
                statement=statement,
                operator_signature=operator_signature,
                peer_signature=peer_signature,
                hardware=b"",
            )
        asked = _Asked(nonce=nonce, sealing_key=sealing_key)
        self._asked.append(asked)
        try:
            async with self._one_at_a_time:
                while asked.answer is None and asked.failure is None:
                    await self._answer_all(enclave, sealing_key)
        finally:
            self._asked.remove(asked)
        if asked.answer is None:
            raise Unavailable(asked.failure or "no evidence was made")
        self.made_ns = self._clock.now()
        return asked.answer

    async def _answer_all(self, enclave: Enclave, sealing_key: bytes) -> None:
        """One quote for everyone who waits with this key, the oldest first. The lock is held by one of them."""
        waiting = [each for each in self._asked if each.sealing_key == sealing_key and each.answer is None]
        batch = [each for each in waiting if each.failure is None][: 1 << limits.NONCE_PATH_MAX]
        root, paths = commit([each.nonce for each in batch])
        try:
            statement, gpus = await make_statement(
                enclave,
                network=self._network_id,
                nonce=root,
                peer=self._network.peer_key,
                sealing_suite=SUITE_X25519,
                sealing_key=sealing_key,
                operator=self._signer.operator,
                payout=self._payout,
                models=self._models,
            )
            messages, blobs = await make_hardware(enclave, statement, gpus, paths=paths, by_digest=True)
            self._shelf.put(blobs.values())
            operator_signature, peer_signature = await self._signatures(statement)
        except CocoonError as error:
            for each in batch:  # the device would fail them one after another, slowly
                each.failure = str(error)
            return
        for each, hardware in zip(batch, messages, strict=True):
            each.answer = SignedStatement(
                statement=statement,
                operator_signature=operator_signature,
                peer_signature=peer_signature,
                hardware=hardware,
            )

    def _open_statement(self, nonce: bytes, sealing_key: bytes) -> bytes:
        return encode_statement(
            Statement(
                version=STATEMENT_VERSION,
                mode=MODE_OPEN,
                network=int(self._network_id),
                nonce=nonce,
                peer=self._network.peer_key,
                sealing_suite=SUITE_X25519,
                sealing_key=sealing_key,
                operator=self._signer.operator,
                payout=self._payout,
                image=NO_DIGEST,
                config=NO_DIGEST,
                models=self._models,
                gpus=[],
            )
        )

    async def _signatures(self, statement: bytes) -> tuple[bytes, bytes]:
        """O's and P's."""
        operator_signature = await self._signer.sign_statement(statement)
        return operator_signature, self._network.sign(signed_statement(self._network_id, statement))


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
