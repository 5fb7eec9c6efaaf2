"""A provider that holds all the keys and lies about what it delivered, and a client that lies about who pays.

Nothing here is caught by a seal: the liar seals well. It is caught because the other end counts for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import nacl.signing
import pytest

from cocoon.errors import BadSignature, DecodeError, StreamBroken
from cocoon.ports.engine import Delta
from cocoon.serve import bounds
from cocoon.serve.chunks import ChunkSeal, delta_of, encode_deltas, encode_frame
from cocoon.serve.events import (
    AuthenticationReceived,
    OutputReceived,
    ReceiptReceived,
    RequestEnded,
    RequestFailed,
    RequestRefused,
)
from cocoon.serve.outbox import ServedRequest
from cocoon.serve.receipts import payable_nano, receipt_body, sign_receipt
from cocoon.serve.testing import SessionPair, due_for_all, message_in, offer_facts
from cocoon.types import MILLISECOND_NS, SECOND_NS, FinishReason, Network, Usage
from cocoon.wire.codec import encode
from cocoon.wire.messages import Chunk, ChunkBody, EndBody, Message, Open, Receipt, ReceiptBody, Refused

USAGE = Usage(prompt_tokens=12, completion_tokens=0)


class Liar:
    """The provider of a running request, with its seal in hand."""

    def __init__(self) -> None:
        self.pair = SessionPair().start()
        self.id = self.pair.open(output_tokens_max=8)
        self.pair.run()
        self.request: ServedRequest = self.pair.provider._requests[self.id]
        assert self.request.seal is not None
        self.seal: ChunkSeal = self.request.seal

    def send(self, *messages: Message) -> None:
        for message in messages:
            self.pair.client_did(self.pair.client.receive(message, now=self.pair.now))

    def chunk(self, text: str, *tokens: int, counted: int | None = None) -> Chunk:
        body, count = encode_deltas([Delta(text=text, token_ids=tokens)])
        return self.seal.seal_next(body, count if counted is None else counted, final=False)

    def end(self, **fields: int | str) -> Chunk:
        body = {
            "finish_reason": "stop",
            "prompt_tokens": 12,
            "cached_tokens": 0,
            "completion_tokens": self.seal.completion_tokens,
            **fields,
        }
        return self.seal.seal_next(encode(EndBody(**body)), 0, final=True)

    def output(self, *chunks: Chunk) -> None:
        self.send(encode_frame(list(chunks))[0])

    def receipt(self, *, final: bool = True, number: int = 0, cached_tokens: int = 0) -> Receipt:
        body = receipt_body(
            network=Network.DEVNET,
            session=self.request.session,
            request_id=self.id,
            number=number,
            header=self.request.header,
            offer=self.request.offer,
            chunks=self.seal,
            cached_tokens=cached_tokens,
            final=final,
            due=due_for_all,
        )
        return sign_receipt(body, Network.DEVNET, self.pair.provider._sign)

    def honest(self) -> None:
        self.output(self.chunk("a", 1))
        self.output(self.end())
        self.send(self.receipt())


def forget_the_end(liar: Liar) -> None:
    liar.output(liar.end())
    liar.seal.is_ended = False
    liar.output(liar.chunk("more", 1))


def another_prompt(liar: Liar) -> None:
    liar.output(liar.chunk("a", 1))
    liar.seal.prompt_tokens = 13
    liar.output(liar.chunk("b", 2))


def early_prompt(liar: Liar) -> None:
    liar.seal.prompt_tokens = 257
    liar.output(liar.chunk("a", 1))


def chunk_after_final_receipt(liar: Liar) -> None:
    liar.output(liar.chunk("a", 1))
    liar.send(liar.receipt())
    liar.output(liar.chunk("b", 2))


def two_final_receipts(liar: Liar) -> None:
    liar.output(liar.chunk("a", 1))
    liar.send(liar.receipt(), liar.receipt(number=1))


def early_receipt(liar: Liar) -> None:
    liar.output(liar.chunk("a", 1))
    liar.send(liar.receipt(final=False))


def other_cached_tokens(liar: Liar) -> None:
    liar.output(liar.end(cached_tokens=2))
    liar.send(liar.receipt(cached_tokens=1))


def skipped_number(liar: Liar) -> None:
    liar.output(liar.end())
    liar.send(liar.receipt(number=1))


LIES: dict[str, tuple[Callable[[Liar], None], str]] = {
    "more tokens than it sent": (lambda liar: liar.output(liar.chunk("a", 1, counted=2)), "count"),
    "fewer tokens than it sent": (lambda liar: liar.output(liar.chunk("a", 1, 2, counted=1)), "count"),
    "tokens without text beyond what was asked": (lambda liar: liar.output(liar.chunk("", *range(9))), "declared"),
    "a larger prompt than was declared": (early_prompt, "declared"),
    "a prompt that changes": (another_prompt, "prompt"),
    "output after its end": (forget_the_end, "after the end"),
    "output after its last receipt": (chunk_after_final_receipt, "final receipt"),
    "two last receipts": (two_final_receipts, "not due"),
    "an end with other counts": (lambda liar: liar.output(liar.end(completion_tokens=5)), "own counts"),
    "more cached tokens than the prompt has": (lambda liar: liar.output(liar.end(cached_tokens=13)), "cached"),
    "an unknown finish reason": (lambda liar: liar.output(liar.end(finish_reason="because")), "finish reason"),
    "a receipt before any output": (lambda liar: liar.send(liar.receipt(final=False)), "not due"),
    "a receipt after one token": (early_receipt, "not due"),
    "another number of cached tokens in the receipt than in the end": (other_cached_tokens, "cached"),
    "a receipt that skips a number": (skipped_number, "number"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_provider_that_claims(lie: str) -> None:
    tell, word = LIES[lie]
    liar = Liar()
    tell(liar)
    (failed,) = liar.pair.client_saw(RequestFailed)
    assert isinstance(failed.error, StreamBroken)
    assert word in str(failed.error)
    assert not liar.pair.client_saw(RequestEnded)
    assert liar.pair.client_hung_up is not None


def test_the_same_provider_telling_the_truth_is_believed() -> None:
    liar = Liar()
    liar.honest()
    assert liar.pair.client_saw(RequestEnded)
    assert liar.pair.client_hung_up is None


def test_a_client_pays_the_smaller_of_the_receipt_and_its_own_count() -> None:
    liar = Liar()
    offer = offer_facts(paid=True)
    body = ReceiptBody(
        version=1,
        network=-217,
        session=bytes(32),
        id=0,
        number=0,
        account=b"",
        payout=bytes(32),
        offer=offer.digest,
        prompt_tokens=1_000,
        cached_tokens=0,
        completion_tokens=500,
        chain=bytes(32),
        due_nano=2_000,
        consent=bytes(32),
        final=True,
    )
    payable = partial(payable_nano, body, offer, is_ended=True, due=due_for_all)
    assert payable(own_completion_tokens=500, input_tokens_max=1_000) == 2_000
    assert payable(own_completion_tokens=400, input_tokens_max=1_000) == 1_800
    assert payable(own_completion_tokens=500, input_tokens_max=300) == 1_300
    assert payable(own_completion_tokens=9_999, input_tokens_max=9_999) == 2_000
    assert liar.pair.client_hung_up is None


def test_an_account_that_v_did_not_sign_for_is_refused_and_the_stream_ends() -> None:
    """S2: a stranger names somebody else's account and key."""
    pair = SessionPair(offer=offer_facts(paid=True)).start()
    victim, thief = nacl.signing.SigningKey(b"v" * 32), nacl.signing.SigningKey(b"t" * 32)
    pair.client_did(
        pair.client.authenticate(
            account=b"a" * 32,
            payout=pair.offer.payout,
            voucher_key=bytes(victim.verify_key),
            sign=lambda message: thief.sign(message).signature,
            now=pair.now,
        )
    )
    pair.run()
    assert not pair.provider_saw(AuthenticationReceived)
    assert pair.provider_hung_up is not None
    assert isinstance(pair.provider_hung_up.why, BadSignature)


