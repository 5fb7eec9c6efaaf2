"""The few ASGI 3 words that the app and both servers share. Types and two helpers; no behaviour of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


def response_start(status: int, headers: Iterable[tuple[bytes, bytes]]) -> Message:
    """The message that opens a response."""
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def response_body(body: bytes, *, more: bool) -> Message:
    """A piece of the body; the last one has `more=False`."""
    return {"type": "http.response.body", "body": body, "more_body": more}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Bounds that a server keeps, whatever the app does."""

    connections_max: int
    grace_s: float  # for running answers after a stop
    header_timeout_s: float = 15.0  # from a connection's (or request's) first byte to the end of its headers
    idle_timeout_s: float = 75.0  # kept alive between requests; SDKs drop theirs after 5 to 60 s
    write_timeout_s: float = 120.0  # without any progress: a reader may stall for a minute and lose nothing
