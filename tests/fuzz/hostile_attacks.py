"""Ways to be a bad libp2p peer. Each is `async (Enemy) -> None`, goes on until it is cancelled, and minds nothing.

Those on a connection use our own transport without any of its manners: `Enemy.raw` puts yamux frames on the wire that
no session would send.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

import p2p
from p2p.driver.negotiate import encode_line, propose
from p2p.driver.transport import MuxedConnection, NoiseYamuxTcp
from p2p.framing import encode_frame
from p2p.gossip import Rpc, encode_rpc
from p2p.gossip.messages import Prune, new_message, with_signature
from p2p.identity import peer_id_of_seed, peer_id_to_bytes
from p2p.kad import provider_key
from p2p.kad.messages import KadMessage, KadPeer, Kind, encode_message
from p2p.reach import AUTONAT, DCUTR, HOP, STOP, DialBack, HopKind, HopMessage, encode_dial_back, encode_hop
from p2p.yamux.messages import ACK, DATA, FIN, HEADER, PING, RST, SYN, WINDOW_UPDATE
from tests.fuzz.hostile_victim import ECHO, FRAME_MAX, TOPIC

MESHSUB = "/meshsub/1.1.0"
KAD = p2p.NodeSettings().kad_prefix
PROTOCOLS = [ECHO, MESHSUB, KAD, "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0", HOP, STOP, AUTONAT, DCUTR]
GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class Enemy:
    def __init__(self, address: str, randomness: random.Random) -> None:
        self.address = address
        self.random = randomness
        self.seed = randomness.randbytes(32)
        self.source = f"127.0.1.{randomness.randrange(1, 255)}"
        self.acts = 0  # how often the attack did what it does: an attack that never happened proves nothing
        parts = address.split("/")
        self.host, self.port = parts[2], int(parts[4])

    @property
    def id_bytes(self) -> bytes:
        return peer_id_to_bytes(peer_id_of_seed(self.seed))

    async def socket(self) -> trio.SocketStream:
        """From an address of its own, as a stranger's is: the bound per address must not shut out the others."""
        return await trio.open_tcp_stream(self.host, self.port, local_address=self.source)

    @asynccontextmanager
    async def connection(self) -> Any:
        """One connection for the block. What ends it ends the block quietly."""
        link = await NoiseYamuxTcp(self.seed).dial(Multiaddr(self.address))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.start)
            nursery.start_soon(self._serve, link)
            try:
                yield link
            finally:
                await link.close()
                nursery.cancel_scope.cancel()

    async def _serve(self, link: MuxedConnection) -> None:
        """Take streams that the victim opens, and say nothing on them."""
        while not link.is_closed:
            try:
                await link.accept_stream()
            except Exception:
                return

    def raw(self, link: MuxedConnection, kind: int, flags: int, stream: int, length: int, body: bytes = b"") -> None:
        link.session._control += HEADER.pack(0, kind, flags, stream, length) + body
        link.flush()


async def again_and_again(enemy: Enemy, once: Callable[[MuxedConnection], Awaitable[None]]) -> None:
    """On one connection as long as it lasts, then on the next."""
    while True:
        try:
            async with enemy.connection() as link:
                while not link.is_closed:
                    await once(link)
                    enemy.acts += 1
        except OpenConnectionError:
            pass
        except Exception:  # whatever the victim does to us is its right
            pass
        await trio.sleep(0.05)


async def with_stream(link: MuxedConnection, protocol: str, act: Callable[[Any], Awaitable[None]]) -> None:
    stream = await link.open_stream()
    try:
        with trio.move_on_after(2):
            await propose(stream, protocol)
            await act(stream)
    finally:
        with trio.CancelScope(shield=True):
            await stream.reset()


# --- before there is a connection ----------------------------------------------------------------------------


async def garbage_on_sockets(enemy: Enemy) -> None:
    async def one() -> None:
        try:
            async with await enemy.socket() as stream:
                if enemy.random.random() < 0.5:
                    await stream.send_all(encode_line("/multistream/1.0.0") + encode_line("/noise"))
                await stream.send_all(enemy.random.randbytes(enemy.random.randrange(1, 4000)))
                with trio.move_on_after(0.1):
                    await stream.receive_some()
        except GONE:
            pass

    while True:
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(one)
        enemy.acts += 8


async def silent_sockets(enemy: Enemy) -> None:
    """Half open: a socket, and then nothing. As many as the victim takes."""

    async def hold() -> None:
        while True:
            try:
                async with await enemy.socket() as stream:
                    enemy.acts += 1
                    await stream.receive_some()
                    await stream.receive_some()
            except GONE:
                pass
            await trio.sleep(0.2)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(hold)


