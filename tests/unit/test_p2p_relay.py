"""Through a relay: only with a reservation, within the relay's limits, sealed, and told in `reachability()`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

import p2p
import p2p.identity
from p2p.reach import HOP, STOP, HopKind, HopMessage, Status, decode_hop, encode_hop
from p2p.testing.contract.tools import PROTOCOL, echo, eventually, key_of, settings, sleep

FRAME_MAX = 1 << 20
NO_PUNCHING = p2p.ReachSettings(check=False, hole_punching=False, relay_use=p2p.RelayUse.NEVER)


def reaching(**given: Any) -> p2p.ReachSettings:
    return replace(NO_PUNCHING, **given)


@asynccontextmanager
async def hidden_and_guest(
    limits: p2p.RelayLimits | None = None, handler: Any = echo
) -> AsyncIterator[tuple[p2p.Node, p2p.Node, p2p.Node, str]]:
    """A relay; a node that holds a place there; a guest who knows only the relayed address."""
    relaying = replace(settings(), relay=True, relay_limits=limits or p2p.RelayLimits(), reach=NO_PUNCHING)
    with trio.fail_after(60):
        async with p2p.open_node(relaying, key=key_of("relay")) as relay:
            through = replace(
                settings(), reach=reaching(relay_use=p2p.RelayUse.ALWAYS, relays=tuple(relay.addresses()))
            )
            async with (
                p2p.open_node(through, key=key_of("hidden")) as hidden,
                p2p.open_node(replace(settings(), reach=NO_PUNCHING), key=key_of("guest")) as guest,
            ):
                hidden.handle(PROTOCOL, handler, frame_bytes_max=FRAME_MAX, streams_per_peer_max=8)
                await eventually(lambda: hidden.reachability().reach is p2p.Reach.RELAY, "a place at the relay")
                (address,) = [text for text in hidden.addresses() if "/p2p-circuit" in text]
                yield relay, hidden, guest, address


def test_a_hidden_node_is_reached_through_its_relay_and_frames_go_both_ways() -> None:
    async def main() -> None:
        async with hidden_and_guest() as (relay, hidden, guest, address):
            assert address == f"{relay.addresses()[0]}/p2p-circuit/p2p/{hidden.peer}"
            stream = await guest.open_stream(hidden.peer, PROTOCOL, addresses=[address], frame_bytes_max=FRAME_MAX)
            for frame in (b"", b"hello", bytes(300_000)):
                await stream.send(frame)
                assert await stream.receive() == frame
            await stream.aclose()
            assert [info.relayed for info in guest.connections() if info.peer == hidden.peer] == [True]
            assert [info.relayed for info in hidden.connections() if info.peer == guest.peer] == [True]
            assert [info.peer for info in relay.connections()].count(guest.peer) == 1
            reachability = hidden.reachability()
            assert reachability.addresses == (address,)
            assert "1 relays hold a place" in reachability.reason

    trio.run(main)


def test_when_the_relay_goes_the_place_is_lost_and_said_so() -> None:
    async def main() -> None:
        async with hidden_and_guest() as (relay, hidden, _, _):
            await relay.disconnect(hidden.peer)
            await hidden.disconnect(relay.peer)
            await eventually(lambda: hidden.reachability().reach is p2p.Reach.RELAY, "it comes back by itself")

    trio.run(main)


def test_without_a_reservation_nobody_is_connected() -> None:
    async def main() -> None:
        async with hidden_and_guest() as (relay, _, guest, _):
            stranger = p2p.identity.peer_id_of_seed(key_of("stranger"))
            with pytest.raises(p2p.DialFailed, match="the peer has no reservation at the relay"):
                await guest.connect(stranger, [f"{relay.addresses()[0]}/p2p-circuit"])
            with pytest.raises(p2p.DialFailed, match="not its own relay"):
                await guest.connect(stranger, [f"{guest.addresses()[0]}/p2p-circuit"])

    trio.run(main)


def test_a_node_without_a_place_accepts_no_relayed_connection() -> None:
    async def main() -> None:
        async with hidden_and_guest() as (_, hidden, guest, _):
            for node, protocol in ((guest, HOP), (guest, STOP), (hidden, HOP)):
                other = hidden if node is guest else guest
                with pytest.raises(p2p.ProtocolUnsupported):
                    await other.open_stream(
                        node.peer, protocol, addresses=list(node.addresses())[:1], frame_bytes_max=4096
                    )

    trio.run(main)


def test_a_circuit_ends_at_its_bytes_and_at_its_time() -> None:
    async def main(limits: p2p.RelayLimits, frames: int) -> None:
        async with hidden_and_guest(limits, sleep) as (_, hidden, guest, address):
            stream = await guest.open_stream(hidden.peer, PROTOCOL, addresses=[address], frame_bytes_max=FRAME_MAX)

            async def send_and_wait() -> None:
                for _ in range(frames):
                    await stream.send(bytes(50_000))
                await stream.receive()

            with pytest.raises(p2p.StreamReset), trio.fail_after(10):
                await send_and_wait()
            await eventually(
                lambda: not [c for c in guest.connections() if c.relayed], "the relayed connection is gone"
            )

    trio.run(main, p2p.RelayLimits(circuit_bytes=100_000), 4)
    trio.run(main, p2p.RelayLimits(circuit_duration_s=0.5), 1)


def test_a_relay_keeps_to_its_numbers_of_places_and_circuits() -> None:
    async def main() -> None:
        limits = p2p.RelayLimits(reservations_max=1, circuits_per_peer_max=1)
        async with hidden_and_guest(limits) as (relay, hidden, guest, address):
            stream = await guest.open_stream(relay.peer, HOP, addresses=relay.addresses(), frame_bytes_max=4096)
            await stream.send(encode_hop(HopMessage(kind=HopKind.RESERVE)))
            assert decode_hop(await stream.receive()).status == Status.RESERVATION_REFUSED
            await guest.connect(hidden.peer, [address])
            async with p2p.open_node(replace(settings(), reach=NO_PUNCHING), key=key_of("another")) as another:
                with pytest.raises(p2p.DialFailed, match="the relay is at its limit"):
                    await another.connect(hidden.peer, [address])
                await guest.disconnect(hidden.peer)
                await trio.sleep(0.2)
                await another.connect(hidden.peer, [address])

    trio.run(main)


def test_a_relayed_connection_becomes_a_direct_one_where_the_way_is_open() -> None:
    async def main() -> None:
        relaying = replace(settings(), relay=True, reach=NO_PUNCHING)
        punching = reaching(hole_punching=True)
        with trio.fail_after(60):
            async with p2p.open_node(relaying, key=key_of("relay")) as relay:
                through = replace(punching, relay_use=p2p.RelayUse.ALWAYS, relays=tuple(relay.addresses()))
                async with (
                    p2p.open_node(replace(settings(), reach=through), key=key_of("hidden")) as hidden,
                    p2p.open_node(replace(settings(), reach=punching), key=key_of("guest")) as guest,
                ):
                    await eventually(lambda: hidden.reachability().reach is p2p.Reach.RELAY, "a place at the relay")
                    (address,) = [text for text in hidden.addresses() if "/p2p-circuit" in text]
                    await guest.connect(hidden.peer, [address])
                    for here, there in ((guest, hidden), (hidden, guest)):
                        await eventually(
                            lambda here=here, there=there: [  # type: ignore[misc]
                                c for c in here.connections() if c.peer == there.peer and not c.relayed
                            ],
                            "a direct connection beside the relayed one",
                        )

    trio.run(main)


def test_peers_say_whether_they_can_dial_us() -> None:
    async def main() -> None:
        asking = p2p.ReachSettings(check_delay_s=0.1, check_interval_s=5.0)
        with trio.fail_after(60):
            async with p2p.open_node(replace(settings(), reach=asking), key=key_of("server")) as server:
                assert server.reachability().reach is p2p.Reach.UNKNOWN
                async with p2p.open_node(replace(settings(server), reach=asking), key=key_of("client")) as client:
                    await eventually(lambda: client.reachability().reach is p2p.Reach.DIRECT, "a verdict")
                    found = client.reachability()
                    assert found.peers_asked == found.peers_reached == 1
                    assert found.addresses == client.addresses()
                    assert found.observed[0].startswith("/ip4/127.0.0.1/tcp/")
                    assert "1 of 1 peers" in found.reason

    trio.run(main)


def test_an_address_where_nobody_answers_makes_a_node_unreachable_and_it_looks_for_a_relay() -> None:
    async def main() -> None:
        asking = p2p.ReachSettings(check_delay_s=0.1, check_interval_s=5.0, hole_punching=False)
        with trio.fail_after(60):
            relaying = replace(settings(), relay=True, reach=asking)
            async with p2p.open_node(relaying, key=key_of("relay")) as relay:
                wrong = replace(settings(relay), announce=("/ip4/127.0.0.1/tcp/9",), reach=asking)
                never = replace(wrong, reach=replace(asking, relay_use=p2p.RelayUse.NEVER))
                async with p2p.open_node(never, key=key_of("alone")) as alone:
                    await eventually(lambda: alone.reachability().reach is p2p.Reach.NOT, "nobody gets through")
                    assert "0 of 1" in alone.reachability().reason
                    assert "refused" in alone.reachability().reason.lower()
                async with p2p.open_node(wrong, key=key_of("hidden")) as hidden:
                    await eventually(lambda: hidden.reachability().reach is p2p.Reach.RELAY, "a relay helps")

    trio.run(main)
