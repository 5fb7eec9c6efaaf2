"""A reader that takes its time: what waits, where, how much of it, and for how long."""

from __future__ import annotations

import tracemalloc

import msgspec
import pytest

from cocoon.errors import LimitExceeded, LocalProtocolError
from cocoon.ports.engine import Delta, Logprob
from cocoon.serve import bounds
from cocoon.serve.chunks import BODY_HEAD_BYTES, delta_bytes, encode_deltas, split_delta
from cocoon.serve.events import (
    OutputDrained,
    OutputReceived,
    ReceiptReceived,
    RequestCancelled,
    RequestEnded,
    RequestFailed,
)
from cocoon.serve.testing import SessionPair, message_in
from cocoon.types import SECOND_NS, FinishReason, Usage
from cocoon.wire.codec import encode
from cocoon.wire.limits import SEALED_CHUNK_BYTES_MAX
from cocoon.wire.messages import Credit, Frame, Open

USAGE = Usage(prompt_tokens=12, completion_tokens=0)
WINDOW = bounds.CREDIT_BYTES_MIN


def in_flight_bytes(pair: SessionPair) -> int:
    """Sealed bytes that the client holds and its reader has not taken."""
    return sum(event.sealed_bytes for event in pair.client_saw(OutputReceived))


def test_a_stalled_reader_keeps_its_stream_and_bounded_memory() -> None:
    """A minute without reading: the client holds one window, the provider the rest, nothing is lost or repeated."""
    pair = SessionPair().start()
    request_id = pair.open(output_tokens_max=4_096, credit_bytes=WINDOW)
    other = pair.open()
    pair.run()
    pair.reads = False
    words = [f"word {number} " + "x" * 50 + " " for number in range(4_000)]
    for number, word in enumerate(words):
        pair.output(request_id, word, number)
    pair.provider_did(pair.provider.finish(request_id, FinishReason.STOP, USAGE, now=pair.now))
    pair.run(60 * SECOND_NS)
    assert in_flight_bytes(pair) <= WINDOW
    assert 0 < pair.provider.buffered_bytes(request_id) < 5 * sum(map(len, words))
    assert not pair.client_saw(RequestEnded)

    pair.output(other, "a neighbour is served meanwhile", 1)
    pair.run(SECOND_NS)
    assert pair.text(other) == "a neighbour is served meanwhile"

    pair.reads = True
    for event in list(pair.client_saw(OutputReceived)):
        if event.id == request_id:
            pair.client_did(pair.client.consumed(request_id, event.sealed_bytes, now=pair.now))
    pair.run(5 * SECOND_NS)
    assert pair.text(request_id) == "".join(words)
    assert pair.client_saw(RequestEnded)[0].usage.completion_tokens == 4_000
    assert pair.provider.buffered_bytes(request_id) == 0


def test_the_provider_never_sends_beyond_the_credit_whatever_the_pieces() -> None:
    pair = SessionPair().start()
    request_id = pair.open(output_tokens_max=4_096, credit_bytes=WINDOW)
    pair.run()
    pair.reads = False
    for number in range(200):
        pair.output(request_id, "é🦋" * (number * 7 % 1_500), number)
        pair.run(bounds.FRAME_INTERVAL_NS)
    held = in_flight_bytes(pair)
    assert WINDOW - bounds.DELTA_BYTES_MAX - BODY_HEAD_BYTES - 16 < held <= WINDOW
    assert pair.client_hung_up is None


def test_the_engine_is_told_to_pause_and_to_go_on() -> None:
    pair = SessionPair().start()
    request_id = pair.open(output_tokens_max=4_096, credit_bytes=WINDOW)
    pair.run()
    pair.reads = False
    number = 0
    while not pair.provider.is_full(request_id):
        pair.output(request_id, "x" * 1_000, number)
        number += 1
        pair.tick()
    assert bounds.BUFFER_BYTES_HIGH <= pair.provider.buffered_bytes(request_id) <= bounds.BUFFER_BYTES_HIGH + 8_192
    assert not pair.provider_saw(OutputDrained)
    pair.run()
    pair.reads = True
    pair.client_did(pair.client.consumed(request_id, in_flight_bytes(pair), now=pair.now))
    pair.run(30 * SECOND_NS)
    assert pair.provider_saw(OutputDrained)
    assert not pair.provider.is_full(request_id)
    assert pair.text(request_id) == "x" * 1_000 * number


