"""One liteserver on loopback: TCP connections, ADNL packets, and waiting for blocks. trio.

Many servers may show one chain, each with its own key and its own `Faults`. Not here: the answers (`queries`), the
making of blocks (`devnet`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import trio
from nacl.signing import SigningKey

from ...errors import RemoteProtocolError
from .adnl import HANDSHAKE_BYTES, NONCE_BYTES, AdnlChannel
from .queries import Queries, QueryError

CONNECTIONS_MAX: Final = 64
QUERIES_AT_ONCE_MAX: Final = 64  # of one connection; more wait in its socket
HANDSHAKE_TIMEOUT_S: Final = 10.0
IDLE_TIMEOUT_S: Final = 300.0
WAIT_MAX_S: Final = 30.0  # for a block that does not come
WAIT_EXPIRED: Final = 652


class LiteServer:
    """Serves until cancelled."""

    def __init__(
        self,
        queries: Queries,
        key: SigningKey,
        *,
        entropy: Callable[[int], bytes],
        wait_block: Callable[[int], Any],
        answer: Callable[[bytes], Any],
    ) -> None:
        self.queries = queries
        self.key = key
        self.port = 0
        self._entropy = entropy
        self._wait_block = wait_block  # async: returns when this seqno is there
        self._answer = answer  # async: the answer to a query
        self._connections = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def serve(self, port: int, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Listen on loopback; the port is reported when it is open. Raises `OSError` when it is taken."""
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started(self.port)
        await trio.serve_listeners(self._connection, listeners)

    async def _connection(self, stream: trio.SocketStream) -> None:
        if self._connections.available_tokens < 1:
            await stream.aclose()
            return
        try:
            async with self._connections, stream, trio.open_nursery() as nursery:
                try:
                    await self._talk(stream, nursery)
                finally:
                    nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, RemoteProtocolError, trio.TooSlowError):
            pass  # the other side's fault or choice; the connection is closed and that is all

    async def _talk(self, stream: trio.SocketStream, nursery: trio.Nursery) -> None:
        with trio.fail_after(HANDSHAKE_TIMEOUT_S):
            handshake = await _receive_exactly(stream, HANDSHAKE_BYTES)
        if handshake is None:
            return
        channel = AdnlChannel(self.key, handshake)
        sending = trio.Lock()
        at_once = trio.Semaphore(QUERIES_AT_ONCE_MAX)

        async def send(payload: bytes) -> None:
            async with sending:
                await stream.send_all(channel.seal(payload, self._entropy(NONCE_BYTES)))

        await send(b"")
        while True:
            with trio.fail_after(IDLE_TIMEOUT_S):
                head = await _receive_exactly(stream, 4)
                body = None if head is None else await _receive_exactly(stream, channel.open_length(head))
            if body is None:
                return
            message = self._parse(channel.open_body(body))
            match message.get("@type"):
                case "tcp.ping":
                    await send(self._serialise("tcp.pong", {"random_id": message["random_id"]}))
                case "adnl.message.query":
                    await at_once.acquire()
                    nursery.start_soon(self._reply, message, send, at_once, stream)
                case _:
                    raise RemoteProtocolError("an unknown message")

    async def _reply(
        self, message: dict[str, Any], send: Callable[[bytes], Any], at_once: trio.Semaphore, stream: trio.SocketStream
    ) -> None:
        try:
            inner = self._parse(message["query"])
            data = inner.get("data")
            if not isinstance(data, bytes):
                raise RemoteProtocolError("a query without data")
            answer = await self._answer_with_faults(data, stream)
            if answer is not None:
                await send(self._serialise("adnl.message.answer", {"query_id": message["query_id"], "answer": answer}))
        finally:
            at_once.release()

    async def _answer_with_faults(self, data: bytes, stream: trio.SocketStream) -> bytes | None:
        queries, faults = self.queries, self.queries.faults
        try:
            seqno, timeout_ms, query = queries.split_wait(data)
            name = queries.name(query) if query else "waitMasterchainSeqno"
        except QueryError as error:
            return queries.error(error.code, str(error))
        if faults.concern(name):
            if faults.delay_s:
                await trio.sleep(faults.delay_s)
            if faults.drop_connections:
                await stream.aclose()
                return None
            if faults.silent:
                return None
            if faults.error_code is not None:
                return queries.error(faults.error_code, "told to fail")
        if seqno is not None:
            with trio.move_on_after(min(timeout_ms / 1000, WAIT_MAX_S)) as scope:
                while queries.newest < seqno:
                    await self._wait_block(min(seqno, queries.blocks.seqno + 1))
            if scope.cancelled_caught:
                return queries.error(WAIT_EXPIRED, "timeout")
            if not query:
                return queries.error(-1, "nothing to answer after the wait")
        answer: bytes = await self._answer(query)
        return answer

    def _parse(self, data: bytes) -> dict[str, Any]:
        try:
            parsed, _ = self.queries.schemas.deserialize(data)
        except Exception as error:  # the TL library raises whatever it trips over; here it is a bad message
            raise RemoteProtocolError("a malformed message") from error
        if not isinstance(parsed, dict):
            raise RemoteProtocolError("a malformed message")
        return parsed

    def _serialise(self, name: str, values: dict[str, Any]) -> bytes:
        return bytes(self.queries.schemas.serialize(self.queries.schemas.get_by_name(name), values))


async def _receive_exactly(stream: trio.SocketStream, count: int) -> bytes | None:
    """None at the end of the stream."""
    data = bytearray()
    while len(data) < count:
        piece = await stream.receive_some(count - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data)
