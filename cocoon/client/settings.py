"""What the user of a client decides. Trust has no default: whoever opens a client says what it accepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..attest.policy import TrustPolicy
from ..attest.roots import Anchors
from ..market.selection import PriceCeiling
from ..pay.account import AccountRules
from ..ports.chain import Chain
from ..types import NANO_PER_TON, Nano, Network


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentAccount:
    """The spending account that pays. Opening, filling and closing it are its owner's wallet's, not the client's.

    One client at a time signs for an account: the store holds a lock, and a second client does not start.
    """

    account: bytes  # its id in workchain 0
    voucher_key: bytes  # V's public half, as the account names it
    sign: Callable[[bytes], bytes] = field(repr=False)  # V's signature over exactly these bytes
    chain: Chain
    rules: AccountRules
    spend_max_nano: Nano  # signed in one epoch of the account, over all providers
    reserve_max_nano: Nano = NANO_PER_TON  # held in reservations at once, beyond what is signed


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Terms that hold for every request of this client. Requests may only tighten them."""

    policy: TrustPolicy  # names the network as well
    software_anchors: Anchors | None = None  # of a software TEE; the verifier refuses them outside devnet
    verifies_in_threads: bool = True  # False in virtual time: a mock clock does not wait for threads
    ceiling: PriceCeiling = field(default_factory=PriceCeiling)
    attempts_max: int = 3  # providers tried in a row without a token: the first choice and two more
    moves_max: int = 8  # the same, to go on with an answer: somebody reads it already
    move_timeout_s: float = 2.0  # for another provider to take an answer over
    resumes_max: int = 10  # of one answer whose provider was lost; 0: such a loss is an error
    offers_wait_s: float = 10.0  # for the first offer of a model that nobody has offered yet
    queue_wait_s: float = 30.0  # a provider may let a request wait for a slot
    first_token_timeout_s: float = 60.0  # after it was accepted
    stall_timeout_s: float = 60.0  # between two pieces of output, while the provider answers that it lives
    quiet_s: float = 0.4  # between two pieces of output, before it is asked
    probe_timeout_s: float = 0.5  # for that answer; then another takes over, if there is one
    output_tokens_default: int = 1_024  # when the request names no limit and the context has room
    payment: PaymentAccount | None = None  # None: only offers that ask for no payment are used

    @property
    def network_id(self) -> Network:
        """Which network this client is on."""
        return self.policy.network
