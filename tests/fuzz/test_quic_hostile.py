"""Strangers with datagrams: garbage, floods, false certificates. The node stays, and honest peers are served.

Attackers bind other loopback addresses than the honest peer, as a limit per address holds for each by itself.
"""

from __future__ import annotations

import datetime
import os
import random
import resource
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio
from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType, encode_quic_version_negotiation, pull_quic_header
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multiaddr import Multiaddr

import p2p
from p2p.driver import quic_listener
from p2p.driver.quic import QuicTransport, utc_now
from p2p.driver.quic_certificate import EXTENSION, make_certificate
from p2p.driver.quic_listener import HALF_OPEN_PER_HOST_MAX, RETRY_FROM
from p2p.driver.quic_tamed import configuration
from p2p.identity import peer_id_of_seed
from p2p.testing.contract.tools import PROTOCOL, echo, key_of
from p2p.testing.contract.tools import settings as node_settings
from tests.fakes.quic_pair import Pair

LISTEN = "/ip4/127.0.0.1/udp/0/quic-v1"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="other loopback addresses than 127.0.0.1")


@asynccontextmanager
async def victim() -> AsyncIterator[tuple[p2p.Node, tuple[str, int]]]:
    """A node, and where its socket is."""
    with trio.fail_after(60):
        async with p2p.open_node(node_settings(listen=(LISTEN,)), key=key_of("victim")) as node:
            node.handle(PROTOCOL, echo, frame_bytes_max=1 << 20, streams_per_peer_max=8)
            yield node, ("127.0.0.1", int(node.addresses()[0].split("/")[4]))


async def serves_an_honest_peer(node: p2p.Node) -> None:
    async with p2p.open_node(node_settings(listen=()), key=key_of("honest")) as peer:
        stream = await peer.open_stream(node.peer, PROTOCOL, addresses=node.addresses(), frame_bytes_max=1 << 20)
        await stream.send(b"still there?")
        assert await stream.receive() == b"still there?"
        await stream.aclose()


@contextmanager
def attacker(host: str = "127.0.0.2") -> Any:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind((host, 0))
        yield sock


def client(certificate: Any = None, key: Any = None, **options: Any) -> QuicConnection:
    connection = QuicConnection(
        configuration=QuicConfiguration(
            is_client=True,
            alpn_protocols=["libp2p"],
            verify_mode=ssl.CERT_NONE,
            certificate=certificate,
            private_key=key,
            supported_versions=[1],
            **options,
        )
    )
    connection.connect(("127.0.0.1", 1), now=trio.current_time())
    return connection


def first_datagram(**options: Any) -> bytes:
    datagrams: list[tuple[bytes, Any]] = client(**options).datagrams_to_send(trio.current_time())
    return datagrams[0][0]


