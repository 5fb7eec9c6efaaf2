"""A node attacked by gossip and DHT peers: it lives, its memory is bounded, honest peers hear each other, and whoever
attacks is scored down and disconnected. All attacks at once in the short form; some or all of them, again and again for
half an hour, in the long one, which is resumable (`long_form.py`). What needs many networks (an eclipse from one /24)
runs in virtual time.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import trio

import p2p
import p2p.driver.kad_driver  # before any clock runs: importing libp2p takes seconds
from p2p.gossip import GossipSettings, Rpc
from p2p.identity import peer_id_to_bytes
from p2p.interface import Verdict
from p2p.kad import KadMessage, KadPeer, KadSettings, Kind, ProvidersFound, Record, provider_key
from p2p.kad.messages import kad_id
from p2p.testing.contract.tools import eventually, key_of, settings
from p2p.testing.virtual import VirtualNetwork, VirtualPeer
from tests.fuzz.dht_liars import LIES, ask, dead_peers, honest_and_liars, under_liars
from tests.fuzz.gossip_attacks import ATTACKS, NEVER_S, TOPIC, Speak, attack, score_of
from tests.fuzz.long_form import LongForm

HONEST = 5
HONEST_SHARE_MIN = 0.99
MEMORY_BYTES_MAX = 96 << 20  # more than before: attackers, attacked and garbage not yet collected, in one process
ATTACK_S = 90.0  # for all attackers to be thrown out: ten seconds on an idle machine


@pytest.fixture(autouse=True)
def _no_look_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute after its start a node refreshes its table, for which it dials."""
    monkeypatch.setattr(p2p.driver.kad_driver, "REFRESH_FIRST_S", NEVER_S)


def memory_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def judge(forwarder: str, data: bytes) -> Verdict:
    return Verdict.REJECT if data.startswith(b"refuse me") else Verdict.ACCEPT


@dataclass(frozen=True, slots=True, kw_only=True)
class Suffered:
    messages: int
    lost_percent: float
    grown_mib: int


async def under_attack(attacks: Sequence[Speak], *, seed: int) -> Suffered:
    async with AsyncExitStack() as stack:
        nodes: list[Any] = []
        for number in range(HONEST):
            key = key_of(f"honest {seed} {number}")
            apart = settings(check_delay_s=NEVER_S)
            nodes.append(await stack.enter_async_context(p2p.open_node(apart, key=key)))
        return await attacked(nodes, attacks, seed=seed)


async def attacked(nodes: list[Any], attacks: Sequence[Speak], *, seed: int) -> Suffered:
    async with trio.open_nursery() as nursery:
        heard: list[set[bytes]] = [set() for _ in nodes]

        async def listen(number: int) -> None:
            async for message in await nodes[number].subscribe(TOPIC, judge):
                heard[number].add(message.data)

        for number, node in enumerate(nodes):
            nursery.start_soon(listen, number)
            for other in nodes[:number]:
                await node.connect(other.peer, other.addresses())
        victim = nodes[0]
        router = victim.gossip.router
        await eventually(lambda: len(router.state.topics.get(TOPIC, ())) == HONEST - 1, "the honest know each other")
        worst = router.state.settings.score.graylist_threshold
        before = memory_bytes()
        dials = victim.statistics().dials
        attackers: dict[str, str] = {}
        lowest: dict[str, float] = {}
        gone: set[str] = set()
        sent: set[bytes] = set()

        def note(name: str, node: Any) -> None:
            attackers[node.peer] = name

        async def watch() -> None:
            seen: set[str] = set()
            while True:
                connected = {connection.peer for connection in victim.connections()}
                seen |= connected & attackers.keys()
                for peer in seen - connected:  # a slow machine loses one for other reasons; that one comes back
                    if lowest.get(attackers[peer], 0.0) < worst:
                        gone.add(attackers[peer])
                for peer, name in attackers.items():
                    lowest[name] = min(lowest.get(name, 0.0), score_of(victim, peer))
                await trio.sleep(0.02)

        async def publish() -> None:
            while True:
                for number, node in enumerate(nodes):
                    data = b"%d says %d" % (number, len(sent))
                    sent.add(data)
                    await node.publish(TOPIC, data)
                    await trio.sleep(0.1)

        nursery.start_soon(watch)
        with trio.CancelScope() as attacking:
            async with trio.open_nursery() as inner:
                inner.start_soon(publish)
                for speak in attacks:
                    name = speak.__name__
                    inner.start_soon(lambda s=speak, n=name: attack(s, victim, seed=seed, on_open=lambda x: note(n, x)))
                names = {speak.__name__ for speak in attacks}
                with trio.move_on_after(ATTACK_S):
                    while gone != names:
                        await trio.sleep(0.05)
                await trio.sleep(1)
                attacking.cancel()
        assert gone == names, f"still connected, or not scored down: {names - gone}, scores {lowest}"
        with trio.move_on_after(10):
            while any(not sent <= got for got in heard):
                await trio.sleep(0.05)
        share = sum(len(got & sent) for got in heard) / (len(sent) * HONEST)
        assert share >= HONEST_SHARE_MIN, f"{share:.3f} of {len(sent)} messages"
        honest = [peer_id_to_bytes(node.peer) for node in nodes[1:]]
        assert all(router.score(peer) >= 0 for peer in honest), "no honest peer is blamed"
        assert not [got for got in heard if any(data.startswith(b"refuse me") for data in got)]
        assert victim.statistics().dials == dials, "nobody is dialled because an attacker said so"
        grown = memory_bytes() - before
        assert grown < MEMORY_BYTES_MAX
        nursery.cancel_scope.cancel()
    return Suffered(messages=len(sent), lost_percent=100 * (1 - share), grown_mib=grown >> 20)


