"""A gateway on a free loopback port around a scripted role, and raw HTTP to talk to it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import trio

from cocoon.client.interface import ClientRole
from cocoon.gateway.server import GatewayHandle, open_gateway
from cocoon.gateway.settings import GatewaySettings
from cocoon.types import Secret

KEY = "test-key-of-the-gateway"
CHAT = {"model": "cocoon-tiny", "messages": [{"role": "user", "content": "hello"}]}


class WallClock:
    """The system's."""

    def now(self) -> int:
        return time.time_ns()


def gateway_settings(**changes: Any) -> GatewaySettings:
    """Settings for a test: free offers only, any port."""
    plain = {"spend_max_request_nano": 0, "spend_max_day_nano": 0, "port": 0, "shutdown_grace_s": 1.0}
    return GatewaySettings(**{"api_keys": (Secret(KEY.encode()),), **plain, **changes})


@dataclass(frozen=True)
class Running:
    """A gateway under test, and an HTTP client that knows its key."""

    handle: GatewayHandle
    http: httpx.AsyncClient


@asynccontextmanager
async def running_gateway(role: ClientRole, **changes: Any) -> AsyncIterator[Running]:
    """Real sockets, real HTTP."""
    async with open_gateway(role, gateway_settings(**changes), WallClock()) as handle:
        headers = {"authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=handle.base_url, headers=headers, timeout=10) as http:
            yield Running(handle, http)


def events(text: str) -> list[Any]:
    """The data of an SSE body; `[DONE]` stays a string."""
    blocks = [block for block in text.split("\n\n") if block]
    assert all(block.startswith("data: ") for block in blocks), text
    return [block[6:] if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]


async def exchange(port: int, request: bytes, *, timeout_s: float = 5.0) -> bytes:
    """Send raw bytes, and read until the server closes."""
    with trio.fail_after(timeout_s):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(request)
            received = b""
            try:
                async for piece in stream:
                    received += piece
            except trio.BrokenResourceError:
                pass
            return received


@asynccontextmanager
async def asking(port: int, body: Mapping[str, Any]) -> AsyncIterator[trio.SocketStream]:
    """A chat request on a connection of its own, which closes when the context is left: a client that goes away."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(raw_request(port, "POST", "/v1/chat/completions", body=json.dumps(body).encode()))
        yield stream


async def read_until(stream: trio.SocketStream, mark: bytes, *, count: int = 1) -> bytes:
    """What arrives, up to and with the `count`th `mark`."""
    received = b""
    while received.count(mark) < count:
        piece = await stream.receive_some()
        assert piece, received
        received += piece
    return received


async def wait_until(condition: Callable[[], bool], *, timeout_s: float = 2.0) -> None:
    """Poll for what a gateway does after the client has gone."""
    with trio.fail_after(timeout_s):
        while not condition():
            await trio.sleep(0.005)


def raw_request(
    port: int,
    method: str = "GET",
    path: str = "/v1/models",
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    close: bool = True,
) -> bytes:
    """A well-formed request with the right Host and key, unless `headers` say otherwise (empty value: leave out)."""
    lines = {"Host": f"127.0.0.1:{port}", "Authorization": f"Bearer {KEY}"}
    if body:
        lines |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    if close:
        lines["Connection"] = "close"
    lines |= headers or {}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def status_of(answer: bytes) -> int:
    """The status code of a raw answer; 0 when the server just closed."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
