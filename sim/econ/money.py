"""Payers and payees in virtual time: the real machines, their effects performed as `cocoon/pay/README.md` says.

`Purse` drives a `Payer`, `Till` a `Payee`. Each has a disk; effects are performed in order, a `Persist` is answered
when it is on disk, a `Prove` after a look at the chain, a `Submit` is one wallet message. Both can crash and start
again from their disks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from cocoon.errors import Unavailable
from cocoon.pay.account import AccountRules, rent_30d_bound_nano
from cocoon.pay.effects import Effects, Emit, Persist, Prove, Send, Submit
from cocoon.pay.payee import Payee, PayeeTerms
from cocoon.pay.payer import Payer, PayerTerms
from cocoon.pay.refusals import PaymentRefused
from cocoon.pay.voucher import SignedVoucher
from cocoon.ports import PaymentRecord, StoredClaim, StoredReservation, StoredVoucher, VoucherSide
from cocoon.types import MILLISECOND_NS, NANO_PER_TON
from sim.chain import Account, Claim, SimChain, WalletMessage
from sim.chain.chain import Transfer
from sim.econ.crypto import Key
from sim.econ.env import Env, SimDisk, Wake

LOOK_NS: Final = 150 * MILLISECOND_NS  # a proof: some round trips to two servers
CLAIM_VALUE_NANO: Final = NANO_PER_TON // 50  # attached to a claim; what is not used comes back with the payout


def account_address(workchain: int, owner: bytes, salt: int) -> bytes:
    """Stands for the hash of our contract's code and initial data."""
    head = workchain.to_bytes(1, "big", signed=True) + owner + salt.to_bytes(8, "big")
    return hashlib.blake2b(head, digest_size=32, person=b"sim account").digest()


RULES: Final = AccountRules(address_of=account_address, rent_30d_nano=rent_30d_bound_nano)


def open_account(chain: SimChain, *, owner: Key, key: Key, deposit: int, bond: int, salt: int = 1) -> bytes:
    """A spending account that is open since a while; its address."""
    address = account_address(0, owner.public, salt)
    chain.ledger.give(address, deposit + bond)
    epoch = chain.start_ns // 1_000_000_000 - 1_000
    chain.ledger.deploy(address, Account(owner=owner.public, salt=salt, key=key.public, epoch=epoch, bond=bond))
    return address


class Counting:
    """`CountingEntropy` over a stream of the simulation."""

    def __init__(self, env: Env, purpose: str, node: int) -> None:
        self._stream = env.rng(purpose, node)

    def __call__(self, count: int, /) -> bytes:
        return self._stream.bytes(count)


def record_key(record: PaymentRecord) -> tuple[Any, ...]:
    """What a later record replaces."""
    name = type(record).__name__
    match record:
        case StoredClaim():
            return (name, record.account, record.epoch, record.provider, record.cumulative_nano, record.ceiling_nano)
        case StoredVoucher():
            return (name, record.side, record.account, record.epoch, record.provider)
        case StoredReservation():
            return (name, record.account, record.epoch, record.provider)
    raise ValueError(f"a {name} is not what these machines write")


def merge_record(kept: Any, record: Any) -> Any:
    """As `Store.save_payments` promises: no amount falls, no older block counts, what is confirmed stays confirmed."""
    if kept is None:
        return record
    if isinstance(record, StoredVoucher):
        rises = record.cumulative_nano >= kept.cumulative_nano and record.ceiling_nano >= kept.ceiling_nano
        return record if rises else kept
    if isinstance(record, StoredReservation):
        return record if record.proven_s >= kept.proven_s else kept
    return kept if kept.confirmed_ns and not record.confirmed_ns else record


def claim_of(signed: SignedVoucher) -> Claim:
    """The message that puts this voucher on chain."""
    voucher = signed.voucher
    return Claim(voucher.provider, voucher.cumulative_nano, voucher.ceiling_nano, signed.signature)


