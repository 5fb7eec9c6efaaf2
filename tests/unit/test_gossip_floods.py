"""A router blames whoever floods it with control messages, and lets go of whoever stays graylisted."""

from __future__ import annotations

import random

from p2p.gossip import Disconnect, Effect, GossipSettings, Prune, Router, Rpc, Send
from p2p.gossip.messages import new_message

SECOND = 1_000_000_000
TOPIC = "t"
PEER = b"peer"
SETTINGS = GossipSettings()


def router() -> Router:
    made = Router(b"me", settings=SETTINGS, rng=random.Random(1), now=0, sign=None, verify=None)
    made.join(TOPIC, now=0)
    made.peer_changed(PEER, connected=True, now=0)
    made.receive(PEER, Rpc(subscriptions=((True, TOPIC),)), now=0)
    return made


def heartbeats(subject: Router, count: int) -> list[Effect]:
    effects = []
    for _ in range(count):
        effects += subject.on_time(now=subject.deadline())
    return effects


def test_a_peer_that_stays_graylisted_for_three_heartbeats_is_disconnected() -> None:
    subject = router()
    subject.misbehaved(PEER, amount=7.5)
    assert subject.score(PEER) < SETTINGS.score.graylist_threshold
    assert not [e for e in heartbeats(subject, 2) if isinstance(e, Disconnect)]
    assert heartbeats(subject, 1)[-1] == Disconnect(PEER, "score")


def test_a_peer_that_recovers_between_its_attacks_is_disconnected_all_the_same() -> None:
    subject = router()
    for _ in range(2):
        subject.misbehaved(PEER, amount=6.3 - subject.state.neighbours[PEER].score.behaviour)
        heartbeats(subject, 1)
        assert subject.score(PEER) < SETTINGS.score.graylist_threshold
        heartbeats(subject, 20)
        assert subject.score(PEER) > SETTINGS.score.graylist_threshold
    subject.misbehaved(PEER, amount=6.3 - subject.state.neighbours[PEER].score.behaviour)
    assert heartbeats(subject, 1) == [Disconnect(PEER, "score")]


def test_a_graylisted_peer_that_goes_on_talking_falls_further() -> None:
    subject = router()
    subject.misbehaved(PEER, amount=7)
    before = subject.score(PEER)
    for _ in range(200):
        assert subject.receive(PEER, Rpc(iwant=(b"id",)), now=0) == []
    assert subject.score(PEER) < before - 50


def test_more_mesh_changes_than_any_honest_peer_makes_are_ignored_and_blamed() -> None:
    subject = router()
    for number in range(10):
        subject.receive(PEER, Rpc(prune=tuple(Prune(f"{number} {n}") for n in range(200))), now=0)
    assert subject.score(PEER) < 0
    subject = router()
    for number in range(5):
        subject.receive(PEER, Rpc(graft=tuple(f"{number} {n}" for n in range(200))), now=0)
        heartbeats(subject, 1)
    assert subject.score(PEER) >= 0, "the bound is per heartbeat"


def test_a_peer_in_more_topics_than_allowed_is_blamed_each_time() -> None:
    subject = router()
    topics = tuple((True, f"{number}") for number in range(SETTINGS.topics_per_peer_max))
    for _ in range(4):
        subject.receive(PEER, Rpc(subscriptions=topics), now=0)
        heartbeats(subject, 1)
    assert subject.score(PEER) < 0
    assert len(subject.state.topics) == SETTINGS.topics_per_peer_max


def test_a_hundred_announcements_between_heartbeats_are_ignored_and_more_are_blamed() -> None:
    subject = router()
    for _ in range(SETTINGS.ihave_messages_flood):
        subject.receive(PEER, Rpc(ihave=((TOPIC, ()),)), now=0)
    assert subject.score(PEER) == 0
    for _ in range(5):
        subject.receive(PEER, Rpc(ihave=((TOPIC, ()),)), now=0)
    assert subject.score(PEER) < 0


def test_whoever_asks_for_one_message_again_and_again_gets_three_copies_and_then_blame() -> None:
    subject = router()
    (sent,) = [e for e in subject.publish(TOPIC, b"data", now=0) if isinstance(e, Send)]
    message_id = sent.rpc.messages[0].id
    assert message_id is not None
    copies = 0
    for number in range(20):
        copies += len(subject.receive(PEER, Rpc(iwant=(message_id,)), now=0))
        if number == 2 * SETTINGS.retransmissions_max - 1:
            assert subject.score(PEER) == 0, "answers that crossed explain a few"
    assert copies == SETTINGS.retransmissions_max
    assert subject.score(PEER) < 0


def test_more_ids_than_we_ever_announce_are_not_even_looked_up() -> None:
    subject = router()
    ids = tuple(b"%d" % number for number in range(5000))
    for _ in range(6):
        subject.receive(PEER, Rpc(iwant=ids), now=0)
    assert subject.score(PEER) < 0


def test_a_repeated_hello_tells_topics_left_grafts_and_what_was_heard_lately() -> None:
    subject = router()
    subject.join("left", now=0)
    subject.leave("left", now=0)
    heartbeats(subject, 1)
    assert PEER in subject.state.mesh[TOPIC]
    message = new_message(source=b"s", data=b"d", seqno=b"n" * 8, topic=TOPIC)
    subject.receive(PEER, Rpc(messages=(message,)), now=0)
    assert message.id is not None
    (hello,) = subject.peer_changed(PEER, connected=True, now=0)
    assert hello == Send(
        (PEER,),
        Rpc(subscriptions=((False, "left"), (True, TOPIC)), graft=(TOPIC,), ihave=((TOPIC, (message.id,)),)),
    )
    subject.join("left", now=0)
    (hello,) = subject.peer_changed(PEER, connected=True, now=0)
    assert isinstance(hello, Send)
    assert hello.rpc.subscriptions == ((True, TOPIC), (True, "left"))