def received(sock: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(sock.recv(4096))
        except BlockingIOError:
            return found


def door_of(node: p2p.Node) -> Any:
    (listener,) = node._swarm.listeners.values()  # type: ignore[attr-defined]
    return listener._doors[0]


# --- before anybody is known ---------------------------------------------------------------------------------


@linux_only
def test_garbage_of_all_sizes_and_bent_initials_leave_nothing_behind() -> None:
    async def main() -> None:
        chance = random.Random(1)
        async with victim() as (node, where):
            with attacker() as sock:
                good = first_datagram()
                for number in range(3000):
                    match number % 4:
                        case 0:
                            data = chance.randbytes(chance.randrange(0, 1500))
                        case 1:
                            bent = bytearray(good)
                            for _ in range(chance.randrange(1, 8)):
                                bent[chance.randrange(60)] = chance.randrange(256)
                            data = bytes(bent)
                        case 2:
                            data = good[: chance.randrange(len(good))]
                        case _:
                            data = bytes((0xC0 | chance.randrange(64),)) + chance.randbytes(1300)
                    sock.sendto(data, where)
                    if number % 50 == 0:
                        await trio.sleep(0.01)
                await trio.sleep(0.5)
            assert node.connections() == ()
            await serves_an_honest_peer(node)
            door = door_of(node)
            assert len(door._links) <= 10 * HALF_OPEN_PER_HOST_MAX
            with trio.fail_after(20):  # nonsense keeps a place for a second, half a handshake for ten
                while door._half_open_total:
                    await trio.sleep(0.1)
            assert not door._half_open

    trio.run(main)


@linux_only
def test_a_flood_of_initials_ends_in_retry_and_an_honest_peer_comes_through_by_it() -> None:
    async def main() -> None:
        async with victim() as (node, where):
            door = door_of(node)
            with attacker("127.0.0.2") as one, attacker("127.0.0.3") as two:
                for sock in (one, two):
                    for _ in range(40):  # each in the name of another connection, none of them ever answers
                        sock.sendto(first_datagram(), where)
                        await trio.sleep(0.002)
                await trio.sleep(0.1)
                assert door._half_open_total == RETRY_FROM, "over so many, nobody gets state for nothing"
                answers = [data for sock in (one, two) for data in received(sock)]
                retries = [
                    data
                    for data in answers
                    if pull_quic_header(Buffer(data=data), host_cid_length=8).packet_type is QuicPacketType.RETRY
                ]
                assert len(retries) >= 80 - RETRY_FROM
                assert max(map(len, retries)) < 200, "a Retry must not amplify"
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                for _ in range(2000):
                    two.sendto(first_datagram_template(), where)
                    await trio.sleep(0)
                await trio.sleep(0.2)
                assert door._half_open_total == RETRY_FROM
                assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 40_000  # KiB
                await serves_an_honest_peer(node)

    template = []

    def first_datagram_template() -> bytes:
        if not template:
            template.append(first_datagram())
        data = bytearray(template[0])
        data[6:14] = os.urandom(8)  # another connection id: cannot be decrypted, needs a Retry all the same
        return bytes(data)

    trio.run(main)


@linux_only
def test_initials_that_cannot_be_opened_end_in_retry_too() -> None:
    """Each costs the keys of a connection; so each keeps a place for a second, and soon a token is asked for."""

    async def main() -> None:
        async with victim() as (node, where):
            door = door_of(node)
            with attacker() as sock:
                good = first_datagram()
                for _ in range(3 * RETRY_FROM):
                    sock.sendto(good[:6] + os.urandom(8) + good[14:], where)  # sealed for another connection id
                    await trio.sleep(0.001)
                await trio.sleep(0.1)
                assert door._half_open_total == RETRY_FROM
                assert not door._links, "the place is all that is kept"
                assert len(received(sock)) >= RETRY_FROM, "the others were asked to come again"
            await serves_an_honest_peer(node)

    trio.run(main)


@linux_only
def test_one_address_has_no_more_than_its_places_though_it_answers_every_retry() -> None:
    async def main() -> None:
        async with victim() as (node, where):
            door = door_of(node)
            with attacker() as sock:
                clients = []
                for _ in range(RETRY_FROM + HALF_OPEN_PER_HOST_MAX):
                    connection = client()
                    clients.append(connection)
                    for _ in range(2):  # its Initial, and once more with the token
                        for data, _ in connection.datagrams_to_send(trio.current_time()):
                            sock.sendto(data, where)
                        await trio.sleep(0.005)
                        for data in received(sock):
                            if not connection._retry_count:  # of the server's first flight nothing is taken
                                header = pull_quic_header(Buffer(data=data), host_cid_length=8)
                                if header.packet_type is QuicPacketType.RETRY:
                                    connection.receive_datagram(data, ("127.0.0.1", 1), trio.current_time())
                assert sum(connection._retry_count for connection in clients) > 10
                assert door._half_open["127.0.0.2"] <= HALF_OPEN_PER_HOST_MAX
                assert door._half_open["127.0.0.2"] > RETRY_FROM, "a token opens the door"
            await serves_an_honest_peer(node)

    trio.run(main)


def test_a_token_opens_only_for_the_address_and_the_connection_it_was_made_for() -> None:
    async def main() -> None:
        async with victim() as (node, _):
            door = door_of(node)
            now = trio.current_time()
            token = door._tokens.create_token(
                address=("127.0.0.1", 5),
                original_destination_connection_id=b"original",
                retry_source_connection_id=b"retrysrc",
                now=now,
            )
            good: dict[str, Any] = {
                "address": ("127.0.0.1", 5),
                "destination_cid": b"retrysrc",
                "token": token,
                "now": now + 1,
            }
            assert door._tokens.validate_token(**good) == b"original"
            for change in (
                {"address": ("127.0.0.1", 6)},
                {"destination_cid": b"another!"},
                {"token": bytes((token[0] ^ 1,)) + token[1:]},
                {"token": b""},
                {"now": now + 60},
            ):
                with pytest.raises(ValueError, match=r".+"):
                    door._tokens.validate_token(**(good | change))

    trio.run(main)


def test_another_version_is_told_ours_once_and_never_in_a_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_listener, "ANSWERS_PER_S_MAX", 5)

    async def main() -> None:
        async with victim() as (node, where):
            with attacker("127.0.0.1") as sock:
                strange = bytearray(first_datagram())
                strange[1:5] = b"\x0a\x0a\x0a\x0a"
                sock.sendto(bytes(strange), where)
                sock.sendto(bytes(strange[:1100]), where)  # too small: our answer could be larger
                circle = encode_quic_version_negotiation(
                    source_cid=b"12345678", destination_cid=b"abcdefgh", supported_versions=[1]
                )
                sock.sendto(circle + bytes(1200), where)
                await trio.sleep(0.1)
                (answer,) = received(sock)
                header = pull_quic_header(Buffer(data=answer), host_cid_length=8)
                assert header.packet_type is QuicPacketType.VERSION_NEGOTIATION
                assert header.supported_versions == [1]
                for _ in range(50):
                    sock.sendto(bytes(strange), where)
                await trio.sleep(0.1)
                assert len(received(sock)) <= 6, "answers have a rate"
            await serves_an_honest_peer(node)

    trio.run(main)


# --- false certificates over the wire ------------------------------------------------------------------------