def test_an_engine_that_does_not_pause_loses_the_request_not_the_memory() -> None:
    pair = SessionPair().start()
    request_id = pair.open(output_tokens_max=4_096, credit_bytes=WINDOW)
    pair.run()
    pair.reads = False
    for number in range(4_096):
        pair.output(request_id, "x" * 4_000, number)
        assert pair.provider.buffered_bytes(request_id) <= bounds.BUFFER_BYTES_MAX
    (cancelled,) = pair.provider_saw(RequestCancelled)
    assert cancelled.reason == "stalled"
    pair.run(SECOND_NS)
    assert pair.client_saw(RequestFailed)[0].reason == "stalled"


def test_a_reader_gone_for_five_minutes_frees_the_provider() -> None:
    pair = SessionPair().start()
    request_id = pair.open(output_tokens_max=4_096, credit_bytes=WINDOW)
    pair.run()
    pair.reads = False
    for number in range(100):
        pair.output(request_id, "x" * 1_000, number)
    pair.run(bounds.STALL_NS - SECOND_NS)
    assert pair.provider.requests_open == 1
    pair.run(2 * SECOND_NS)
    assert pair.provider.requests_open == 0
    assert pair.client_saw(RequestFailed)[0].reason == "stalled"
    assert pair.client_saw(ReceiptReceived)[-1].body.final
    assert pair.client_hung_up is None


def test_credit_is_granted_in_few_messages() -> None:
    pair = SessionPair().start()
    request_id = pair.open(output_tokens_max=4_096, credit_bytes=WINDOW)
    pair.run()
    granted = 0
    for number in range(2_000):
        pair.output(request_id, "x" * 100, number)
        pair.now += bounds.FRAME_INTERVAL_NS
        pair.tick()
        pair.client_did(pair.client.receive_bytes(pair.to_client.popleft(), now=pair.now))
        granted += sum(isinstance(message_in(frame), Credit) for frame in pair.to_provider)
        pair.run()
    assert 2 <= granted <= 2_000 * 150 // (WINDOW // 2) + 1


@pytest.mark.parametrize("total", [0, WINDOW - 1, bounds.CREDIT_BYTES_MAX + 1, (1 << 63) - 1])
def test_credit_that_shrinks_or_knows_no_bound_ends_the_stream(total: int) -> None:
    pair = SessionPair().start()
    request_id = pair.open(credit_bytes=WINDOW)
    pair.run()
    pair.provider_did(pair.provider.receive(Credit(id=request_id, total_bytes=total), now=pair.now))
    assert pair.provider_hung_up is not None


@pytest.mark.parametrize("window", [0, WINDOW - 1, bounds.CREDIT_BYTES_MAX + 1])
def test_a_credit_window_out_of_bounds_is_refused_at_both_ends(window: int) -> None:
    pair = SessionPair().start()
    with pytest.raises(LocalProtocolError):
        pair.open(credit_bytes=window)
    pair.open()
    sent = message_in(pair.to_provider.pop())
    assert isinstance(sent, Open)
    forged = msgspec.structs.replace(sent, credit_bytes=window)
    pair.provider_did(pair.provider.receive_bytes(encode(forged), now=pair.now))
    assert pair.provider_hung_up is not None
    assert isinstance(pair.provider_hung_up.why, LimitExceeded)


def test_a_provider_that_sends_beyond_the_credit_is_cut_off() -> None:
    pair = SessionPair().start()
    request_id = pair.open(output_tokens_max=4_096, credit_bytes=WINDOW)
    pair.run()
    pair.reads = False
    pair.provider._requests[request_id].credit_bytes = 10 * WINDOW  # it pretends to have been granted more
    for number in range(100):
        pair.output(request_id, "x" * 1_000, number)
    pair.run(SECOND_NS)
    assert pair.client_hung_up is not None
    assert isinstance(pair.client_hung_up.why, LimitExceeded)
    assert in_flight_bytes(pair) <= WINDOW


