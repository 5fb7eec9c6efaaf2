"""A public node relays for others, when asked to, and only then."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

import p2p
import p2p.identity
from p2p.testing.contract.tools import echo, key_of, settings

HOP = "/libp2p/circuit/relay/0.2.0/hop"
STOP = "/libp2p/circuit/relay/0.2.0/stop"


def test_a_relay_grants_a_reservation_and_a_plain_node_knows_no_such_protocol() -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with (
                p2p.open_node(replace(settings(), relay=True), key=key_of("relay")) as relay,
                p2p.open_node(settings(), key=key_of("plain")) as plain,
                p2p.open_node(settings(), key=key_of("guest")) as guest,
            ):
                from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status

                stream = await guest.open_stream(relay.peer, HOP, addresses=relay.addresses(), frame_bytes_max=4096)
                wanted = HopMessage(type=HopMessage.RESERVE)
                await stream.send(wanted.SerializeToString())
                answer = HopMessage()
                answer.ParseFromString(await stream.receive())
                await stream.aclose()
                assert answer.status == Status.OK
                assert answer.limit.data == 1 << 20
                for node, protocol in ((relay, STOP), (plain, HOP), (plain, STOP)):
                    with pytest.raises(p2p.ProtocolUnsupported):
                        await guest.open_stream(node.peer, protocol, addresses=node.addresses(), frame_bytes_max=4096)

    trio.run(main)


def test_an_address_through_a_relay_is_a_failure_with_a_reason() -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with (
                p2p.open_node(settings(), key=key_of("relay")) as relay,
                p2p.open_node(settings(), key=key_of("guest")) as guest,
            ):
                relay.handle("/x/1", echo, frame_bytes_max=100, streams_per_peer_max=1)
                hidden = p2p.identity.peer_id_of_seed(key_of("hidden"))
                with pytest.raises(p2p.DialFailed, match="relayed addresses are not supported"):
                    await guest.connect(hidden, [f"{relay.addresses()[0]}/p2p-circuit"])

    trio.run(main)
