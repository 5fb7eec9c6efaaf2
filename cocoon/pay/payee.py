"""The provider's side of money: one per payout address, over all accounts, sessions and requests. Without I/O.

It says how many tokens may leave, takes vouchers, asks for proofs and ceilings, and decides when to claim. Money
counts only once it is on disk (`persisted`), reservations only once they are proven (`account_proven`). A refused
input raises and changes nothing. See the README for who calls what, and when.

What it does not do: prove accounts, talk to clients, verify session signatures (`cocoon.serve` does), build messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..errors import BadSignature, LocalProtocolError
from ..ports import PaymentRecord, StoredReservation, StoredVoucher, VoucherSide
from ..ports.chain import SpendingAccount
from ..types import MILLISECOND_NS, SECOND_NS, Digest, Nano, Network, Prices
from . import claims
from .account import PROOF_AGE_MAX_NS, AccountRules, Standing, check_proof, standing_of
from .effects import (
    CeilingWanted,
    ClaimConfirmed,
    CreditChanged,
    Effect,
    Effects,
    Emit,
    EpochRolled,
    ForeignClaim,
    PaymentStopped,
    Persist,
    RequestKey,
    VoucherAccepted,
)
from .ledger import CREDIT_AGE_MAX_NS, Ledger, ServedRequest
from .metering import Meter, prompt_nano
from .refusals import Fault, PaymentRefused
from .rounds import PROVE_ACTIVE_NS, PROVE_CLAIM_NS, PROVE_RETRY_NS, Rounds, claim_record
from .voucher import SignedVoucher, Verify, parse_voucher

ACCOUNTS_MAX: Final = 100_000  # about 150 MB of ledgers; whoever holds money of ours is never dropped
REQUESTS_PER_ACCOUNT_MAX: Final = 1_024  # what the engine admits at once is far less
ASK_CEILING_NS: Final = 10 * SECOND_NS  # between two requests for a ceiling
WRITE_RETRY_NS: Final = SECOND_NS
PROVE_START_SPACING_NS: Final = 20 * MILLISECOND_NS  # after a restart: 50 accounts a second


@dataclass(frozen=True, slots=True, kw_only=True)
class PayeeTerms:
    """What the operator decides. `claim_cost_nano` is one claim's gas and its share of a wallet message."""

    claim_cost_nano: Nano
    window_tokens_max: int  # `terms.unpaid_tokens_max` of our offers
    accounts_max: int = ACCOUNTS_MAX


