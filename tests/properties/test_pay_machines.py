"""Laws of paying, whatever is lost and whoever dies when: a real payer, a real payee, a wire and two disks that fail.

Each `Persist` waits in a queue until its disk writes it, so a crash can come between any two steps: signed but not
written, written but not sent, sent but lost, accepted but not written, written but not acknowledged. Laws:

- what the provider acknowledged is on its disk for ever, and claimable;
- of all vouchers that ever left the client, no two contradict: in the order of leaving neither amount falls;
- the client never signs more than it received, and never more than its account can pay;
- the provider is never owed more than its window, plus the stated allowance for crashes and lost frames.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cocoon.errors import PaymentError
from cocoon.pay.budget import Attempt, Budget
from cocoon.pay.effects import Effects, Emit, PaymentStopped, Persist, Prove, RequestKey, Send, Submit, VoucherAccepted
from cocoon.pay.payee import Payee
from cocoon.pay.payer import Payer
from cocoon.pay.refusals import PaymentRefused
from cocoon.pay.voucher import SignedVoucher, parse_open_voucher
from cocoon.pay.window import FORGIVEN_INTERVAL_NS, FORGIVEN_TOKENS_MAX, WINDOW_TOKENS_MAX, WINDOW_TOKENS_MIN
from cocoon.ports import PaymentRecord, VoucherSide
from cocoon.types import MILLISECOND_NS, PRICE_UNIT_TOKENS, SECOND_NS, due_nano
from cocoon.wire.signing import verify
from tests.fakes.pay import (
    NET,
    NOW,
    PAYOUT,
    PRICES,
    RULES,
    SPENDING,
    TERMS,
    TON,
    Disk,
    FakeAccount,
    V,
    terms_of,
)  # fmt: skip

OUTPUT_ONLY = replace(PRICES, input_nano=0, cached_input_nano=0)
OUTPUT_MAX = 2_000
PAUSES_NS = [MILLISECOND_NS, 300 * MILLISECOND_NS, 5 * SECOND_NS, 40 * SECOND_NS, 3_600 * SECOND_NS]


class Stream:
    """One request of one session, as the test itself counts it."""

    def __init__(self, key: RequestKey, budget: Budget, attempt: Attempt) -> None:
        self.key = key
        self.budget = budget
        self.attempt = attempt
        self.released = 0  # left the provider
        self.received = 0  # reached the client
        self.is_over_here = False
        self.is_over_there = False


class PayingPair(RuleBasedStateMachine):
    """See the file's head."""

    @initialize(bond=st.sampled_from([0, TON // 1_000, TON]), balance=st.sampled_from([TON // 10, 5 * TON]))
    def begin(self, bond: int, balance: int) -> None:
        self.now = NOW
        self.account = FakeAccount(bond_nano=bond, balance_nano=balance + bond)
        self.start_balance = self.account.balance_nano
        self.client_disk, self.provider_disk = Disk(), Disk()
        self.streams: list[Stream] = []
        self.past_due = self.past_streams = 0  # of streams that a reconnect ended
        self.left: list[SignedVoucher] = []  # vouchers that left the client, in order
        self.acknowledged = 0
        self.received_due = 0
        self.payee_crashes = 0
        self.sessions = 0
        self.is_chain_up = True
        self.is_authenticated = False
        self.start_client()
        self.start_provider()
        self.connect()

    # --- the two processes -------------------------------------------------------------------------------

    def start_client(self) -> None:
        self.client_writes: deque[tuple[PaymentRecord, ...]] = deque()
        self.payer = Payer(
            network=NET, account=self.account.account, key=V.public, sign=V.sign, rules=RULES, terms=SPENDING,
            restored=self.client_disk.restored(VoucherSide.ISSUED), now=self.now,
        )  # fmt: skip
        self.client_did(self.payer.account_proven(self.account.state(self.now), now=self.now))

    def start_provider(self) -> None:
        self.provider_writes: deque[tuple[PaymentRecord, ...]] = deque()
        self.payee = Payee(
            network=NET, payout=PAYOUT, rules=RULES, verify=verify, terms=TERMS,
            restored=self.provider_disk.restored(VoucherSide.HELD), now=self.now,
        )  # fmt: skip

    def connect(self) -> None:
        """A new session; whatever was on the wire is lost."""
        self.is_authenticated = False
        for stream in self.streams:
            if not stream.is_over_here:
                stream.is_over_here = True
                self.client_did(self.payer.close(stream.attempt, now=self.now))
                self.client_did(self.payer.settle(stream.budget, now=self.now))
            stream.is_over_there = True
        self.past_due += sum(_due(stream.released) for stream in self.streams)
        self.past_streams += len(self.streams)
        self.streams.clear()
        if self.sessions:
            self.provider_did(self.payee.session_closed(self.session, now=self.now))
        self.sessions += 1
        self.session = self.sessions.to_bytes(32, "big")
        self.to_client: deque[tuple[Stream, int, bool]] = deque()
        self.to_provider: deque[SignedVoucher] = deque()
        if self.is_chain_up:
            self.provider_did(self.payee.account_proven(self.account.state(self.now), now=self.now))
        try:
            self.payee.authenticate(
                self.session, account=self.account.account, voucher_key=V.public, payout=PAYOUT, now=self.now
            )
        except PaymentRefused:
            return  # the chain was never seen: nothing is served
        self.is_authenticated = True
        voucher = parse_open_voucher(self.payer.open_voucher(PAYOUT))
        if voucher is not None:
            self.left.append(voucher)
            self.to_provider.append(voucher)

    def client_did(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case Persist():
                    self.client_writes.append(effect.records)
                case Send():
                    if self.is_authenticated:
                        self.left.append(effect.voucher)
                        self.to_provider.append(effect.voucher)
                case Prove():
                    if self.is_chain_up:
                        self.client_did(self.payer.account_proven(self.account.state(self.now), now=self.now))
                    else:
                        self.client_did(self.payer.account_unreachable(now=self.now))

    def provider_did(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case Persist():
                    self.provider_writes.append(effect.records)
                case Submit():
                    if self.is_chain_up:
                        for signed in effect.claims:
                            self.account.claim(signed)
                    else:
                        self.provider_did(self.payee.submit_failed(effect.claims, now=self.now))
                case Prove():
                    if self.is_chain_up:
                        self.provider_did(self.payee.account_proven(self.account.state(self.now), now=self.now))
                    else:
                        self.provider_did(self.payee.account_unreachable(effect.account, now=self.now))
                case Emit(event=VoucherAccepted() as event):
                    self.acknowledged = max(self.acknowledged, event.paid_nano)
                case Emit(event=PaymentStopped() as event):
                    for stream in self.streams:
                        if stream.key in event.requests:
                            stream.is_over_there = True

    # --- rules -------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.streams) < 6)
    @rule()
    def open(self) -> None:
        key = RequestKey(session=self.session, id=len(self.streams))
        try:
            budget = self.payer.begin(TON // 1_000)
        except PaymentError:
            return
        attempt = self.payer.attempt(
            budget, terms_of(PAYOUT, OUTPUT_ONLY), input_tokens_max=10, output_tokens_max=OUTPUT_MAX
        )
        try:
            self.provider_did(self.payee.admit(key, prices=OUTPUT_ONLY, input_tokens=10, now=self.now))
        except PaymentRefused:
            self.client_did(self.payer.close(attempt, now=self.now))
            self.client_did(self.payer.settle(budget, now=self.now))
            return
        self.streams.append(Stream(key, budget, attempt))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), wanted=st.sampled_from([1, 5, 30, 500, 5_000]))
    def produce(self, data: st.DataObject, wanted: int) -> None:
        stream = data.draw(st.sampled_from(self.streams))
        if stream.is_over_there:
            return
        self.let_leave(stream, wanted)

    def let_leave(self, stream: Stream, wanted: int) -> None:
        wanted = min(wanted, OUTPUT_MAX - stream.released)
        allowed = self.payee.tokens_allowed(stream.key, wanted, now=self.now)
        assert 0 <= allowed <= wanted
        if allowed:
            self.provider_did(self.payee.release(stream.key, allowed, now=self.now))
            stream.released += allowed
            self.to_client.append((stream, stream.released, False))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), is_natural=st.booleans())
    def finish(self, data: st.DataObject, is_natural: bool) -> None:
        stream = data.draw(st.sampled_from(self.streams))
        if stream.is_over_there:
            return
        stream.is_over_there = True
        self.provider_did(self.payee.ended(stream.key, is_natural=is_natural, now=self.now))
        if is_natural:
            self.to_client.append((stream, stream.released, True))

    @rule(frames=st.integers(1, 4))
    def deliver_output(self, frames: int) -> None:
        for _ in range(min(frames, len(self.to_client))):
            stream, tokens, is_end = self.to_client.popleft()
            if stream.is_over_here:
                continue
            self.received_due += _due(tokens) - _due(stream.received)
            stream.received = tokens
            self.client_did(
                self.payer.received(stream.attempt, prompt_tokens=10, completion_tokens=tokens, now=self.now)
            )
            if is_end:
                stream.is_over_here = True
                self.client_did(self.payer.ended(stream.attempt, payable_nano=_due(tokens), now=self.now))
                self.client_did(self.payer.settle(stream.budget, now=self.now))

    @rule(vouchers=st.integers(1, 4))
    def deliver_vouchers(self, vouchers: int) -> None:
        for _ in range(min(vouchers, len(self.to_provider))):
            signed = self.to_provider.popleft()
            self.provider_did(
                self.payee.receive_voucher(self.session, signed.voucher.encode(), signed.signature, now=self.now)
            )

    @rule(fails=st.sampled_from([False, False, True]))
    def client_disk_writes(self, fails: bool) -> None:
        if self.client_writes:
            records = self.client_writes.popleft()
            if fails:
                self.client_did(self.payer.persist_failed(records, now=self.now))
            else:
                self.client_disk.save(records)
                self.client_did(self.payer.persisted(records, now=self.now))

    @rule(fails=st.sampled_from([False, False, True]))
    def provider_disk_writes(self, fails: bool) -> None:
        if self.provider_writes:
            records = self.provider_writes.popleft()
            if fails:
                self.provider_did(self.payee.persist_failed(records, now=self.now))
            else:
                self.provider_disk.save(records)
                self.provider_did(self.payee.persisted(records, now=self.now))

    @rule(rounds=st.integers(1, 6), stages=st.integers(1, 6), wanted=st.sampled_from([8, 40, 900]))
    def stream_on(self, rounds: int, stages: int, wanted: int) -> None:
        """Some rounds without trouble; the last one gets only so far, so that whatever follows hits there."""
        if not self.streams:
            self.open()
        for left in reversed(range(rounds)):
            todo = stages if left == 0 else 6
            live = [stream for stream in self.streams if not stream.is_over_there]
            if live:
                self.let_leave(live[0], wanted)
            if todo > 1:
                self.deliver_output(frames=9)
            if todo > 2:
                self.pass_time(300 * MILLISECOND_NS)
            if todo > 3:
                self.client_disk_writes(fails=False)
            if todo > 4:
                self.deliver_vouchers(vouchers=9)
            if todo > 5:
                self.provider_disk_writes(fails=False)

    @rule(passed_ns=st.sampled_from(PAUSES_NS))
    def wait(self, passed_ns: int) -> None:
        self.pass_time(passed_ns)

    def pass_time(self, passed_ns: int) -> None:
        until = self.now + passed_ns
        for _ in range(2_000):
            when = min(each for each in (self.payee.deadline(), self.payer.deadline(), until) if each is not None)
            if when >= until:
                break
            self.now = max(self.now, when)
            self.client_did(self.payer.on_time(now=self.now))
            self.provider_did(self.payee.on_time(now=self.now))
        else:
            raise AssertionError("a deadline does not move on")
        self.now = until

    @rule(is_up=st.booleans())
    def chain(self, is_up: bool) -> None:
        self.is_chain_up = is_up

    @rule()
    def wire_breaks(self) -> None:
        self.connect()

    @rule(was_written=st.booleans())
    def client_dies(self, was_written: bool) -> None:
        if was_written and self.client_writes:  # after the write, before anything else
            self.client_disk.save(self.client_writes.popleft())
        for stream in self.streams:
            stream.is_over_here = True
        was_up, self.is_chain_up = self.is_chain_up, True  # a client without any proof simply waits for one
        self.start_client()
        self.is_chain_up = was_up
        self.connect()

    @rule(was_written=st.booleans())
    def provider_dies(self, was_written: bool) -> None:
        if was_written and self.provider_writes:
            self.provider_disk.save(self.provider_writes.popleft())
        self.payee_crashes += 1
        self.start_provider()
        self.connect()

    # --- laws --------------------------------------------------------------------------------------------

    @invariant()
    def what_was_acknowledged_is_on_disk_and_claimable(self) -> None:
        if not hasattr(self, "now"):
            return
        held = self.provider_disk.restored(VoucherSide.HELD)
        assert self.acknowledged <= max((each.cumulative_nano for each in held), default=0)
        for record in held:
            signed = next(each for each in self.left if each.signature == record.signature)
            verify(V.public, signed.signature, signed.voucher.encode())

    @invariant()
    def no_two_vouchers_contradict(self) -> None:
        if hasattr(self, "now") and len(self.left) > 1:
            before, after = self.left[-2:]
            assert before.voucher.rises_to(after.voucher)
            same = (before.voucher.cumulative_nano, before.voucher.ceiling_nano) == (
                after.voucher.cumulative_nano,
                after.voucher.ceiling_nano,
            )
            assert same == (before.signature == after.signature)

    @invariant()
    def the_client_pays_for_no_more_than_it_received_and_no_more_than_it_has(self) -> None:
        if hasattr(self, "now") and self.left:
            newest = self.left[-1].voucher
            assert newest.cumulative_nano <= self.received_due
            assert max(newest.cumulative_nano, newest.ceiling_nano) <= self.start_balance
            assert self.account.bond_nano in (0, TON // 1_000, TON)  # nothing was ever over-issued

    @invariant()
    def the_provider_is_owed_no_more_than_the_window_and_its_allowance(self) -> None:
        if not hasattr(self, "now"):
            return
        ledger = self.payee.ledger(self.account.account)
        if ledger is not None:
            assert ledger.unpaid.count <= ledger.window_tokens <= WINDOW_TOKENS_MAX
        total = sum(_due(stream.released) for stream in self.streams) + self.past_due
        paid = max((each.cumulative_nano for each in self.provider_disk.restored(VoucherSide.HELD)), default=0)
        window = WINDOW_TOKENS_MIN if ledger is None else ledger.window_tokens
        tokens = window + FORGIVEN_TOKENS_MAX + (self.now - NOW) // FORGIVEN_INTERVAL_NS
        tokens += self.payee_crashes * (WINDOW_TOKENS_MAX if paid else WINDOW_TOKENS_MIN + FORGIVEN_TOKENS_MAX)
        slack = (
            tokens * OUTPUT_ONLY.output_nano // PRICE_UNIT_TOKENS
            + paid * 64 // 1_000
            + 2
            + len(self.streams)
            + self.past_streams
        )
        assert total - paid <= slack


def _due(tokens: int) -> int:
    return due_nano(OUTPUT_ONLY, input_tokens=10, cached_tokens=0, output_tokens=tokens) if tokens else 0


TestPayingPair = PayingPair.TestCase
TestPayingPair.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