LARGE = {
    "text": Delta(text="🦋" * 100_000, token_ids=tuple(range(100))),
    "tokens": Delta(text="abc", token_ids=tuple(range(1_000_000, 1_004_000))),
    "logprobs": Delta(
        text="abc",
        token_ids=tuple(range(60)),
        logprobs=tuple(
            Logprob(token_id=n, token=b"t" * 200, logprob=-1.0, top=((n, b"u" * 200, -2.0),) * 20) for n in range(60)
        ),
    ),
    "tool call": Delta(
        tool_calls=({"index": 1, "id": "c", "type": "function", "function": {"name": "f", "arguments": "é" * 90_000}},)
    ),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_delta_is_cut_so_that_every_piece_fits_and_nothing_is_lost(kind: str) -> None:
    delta = LARGE[kind]
    pieces = split_delta(delta)
    assert len(pieces) > 1
    assert all(len(encode_deltas([piece])[0]) <= SEALED_CHUNK_BYTES_MAX - 16 for piece in pieces)
    assert "".join(piece.text for piece in pieces) == delta.text
    assert tuple(token for piece in pieces for token in piece.token_ids) == delta.token_ids
    assert tuple(one for piece in pieces for one in piece.logprobs) == delta.logprobs
    if kind == "tool call":
        parts = [call["function"]["arguments"] for piece in pieces for call in piece.tool_calls]
        assert "".join(parts) == delta.tool_calls[0]["function"]["arguments"]
        assert {call["index"] for piece in pieces for call in piece.tool_calls} == {1}
    pair = SessionPair().start()
    request_id = pair.open(output_tokens_max=4_096)
    pair.run()
    pair.provider_did(pair.provider.output(request_id, delta, now=pair.now))
    pair.run(5 * SECOND_NS)
    received = [event.delta for event in pair.client_saw(OutputReceived)]
    assert "".join(one.text for one in received) == delta.text
    assert tuple(token for one in received for token in one.token_ids) == delta.token_ids


def test_the_size_estimate_of_a_delta_is_never_below_its_encoding() -> None:
    for delta in (*LARGE.values(), Delta(), Delta(text="a"), Delta(text="🦋é", token_ids=(1, 70_000, (1 << 32) - 1))):
        for piece in split_delta(delta):
            assert len(encode_deltas([piece])[0]) <= delta_bytes(piece) + BODY_HEAD_BYTES


def test_frames_stay_below_the_message_bound_when_much_is_released_at_once() -> None:
    pair = SessionPair().start()
    ids = [pair.open(output_tokens_max=64, credit_bytes=bounds.CREDIT_BYTES_MAX) for _ in range(40)]
    pair.run()
    for request_id in ids:
        for number in range(16):
            pair.output(request_id, "x" * 4_000, number)
    largest = 0
    for _ in range(50):
        pair.now += bounds.FRAME_INTERVAL_NS
        pair.tick()
        largest = max([largest, *(len(frame) for frame in pair.to_client if isinstance(message_in(frame), Frame))])
        pair.run()
    assert all(len(pair.text(request_id)) == 64_000 for request_id in ids)
    assert 512 * 1024 < largest < 2 * 1024 * 1024


def test_small_pieces_that_wait_are_kept_together() -> None:
    """A token at a time for a stalled reader costs memory by its bytes, not by its pieces."""
    pair = SessionPair().start()
    request_id = pair.open(output_tokens_max=4_096, credit_bytes=WINDOW)
    pair.run()
    pair.reads = False
    pair.output(request_id, "x" * 60_000, 0)
    pair.run(SECOND_NS)
    tracemalloc.start()
    for number in range(4_000):
        pair.output(request_id, "abcde", number)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used < 4_000 * 100
    pair.reads = True
    pair.client_did(pair.client.consumed(request_id, in_flight_bytes(pair), now=pair.now))
    pair.run(SECOND_NS)
    assert pair.text(request_id) == "x" * 60_000 + "abcde" * 4_000


def test_logprobs_of_some_tokens_only_are_passed_on() -> None:
    pair = SessionPair().start()
    request_id = pair.open()
    pair.run()
    pair.output(request_id, "a", 1)
    with_logprob = Delta(text="b", token_ids=(2,), logprobs=(Logprob(token_id=2, token=b"b", logprob=-1.0),))
    pair.provider_did(pair.provider.output(request_id, with_logprob, now=pair.now))
    pair.run(SECOND_NS)
    (output,) = pair.client_saw(OutputReceived)
    assert output.delta.token_ids == (1, 2)
    assert [one.token_id for one in output.delta.logprobs] == [2]


def test_finished_requests_leave_nothing_behind() -> None:
    pair = SessionPair().start()
    tracemalloc.start()
    sizes = []
    for round_number in range(3):
        for _ in range(100):
            request_id = pair.open()
            pair.run()
            pair.output(request_id, "a", 1)
            pair.provider_did(pair.provider.finish(request_id, FinishReason.STOP, USAGE, now=pair.now))
            pair.run(bounds.FRAME_INTERVAL_NS)
        assert len(pair.client_saw(RequestEnded)) == 100, round_number
        pair.client_events.clear()
        pair.provider_events.clear()
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[2] - sizes[1] < 20_000
    assert pair.client.requests_open == pair.provider.requests_open == 0
