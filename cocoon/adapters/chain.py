"""pytoniq, and nobody else who imports it: encrypted connections to liteservers, in an asyncio thread of their own.

pytoniq carries bytes and knows TL; it is believed nothing else. Its block updater dies silently after one server
error and then answers from a stale block for ever, so it does not run here: `reader` asks for the newest block itself
and checks its age. It takes "there is no such account" without proof, so its account calls are not used: `proofs`
checks presence and absence. Lengths that a server announces are bounded before they are waited for, and a connection
whose answer is late or odd is closed and opened anew.

`open_chain` gives the `Chain` port. Not here: what is asked and believed (`cocoon.adapters.ton`).
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import trio
from pytoniq import LiteClient
from pytoniq.liteclient.client import LiteServerError

from ..errors import Unavailable
from ..types import Network
from .ton.global_config import GlobalConfig, ServerAddress
from .ton.proofs import BlockRef
from .ton.reader import ChainReader, ServerRefused

T = TypeVar("T")

REQUEST_TIMEOUT_S: Final = 10.0
CONNECT_TIMEOUT_S: Final = 6.0
CLOSE_TIMEOUT_S: Final = 3.0
PACKET_BYTES_MAX: Final = 16 * 1024 * 1024  # twice what `proofs` looks at
RETRY_AFTER_S: Final = (0.5, 1.0, 2.0, 5.0, 15.0)  # between attempts to connect; the last one from then on
REQUESTS_AT_ONCE: Final = 16  # of one connection


@asynccontextmanager
async def open_chain(
    config: GlobalConfig,
    *,
    network: Network,
    trust_level: int,
    now: Callable[[], int],
    key_block_path: Path | None = None,
) -> AsyncIterator[ChainReader]:
    """The chain that a configuration file names, read at this trust level (0: proofs from the init block; 1: two
    servers agree). Nothing is connected before the first question. `key_block_path` keeps how far level 0 has come.

    Raises `ConfigError`.
    """
    logging.getLogger("LiteClient").setLevel(logging.CRITICAL)  # it reports what we raise
    thread = AsyncioThread()
    links = tuple(LiteServerLink(server, thread) for server in config.servers)
    init_block, keep = _key_block(config, key_block_path)
    try:
        yield ChainReader(
            network=network,
            links=links,
            init_block=init_block,
            trust_level=trust_level,
            now=now,
            key_block_found=keep,
        )
    finally:
        with trio.move_on_after(CLOSE_TIMEOUT_S) as scope:
            scope.shield = True
            for link in links:
                await link.aclose()
        thread.stop()


class AsyncioThread:
    """A daemon thread with an event loop. Leaked tasks of a library end with it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cocoon-chain", daemon=True)
        self._thread.start()

    async def call(self, make: Callable[[], Awaitable[T]]) -> T:
        """Await `make()` over there, from trio. Cancelling the call cancels it."""
        token = trio.lowlevel.current_trio_token()
        done = trio.Event()
        result: list[T] = []
        failure: list[BaseException] = []

        async def run() -> None:
            try:
                result.append(await make())
            except BaseException as error:  # whatever it is, it is raised again on our side
                failure.append(error)
            finally:
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(done.set)

        task: Future[None] = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            await done.wait()
        except trio.Cancelled:
            task.cancel()
            raise
        if failure:
            raise failure[0]
        return result[0]

    def stop(self) -> None:
        """Cancel what runs and end the thread."""

        def wind_up() -> None:
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.call_soon(self._loop.stop)

        self._loop.call_soon_threadsafe(wind_up)
        self._thread.join(CLOSE_TIMEOUT_S)
        if not self._thread.is_alive():
            self._loop.close()


class _Transport(LiteClient):  # type: ignore[misc]  # pytoniq has no types
    """pytoniq's client as a transport: no block updater, bounded packets, futures registered before they can arrive."""

    async def update_last_blocks(self) -> None:
        """Nothing: `reader` asks."""

    async def block_updater(self) -> None:
        """Nothing: it would die unnoticed."""

    async def receive(self, data_len: int) -> bytes:
        """As upstream, for lengths that can be true."""
        if data_len > PACKET_BYTES_MAX:
            await self.close()
            raise ConnectionResetError("a packet too large to be true")
        return bytes(await super().receive(data_len))

    async def send_and_encrypt(self, data: bytes, qid: str) -> asyncio.Future[Any]:
        """As upstream, but an answer cannot come before anybody waits for it."""
        future: asyncio.Future[Any] = self.loop.create_future()
        self.tasks[qid] = future
        self.writer.write(self.encrypt(data))
        await self._drain()
        return future


