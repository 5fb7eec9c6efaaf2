"""Two statements of one operator over one slot: the proof, as it is kept and shown."""

from __future__ import annotations

from nacl.signing import SigningKey

from cocoon.market.equivocation import EquivocationProof, SignedStatement
from cocoon.types import Network
from cocoon.wire.signing import stake_statement


def proof_of(operator: SigningKey, *, stake: bytes, key_epoch: int, network: Network = Network.DEVNET) -> bytes:
    """The operator has signed two digests."""
    slot = b"\5" * 32
    parts = []
    for digest in (b"\1" * 32, b"\2" * 32):
        signature = operator.sign(stake_statement(network, stake, key_epoch, slot, digest)).signature
        parts.append(SignedStatement(stake=stake, key_epoch=key_epoch, digest=digest, signature=signature))
    proof = EquivocationProof(
        network=network, operator=bytes(operator.verify_key), slot=slot, first=parts[0], second=parts[1]
    )
    return proof.encode()
