"""The local HTTP side of a provider or a plain node: `/metrics` and `/healthz`, on loopback, behind a key.

A gateway has the same paths on its own port. Not here: OpenAI's API.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from ..types import Secret
from .app import Endpoint, StatusSource, on_http_exception, send_json, send_metrics
from .asgi import Receive, Scope, Send, ServerLimits
from .guard import Guard
from .h11_server import serve_h11
from .server import bind
from .settings import host_values

CONNECTIONS_MAX: Final = 32  # a scraper, a browser, a curl
GRACE_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalHandle:
    """A running local side."""

    base_url: str


class MetricsEndpoints:
    """`/metrics` and `/healthz` over one source."""

    def __init__(self, status: StatusSource) -> None:
        self._status = status

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET /metrics"""
        await send_metrics(send, await self._status())

    async def health(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET /healthz"""
        status = await self._status()
        await send_json(send, {"status": "ok", "role": status.role, "connections": status.peers.connections})


@asynccontextmanager
async def open_local(host: str, port: int, *, key: Secret, status: StatusSource) -> AsyncIterator[LocalHandle]:
    """Serve until the block is left. Raises `ConfigError` when the port is taken."""
    listener = await bind(host, port)
    port = listener.getsockname()[1]
    endpoints = MetricsEndpoints(status)
    routes = [
        Route("/metrics", Endpoint(endpoints.metrics), methods=["GET"]),
        Route("/healthz", Endpoint(endpoints.health), methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: on_http_exception})
    app.router.redirect_slashes = False
    guarded = Guard(app, hosts=host_values(host, port), api_keys=(key,))
    stop = trio.Event()
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        limits = ServerLimits(connections_max=CONNECTIONS_MAX, grace_s=GRACE_S)
        nursery.start_soon(partial(serve_h11, guarded, listener, limits=limits, stop=stop))
        try:
            name = f"[{host}]" if ":" in host else host
            yield LocalHandle(base_url=f"http://{name}:{port}")
        except Exception as error:  # carried past the nursery, which would wrap it in a group
            failure = error
        stop.set()
    if failure is not None:
        raise failure