class LiteServerLink:
    """One liteserver, connected when it is needed and connected anew when anything goes wrong."""

    def __init__(self, server: ServerAddress, thread: AsyncioThread) -> None:
        self._server = server
        self._thread = thread
        self._client: _Transport | None = None
        self._connecting = trio.Lock()
        self._at_once = trio.CapacityLimiter(REQUESTS_AT_ONCE)
        self._failures = 0
        self._retry_at = 0.0
        self._why = ""

    @property
    def name(self) -> str:
        """Host and port."""
        return str(self._server)

    async def request(self, query: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """One query's answer. Raises `ServerRefused` for the server's own error, `Unavailable` for all else."""
        async with self._at_once:
            client = await self._connected()
            try:
                with trio.fail_after(REQUEST_TIMEOUT_S):
                    answer = await self._thread.call(lambda: client.liteserver_request(query, dict(values)))
            except LiteServerError as error:
                raise ServerRefused(self.name, int(error.code), str(error.message)) from error
            except trio.TooSlowError as error:
                await self._drop(client)
                raise Unavailable(f"liteserver {self.name} does not answer") from error
            except (Exception, asyncio.CancelledError) as error:  # pytoniq raises anything when a server misbehaves
                await self._drop(client)
                raise Unavailable(f"liteserver {self.name} broke off: {type(error).__name__}") from error
        if not isinstance(answer, dict):
            raise Unavailable(f"liteserver {self.name} answered something else")
        return answer

    async def aclose(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None:
            await self._close(client)

    async def _connected(self) -> _Transport:
        async with self._connecting:
            client = self._client
            if client is not None and client.inited and not _is_dead(client):
                return client
            if client is not None:
                await self._drop(client)
            if trio.current_time() < self._retry_at:
                raise Unavailable(f"liteserver {self.name} is away: {self._why}")
            try:
                return await self._connect()
            except Unavailable as error:
                self._why = str(error)
                self._retry_at = trio.current_time() + RETRY_AFTER_S[min(self._failures, len(RETRY_AFTER_S) - 1)]
                self._failures += 1
                raise

    async def _connect(self) -> _Transport:
        client = _Transport(
            self._server.host,
            self._server.port,
            base64.b64encode(self._server.key).decode(),
            timeout=int(REQUEST_TIMEOUT_S),
            trust_level=2,  # what it proves itself is not used
        )
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                await self._thread.call(client.connect)
        except trio.TooSlowError as error:
            await self._close(client)
            raise Unavailable(f"liteserver {self.name} does not answer") from error
        except (Exception, asyncio.CancelledError) as error:  # as above
            await self._close(client)
            raise Unavailable(f"liteserver {self.name} cannot be reached: {type(error).__name__}") from error
        self._client, self._failures = client, 0
        return client

    async def _drop(self, client: _Transport) -> None:
        if self._client is client:
            self._client = None
        await self._close(client)

    async def _close(self, client: _Transport) -> None:
        with trio.move_on_after(CLOSE_TIMEOUT_S) as scope, suppress(Exception, asyncio.CancelledError):
            scope.shield = True
            await self._thread.call(client.close)


def _is_dead(client: _Transport) -> bool:
    """Its listener or pinger has ended: nothing would ever arrive."""
    return any(task is None or task.done() for task in (client.listener, client.pinger))


def _key_block(config: GlobalConfig, path: Path | None) -> tuple[BlockRef, Callable[[BlockRef], None]]:
    """The key block to start from: the newest that was proven before from the same init block, else the init block."""
    if path is None:
        return config.init_block, lambda _: None
    start = config.init_block
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text())
        if kept["init_root_hash"] == config.init_block.root_hash.hex():
            start = BlockRef.from_tl(kept["key_block"])

    def keep(block: BlockRef) -> None:
        text = json.dumps({"init_root_hash": config.init_block.root_hash.hex(), "key_block": block.to_tl()})
        draft = path.with_name(f"{path.name}.new")
        with suppress(OSError):  # it only saves time at the next start
            draft.write_text(text)
            os.replace(draft, path)

    return start, keep