class Payee:
    """See the file's head. Before making one, `store.hold(ledger_id(network, payout))` (rule M1)."""

    def __init__(
        self,
        *,
        network: Network,
        payout: bytes,
        rules: AccountRules,
        verify: Verify,
        terms: PayeeTerms,
        restored: tuple[StoredVoucher, ...] = (),
        settled: tuple[StoredReservation, ...] = (),
        now: int,
    ) -> None:
        self._network = network
        self._payout = payout
        self._rules = rules
        self._verify = verify
        self._terms = terms
        self._ledgers: dict[bytes, Ledger] = {}
        self._sessions: dict[Digest, Ledger] = {}
        self._rounds = Rounds(network, self._ledgers, claim_cost_nano=terms.claim_cost_nano)
        done = {(each.account, each.epoch): each.claimed_nano for each in settled}
        for record in restored:
            if done.get((record.account, record.epoch), 0) >= record.cumulative_nano:
                continue  # should its account come back, its ledger begins at what is claimed
            ledger = self._ledgers.get(record.account)
            if ledger is None:
                ledger = self._ledgers[record.account] = self._new_ledger(record.account, now)
                ledger.prove_at_ns = now + len(self._ledgers) * PROVE_START_SPACING_NS
            ledger.archive[record.epoch] = record
        for ledger in self._ledgers.values():
            self._rounds.schedule(ledger, now)

    # --- what the driver asks ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._ledgers)

    def ledger(self, account: bytes) -> Ledger | None:
        """This account's sums, to be shown; never to be changed."""
        return self._ledgers.get(account)

    def needs_proof(self, account: bytes, *, now: int) -> bool:
        """Whether to look the account up before `authenticate` or `admit`: no proof, or one too old to start with."""
        ledger = self._ledgers.get(account)
        if ledger is None or ledger.standing is None:
            return True
        if ledger.is_unreachable and now < ledger.prove_not_before_ns:
            return False  # just tried
        age_ns = ledger.standing.age_ns(now)
        return age_ns > (PROVE_ACTIVE_NS if ledger.requests else PROOF_AGE_MAX_NS)

    def tokens_allowed(self, key: RequestKey, wanted: int, *, now: int) -> int:
        """How many of `wanted` output tokens of this request may leave now; 0 for one that is over.

        Less than wanted means: wait for `VoucherAccepted` or `CreditChanged`, and ask again.
        """
        ledger, request = self._find(key)
        if ledger is None or request is None:
            return 0
        allowed = ledger.tokens_allowed(request, wanted, now=now)
        ledger.grant = (request, allowed, now)
        if allowed >= wanted:
            request.blocked_since_ns = None
        elif request.blocked_since_ns is None:
            request.blocked_since_ns = now
            self._rounds.schedule(ledger, now)
        return allowed

    # --- accounts and sessions ---------------------------------------------------------------------------

    def account_proven(self, state: SpendingAccount, *, now: int) -> Effects:
        """The chain's newest word on an account, asked for by `Prove` or `needs_proof`.

        Raises `PaymentRefused` for a proof that is too old or not of this address, or when there are too many
        accounts. An older proof than the last one changes nothing.
        """
        check_proof(state, self._rules, now=now)
        standing = standing_of(state, self._payout, self._rules)
        ledger = self._ledgers.get(state.account)
        if ledger is None:
            self._make_room()
            ledger = self._ledgers[state.account] = self._new_ledger(state.account, now)
        out: list[Effect] = []
        if ledger.standing is not None and standing.at_s < ledger.standing.at_s:
            return ()
        old_key = None if ledger.standing is None else ledger.standing.key
        old_entry = None if ledger.standing is None else (ledger.standing.claimed_nano, ledger.standing.ceiling_nano)
        if ledger.standing is None or ledger.standing.epoch != standing.epoch:
            is_roll = ledger.standing is not None
            lost = ledger.roll(standing)
            if is_roll:
                out.append(Emit(event=EpochRolled(account=state.account, epoch=standing.epoch, lost_nano=lost)))
        confirmed = ledger.prove(standing)
        if standing.claimed_nano > ledger.paid_nano:
            if ledger.held is not None:  # else it is only a ledger that was settled, or lost, before
                held = ledger.paid_nano
                event = ForeignClaim(account=state.account, claimed_nano=standing.claimed_nano, held_nano=held)
                out.append(Emit(event=event))
            ledger.pay(standing.claimed_nano)
        if confirmed:
            out.append(Emit(event=ClaimConfirmed(account=state.account, amount_nano=confirmed)))
        records = self._proven_records(ledger, standing, old_entry, confirmed, now)
        if records:
            out.insert(0, Persist(records=records))
        if old_key is not None and old_key != standing.key:
            self._drop_sessions(ledger)
            out.extend(self._stop(ledger, Fault.UNAUTHENTICATED))
        fault = ledger.stop_reason(now)
        if fault is not None:
            out.extend(self._stop(ledger, fault))
        elif ledger.requests:
            out.append(Emit(event=CreditChanged(account=state.account)))
        self._rounds.schedule(ledger, now)
        return tuple(out)

    def account_unreachable(self, account: bytes, *, now: int) -> Effects:
        """The chain did not answer, or servers disagreed. What the last proof allows goes on, for a while."""
        ledger = self._ledgers.get(account)
        if ledger is not None:
            ledger.is_unreachable = True
            ledger.prove_not_before_ns = now + PROVE_RETRY_NS
            self._rounds.schedule(ledger, now)
        return ()

    def authenticate(self, session: Digest, *, account: bytes, voucher_key: bytes, payout: bytes, now: int) -> None:
        """This session has proven to hold `voucher_key`, for this account and payout address (rule S2).

        Raises `PaymentRefused` unless that key is V of the proven state: what others saw on chain pays for nothing.
        """
        if payout != self._payout:
            raise PaymentRefused(Fault.FOREIGN_VOUCHER, "the session is for another payout address")
        ledger = self._ledgers.get(account)
        fault = Fault.UNPROVEN if ledger is None else ledger.stop_reason(now)
        if fault is not None or ledger is None or ledger.standing is None:
            raise PaymentRefused(fault or Fault.UNPROVEN, "the account is not good for payment")
        if self._sessions.get(session, ledger) is not ledger:
            raise LocalProtocolError("a session was authenticated for two accounts")
        if ledger.standing.key != voucher_key:
            raise PaymentRefused(Fault.UNAUTHENTICATED, "the session's key is not the account's voucher key")
        ledger.key_sessions.add(session)
        ledger.touched_ns = now
        self._sessions[session] = ledger

    def session_closed(self, session: Digest, *, now: int) -> Effects:
        """The session is over; so are its requests."""
        ledger = self._sessions.get(session)
        if ledger is None:
            return ()
        out: list[Effect] = []
        for key in [key for key in ledger.requests if key.session == session]:
            out.extend(self.ended(key, is_natural=False, now=now))
        ledger.key_sessions.discard(session)
        del self._sessions[session]
        return tuple(out)

    # --- requests ----------------------------------------------------------------------------------------

    def admit(self, key: RequestKey, *, prices: Prices, input_tokens: int, now: int) -> Effects:
        """Take a request with so many prompt tokens, as the engine counted them, before it is accepted.

        Raises `PaymentRefused`; its `ceiling_nano` is the reservation that would let it in.
        """
        ledger = self._sessions.get(key.session)
        if ledger is None:
            raise PaymentRefused(Fault.UNAUTHENTICATED, "this session has not proven its account")
        if key in ledger.requests:
            raise LocalProtocolError("a request was admitted twice")
        fault = ledger.stop_reason(now)
        if fault is not None or ledger.standing is None:
            raise PaymentRefused(fault or Fault.UNPROVEN, "the account is not good for payment")
        if ledger.standing.age_ns(now) > CREDIT_AGE_MAX_NS and ledger.exposure_nano() >= 0:
            raise PaymentRefused(Fault.UNPROVEN, "the chain has not been seen for an hour")
        if len(ledger.requests) >= REQUESTS_PER_ACCOUNT_MAX:
            raise PaymentRefused(Fault.BUSY, "too many requests of one account")
        ledger.forgive(now)
        if ledger.unpaid.count >= ledger.window_tokens:
            raise PaymentRefused(Fault.UNPAID, f"{ledger.unpaid.count} tokens are unpaid")
        prompt = prompt_nano(prices, input_tokens=input_tokens)
        if not ledger.takes_prompt(prompt, prices.output_nano, now=now):
            wanted = self._ceiling(ledger, ledger.unvested_nano + prompt)
            ledger.ceiling_asked_nano = max(ledger.ceiling_asked_nano, wanted)
            raise PaymentRefused(Fault.RESERVATION_NEEDED, f"reserve {wanted} nanoTON in all", ceiling_nano=wanted)
        ledger.requests[key] = ServedRequest(Meter(prices, input_tokens=input_tokens))
        ledger.touched_ns = now
        self._rounds.schedule(ledger, now)
        return ()

    def release(self, key: RequestKey, tokens: int, *, cached_tokens: int = 0, now: int) -> Effects:
        """So many more output tokens of it leave now: call it in the same step in which they were allowed.

        Raises `LocalProtocolError` for more than `tokens_allowed`; then nothing has changed.
        """
        ledger, request = self._find(key)
        if ledger is None or request is None:
            raise LocalProtocolError("output of a request that is not admitted")
        grant = ledger.grant  # of the same step: nothing has changed since
        is_granted = grant is not None and grant[0] is request and grant[2] == now and tokens <= grant[1]
        if not is_granted and tokens > ledger.tokens_allowed(request, tokens, now=now):
            raise LocalProtocolError("more tokens leave than are allowed")
        meter = request.meter
        risen = meter.count(output_tokens=meter.output_tokens + tokens, cached_tokens=cached_tokens)
        ledger.release(tokens, risen)
        return self._after_release(ledger, now)

    def ended(
        self, key: RequestKey, *, is_natural: bool, is_our_fault: bool = False, cached_tokens: int = 0, now: int
    ) -> Effects:
        """It is over; `is_natural` when its sealed end leaves, which makes all of the prompt due. Twice is harmless.

        The unvested prompt of a request that the client ended counts against its credit until as much is paid.
        """
        ledger, request = self._find(key)
        if ledger is None or request is None:
            return ()
        meter = request.meter
        if is_natural:
            risen = meter.count(output_tokens=meter.output_tokens, cached_tokens=cached_tokens, is_ended=True)
            ledger.release(0, risen)
        if is_our_fault:
            del ledger.requests[key]
        else:
            ledger.forfeit(key)
        ledger.touched_ns = now
        return self._after_release(ledger, now)

    def meter(self, key: RequestKey) -> Meter | None:
        """This request's counts, to be shown; never to be changed. None for one that is not admitted."""
        _, request = self._find(key)
        return None if request is None else request.meter

    def due_nano(self, key: RequestKey) -> Nano:
        """What this request owes so far: what its receipt must say. 0 for one that is over."""
        _, request = self._find(key)
        return 0 if request is None else request.meter.due_nano

    # --- vouchers ----------------------------------------------------------------------------------------

    def receive_voucher(self, session: Digest, data: bytes, signature: bytes, *, now: int) -> Effects:
        """A voucher on this session, with `Open` or by itself. It counts from `persisted` on.

        One that is not above the newest changes nothing. Raises `PaymentRefused` or `DecodeError`.
        """
        ledger = self._sessions.get(session)
        if ledger is None or ledger.standing is None:
            raise PaymentRefused(Fault.UNAUTHENTICATED, "this session has not proven its account")
        signed = parse_voucher(data, signature)
        voucher, standing = signed.voucher, ledger.standing
        ours = (self._network, ledger.account, standing.epoch, self._payout)
        if (voucher.network, voucher.account, voucher.epoch, voucher.provider) != ours:
            raise PaymentRefused(Fault.FOREIGN_VOUCHER, "the voucher is not for this ledger")
        newest = ledger.newest
        last = (0, 0) if newest is None else (newest.cumulative_nano, newest.ceiling_nano)
        if voucher.cumulative_nano <= last[0] and voucher.ceiling_nano <= last[1]:
            return ()
        if voucher.cumulative_nano < last[0] or voucher.ceiling_nano < last[1]:
            raise PaymentRefused(Fault.VOUCHER_FELL, "neither amount of a voucher may fall")
        try:
            self._verify(standing.key, signature, data)
        except BadSignature as error:
            raise PaymentRefused(Fault.BAD_VOUCHER, "the voucher's signature does not verify") from error
        record = StoredVoucher(
            side=VoucherSide.HELD,
            network=int(self._network),
            account=voucher.account,
            epoch=voucher.epoch,
            provider=voucher.provider,
            cumulative_nano=voucher.cumulative_nano,
            ceiling_nano=voucher.ceiling_nano,
            key=standing.key,
            signature=signature,
            clean_tokens=ledger.clean_tokens,
            at_ns=now,
        )
        ledger.touched_ns = now
        if ledger.writing is not None or ledger.retry_write_ns is not None:
            ledger.next = record
            return ()
        ledger.writing = record
        return (Persist(records=(record,)),)

    def persisted(self, records: tuple[PaymentRecord, ...], *, now: int) -> Effects:
        """These are on disk."""
        out: list[Effect] = []
        for record in records:
            if isinstance(record, StoredVoucher):
                self._voucher_kept(record, out, now)
        return tuple(out)

    def persist_failed(self, records: tuple[PaymentRecord, ...], *, now: int) -> Effects:
        """They are not. Vouchers are tried again soon and count for nothing until then."""
        for record in records:
            ledger = self._ledgers.get(record.account)
            if isinstance(record, StoredVoucher) and ledger is not None and ledger.writing == record:
                ledger.next = ledger.next or record
                ledger.writing = None
                ledger.retry_write_ns = now + WRITE_RETRY_NS
                self._rounds.schedule(ledger, now)
        return ()

    def _voucher_kept(self, record: StoredVoucher, out: list[Effect], now: int) -> None:
        ledger = self._ledgers.get(record.account)
        if ledger is None:
            return
        is_current = ledger.standing is not None and ledger.standing.epoch == record.epoch
        kept = ledger.held if is_current else ledger.archive.get(record.epoch)
        if ledger.writing == record:
            ledger.writing, ledger.next = ledger.next, None
        elif kept is not None and kept.cumulative_nano >= record.cumulative_nano:
            return
        if not is_current:  # another epoch was proven while it was written; should that prove wrong, it is here
            ledger.archive[record.epoch] = record
            return
        if ledger.claimable_nano == 0:
            ledger.unclaimed_since_ns = now
        ledger.held = record
        amount = ledger.pay(record.cumulative_nano)
        event = VoucherAccepted(account=record.account, amount_nano=amount, paid_nano=ledger.paid_nano)
        out.append(Emit(event=event))
        for request in ledger.requests.values():
            request.blocked_since_ns = None
        if ledger.writing is not None:
            out.append(Persist(records=(ledger.writing,)))
        self._rounds.schedule(ledger, now)

    # --- claims and time ---------------------------------------------------------------------------------

    def submit_failed(self, failed: tuple[SignedVoucher, ...], *, now: int) -> Effects:
        """They did not reach the chain, or nobody knows; submitted again later, and twice is harmless."""
        for signed in failed:
            ledger = self._ledgers.get(signed.voucher.account)
            if ledger is not None:
                ledger.prove_at_ns = now + PROVE_CLAIM_NS
                self._rounds.schedule(ledger, now)
        return ()

    def claim_all(self, *, now: int) -> Effects:
        """Submit everything that is worth its cost, as many messages as it takes."""
        due = [each for each in self._ledgers.values() if each.claimable_nano > self._terms.claim_cost_nano]
        return self._rounds.submit(due, now)

    def deadline(self) -> int | None:
        """When `on_time` has work, in ns."""
        return self._rounds.deadline()

    def on_time(self, *, now: int) -> Effects:
        """Do what is due: proofs, claims, writes again, output that waited too long for payment."""
        return self._rounds.on_time(now=now)

    # --- helpers -----------------------------------------------------------------------------------------

    def _find(self, key: RequestKey) -> tuple[Ledger | None, ServedRequest | None]:
        ledger = self._sessions.get(key.session)
        return ledger, None if ledger is None else ledger.requests.get(key)

    def _new_ledger(self, account: bytes, now: int) -> Ledger:
        return Ledger(account, window_tokens_max=self._terms.window_tokens_max, now=now)

    def _ceiling(self, ledger: Ledger, more_nano: Nano) -> Nano:
        """The reservation to ask for: what is due, what is to come, and a step; not more than the account has free."""
        standing = ledger.standing
        if standing is None:
            return 0
        wanted = ledger.due_nano - ledger.forgiven_nano + more_nano
        wanted += claims.ceiling_step_nano(self._terms.claim_cost_nano)
        return max(standing.ceiling_nano, min(wanted, standing.ceiling_nano + standing.free_nano))

    def _after_release(self, ledger: Ledger, now: int) -> Effects:
        standing = ledger.standing
        if standing is None or not ledger.is_half_used:
            return ()
        if now - ledger.ceiling_asked_ns < ASK_CEILING_NS:
            return ()
        ledger.ceiling_asked_ns = now
        if standing.age_ns(now) > PROOF_AGE_MAX_NS:
            ledger.prove_at_ns = now
        self._rounds.schedule(ledger, now)
        wanted = self._ceiling(ledger, 0)
        newest = ledger.newest
        if wanted <= max(standing.ceiling_nano, 0 if newest is None else newest.ceiling_nano):
            return ()
        return (Emit(event=CeilingWanted(account=ledger.account, ceiling_nano=wanted)),)

    def _proven_records(
        self,
        ledger: Ledger,
        standing: Standing,
        old_entry: tuple[Nano, Nano] | None,
        confirmed: Nano,
        now: int,
    ) -> tuple[PaymentRecord, ...]:
        records: list[PaymentRecord] = []
        entry = (standing.claimed_nano, standing.ceiling_nano)
        if entry not in (old_entry, (0, 0)):
            records.append(
                StoredReservation(
                    network=int(self._network),
                    account=ledger.account,
                    epoch=standing.epoch,
                    provider=self._payout,
                    claimed_nano=standing.claimed_nano,
                    ceiling_nano=standing.ceiling_nano,
                    proven_s=standing.at_s,
                    at_ns=now,
                )
            )
        submitted = ledger.claimed_voucher
        if submitted is not None and old_entry is not None and entry != old_entry:
            records.append(claim_record(submitted, now, confirmed_ns=now, received_nano=confirmed))
            ledger.claimed_voucher = None
            ledger.claim_attempts = ledger.claim_again_ns = 0
            ledger.is_bond_falling = False
            ledger.unclaimed_since_ns = now
        return tuple(records)

    def _stop(self, ledger: Ledger, fault: Fault) -> Effects:
        keys = tuple(ledger.requests)
        if not keys:
            return ()
        for key in keys:
            ledger.forfeit(key)
        return (Emit(event=PaymentStopped(account=ledger.account, fault=fault, requests=keys)),)

    def _drop_sessions(self, ledger: Ledger) -> None:
        for session in ledger.key_sessions:
            self._sessions.pop(session, None)
        ledger.key_sessions.clear()

    def _make_room(self) -> None:
        if len(self._ledgers) < self._terms.accounts_max:
            return
        idle = [each for each in self._ledgers.values() if each.is_forgettable]
        if not idle:
            raise PaymentRefused(Fault.BUSY, "too many accounts")
        idle.sort(key=lambda each: each.touched_ns)
        for ledger in idle[: 1 + len(idle) // 8]:  # several at once: the scan is not paid for every newcomer
            del self._ledgers[ledger.account]
