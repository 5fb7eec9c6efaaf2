"""What is read from announcements on the local network, and a router that forwards our port."""

from __future__ import annotations

import trio

import p2p
import p2p.driver.local
from p2p.driver.local import RouterPort, announced
from p2p.driver.node import Libp2pNode
from p2p.identity import peer_id_of_seed
from p2p.testing.contract.tools import eventually, key_of, settings

PEER = peer_id_of_seed(key_of("peer"))


def record(*entries: bytes) -> bytes:
    return b"".join(bytes([len(entry)]) + entry for entry in entries)


def test_an_announcement_names_peers_and_addresses() -> None:
    text = record(
        f"dnsaddr=/ip4/192.168.1.2/tcp/4001/p2p/{PEER}".encode(),
        f"dnsaddr=/ip6/fd00::1/tcp/4001/p2p/{PEER}".encode(),
    )
    assert {peer: list(map(str, found)) for peer, found in announced(text).items()} == {
        PEER: ["/ip4/192.168.1.2/tcp/4001", "/ip6/fd00::1/tcp/4001"]
    }


def test_nonsense_in_an_announcement_is_passed_over() -> None:
    for text in (b"", b"\xff", b"\x00" * 100, record(b"dnsaddr=", b"dnsaddr=/ip4/1.2.3.4/tcp/1", b"\xff" * 200, b"a")):
        assert announced(text) == {}
    good = f"dnsaddr=/ip4/192.168.1.2/tcp/1/p2p/{PEER}".encode()
    assert announced(record(b"dnsaddr=\xff", good) + b"\xf0cut") == announced(record(good))
    assert len(announced(record(*[good.replace(b"tcp/1", b"tcp/%d" % n) for n in range(100)]))[PEER]) == 16


class Router:
    """A home router that forwards whatever is asked for."""

    def __init__(self) -> None:
        self.mapped: list[int] = []

    async def discover(self) -> bool:
        return True

    async def add_port_mapping(self, port: int, protocol: str) -> bool:
        self.mapped.append(port)
        return protocol == "TCP"

    async def remove_port_mapping(self, port: int, protocol: str) -> bool:
        self.mapped.remove(port)
        return True

    def get_external_ip(self) -> str:
        return "203.0.113.9"


def test_a_forwarded_port_is_told_to_others_and_given_back_at_the_end() -> None:
    async def main() -> None:
        router = Router()
        with trio.fail_after(20):
            async with p2p.open_node(settings(), key=key_of("inside")) as node:
                assert isinstance(node, Libp2pNode)
                port = int(node.addresses()[0].split("/")[4])
                async with (
                    p2p.open_node(settings(node), key=key_of("friend")) as friend,
                    trio.open_nursery() as nursery,
                ):
                    assert isinstance(friend, Libp2pNode)
                    await friend.wait_connected(timeout_s=10)
                    await eventually(lambda: friend.host.agents, "the friend knows us")
                    nursery.start_soon(RouterPort(node.host, router).run)
                    outside = f"/ip4/203.0.113.9/tcp/{port}"
                    await eventually(lambda: f"{outside}/p2p/{node.peer}" in node.addresses(), "our address outside")
                    assert router.mapped == [port]
                    await eventually(
                        lambda: outside in map(str, friend.host.peerstore.addrs(node.host.get_id())),
                        "connected peers hear of it",
                    )
                    nursery.cancel_scope.cancel()
            assert router.mapped == []

    trio.run(main)
