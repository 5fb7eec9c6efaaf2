"""What the roles need of the world, as protocols: network, engine, store, signer, clock, randomness.

`cocoon.client` and `cocoon.node` see only these; `cocoon.adapters` implements them; each has one contract suite
in `tests/` that its fake and its real adapter both pass. Nothing here has behaviour.
"""

from __future__ import annotations

from .engine import Delta, Engine, EngineEvent, EngineInfo, EngineLoad, Finished, GenerationRequest, Logprob
from .network import (
    Connection,
    DialFailure,
    GossipMessage,
    Handler,
    Network,
    PeerAddresses,
    Stream,
    Subscription,
    Validator,
    Verdict,
)
from .store import (
    KnownPeer,
    PaymentRecord,
    Signer,
    Store,
    StoredClaim,
    StoredEarning,
    StoredReceipt,
    StoredReputation,
    StoredReservation,
    StoredVoucher,
    VoucherSide,
)
from .world import Clock, Entropy

__all__ = [
    "Clock", "Connection", "Delta", "DialFailure", "Engine", "EngineEvent", "EngineInfo", "EngineLoad", "Entropy",
    "Finished", "GenerationRequest", "GossipMessage", "Handler", "KnownPeer", "Logprob", "Network",
    "PaymentRecord", "PeerAddresses", "Signer", "Store", "StoredClaim", "StoredEarning", "StoredReceipt",
    "StoredReputation", "StoredReservation", "StoredVoucher", "Stream", "Subscription", "Validator", "Verdict",
    "VoucherSide",
]  # fmt: skip
