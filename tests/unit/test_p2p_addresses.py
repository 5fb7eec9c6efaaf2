"""Addresses: known forms are read and written back, everything else is refused, and so is a private target."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.addresses import Address, DialPolicy, HostKind, parse_address, parse_addresses_of, parse_peer_address
from p2p.errors import AddressInvalid, AddressRefused
from p2p.identity import peer_id_of_public_key

PEER = peer_id_of_public_key(b"p" * 32)
RELAY = peer_id_of_public_key(b"r" * 32)


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/203.0.113.7/tcp/4001",
        "/ip6/2001:db8::1/tcp/4001",
        "/dns4/node.example/tcp/443",
        "/dns/node.example./tcp/443",
        f"/ip4/203.0.113.7/tcp/4001/p2p/{PEER}",
        f"/ip4/203.0.113.7/tcp/4001/p2p/{RELAY}/p2p-circuit",
        f"/ip4/203.0.113.7/tcp/4001/p2p/{RELAY}/p2p-circuit/p2p/{PEER}",
    ],
)
def test_known_forms_are_read_and_written_back(text: str) -> None:
    assert str(parse_address(text)) == text


def test_one_address_has_one_form() -> None:
    assert str(parse_address("/ip6/2001:DB8:0:0::1/tcp/04001")) == "/ip6/2001:db8::1/tcp/4001"
    assert parse_address("/dns/NODE.example/tcp/1").host == "node.example"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "ip4/203.0.113.7/tcp/1",
        "/ip4/203.0.113.7",
        "/ip4/203.0.113.7/udp/1/quic",
        "/ip4/203.0.113.7/tcp/1/wss",
        "/ip4/203.0.113/tcp/1",
        "/ip4/203.0.113.07/tcp/1",
        "/ip4/2001:db8::1/tcp/1",
        "/ip6/fe80::1%eth0/tcp/1",
        "/ip4/203.0.113.7/tcp/65536",
        "/ip4/203.0.113.7/tcp/-1",
        "/ip4/203.0.113.7/tcp/１",
        "/dns/-bad-/tcp/1",
        "/dns/a b/tcp/1",
        "/dns/" + "a." * 200 + "/tcp/1",
        "/ip4/203.0.113.7/tcp/1/p2p/nobody",
        f"/ip4/203.0.113.7/tcp/1/p2p/{PEER}/",
        "/ip4/203.0.113.7/tcp/1" + "/p2p/x" * 1000,
    ],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(AddressInvalid):
        parse_address(text)


@given(st.text(alphabet="/ip46dnstc2.:0123456789abf%p-", max_size=60))
def test_any_text_gives_an_address_or_one_kind_of_error(text: str) -> None:
    try:
        address = parse_address(text)
    except AddressInvalid:
        return
    assert parse_address(str(address)) == address


def test_a_bootstrap_address_must_say_who_answers() -> None:
    assert parse_peer_address(f"/ip4/203.0.113.7/tcp/1/p2p/{PEER}")[0] == PEER
    with pytest.raises(AddressInvalid):
        parse_peer_address("/ip4/203.0.113.7/tcp/1")


def test_bad_addresses_among_good_ones_are_left_out() -> None:
    good = "/ip4/203.0.113.7/tcp/1"
    assert [str(a) for a in parse_addresses_of(PEER, ["x", f"{good}/p2p/{PEER}", f"{good}/p2p/{RELAY}"])] == [good]
    with pytest.raises(AddressInvalid):
        parse_addresses_of(PEER, [f"{good}/p2p/{RELAY}"])
    assert parse_addresses_of(PEER, []) == []


def test_public_addresses_may_be_dialled() -> None:
    strict = DialPolicy(allow_private=False)
    for text in ("/ip4/8.8.8.8/tcp/1", "/ip6/2606:4700::1111/tcp/1", "/dns/node.example/tcp/1"):
        strict.check(parse_address(text))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.9.9.9",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "::1",
        "fe80::1",
        "fd00::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "2002:c0a8:101::1",
        "64:ff9b::a00:1",
        "2001:db8::1",
    ],
)
def test_private_addresses_are_refused_unless_allowed(host: str) -> None:
    kind = HostKind.IP6 if ":" in host else HostKind.IP4
    address = Address(kind=kind, host=host, port=4001)
    with pytest.raises(AddressRefused, match="refused by policy"):
        DialPolicy(allow_private=False).check(address)
    DialPolicy(allow_private=True).check(address)


@pytest.mark.parametrize("host", ["224.0.0.1", "239.1.1.1", "ff02::1", "0.0.0.0", "::", "::ffff:224.0.0.1"])
def test_multicast_and_nowhere_are_refused_always(host: str) -> None:
    kind = HostKind.IP6 if ":" in host else HostKind.IP4
    for policy in (DialPolicy(allow_private=False), DialPolicy(allow_private=True)):
        with pytest.raises(AddressRefused):
            policy.check(Address(kind=kind, host=host, port=4001))


def test_port_zero_is_refused() -> None:
    with pytest.raises(AddressRefused):
        DialPolicy(allow_private=True).check(parse_address("/ip4/127.0.0.1/tcp/0"))
