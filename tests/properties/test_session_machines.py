"""Laws of a session, whatever happens on the wire and whenever: two real machines, and a wire that misbehaves.

`HonestWire` only delays: every request ends, with exactly the text that the engine made and the receipt for it.
`HostileWire` also drops, swaps, repeats, cuts and flips whole frames: the reader has a true beginning of the text, and
what is complete is right. Never a wrong text, never an exception, never a request that ends twice.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from cocoon.ports.engine import Delta
from cocoon.serve import bounds
from cocoon.serve.chunks import encode_frame
from cocoon.serve.events import (
    OutputReceived,
    ReceiptReceived,
    RequestCancelled,
    RequestClosed,
    RequestEnded,
    RequestFailed,
    RequestOpened,
    RequestRefused,
)
from cocoon.serve.openai import CHAT, COMPLETIONS, encode_body, generation_request, normalise
from cocoon.serve.reasons import Reason
from cocoon.serve.sealing import pad_request, unpad_request
from cocoon.serve.testing import SessionPair
from cocoon.types import MILLISECOND_NS, SECOND_NS, FinishReason, Usage
from cocoon.wire.codec import encode
from cocoon.wire.messages import Chunk

TEXTS = st.text(max_size=40)
ENDINGS = (RequestEnded, RequestFailed, RequestRefused)
TOKENS = st.lists(st.integers(0, (1 << 32) - 1), max_size=4)


class HonestWire(RuleBasedStateMachine):
    """Requests, output and time in any order; frames arrive late but in order."""

    requests = Bundle("requests")

    @initialize()
    def begin(self) -> None:
        self.pair = SessionPair().start()
        self.pair.accepts = False
        self.made: dict[int, str] = {}
        self.tokens: dict[int, int] = {}
        self.finished: set[int] = set()
        self.cancelled: set[int] = set()

    def accepted(self) -> set[int]:
        return set(self.made)

    def running(self) -> list[int]:
        gone = {event.id for event in self.pair.provider_saw(RequestCancelled)}
        return [one for one in self.made if one not in self.finished and one not in gone]

    @precondition(lambda self: self.pair.client.is_ready)
    @rule(target=requests, credit_bytes=st.sampled_from([bounds.CREDIT_BYTES_MIN, bounds.CREDIT_BYTES]))
    def open(self, credit_bytes: int) -> int:
        return self.pair.open(credit_bytes=credit_bytes)

    @rule(data=st.data(), refuse=st.booleans())
    def answer(self, data: st.DataObject, refuse: bool) -> None:
        gone = {event.id for event in self.pair.provider_saw(RequestCancelled)}
        waiting = [
            event.id
            for event in self.pair.provider_saw(RequestOpened)
            if event.id not in self.made and event.id not in gone
        ]
        if not waiting:
            return
        request_id = data.draw(st.sampled_from(waiting))
        pair = self.pair
        if refuse:
            pair.provider_did(pair.provider.refuse(request_id, Reason.BUSY, now=pair.now))
            self.finished.add(request_id)
            pair.provider_events[:] = [
                e for e in pair.provider_events if not (isinstance(e, RequestOpened) and e.id == request_id)
            ]
        else:
            pair.provider_did(pair.provider.accept(request_id, prompt_tokens=12, now=pair.now))
            self.made[request_id], self.tokens[request_id] = "", 0

    @rule(data=st.data(), text=TEXTS, tokens=TOKENS, repeat=st.sampled_from([1, 1, 1, 100]))
    def produce(self, data: st.DataObject, text: str, tokens: list[int], repeat: int) -> None:
        running = [one for one in self.running() if self.tokens[one] + len(tokens) <= 1_024]
        if running:
            request_id = data.draw(st.sampled_from(running))
            delta = Delta(text=text * repeat, token_ids=tuple(tokens))
            self.pair.provider_did(self.pair.provider.output(request_id, delta, now=self.pair.now))
            self.made[request_id] += text * repeat
            self.tokens[request_id] += len(tokens)

    @rule(data=st.data(), fails=st.booleans())
    def finish(self, data: st.DataObject, fails: bool) -> None:
        running = self.running()
        if not running:
            return
        request_id = data.draw(st.sampled_from(running))
        pair = self.pair
        if fails:
            pair.provider_did(pair.provider.fail(request_id, Reason.ENGINE_FAILED, now=pair.now))
        else:
            usage = Usage(prompt_tokens=12, completion_tokens=0, cached_tokens=3)
            pair.provider_did(pair.provider.finish(request_id, FinishReason.STOP, usage, now=pair.now))
        self.finished.add(request_id)

    @rule(request_id=consumes(requests))
    def cancel(self, request_id: int) -> None:
        self.pair.client_did(self.pair.client.cancel(request_id, now=self.pair.now))
        self.cancelled.add(request_id)

    @rule(frames=st.integers(1, 5))
    def deliver(self, frames: int) -> None:
        for _ in range(frames):
            self.pair.deliver()

    @rule(passed_ns=st.sampled_from([0, MILLISECOND_NS, 20 * MILLISECOND_NS, SECOND_NS, 10 * SECOND_NS]))
    def wait(self, passed_ns: int) -> None:
        self.pair.run(passed_ns)

    @rule(reads=st.booleans())
    def read(self, reads: bool) -> None:
        """The reader stalls, or goes on and catches up."""
        pair = self.pair
        if reads and not pair.reads:
            taken: dict[int, int] = {}
            for event in pair.client_saw(OutputReceived):
                taken[event.id] = taken.get(event.id, 0) + event.sealed_bytes
            for request_id, total in taken.items():
                request = pair.client._requests.get(request_id)
                if request is not None:
                    rest = total - request.consumed_bytes
                    pair.client_did(pair.client.consumed(request_id, rest, now=pair.now))
        pair.reads = reads

    @invariant()
    def the_stream_lives(self) -> None:
        if hasattr(self, "pair"):
            assert self.pair.client_hung_up is None
            assert self.pair.provider_hung_up is None

    @invariant()
    def nobody_reads_what_was_not_made(self) -> None:
        if hasattr(self, "pair"):
            check_texts(self.pair, self.made)

    def teardown(self) -> None:
        if not hasattr(self, "pair"):
            return
        pair = self.pair
        self.read(True)
        pair.run(SECOND_NS)
        for event in pair.provider_saw(RequestOpened):
            if event.id not in self.made and event.id not in self.finished:
                pair.provider_did(pair.provider.refuse(event.id, Reason.BUSY, now=pair.now))
        for request_id in self.running():
            usage = Usage(prompt_tokens=12, completion_tokens=0)
            pair.provider_did(pair.provider.finish(request_id, FinishReason.STOP, usage, now=pair.now))
        pair.run(5 * SECOND_NS)
        self.the_stream_lives()
        check_texts(pair, self.made)
        assert pair.client.requests_open == pair.provider.requests_open == 0
        endings = [
            event.id for event in pair.client_events if isinstance(event, (RequestEnded, RequestFailed, RequestRefused))
        ]
        assert len(endings) == len(set(endings)) == pair.client._next_id
        for ended in pair.client_saw(RequestEnded):
            if ended.id not in self.cancelled:
                assert pair.text(ended.id) == self.made[ended.id]
            assert ended.usage.completion_tokens == self.tokens[ended.id]
            assert ended.receipt.body.completion_tokens == self.tokens[ended.id]
        closed = {event.id: event.receipt for event in pair.provider_saw(RequestClosed)}
        for receipt in pair.client_saw(ReceiptReceived):
            if receipt.body.final:
                assert closed[receipt.id] == receipt.body
        assert pair.provider._frames._buffered_bytes == 0


def check_texts(pair: SessionPair, made: dict[int, str]) -> None:
    texts: dict[int, str] = {}
    for event in pair.client_saw(OutputReceived):
        texts[event.id] = texts.get(event.id, "") + event.delta.text
    for request_id, text in texts.items():
        assert made[request_id].startswith(text)


TestHonestWire = HonestWire.TestCase
TestHonestWire.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


FAULTS = st.one_of(
    st.tuples(st.just("drop"), st.integers(0, 30)),
    st.tuples(st.just("repeat"), st.integers(0, 30)),
    st.tuples(st.just("swap"), st.integers(0, 30)),
    st.tuples(st.just("cut"), st.integers(0, 30), st.integers(0, 400)),
    st.tuples(st.just("flip"), st.integers(0, 30), st.integers(0, 3_000)),
    st.tuples(st.just("close"), st.integers(0, 30)),
)


def damage(frames: list[bytes], fault: tuple[Any, ...]) -> list[bytes]:
    """The frames of one direction with one fault."""
    kind, at = fault[0], fault[1] % max(1, len(frames))
    frames = list(frames)
    if not frames:
        return frames
    if kind == "drop":
        del frames[at]
    elif kind == "repeat":
        frames.insert(at, frames[at])
    elif kind == "swap" and at + 1 < len(frames):
        frames[at], frames[at + 1] = frames[at + 1], frames[at]
    elif kind == "cut":
        frames[at] = frames[at][: fault[2]]
    elif kind == "flip":
        data = bytearray(frames[at])
        data[fault[2] // 8 % len(data)] ^= 1 << fault[2] % 8
        frames[at] = bytes(data)
    elif kind == "close":
        del frames[at:]
    return frames


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pieces=st.lists(st.lists(st.tuples(TEXTS, TOKENS), max_size=6), min_size=1, max_size=3),
    fault=FAULTS,
    towards_client=st.booleans(),
)
def test_on_a_hostile_wire_an_answer_is_right_or_a_typed_error(
    pieces: list[list[tuple[str, list[int]]]], fault: tuple[Any, ...], towards_client: bool
) -> None:
    pair = SessionPair().start()
    ids = [pair.open() for _ in pieces]
    if not towards_client:
        frames = damage(list(pair.to_provider), fault)
        pair.to_provider.clear()
        pair.to_provider.extend(frames)
    pair.run()
    # What the provider then sends is held back, damaged, and delivered.
    known = {event.id for event in pair.provider_saw(RequestOpened)}
    texts = {}
    for request_id, deltas in zip(ids, pieces, strict=True):
        texts[request_id] = "".join(text for text, _ in deltas)
        if pair.provider.is_closed or request_id not in known:
            continue
        for text, tokens in deltas:
            pair.provider_did(pair.provider.output(request_id, Delta(text=text, token_ids=tuple(tokens)), now=pair.now))
            pair.now += bounds.FRAME_INTERVAL_NS
            pair.tick()
        usage = Usage(prompt_tokens=12, completion_tokens=0)
        pair.provider_did(pair.provider.finish(request_id, FinishReason.STOP, usage, now=pair.now))
    pair.now += bounds.FRAME_INTERVAL_NS
    pair.tick()
    if towards_client:
        frames = damage(list(pair.to_client), fault)
        pair.to_client.clear()
        pair.to_client.extend(frames)
    pair.run(60 * SECOND_NS)
    pair.client_did(pair.client.disconnected(now=pair.now))
    ended = {event.id for event in pair.client_saw(RequestEnded)}
    failed = [event for event in pair.client_events if isinstance(event, (RequestFailed, RequestRefused))]
    for request_id in ids:
        assert texts[request_id].startswith(pair.text(request_id))
        if request_id in ended:
            assert pair.text(request_id) == texts[request_id]
    assert len(ended) + len(failed) == len(ids)
    assert ended.isdisjoint({event.id for event in failed})


@given(st.binary(max_size=5_000))
def test_padding_comes_off_as_it_went_on(plaintext: bytes) -> None:
    padded = pad_request(plaintext)
    assert unpad_request(padded) == plaintext
    assert len(padded) >= 1_024
    assert len(padded) & (len(padded) - 1) == 0


@given(st.lists(st.integers(16, 3_000), min_size=1, max_size=8))
def test_every_frame_is_a_multiple_of_256_bytes_and_is_what_it_says(sizes: list[int]) -> None:
    chunks = [
        Chunk(id=n, number=0, final=False, prompt_tokens=0, completion_tokens=0, sealed=bytes(size))
        for n, size in enumerate(sizes)
    ]
    frame, data = encode_frame(chunks)
    assert len(data) % 256 == 0
    assert encode(frame) == data


SCALARS = st.none() | st.booleans() | st.integers(-(1 << 62), 1 << 62) | st.text(max_size=20)
TEXT_PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}), min_size=1, max_size=3)
JSON = st.recursive(
    SCALARS | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
MESSAGES = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "developer", "user"]), "content": TEXTS}),
        st.fixed_dictionaries(
            {"role": st.just("user"), "content": TEXT_PARTS}
        ),
        st.fixed_dictionaries(
            {
                "role": st.just("assistant"),
                "content": st.none(),
                "tool_calls": st.lists(
                    st.fixed_dictionaries(
                        {
                            "id": st.just("call_1"),
                            "type": st.just("function"),
                            "function": st.fixed_dictionaries({"name": st.just("f"), "arguments": TEXTS}),
                        }
                    ),
                    min_size=1,
                    max_size=2,
                ),
            }
        ),
        st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": st.just("call_1"), "content": TEXTS}),
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.none() | st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "seed": st.integers(-(1 << 62), 1 << 62),
    "stop": st.text(min_size=1, max_size=5) | st.lists(st.text(min_size=1, max_size=5), max_size=4),
    "logit_bias": st.dictionaries(st.integers(0, 1 << 31).map(str), st.integers(-100, 100), max_size=5),
    "frequency_penalty": st.floats(-2, 2),
    "user": TEXTS,
    "metadata": JSON,
    "something_new": JSON,
}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    messages=MESSAGES,
    options=st.fixed_dictionaries({}, optional=OPTIONS),
    schema=st.none() | st.dictionaries(st.text(max_size=8), JSON, max_size=4),
    logprobs=st.none() | st.integers(0, 20),
)
def test_checking_a_request_twice_changes_nothing(
    messages: list[Any], options: dict[str, Any], schema: dict[str, Any] | None, logprobs: int | None
) -> None:
    """So what the client checked passes at the provider, unaltered."""
    body = {"model": "m", "messages": messages, "max_completion_tokens": 7, **options}
    if schema is not None:
        body["tools"] = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    if logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": logprobs}
    once = normalise(CHAT, body)
    again = generation_request(CHAT, encode_body(once.body), cache_scope=b"")
    assert again.body == once.body
    assert {"model", "user", "metadata", "something_new", "stream", "n"}.isdisjoint(again.body)


@given(prompt=st.text(min_size=1, max_size=50), logprobs=st.none() | st.booleans() | st.integers(0, 5))
def test_checking_a_completion_twice_changes_nothing(prompt: str, logprobs: int | bool | None) -> None:
    once = normalise(COMPLETIONS, {"model": "m", "prompt": [prompt], "max_tokens": 3, "logprobs": logprobs})
    again = generation_request(COMPLETIONS, encode_body(once.body), cache_scope=b"")
    assert again.body == once.body
    assert again.body["prompt"] == prompt
