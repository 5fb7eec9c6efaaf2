"""What a client and a provider see of one session when both keep to the protocol."""

from __future__ import annotations

from dataclasses import replace

import nacl.signing
import pytest

from cocoon.errors import InvalidRequest, LocalProtocolError, Refused, StreamBroken, TrustRefused, Unavailable
from cocoon.ports.engine import Delta, Logprob
from cocoon.serve import bounds
from cocoon.serve.effects import Send
from cocoon.serve.events import (
    AuthenticationReceived,
    EvidenceReceived,
    HelloReceived,
    OfferFacts,
    OutputReceived,
    ReceiptReceived,
    RequestAccepted,
    RequestCancelled,
    RequestClosed,
    RequestEnded,
    RequestFailed,
    RequestOpened,
    RequestRefused,
    SessionDraining,
)
from cocoon.serve.reasons import Reason
from cocoon.serve.testing import START_NS, SessionPair, message_in, offer_facts
from cocoon.types import MILLISECOND_NS, SECOND_NS, FinishReason, Usage
from cocoon.wire.messages import Accepted, Failed, Frame, Ping, Receipt

ACCOUNT = b"a" * 32
USAGE = Usage(prompt_tokens=12, completion_tokens=0)


def finish(pair: SessionPair, request_id: int, *, cached_tokens: int = 0) -> None:
    usage = Usage(prompt_tokens=12, completion_tokens=999, cached_tokens=cached_tokens)
    pair.provider_did(pair.provider.finish(request_id, FinishReason.STOP, usage, now=pair.now))
    pair.run(bounds.FRAME_INTERVAL_NS)


def test_a_request_is_answered_token_by_token_and_ends_with_usage_and_a_receipt() -> None:
    pair = SessionPair().start()
    request_id = pair.open()
    pair.run()
    assert pair.client_saw(RequestAccepted)[0].id == request_id
    for number, word in enumerate(("Co", "co", "on")):
        pair.output(request_id, word, number)
        pair.run(bounds.FRAME_INTERVAL_NS)
    finish(pair, request_id, cached_tokens=5)
    assert pair.text(request_id) == "Cocoon"
    (ended,) = pair.client_saw(RequestEnded)
    assert ended.finish_reason is FinishReason.STOP
    assert ended.usage == Usage(prompt_tokens=12, completion_tokens=3, cached_tokens=5)
    assert ended.receipt.body.final
    assert ended.receipt.body.completion_tokens == 3
    (closed,) = pair.provider_saw(RequestClosed)
    assert closed.receipt == ended.receipt.body
    assert pair.client.requests_open == pair.provider.requests_open == 0


def test_the_provider_sees_exactly_what_was_sealed() -> None:
    pair = SessionPair().start()
    pair.open(body=b'{"messages":[]}')
    pair.run()
    (opened,) = pair.provider_saw(RequestOpened)
    assert opened.endpoint == "chat.completions"
    assert opened.body == b'{"messages":[]}'
    assert opened.offer == pair.offer


def test_logprobs_tool_calls_and_any_text_arrive_as_the_engine_gave_them() -> None:
    pair = SessionPair().start()
    request_id = pair.open()
    pair.run()
    delta = Delta(
        text="héllo 🦋",
        token_ids=(1, 2),
        logprobs=(
            Logprob(token_id=1, token=b"h", logprob=-0.25, top=((1, b"h", -0.25), (9, b"\xff", -3.5))),
            Logprob(token_id=2, token=b"x", logprob=0.0),
        ),
        tool_calls=({"index": 0, "id": "call_1", "function": {"name": "f", "arguments": '{"a":'}},),
    )
    pair.provider_did(pair.provider.output(request_id, delta, now=pair.now))
    pair.run()
    (output,) = pair.client_saw(OutputReceived)
    assert output.delta == delta


def test_a_half_surrogate_from_an_engine_does_not_stop_the_stream() -> None:
    pair = SessionPair().start()
    request_id = pair.open()
    pair.run()
    pair.output(request_id, "a\ud800b", 1)
    pair.run()
    assert pair.text(request_id) == "a?b"


