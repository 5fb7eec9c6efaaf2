"""A chain in virtual time: the rules of our two contracts in plain Python, and blocks, fees and failures around them.

`rules` says what a message does to a contract, `ledger` moves the coins, `chain` makes blocks of it, `port` is the
`cocoon.ports.chain` that whole nodes see. `messages` first.
"""

from sim.chain.chain import ChainEvent, ChainTerms, Congestion, Outage, Reorg, SimChain, WalletMessage
from sim.chain.ledger import Ledger, Outcome, Payment
from sim.chain.messages import (
    AddBond,
    Claim,
    Deposit,
    Message,
    Notice,
    Plain,
    RequestUnbond,
    Roll,
    SetKey,
    Slash,
    Withdraw,
)
from sim.chain.rules import Account, Stake

__all__ = [
    "Account",
    "AddBond",
    "ChainEvent",
    "ChainTerms",
    "Claim",
    "Congestion",
    "Deposit",
    "Ledger",
    "Message",
    "Notice",
    "Outage",
    "Outcome",
    "Payment",
    "Plain",
    "Reorg",
    "RequestUnbond",
    "Roll",
    "SetKey",
    "SimChain",
    "Slash",
    "Stake",
    "WalletMessage",
    "Withdraw",
]
