"""Paid requests in a session: held while their account is looked up, let out by the token, billed as they vest."""

from __future__ import annotations

import nacl.signing
import pytest

from cocoon.pay.metering import vested_due_nano
from cocoon.serve import bounds
from cocoon.serve.events import (
    AuthenticationReceived,
    OutputReceived,
    ReceiptReceived,
    RequestAccepted,
    RequestEnded,
    RequestFailed,
    RequestOpened,
    RequestRefused,
    ReservationWanted,
)
from cocoon.serve.outbox import PAID_PIECE_TOKENS_MAX
from cocoon.serve.reasons import Reason
from cocoon.serve.receipts import cached_tokens_before_end
from cocoon.serve.testing import SessionPair, offer_facts
from cocoon.types import FinishReason, Prices, Usage
from cocoon.wire import limits

ACCOUNT = b"a" * 32
KEY = nacl.signing.SigningKey(b"v" * 32)
TON = 10**9


def claiming() -> SessionPair:
    """V has signed, and the provider's role has yet to look."""
    pair = SessionPair(offer=offer_facts(paid=True)).start()
    pair.client_did(
        pair.client.authenticate(
            account=ACCOUNT,
            payout=pair.offer.payout,
            voucher_key=bytes(KEY.verify_key),
            sign=lambda message: KEY.sign(message).signature,
            now=pair.now,
        )
    )
    return pair


def believe(pair: SessionPair) -> None:
    (claim,) = pair.provider_saw(AuthenticationReceived)
    pair.provider_did(pair.provider.authenticated(session=claim.session, account=ACCOUNT, now=pair.now))
    pair.run()


def paying() -> tuple[SessionPair, int]:
    """One paid request that was accepted."""
    pair = claiming()
    request_id = pair.open(account=ACCOUNT, cost_max_nano=TON)
    pair.run()
    believe(pair)
    assert pair.client_saw(RequestAccepted)
    return pair, request_id


def tokens_of(pair: SessionPair) -> int:
    return sum(len(event.delta.token_ids) for event in pair.client_saw(OutputReceived))


def unblock(pair: SessionPair) -> None:
    opened = pair.provider_saw(RequestOpened)[0]
    pair.provider_did(pair.provider.paid(opened.session, now=pair.now))
    pair.run(bounds.FRAME_INTERVAL_NS)


# --- held ------------------------------------------------------------------------------------------------


def test_a_request_sent_right_behind_its_authentication_waits_for_the_look_up_and_is_served() -> None:
    pair = claiming()
    request_id = pair.open(account=ACCOUNT, cost_max_nano=TON)
    pair.run()
    assert not pair.provider_saw(RequestOpened)
    assert not pair.client_saw(RequestRefused)
    believe(pair)
    assert [event.id for event in pair.client_saw(RequestAccepted)] == [request_id]


def test_a_request_whose_account_is_no_good_is_refused_with_the_reason_and_so_are_later_ones() -> None:
    pair = claiming()
    pair.open(account=ACCOUNT, cost_max_nano=TON)
    pair.run()
    (claim,) = pair.provider_saw(AuthenticationReceived)
    pair.provider_did(pair.provider.unauthenticated(session=claim.session, detail="not_open", now=pair.now))
    pair.open(account=ACCOUNT, cost_max_nano=TON)
    pair.run()
    refused = pair.client_saw(RequestRefused)
    assert [(event.reason, event.detail) for event in refused] == [("payment_required", "not_open")] * 2
    assert not pair.provider_saw(RequestOpened)


def test_a_free_request_does_not_wait_for_anybodys_account() -> None:
    pair = SessionPair().start()
    pair.client_did(
        pair.client.authenticate(
            account=ACCOUNT,
            payout=pair.offer.payout,
            voucher_key=bytes(KEY.verify_key),
            sign=lambda message: KEY.sign(message).signature,
            now=pair.now,
        )
    )
    pair.open()
    pair.run()
    assert pair.client_saw(RequestAccepted)


def test_a_held_request_can_be_cancelled_and_is_never_opened() -> None:
    pair = claiming()
    request_id = pair.open(account=ACCOUNT, cost_max_nano=TON)
    pair.run()
    pair.client_did(pair.client.cancel(request_id, now=pair.now))
    pair.run()
    believe(pair)
    assert not pair.provider_saw(RequestOpened)
    assert pair.client.requests_open == 0