class _Drive:
    """What purse and till have in common."""

    def __init__(self, env: Env, node: int, chain: SimChain, disk: SimDisk) -> None:
        self.env = env
        self.node = node
        self.chain = chain
        self.disk = disk
        self.generation = 0
        self.clock_ahead_ns = 0
        self.wake: Wake | None = None

    @property
    def now(self) -> int:
        """This node's own clock."""
        return self.env.now + self.clock_ahead_ns

    def _keep(self, records: tuple[PaymentRecord, ...], done: Callable[[bool], None]) -> None:
        generation = self.generation

        def committed(is_kept: bool) -> None:
            if self.generation == generation:
                done(is_kept)

        self.disk.save(records, tuple(record_key(record) for record in records), merge_record, committed)

    def _look(self, account: bytes, found: Callable[[Any], None]) -> None:
        self.env.kernel.after(LOOK_NS, self._looked, account, self.generation, found)

    def _looked(self, account: bytes, generation: int, found: Callable[[Any], None]) -> None:
        if self.generation != generation:
            return
        try:
            state = self.chain.spending_account(account, now=self.env.now)
        except Unavailable:
            state = None
        found(state)

    def vouchers(self, side: VoucherSide) -> tuple[StoredVoucher, ...]:
        """What the disk holds."""
        return tuple(each for each in self.disk.values() if isinstance(each, StoredVoucher) and each.side is side)


class Purse(_Drive):
    """A client's payer. `send(payout, voucher)` gives a voucher to a session with that payout, if there is one."""

    def __init__(
        self,
        env: Env,
        node: int,
        chain: SimChain,
        *,
        account: bytes,
        key: Key,
        terms: PayerTerms,
        send: Callable[[bytes, SignedVoucher], None],
        write_ns: int = 2 * MILLISECOND_NS,
    ) -> None:
        super().__init__(env, node, chain, SimDisk(env, node, write_ns=write_ns))
        self.account = account
        self.key = key
        self._terms = terms
        self._send = send
        self.events: list[object] = []
        self.payer = self._make()

    def _make(self) -> Payer:
        return Payer(
            network=self.env.network,
            account=self.account,
            key=self.key.public,
            sign=self.key.sign,
            rules=RULES,
            terms=self._terms,
            restored=self.vouchers(VoucherSide.ISSUED),
            now=self.now,
        )

    def start(self) -> None:
        """Look at the chain, and from then on at the clock."""
        self.wake = Wake(self.env.kernel, lambda: self.payer.deadline(), self._on_time)
        self.wake.offset_ns = self.clock_ahead_ns
        self.wake.look()

    def restart(self) -> None:
        """After a crash: a new machine from what the disk holds."""
        self.generation += 1
        if self.wake is not None:
            self.wake.is_dead = True
        self.payer = self._make()
        self.start()

    def _on_time(self) -> None:
        self.did(self.payer.on_time(now=self.now))

    def did(self, effects: Effects) -> None:
        """Perform what the payer asked for."""
        for effect in effects:
            match effect:
                case Persist(records=records):
                    self._keep(records, self._persisted(records))
                case Send(payout=payout, voucher=voucher):
                    self._send(payout, voucher)
                case Prove(account=account):
                    self._look(account, self._proven)
                case Emit(event=event):
                    self.events.append(event)
                case Submit():
                    raise AssertionError("a client claims nothing")
        if self.wake is not None:
            self.wake.look()

    def _persisted(self, records: tuple[PaymentRecord, ...]) -> Callable[[bool], None]:
        def done(is_kept: bool) -> None:
            now = self.now
            answer = self.payer.persisted if is_kept else self.payer.persist_failed
            self.did(answer(records, now=now))

        return done

    def _proven(self, state: Any) -> None:
        if state is None:
            self.did(self.payer.account_unreachable(now=self.now))
            return
        try:
            self.did(self.payer.account_proven(state, now=self.now))
        except PaymentRefused:
            self.did(self.payer.account_unreachable(now=self.now))


