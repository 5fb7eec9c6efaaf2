"""A spending account as the contract keeps it, and a payer and a payee that share one, for tests. Real signatures."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

from cocoon.pay.account import RENT_NANO, AccountRules, rent_30d_bound_nano
from cocoon.pay.budget import AttemptTerms
from cocoon.pay.effects import Effects, Emit, Persist, Prove, RequestKey, Send, Submit
from cocoon.pay.payee import Payee, PayeeTerms
from cocoon.pay.payer import Payer, PayerTerms
from cocoon.pay.voucher import SignedVoucher
from cocoon.ports import PaymentRecord, StoredVoucher, VoucherSide
from cocoon.ports.chain import Entry, SpendingAccount
from cocoon.types import NANO_PER_TON, SECOND_NS, Network, Prices
from cocoon.wire.signing import verify
from tests.fakes.market import Key

NET = Network.DEVNET
NOW_S = 1_900_000_000
NOW = NOW_S * SECOND_NS
V, OTHER_V = Key("voucher key"), Key("another voucher key")
OWNER = b"\x0e" * 32
PAYOUT, OTHER_PAYOUT = b"\xb1" * 32, b"\xb2" * 32
TON = NANO_PER_TON
PRICES = Prices(input_nano=100_000_000, cached_input_nano=10_000_000, output_nano=300_000_000)
TERMS = PayeeTerms(claim_cost_nano=1_000_000, window_tokens_max=4_096)
SPENDING = PayerTerms(spend_max_nano=100 * TON)


def address_of(workchain: int, owner: bytes, salt: int) -> bytes:
    """Stands for the hash of our contract's code and initial data."""
    return hashlib.sha256(
        b"account" + workchain.to_bytes(1, "big", signed=True) + owner + salt.to_bytes(8, "big")
    ).digest()


RULES = AccountRules(address_of=address_of, rent_30d_nano=rent_30d_bound_nano)


def payout_number(n: int) -> bytes:
    return hashlib.sha256(b"payout %d" % n).digest()


def terms_of(payout: bytes = PAYOUT, prices: Prices = PRICES, **changes: Any) -> AttemptTerms:
    return replace(AttemptTerms(payout=payout, prices=prices, unpaid_tokens_max=4_096), **changes)


