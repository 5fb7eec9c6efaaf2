"""Our gossip and DHT against py-libp2p's own routers, signed messages and provider records both ways."""

from __future__ import annotations

import gc
import hashlib
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

import p2p
import p2p.driver  # quiets the library before it is used here

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.host.basic_host import BasicHost
    from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
    from libp2p.peer.id import ID
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from libp2p.pubsub.gossipsub import GossipSub
    from libp2p.pubsub.pb import rpc_pb2
    from libp2p.pubsub.pubsub import Pubsub
    from libp2p.tools.anyio_service import background_trio_service
    from multiaddr import Multiaddr

from p2p.gossip import RpcDecoder, id_of_whole_message
from p2p.kad import provider_key
from p2p.testing.contract.tools import accept_all, eventually, key_of, settings

LISTEN = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
TOPIC = "interop"
IPFS_KAD = "/ipfs/kad/1.0.0"


@pytest.fixture(autouse=True)
def _forgive_libp2p_its_open_sockets() -> Iterator[None]:
    """libp2p 0.8.1 leaves sockets of its own transport to the garbage collector."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def run(check: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(60):
            await check()

    trio.run(bounded)


def whole_message_id(message: rpc_pb2.Message) -> bytes:
    """Our id function, for the library's router: ids must agree, or IHAVE and IWANT never work."""
    (ours,) = RpcDecoder(message_bytes_max=1 << 16).decode(b"\x12" + _sized(message.SerializeToString())).messages
    return id_of_whole_message(ours)


def _sized(data: bytes) -> bytes:
    from p2p.framing import encode_frame

    return encode_frame(data)


@asynccontextmanager
async def stock_gossip(name: str) -> AsyncIterator[tuple[BasicHost, Pubsub]]:
    host = new_host(key_pair=create_new_key_pair(key_of(name)))
    router = GossipSub(
        protocols=["/meshsub/1.1.0"],
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_interval=1,
        max_messages_per_topic_per_second=1e9,
    )
    pubsub = Pubsub(host, router, strict_signing=True, msg_id_constructor=whole_message_id)
    async with host.run(listen_addrs=LISTEN), background_trio_service(pubsub), background_trio_service(router):
        await pubsub.wait_until_ready()
        yield host, pubsub
        pubsub.seen_messages._stop_event.set()


def address_of(host: BasicHost) -> str:
    return str(host.get_addrs()[0])


def test_signed_messages_travel_both_ways_through_a_stock_peer() -> None:
    """ours — stock — ours: each of our messages must pass the library's router to reach the other end."""

    async def check() -> None:
        async with (
            stock_gossip("stock") as (host, pubsub),
            p2p.open_node(settings(), key=key_of("left")) as left,
            p2p.open_node(settings(), key=key_of("right")) as right,
        ):
            theirs = await pubsub.subscribe(TOPIC)
            feeds = [await node.subscribe(TOPIC, accept_all) for node in (left, right)]
            await left.connect(str(host.get_id()), [address_of(host).split("/p2p/")[0]])
            await host.connect(info_from_p2p_addr(Multiaddr(right.addresses()[0])))
            heard: list[list[bytes]] = [[], [], []]

            async def listen(place: int, feed: p2p.Subscription) -> None:
                async for message in feed:
                    heard[place].append(message.data)

            async def listen_stock() -> None:
                while True:
                    heard[2].append((await theirs.get()).data)

            async with trio.open_nursery() as nursery:
                for place, feed in enumerate(feeds):
                    nursery.start_soon(listen, place, feed)
                nursery.start_soon(listen_stock)
                await eventually(lambda: len(pubsub.peer_topics.get(TOPIC, ())) == 2, "the stock peer knows both")
                await eventually(lambda: len(pubsub.router.mesh.get(TOPIC, ())) == 2, "and has both in its mesh")
                for turn in range(3):
                    await left.publish(TOPIC, b"left %d" % turn)
                    await right.publish(TOPIC, b"right %d" % turn)
                    await pubsub.publish(TOPIC, b"stock %d" % turn)
                expected = {b"%s %d" % (who, turn) for who in (b"left", b"right", b"stock") for turn in range(3)}
                for place in range(3):
                    await eventually(lambda at=place: set(heard[at]) == expected, f"place {place} hears all")  # type: ignore[misc]
                nursery.cancel_scope.cancel()

    run(check)


def test_a_mixed_mesh_of_ten_hears_everybody() -> None:
    async def check() -> None:
        heard: dict[int, set[bytes]] = {number: set() for number in range(10)}
        async with trio.open_nursery() as nursery:
            stop = trio.Event()
            ready: list[tuple[int, str, Callable[[bytes], Awaitable[object]]]] = []

            async def stock(number: int) -> None:
                async with stock_gossip(f"stock {number}") as (host, pubsub):
                    feed = await pubsub.subscribe(TOPIC)
                    for _, address, _ in list(ready)[-3:]:
                        await host.connect(info_from_p2p_addr(Multiaddr(address)))
                    ready.append((number, address_of(host), lambda data: pubsub.publish(TOPIC, data)))
                    while not stop.is_set():
                        with trio.move_on_after(0.2):
                            heard[number].add((await feed.get()).data)

            async def ours(number: int) -> None:
                async with p2p.open_node(settings(), key=key_of(f"ours {number}")) as node:
                    feed = await node.subscribe(TOPIC, accept_all)
                    for _, address, _ in list(ready)[-3:]:
                        bare, peer = address.split("/p2p/")
                        await node.connect(peer, [bare])
                    ready.append((number, node.addresses()[0], lambda data: node.publish(TOPIC, data)))
                    while not stop.is_set():
                        with trio.move_on_after(0.2):
                            heard[number].add((await anext(feed)).data)

            for number in range(10):
                nursery.start_soon(stock if number % 2 else ours, number)
                await eventually(lambda at=number: len(ready) == at + 1, "it runs")  # type: ignore[misc]
            await trio.sleep(4)  # meshes form at heartbeats
            for number, _, publish in list(ready):
                await publish(b"from %d" % number)
            expected = {b"from %d" % number for number in range(10)}
            for number in range(10):
                await eventually(lambda at=number: heard[at] >= expected, f"{number} hears all")  # type: ignore[misc]
            stop.set()

    run(check)


