"""Start and stop the gateway: bind, build the app, serve it with one of the two servers.

`open_gateway` is what compositions use. Its base URL is what an OpenAI SDK takes.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from ..client.interface import ClientRole
from ..errors import ConfigError
from ..ports import Clock
from .app import StatusSource, build_app
from .asgi import ServerLimits
from .generation import GatewayRecord
from .h11_server import serve_h11
from .hypercorn_server import serve_hypercorn
from .settings import GatewaySettings, host_values
from .spend import DayFile, SpendLedger

BACKLOG: Final = 256  # a burst of new streams waits in the kernel, not in a retry of the client

_SERVERS: Final = {"h11": serve_h11, "hypercorn": serve_hypercorn}


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayHandle:
    """A running gateway."""

    host: str
    port: int  # the real one, also when 0 was asked for
    base_url: str  # "http://127.0.0.1:8642/v1"
    ledger: SpendLedger


@asynccontextmanager
async def open_gateway(
    role: ClientRole,
    settings: GatewaySettings,
    clock: Clock,
    *,
    record: GatewayRecord | None = None,
    status: StatusSource | None = None,
) -> AsyncIterator[GatewayHandle]:
    """Serve until the context is left; running answers then get `settings.shutdown_grace_s`.

    `record` and `status` as in `build_app`. Accepts connections from the moment it is entered. Cancelling cuts running
    answers, which cancels them at their providers. Raises `ConfigError` when the port is taken or the address not ours.
    """
    day_file = DayFile(settings.spend_file) if settings.spend_file is not None else None
    ledger = SpendLedger(
        request_max_nano=settings.spend_max_request_nano,
        day_max_nano=settings.spend_max_day_nano,
        restored=day_file.load() if day_file is not None else None,
        persist=day_file.save if day_file is not None else None,
    )
    listener = await bind(settings.host, settings.port)
    port = listener.getsockname()[1]
    hosts = host_values(settings.host, port, settings.hosts_allowed)
    app = build_app(role, settings, clock, ledger, hosts=hosts, record=record, status=status)
    limits = ServerLimits(connections_max=settings.connections_max, grace_s=settings.shutdown_grace_s)
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    handle = GatewayHandle(host=settings.host, port=port, base_url=f"http://{name}:{port}/v1", ledger=ledger)
    stop = trio.Event()
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(_SERVERS[settings.server], app, listener, limits=limits, stop=stop))
        try:
            yield handle
        except Exception as error:  # carried past the nursery, which would wrap it in a group
            failure = error
        stop.set()
    if failure is not None:
        raise failure


async def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises `ConfigError` that says what to do."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}: {error.strerror}", advice="Use 127.0.0.1 or ::1.") from error
    try:
        if os.name == "posix":  # elsewhere it would let two programs share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _bind_error(host, port, error) from error
    return listener


def _bind_error(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} on {host} is in use",
            advice="Another gateway may be running there. Choose another port with --port, or 0 for a free one.",
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"port {port} needs more rights than we have", advice="Choose a port above 1023.")
    return ConfigError(f"cannot listen on {host} port {port}: {error.strerror}", advice="Use 127.0.0.1 or ::1.")
