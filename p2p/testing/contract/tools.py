"""What the checks of the contract share: nodes to talk to, and ways to wait and to expect an error."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import trio

from p2p.interface import (
    DhtMode,
    Limits,
    Node,
    NodeSettings,
    ReachSettings,
    RecordValidator,
    Stream,
    StreamHandler,
    Verdict,
)

PROTOCOL = "/contract/1"
FRAME_MAX = 1 << 20
PATIENCE_S = 10.0  # for anything that should happen "soon"; loopback under load needs some
TOPIC = "contract"


class OpenNode(Protocol):
    def __call__(self, settings: NodeSettings, *, key: bytes) -> AbstractAsyncContextManager[Node]: ...


Check = Callable[[OpenNode], Awaitable[None]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


def key_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def settings(
    *bootstrap: Node,
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",),
    dht_mode: DhtMode = DhtMode.SERVER,
    gossip: bool = True,
    allow_private_addresses: bool = True,
    limits: Limits | None = None,
    bootstrap_addresses: tuple[str, ...] = (),
    check_delay_s: float = 15.0,
    validators: Mapping[str, RecordValidator] | None = None,
) -> NodeSettings:
    return NodeSettings(
        listen=listen,
        bootstrap=(*(address for node in bootstrap for address in node.addresses()), *bootstrap_addresses),
        dht_mode=dht_mode,
        gossip=gossip,
        allow_private_addresses=allow_private_addresses,
        validators=validators or {},
        limits=limits or Limits(),
        reach=ReachSettings(check_delay_s=check_delay_s),
    )


async def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = trio.current_time() + PATIENCE_S
    while not condition():
        assert trio.current_time() < deadline, f"did not happen within {PATIENCE_S:g} s: {what}"
        await trio.sleep(0.01)


@asynccontextmanager
async def raises(
    kind: type[BaseException] | tuple[type[BaseException], ...], *, within_s: float = PATIENCE_S
) -> AsyncIterator[list[BaseException]]:
    caught: list[BaseException] = []
    scope = trio.CancelScope(deadline=trio.current_time() + within_s)
    try:
        with scope:
            yield caught
    except kind as error:
        caught.append(error)
        return
    if scope.cancelled_caught:
        raise AssertionError(f"{kind} did not come within {within_s:g} s")
    raise AssertionError(f"{kind} was not raised")


@asynccontextmanager
async def pair(
    open_node: OpenNode, handler: StreamHandler | None = None, *, streams_per_peer_max: int = 64
) -> AsyncIterator[tuple[Node, Node]]:
    """A server that serves `handler` (an echo by default) and a client that is connected to it."""
    async with open_node(settings(), key=key_of("server")) as server:
        server.handle(PROTOCOL, handler or echo, frame_bytes_max=FRAME_MAX, streams_per_peer_max=streams_per_peer_max)
        async with open_node(settings(server), key=key_of("client")) as client:
            await client.wait_connected(timeout_s=PATIENCE_S)
            yield server, client


async def open_to(client: Node, server: Node, *, frame_bytes_max: int = FRAME_MAX) -> Stream:
    return await client.open_stream(server.peer, PROTOCOL, frame_bytes_max=frame_bytes_max)


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive())


async def sleep(stream: Stream) -> None:
    await trio.sleep_forever()


def accept_all(forwarder: str, data: bytes) -> Verdict:
    return Verdict.ACCEPT


def bare(node: Node) -> str:
    """The node's first address without its peer id."""
    return node.addresses()[0].split("/p2p/")[0]
