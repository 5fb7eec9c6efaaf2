"""The gossip router, paragraph by paragraph.

Test names say what is seen; docstrings name the paragraph: v1.0 and v1.1 are libp2p/specs,
pubsub/gossipsub/gossipsub-v1.0.md and -v1.1.md, v1.2 likewise.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from p2p.gossip import (
    Deliver,
    Dial,
    Disconnect,
    Effect,
    GossipSettings,
    Message,
    MessageTooLong,
    Prune,
    Router,
    Rpc,
    ScoreSettings,
    Send,
    TopicScore,
    Verdict,
)
from p2p.gossip.messages import new_message

SECOND = 1_000_000_000
T = "topic"
ME = b"me"


class Case:
    """One router, its neighbours by number, and a clock."""

    def __init__(self, count: int = 0, *, joined: bool = True, outbound: int = 0, **options: object) -> None:
        settings = options.pop("settings", GossipSettings())
        assert isinstance(settings, GossipSettings)
        self.now = 1000 * SECOND
        self.verdict = Verdict.ACCEPT
        options.setdefault("verify", None)
        self.router = Router(
            ME,
            settings=settings,
            rng=random.Random(1),
            now=self.now,
            sign=None,
            validate=lambda forwarder, message: self.verdict,
            **options,  # type: ignore[arg-type]
        )
        if joined:
            self.router.join(T, now=self.now)
        for number in range(count):
            self.connect(number, is_outbound=number < outbound)
            self.send(number, Rpc(subscriptions=((True, T),)))

    def connect(self, number: int, **options: object) -> list[Effect]:
        return self.router.peer_changed(peer(number), connected=True, now=self.now, **options)  # type: ignore[arg-type]

    def send(self, number: int, rpc: Rpc) -> list[Effect]:
        return self.router.receive(peer(number), rpc, now=self.now)

    def beat(self, count: int = 1) -> list[Effect]:
        effects: list[Effect] = []
        for _ in range(count):
            self.now += SECOND
            effects += self.router.on_time(now=self.now)
        return effects

    def score(self, number: int) -> float:
        return self.router.score(peer(number))

    @property
    def mesh(self) -> list[int]:
        return [int(p[5:]) for p in self.router.state.mesh[T]]


def peer(number: int) -> bytes:
    return b"peer-%d" % number


def message(number: int = 0, *, source: bytes = b"somebody", size: int = 10, topic: str = T) -> Message:
    return new_message(source=source, data=b"%d" % number + bytes(size), seqno=b"%08d" % number, topic=topic)


def publishing(number: int = 0, **options: object) -> Rpc:
    return Rpc(messages=(message(number, **options),))  # type: ignore[arg-type]


def sends(effects: list[Effect], field: str) -> dict[bytes, list[object]]:
    """Peer → everything of one kind that is sent to it."""
    found: dict[bytes, list[object]] = {}
    for effect in effects:
        if isinstance(effect, Send):
            for target in effect.peers:
                for item in getattr(effect.rpc, field):
                    found.setdefault(target, []).append(item)
    return found


# --- v1.0 ----------------------------------------------------------------------------------------------------


def test_a_new_peer_is_told_our_topics() -> None:
    """v1.0, Ambient Peer Discovery: "a hello packet that announces the topics"."""
    assert sends(Case().connect(1), "subscriptions") == {peer(1): [(True, T)]}


def test_a_peer_whose_stream_was_opened_anew_hears_topics_and_grafts_again() -> None:
    """v1.0, Ambient Peer Discovery; ours: nobody is left deaf when a stream is lost."""
    case = Case(1)
    case.beat()
    again = case.connect(0)
    assert sends(again, "subscriptions") == {peer(0): [(True, T)]}
    assert sends(again, "graft") == {peer(0): [T]}


def test_joining_announces_to_everybody_and_grafts_up_to_d_members() -> None:
    """v1.0, Topic Membership, JOIN."""
    case = Case(10, joined=False)
    case.connect(99)
    effects = case.router.join(T, now=case.now)
    assert set(sends(effects, "subscriptions")) == {peer(n) for n in [*range(10), 99]}
    grafted = sends(effects, "graft")
    assert len(grafted) == 6
    assert peer(99) not in grafted


def test_joining_takes_over_the_fanout() -> None:
    """v1.0, Topic Membership: "the router will move those peers from the fanout map to mesh[topic]"."""
    case = Case(20, joined=False)
    case.router.publish(T, b"x", now=case.now)
    fanout = list(case.router.state.fanout[T])
    case.router.join(T, now=case.now)
    assert list(case.router.state.mesh[T]) == fanout
    assert T not in case.router.state.fanout


def test_leaving_announces_and_prunes_the_mesh_with_a_short_backoff() -> None:
    """v1.0, Topic Membership, LEAVE."""
    case = Case(3)
    case.beat()
    effects = case.router.leave(T, now=case.now)
    assert set(sends(effects, "subscriptions")) == {peer(n) for n in range(3)}
    assert sends(effects, "prune") == {peer(n): [Prune(T, 10)] for n in range(3)}
    assert T not in case.router.state.mesh


def test_a_valid_message_is_delivered_once_and_forwarded_to_the_mesh_but_not_back() -> None:
    """v1.0, Message Processing."""
    case = Case(4)
    case.beat()
    effects = case.send(0, publishing())
    assert [e.forwarder for e in effects if isinstance(e, Deliver)] == [peer(0)]
    assert set(sends(effects, "messages")) == {peer(1), peer(2), peer(3)}
    assert case.send(1, publishing()) == []


def test_a_message_is_not_sent_back_to_its_source() -> None:
    """v1.0, floodsub: "never forwards a message back to the source or the peer that forwarded"."""
    case = Case(4)
    case.beat()
    assert peer(2) not in sends(case.send(0, publishing(source=peer(2))), "messages")


def test_our_own_message_that_comes_back_is_not_delivered_or_forwarded() -> None:
    """v1.0, Message Processing: "if the router receives a message that it published itself"."""
    case = Case(4)
    case.beat()
    assert case.send(0, publishing(source=ME)) == []


def test_a_message_of_a_topic_we_are_not_in_is_not_forwarded() -> None:
    """v1.0, Message Processing."""
    case = Case(4)
    assert case.send(0, publishing(topic="other")) == []


def test_the_heartbeat_fills_a_mesh_under_d_low_to_d() -> None:
    """v1.0, Mesh Maintenance."""
    case = Case(10)
    effects = case.beat()
    assert len(case.mesh) == 6
    assert set(sends(effects, "graft")) == {peer(n) for n in case.mesh}


def test_the_heartbeat_shrinks_a_mesh_over_d_high_to_d() -> None:
    """v1.0, Mesh Maintenance; v1.1, PRUNE Backoff: the PRUNE says for how long."""
    case = Case(14, outbound=14)
    for number in range(14):
        case.send(number, Rpc(graft=(T,)))
    assert len(case.mesh) == 14
    effects = case.beat()
    assert len(case.mesh) == 6
    pruned = sends(effects, "prune")
    assert len(pruned) == 8
    assert all(isinstance(p, Prune) and p.backoff_s == 60 for (p,) in pruned.values())


def test_a_graft_adds_the_sender_and_a_prune_removes_it() -> None:
    """v1.0, Message Processing, GRAFT and PRUNE."""
    case = Case(1)
    assert case.send(0, Rpc(graft=(T,))) == []
    assert case.mesh == [0]
    case.send(0, Rpc(prune=(Prune(T),)))
    assert case.mesh == []


def test_a_peer_that_unsubscribes_or_disconnects_leaves_the_mesh() -> None:
    """v1.0, Peering State."""
    case = Case(2)
    case.beat()
    case.send(0, Rpc(subscriptions=((False, T),)))
    assert case.mesh == [1]
    case.router.peer_changed(peer(1), connected=False, now=case.now)
    assert case.mesh == []


def test_gossip_goes_to_members_outside_the_mesh_for_three_heartbeats() -> None:
    """v1.0, Gossip Emission and Message Cache (`mcache_gossip`)."""
    case = Case(12)
    case.beat()
    case.send(case.mesh[0], publishing())
    outside = {peer(n) for n in range(12)} - set(case.router.state.mesh[T])
    for _ in range(3):
        assert set(sends(case.beat(), "ihave")) == outside
    assert sends(case.beat(), "ihave") == {}


def test_a_peer_that_comes_into_the_mesh_is_told_of_what_was_heard_just_before() -> None:
    """Ours: else what came before the mesh stood would reach nobody. Piggybacked as v1.0 allows."""
    case = Case(2)
    case.send(0, publishing(1))
    (known,) = case.router.state.cache.gossip_ids(T)
    assert sends(case.beat(), "ihave")[peer(1)] == [(T, (known,))]
    case.connect(2)
    assert sends(case.send(2, Rpc(graft=(T,))), "ihave") == {peer(2): [(T, (known,))]}
    assert case.send(2, Rpc(graft=(T,))) == []


def test_what_an_ihave_names_and_we_lack_is_asked_for_once() -> None:
    """v1.0, Message Processing, IHAVE."""
    case = Case(2)
    case.beat()
    case.send(0, publishing(1))
    (known,) = case.router.state.cache.gossip_ids(T)
    effects = case.send(0, Rpc(ihave=((T, (b"new", known)),)))
    assert sends(effects, "iwant") == {peer(0): [b"new"]}


def test_a_missing_message_is_asked_of_two_peers_at_a_time_and_of_others_when_it_does_not_come() -> None:
    """v1.0, Message Processing, IHAVE. Ours: one liar cannot suppress a message, six honest peers not send six."""
    case = Case(4)
    asked = [bool(case.send(n, Rpc(ihave=((T, (b"new",)),)))) for n in range(3)]
    assert asked == [True, True, False]
    case.beat(3)
    assert case.send(3, Rpc(ihave=((T, (b"new",)),))) != []


def test_an_iwant_is_answered_from_the_cache_while_the_message_is_there() -> None:
    """v1.0, Message Processing, IWANT; Message Cache (`mcache_len`)."""
    case = Case(2)
    case.beat()
    case.send(0, publishing(1))
    (known,) = case.router.state.cache.gossip_ids(T)
    answer = sends(case.send(1, Rpc(iwant=(known, b"unknown"))), "messages")
    assert [m.seqno for m in answer[peer(1)]] == [b"00000001"]  # type: ignore[attr-defined]
    case.beat(5)
    assert sends(case.send(1, Rpc(iwant=(known,))), "messages") == {}


def test_a_seen_message_is_remembered_for_two_minutes() -> None:
    """v1.0, Message Cache, `seen_ttl`."""
    case = Case(2)
    case.beat()
    case.send(0, publishing())
    case.beat(118)
    assert case.send(1, publishing()) == []
    case.beat(3)
    assert case.send(1, publishing()) != []


def test_publishing_without_subscription_uses_a_fanout_that_expires() -> None:
    """v1.0, Message Processing and Fanout Maintenance."""
    case = Case(10, joined=False, settings=GossipSettings(flood_publish=False))
    (effect,) = case.router.publish(T, b"x", now=case.now)
    assert isinstance(effect, Send)
    assert len(effect.peers) == 6
    case.beat(59)
    assert T in case.router.state.fanout
    case.beat(2)
    assert T not in case.router.state.fanout


def test_the_fanout_is_kept_at_d_peers() -> None:
    """v1.0, Fanout Maintenance."""
    case = Case(10, joined=False)
    case.router.publish(T, b"x", now=case.now)
    for gone in list(case.router.state.fanout[T])[:3]:
        case.router.peer_changed(gone, connected=False, now=case.now)
    case.beat()
    assert len(case.router.state.fanout[T]) == 6


# --- v1.1: peering, prune, exchange ---------------------------------------------------------------------------


def explicit(count: int = 8) -> Case:
    return Case(count, settings=GossipSettings(explicit_peers=(peer(0),)))


def test_explicit_peers_stay_outside_the_mesh_and_get_every_message() -> None:
    """v1.1, Explicit Peering Agreements."""
    case = explicit()
    case.beat()
    assert 0 not in case.mesh
    assert peer(0) in sends(case.send(1, publishing()), "messages")


def test_a_graft_from_an_explicit_peer_is_answered_with_a_prune() -> None:
    """v1.1, Explicit Peering Agreements: "It is an error to GRAFT on a explicit peer"."""
    case = explicit()
    assert sends(case.send(0, Rpc(graft=(T,))), "prune") == {peer(0): [Prune(T, 60)]}
    assert 0 not in case.mesh


def test_rpcs_of_explicit_peers_are_accepted_whatever_their_score() -> None:
    """v1.1, Explicit Peering Agreements: "incoming RPCs are always accepted from them"."""
    case = explicit()
    case.router.misbehaved(peer(0), amount=50)
    assert case.score(0) < -80
    assert any(isinstance(e, Deliver) for e in case.send(0, publishing()))
    assert not any(isinstance(e, Disconnect) for e in case.beat())


def test_a_pruned_peer_is_not_grafted_again_before_its_backoff() -> None:
    """v1.1, PRUNE Backoff: "The peer has to wait the full backoff period … plus some slack"."""
    case = Case(1)
    case.send(0, Rpc(prune=(Prune(T, 30),)))
    case.beat(30)
    assert case.mesh == []
    case.beat(2)
    assert case.mesh == [0]


def test_a_graft_within_the_backoff_is_pruned_and_costs_score() -> None:
    """v1.1, PRUNE Backoff: "will immediately prune a GRAFT within the backoff period and extend it"."""
    case = Case(1)
    case.beat()
    case.router.leave(T, now=case.now)
    case.router.join(T, now=case.now)
    for _ in range(3):
        assert set(sends(case.send(0, Rpc(graft=(T,))), "prune")) == {peer(0)}
    assert case.mesh == []
    assert case.score(0) < 0
    assert case.router.state.backoffs.until(T, peer(0)) == case.now + 60 * SECOND


def test_an_oversubscribed_mesh_prunes_with_other_peers_to_turn_to() -> None:
    """v1.1, Peer Exchange: "the pruning peer may provide a set of other peers"."""
    case = Case(13, peer_record=lambda p: b"record of " + p)
    for number in range(13):
        refused = case.send(number, Rpc(graft=(T,)))
    (pruned,) = sends(refused, "prune")[peer(12)]
    assert isinstance(pruned, Prune)
    assert len(pruned.peers) == 12
    assert all(record == b"record of " + other for other, record in pruned.peers)
    assert peer(12) not in dict(pruned.peers)


def test_peers_with_a_negative_score_are_neither_given_nor_named_in_exchange() -> None:
    """v1.1, Score Thresholds: baseline 0."""
    case = Case(14)
    case.router.misbehaved(peer(5), amount=4)
    case.router.misbehaved(peer(13), amount=4)
    for number in range(13):
        refused = case.send(number, Rpc(graft=(T,)))
    for pruned in (p for list_ in sends(refused, "prune").values() for p in list_):
        assert isinstance(pruned, Prune)
        assert peer(5) not in dict(pruned.peers)
    assert sends(case.send(13, Rpc(graft=(T,))), "prune") == {peer(13): [Prune(T, 60)]}


@pytest.mark.parametrize(("first_deliveries", "expected"), [(0, 0), (15, 8)])
def test_exchanged_peers_are_dialled_only_when_a_good_peer_names_them(first_deliveries: int, expected: int) -> None:
    """v1.1, Score Thresholds: acceptPXThreshold. Ours: at most eight, none that is connected."""
    case = Case(2)
    for number in range(first_deliveries):
        case.send(0, publishing(number))
    case.beat()
    offered = tuple((b"new-%d" % n, b"record") for n in range(20))
    effects = case.send(0, Rpc(prune=(Prune(T, 60, ((peer(1), b""), *offered)),)))
    dials = [e for e in effects if isinstance(e, Dial)]
    assert len(dials) == expected
    assert peer(1) not in [d.peer for d in dials]


def test_our_own_message_goes_to_everybody_in_the_topic() -> None:
    """v1.1, Flood Publishing."""
    case = Case(10)
    case.beat()
    case.router.misbehaved(peer(3), amount=6)
    assert case.score(3) < -50
    (effect,) = case.router.publish(T, b"x", now=case.now)
    assert isinstance(effect, Send)
    assert set(effect.peers) == {peer(n) for n in range(10) if n != 3}


def test_gossip_reaches_a_quarter_of_many_peers() -> None:
    """v1.1, Adaptive Gossip Dissemination."""
    case = Case(106)
    case.beat()
    case.send(case.mesh[0], publishing())
    assert len(sends(case.beat(), "ihave")) == 25


def test_an_oversubscribed_mesh_takes_grafts_only_on_connections_that_we_made() -> None:
    """v1.1, Outbound Mesh Quotas: "it only accepts the new peer in the mesh if it is an outbound connection"."""
    case = Case(12)
    for number in range(12):
        case.send(number, Rpc(graft=(T,)))
    case.connect(50)
    case.connect(51, is_outbound=True)
    assert sends(case.send(50, Rpc(graft=(T,))), "prune") != {}
    assert case.send(51, Rpc(graft=(T,))) == []
    assert len(case.mesh) == 13


def test_a_full_enough_mesh_without_outbound_peers_gets_some() -> None:
    """v1.1, Outbound Mesh Quotas: "selects as many needed peers to fill the quota"."""
    case = Case(5)
    case.beat()
    for number in (20, 21, 22):
        case.connect(number, is_outbound=True)
        case.send(number, Rpc(subscriptions=((True, T),)))
    case.beat()
    assert len([n for n in case.mesh if n >= 20]) == 2


def test_shrinking_keeps_the_best_scores_and_the_outbound_quota() -> None:
    """v1.1, Heartbeat Maintenance."""
    case = Case(16, outbound=2)
    for number in range(2, 6):
        for n in range(10):
            case.send(number, publishing(100 * number + n))
    for number in [*range(2, 16), 0, 1]:
        case.send(number, Rpc(graft=(T,)))
    case.beat()
    assert len(case.mesh) == 6
    assert {2, 3, 4, 5} <= set(case.mesh)
    assert {0, 1} <= set(case.mesh)


def test_peers_with_a_negative_score_leave_the_mesh_and_are_not_taken_back() -> None:
    """v1.1, Heartbeat Maintenance: "Peers with negative score are pruned from all meshes"."""
    case = Case(6)
    case.beat()
    case.router.misbehaved(peer(2), amount=4)
    effects = case.beat()
    assert 2 not in case.mesh
    assert sends(effects, "prune") == {peer(2): [Prune(T, 60)]}
    assert sends(case.send(2, Rpc(graft=(T,))), "prune") != {}


def test_an_underperforming_mesh_takes_in_better_peers_once_a_minute() -> None:
    """v1.1, Opportunistic Grafting."""
    case = Case(6)
    case.beat()
    assert len(case.mesh) == 6
    for number in (10, 11, 12):
        case.connect(number)
        case.send(number, Rpc(subscriptions=((True, T),)))
    case.beat(57)
    for n in range(30):
        case.send(10 + n % 3, publishing(n))
    case.beat(2)
    assert len([n for n in case.mesh if n >= 10]) == 2


# --- v1.1: thresholds and spam --------------------------------------------------------------------------------


def test_no_gossip_goes_to_or_is_taken_from_peers_below_the_gossip_threshold() -> None:
    """v1.1, Score Thresholds: gossipThreshold."""
    case = Case(12)
    case.beat()
    outside = next(n for n in range(12) if n not in case.mesh)
    case.send(case.mesh[0], publishing())
    (known,) = case.router.state.cache.gossip_ids(T)
    case.router.misbehaved(peer(outside), amount=4)
    assert -50 < case.score(outside) < -10
    assert case.send(outside, Rpc(iwant=(known,), ihave=((T, (b"new",)),))) == []
    assert peer(outside) not in sends(case.beat(), "ihave")


def test_rpcs_of_graylisted_peers_are_ignored_and_the_worst_are_disconnected() -> None:
    """v1.1, Score Thresholds: graylistThreshold."""
    case = Case(2)
    case.router.misbehaved(peer(0), amount=7)
    assert case.send(0, publishing()) == []
    case.router.misbehaved(peer(0), amount=5)
    assert Disconnect(peer(0), "score") in case.beat()


def test_a_graft_for_an_unknown_topic_is_ignored() -> None:
    """v1.1, Spam Protection Measures: "GRAFT messages for unknown topics are ignored"."""
    assert Case(1).send(0, Rpc(graft=tuple(f"t{n}" for n in range(100)))) == []


def test_one_message_is_sent_at_most_three_times_to_a_peer_that_keeps_asking() -> None:
    """v1.1, Spam Protection Measures: IWANT."""
    case = Case(2)
    case.beat()
    case.send(0, publishing())
    (known,) = case.router.state.cache.gossip_ids(T)
    assert [len(case.send(1, Rpc(iwant=(known,) * 50))) for _ in range(5)] == [1, 1, 1, 0, 0]


def test_ihave_messages_and_ids_are_capped_per_heartbeat() -> None:
    """v1.1, Spam Protection Measures: IHAVE."""
    case = Case(1, settings=GossipSettings(ihave_ids_max=100))
    asked = 0
    for n in range(30):
        ids = tuple(b"%d-%d" % (n, k) for k in range(20))
        asked += sum(len(v) for v in sends(case.send(0, Rpc(ihave=((T, ids),))), "iwant").values())
    assert asked == 100
    case.beat()
    few = [bool(case.send(0, Rpc(ihave=((T, (b"more-%d" % n,)),)))) for n in range(12)]
    assert few == [True] * 10 + [False] * 2


def test_a_peer_that_offers_and_does_not_deliver_loses_score() -> None:
    """v1.1, Spam Protection Measures: "a behavioural penalty is applied to the advertising peer through P₇"."""
    case = Case(1)
    for n in range(4):
        case.send(0, Rpc(ihave=((T, (b"never-%d" % n,)),)))
    case.beat(4)
    assert case.router.counters.promises_broken == 4
    assert case.score(0) < 0


def test_a_promise_is_kept_by_whoever_brings_the_message() -> None:
    """v1.1, Spam Protection Measures: "If the message is not received (from any peer)"."""
    case = Case(2)
    case.beat()
    coming = message(7)
    message_id = case.router._message_id(coming)
    case.send(0, Rpc(ihave=((T, (message_id,)),)))
    case.send(1, Rpc(messages=(coming,)))
    case.beat(5)
    assert case.router.counters.promises_broken == 0


def test_verdicts_deliver_drop_or_blame() -> None:
    """v1.1, Extended Validators."""
    case = Case(4)
    case.beat()
    case.verdict = Verdict.IGNORE
    assert case.send(0, publishing(1)) == []
    assert case.score(0) >= 0
    case.verdict = Verdict.REJECT
    assert case.send(0, publishing(2)) == []
    assert case.score(0) < -5
    case.verdict = Verdict.ACCEPT
    assert case.send(1, publishing(2)) == [], "a judged message is not judged again"


def test_a_verdict_may_come_later() -> None:
    """v1.1, Extended Validators; ours: PENDING."""
    case = Case(4)
    case.beat()
    case.verdict = Verdict.PENDING
    pending = message(1)
    assert case.send(0, Rpc(messages=(pending,))) == []
    assert case.send(1, Rpc(messages=(pending,))) == []
    assert pending.id is not None
    effects = case.router.verdict(pending.id, Verdict.ACCEPT, now=case.now)
    assert [e.forwarder for e in effects if isinstance(e, Deliver)] == [peer(0)]
    assert case.router.verdict(pending.id, Verdict.ACCEPT, now=case.now) == []


def test_a_verdict_that_never_comes_is_forgotten() -> None:
    case = Case(4)
    case.beat()
    case.verdict = Verdict.PENDING
    pending = message(1)
    case.send(0, Rpc(messages=(pending,)))
    case.beat(32)
    assert pending.id is not None
    assert case.router.verdict(pending.id, Verdict.ACCEPT, now=case.now) == []


def test_a_message_with_a_false_signature_is_not_delivered_and_a_good_copy_still_is() -> None:
    """pubsub/README.md, Message Signature Policies: StrictSign; rule G1: a bad first copy suppresses nothing."""
    good = True
    case = Case(4, verify=lambda m: good)
    case.beat()
    good = False
    assert case.send(0, publishing(1)) == []
    assert case.score(0) < 0
    good = True
    assert case.send(1, publishing(1)) != []


def test_first_copies_over_a_forwarders_rate_are_dropped_and_not_remembered() -> None:
    """Ours: a token bucket per forwarder and per topic (rule G1)."""
    case = Case(2, settings=GossipSettings(messages_per_topic_per_s=1, messages_per_topic_burst=5))
    case.beat()
    delivered = [bool(case.send(0, publishing(n))) for n in range(8)]
    assert delivered == [True] * 5 + [False] * 3
    assert case.router.counters.over_rate == 3
    assert case.send(1, publishing(7)) != [], "another peer's copy passes"
    assert case.score(0) >= 0, "an honest forwarder of a flood is not blamed"


def test_a_local_message_over_the_bound_is_refused_and_nothing_changes() -> None:
    case = Case(1)
    with pytest.raises(MessageTooLong):
        case.router.publish(T, bytes(70_000), now=case.now)
    assert case.router.counters.published == 0


def test_topics_of_a_peer_are_bounded() -> None:
    case = Case(1, settings=GossipSettings(topics_per_peer_max=10))
    case.send(0, Rpc(subscriptions=tuple((True, f"t{n}") for n in range(500))))
    assert len(case.router.state.topics) <= 11


def test_gossip_peers_are_bounded() -> None:
    case = Case(0, settings=GossipSettings(peers_max=2))
    case.connect(0)
    case.connect(1)
    assert case.connect(2) == [Disconnect(peer(2), "too many gossip peers")]
    assert case.send(2, publishing()) == []


# --- v1.2 ----------------------------------------------------------------------------------------------------


def test_mesh_peers_are_told_at_once_that_a_large_message_is_here() -> None:
    """v1.2, IDONTWANT Message: "it immediately broadcasts IDONTWANT"."""
    case = Case(3)
    case.connect(1, has_idontwant=True)
    case.beat()
    effects = case.send(0, publishing(1, size=5000))
    assert set(sends(effects, "idontwant")) == {peer(1)}
    assert sends(case.send(0, publishing(2, size=10)), "idontwant") == {}


def test_a_message_that_a_peer_does_not_want_is_not_sent_to_it() -> None:
    """v1.2: "the peers found in dont_send_message_ids MUST be skipped"; pruned during heartbeats."""
    case = Case(3)
    case.beat()
    coming = message(1)
    message_id = case.router._message_id(coming)
    case.send(1, Rpc(idontwant=(message_id,)))
    assert set(sends(case.send(0, Rpc(messages=(coming,))), "messages")) == {peer(2)}
    case.beat(4)
    assert case.router.state.neighbours[peer(1)].dont_send == {}


def test_idontwant_ids_are_bounded_per_heartbeat() -> None:
    """v1.2: "To prevent DoS the number of IDONTWANT control messages is limited"."""
    case = Case(1)
    for n in range(5):
        case.send(0, Rpc(idontwant=tuple(b"%d-%d" % (n, k) for k in range(400))))
    assert len(case.router.state.neighbours[peer(0)].dont_send) == 1000


# --- determinism ---------------------------------------------------------------------------------------------


def test_the_same_seed_and_inputs_give_the_same_effects() -> None:
    def trace() -> list[Effect]:
        case = Case(40)
        effects = case.beat(3)
        for n in range(20):
            effects += case.send(n, publishing(n))
        return effects + case.beat(3)

    assert [repr(e) for e in trace()] == [repr(e) for e in trace()]


# --- scores --------------------------------------------------------------------------------------------------


def scored(topic: TopicScore, **options: object) -> Case:
    score = ScoreSettings(topic_default=topic, **options)  # type: ignore[arg-type]
    return Case(2, settings=GossipSettings(score=score, degree_low=0, degree=0, degree_out=0))


NOTHING = TopicScore(
    time_in_mesh_weight=0, first_deliveries_weight=0, mesh_deliveries_weight=0, mesh_failure_weight=0, invalid_weight=0
)


def test_p1_time_in_mesh_grows_to_its_cap() -> None:
    """v1.1, P₁."""
    case = scored(replace(NOTHING, time_in_mesh_weight=2.0, time_in_mesh_cap=5))
    case.send(0, Rpc(graft=(T,)))
    case.beat(3)
    assert case.score(0) == 6.0
    case.beat(10)
    assert case.score(0) == 10.0
    assert case.score(1) == 0.0


def test_p2_first_deliveries_count_to_a_cap_and_decay() -> None:
    """v1.1, P₂ and Parameter Decay."""
    case = scored(replace(NOTHING, first_deliveries_weight=1.0, first_deliveries_cap=5, first_deliveries_decay=0.5))
    for n in range(9):
        case.send(0, publishing(n))
    case.beat()
    assert case.score(0) == 2.5
    case.beat(20)
    assert case.score(0) == 0.0


def mesh_delivery_case() -> Case:
    case = scored(
        replace(
            NOTHING,
            mesh_deliveries_weight=-1.0,
            mesh_deliveries_threshold=4,
            mesh_deliveries_activation_s=5,
            mesh_deliveries_decay=0.9,
            mesh_failure_weight=-1.0,
            mesh_failure_decay=0.9,
        )
    )
    case.send(0, Rpc(graft=(T,)))
    case.send(1, Rpc(graft=(T,)))
    return case


def test_p3_a_mute_mesh_peer_is_penalised_by_the_square_of_its_deficit_once_active() -> None:
    """v1.1, P₃."""
    case = mesh_delivery_case()
    case.beat(5)
    assert case.score(0) == 0.0
    case.beat(1)
    assert case.score(0) == -16.0


def test_p3_first_and_near_first_deliveries_count_once_and_late_ones_do_not() -> None:
    """v1.1, P₃: "received within a configurable window of validation of first message delivery"."""
    case = mesh_delivery_case()
    for n in range(8):
        case.send(0, publishing(n))
        case.send(1, publishing(n))
        case.send(1, publishing(n))
    counters = case.router.state.neighbours[peer(1)].score.topics[T]
    assert counters.mesh_deliveries == 8
    case.now += SECOND // 10
    case.send(1, publishing(7))
    assert counters.mesh_deliveries == 8


def test_p3b_a_peer_pruned_with_a_deficit_cannot_come_back_clean() -> None:
    """v1.1, P₃b: "so that a peer that was pruned because of underdelivery cannot quickly get re-grafted"."""
    case = mesh_delivery_case()
    case.beat(6)
    case.beat(1)
    assert 0 not in case.mesh
    assert -16 < case.score(0) < -10


def test_p4_invalid_messages_count_squared() -> None:
    """v1.1, P₄."""
    case = scored(replace(NOTHING, invalid_weight=-1.0))
    case.verdict = Verdict.REJECT
    for n in range(3):
        case.send(0, publishing(n))
    assert case.score(0) == -9.0


def test_p5_the_application_has_its_say() -> None:
    """v1.1, P₅."""
    case = Case(2, application_score=lambda p: -7.0 if p == peer(0) else 3.0)
    case.beat()
    assert case.score(0) == -7.0
    assert case.score(1) >= 3.0


def test_p6_many_peers_on_one_address_are_penalised_by_the_square_of_the_surplus() -> None:
    """v1.1, P₆."""
    case = Case(0)
    for number in range(10):
        case.connect(number, address="192.0.2.1")
    case.connect(10, address="192.0.2.2")
    assert [case.score(n) for n in (0, 9, 10)] == [-20.0, -20.0, 0.0]
    case.router.peer_changed(peer(9), connected=False, now=case.now)
    case.beat()
    assert case.score(0) == -5.0


def test_p7_misbehaviour_counts_squared_over_a_threshold_and_decays() -> None:
    """v1.1, P₇."""
    case = Case(1)
    case.router.misbehaved(peer(0), amount=2)
    assert case.score(0) == 0.0
    case.router.misbehaved(peer(0), amount=2)
    assert case.score(0) == -20.0
    case.beat(60)
    assert case.score(0) >= 0


def test_the_sum_over_topics_is_capped() -> None:
    """v1.1, The Score Function: TopicCap."""
    case = scored(replace(NOTHING, first_deliveries_weight=10.0), topic_score_cap=30.0)
    for n in range(20):
        case.send(0, publishing(n))
    case.beat()
    assert case.score(0) == 30.0


def test_a_bad_score_survives_a_reconnect_and_a_good_one_does_not() -> None:
    """v1.1, Peer Scoring: "the score is retained for some period of time when a peer disconnects"."""
    case = Case(2)
    for n in range(10):
        case.send(1, publishing(n))
    case.beat()
    assert case.score(1) > 5
    case.router.misbehaved(peer(0), amount=5)
    for number in (0, 1):
        case.router.peer_changed(peer(number), connected=False, now=case.now)
        case.connect(number)
    assert case.score(0) < -30
    assert case.score(1) == 0