class Till(_Drive):
    """A provider's payee, and the wallet that it claims with. `on_event` hears what the payee tells."""

    def __init__(
        self,
        env: Env,
        node: int,
        chain: SimChain,
        *,
        payout: bytes,
        terms: PayeeTerms,
        on_event: Callable[[Any], None],
        write_ns: int = 2 * MILLISECOND_NS,
    ) -> None:
        super().__init__(env, node, chain, SimDisk(env, node, write_ns=write_ns))
        self.payout = payout
        self._terms = terms
        self._on_event = on_event
        self.submitted = 0
        self._waiting: dict[bytes, list[Callable[[], None]]] = {}
        self.payee = self._make()

    def _make(self) -> Payee:
        settled = tuple(each for each in self.disk.values() if isinstance(each, StoredReservation))
        return Payee(
            network=self.env.network,
            payout=self.payout,
            rules=RULES,
            verify=self.env.memo.verify,
            terms=self._terms,
            restored=self.vouchers(VoucherSide.HELD),
            settled=settled,
            now=self.now,
        )

    def start(self) -> None:
        """Look at the clock from now on."""
        self.wake = Wake(self.env.kernel, lambda: self.payee.deadline(), self._on_time)
        self.wake.offset_ns = self.clock_ahead_ns
        self.wake.look()

    def restart(self) -> None:
        """After a crash: a new machine from what the disk holds."""
        self.generation += 1
        self._waiting.clear()
        if self.wake is not None:
            self.wake.is_dead = True
        self.payee = self._make()
        self.start()

    def prove(self, account: bytes, then: Callable[[], None]) -> None:
        """Look the account up and call `then`, whatever was found; several that wait share one look."""
        waiting = self._waiting.setdefault(account, [])
        waiting.append(then)
        if len(waiting) == 1:
            self._look(account, partial(self._proven, account))

    def did(self, effects: Effects) -> None:
        """Perform what the payee asked for."""
        for effect in effects:
            match effect:
                case Persist(records=records):
                    self._keep(records, self._persisted(records))
                case Submit(claims=claims):
                    # After the Persist of the same step: it was queued just before, and one commit takes it.
                    self._keep((), partial(self._submit, claims))
                case Prove(account=account):
                    self._look(account, partial(self._proven, account))
                case Emit(event=event):
                    self._on_event(event)
                case Send():
                    raise AssertionError("a provider sends no vouchers")
        if self.wake is not None:
            self.wake.look()

    def _on_time(self) -> None:
        self.did(self.payee.on_time(now=self.now))

    def _persisted(self, records: tuple[PaymentRecord, ...]) -> Callable[[bool], None]:
        def done(is_kept: bool) -> None:
            answer = self.payee.persisted if is_kept else self.payee.persist_failed
            self.did(answer(records, now=self.now))

        return done

    def _submit(self, claims: tuple[SignedVoucher, ...], is_kept: bool) -> None:
        transfers = tuple(
            Transfer(
                to=signed.voucher.account,
                value=CLAIM_VALUE_NANO,
                message=claim_of(signed),
            )
            for signed in claims
        )
        try:
            if not is_kept:
                raise Unavailable("the claim could not be written down")
            self.chain.submit(WalletMessage(wallet=self.payout, transfers=transfers), now=self.env.now)
            self.submitted += len(claims)
        except Unavailable:
            self.did(self.payee.submit_failed(claims, now=self.now))

    def _proven(self, account: bytes, state: Any) -> None:
        waiting = self._waiting.pop(account, [])
        try:
            if state is None:
                self.did(self.payee.account_unreachable(account, now=self.now))
            else:
                self.did(self.payee.account_proven(state, now=self.now))
        except PaymentRefused:
            self.did(self.payee.account_unreachable(account, now=self.now))
        for then in waiting:
            then()
