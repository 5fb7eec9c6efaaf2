"""Tokens that a broken stream lost, which no client will ever pay: they must not lock an honest client out.

Found by a chaos story (seed 39 of `python -m sim.chaos`): a client whose streams broke now and then lost half of its
window with every small write-off, until what was still unpaid exceeded it, and then nothing was served for an hour.
"""

from __future__ import annotations

from cocoon.pay.effects import RequestKey
from cocoon.pay.refusals import PaymentRefused
from cocoon.pay.window import WINDOW_TOKENS_MIN, window_tokens
from tests.fakes.pay import PRICES, Client, FakeAccount, Provider, terms_of


class Pair:
    """An honest client and a provider; `stream` serves some tokens, of which the last ones may be lost."""

    def __init__(self) -> None:
        self.account = FakeAccount()
        self.client = Client(self.account)
        self.client.see_chain()
        self.provider = Provider()
        self.session = self.provider.open_session(self.account)
        self.requests = 0

    def stream(self, tokens: int, *, lost: int = 0) -> int:
        """How many tokens left. What is not lost is received, counted, and paid before more leaves."""
        now = self.provider.now
        key = RequestKey(session=self.session, id=self.requests)
        self.requests += 1
        self.provider.did(self.provider.payee.admit(key, prices=PRICES, input_tokens=0, now=now))
        budget = self.client.payer.begin(10**9)
        attempt = self.client.payer.attempt(budget, terms_of(), input_tokens_max=0, output_tokens_max=tokens)
        left = received = 0
        while left < tokens:
            served = self.provider.serve(key, min(16, tokens - left))
            if served == 0:
                break
            left += served
            if left <= tokens - lost:
                received = left
                effects = self.client.payer.received(attempt, prompt_tokens=0, completion_tokens=received, now=now)
                self.client.did(effects)
                self.client.did(self.client.payer.receipt(attempt, now=now))
                self.pay()
        self.provider.did(self.provider.payee.ended(key, is_natural=False, now=now))
        self.client.did(self.client.payer.settle(budget, now=now))
        self.pay()
        return left

    def pay(self) -> None:
        for sent in self.client.sent:
            self.provider.take(self.session, sent.voucher)
        self.client.sent.clear()


def test_streams_that_lose_now_and_then_are_served_on_and_keep_a_window_that_is_worth_having() -> None:
    """One frame of every few streams is lost: 5 %, and the allowance is 6 %."""
    pair = Pair()
    for _ in range(20):
        pair.stream(200)
    ledger = pair.provider.payee.ledger(pair.account.account)
    assert ledger is not None
    assert ledger.window_tokens >= 256
    for _ in range(60):
        for _ in range(4):
            pair.stream(60)
        pair.stream(60, lost=16)
        assert ledger.unpaid.count < ledger.window_tokens
    assert ledger.window_tokens >= 128


def test_a_write_off_that_covers_only_a_part_does_not_lock_the_rest_out() -> None:
    """One long stream breaks: more is lost than may be written off, and the next request is served all the same."""
    pair = Pair()
    for _ in range(16):
        pair.stream(200)
    ledger = pair.provider.payee.ledger(pair.account.account)
    assert ledger is not None
    window = ledger.window_tokens
    assert window == 512
    pair.stream(500, lost=500)
    assert ledger.unpaid.count == 500
    for _ in range(5):
        assert pair.stream(40) == 40
        assert ledger.unpaid.count <= ledger.window_tokens // 2


def test_a_small_loss_costs_nothing_until_it_is_in_the_way() -> None:
    pair = Pair()
    for _ in range(10):
        pair.stream(200)
    ledger = pair.provider.payee.ledger(pair.account.account)
    assert ledger is not None
    window = ledger.window_tokens
    pair.stream(60, lost=16)
    pair.stream(60)
    assert ledger.window_tokens == window
    assert ledger.forgiveness.tokens >= 240
    for _ in range(10):
        pair.stream(60, lost=16)
    assert ledger.unpaid.count <= window // 2  # what was in the way has been written off


def test_who_never_pays_gets_no_more_than_the_allowance_and_ends_with_the_smallest_window() -> None:
    pair = Pair()
    for _ in range(20):
        pair.stream(200)
    ledger = pair.provider.payee.ledger(pair.account.account)
    assert ledger is not None
    window, paid = ledger.window_tokens, ledger.paid_nano
    taken = 0
    for _ in range(200):
        try:
            taken += pair.stream(64, lost=64)
        except PaymentRefused:
            break
    else:
        raise AssertionError("it is served for ever")
    assert ledger.paid_nano == paid
    assert taken <= window + 256
    assert ledger.window_tokens <= max(WINDOW_TOKENS_MIN, 2 * ledger.unpaid.count)
    assert ledger.window_tokens in {window_tokens(n * 1_000) for n in range(8)}