def plain_certificate(key: Any, **change: datetime.datetime) -> x509.Certificate:
    """Self-signed, and without libp2p's extension."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(utc_now() - datetime.timedelta(days=2))
        .not_valid_after(change.get("until", utc_now() + datetime.timedelta(days=1)))
        .sign(key, hashes.SHA256())
    )


def missing() -> tuple[Any, Any, list[Any]]:
    key = ec.generate_private_key(ec.SECP256R1())
    return plain_certificate(key), key, []


def borrowed() -> tuple[Any, Any, list[Any]]:
    """The extension of somebody else's certificate, around a key of one's own."""
    victim_certificate, _ = make_certificate(b"v" * 32, now=utc_now())
    stolen = victim_certificate.extensions.get_extension_for_oid(EXTENSION).value
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(utc_now() - datetime.timedelta(days=1))
        .not_valid_after(utc_now() + datetime.timedelta(days=1))
        .add_extension(stolen, critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key, []


def expired() -> tuple[Any, Any, list[Any]]:
    certificate, key = make_certificate(b"v" * 32, now=utc_now() - datetime.timedelta(days=5000))
    return certificate, key, []


def with_rsa() -> tuple[Any, Any, list[Any]]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return plain_certificate(key), key, []


def in_a_long_chain() -> tuple[Any, Any, list[Any]]:
    certificate, key = make_certificate(b"v" * 32, now=utc_now())
    return certificate, key, [certificate] * 14  # 6 KiB, as much as its own buffer takes


def in_a_chain_of_two() -> tuple[Any, Any, list[Any]]:
    certificate, key = make_certificate(b"v" * 32, now=utc_now())
    return certificate, key, [certificate]


def none_at_all() -> tuple[Any, Any, list[Any]]:
    return None, None, []


FALSE = [missing, borrowed, expired, with_rsa, in_a_chain_of_two, in_a_long_chain]


def shown(transport: QuicTransport, make: Callable[[], tuple[Any, Any, list[Any]]]) -> QuicTransport:
    certificate, key, chain = make()
    for side in (True, False):
        made = configuration(is_client=side, certificate=certificate, private_key=key)
        made.certificate_chain = chain
        transport._configurations[side] = made
    return transport


@pytest.mark.parametrize("make", [*FALSE, none_at_all], ids=lambda make: make.__name__)
def test_a_client_with_such_a_certificate_never_becomes_a_connection(make: Any) -> None:
    async def main() -> None:
        async with victim() as (node, _):
            liar = shown(QuicTransport(b"l" * 32, handshake_timeout_s=2), make)
            try:
                link = await liar.dial(Multiaddr(node.addresses()[0]))
            except Exception:
                pass
            else:  # in TLS 1.3 the client is done first, and hears of it a moment later
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(link.start)
                    with trio.fail_after(3):
                        await link.closed.wait()
                    nursery.cancel_scope.cancel()
            assert node.connections() == ()
            assert node.statistics().streams_accepted == 0
            await serves_an_honest_peer(node)

    trio.run(main)


@pytest.mark.parametrize("make", FALSE, ids=lambda make: make.__name__)
def test_a_listener_with_such_a_certificate_is_not_the_peer_that_we_dialled(make: Any) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                liar = shown(QuicTransport(b"l" * 32), make)

                async def ignore(link: Any) -> None:
                    await link.start()

                listener = liar.create_listener(ignore)
                listener.background_nursery = nursery
                await listener.listen(Multiaddr(LISTEN))
                where = str(listener.get_addrs()[0])
                async with p2p.open_node(node_settings(listen=()), key=key_of("honest")) as node:
                    with pytest.raises(p2p.DialFailed, match=r"the secure handshake failed"):
                        await node.connect(peer_id_of_seed(b"v" * 32), [where])
                    assert node.connections() == ()
                nursery.cancel_scope.cancel()

    trio.run(main)


# --- inside a proven connection ------------------------------------------------------------------------------

frames = st.one_of(
    st.binary(max_size=64),
    st.builds(lambda kind, rest: bytes((kind,)) + rest, st.integers(0, 0x31), st.binary(max_size=40)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(payloads=st.lists(st.lists(frames, min_size=1, max_size=6).map(b"".join), min_size=1, max_size=6))
def test_frames_of_any_content_end_that_connection_at_most(payloads: list[bytes]) -> None:
    """Sealed with the right keys: what a peer that has proved itself may send."""
    pair = Pair().open()
    sender, victim_ = pair.client, pair.server
    for payload in payloads:
        sender._packet_number += 1
        number = sender._packet_number
        header = bytes((0x41,)) + victim_.host_cid + number.to_bytes(2, "big")
        sealed = sender._cryptos[tls.Epoch.ONE_RTT].encrypt_packet(header, payload.ljust(4, b"\0"), number)
        victim_.receive_datagram(sealed, ("127.0.0.1", 1000), pair.now)
        for event in victim_.take_events(now=pair.now):
            assert event is not None
        victim_.datagrams_to_send(pair.now)
        assert len(victim_._streams) <= 288
        assert victim_.unread_bytes <= 16 << 20
        if victim_.is_over:
            break
        assert number in victim_._spaces[tls.Epoch.ONE_RTT].received_packets, "it was opened and taken"
