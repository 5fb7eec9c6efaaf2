"""Two offers for one slot: the proof, which anybody can check with nothing but the operator's key.

A proof holds two statements that O signed over one slot with different digests. It needs neither offer nor
witness, so it can be kept, gossiped, and, when both statements name one stake, shown to the stake contract.

Not here: detecting it (`book`), slashing (the contract).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ..errors import OfferInvalid
from ..types import NO_DIGEST, Digest, Network
from ..wire.codec import decode_as, encode
from ..wire.messages import U32, Bytes32, Message, NetworkId, Signature
from ..wire.signing import stake_statement, verify

PROOF_BYTES_MAX: Final = 512  # the encoding has about 400


class StatementMessage(Message, frozen=True):
    """One signed statement, as it travels in a proof."""

    stake: Bytes32
    key_epoch: U32
    digest: Bytes32
    signature: Signature


class ProofMessage(Message, frozen=True, tag=36):
    """An equivocation proof as it is kept."""

    network: NetworkId
    operator: Bytes32
    slot: Bytes32
    first: StatementMessage
    second: StatementMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedStatement:
    """What O signed for one slot."""

    stake: bytes
    key_epoch: int
    digest: Digest
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EquivocationProof:
    """Two verified statements of one operator over one slot."""

    network: Network
    operator: bytes
    slot: Digest
    first: SignedStatement
    second: SignedStatement

    @property
    def is_slashable(self) -> bool:
        """Whether one stake contract can check both."""
        return (
            self.first.stake != NO_DIGEST
            and self.first.stake == self.second.stake
            and self.first.key_epoch == self.second.key_epoch
        )

    def encode(self) -> bytes:
        """The bytes to keep or show."""
        return encode(
            ProofMessage(
                network=int(self.network),
                operator=self.operator,
                slot=self.slot,
                first=_to_message(self.first),
                second=_to_message(self.second),
            )
        )


def verify_proof(data: bytes) -> EquivocationProof:
    """The proof in these bytes, checked. Raises `DecodeError`, `LimitExceeded`, `OfferInvalid` or `BadSignature`."""
    message = decode_as(data, ProofMessage, bytes_max=PROOF_BYTES_MAX)
    if message.network not in Network.__members__.values():
        raise OfferInvalid("a proof for a network that does not exist")
    network = Network(message.network)
    if message.first.digest == message.second.digest:
        raise OfferInvalid("two statements over one digest prove nothing")
    for part in (message.first, message.second):
        verify(
            message.operator,
            part.signature,
            stake_statement(network, part.stake, part.key_epoch, message.slot, part.digest),
        )
    return EquivocationProof(
        network=network,
        operator=message.operator,
        slot=message.slot,
        first=_from_message(message.first),
        second=_from_message(message.second),
    )


def _to_message(statement: SignedStatement) -> StatementMessage:
    return StatementMessage(
        stake=statement.stake,
        key_epoch=statement.key_epoch,
        digest=statement.digest,
        signature=statement.signature,
    )


def _from_message(message: StatementMessage) -> SignedStatement:
    return SignedStatement(
        stake=message.stake,
        key_epoch=message.key_epoch,
        digest=message.digest,
        signature=message.signature,
    )