def test_all_gossip_attacks_at_once_end_with_every_attacker_thrown_out_and_everybody_heard() -> None:
    trio.run(lambda: under_attack(ATTACKS, seed=1))


@pytest.mark.long
def test_attacks_on_gossip_and_lies_in_the_dht_for_half_an_hour() -> None:
    form = LongForm("hostile gossip and DHT peers")
    while form.is_due:
        with form.round() as number:
            seed = 100 + number
            rng = random.Random(seed)
            if number % 3 == 2:
                lies = rng.sample(LIES, rng.choice((1, 2, 4)))
                form.count(lookups=trio.run(lambda lies=lies, seed=seed: under_liars(lies, seed=seed)))
            else:
                chosen = rng.sample(ATTACKS, rng.choice((1, 1, 2, 5, len(ATTACKS))))
                suffered = trio.run(lambda chosen=chosen, seed=seed: under_attack(chosen, seed=seed))
                form.count(attacks=len(chosen), messages=suffered.messages)
                form.note(lost_percent=suffered.lost_percent, grown_mib=suffered.grown_mib)
        form.note(resident_mib=memory_bytes() >> 20)
    print(form)


# --- the DHT -------------------------------------------------------------------------------------------------


def test_who_lies_in_the_dht_hides_nothing_and_is_not_asked_again() -> None:
    """Garbage, answers to other questions, peers that are none, records that no validator takes."""
    trio.run(lambda: under_liars(LIES, seed=1))


def test_liars_in_the_dht_neither_hide_a_provider_nor_fill_stores_and_tables() -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            honest, lying = await honest_and_liars(stack, [dead_peers], seed=0)
            liars = [liar for _, liar, _ in lying]
            before = memory_bytes()
            key = hashlib.sha256(b"a model").digest()
            await honest[1].provide(key)
            found = await honest[5].find_providers(key, count_max=20)
            assert [info.peer for info in found] == [honest[1].peer]
            for node in honest:
                real = {peer_id_to_bytes(other.peer) for other in (*honest, *liars)}
                assert {entry.peer for entry in node.dht.node.table} <= real, "hearsay is not in the table"

            victim, liar = honest[0], liars[0]
            foreign = KadPeer(peer_id_to_bytes(honest[3].peer), (b"\x04\x7f\x00\x00\x01\x06\x00\x01",))
            key_of_other = provider_key(hashlib.sha256(b"other").digest())
            question = KadMessage(kind=Kind.ADD_PROVIDER, key=key_of_other, providers=(foreign,))
            assert await ask(liar, victim, question) == [], "a record of another peer is refused"
            assert victim.dht.node.providers.get(question.key, now=0) == []

            ourselves = KadPeer(peer_id_to_bytes(liar.peer), ())
            for turn in range(8):
                many = [
                    KadMessage(
                        kind=Kind.ADD_PROVIDER,
                        key=provider_key(hashlib.sha256(b"%d %d" % (turn, number)).digest()),
                        providers=(ourselves,),
                    )
                    for number in range(200)
                ]
                assert [answer.kind for answer in await ask(liar, victim, *many)] == [Kind.PING]
            limits = victim.dht.node.settings
            assert len(victim.dht.node.providers) <= limits.keys_per_provider_max + 1
            value = KadMessage(kind=Kind.PUT_VALUE, key=b"/none/x", record=Record(b"/none/x", bytes(8000)))
            assert await ask(liar, victim, value) == [], "a value that nobody can judge is refused"
            assert len(victim.dht.node.values) == 0
            assert [info.peer for info in await honest[4].find_providers(key, count_max=20)] == [honest[1].peer]
            assert memory_bytes() - before < MEMORY_BYTES_MAX
            started = time.time_ns()
            for _ in range(20):
                await ask(liar, victim, question)

            def is_thrown_out() -> bool:
                """It may be back on another connection by now, as its program wants it to be."""
                return all(c.opened_at > started for c in victim.connections() if c.peer == liar.peer)

            await eventually(is_thrown_out, "the liar is thrown out")
            await liar.connect(victim.peer, victim.addresses())
            await trio.sleep(0.5)  # for identify
            assert peer_id_to_bytes(liar.peer) not in victim.dht.node.table, "nor does it come back into the table"
            assert {node.peer for node in honest[1:]} <= {c.peer for c in victim.connections()}

    trio.run(main)