@dataclass
class FakeAccount:
    """The contract's arithmetic (`contracts/account`), without a chain."""

    salt: int = 1
    key: bytes = V.public
    epoch: int = NOW_S - 1_000
    unlock_at_s: int = 0
    balance_nano: int = 5 * TON
    bond_nano: int = TON
    reserved_nano: int = 0
    entries: dict[bytes, Entry] = field(default_factory=dict)

    @property
    def account(self) -> bytes:
        return address_of(0, OWNER, self.salt)

    def state(self, now: int, **changes: Any) -> SpendingAccount:
        return replace(
            SpendingAccount(
                account=self.account,
                owner=OWNER,
                owner_workchain=0,
                salt=self.salt,
                voucher_key=self.key,
                epoch=self.epoch,
                unlock_at_s=self.unlock_at_s,
                bond_nano=self.bond_nano,
                reserved_nano=self.reserved_nano,
                balance_nano=self.balance_nano,
                entries=dict(self.entries),
                at_s=now // SECOND_NS,
            ),
            **changes,
        )

    def claim(self, signed: SignedVoucher) -> int:
        """What the claim paid to its provider; 0 where the contract would refuse it."""
        voucher = signed.voucher
        if (voucher.network, voucher.account, voucher.epoch) != (NET, self.account, self.epoch):
            return 0
        verify(self.key, signed.signature, voucher.encode())
        bond = min(self.bond_nano, max(0, self.balance_nano - RENT_NANO))
        funds = max(0, self.balance_nano - RENT_NANO - bond)
        free = max(0, funds - self.reserved_nano)
        entry = self.entries.get(voucher.provider, Entry(claimed_nano=0, ceiling_nano=0))
        own = entry.ceiling_nano - entry.claimed_nano
        due = max(0, voucher.cumulative_nano - entry.claimed_nano)
        from_own = min(due, own, funds)
        from_free = min(due - from_own, free)
        half = min(due - from_own - from_free, bond // 2)
        paid = from_own + from_free + half
        claimed = entry.claimed_nano + paid
        kept = max(entry.ceiling_nano, claimed)
        grant = min(max(0, voucher.ceiling_nano - kept), free - from_free)
        if paid + grant == 0:
            return 0
        self.entries[voucher.provider] = Entry(claimed_nano=claimed, ceiling_nano=kept + grant)
        self.reserved_nano += kept + grant - claimed - own
        self.bond_nano = bond - 2 * half
        self.balance_nano -= paid + half
        return paid

    def roll(self, key: bytes, *, now: int) -> None:
        self.key, self.epoch, self.unlock_at_s = key, now // SECOND_NS, 0
        self.reserved_nano, self.entries = 0, {}


class Disk:
    """What survives a crash: the highest vouchers, as a store keeps them."""

    def __init__(self) -> None:
        self.vouchers: dict[tuple[VoucherSide, bytes, int, bytes], StoredVoucher] = {}
        self.records: list[PaymentRecord] = []

    def save(self, records: tuple[PaymentRecord, ...]) -> None:
        for record in records:
            self.records.append(record)
            if isinstance(record, StoredVoucher):
                key = (record.side, record.account, record.epoch, record.provider)
                kept = self.vouchers.get(key)
                if kept is None or (
                    record.cumulative_nano >= kept.cumulative_nano and record.ceiling_nano >= kept.ceiling_nano
                ):
                    self.vouchers[key] = record

    def restored(self, side: VoucherSide) -> tuple[StoredVoucher, ...]:
        return tuple(record for record in self.vouchers.values() if record.side is side)


class Client:
    """A payer, its disk, and what it sent. `performs` False leaves effects for the test."""

    def __init__(
        self,
        account: FakeAccount,
        *,
        now: int = NOW,
        terms: PayerTerms = SPENDING,
        disk: Disk | None = None,
        key: Key = V,
    ) -> None:
        self.disk = disk or Disk()
        self.account = account
        self.now = now
        self.sent: list[Send] = []
        self.events: list[object] = []
        self.payer = Payer(
            network=NET,
            account=account.account,
            key=key.public,
            sign=key.sign,
            rules=RULES,
            terms=terms,
            restored=self.disk.restored(VoucherSide.ISSUED),
            now=now,
        )

    def see_chain(self) -> None:
        self.did(self.payer.account_proven(self.account.state(self.now), now=self.now))

    def did(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case Persist():
                    self.disk.save(effect.records)
                    self.did(self.payer.persisted(effect.records, now=self.now))
                case Send():
                    self.sent.append(effect)
                case Emit():
                    self.events.append(effect.event)
                case Prove():
                    self.see_chain()
                case Submit():
                    raise AssertionError("a client claims nothing")


class Provider:
    """A payee, its disk, its submissions and events."""

    def __init__(
        self,
        *,
        now: int = NOW,
        payout: bytes = PAYOUT,
        terms: PayeeTerms = TERMS,
        disk: Disk | None = None,
        chain: dict[bytes, FakeAccount] | None = None,
    ) -> None:
        self.disk = disk or Disk()
        self.payout = payout
        self.now = now
        self.chain = {} if chain is None else chain
        self.is_chain_up = True
        self.submitted: list[SignedVoucher] = []
        self.proven: list[bytes] = []
        self.events: list[object] = []
        self.payee = Payee(
            network=NET,
            payout=payout,
            rules=RULES,
            verify=verify,
            terms=terms,
            restored=self.disk.restored(VoucherSide.HELD),
            now=now,
        )

    def see(self, account: FakeAccount) -> None:
        self.chain[account.account] = account
        self.did(self.payee.account_proven(account.state(self.now), now=self.now))

    def open_session(self, account: FakeAccount, session: bytes = b"s" * 32, key: Key = V) -> bytes:
        self.see(account)
        self.payee.authenticate(
            session, account=account.account, voucher_key=key.public, payout=self.payout, now=self.now
        )
        return session

    def did(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case Persist():
                    self.disk.save(effect.records)
                    self.did(self.payee.persisted(effect.records, now=self.now))
                case Submit():
                    self.submitted.extend(effect.claims)
                case Prove():
                    self.proven.append(effect.account)
                    if self.is_chain_up and effect.account in self.chain:
                        self.see(self.chain[effect.account])
                    else:
                        self.did(self.payee.account_unreachable(effect.account, now=self.now))
                case Emit():
                    self.events.append(effect.event)
                case Send():
                    raise AssertionError("a provider sends no vouchers")

    def serve(self, key: RequestKey, wanted: int) -> int:
        """Let as many tokens leave as may."""
        allowed = self.payee.tokens_allowed(key, wanted, now=self.now)
        if allowed:
            self.did(self.payee.release(key, allowed, now=self.now))
        return allowed

    def take(self, session: bytes, signed: SignedVoucher) -> None:
        self.did(self.payee.receive_voucher(session, signed.voucher.encode(), signed.signature, now=self.now))

    def saw(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def wait(self, passed_ns: int) -> None:
        """Time passes; everything due is done in order."""
        until = self.now + passed_ns
        for _ in range(10_000):
            when = self.payee.deadline()
            if when is None or when > until:
                break
            self.now = max(self.now, when)
            self.did(self.payee.on_time(now=self.now))
        else:
            raise AssertionError("the payee's deadline does not move on")
        self.now = until
