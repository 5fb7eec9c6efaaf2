"""The payee's rounds: which ledger is looked at when, for proofs, claims, writes that failed, and overdue payment.

One heap over all ledgers, so that ten thousand idle accounts cost nothing. A wake that comes too early looks again.
Not here: what a proof or a voucher changes (`payee`), and when a claim is worth it (`claims`).
"""

from __future__ import annotations

import heapq
from typing import Final

from ..ports import PaymentRecord, StoredClaim, StoredVoucher
from ..types import SECOND_NS, Nano, Network
from . import claims
from .effects import Effect, Effects, Emit, PaymentStopped, Persist, Prove, Submit
from .ledger import Ledger
from .refusals import Fault
from .voucher import SignedVoucher, Voucher

PROVE_ACTIVE_NS: Final = 300 * SECOND_NS  # account.md §4: every 5 min while anything is unsecured
PROVE_IDLE_NS: Final = 6 * 3_600 * SECOND_NS  # every 6 h while anything is claimable: notices last 24 h
PROVE_RETRY_NS: Final = 30 * SECOND_NS
PROVE_CLAIM_NS: Final = 15 * SECOND_NS  # some blocks after a claim was handed over
OVERDUE_NS: Final = 30 * SECOND_NS  # output that waits so long for payment fails its request