def test_the_first_token_leaves_at_once_and_later_ones_share_a_frame_every_20_ms() -> None:
    pair = SessionPair().start()
    ids = [pair.open() for _ in range(4)]
    pair.run()
    for request_id in ids:
        pair.output(request_id, "a", 1)
    assert pair.provider.deadline() == pair.now
    pair.tick()
    assert [len(message_in(frame).chunks) for frame in pair.to_client] == [4]
    pair.run(5 * MILLISECOND_NS)
    for request_id in ids:
        pair.output(request_id, "b", 2)
        pair.output(request_id, "c", 3)
    assert pair.provider.deadline() == pair.now + 15 * MILLISECOND_NS
    pair.run(14 * MILLISECOND_NS)
    assert pair.text(ids[0]) == "a"
    pair.run(MILLISECOND_NS)
    assert [pair.text(request_id) for request_id in ids] == ["abc"] * 4
    assert len(pair.client_saw(OutputReceived)) == 8, "two tokens of one request share a chunk"


def test_a_lone_end_does_not_wait_for_the_next_frame() -> None:
    pair = SessionPair().start()
    request_id = pair.open()
    pair.run()
    pair.output(request_id, "a", 1)
    pair.run()
    pair.provider_did(pair.provider.finish(request_id, FinishReason.STOP, USAGE, now=pair.now))
    pair.run()
    assert pair.client_saw(RequestEnded)


def test_frames_are_multiples_of_256_bytes_whatever_they_carry() -> None:
    pair = SessionPair().start()
    request_id = pair.open(output_tokens_max=4_000)
    pair.run()
    sizes = set()
    for length in range(600):
        pair.output(request_id, "x" * length, 1)
        pair.now += bounds.FRAME_INTERVAL_NS
        pair.tick()
        sizes |= {len(frame) for frame in pair.to_client if isinstance(message_in(frame), Frame)}
        pair.run()
    assert sizes
    assert all(size % 256 == 0 for size in sizes)
    assert pair.client_hung_up is None


def test_a_receipt_comes_every_256_tokens_and_at_the_end_and_the_due_amount_follows_the_prices() -> None:
    offer = offer_facts(paid=True)
    pair = authenticated_pair(offer)
    request_id = pair.open(account=ACCOUNT, cost_max_nano=10**9)
    pair.run()
    for number in range(600):
        pair.output(request_id, "x", number)
        pair.run(bounds.FRAME_INTERVAL_NS)
    finish(pair, request_id, cached_tokens=2)
    counts = [receipt.body.completion_tokens for receipt in pair.client_saw(ReceiptReceived)]
    assert counts == [256, 512, 600]
    last = pair.client_saw(ReceiptReceived)[-1]
    assert last.payable_nano == last.body.due_nano == 10 * 1 + 1 + 600 * 2  # 10 fresh, 2 cached at half, 600 out


def authenticated_pair(offer: OfferFacts) -> SessionPair:
    pair = SessionPair(offer=offer).start()
    key = nacl.signing.SigningKey(b"v" * 32)
    pair.client_did(
        pair.client.authenticate(
            account=ACCOUNT,
            payout=offer.payout,
            voucher_key=bytes(key.verify_key),
            sign=lambda message: key.sign(message).signature,
            now=pair.now,
        )
    )
    pair.run()
    (claim,) = pair.provider_saw(AuthenticationReceived)
    assert (claim.account, claim.voucher_key, claim.payout) == (ACCOUNT, bytes(key.verify_key), offer.payout)
    pair.provider.authenticated(session=claim.session, account=claim.account, now=pair.now)
    return pair


def test_a_paid_offer_is_refused_until_the_account_is_proven_and_only_that_account_passes() -> None:
    offer = offer_facts(paid=True)
    stranger = SessionPair(offer=offer).start()
    stranger.open(account=ACCOUNT, cost_max_nano=10**9)
    stranger.run()
    assert stranger.client_saw(RequestRefused)[0].reason == "payment_required"
    pair = authenticated_pair(offer)
    pair.open(account=b"b" * 32, cost_max_nano=10**9)
    pair.open(account=ACCOUNT, cost_max_nano=10**9)
    pair.run()
    assert [refused.reason for refused in pair.client_saw(RequestRefused)] == ["payment_required"]
    assert [accepted.id for accepted in pair.client_saw(RequestAccepted)] == [1]


