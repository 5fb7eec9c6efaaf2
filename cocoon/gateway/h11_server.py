"""An ASGI server for HTTP/1.1 on trio: h11 parses, this file reads, writes, and keeps the bounds.

For what the gateway needs and no more: requests one after another on kept-alive connections, chunked streaming,
prompt news of a client that left, bounded headers, connections and waits. No TLS, HTTP/2, WebSocket or lifespan: the
gateway listens on loopback, and a reverse proxy in front of it does those.

Writing is the hot path. A piece of a stream is one `send` system call when the kernel has room, which is nearly
always; only a slow reader costs a wait. So that a chatty app cannot starve others, every 16th such write yields.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Iterable
from email.utils import formatdate
from typing import Any, Final
from urllib.parse import unquote

import h11
import trio

from .asgi import AsgiApp, Message, Scope, ServerLimits

log = logging.getLogger("cocoon.gateway")

HEADER_BYTES_MAX: Final = 32 * 1024  # request line and headers; SDKs send about 1 KiB
RECEIVE_BYTES: Final = 64 * 1024
EARLY_BYTES_MAX: Final = 64 * 1024  # of a next request sent while an answer runs; more is not HTTP as anyone uses it
SEND_BUFFER_BYTES: Final = 128 * 1024  # in the kernel, per connection: bounds what a stalled reader makes us hold
LINGER_S: Final = 1.0  # for a client to read a refusal while it still sends
LINGER_BYTES_MAX: Final = 8 * 1024 * 1024  # twice the largest body that is accepted
WRITES_PER_YIELD: Final = 16
ACCEPT_PAUSE_S: Final = 0.1  # when the process has no file descriptors left

_EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_ACCEPT_GONE: Final = frozenset((errno.ECONNABORTED, errno.ECONNRESET, errno.EPERM, errno.EPROTO, errno.EINTR))


async def serve_h11(app: AsgiApp, listener: socket.socket, *, limits: ServerLimits, stop: trio.Event) -> None:
    """Serve `app` on a listening socket, and close that socket at the end.

    Returns after `stop`: idle connections close at once, running answers get `limits.grace_s`. Cancelling cuts all.
    """
    server = _Server(app, limits)
    listener.setblocking(False)
    try:
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(server.accept, listener, connections)
                await stop.wait()
                accepting.cancel_scope.cancel()
            trio.lowlevel.notify_closing(listener.fileno())
            listener.close()
            server.drain()
            connections.cancel_scope.deadline = trio.current_time() + limits.grace_s
    finally:
        listener.close()


class _Server:
    def __init__(self, app: AsgiApp, limits: ServerLimits) -> None:
        self.app = app
        self.limits = limits
        self.is_draining = False
        self._slots = trio.Semaphore(limits.connections_max)
        self._live: set[_Connection] = set()

    async def accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        """Take connections while there are slots; the kernel's backlog holds the others."""
        while True:
            await self._slots.acquire()
            nursery.start_soon(self._serve, await _accept_one(listener))

    async def _serve(self, sock: socket.socket) -> None:
        connection = _Connection(self, sock)
        self._live.add(connection)
        try:
            await connection.run()
        finally:
            self._live.discard(connection)
            trio.lowlevel.notify_closing(sock.fileno())
            sock.close()
            self._slots.release()

    def drain(self) -> None:
        """No further requests; idle connections close now."""
        self.is_draining = True
        for connection in self._live:
            connection.close_if_idle()


async def _accept_one(listener: socket.socket) -> socket.socket:
    while True:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            await trio.lowlevel.wait_readable(listener.fileno())
        except OSError as error:
            if error.errno in _EXHAUSTED:
                log.warning("server.no_descriptors")
                await trio.sleep(ACCEPT_PAUSE_S)
            elif error.errno not in _ACCEPT_GONE:
                raise
        else:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            return sock


