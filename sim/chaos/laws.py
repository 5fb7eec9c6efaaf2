"""What must hold whatever happens, checked while it happens and when it is over. Each law says whom it protects.

- no voucher is lost: what a provider acknowledged is on its disk, and on chain in the end;
- no two vouchers contradict: in the order of leaving a client neither amount falls, and one amount has one signature;
- nothing is paid twice: the chain pays a provider no more than its client signed, and confirms each amount once;
- no client signs more than what it received costs;
- no provider is owed more than its window of unpaid tokens, by any account;
- every request ends, once, at both ends; nothing of it keeps a slot, a session or a ledger busy;
- offers converge: every client that is up lists the current offer of every provider that is up, and only that;
- no node is dead: in the end every client is served by every provider.

A machine that raises is a violation too, and so is one that asks to be woken again and again in one instant (`story`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from cocoon.pay.effects import ClaimConfirmed, VoucherAccepted
from cocoon.pay.metering import Meter
from cocoon.pay.voucher import SignedVoucher
from cocoon.ports import StoredVoucher, VoucherSide
from cocoon.types import SECOND_NS
from sim.chain import Account
from sim.econ.client import ClientPeer
from sim.econ.provider import ProviderPeer
from sim.econ.purchase import Purchase

DUST_NANO: Final = 2_000  # what a claim of this market costs: less is not claimed
VIOLATIONS_MAX: Final = 20  # reported of one story


@dataclass(slots=True)
class Pair:
    """One client and one provider."""

    acknowledged: int = 0
    left: SignedVoucher | None = None
    confirmed: int = 0
    due: int = 0  # of all attempts, by the client's own count


@dataclass(slots=True)
class Laws:
    """Watches a market; `violations` is what was broken, in words."""

    market: Any
    violations: list[str] = field(default_factory=list)
    has_lying_disks: bool = False
    issued: set[int] = field(default_factory=set)
    ended: dict[int, int] = field(default_factory=dict)
    _pairs: dict[tuple[bytes, bytes], Pair] = field(default_factory=dict)
    _unpaid: dict[tuple[bytes, bytes], int] = field(default_factory=dict)  # tokens, when last looked at
    _meters: dict[tuple[bytes, bytes], list[Meter]] = field(default_factory=dict)

    def watch(self) -> None:
        """From before the first event."""
        self.market.on_done.append(self._done)
        self.market.on_money.append(self._money)
        for client in self.market.clients:
            client.on_left = lambda payout, voucher, client=client: self._left(client, payout, voucher)

    def broken(self, law: str) -> None:
        """Note it."""
        if len(self.violations) < VIOLATIONS_MAX:
            at_s = (self.market.env.now - self.market.tally.start_ns) / SECOND_NS
            self.violations.append(f"{at_s:.3f} s: {law}")

    # --- while it happens --------------------------------------------------------------------------------

    def _pair(self, account: bytes, payout: bytes) -> Pair:
        return self._pairs.setdefault((account, payout), Pair())

    def _money(self, provider: ProviderPeer, event: Any) -> None:
        match event:
            case VoucherAccepted(account=account, paid_nano=paid):
                pair = self._pair(account, provider.payout)
                pair.acknowledged = max(pair.acknowledged, paid)
                if self._held(provider, account) < paid:
                    self.broken(f"{provider.setup.name} acknowledged {paid} before it was on its disk")
            case ClaimConfirmed(account=account, amount_nano=amount):
                self._pair(account, provider.payout).confirmed += amount

    def _left(self, client: ClientPeer, payout: bytes, signed: SignedVoucher) -> None:
        pair = self._pair(client.purse.account, payout)
        before = pair.left
        new = signed.voucher
        if before is not None:
            old = before.voucher
            if not old.rises_to(new):
                self.broken(
                    f"{client.setup.name} let a voucher over {new.cumulative_nano}/{new.ceiling_nano} follow one over "
                    f"{old.cumulative_nano}/{old.ceiling_nano}"
                )
            same = (old.cumulative_nano, old.ceiling_nano) == (new.cumulative_nano, new.ceiling_nano)
            if same != (before.signature == signed.signature):
                self.broken(f"{client.setup.name} signed one amount twice")
        issued = [
            record.cumulative_nano for record in client.purse.vouchers(VoucherSide.ISSUED) if record.provider == payout
        ]
        if max(issued, default=0) < new.cumulative_nano:
            self.broken(f"{client.setup.name} let a voucher leave that is not on its disk")
        pair.left = signed

    def _done(self, purchase: Purchase) -> None:
        number = purchase.order.number
        self.ended[number] = self.ended.get(number, 0) + 1
        for one in purchase._tries:
            if one.attempt is not None:
                key = (purchase.client.purse.account, one.listed.offer.offer.terms.payout)
                self._meters.setdefault(key, []).append(one.attempt.meter)

    def look(self) -> None:
        """Now and then."""
        for provider in self.market.providers:
            if not provider.is_up:
                continue
            for client in self.market.clients:
                self._look_at_ledger(provider, client)
            for served in provider.sessions.values():
                for request_id in served._runs:
                    if request_id not in served.machine._requests:
                        self.broken(f"{provider.setup.name} computes for nobody")
        for client in self.market.clients:
            for link in client.links.values():
                # One whose end was told, but which its provider has not closed, may stay until the cancel times out.
                kept = sum(not request.is_reported for request in link.machine._requests.values())
                if not link.is_dead and kept != link.requests_open:
                    self.broken(f"{client.setup.name} keeps {kept} requests open, and waits for {link.requests_open}")

    def _look_at_ledger(self, provider: ProviderPeer, client: ClientPeer) -> None:
        account = client.purse.account
        ledger = provider.till.payee.ledger(account)
        if ledger is not None:  # a write-off halves the window, so more may be unpaid than it is now: not more and more
            key = (account, provider.payout)
            if ledger.unpaid.count > max(ledger.window_tokens, self._unpaid.get(key, 0)):
                self.broken(f"{provider.setup.name} let {ledger.unpaid.count} unpaid tokens out")
            self._unpaid[key] = ledger.unpaid.count
        pair = self._pairs.get((account, provider.payout))
        if pair is None or not pair.acknowledged or self.has_lying_disks:
            return
        held = self._held(provider, account)
        if held < pair.acknowledged:
            self.broken(f"{provider.setup.name} acknowledged {pair.acknowledged} and holds {held}")
        contract = self.market.chain.ledger.contracts[account]
        entry = contract.entries.get(provider.payout)
        known = 0 if entry is None else entry.claimed_nano
        if ledger is not None:
            vouchers = (ledger.held, ledger.writing, ledger.next, *ledger.archive.values())
            known = max(known, *(0 if each is None else each.cumulative_nano for each in vouchers))
        if known < pair.acknowledged:
            self.broken(f"{provider.setup.name} acknowledged {pair.acknowledged} and remembers {known}")

    @staticmethod
    def _held(provider: ProviderPeer, account: bytes) -> int:
        return max(
            (
                record.cumulative_nano
                for record in provider.till.disk.values()
                if isinstance(record, StoredVoucher) and record.account == account
            ),
            default=0,
        )

    # --- when it is over ---------------------------------------------------------------------------------

    def check_offers(self) -> None:
        """Before anything else is asked of anybody."""
        for client in self.market.clients:
            listed = {each.offer.provider: each.offer.digest for each in client.book.listed(now=client.now)}
            for provider in self.market.providers:
                current = provider.publisher.current(provider.spec.model, now=provider.now)
                if current is None:
                    self.broken(f"{provider.setup.name} has no offer")
                elif listed.pop(provider.peer, None) != current.digest:
                    self.broken(f"{client.setup.name} does not list the current offer of {provider.setup.name}")
            if listed:
                self.broken(f"{client.setup.name} lists offers of nobody")

    def check_served(self, purchases: Iterable[Purchase]) -> None:
        """The last orders: each client at each provider."""
        for purchase in purchases:
            if purchase.record.status != "done":
                name = next(p.setup.name for p in self.market.providers if p.number == purchase.order.only)
                self.broken(
                    f"{purchase.client.setup.name} was not served by {name}: {purchase.record.status} "
                    f"{purchase.record.reasons[-3:]}"
                )

    def check_ended(self) -> None:
        """Requests, slots, sessions, ledgers."""
        for number in sorted(self.issued):
            times = self.ended.get(number, 0)
            if times != 1:
                self.broken(f"request {number} ended {times} times")
        for client in self.market.clients:
            for link in client.links.values():
                if link.machine.requests_open:
                    self.broken(f"{client.setup.name} keeps {link.machine.requests_open} requests open")
        for provider in self.market.providers:
            if provider.engine.running or provider.engine.queue:
                self.broken(f"{provider.setup.name} computes for nobody")
            for served in provider.sessions.values():
                if served.machine.requests_open:
                    self.broken(f"{provider.setup.name} keeps {served.machine.requests_open} requests open")
            for client in self.market.clients:
                ledger = provider.till.payee.ledger(client.purse.account)
                if ledger is not None and ledger.requests:
                    self.broken(f"{provider.setup.name} keeps {len(ledger.requests)} requests in a ledger")

    def check_money(self) -> None:
        """After everybody has claimed."""
        self.market.chain.ledger.check()
        if self.market.chain.ledger.burnt:
            self.broken(f"{self.market.chain.ledger.burnt} of a bond burnt: somebody signed what was not there")
        for client in self.market.clients:
            account = client.purse.account
            contract = self.market.chain.ledger.contracts[account]
            assert isinstance(contract, Account)
            for provider in self.market.providers:
                pair = self._pairs.get((account, provider.payout))
                entry = contract.entries.get(provider.payout)
                claimed = 0 if entry is None else entry.claimed_nano
                if pair is None:
                    continue
                self._check_pair(client, provider, pair, claimed)

    def _check_pair(self, client: ClientPeer, provider: ProviderPeer, pair: Pair, claimed: int) -> None:
        who = f"{provider.setup.name} of {client.setup.name}"
        if claimed + DUST_NANO < pair.acknowledged:
            self.broken(f"{who}: {pair.acknowledged} was acknowledged, {claimed} reached the chain")
        signed = 0 if pair.left is None else pair.left.voucher.cumulative_nano
        if claimed > signed:
            self.broken(f"{who}: the chain paid {claimed}, {signed} was signed")
        if pair.confirmed > claimed:
            self.broken(f"{who}: {pair.confirmed} was confirmed, the chain paid {claimed}")
        due = sum(meter.due_nano for meter in self._meters.get((client.purse.account, provider.payout), ()))
        if signed > due:
            self.broken(f"{who}: {signed} was signed for what costs {due}")