# --- eclipse, in virtual time --------------------------------------------------------------------------------


class Eclipser(VirtualPeer):
    """Knows of nobody but its own, keeps no record, and forwards no gossip."""

    gang: list[VirtualPeer] = []  # noqa: RUF012 - filled by the test

    def on_question(self, source: bytes, question: KadMessage) -> KadMessage | None:
        closer = tuple(KadPeer(one.peer, one.addresses) for one in self.gang[:20])
        return KadMessage(kind=question.kind, key=question.key, closer=closer)

    def on_rpc(self, source: bytes, rpc: Rpc) -> None:
        if rpc.subscriptions:
            topics = tuple(topic for is_subscribed, topic in rpc.subscriptions if is_subscribed)
            hello = Rpc(subscriptions=tuple((True, topic) for topic in topics), graft=topics)
            self.network.send_rpc(self, source, hello)


def near_ids(key: bytes, count: int) -> list[bytes]:
    """The nearest of many keys that an attacker could have made in a minute."""
    rng = random.Random(key)
    tried = [bytes.fromhex("002408011220") + rng.randbytes(32) for _ in range(20_000)]
    return sorted(tried, key=lambda peer: kad_id(peer) ^ kad_id(key))[:count]


def test_sixty_peers_of_one_network_next_to_a_key_do_not_hide_its_provider() -> None:
    network = VirtualNetwork(seed=1, kad_settings=KadSettings())
    honest = [network.add(f"honest {number}") for number in range(100)]
    rng = random.Random(1)
    for number, peer in enumerate(honest[1:], 1):
        for other in rng.sample(honest[:number], min(number, 3)):
            network.connect(peer, other)
    network.run(seconds=60)
    key = hashlib.sha256(b"eclipsed").digest()
    gang = [
        network.add(f"bad {number}", host=f"198.51.100.{number + 1}", kind=Eclipser, peer_id=peer)
        for number, peer in enumerate(near_ids(key, 60))
    ]
    Eclipser.gang = gang
    for number, peer in enumerate(gang):
        for other in rng.sample(honest, 10):
            network.connect(peer, other)
        network.run(seconds=number % 3)
    network.run(seconds=60)
    for peer in honest:
        mine = [entry for entry in peer.kad.table if entry.peer in {bad.peer for bad in gang}]
        assert len(mine) <= KadSettings().table_per_group_max
    told = honest[5].provide(key)
    network.run(seconds=60)
    assert told.result is not None
    lookups = [honest[number].find_providers(key) for number in range(20, 50)]
    network.run(seconds=90)
    found = [
        honest[5].peer in {provider.peer for provider in lookup.result.providers}
        for lookup in lookups
        if isinstance(lookup.result, ProvidersFound)
    ]
    assert len(found) == len(lookups)
    assert sum(found) / len(found) >= HONEST_SHARE_MIN


@pytest.mark.parametrize("one_address", [True, False])
def test_forty_mute_peers_of_one_network_that_graft_a_victim_do_not_make_it_deaf(one_address: bool) -> None:
    network = VirtualNetwork(seed=2, gossip_settings=GossipSettings())
    victim = network.add("victim")
    honest = [network.add(f"honest {number}") for number in range(30)]
    rng = random.Random(2)
    for number, peer in enumerate(honest):
        for other in rng.sample(honest[:number], min(number, 4)):
            network.connect(peer, other)
    gang = [
        network.add(f"bad {number}", host="198.51.100.1" if one_address else f"198.51.100.{number + 1}", kind=Eclipser)
        for number in range(40)
    ]
    for peer in gang:
        assert network.connect(peer, victim)
    for peer in (victim, *honest):
        peer.join(TOPIC)
    network.run(seconds=5)
    for peer in honest[:4]:
        assert network.connect(victim, peer), "the victim's own dials"
    network.run(seconds=60)
    sent = set()
    for number in range(200):
        sent.add(b"%d" % number)
        network.after(number / 5, honest[4 + number % 26].publish, TOPIC, b"%d" % number)
    network.run(seconds=60)
    assert len({data for _, _, data in victim.heard} & sent) / len(sent) >= HONEST_SHARE_MIN
    if one_address:
        assert all(victim.router.score(peer.peer) < 0 or peer.peer not in victim.links for peer in gang)