async def slow_handshakes(enemy: Enemy) -> None:
    async def drip() -> None:
        while True:
            try:
                async with await enemy.socket() as stream:
                    for byte in encode_line("/multistream/1.0.0") + encode_line("/noise") + bytes(100):
                        await stream.send_all(bytes([byte]))
                        enemy.acts += 1
                        await trio.sleep(0.1)
            except GONE:
                pass

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(drip)


async def connect_and_leave(enemy: Enemy) -> None:
    while True:
        enemy.seed = enemy.random.randbytes(32)
        try:
            async with enemy.connection():
                enemy.acts += 1
        except OpenConnectionError:
            await trio.sleep(0.05)


# --- yamux ---------------------------------------------------------------------------------------------------


async def flood_of_streams(enemy: Enemy) -> None:
    async def once(link: MuxedConnection) -> None:
        for number in range(1001, 3001, 2):
            enemy.raw(link, WINDOW_UPDATE, SYN, number + 4000 * (enemy.acts + 1), 0)
        await trio.sleep(0.05)

    await again_and_again(enemy, once)


async def silent_streams(enemy: Enemy) -> None:
    """Streams that never say what they are for, as many as are allowed."""

    async def once(link: MuxedConnection) -> None:
        for _ in range(200):
            stream = await link.open_stream()
            await stream.write(b"\x13")
        await trio.sleep(1)

    await again_and_again(enemy, once)


async def window_abuse(enemy: Enemy) -> None:
    async def once(link: MuxedConnection) -> None:
        enemy.raw(link, DATA, SYN, 99_999, 60_000, bytes(60_000))
        for _ in range(20):
            enemy.raw(link, DATA, 0, 99_999, 60_000, bytes(60_000))
            await trio.sleep(0)
        await trio.sleep(0.02)

    await again_and_again(enemy, once)


async def frames_from_nowhere(enemy: Enemy) -> None:
    """Frames of every kind with random fields, for streams that do not exist or have long ended."""

    async def once(link: MuxedConnection) -> None:
        for _ in range(50):
            kind = enemy.random.choice([DATA, WINDOW_UPDATE, PING, 3, 7])
            flags = enemy.random.choice([0, SYN, ACK, FIN, RST, SYN | RST, 255])
            length = enemy.random.choice([0, 1, 100, 2**31, 2**32 - 1])
            enemy.raw(link, kind, flags, enemy.random.randrange(200), length, bytes(min(length, 100)))
        await trio.sleep(0.01)

    await again_and_again(enemy, once)


async def flood_of_pings(enemy: Enemy) -> None:
    async def once(link: MuxedConnection) -> None:
        for number in range(200):
            enemy.raw(link, PING, SYN, 0, number)
        await trio.sleep(0.02)

    await again_and_again(enemy, once)


# --- protocols -----------------------------------------------------------------------------------------------


async def garbage_on_streams(enemy: Enemy) -> None:
    async def once(link: MuxedConnection) -> None:
        async def act(stream: Any) -> None:
            noise = enemy.random.randbytes(enemy.random.randrange(1, 3000))
            kind = enemy.random.randrange(4)
            await stream.write([noise, encode_frame(noise), b"\xff\xff\xff\x7f" + noise, b"\xff" * 50][kind])
            with trio.move_on_after(0.01):
                await stream.read(1000)

        await with_stream(link, enemy.random.choice(PROTOCOLS), act)

    await again_and_again(enemy, once)


async def oversized_frames(enemy: Enemy) -> None:
    async def once(link: MuxedConnection) -> None:
        async def act(stream: Any) -> None:
            await stream.write(b"\xff\xff\xff\xff\x0f")
            with trio.move_on_after(0.2):
                while True:
                    await stream.write(bytes(16_000))

        await with_stream(link, enemy.random.choice(PROTOCOLS), act)

    await again_and_again(enemy, once)


async def greedy_readers(enemy: Enemy) -> None:
    """Ask for much and read nothing."""

    async def once(link: MuxedConnection) -> None:
        async def act(stream: Any) -> None:
            with trio.move_on_after(0.3):
                while True:
                    await stream.write(encode_frame(bytes(FRAME_MAX)))

        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(with_stream, link, ECHO, act)

    await again_and_again(enemy, once)


async def slow_streams(enemy: Enemy) -> None:
    async def once(link: MuxedConnection) -> None:
        async def act(stream: Any) -> None:
            for byte in encode_frame(bytes(1000))[:8]:
                await stream.write(bytes([byte]))
                enemy.acts += 1
                await trio.sleep(0.2)

        async def one() -> None:
            try:
                await with_stream(link, enemy.random.choice(PROTOCOLS), act)
            except Exception:  # that stream was refused; the others go on
                pass

        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(one)

    await again_and_again(enemy, once)


