"""Nodes of the DHT with each other over a fake network: what a program finds, and what liars can do to it.

Docstrings name the paragraph of libp2p/specs, kad-dht/README.md, that a test is about.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from p2p.kad import (
    Ask,
    ClosestFound,
    Done,
    Effect,
    KadMessage,
    KadNode,
    KadPeer,
    KadSettings,
    Kind,
    PeerFound,
    Provided,
    ProvidersFound,
    Record,
    RecordInvalid,
    Refuse,
    Result,
    Send,
    TooManyOperations,
    ValueFound,
    ValuePut,
    no_groups,
    provider_key,
)
from p2p.kad.messages import kad_id

SECOND = 1_000_000_000
DIGEST = b"a key of 32 bytes, by its length"
KEY = provider_key(DIGEST)


def peer_id(number: int) -> bytes:
    return b"\x00\x24\x08\x01\x12\x20" + number.to_bytes(32, "big")


def address(number: int) -> tuple[bytes, ...]:
    """Everybody in a /24 of their own."""
    return (bytes([0x04, 10, number >> 8, number & 255, 1]) + b"\x06\x0f\xa1",)


class Newest:
    """Values are b"good:<number>"; the largest number wins."""

    def validate(self, key: bytes, value: bytes) -> None:
        if not value.startswith(b"good:"):
            raise RecordInvalid("not good")

    def select(self, key: bytes, values: list[bytes]) -> int:
        return max(range(len(values)), key=lambda index: int(values[index][5:]))


Liar = Callable[[int, bytes, KadMessage], KadMessage | None]


class Network:
    """Every request is answered at once, in the order asked, unless its peer is dead or a liar."""

    def __init__(self, count: int, *, settings: KadSettings | None = None, groups: bool = False) -> None:
        self.now = 1000 * SECOND
        self.settings = settings or KadSettings()
        self.dead: set[int] = set()
        self.liars: dict[int, Liar] = {}
        self.asked: list[tuple[int, int, Kind]] = []
        self.done: dict[tuple[int, int], Result] = {}
        self.nodes = [self.make(number, groups=groups) for number in range(count)]

    def make(self, number: int, *, groups: bool = False, settings: KadSettings | None = None) -> KadNode:
        options = {} if groups else {"groups_of": no_groups}
        return KadNode(
            peer_id(number),
            settings=settings or self.settings,
            rng=random.Random(number),
            now=self.now,
            addresses=lambda: address(number),
            validators={"v": Newest()},
            **options,  # type: ignore[arg-type]
        )

    def meet(self, a: int, b: int) -> None:
        for one, other in ((a, b), (b, a)):
            self.nodes[one].peer_changed(
                peer_id(other),
                connected=True,
                is_server=self.nodes[other]._settings.is_server,
                addresses=address(other),
                now=self.now,
            )

    def mingle(self, links: int, *, seed: int = 1) -> None:
        rng = random.Random(seed)
        for number in range(1, len(self.nodes)):
            for other in rng.sample(range(number), min(links, number)):
                self.meet(number, other)
        for number in range(len(self.nodes)):
            self.perform(number, self.nodes[number].on_time(now=self.now))

    def perform(self, number: int, effects: list[Effect]) -> None:
        queue = list(effects)
        while queue:
            effect = queue.pop(0)
            if isinstance(effect, Done):
                self.done[number, effect.operation_id] = effect.result
            elif isinstance(effect, Ask):
                queue += self.answer(number, effect)

    def answer(self, number: int, ask: Ask) -> list[Effect]:
        node = self.nodes[number]
        other = int.from_bytes(ask.peer.peer[6:], "big")
        self.asked.append((number, other, ask.message.kind))
        reply: KadMessage | None = None
        if other in self.liars:
            reply = self.liars[other](other, peer_id(number), ask.message)
        elif other < len(self.nodes) and other not in self.dead:
            effects = self.nodes[other].receive(peer_id(number), ask.message, now=self.now)
            if not ask.has_answer:
                assert all(isinstance(effect, Refuse) for effect in effects)
                return node.delivered(ask.request_id, now=self.now)
            for effect in effects:
                if isinstance(effect, Send):
                    reply = effect.message
        if reply is None:
            return node.failed(ask.request_id, now=self.now)
        return node.answered(ask.request_id, reply, now=self.now)

    def run(self, number: int, started: tuple[int, list[Effect]]) -> Result:
        operation, effects = started
        self.perform(number, effects)
        return self.done[number, operation]

    def pass_time(self, seconds: float) -> None:
        end = self.now + int(seconds * SECOND)
        while True:
            number, due = min(enumerate(n.deadline() for n in self.nodes), key=lambda pair: pair[1])
            if due > end:
                break
            self.now = max(self.now, due)
            self.perform(number, self.nodes[number].on_time(now=self.now))
        self.now = end


@pytest.fixture(scope="module")
def city() -> Network:
    network = Network(150)
    network.mingle(3)
    network.pass_time(40)
    return network


def closest_truth(network: Network, key: bytes, count: int) -> list[bytes]:
    target = kad_id(key)
    return sorted((peer_id(n) for n in range(len(network.nodes))), key=lambda p: kad_id(p) ^ target)[:count]


def test_a_lookup_finds_the_closest_nodes_of_the_whole_network(city: Network) -> None:
    """Peer routing: "the initiator has queried and gotten responses from the k closest nodes it has seen"."""
    found = city.run(7, city.nodes[7].find_closest(KEY, now=city.now))
    assert isinstance(found, ClosestFound)
    truth = [peer for peer in closest_truth(city, KEY, 21) if peer != peer_id(7)][:20]
    assert len({known.peer for known in found.peers} & set(truth)) >= 18


def test_a_peer_is_found_with_its_addresses(city: Network) -> None:
    """Peer routing."""
    found = city.run(3, city.nodes[3].find_peer(peer_id(140), now=city.now))
    assert found == PeerFound(KadPeer(peer_id(140), address(140)))


def test_a_peer_that_does_not_exist_is_not_found(city: Network) -> None:
    assert city.run(3, city.nodes[3].find_peer(peer_id(99_999), now=city.now)) == PeerFound(None)


def test_providers_are_told_to_the_closest_and_found_from_anywhere(city: Network) -> None:
    """Content routing."""
    told = city.run(5, city.nodes[5].provide(DIGEST, now=city.now))
    assert told == Provided(20)
    city.run(6, city.nodes[6].provide(DIGEST, now=city.now))
    found = city.run(100, city.nodes[100].find_providers(DIGEST, count_max=10, now=city.now))
    assert isinstance(found, ProvidersFound)
    assert set(found.providers) == {KadPeer(peer_id(n), address(n)) for n in (5, 6)}


def test_we_are_never_among_the_providers_we_find(city: Network) -> None:
    key = b"ours" * 8
    city.run(5, city.nodes[5].provide(key, now=city.now))
    assert city.run(5, city.nodes[5].find_providers(key, count_max=10, now=city.now)).providers == ()  # type: ignore[union-attr]


def test_a_search_stops_when_enough_providers_are_found(city: Network) -> None:
    key = b"many" * 8
    for number in range(10):
        city.run(number, city.nodes[number].provide(key, now=city.now))
    city.asked.clear()
    found = city.run(120, city.nodes[120].find_providers(key, count_max=3, now=city.now))
    assert isinstance(found, ProvidersFound)
    assert len(found.providers) == 3
    assert len(city.asked) < 20


def test_a_value_is_put_and_found_and_the_newest_wins(city: Network) -> None:
    """Value routing, Entry validation."""
    key = b"/v/name"
    assert city.run(1, city.nodes[1].put_value(key, b"good:1", now=city.now)) == ValuePut(20)
    city.run(2, city.nodes[2].put_value(key, b"good:2", now=city.now))
    found = city.run(90, city.nodes[90].get_value(key, now=city.now))
    assert isinstance(found, ValueFound)
    assert found.value == b"good:2"


def test_a_node_that_returned_a_worse_value_is_corrected() -> None:
    """Getting values: "Nodes that returned worse records are updated via a direct PUT_VALUE"."""
    network = Network(4)
    for other in (1, 2, 3):
        network.meet(0, other)
    key = b"/v/name"
    for number, value in ((1, b"good:1"), (2, b"good:5"), (3, b"good:5")):
        network.nodes[number].values.put(key, Record(key, value), now=network.now)
    found = network.run(0, network.nodes[0].get_value(key, now=network.now))
    assert found == ValueFound(b"good:5", 2)
    network.perform(0, [])
    assert network.nodes[1].values.get(key, now=network.now) == b"good:5"


def test_invalid_values_and_unknown_namespaces_are_refused_and_keep_nothing() -> None:
    """Entry validation: "The record is rejected if the validation fails"."""
    network = Network(2)
    node = network.nodes[0]
    for key, value in ((b"/v/x", b"bad"), (b"/other/x", b"good:1"), (b"x", b"good:1"), (b"/v", b"good:1")):
        request = KadMessage(kind=Kind.PUT_VALUE, key=key, record=Record(key, value))
        assert node.receive(peer_id(1), request, now=0) == [Refuse(peer_id(1))]
        with pytest.raises(RecordInvalid):
            node.put_value(key, value, now=0)
    assert len(node.values) == 0


def test_a_record_under_another_key_is_refused() -> None:
    node = Network(1).nodes[0]
    request = KadMessage(kind=Kind.PUT_VALUE, key=b"/v/a", record=Record(b"/v/b", b"good:1"))
    assert node.receive(peer_id(1), request, now=0) == [Refuse(peer_id(1))]


def test_an_older_value_does_not_replace_a_newer_one() -> None:
    node = Network(1).nodes[0]
    for value, expected in ((b"good:5", b"good:5"), (b"good:3", b"good:5"), (b"good:7", b"good:7")):
        request = KadMessage(kind=Kind.PUT_VALUE, key=b"/v/a", record=Record(b"/v/a", value))
        node.receive(peer_id(1), request, now=0)
        assert node.values.get(b"/v/a", now=0) == expected


# --- serving -------------------------------------------------------------------------------------------------


def test_only_the_sender_itself_is_recorded_as_a_provider() -> None:
    """ADD_PROVIDER: "all providerPeers that match the RPC sender's PeerID are recorded"."""
    node = Network(1).nodes[0]
    request = KadMessage(
        kind=Kind.ADD_PROVIDER, key=KEY, providers=(KadPeer(peer_id(8), address(8)), KadPeer(peer_id(9)))
    )
    node.receive(peer_id(9), request, now=0)
    assert node.providers.get(KEY, now=0) == [KadPeer(peer_id(9))]


def test_provider_records_expire_after_a_day() -> None:
    """Content routing: "should expire, by default, after 24 hours"."""
    network = Network(2)
    network.meet(0, 1)
    network.run(0, network.nodes[0].provide(DIGEST, now=network.now))
    network.pass_time(24 * 3600 - 60)
    assert len(network.nodes[1].providers) == 1
    network.pass_time(120)
    assert len(network.nodes[1].providers) == 0


def test_kept_keys_are_announced_again_and_dropped_keys_are_not() -> None:
    """Content routing; ours: republish."""
    network = Network(2, settings=KadSettings(republish_s=1200, providers_ttl_s=2400))
    network.meet(0, 1)
    network.run(0, network.nodes[0].provide(DIGEST, now=network.now, keep=True))
    network.pass_time(7200)
    assert len(network.nodes[1].providers) == 1
    network.nodes[0].stop_providing(DIGEST)
    network.pass_time(4800)
    assert len(network.nodes[1].providers) == 0


def test_one_provider_cannot_fill_the_store() -> None:
    node = Network(1, settings=KadSettings(keys_per_provider_max=10)).nodes[0]
    for number in range(50):
        key = provider_key(number.to_bytes(32, "big"))
        request = KadMessage(kind=Kind.ADD_PROVIDER, key=key, providers=(KadPeer(peer_id(1)),))
        node.receive(peer_id(1), request, now=0)
    assert len(node.providers) == 10


def test_many_providers_cannot_fill_the_store_or_push_others_out() -> None:
    settings = KadSettings(providers_kept_max=100, providers_per_key_max=20)
    node = Network(1, settings=settings).nodes[0]
    first = KadMessage(kind=Kind.ADD_PROVIDER, key=KEY, providers=(KadPeer(peer_id(1)),))
    node.receive(peer_id(1), first, now=0)
    for number in range(2, 500):
        key = provider_key((number % 20).to_bytes(32, "big"))
        request = KadMessage(kind=Kind.ADD_PROVIDER, key=key, providers=(KadPeer(peer_id(number)),))
        node.receive(peer_id(number), request, now=0)
    assert len(node.providers) <= 100
    assert node.providers.get(KEY, now=0) == [KadPeer(peer_id(1))]


def test_a_crowded_node_keeps_only_keys_that_are_near_it(city: Network) -> None:
    node = city.nodes[0]
    node.providers._records, before = 40_000, node.providers._records
    try:
        kept = []
        for number in range(40):
            key = provider_key(number.to_bytes(32, "big"))
            request = KadMessage(kind=Kind.ADD_PROVIDER, key=key, providers=(KadPeer(peer_id(1)),))
            near = peer_id(0) in closest_truth(city, key, 20)
            assert node.receive(peer_id(1), request, now=city.now) == [], "a full store is nobody's fault"
            kept.append((bool(node.providers.get(key, now=city.now)), near))
        assert all(is_kept for is_kept, near in kept if near)
        assert not all(is_kept for is_kept, near in kept)
    finally:
        node.providers._records -= 40_000 - before


def test_a_client_answers_nothing_and_still_finds() -> None:
    """Ours: client mode (rule H2)."""
    network = Network(12)
    network.mingle(4)
    client = network.make(12, settings=KadSettings(is_server=False))
    network.nodes.append(client)
    network.meet(12, 3)
    assert client.receive(peer_id(3), KadMessage(kind=Kind.PING), now=0) == [Refuse(peer_id(3))]
    network.run(5, network.nodes[5].provide(DIGEST, now=network.now))
    found = network.run(12, client.find_providers(DIGEST, count_max=5, now=network.now))
    assert isinstance(found, ProvidersFound)
    assert [p.peer for p in found.providers] == [peer_id(5)]
    assert all(peer_id(12) not in node.table for node in network.nodes[:12])


def test_an_asker_is_not_told_of_itself() -> None:
    network = Network(3)
    network.meet(0, 1)
    network.meet(0, 2)
    (answer,) = network.nodes[0].receive(peer_id(1), KadMessage(kind=Kind.FIND_NODE, key=peer_id(1)), now=0)
    assert isinstance(answer, Send)
    assert [known.peer for known in answer.message.closer] == [peer_id(2)]


@pytest.mark.parametrize(
    "kind", [Kind.FIND_NODE, Kind.GET_VALUE, Kind.GET_PROVIDERS, Kind.ADD_PROVIDER, Kind.PUT_VALUE]
)
def test_a_request_without_a_key_gets_no_answer_and_counts_against_its_sender(kind: Kind) -> None:
    refusal = Refuse(peer_id(1), is_hostile=True)
    assert Network(1).nodes[0].receive(peer_id(1), KadMessage(kind=kind), now=0) == [refusal]


@pytest.mark.parametrize("key", [DIGEST, KEY + b"x", KEY[:-1], b"\x12\x00", b"\x12", b"\x80" * 20])
def test_a_provider_of_what_is_no_multihash_is_not_recorded(key: bytes) -> None:
    """ADD_PROVIDER: "the target node verifies `key`"."""
    node = Network(1).nodes[0]
    request = KadMessage(kind=Kind.ADD_PROVIDER, key=key, providers=(KadPeer(peer_id(1)),))
    assert node.receive(peer_id(1), request, now=0) == [Refuse(peer_id(1))]
    assert len(node.providers) == 0


def test_a_provider_record_is_told_where_its_multihash_lies_and_nobody_answers(city: Network) -> None:
    """Content provider routing: the key, and so the distance, is that of the multihash."""
    digest = b"lies" * 8
    city.asked.clear()
    city.run(5, city.nodes[5].provide(digest, now=city.now))
    told = {peer_id(other) for _, other, kind in city.asked if kind is Kind.ADD_PROVIDER}
    truth = [peer for peer in closest_truth(city, provider_key(digest), 21) if peer != peer_id(5)][:20]
    assert len(told & set(truth)) >= 18
    for peer in told:
        holder = city.nodes[int.from_bytes(peer[6:], "big")]
        request = KadMessage(kind=Kind.ADD_PROVIDER, key=provider_key(digest), providers=(KadPeer(peer_id(5)),))
        assert holder.receive(peer_id(5), request, now=city.now) == []
        assert [known.peer for known in holder.providers.get(provider_key(digest), now=city.now)] == [peer_id(5)]


def test_a_ping_is_answered() -> None:
    """PING: "Target node responds with PING"."""
    ping = KadMessage(kind=Kind.PING)
    assert Network(1).nodes[0].receive(peer_id(1), ping, now=0) == [Send(peer_id(1), ping)]


# --- failures and liars --------------------------------------------------------------------------------------


def test_nobody_known_is_an_answer_at_once() -> None:
    network = Network(1)
    assert network.run(0, network.nodes[0].find_providers(DIGEST, count_max=3, now=0)) == ProvidersFound((), 0)
    assert network.run(0, network.nodes[0].provide(DIGEST, now=0)) == Provided(0)


def test_a_lookup_survives_half_of_the_network_being_dead() -> None:
    network = Network(80)
    network.mingle(5)
    network.pass_time(40)
    network.run(1, network.nodes[1].provide(DIGEST, now=network.now))
    network.dead = set(range(40, 80))
    found = network.run(2, network.nodes[2].find_providers(DIGEST, count_max=1, now=network.now))
    assert isinstance(found, ProvidersFound)
    assert [p.peer for p in found.providers] == [peer_id(1)]


def poison(count: int) -> Liar:
    """Answers with `count` invented peers that are very close to whatever is asked, and no providers."""

    def lie(liar: int, asker: bytes, message: KadMessage) -> KadMessage:
        target = kad_id(message.key)
        invented = sorted(
            (peer_id(1_000_000 + liar * 10_000 + n) for n in range(count)), key=lambda p: kad_id(p) ^ target
        )
        return KadMessage(
            kind=message.kind,
            key=message.key,
            closer=tuple(KadPeer(p, address(200 + n)) for n, p in enumerate(invented[:64])),
        )

    return lie


def test_a_tenth_of_liars_does_not_hide_the_providers_and_lookups_stay_bounded() -> None:
    """Poisoning: disjoint paths (S/Kademlia, section 4.4), bounds per lookup."""
    network = Network(100)
    network.mingle(6)
    network.pass_time(40)
    network.run(1, network.nodes[1].provide(DIGEST, now=network.now))
    network.liars = {number: poison(500) for number in range(10, 20)}
    hits = 0
    for asker in range(30, 60):
        network.asked.clear()
        found = network.run(asker, network.nodes[asker].find_providers(DIGEST, count_max=1, now=network.now))
        assert isinstance(found, ProvidersFound)
        hits += bool(found.providers)
        assert len(network.asked) <= 120
    assert hits == 30


def test_invented_peers_never_enter_the_table() -> None:
    """Ours: only peers that have answered us are entered."""
    network = Network(4)
    for other in (1, 2, 3):
        network.meet(0, other)
    network.liars = {1: poison(50)}
    network.run(0, network.nodes[0].find_closest(KEY, now=network.now))
    assert {entry.peer for entry in network.nodes[0].table} <= {peer_id(n) for n in range(4)}


def test_one_network_cannot_fill_the_table() -> None:
    """Ours: diversity per /24."""
    node = Network(1, groups=True).nodes[0]
    for number in range(1, 500):
        addresses = (bytes([0x04, 192, 0, 2, number & 255]) + b"\x06\x0f\xa1",)
        node.peer_changed(peer_id(number), connected=True, is_server=True, addresses=addresses, now=0)
    assert len(node.table) == 3
    for number in range(1000, 1030):
        node.peer_changed(peer_id(number), connected=True, is_server=True, addresses=address(number), now=0)
    assert len(node.table) > 20


def test_a_peer_cannot_move_into_a_full_group() -> None:
    node = Network(1, groups=True).nodes[0]
    crowd = [(bytes([0x04, 192, 0, 2, n]) + b"\x06\x0f\xa1",) for n in range(9)]
    for number in (1, 2, 3):
        node.peer_changed(peer_id(number), connected=True, is_server=True, addresses=crowd[number], now=0)
    node.peer_changed(peer_id(4), connected=True, is_server=True, addresses=address(4), now=0)
    node.peer_changed(peer_id(4), connected=True, is_server=True, addresses=crowd[4], now=0)
    entry = node.table.get(peer_id(4))
    assert entry is not None
    assert entry.addresses == address(4)


def test_a_lookup_asks_at_most_four_peers_of_one_network() -> None:
    """Ours: an eclipse attempt from one /24."""
    network = Network(3, groups=True)
    network.meet(0, 1)
    network.meet(0, 2)

    def crowd(liar: int, asker: bytes, message: KadMessage) -> KadMessage:
        peers = tuple(KadPeer(peer_id(5000 + n), (bytes([0x04, 192, 0, 2, n]) + b"\x06\x0f\xa1",)) for n in range(60))
        return KadMessage(kind=message.kind, key=message.key, closer=peers)

    network.liars = {1: crowd}
    network.run(0, network.nodes[0].find_closest(KEY, now=network.now))
    assert len([other for _, other, _ in network.asked if other >= 5000]) == 4


def test_an_answer_of_another_kind_counts_as_a_failure() -> None:
    network = Network(2)
    network.meet(0, 1)
    network.liars = {1: lambda liar, asker, message: KadMessage(kind=Kind.PING)}
    for _ in range(2):
        network.run(0, network.nodes[0].find_closest(KEY, now=network.now))
    assert peer_id(1) not in network.nodes[0].table


# --- the table -----------------------------------------------------------------------------------------------


def test_a_dead_peer_leaves_the_table_and_a_waiting_one_takes_its_place() -> None:
    """Kademlia: liveness; old contacts that live are kept."""
    settings = KadSettings(replication=2)
    node = Network(1, settings=settings).nodes[0]
    far = [n for n in range(1, 200) if (kad_id(peer_id(n)) ^ kad_id(peer_id(0))).bit_length() == 256][:4]
    for number in far:
        node.peer_changed(peer_id(number), connected=True, is_server=True, addresses=address(number), now=0)
    assert [entry.peer for entry in node.table] == [peer_id(n) for n in far[:2]]
    node.table.failed(peer_id(far[0]))
    assert peer_id(far[0]) in node.table
    node.table.failed(peer_id(far[0]))
    assert {entry.peer for entry in node.table} == {peer_id(far[1]), peer_id(far[3])}


def test_silent_entries_are_asked_and_removed_when_they_do_not_answer() -> None:
    """Ours: liveness every ten minutes."""
    network = Network(3)
    network.meet(0, 1)
    network.meet(0, 2)
    network.dead = {2}
    network.pass_time(40 * 60)
    assert {entry.peer for entry in network.nodes[0].table} == {peer_id(1)}


def test_the_table_keeps_filling_itself() -> None:
    """Bootstrap process."""
    network = Network(60)
    for number in range(1, 60):
        network.meet(number, number - 1)
    network.pass_time(20 * 60)
    assert min(len(node.table) for node in network.nodes) >= 20


def test_the_closest_entries_are_the_closest(city: Network) -> None:
    table = city.nodes[0].table
    for number in range(50):
        target = kad_id(number.to_bytes(32, "big"))
        truth = sorted(entry.id ^ target for entry in table)[:20]
        assert [entry.id ^ target for entry in table.closest(target, 20)] == truth


def test_lookups_at_one_time_are_bounded() -> None:
    network = Network(2, settings=KadSettings(lookups_max=2))
    network.meet(0, 1)
    node = network.nodes[0]
    for _ in range(2):
        node.find_closest(KEY, now=0)
    with pytest.raises(TooManyOperations):
        node.find_closest(KEY, now=0)


def test_requests_that_are_never_reported_are_given_up() -> None:
    network = Network(2)
    network.meet(0, 1)
    node = network.nodes[0]
    operation, effects = node.find_closest(KEY, now=network.now)
    assert len(effects) == 1
    ended: list[Effect] = []
    for _ in range(10):
        network.now += 10 * SECOND
        ended += node.on_time(now=network.now)
    assert Done(operation, ClosestFound(())) in ended


def test_the_same_seed_gives_the_same_questions() -> None:
    def trace() -> list[tuple[int, int, Kind]]:
        network = Network(40)
        network.mingle(3)
        network.pass_time(60)
        network.run(1, network.nodes[1].provide(DIGEST, now=network.now))
        return network.asked

    assert trace() == trace()


# --- offences ------------------------------------------------------------------------------------------------


def garbage(liar: int, asker: bytes, message: KadMessage) -> KadMessage:
    return KadMessage(kind=Kind.PING)


def another_question(liar: int, asker: bytes, message: KadMessage) -> KadMessage:
    return KadMessage(kind=message.kind, key=message.key + b"!")


def no_peers(liar: int, asker: bytes, message: KadMessage) -> KadMessage:
    return KadMessage(kind=message.kind, key=message.key, closer=(KadPeer(b"no peer id"),))


def false_record(liar: int, asker: bytes, message: KadMessage) -> KadMessage:
    record = Record(message.key, b"bad") if message.kind is Kind.GET_VALUE else None
    return KadMessage(kind=message.kind, key=message.key, record=record)


def record_of_another_key(liar: int, asker: bytes, message: KadMessage) -> KadMessage:
    record = Record(b"/v/other", b"good:9") if message.kind is Kind.GET_VALUE else None
    return KadMessage(kind=message.kind, key=message.key, record=record)


def another_record_than_it_was_told(liar: int, asker: bytes, message: KadMessage) -> KadMessage:
    record = Record(message.key, b"good:9") if message.kind is Kind.PUT_VALUE else None
    return KadMessage(kind=message.kind, key=message.key, record=record)


LIES: list[Liar] = [
    garbage,
    another_question,
    no_peers,
    false_record,
    record_of_another_key,
    another_record_than_it_was_told,
]


@pytest.mark.parametrize("lie", LIES)
def test_who_answers_what_no_honest_peer_does_is_out_of_the_table_for_ten_minutes(lie: Liar) -> None:
    """Ours: offences. One may be an accident; the third within ten minutes is not."""
    network = Network(5)
    for other in (1, 2, 3, 4):
        network.meet(0, other)
        if other > 1:
            network.meet(1, other)
    node, liar = network.nodes[0], peer_id(2)
    network.liars = {2: lie}
    for turn in range(3):
        assert node.offences.is_banned(liar, now=network.now) == (node.offences.counted >= 3)
        network.run(0, node.put_value(b"/v/x", b"good:%d" % (turn + 10), now=network.now))
        found = network.run(0, node.get_value(b"/v/x", now=network.now))
        assert isinstance(found, ValueFound)
        assert found.value == b"good:%d" % (turn + 10)
        if liar not in node.table:  # failures cost its place sooner; it comes back as it likes
            network.meet(0, 2)
    assert node.offences.is_banned(liar, now=network.now)
    assert liar not in node.table
    assert node.offences.banned(now=network.now) == {liar}, "nobody else is blamed"

    network.asked.clear()
    network.meet(0, 2)
    network.run(0, node.find_closest(KEY, now=network.now))
    assert liar not in node.table
    assert 2 not in {other for _, other, _ in network.asked}, "it is not asked, although others name it"
    assert len(network.asked) == 3

    network.liars = {}
    network.pass_time(11 * 60)
    assert not node.offences.is_banned(liar, now=network.now)
    network.meet(0, 2)
    assert liar in node.table, "for a time, and not for ever"


def test_offences_far_apart_are_forgiven() -> None:
    network = Network(2, settings=KadSettings(refresh_interval_empty_s=1e6, liveness_interval_s=1e6))
    network.meet(0, 1)
    network.pass_time(60)
    network.liars = {1: garbage}
    for _ in range(5):
        network.run(0, network.nodes[0].find_closest(KEY, now=network.now))
        network.pass_time(11 * 60)
        network.meet(0, 1)
    assert network.nodes[0].offences.counted >= 5
    assert network.nodes[0].offences.bans == 0


def test_dead_peers_and_late_records_are_nobodys_offence() -> None:
    network = Network(80)
    network.mingle(5)
    network.dead = set(range(40, 80))
    network.pass_time(1200)
    for number in range(5):
        network.run(number, network.nodes[number].put_value(b"/v/x", b"good:%d" % number, now=network.now))
        network.run(30, network.nodes[30].get_value(b"/v/x", now=network.now))
    assert [node.offences.counted for node in network.nodes] == [0] * 80


def test_what_is_kept_of_offenders_is_bounded() -> None:
    settings = KadSettings(offenders_max=50)
    node = Network(1, settings=settings).nodes[0]
    for number in range(500):
        for _ in range(1 if number % 2 else 3):
            node.offences.count(peer_id(number), now=number)
    assert len(node.offences._counts) <= 50
    assert len(node.offences._banned) <= 50
    assert node.offences.is_banned(peer_id(498), now=500)
    node.offences.expire(now=3600 * SECOND)
    assert not node.offences._counts
    assert not node.offences._banned


def test_a_banned_peer_gives_its_place_to_one_that_waits() -> None:
    node = Network(1, settings=KadSettings(replication=2)).nodes[0]
    far = [n for n in range(1, 200) if (kad_id(peer_id(n)) ^ kad_id(peer_id(0))).bit_length() == 256][:3]
    for number in far:
        node.peer_changed(peer_id(number), connected=True, is_server=True, addresses=address(number), now=0)
    node.ban(peer_id(far[0]), now=0)
    assert {entry.peer for entry in node.table} == {peer_id(far[1]), peer_id(far[2])}


def test_a_fifth_of_the_network_that_lies_about_values_hides_none_and_is_sorted_out() -> None:
    network = Network(100)
    network.mingle(6)
    network.pass_time(40)
    network.run(1, network.nodes[1].put_value(b"/v/x", b"good:1", now=network.now))
    network.liars = dict.fromkeys(range(10, 30), false_record)
    asker = network.nodes[50]
    for _ in range(12):
        found = network.run(50, asker.get_value(b"/v/x", now=network.now))
        assert isinstance(found, ValueFound)
        assert found.value == b"good:1"
    banned = asker.offences.banned(now=network.now)
    assert banned
    assert banned <= {peer_id(number) for number in range(10, 30)}
    assert not banned & {entry.peer for entry in asker.table}
