"""Chunks as bytes, and how many writes a stream takes: the gateway's hot path, without a socket."""

from __future__ import annotations

import json
from typing import Any

import trio

from cocoon.gateway.app import build_app
from cocoon.gateway.generation import Choice
from cocoon.gateway.objects import finite_logprob, merge_tool_calls
from cocoon.gateway.spend import SpendLedger
from cocoon.gateway.sse import ChunkEncoder, error_event
from cocoon.ports import Delta, Logprob
from tests.fakes.client_role import FakeClientRole, FakeReply, Script, words
from tests.fakes.gateway import CHAT, KEY, WallClock, events, gateway_settings


def ended(index: int = 0) -> Choice:
    """A choice that has its summary."""
    reply = FakeReply(Script())
    reply._ended = True
    return Choice(index=index, reply=reply, summary=reply.summary)


def encoder(*choices: Choice, **changes: Any) -> ChunkEncoder:
    plain = {"is_chat": True, "response_id": "id", "created": 1, "model": "m", "include_usage": False}
    return ChunkEncoder(choices=choices, **{**plain, "wants_logprobs": False, **changes})


def test_a_batch_becomes_one_piece_of_bytes_that_ends_with_done() -> None:
    one, two = ended(0), ended(1)
    piece = encoder(one, two, include_usage=True).encode(
        [(one, Delta(text="a")), (two, Delta(text="b")), (two, None), (one, Delta(text="c")), (one, None)]
    )
    *chunks, usage, done = events(piece.decode())
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert [chunk["choices"][0]["index"] for chunk in chunks] == [0, 1, 0, 1, 1, 0, 0]


def test_tokens_without_certain_text_make_no_chunk() -> None:
    one = ended()
    encode = encoder(one).encode
    encode([])
    assert encode([(one, Delta(token_ids=(1, 2)))]) == b""


def test_every_event_is_one_line_whatever_the_text() -> None:
    one = ended()
    text = "".join(map(chr, range(0x300))) + "\u2028\u2029\U0001f642"
    piece = encoder(one).encode([(one, Delta(text=text))])
    assert len(piece.decode().split("\n\n")) == 3  # role, text, nothing
    assert events(piece.decode())[1]["choices"][0]["delta"]["content"] == text
    assert b"\n" not in error_event({"message": "a\nb"})[:-2]


def test_streamed_text_offsets_go_on_over_chunks() -> None:
    one = ended()
    coder = encoder(one, is_chat=False, wants_logprobs=True)
    token = Logprob(token_id=1, token=b"abc", logprob=-1.0)
    offsets = []
    for _ in range(2):
        (chunk,) = events(coder.encode([(one, Delta(text="abc", logprobs=(token,)))]).decode())
        offsets += chunk["choices"][0]["logprobs"]["text_offset"]
    assert offsets == [0, 3]


def test_logprobs_that_json_cannot_hold_become_openais_floor() -> None:
    assert [finite_logprob(value) for value in (-0.5, float("-inf"), float("nan"), -1e9)] == [-0.5, *[-9999.0] * 3]


def test_tool_call_pieces_without_fields_change_nothing() -> None:
    calls: dict[int, dict[str, Any]] = {}
    merge_tool_calls(calls, [{"index": 0, "id": "x", "function": {"name": "f"}}, {"index": 0}, {"function": None}])
    assert calls == {0: {"id": "x", "type": "function", "function": {"name": "f", "arguments": ""}}}


def test_a_stream_takes_one_write_per_delta_and_one_for_its_end() -> None:
    async def main() -> list[dict[str, Any]]:
        settings = gateway_settings()
        role = FakeClientRole(Script(steps=words("a b c d e")))
        ledger = SpendLedger(request_max_nano=0, day_max_nano=0)
        app = build_app(role, settings, WallClock(), ledger, hosts=frozenset((b"here",)))
        sent: list[dict[str, Any]] = []
        body = [{"type": "http.request", "body": json.dumps({**CHAT, "stream": True}).encode(), "more_body": False}]

        async def receive() -> dict[str, Any]:
            if body:
                await trio.lowlevel.checkpoint()
                return body.pop()
            await trio.sleep_forever()
            raise AssertionError

        async def send(message: Any) -> None:
            await trio.lowlevel.checkpoint()
            sent.append(message)

        headers = [(b"host", b"here"), (b"authorization", f"Bearer {KEY}".encode())]
        headers.append((b"content-type", b"application/json"))
        path = "/v1/chat/completions"
        await app({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
        return sent

    start, *pieces = trio.run(main)
    assert start["status"] == 200
    assert len(pieces) == 5 + 1  # the role goes with the first, `[DONE]` with the finish reason
    assert [piece["more_body"] for piece in pieces] == [True] * 5 + [False]