# --- gossip, DHT, relay --------------------------------------------------------------------------------------


async def gossiping(enemy: Enemy, rpc: Callable[[], Rpc], pause_s: float) -> None:
    async def once(link: MuxedConnection) -> None:
        async def act(stream: Any) -> None:
            await stream.write(encode_frame(encode_rpc(Rpc(subscriptions=((True, TOPIC),)))))
            while not link.is_closed:
                await stream.write(encode_frame(encode_rpc(rpc())))
                enemy.acts += 1
                await trio.sleep(pause_s)

        await with_stream(link, MESHSUB, act)

    await again_and_again(enemy, once)


async def flood_of_grafts(enemy: Enemy) -> None:
    await gossiping(enemy, lambda: Rpc(graft=(TOPIC,) * 50, prune=(Prune(TOPIC),)), 0.001)


async def spam_of_ihave(enemy: Enemy) -> None:
    """Promises that are never kept."""
    await gossiping(enemy, lambda: Rpc(ihave=((TOPIC, tuple(enemy.random.randbytes(32) for _ in range(200))),)), 0.005)


async def flood_of_forged_messages(enemy: Enemy) -> None:
    def forged() -> Rpc:
        message = new_message(
            source=enemy.id_bytes, data=enemy.random.randbytes(200), seqno=enemy.random.randbytes(8), topic=TOPIC
        )
        return Rpc(messages=(with_signature(message, enemy.random.randbytes(64)),) * 5)

    await gossiping(enemy, forged, 0.002)


async def flood_of_subscriptions(enemy: Enemy) -> None:
    await gossiping(
        enemy, lambda: Rpc(subscriptions=tuple((True, enemy.random.randbytes(20).hex()) for _ in range(100))), 0.002
    )


async def poison_for_the_dht(enemy: Enemy) -> None:
    def question() -> KadMessage:
        key = provider_key(enemy.random.randbytes(32))
        liar = KadPeer(enemy.random.choice([enemy.id_bytes, enemy.random.randbytes(38)]), (b"\x04\x7f\x00\x00\x01",))
        kind = enemy.random.choice([Kind.ADD_PROVIDER, Kind.GET_PROVIDERS, Kind.FIND_NODE, Kind.PUT_VALUE])
        return KadMessage(kind=kind, key=key, providers=(liar,) * 20, closer=(liar,) * 20)

    async def once(link: MuxedConnection) -> None:
        async def act(stream: Any) -> None:
            for _ in range(20):
                await stream.write(encode_frame(encode_message(question())))
            with trio.move_on_after(0.05):
                await stream.read(10_000)

        await with_stream(link, KAD, act)

    await again_and_again(enemy, once)


async def greed_for_relays_and_dials(enemy: Enemy) -> None:
    """Reservations, circuits to nobody, and requests to dial others."""

    async def once(link: MuxedConnection) -> None:
        stranger = peer_id_to_bytes(peer_id_of_seed(enemy.random.randbytes(32)))
        requests = [
            (HOP, encode_hop(HopMessage(kind=HopKind.RESERVE))),
            (HOP, encode_hop(HopMessage(kind=HopKind.CONNECT, peer=stranger))),
            (HOP, encode_hop(HopMessage(kind=HopKind.CONNECT, peer=enemy.id_bytes))),
            (
                AUTONAT,
                encode_dial_back(
                    DialBack(peer=enemy.id_bytes, addresses=(Multiaddr("/ip4/127.0.0.1/tcp/9").to_bytes(),) * 16)
                ),
            ),
        ]
        protocol, request = enemy.random.choice(requests)

        async def act(stream: Any) -> None:
            await stream.write(encode_frame(request))
            with trio.move_on_after(0.05):
                await stream.read(1000)

        await with_stream(link, protocol, act)

    await again_and_again(enemy, once)


ATTACKS: list[Callable[[Enemy], Awaitable[None]]] = [
    garbage_on_sockets,
    silent_sockets,
    slow_handshakes,
    connect_and_leave,
    flood_of_streams,
    silent_streams,
    window_abuse,
    frames_from_nowhere,
    flood_of_pings,
    garbage_on_streams,
    oversized_frames,
    greedy_readers,
    slow_streams,
    flood_of_grafts,
    spam_of_ihave,
    flood_of_forged_messages,
    flood_of_subscriptions,
    poison_for_the_dht,
    greed_for_relays_and_dials,
]