def test_an_unconfirmed_claim_opens_no_paid_request() -> None:
    offer = offer_facts(paid=True)
    pair = authenticated_pair(offer)
    (claim,) = pair.provider_saw(AuthenticationReceived)
    with pytest.raises(LocalProtocolError):
        pair.provider.authenticated(session=claim.session, account=b"z" * 32, now=pair.now)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"output_tokens_max": 0}, "too_large"),
        ({"output_tokens_max": 4_097}, "too_large"),
        ({"input_tokens_max": 8_192 - 64 + 1}, "context_overflow"),
        ({"input_tokens_max": 1 << 24}, "context_overflow"),
        ({"cost_max_nano": 0, "paid": True}, "price"),
    ],
)
def test_what_a_request_declares_is_judged_before_anything_is_decrypted(header: dict, reason: str) -> None:
    header = dict(header)
    paid = header.pop("paid", False)
    pair = authenticated_pair(offer_facts(paid=True)) if paid else SessionPair().start()

    def never(*_: object) -> bytes:
        raise AssertionError("decrypted before admission")

    pair.crypto.open = never  # type: ignore[method-assign]
    facts = {"input_tokens_max": 64, "output_tokens_max": 64, "cost_max_nano": 0, **header}
    _, effects = pair.client.open(
        offer=pair.offer,
        endpoint="chat.completions",
        body=b"{}",
        cache_tag=bytes(16),
        wait_ms_max=0,
        account=ACCOUNT if paid else b"",
        now=pair.now,
        **facts,
    )
    pair.client_did(effects)
    pair.run()
    assert pair.client_saw(RequestRefused)[0].reason == reason
    assert not pair.provider_saw(RequestOpened)


def test_an_expired_or_unknown_offer_is_refused() -> None:
    pair = SessionPair(offer=replace(offer_facts(), expiry_ns=START_NS + SECOND_NS)).start()
    pair.run(SECOND_NS)
    pair.open()
    pair.run()
    assert pair.client_saw(RequestRefused)[0].reason == "unknown_offer"
    fresh = SessionPair().start()
    fresh.offer = offer_facts(seed="another")
    fresh.open()
    fresh.run()
    assert fresh.client_saw(RequestRefused)[0].reason == "unknown_offer"


def test_a_refusal_tells_the_caller_whose_fault_it_is_and_when_to_come_back() -> None:
    pair = SessionPair().start()
    pair.accepts = False
    busy, overflow = pair.open(), pair.open()
    pair.run()
    pair.provider_did(pair.provider.refuse(busy, Reason.BUSY, retry_after_ms=700, now=pair.now))
    pair.provider_did(
        pair.provider.refuse(overflow, Reason.CONTEXT_OVERFLOW, detail="9000 of 8192\n\x1b[2J", now=pair.now)
    )
    pair.run()
    first, second = pair.client_saw(RequestRefused)
    assert isinstance(first.error, Refused)
    assert (first.error.reason, first.error.retry_after_ms, first.error.retryable) == ("busy", 700, True)
    assert isinstance(second.error, InvalidRequest)
    assert second.error.kind == "context_length_exceeded"
    assert "\x1b" not in str(second.error)


def test_cancelling_stops_the_output_and_the_delivered_part_is_receipted() -> None:
    pair = SessionPair().start()
    request_id = pair.open()
    pair.run()
    pair.output(request_id, "a", 1)
    pair.run()
    pair.output(request_id, "b", 2)
    pair.client_did(pair.client.cancel(request_id, now=pair.now))
    pair.run(bounds.FRAME_INTERVAL_NS)
    assert pair.provider_saw(RequestCancelled)[0].reason == "cancelled"
    assert pair.text(request_id) == "a"
    assert pair.client_saw(ReceiptReceived)[-1].body.completion_tokens == 1
    (failed,) = pair.client_saw(RequestFailed)
    assert failed.reason == "cancelled"
    assert pair.provider.output(request_id, Delta(text="c", token_ids=(3,)), now=pair.now) == ()
    assert pair.provider.finish(request_id, FinishReason.STOP, USAGE, now=pair.now) == ()
    assert pair.client.requests_open == pair.provider.requests_open == 0
    assert pair.client_hung_up is None


def test_cancelling_before_the_answer_is_a_refusal_and_costs_nothing() -> None:
    pair = SessionPair().start()
    pair.accepts = False
    request_id = pair.open()
    pair.run()
    pair.client_did(pair.client.cancel(request_id, now=pair.now))
    pair.run()
    assert pair.client_saw(RequestRefused)[0].reason == "cancelled"
    assert pair.provider.accept(request_id, prompt_tokens=1, now=pair.now) == ()