@asynccontextmanager
async def stock_dht(name: str) -> AsyncIterator[tuple[BasicHost, KadDHT]]:
    host = new_host(key_pair=create_new_key_pair(key_of(name)))
    async with host.run(listen_addrs=LISTEN):
        dht = KadDHT(host, DHTMode.SERVER)
        async with background_trio_service(dht):
            yield host, dht


def test_provider_records_and_peers_are_found_both_ways_through_a_stock_dht() -> None:
    async def check() -> None:
        key = hashlib.sha256(b"a model").digest()
        options = {"kad_prefix": IPFS_KAD}
        async with (
            stock_dht("server") as (host, dht),
            p2p.open_node(_with(settings(), options), key=key_of("one")) as one,
            p2p.open_node(_with(settings(), options), key=key_of("two")) as two,
        ):
            for node in (one, two):
                await node.connect(str(host.get_id()), [address_of(host).split("/p2p/")[0]])
                await dht.add_peer(ID.from_base58(node.peer))
            await one.provide(key)
            (found,) = await two.find_providers(key, count_max=5)
            assert found.peer == one.peer
            info = await two.find_peer(one.peer)
            assert info.addresses == (one.addresses()[0].split("/p2p/")[0],)
            stored = dht.provider_store.get_providers(provider_key(key))
            assert [str(provider.peer_id) for provider in stored] == [one.peer], "the stock peer keeps it"

    run(check)


def test_a_stock_dht_provides_and_finds_through_us() -> None:
    async def check() -> None:
        key = hashlib.sha256(b"their model").digest()
        async with (
            p2p.open_node(_with(settings(), {"kad_prefix": IPFS_KAD}), key=key_of("server")) as node,
            stock_dht("one") as (first, first_dht),
            stock_dht("two") as (second, second_dht),
        ):
            for host, dht in ((first, first_dht), (second, second_dht)):
                await host.connect(info_from_p2p_addr(Multiaddr(node.addresses()[0])))
                await dht.add_peer(ID.from_base58(node.peer))
            assert await first_dht.provider_store.provide(provider_key(key))
            found = await second_dht.provider_store.find_providers(provider_key(key))
            assert {str(provider.peer_id) for provider in found} == {str(first.get_id())}
            ours = await node.find_providers(key, count_max=5)
            assert [provider.peer for provider in ours] == [str(first.get_id())]

    run(check)


class Text:
    """A value is any text; the longest is the newest. For our nodes, and (`validate(str, …)`) for the library."""

    def validate(self, key: bytes | str, value: bytes) -> None:
        try:
            value.decode()
        except UnicodeDecodeError:
            raise p2p.RecordInvalid("not text") from None

    def select(self, key: bytes | str, values: list[bytes]) -> int:
        return max(range(len(values)), key=lambda place: len(values[place]))


def test_values_are_put_and_got_both_ways_with_a_stock_dht() -> None:
    """ours → stock → ours, and stock → ours → stock, in one DHT of four."""

    async def check() -> None:
        base = replace(settings(validators={"text": Text()}), kad_prefix=IPFS_KAD)
        async with (
            stock_dht("server") as (host, dht),
            p2p.open_node(base, key=key_of("one")) as one,
            p2p.open_node(base, key=key_of("two")) as two,
            stock_dht("reader") as (reader, reader_dht),
        ):
            dht.register_validator("text", Text())
            reader_dht.register_validator("text", Text())
            for node in (one, two):
                await node.connect(str(host.get_id()), [address_of(host).split("/p2p/")[0]])
                await dht.add_peer(ID.from_base58(node.peer))
            await one.put_value(b"/text/ours", b"from us")
            kept = dht.value_store.get(b"/text/ours")
            assert kept is not None, "the stock peer keeps it"
            assert kept.value == b"from us"
            assert await two.get_value(b"/text/ours") == b"from us"
            assert await dht.get_value("/text/ours") == b"from us"

            await reader.connect(info_from_p2p_addr(Multiaddr(one.addresses()[0])))
            await reader_dht.add_peer(ID.from_base58(one.peer))
            assert await reader_dht.get_value("/text/ours") == b"from us", "a stock peer believes our copy"
            await reader_dht.put_value("/text/theirs", b"from them")
            assert await one.get_value(b"/text/theirs") == b"from them"
            assert await two.get_value(b"/text/theirs") == b"from them"

            with pytest.raises(p2p.RecordInvalid):
                await one.put_value(b"/text/bad", bytes([255]))

    run(check)


def _with(base: p2p.NodeSettings, options: dict[str, str]) -> p2p.NodeSettings:
    return replace(base, **options)  # type: ignore[arg-type]
