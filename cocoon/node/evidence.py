"""What a provider answers to `Hello`: the statement S, signed by O and P. One path for all trust levels (rule K4).

At trust level `open` there is no hardware evidence and S says so in its mode; S is signed all the same, so a key
swapped on the way is caught at every level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..attest.statement import (
    MODE_OPEN,
    STATEMENT_VERSION,
    SUITE_X25519,
    Statement,
    encode_statement,
    signed_statement,
)
from ..errors import LimitExceeded
from ..ports import Network as PeerNetwork
from ..ports import Signer
from ..types import NO_DIGEST, SECOND_NS, Digest, Network, PeerId

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
    """Makes one signed statement per Hello."""

    def __init__(
        self, *, network_id: Network, network: PeerNetwork, signer: Signer, payout: bytes, models: list[Digest]
    ) -> None:
        self._network_id = network_id
        self._network = network
        self._signer = signer
        self._payout = payout
        self._models = models

    async def evidence(self, *, nonce: bytes, sealing_key: bytes) -> SignedStatement:
        """S for this nonce and the present sealing key, with O's and P's signatures."""
        statement = encode_statement(
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
        return SignedStatement(
            statement=statement,
            operator_signature=await self._signer.sign_statement(statement),
            peer_signature=self._network.sign(signed_statement(self._network_id, statement)),
            hardware=b"",
        )


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