def test_held_requests_are_bounded_and_the_rest_is_told_that_we_are_busy() -> None:
    pair = claiming()
    body = b'{"messages":[{"role":"user","content":"' + b"x" * 500_000 + b'"}],"max_tokens":64}'
    for _ in range(12):
        pair.open(account=ACCOUNT, cost_max_nano=TON, body=body)
    pair.run()
    refused = pair.client_saw(RequestRefused)
    assert {event.reason for event in refused} == {"busy"}
    held = 12 - len(refused)
    assert 0 < held * 500_000 <= bounds.HELD_BYTES_MAX
    believe(pair)
    assert len(pair.client_saw(RequestAccepted)) == held <= limits.REQUESTS_IN_FLIGHT_MAX


# --- let out ---------------------------------------------------------------------------------------------


def test_only_as_many_tokens_leave_as_the_gate_allows_and_the_rest_follows_when_it_opens() -> None:
    pair, request_id = paying()
    pair.gate.tokens_max = 5
    for number in range(30):
        pair.output(request_id, f"w{number} ", number)
        pair.run(bounds.FRAME_INTERVAL_NS)
    assert tokens_of(pair) == pair.gate.tokens == 5
    assert pair.provider.is_full(request_id), "the engine need not run far ahead of a client that does not pay"
    pair.gate.tokens_max = 13
    unblock(pair)
    assert 13 - PAID_PIECE_TOKENS_MAX < tokens_of(pair) == pair.gate.tokens <= 13
    pair.gate.tokens_max = None
    unblock(pair)
    assert tokens_of(pair) == 30
    assert pair.text(request_id) == "".join(f"w{number} " for number in range(30))
    assert not pair.provider.is_full(request_id)


def test_many_tokens_at_once_leave_in_small_pieces_and_their_text_after_the_last() -> None:
    pair, request_id = paying()
    pair.gate.tokens_max = 20
    pair.output(request_id, "a whole sentence", *range(50))
    pair.run(bounds.FRAME_INTERVAL_NS)
    assert tokens_of(pair) == 16  # two pieces of eight
    assert pair.text(request_id) == ""
    pair.gate.tokens_max = None
    unblock(pair)
    assert tokens_of(pair) == 50
    assert pair.text(request_id) == "a whole sentence"


def test_the_end_and_its_receipt_need_no_payment_in_advance() -> None:
    pair, request_id = paying()
    pair.output(request_id, "done", 1)
    pair.run(bounds.FRAME_INTERVAL_NS)
    pair.gate.tokens_max = 1
    usage = Usage(prompt_tokens=12, completion_tokens=1)
    pair.provider_did(pair.provider.finish(request_id, FinishReason.STOP, usage, now=pair.now))
    pair.run(bounds.FRAME_INTERVAL_NS)
    assert pair.client_saw(RequestEnded)


def test_a_request_that_is_given_up_for_its_money_fails_with_a_receipt_for_what_left() -> None:
    pair, request_id = paying()
    pair.gate.tokens_max = 3
    for number in range(10):
        pair.output(request_id, "x", number)
        pair.run(bounds.FRAME_INTERVAL_NS)
    pair.gate.tokens_max = pair.gate.tokens
    pair.provider_did(pair.provider.fail(request_id, Reason.PAYMENT_REQUIRED, detail="overdue", now=pair.now))
    pair.run()
    (receipt,) = pair.client_saw(ReceiptReceived)
    assert receipt.body.completion_tokens == tokens_of(pair) == 3
    (failed,) = pair.client_saw(RequestFailed)
    assert "overdue" in str(failed.error)
    assert not failed.error.retryable


# --- billed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached_input_nano", [0, 500_000, 1_000_000, 3_000_000])
@pytest.mark.parametrize("cached_tokens", [0, 7, 12])
def test_no_later_receipt_asks_for_less_whatever_was_cached(cached_input_nano: int, cached_tokens: int) -> None:
    prices = Prices(input_nano=1_000_000, cached_input_nano=cached_input_nano, output_nano=2_000_000)
    before = cached_tokens_before_end(prices, 12)
    bills = [
        vested_due_nano(prices, input_tokens=12, cached_tokens=before, output_tokens=tokens, is_ended=False)
        for tokens in range(100)
    ]
    end = vested_due_nano(prices, input_tokens=12, cached_tokens=cached_tokens, output_tokens=99, is_ended=True)
    assert bills == sorted(bills)
    assert end >= bills[-1]
    assert bills[0] == 0


def test_the_providers_wish_for_a_reservation_arrives() -> None:
    pair, _ = paying()
    pair.provider_did(pair.provider.reserve(150_000_000))
    pair.run()
    assert [event.ceiling_nano for event in pair.client_saw(ReservationWanted)] == [150_000_000]