def test_an_end_that_crosses_the_cancel_still_ends_the_request_once() -> None:
    pair = SessionPair().start()
    request_id = pair.open()
    pair.run()
    pair.output(request_id, "a", 1)
    pair.provider_did(pair.provider.finish(request_id, FinishReason.STOP, USAGE, now=pair.now))
    pair.tick()
    pair.client_did(pair.client.cancel(request_id, now=pair.now))
    pair.run()
    assert len(pair.client_saw(RequestEnded)) == 1
    assert not pair.client_saw(RequestFailed)
    assert pair.provider_hung_up is None


def test_an_engine_failure_keeps_what_was_delivered_and_says_so() -> None:
    pair = SessionPair().start()
    request_id = pair.open()
    pair.run()
    pair.output(request_id, "a", 1)
    pair.provider_did(pair.provider.fail(request_id, Reason.ENGINE_FAILED, now=pair.now))
    pair.run()
    assert pair.text(request_id) == "a"
    (failed,) = pair.client_saw(RequestFailed)
    assert isinstance(failed.error, StreamBroken)
    assert failed.error.retryable


def test_eof_without_end_fails_every_open_request() -> None:
    pair = SessionPair().start()
    first, second = pair.open(), pair.open()
    pair.run()
    pair.output(first, "a", 1)
    pair.run()
    pair.client_did(pair.client.disconnected(now=pair.now))
    failed = pair.client_saw(RequestFailed)
    assert {event.id for event in failed} == {first, second}
    assert all(isinstance(event.error, StreamBroken) for event in failed)
    pair.provider_did(pair.provider.disconnected(now=pair.now))
    assert {event.id for event in pair.provider_saw(RequestCancelled)} == {first, second}
    assert pair.client.deadline() is None
    assert pair.provider.deadline() is None


def test_end_without_its_receipt_is_not_an_end() -> None:
    pair = SessionPair().start()
    request_id = pair.open()
    pair.run()
    pair.output(request_id, "a", 1)
    pair.provider_did(pair.provider.finish(request_id, FinishReason.STOP, USAGE, now=pair.now))
    pair.tick()
    kept = [frame for frame in pair.to_client if not isinstance(message_in(frame), Receipt)]
    pair.to_client.clear()
    pair.to_client.extend(kept)
    pair.run()
    pair.client_did(pair.client.disconnected(now=pair.now))
    assert not pair.client_saw(RequestEnded)
    assert len(pair.client_saw(RequestFailed)) == 1


def test_a_draining_provider_finishes_what_it_has_refuses_the_rest_and_hangs_up() -> None:
    pair = SessionPair().start()
    request_id = pair.open()
    pair.run()
    pair.output(request_id, "a", 1)
    late = pair.open()
    pair.provider_did(pair.provider.drain(now=pair.now))
    pair.run()
    assert pair.client_saw(RequestRefused)[0].id == late
    assert pair.client_saw(SessionDraining)
    with pytest.raises(Refused):
        pair.open()
    finish(pair, request_id)
    assert pair.client_saw(RequestEnded)[0].id == request_id
    assert pair.client_hung_up is not None
    assert pair.client_hung_up.why is None
    pair.run(bounds.DRAIN_GRACE_NS)
    assert pair.provider_hung_up is not None
    assert pair.provider_hung_up.why is None


def test_a_client_that_leaves_gets_its_answer_first() -> None:
    pair = SessionPair().start()
    request_id = pair.open()
    pair.run()
    pair.client_did(pair.client.leave(now=pair.now))
    pair.output(request_id, "a", 1)
    finish(pair, request_id)
    assert pair.client_saw(RequestEnded)
    assert pair.client_hung_up is not None
    assert pair.provider_hung_up is not None


def test_an_idle_session_lives_for_hours_on_pings_alone() -> None:
    pair = SessionPair().start()
    pair.run(3 * 3_600 * SECOND_NS)
    assert pair.client_hung_up is None
    assert pair.provider_hung_up is None
    assert len(pair.provider_saw(HelloReceived)) == 1 + 3 * 6, "a fresh hello every ten minutes"


def test_a_silent_peer_is_given_up_after_45_seconds() -> None:
    pair = SessionPair().start()
    request_id = pair.open()
    pair.run()
    pings = []
    for _ in range(60):
        pair.now += SECOND_NS
        if (pair.client.deadline() or pair.now + 1) <= pair.now:
            effects = pair.client.on_time(now=pair.now)
            pings += [e for e in effects if isinstance(e, Send) and isinstance(e.message, Ping)]
            pair.client_did(effects)
        if pair.client.is_closed:
            break
    assert pair.now - START_NS == 45 * SECOND_NS
    assert len(pings) == 2
    assert pair.client_hung_up is not None
    assert isinstance(pair.client_hung_up.why, Unavailable)
    assert pair.client_saw(RequestFailed)[0].id == request_id


