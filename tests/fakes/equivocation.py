"""Two contradicting offers of one operator, as a peer's offer book finds them: the proof, as it is kept and shown."""

from __future__ import annotations

from nacl.signing import SigningKey

from cocoon.market.book import OfferBook
from cocoon.market.effects import Persist
from tests.fakes.market import NEIGHBOUR, NET, NOW, Key, offer


class _Operator(Key):
    """An operator whose seed is on a disk."""

    def __init__(self, key: SigningKey) -> None:
        self._key = key
        self.public = bytes(key.verify_key)


def proof_of(operator: SigningKey, *, stake: bytes, key_epoch: int) -> bytes:
    """The operator has offered one slot twice; a book that hears both has this."""
    book = OfferBook(NET)
    for region in ("DE", "FR"):
        made = offer(_Operator(operator), seq=5, stake=stake, key_epoch=key_epoch, region=region)
        judgement = book.receive_offer(NEIGHBOUR, made.message, now=NOW)
    kept = judgement.effects[0]
    assert isinstance(kept, Persist)
    return kept.proof.encode()