class _Connection:
    """One client connection. `receive` and `send` are the ASGI callables of the request that runs now."""

    def __init__(self, server: _Server, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._limits = server.limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_BYTES_MAX)
        self._idle_scope: trio.CancelScope | None = None  # while it waits for a request
        self._is_gone = False  # the client left, or cannot be written to
        self._is_torn = False  # a write may be half done: nothing may follow it
        self._writes = 0
        self._begin()

    def _begin(self) -> None:
        """State of one request."""
        self._body_received = False
        self._is_head = False
        self._head: Message | None = None  # held back, so that it leaves with the first piece of the body
        self._head_sent = False
        self._is_chunked = False
        self._is_complete = False
        self._bad_request: h11.RemoteProtocolError | None = None

    def close_if_idle(self) -> None:
        """Stop waiting for a next request."""
        if self._idle_scope is not None:
            self._idle_scope.cancel()

    # --- the connection's life ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Requests, one after another, until either side has had enough."""
        timeout_s = self._limits.header_timeout_s
        while not self._server.is_draining:
            try:
                request = await self._next_request(timeout_s)
            except h11.RemoteProtocolError as error:
                await self._refuse(error.error_status_hint)
                return
            if request is None:
                return
            if request.http_version not in (b"1.1", b"1.0"):
                await self._refuse(505)
                return
            if not request.target.startswith(b"/"):
                await self._refuse(400)  # absolute targets and CONNECT are for proxies
                return
            await self._run_app(request)
            if self._is_gone or self._is_torn or not self._is_complete:
                return
            self._pass_empty_body()
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                await self._linger()
                return
            self._http.start_next_cycle()
            self._begin()
            timeout_s = self._limits.idle_timeout_s

    def _pass_empty_body(self) -> None:
        """An app need not read a body that is not there: its end came with the head, and the connection is good."""
        if self._http.their_state is h11.SEND_BODY:
            try:
                self._http.next_event()  # anything else than the end leaves the state as it is, and we close
            except h11.RemoteProtocolError:
                return

    async def _next_request(self, timeout_s: float) -> h11.Request | None:
        """None when there is none to come. Raises `h11.RemoteProtocolError`."""
        request: h11.Request | None = None
        with trio.move_on_after(timeout_s) as scope:
            self._idle_scope = scope
            try:
                while request is None:
                    event = self._http.next_event()
                    if event is h11.NEED_DATA:
                        data = await self._recv()
                        if self._idle_scope is not None and data:
                            self._idle_scope = None
                            scope.deadline = trio.current_time() + self._limits.header_timeout_s
                        self._http.receive_data(data)
                    elif isinstance(event, h11.Request):
                        request = event
                    else:
                        break
            finally:
                self._idle_scope = None
        return request

    async def _run_app(self, request: h11.Request) -> None:
        """Supervision boundary: an app that fails costs its own request, not the server."""
        self._is_head = request.method == b"HEAD"
        try:
            await self._server.app(self._scope(request), self.receive, self.send)
        except Exception:  # the boundary named above
            log.exception("server.app_failed")
        if self._is_complete or self._head_sent:
            return
        if self._bad_request is not None:
            await self._refuse(self._bad_request.error_status_hint)
        elif not self._is_gone:
            await self._refuse(500)

    def _scope(self, request: h11.Request) -> Scope:
        path, _, query = request.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": request.http_version.decode("ascii"),
            "method": request.method.decode("ascii"),
            "scheme": "http",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": list(request.headers),
            "client": self._name(self._sock.getpeername),
            "server": self._name(self._sock.getsockname),
            "state": {},
        }

    @staticmethod
    def _name(ask: Any) -> tuple[str, int] | None:
        try:
            host, port, *_ = ask()
        except (OSError, ValueError):
            return None
        return host, port

    async def _refuse(self, status: int) -> None:
        """An answer of the server's own, after which the connection closes."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        headers = [(b"content-length", b"0"), (b"connection", b"close"), (b"date", _date())]
        head = self._http.send(h11.Response(status_code=status, headers=headers))
        self._http.send(h11.EndOfMessage())
        await self._write(head or b"")
        await self._linger()

    async def _linger(self) -> None:
        """Let the client read what we said while it still sends; closing at once could destroy it on the way."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            return
        with trio.move_on_after(LINGER_S):
            for _ in range(LINGER_BYTES_MAX // RECEIVE_BYTES):
                if not await self._recv():
                    return

    # --- ASGI --------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """The body, then `http.disconnect` as soon as the client leaves."""
        if not self._body_received and not self._is_gone:
            try:
                message = await self._receive_body()
            except h11.RemoteProtocolError as error:
                self._bad_request = error
                message = None
            if message is not None:
                return message
        elif not self._is_gone and not self._is_complete:
            await self._wait_gone()
        else:
            await trio.lowlevel.checkpoint()
        return {"type": "http.disconnect"}

    async def _receive_body(self) -> Message | None:
        if self._http.they_are_waiting_for_100_continue:
            go_on = self._http.send(h11.InformationalResponse(status_code=100, headers=[]))
            await self._write(go_on or b"")
        body = b""
        while not self._is_gone:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if body:
                    return {"type": "http.request", "body": body, "more_body": True}
                data = await self._recv()
                self._is_gone = not data
                if data:
                    self._http.receive_data(data)
            elif isinstance(event, h11.Data):
                body += bytes(event.data)  # at most what one read brought
            else:
                self._body_received = True
                return {"type": "http.request", "body": body, "more_body": False}
        return None

    async def _wait_gone(self) -> None:
        early = 0
        while data := await self._recv():
            early += len(data)
            if early > EARLY_BYTES_MAX:
                break
            self._http.receive_data(data)  # the next request, sent early
        self._is_gone = True

    async def send(self, message: Message) -> None:
        """Write a message of the app; waits while the client does not read.

        Cancelling may leave half a message on the wire: what follows is dropped, and the connection closes. After the
        client has left, nothing happens.
        """
        if self._is_gone or self._is_torn:
            await trio.lowlevel.checkpoint()
            return
        if message["type"] == "http.response.start":
            self._head = message
            return
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        if self._head_sent and self._is_chunked and more:  # the hot path; h11's state does not change here
            if body and not self._is_head:
                await self._write(b"%x\r\n%b\r\n" % (len(body), body))
            return
        parts: list[bytes | None] = []
        if not self._head_sent:
            assert self._head is not None, "a body before the response's start"
            parts.append(self._response_head(self._head["status"], self._head["headers"]))
            self._head_sent = True
        if body and not self._is_head:
            parts.append(self._http.send(h11.Data(data=body)))
        if not more:
            parts.append(self._http.send(h11.EndOfMessage()))
            self._is_complete = True
        await self._write(b"".join(part for part in parts if part))

    def _response_head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
        lines = [*headers, (b"date", _date())]
        has_length = any(name.lower() == b"content-length" for name, _ in lines)
        self._is_chunked = not has_length and self._http.their_http_version == b"1.1"
        if self._server.is_draining:
            lines.append((b"connection", b"close"))
        return self._http.send(h11.Response(status_code=status, headers=lines))

    # --- the socket --------------------------------------------------------------------------------------

    async def _recv(self) -> bytes:
        """Bytes, or none when the client has closed or reset. Cancelling loses nothing."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                return self._sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock.fileno())
            except OSError:
                return b""

    async def _write(self, data: bytes) -> None:
        self._is_torn = True
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose()
            return
        if sent < len(data) and not await self._write_slowly(memoryview(data)[sent:]):
            self._lose()
            return
        self._is_torn = False
        self._writes += 1
        if self._writes % WRITES_PER_YIELD:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()

    async def _write_slowly(self, rest: memoryview) -> bool:
        """Write `rest` as the client reads it. False when it left, or read nothing for too long."""
        with trio.move_on_after(self._limits.write_timeout_s) as scope:
            while rest:
                await trio.lowlevel.wait_writable(self._sock.fileno())
                try:
                    rest = rest[self._sock.send(rest) :]
                except BlockingIOError:
                    continue
                except OSError:
                    return False
                scope.deadline = trio.current_time() + self._limits.write_timeout_s
        return not rest

    def _lose(self) -> None:
        """Give the client up, and wake whoever waits in `receive`."""
        self._is_gone = True
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it had gone already


def _date() -> bytes:
    """The Date header. The wall clock is fine here: nothing depends on it."""
    return formatdate(time.time(), usegmt=True).encode("ascii")