def test_a_provider_that_never_answers_is_cancelled_and_the_caller_is_told_once() -> None:
    pair = SessionPair().start()
    pair.accepts = False
    pair.open()
    pair.run(12 * SECOND_NS)
    (failed,) = pair.client_saw(RequestFailed)
    assert isinstance(failed.error, Unavailable)
    assert pair.provider_saw(RequestCancelled)
    assert not pair.client_saw(RequestRefused)
    assert pair.client.requests_open == 0


def test_evidence_that_does_not_come_ends_the_session() -> None:
    pair = SessionPair()
    pair.client_did(pair.client.start(now=pair.now))
    pair.to_provider.clear()
    pair.now += bounds.HELLO_TIMEOUT_NS
    pair.client_did(pair.client.on_time(now=pair.now))
    assert pair.client_hung_up is not None
    assert isinstance(pair.client_hung_up.why, Unavailable)


def test_nothing_is_sealed_before_the_evidence_is_trusted() -> None:
    pair = SessionPair()
    pair.trusts = False
    pair.start()
    assert pair.client_saw(EvidenceReceived)
    assert not pair.client.is_ready
    with pytest.raises(LocalProtocolError):
        pair.open()
    assert not pair.to_provider


def test_distrust_ends_the_session_with_its_reason() -> None:
    pair = SessionPair()
    pair.trusts = False
    pair.start()
    error = TrustRefused("open is not enough")
    pair.client_did(pair.client.distrust(error, now=pair.now))
    assert pair.client_hung_up is not None
    assert pair.client_hung_up.why is error


def test_as_many_requests_as_allowed_run_at_once_and_one_more_is_declined_locally() -> None:
    pair = SessionPair().start()
    ids = [pair.open() for _ in range(256)]
    with pytest.raises(Refused):
        pair.open()
    pair.run()
    for request_id in ids:
        pair.output(request_id, f"text of {request_id}", request_id)
    pair.run(bounds.FRAME_INTERVAL_NS)
    for request_id in ids:
        pair.provider_did(pair.provider.finish(request_id, FinishReason.STOP, USAGE, now=pair.now))
    pair.run(bounds.FRAME_INTERVAL_NS)
    assert len(pair.client_saw(RequestEnded)) == 256
    assert all(pair.text(request_id) == f"text of {request_id}" for request_id in ids)
    assert pair.client.is_ready


def test_misuse_by_the_role_raises_and_changes_nothing() -> None:
    pair = SessionPair().start()
    request_id = pair.open(output_tokens_max=2)
    pair.run()
    with pytest.raises(LocalProtocolError):
        pair.provider.accept(request_id, prompt_tokens=1, now=pair.now)
    with pytest.raises(LocalProtocolError):
        pair.provider.output(99, Delta(text="x"), now=pair.now)
    with pytest.raises(LocalProtocolError):
        pair.provider.output(request_id, Delta(text="xyz", token_ids=(1, 2, 3)), now=pair.now)
    pair.output(request_id, "xy", 1, 2)
    finish(pair, request_id)
    assert pair.text(request_id) == "xy"
    assert pair.client_saw(RequestEnded)


def test_no_repr_shows_what_is_private() -> None:
    pair = SessionPair().start()
    request_id = pair.open(body=b'{"messages":[{"role":"user","content":"a secret question"}]}')
    pair.run()
    pair.output(request_id, "a secret answer", 1)
    pair.run()
    finish(pair, request_id)
    shown = repr(pair.provider_events) + repr(pair.client_events) + repr(pair.keys.current(pair.now))
    assert "secret" not in shown.replace("Secret", "")


def test_wire_messages_of_an_accepted_request_come_in_order() -> None:
    pair = SessionPair().start()
    request_id = pair.open()
    pair.provider_did(pair.provider.receive_bytes(pair.to_provider.popleft(), now=pair.now))
    pair.output(request_id, "a", 1)
    pair.provider_did(pair.provider.fail(request_id, Reason.ENGINE_FAILED, now=pair.now))
    kinds = [type(message_in(frame)) for frame in pair.to_client]
    assert kinds == [Accepted, Frame, Receipt, Failed]