def test_an_authentication_recorded_on_one_stream_says_nothing_on_another() -> None:
    first = SessionPair(offer=offer_facts(paid=True), seed="one").start()
    key = nacl.signing.SigningKey(b"v" * 32)
    first.client_did(
        first.client.authenticate(
            account=b"a" * 32,
            payout=first.offer.payout,
            voucher_key=bytes(key.verify_key),
            sign=lambda message: key.sign(message).signature,
            now=first.now,
        )
    )
    recorded = first.to_provider[0]
    second = SessionPair(offer=first.offer, keys=first.keys, seed="two").start()
    second.provider_did(second.provider.receive_bytes(recorded, now=second.now))
    assert not second.provider_saw(AuthenticationReceived)
    second.open(account=b"a" * 32, cost_max_nano=10**9)
    second.run()
    assert second.client_saw(RequestRefused)[0].reason == "payment_required"


def test_a_session_replaced_ten_minutes_ago_takes_no_new_request() -> None:
    pair = SessionPair().start()
    pair.open()
    old = message_in(pair.to_provider.pop())
    assert isinstance(old, Open)
    pair.client._requests.clear()
    pair.client._waiting.clear()
    pair.run(bounds.HELLO_AGAIN_NS + SECOND_NS)  # the second hello; from here on the client is silent
    pair.now += bounds.KEY_GRACE_NS - 10 * SECOND_NS
    crossing = pair.provider.receive(old, now=pair.now)
    assert not isinstance(getattr(crossing[0], "message", None), Refused), "still in its grace"
    pair.now += 20 * SECOND_NS
    late = pair.provider.receive(Open(**{f: getattr(old, f) for f in old.__struct_fields__} | {"id": 5}), now=pair.now)
    (answer,) = [effect.message for effect in late]  # type: ignore[union-attr]
    assert isinstance(answer, Refused)
    assert answer.reason == "stale_key"


