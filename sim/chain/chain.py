"""Blocks over the ledger: when a message is executed, when it can be proven, and how both fail.

    chain = SimChain(ledger, ChainTerms(block_time_s=5.0, finality_blocks=1), rng=stream(seed, "chain"), now=kernel.now)
    number = chain.submit(WalletMessage(wallet=w, transfers=(…,)), now=now)
    for event in chain.on_time(now=now): …             # when chain.deadline() has passed
    state = chain.spending_account(account, now=now)   # as of the newest final block; raises Unavailable in an outage

Like every machine here it has no clock and no chance of its own. A wallet's message waits until a block has room, is
lost on the way (`fail_rate`), or expires after a minute, as TON's do: its sender learns nothing, and must look.
What is simplified: one shard, a message and all that follows from it in one block, no storage rent.

Not here: the async port that whole nodes use (`port`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from cocoon.errors import Unavailable
from cocoon.ports.chain import Head, SpendingAccount, StakeState
from cocoon.types import SECOND_NS
from sim.chain import messages as m
from sim.chain.ledger import Journal, Ledger, Outcome
from sim.chain.rules import Account, Contract, Stake
from sim.rng import Stream, draw_u64

JOURNALS_MAX: Final = 64  # blocks that can be taken back or looked behind: minutes
PENDING_MAX: Final = 100_000  # messages that wait; further ones are lost
EXPIRY_NS: Final = 60 * SECOND_NS  # of a wallet's message


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """No server answers and no message is taken in [from, until)."""

    from_s: float
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Congestion:
    """Blocks have room for so few messages in [from, until)."""

    from_s: float
    until_s: float
    messages_per_block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reorg:
    """At this time the newest `depth` blocks are replaced by others; a share of their messages is in none of them."""

    at_s: float
    depth: int
    lost_share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainTerms:
    """How this chain behaves. Times count from the start of the run."""

    block_time_s: float = 5.0
    finality_blocks: int = 1  # a block is proven once so many are on top of it
    messages_per_block: int = 1_000
    fail_rate: float = 0.0  # of messages that are never seen again
    outages: tuple[Outage, ...] = ()
    congestions: tuple[Congestion, ...] = ()
    reorgs: tuple[Reorg, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One message that a wallet sends on; `deploys` is a contract that comes along with it."""

    to: bytes
    value: int
    message: m.Message = m.PLAIN
    deploys: Contract | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WalletMessage:
    """An external message to a wallet."""

    wallet: bytes
    transfers: tuple[Transfer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainEvent:
    """A wallet's message was executed in this block, or taken back out of it (`is_undone`)."""

    number: int
    height: int
    message: WalletMessage
    outcomes: tuple[Outcome, ...]
    submitted_ns: int
    is_undone: bool = False


@dataclass(slots=True)
class _Block:
    height: int
    at_ns: int
    journal: Journal
    events: list[ChainEvent] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Pending:
    number: int
    message: WalletMessage
    submitted_ns: int
    expires_ns: int


class SimChain:
    """See the file's head."""

    def __init__(self, ledger: Ledger, terms: ChainTerms, *, rng: Stream, now: int) -> None:
        self.ledger = ledger
        self.terms = terms
        self.start_ns = now
        self.height = 0
        self.executed = self.lost = self.expired = self.undone = 0
        self.out_until_ns = 0  # an outage that nobody planned
        self._rng = rng
        self._interval_ns = max(1, int(terms.block_time_s * SECOND_NS))
        self._pending: deque[_Pending] = deque()
        self._numbers = 0
        self._reorgs = deque(sorted(terms.reorgs, key=lambda each: each.at_s))
        ledger.begin()
        self._next_ns = now + self._interval_ns
        self._blocks: deque[_Block] = deque([_Block(0, now, Journal())], maxlen=JOURNALS_MAX)

    # --- time --------------------------------------------------------------------------------------------

    def deadline(self) -> int:
        """When the next block is made."""
        return self._next_ns

    def on_time(self, *, now: int) -> tuple[ChainEvent, ...]:
        """Every block up to now, in order."""
        events: list[ChainEvent] = []
        while self._next_ns <= now:
            at_ns = self._next_ns
            self._next_ns = at_ns + self._interval_ns
            while self._reorgs and self._at(self._reorgs[0].at_s) <= at_ns:
                events.extend(self._reorganise(self._reorgs.popleft(), at_ns))
            events.extend(self._make_block(at_ns))
        return tuple(events)

    def reorganise_next(self, *, depth: int, lost_share: float, now: int) -> None:
        """The next block replaces the newest `depth` ones."""
        self._reorgs.appendleft(Reorg(at_s=(now - self.start_ns) / SECOND_NS, depth=depth, lost_share=lost_share))

    def _make_block(self, at_ns: int) -> list[ChainEvent]:
        self.height += 1
        block = _Block(self.height, at_ns, Journal())
        self.ledger.begin()
        room = self.terms.messages_per_block
        for congestion in self.terms.congestions:
            if self._at(congestion.from_s) <= at_ns < self._at(congestion.until_s):
                room = min(room, congestion.messages_per_block)
        while self._pending and room > 0:
            pending = self._pending.popleft()
            if pending.expires_ns <= at_ns:
                self.expired += 1
                continue
            room -= 1
            block.events.append(self._execute(pending, block))
        block.journal = self.ledger.begin()
        self._blocks.append(block)
        self.executed += len(block.events)
        return block.events

    def _execute(self, pending: _Pending, block: _Block) -> ChainEvent:
        message, now_s = pending.message, block.at_ns // SECOND_NS
        outcomes: list[Outcome] = []
        if self.ledger.transfer(message.wallet, message.wallet, 0, fee=self.ledger.fees.wallet_nano):
            for transfer in message.transfers:
                if transfer.deploys is not None and self.ledger.balance(message.wallet) >= transfer.value:
                    self.ledger.deploy(transfer.to, transfer.deploys)
                outcomes.append(
                    self.ledger.send(message.wallet, transfer.to, transfer.value, transfer.message, now_s=now_s)
                )
        return ChainEvent(
            number=pending.number,
            height=block.height,
            message=message,
            outcomes=tuple(outcomes),
            submitted_ns=pending.submitted_ns,
        )

    def _reorganise(self, reorg: Reorg, at_ns: int) -> list[ChainEvent]:
        undone: list[ChainEvent] = []
        again: list[_Pending] = []
        for _ in range(min(reorg.depth, len(self._blocks) - 1)):
            block = self._blocks.pop()
            self.ledger.undo(block.journal)
            self.height -= 1
            for event in reversed(block.events):
                undone.append(
                    ChainEvent(
                        number=event.number,
                        height=event.height,
                        message=event.message,
                        outcomes=event.outcomes,
                        submitted_ns=event.submitted_ns,
                        is_undone=True,
                    )
                )
                if self._rng.chance(reorg.lost_share):
                    self.lost += 1
                else:
                    again.append(_Pending(event.number, event.message, event.submitted_ns, at_ns + EXPIRY_NS))
        self.ledger.begin()
        self.undone += len(undone)
        self._pending.extendleft(again)  # newest first, so the oldest is in front again
        return undone

    # --- messages ----------------------------------------------------------------------------------------

    def submit(self, message: WalletMessage, *, now: int) -> int:
        """Hand it over; its number, by which an event will name it, if it ever is executed. Raises `Unavailable`."""
        self._must_answer(now)
        self._numbers += 1
        if len(self._pending) >= PENDING_MAX or self._rng.chance(self.terms.fail_rate):
            self.lost += 1
        else:
            self._pending.append(_Pending(self._numbers, message, now, now + EXPIRY_NS))
        return self._numbers

    @property
    def pending(self) -> int:
        """Messages that wait for a block."""
        return len(self._pending)

    # --- proofs ------------------------------------------------------------------------------------------

    def is_out(self, now: int) -> bool:
        """Whether no server answers now."""
        return now < self.out_until_ns or any(
            self._at(outage.from_s) <= now < self._at(outage.until_s) for outage in self.terms.outages
        )

    def head(self, *, now: int) -> Head:
        """The newest final block. Raises `Unavailable`."""
        self._must_answer(now)
        block, _ = self._final()
        root = draw_u64(self.ledger.given + block.height, "block", block.height).to_bytes(8, "big") * 4
        return Head(seqno=block.height, root_hash=root, time_s=block.at_ns // SECOND_NS)

    def spending_account(self, account: bytes, *, now: int) -> SpendingAccount | None:
        """Its state in the newest final block. Raises `Unavailable`."""
        self._must_answer(now)
        block, later = self._final()
        contract = _contract_before(self.ledger.contracts.get(account), account, later)
        if not isinstance(contract, Account):
            return None
        balance = self.ledger.balance(account) - _change_of(account, later)
        return contract.proven(account, balance=balance, at_s=block.at_ns // SECOND_NS)

    def stake(self, stake: bytes, *, now: int) -> StakeState | None:
        """Its state in the newest final block. Raises `Unavailable`."""
        self._must_answer(now)
        block, later = self._final()
        contract = _contract_before(self.ledger.contracts.get(stake), stake, later)
        if not isinstance(contract, Stake):
            return None
        balance = self.ledger.balance(stake) - _change_of(stake, later)
        return contract.proven(stake, balance=balance, at_s=block.at_ns // SECOND_NS)

    def wallet_nano(self, account: bytes, *, now: int) -> int:
        """What a wallet held in the newest final block. Raises `Unavailable`."""
        self._must_answer(now)
        _, later = self._final()
        return self.ledger.balance(account) - _change_of(account, later)

    def _final(self) -> tuple[_Block, list[Journal]]:
        """The newest final block, and what happened after it, newest first."""
        behind = min(self.terms.finality_blocks, len(self._blocks) - 1)
        later = [self._blocks[-1 - index].journal for index in range(behind)]
        return self._blocks[-1 - behind], later

    def _must_answer(self, now: int) -> None:
        if self.is_out(now):
            raise Unavailable("no liteserver answers")

    def _at(self, seconds: float) -> int:
        return self.start_ns + int(seconds * SECOND_NS)


def _contract_before(contract: Contract | None, address: bytes, later: list[Journal]) -> Contract | None:
    """What it was before these journals, newest first."""
    for journal in later:
        for changed, before in reversed(journal.contracts):
            if changed == address:
                contract = before
    return contract


def _change_of(account: bytes, later: list[Journal]) -> int:
    return sum(change for journal in later for changed, change in journal.balances if changed == account)
