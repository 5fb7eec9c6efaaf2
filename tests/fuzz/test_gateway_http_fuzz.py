"""Broken HTTP against a running gateway: it stays up, and serves a good client meanwhile."""

from __future__ import annotations

import json
import random

import pytest
import trio

from tests.fakes.client_role import FakeClientRole, Script, words
from tests.fakes.gateway import CHAT, Running, events, exchange, raw_request, running_gateway

STREAMS = 200
AT_ONCE = 8  # connections of the attacker


def malformed(rng: random.Random, port: int) -> bytes:
    """Random bytes, or a good request that was cut, changed, repeated or shuffled."""
    body = json.dumps({**CHAT, "stream": rng.random() < 0.5}).encode()
    good = raw_request(port, "POST", "/v1/chat/completions", body=body, close=False)
    match rng.randrange(7):
        case 0:
            return rng.randbytes(rng.randrange(1, 4_000))
        case 1:
            return good[: rng.randrange(1, len(good))]
        case 2:
            changed = bytearray(good)
            for _ in range(rng.randrange(1, 12)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            return bytes(changed)
        case 3:
            lines = good.split(b"\r\n")
            rng.shuffle(lines)
            return b"\r\n".join(lines)
        case 4:
            return good + rng.randbytes(rng.randrange(1, 100_000))
        case 5:
            return good.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n") + good
        case _:
            return good.replace(body, b"[" * len(body))


@pytest.mark.parametrize("server", ["h11", "hypercorn"])
def test_broken_requests_leave_the_gateway_serving(server: str) -> None:
    rng = random.Random(20261122)

    async def attack(running: Running, streams: list[bytes]) -> None:
        while streams:
            data = streams.pop()
            with trio.move_on_after(0.2):  # most are closed at once; the rest wait for more
                await exchange(running.handle.port, data)

    async def main() -> None:
        role = FakeClientRole(Script(steps=words("still here")))
        async with running_gateway(role, server=server) as running:
            streams = [malformed(rng, running.handle.port) for _ in range(STREAMS)]
            async with trio.open_nursery() as nursery:
                for _ in range(AT_ONCE):
                    nursery.start_soon(attack, running, streams)
                while streams:
                    answer = await running.http.post("/chat/completions", json={**CHAT, "stream": True})
                    assert events(answer.text)[-1] == "[DONE]"
                    await trio.sleep(0.05)
            health = await running.http.get(f"http://127.0.0.1:{running.handle.port}/healthz")
            assert health.json()["requests_running"] == 0

    with_timeout(main)


def with_timeout(main: object) -> None:
    async def bounded() -> None:
        with trio.fail_after(60):
            await main()  # type: ignore[operator]

    trio.run(bounded)


@pytest.mark.parametrize("seed", range(10))
def test_where_packets_are_cut_does_not_matter(seed: int) -> None:
    rng = random.Random(seed)

    async def main() -> None:
        role = FakeClientRole(Script(steps=words("the same")))
        async with running_gateway(role) as running:
            port = running.handle.port
            body = json.dumps(CHAT).encode()
            asked = raw_request(port, "POST", "/v1/chat/completions", body=body, close=False)
            data = asked * 2 + raw_request(port, "POST", "/v1/chat/completions", body=body)
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            received = b""
            async with stream, trio.open_nursery() as nursery:

                async def send() -> None:
                    rest = data
                    while rest:
                        size = rng.choice((1, 3, 17, 200))
                        await stream.send_all(rest[:size])
                        rest = rest[size:]
                        await trio.sleep(0.0005)

                nursery.start_soon(send)
                async for piece in stream:
                    received += piece
            assert received.count(b"HTTP/1.1 200") == 3
            assert received.count(b"the same") == 3

    with_timeout(main)
