"""Our QUIC and that of an untouched host of the library understand each other, whoever dials."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.ping import PingService
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

import p2p
import p2p.driver  # quiets the library before it is used here
from p2p.framing import encode_frame
from p2p.testing.contract.tools import PROTOCOL, echo, eventually, key_of, settings

# the untouched host leaves sockets open when it stops; our own leaks fail the other tests
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def _leftovers_are_found_here() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


LISTEN = "/ip4/127.0.0.1/udp/0/quic-v1"


def test_a_stock_host_dials_us_pings_us_and_gets_its_frames_back() -> None:
    async def main() -> None:
        with trio.fail_after(40):
            host = new_host(key_pair=create_new_key_pair(key_of("stock")), enable_quic=True)
            async with (
                p2p.open_node(settings(listen=(LISTEN,)), key=key_of("ours")) as node,
                host.run(listen_addrs=[Multiaddr(LISTEN)]),
            ):
                node.handle(PROTOCOL, echo, frame_bytes_max=1 << 20, streams_per_peer_max=4)
                await host.connect(info_from_p2p_addr(Multiaddr(node.addresses()[0])))
                ours = ID.from_base58(node.peer)
                assert await PingService(host).ping(ours, 2)
                stream = await host.new_stream(ours, [PROTOCOL])
                sent = encode_frame(b"x" * 300_000)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.write, sent)
                    got = b""
                    while len(got) < len(sent):
                        got += await stream.read(65536)
                assert got == sent
                await stream.close()
                await eventually(lambda: node.statistics().streams_open == 0, "the stream ends on both sides")
                await eventually(lambda: node.connections()[0].agent, "we know its agent")

    trio.run(main)


def test_we_dial_a_stock_host_and_get_our_frames_back() -> None:
    async def main() -> None:
        with trio.fail_after(40):
            host = new_host(key_pair=create_new_key_pair(key_of("stock")), enable_quic=True)

            async def mirror(stream: object) -> None:
                try:
                    while data := await stream.read(65536):  # type: ignore[attr-defined]
                        await stream.write(data)  # type: ignore[attr-defined]
                finally:
                    await stream.close()  # type: ignore[attr-defined]

            host.set_stream_handler(PROTOCOL, mirror)
            async with (
                p2p.open_node(settings(listen=(LISTEN,)), key=key_of("ours")) as node,
                host.run(listen_addrs=[Multiaddr(LISTEN)]),
            ):
                addresses = [str(address) for address in host.get_addrs()]
                stream = await node.open_stream(
                    str(host.get_id()), PROTOCOL, addresses=addresses, frame_bytes_max=1 << 20
                )
                for frame in (b"", b"small", b"y" * 200_000):
                    await stream.send(frame)
                    assert await stream.receive() == frame
                await stream.aclose()

    trio.run(main)