def test_after_a_stale_key_nothing_is_sealed_until_fresh_evidence_is_trusted() -> None:
    pair = SessionPair().start()
    request_id = pair.open()
    pair.to_provider.clear()
    refusal = Refused(id=request_id, reason="stale_key", retry_after_ms=0, detail="")
    pair.client_did(pair.client.receive(refusal, now=pair.now))
    assert not pair.client.is_ready
    pair.run()
    assert pair.client.is_ready


def test_output_that_crosses_a_cancel_is_counted_but_not_shown() -> None:
    pair = SessionPair().start()
    request_id = pair.open()
    pair.run()
    pair.output(request_id, "shown", 1)
    pair.run()
    pair.output(request_id, "late", 2)
    pair.now += bounds.FRAME_INTERVAL_NS
    pair.tick()  # the late output is on its way
    pair.client_did(pair.client.cancel(request_id, now=pair.now))
    pair.run()
    assert pair.text(request_id) == "shown"
    assert pair.client_saw(ReceiptReceived)[-1].body.completion_tokens == 2
    assert len(pair.client_saw(OutputReceived)) == 1
    assert pair.client_hung_up is None


def test_a_first_token_does_not_wait_for_the_frame_of_others() -> None:
    pair = SessionPair().start()
    running, fresh = pair.open(), pair.open()
    pair.run()
    pair.output(running, "a", 1)
    pair.run(5 * MILLISECOND_NS)
    pair.output(running, "b", 2)
    assert pair.provider.deadline() == pair.now + 15 * MILLISECOND_NS
    pair.output(fresh, "first", 1)
    assert pair.provider.deadline() == pair.now
    pair.run()
    assert pair.text(fresh) == "first"
    assert pair.text(running) == "ab", "and what waits rides along"


def test_an_end_among_others_waits_for_the_next_frame() -> None:
    pair = SessionPair().start()
    ending, running = pair.open(), pair.open()
    pair.run()
    for request_id in (ending, running):
        pair.output(request_id, "a", 1)
    pair.run(5 * MILLISECOND_NS)
    pair.provider_did(pair.provider.finish(ending, FinishReason.STOP, USAGE, now=pair.now))
    assert pair.provider.deadline() == pair.now + 15 * MILLISECOND_NS
    pair.run(15 * MILLISECOND_NS)
    assert pair.client_saw(RequestEnded)[0].id == ending


@pytest.mark.parametrize(
    "call",
    [
        '{"index":[]}',
        '{"index":-1}',
        '{"index":1000000}',
        '{"index":true}',
        '{"index":"0"}',
        '{"id":5}',
        '{"id":"\\ud800"}',
        '{"type":"shell"}',
        '{"function":[]}',
        '{"function":{"name":5}}',
        '{"function":{"arguments":{"a":1}}}',
        '{"function":{"arguments":"\\ud800"}}',
    ],
)
def test_tool_calls_of_another_shape_than_openais_break_the_stream_and_not_the_app(call: str) -> None:
    with pytest.raises(DecodeError):
        delta_of(ChunkBody(text="", token_ids=[], logprobs=[], tool_calls=f"[{call}]".encode()))


def test_unknown_fields_of_a_tool_call_do_not_reach_the_app() -> None:
    calls = b'[{"index":1,"id":"c","type":"function","function":{"name":"f","arguments":"{}","x":1e999},"y":[]}]'
    delta = delta_of(ChunkBody(text="", token_ids=[], logprobs=[], tool_calls=calls))
    assert delta.tool_calls == (
        {"index": 1, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},
    )
