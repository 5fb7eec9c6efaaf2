"""What the machines of the market ask their driver to do, and the events that they tell it of.

Frozen values only. The driver performs every `Persist` before anything else of the same step (`design.md` §2).
Not here: how any of it is done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ..ports import Verdict
from ..types import Digest
from .equivocation import EquivocationProof
from .offer import OfferSpec, VerifiedOffer

# --- events ----------------------------------------------------------------------------------------------


class DelistReason(Enum):
    """Why an offer left the book."""

    EXPIRED = "expired"
    REPLACED = "replaced"  # by a newer seq
    EVICTED = "evicted"  # memory: its operator, or the neighbour it came from, held the most
    EQUIVOCATED = "equivocated"  # its operator signed two offers for one slot


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferListed:
    """A verified offer entered the book."""

    offer: VerifiedOffer


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferDelisted:
    """An offer left the book."""

    digest: Digest
    operator: bytes
    reason: DelistReason


@dataclass(frozen=True, slots=True, kw_only=True)
class EquivocationFound:
    """An operator signed two offers for one slot; the proof convinces anybody."""

    proof: EquivocationProof


@dataclass(frozen=True, slots=True, kw_only=True)
class StakeWanted:
    """An offer names a stake that no chain fact is known of. Look it up when convenient, never inline (G1)."""

    stake: bytes


MarketEvent = OfferListed | OfferDelisted | EquivocationFound | StakeWanted

# --- effects ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit:
    """Tell whoever listens."""

    event: MarketEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Persist:
    """Keep this proof: `Store.save_proof(proof.slot, proof.encode())`."""

    proof: EquivocationProof


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOffer:
    """Take a seq from the store, draft, have P consent and O sign; then call `prepared` or `failed`."""

    spec: OfferSpec
    not_before_s: int
    expiry_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """Gossip these bytes."""

    topic: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provide:
    """Announce in the DHT that we provide these keys."""

    keys: tuple[bytes, ...]


BookEffect = Emit | Persist
PublisherEffect = PrepareOffer | Publish | Provide


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the book says of one message. `reason` is a short stable name for counters and logs."""

    verdict: Verdict
    reason: str
    effects: tuple[BookEffect, ...] = ()