class Rounds:
    """Over the payee's own ledgers, which it shares."""

    def __init__(self, network: Network, ledgers: dict[bytes, Ledger], *, claim_cost_nano: Nano) -> None:
        self._network = network
        self._ledgers = ledgers
        self._claim_cost_nano = claim_cost_nano
        self._heap: list[tuple[int, bytes]] = []

    def deadline(self) -> int | None:
        """When `on_time` has work."""
        return self._heap[0][0] if self._heap else None

    def on_time(self, *, now: int) -> Effects:
        """Do what is due: proofs, claims, writes again, output that waited too long for payment."""
        out: list[Effect] = []
        due: list[Ledger] = []
        while self._heap and self._heap[0][0] <= now:
            when, account = heapq.heappop(self._heap)
            ledger = self._ledgers.get(account)
            if ledger is None or ledger.wake_ns != when:
                continue
            ledger.wake_ns = None
            self._ledger_on_time(ledger, out, now)
            claim_ns = self._claim_at(ledger, now)
            if claim_ns is not None and claim_ns <= now:
                due.append(ledger)
            else:
                self.schedule(ledger, now)
        if due:
            out.extend(self.submit(self._with_riders(due, now), now))
        return tuple(out)

    def _ledger_on_time(self, ledger: Ledger, out: list[Effect], now: int) -> None:
        if ledger.retry_write_ns is not None and ledger.retry_write_ns <= now:
            ledger.retry_write_ns = None
            ledger.writing, ledger.next = ledger.next, None
            if ledger.writing is not None:
                out.append(Persist(records=(ledger.writing,)))
        proof_ns = self._proof_at(ledger)
        if proof_ns is not None and proof_ns <= now:
            if ledger.standing is not None:  # without any proof, asked again until there is one
                ledger.prove_at_ns = None
            ledger.prove_not_before_ns = now + PROVE_RETRY_NS
            out.append(Prove(account=ledger.account))
        overdue = tuple(
            key
            for key, request in ledger.requests.items()
            if request.blocked_since_ns is not None and now - request.blocked_since_ns >= OVERDUE_NS
        )
        if overdue:
            for key in overdue:
                ledger.forfeit(key)
            event = PaymentStopped(account=ledger.account, fault=Fault.OVERDUE, requests=overdue)
            out.append(Emit(event=event))

    def submit(self, ledgers: list[Ledger], now: int) -> Effects:
        """Persist first: after a crash the claim is known, and made again."""
        out: list[Effect] = []
        for start in range(0, len(ledgers), claims.CLAIMS_PER_MESSAGE_MAX):
            records: list[PaymentRecord] = []
            signed: list[SignedVoucher] = []
            for ledger in ledgers[start : start + claims.CLAIMS_PER_MESSAGE_MAX]:
                held, standing = ledger.held, ledger.standing
                assert held is not None and standing is not None
                ledger.claim_attempts += 1
                wait_ns = claims.retry_ns(ledger.claim_attempts, is_noticed=standing.unlock_at_s != 0)
                ledger.claim_again_ns = now + wait_ns
                ledger.claimed_voucher = held
                ledger.prove_at_ns = now + PROVE_CLAIM_NS
                ledger.prove_not_before_ns = 0
                records.append(claim_record(held, now))
                signed.append(_signed(held, self._network))
                self.schedule(ledger, now)
            out.append(Persist(records=tuple(records)))
            out.append(Submit(claims=tuple(signed)))
        return tuple(out)

    def _with_riders(self, due: list[Ledger], now: int) -> list[Ledger]:
        """Those due, and others worth claiming, up to one message: the wallet's own gas is shared."""
        room = claims.CLAIMS_PER_MESSAGE_MAX - len(due)
        if room <= 0:
            return due
        chosen = {each.account for each in due}
        worth = claims.CLAIM_COSTS_RIDING * self._claim_cost_nano
        riders = [
            each
            for each in self._ledgers.values()
            if each.held is not None
            and each.account not in chosen
            and each.claimable_nano >= worth
            and each.claim_again_ns <= now
        ]
        riders.sort(key=lambda each: -each.claimable_nano)
        return due + riders[:room]

    # --- the clock ---------------------------------------------------------------------------------------

    def _proof_at(self, ledger: Ledger) -> int | None:
        when = ledger.prove_at_ns
        standing = ledger.standing
        if standing is not None:
            due_ns: int | None = None
            if ledger.requests or ledger.exposure_nano() > 0:
                due_ns = standing.at_s * SECOND_NS + PROVE_ACTIVE_NS
            elif ledger.claimable_nano:
                due_ns = standing.at_s * SECOND_NS + PROVE_IDLE_NS
            if due_ns is not None and (when is None or due_ns < when):
                when = due_ns
        return None if when is None else max(when, ledger.prove_not_before_ns)

    def _claim_at(self, ledger: Ledger, now: int) -> int | None:
        case = ledger.claim_case(self._claim_cost_nano)
        when = None if case is None else claims.claim_at(case, now=now)
        return None if when is None else max(when, ledger.claim_again_ns)

    def schedule(self, ledger: Ledger, now: int) -> None:
        """Wake at the earliest of its moments. A wake that is too early looks again; none is ever too late."""
        moments = [ledger.retry_write_ns, self._proof_at(ledger), self._claim_at(ledger, now)]
        moments += [
            request.blocked_since_ns + OVERDUE_NS
            for request in ledger.requests.values()
            if request.blocked_since_ns is not None
        ]
        known = [when for when in moments if when is not None]
        if not known:
            return
        when = min(known)
        if ledger.wake_ns is None or when < ledger.wake_ns:
            ledger.wake_ns = when
            heapq.heappush(self._heap, (when, ledger.account))
        if len(self._heap) > 4 * len(self._ledgers) + 64:  # entries of wakes that were moved earlier
            self._heap = [(each.wake_ns, each.account) for each in self._ledgers.values() if each.wake_ns is not None]
            heapq.heapify(self._heap)


def _signed(record: StoredVoucher, network: Network) -> SignedVoucher:
    voucher = Voucher(
        network=network,
        account=record.account,
        epoch=record.epoch,
        provider=record.provider,
        cumulative_nano=record.cumulative_nano,
        ceiling_nano=record.ceiling_nano,
    )
    return SignedVoucher(voucher=voucher, signature=record.signature)


def claim_record(record: StoredVoucher, now: int, *, confirmed_ns: int = 0, received_nano: Nano = 0) -> StoredClaim:
    """The record of a voucher that is handed to the chain now."""
    return StoredClaim(
        network=record.network,
        account=record.account,
        epoch=record.epoch,
        provider=record.provider,
        cumulative_nano=record.cumulative_nano,
        ceiling_nano=record.ceiling_nano,
        submitted_ns=now,
        confirmed_ns=confirmed_ns,
        received_nano=received_nano,
    )
