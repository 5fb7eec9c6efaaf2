"""A gossipsub router as a pure machine: RPCs, peers and time in; effects out.

    router = Router(me, settings=…, rng=random.Random(seed), sign=…, verify=…, validate=…, now=now)
    effects = router.peer_changed(peer, connected=True, now=now, address="192.0.2.1", is_outbound=True)
    effects = router.receive(peer, rpc, now=now)
    effects = router.on_time(now=now)                  # when deadline() has passed
    effects = router.join(topic, now=now)              # also leave, publish, verdict

`/meshsub/1.1.0` and `/meshsub/1.2.0`; sources are quoted where they are implemented. A received message is
checked in the order of rule G1: size and shape (the codec), duplicate, the forwarder's rate, signature, validator.

Not here: encoding, streams, queues, clocks, threads, floodsub and gossipsub 1.0 peers.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from p2p.gossip.cache import TokenBucket
from p2p.gossip.control import handle_control
from p2p.gossip.mesh import Outbox, graft, heartbeat, news_for, prune_message
from p2p.gossip.messages import SIGN_PREFIX, Message, Rpc, id_of_whole_message, new_message, with_signature
from p2p.gossip.score import Scores, no_application_score
from p2p.gossip.settings import NANOSECONDS, GossipSettings
from p2p.gossip.state import Counters, Deliver, Disconnect, Effect, Neighbour, RouterState, Send
from p2p.randomness import Randomness


class Verdict(Enum):
    """v1.1 "Extended Validators", and one more: the validator will answer later, through `Router.verdict`."""

    ACCEPT = "accept"
    REJECT = "reject"
    IGNORE = "ignore"
    PENDING = "pending"


Validate = Callable[[bytes, Message], Verdict]
"""(forwarding peer, message) → verdict, at once. REJECT only what every peer judges alike."""


def accept_all(forwarder: bytes, message: Message) -> Verdict:
    return Verdict.ACCEPT


class MessageTooLong(ValueError):
    """The local program wants to publish more than a message may hold."""


class Router:
    def __init__(
        self,
        me: bytes,
        *,
        settings: GossipSettings,
        rng: Randomness,
        now: int,
        sign: Callable[[bytes], bytes] | None,
        verify: Callable[[Message], bool] | None,
        validate: Validate = accept_all,
        message_id: Callable[[Message], bytes] = id_of_whole_message,
        application_score: Callable[[bytes], float] = no_application_score,
        peer_record: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """`me`: our peer id's bytes. `sign` and `verify` are None only where messages need no signature: in a
        simulation. `peer_record(peer)`: its signed record for peer exchange, b"" when there is none.
        """
        self._me = me
        self._settings = settings
        self._sign = sign
        self._verify = verify
        self._validate = validate
        self._message_id = message_id
        self._explicit = dict.fromkeys(settings.explicit_peers)
        self._last_seqno = now
        self._pending: dict[bytes, tuple[bytes, Message, int]] = {}  # id → forwarder, message, since
        self._near_first: dict[bytes, dict[bytes, None]] = {}  # id → peers already counted for P3
        scores = Scores(settings.score, application=application_score)
        self.state = RouterState(me, settings, rng=rng, scores=scores, peer_record=peer_record, now=now)

    @property
    def counters(self) -> Counters:
        return self.state.counters

    def deadline(self) -> int:
        return self.state.next_heartbeat

    def score(self, peer: bytes) -> float:
        neighbour = self.state.neighbours.get(peer)
        return 0.0 if neighbour is None else neighbour.score.value

    # --- peers ---------------------------------------------------------------------------------------------

    def peer_changed(
        self,
        peer: bytes,
        *,
        connected: bool,
        now: int,
        address: str | None = None,
        is_outbound: bool = False,
        has_idontwant: bool = False,
    ) -> list[Effect]:
        """Say so at the first stream of either direction: what arrives from an unknown peer is lost.

        A new peer gets "a hello packet that announces the topics". Call again with connected=True when a stream
        had to be opened anew, or something of ours was dropped: the hello is repeated, and with it all that may have
        been lost: topics left, grafts, and (as IHAVE) what was heard lately in the meshes that the peer is in.
        """
        state = self.state
        neighbour = state.neighbours.get(peer)
        if not connected:
            if neighbour is not None:
                for topic in list(neighbour.topics):
                    state.unsubscribed(neighbour, topic)
                del state.neighbours[peer]
                state.scores.disconnect(peer, now=now)
            return []
        if neighbour is None:
            if len(state.neighbours) >= self._settings.peers_max:
                return [Disconnect(peer, "too many gossip peers")]
            state.neighbours[peer] = Neighbour(
                peer,
                score=state.scores.connect(peer, address),
                is_outbound=is_outbound,
                has_idontwant=has_idontwant,
                is_explicit=peer in self._explicit,
            )
            topics = [(True, topic) for topic in state.mesh]
            return [Send((peer,), Rpc(subscriptions=tuple(topics)))] if topics else []
        neighbour.has_idontwant = neighbour.has_idontwant or has_idontwant
        neighbour.is_outbound = neighbour.is_outbound or is_outbound
        topics = [*((False, topic) for topic in state.left), *((True, topic) for topic in state.mesh)]
        grafts = [topic for topic, mesh in state.mesh.items() if peer in mesh]
        news = [entry for topic in grafts for entry in news_for(state, topic)]
        if not topics:
            return []
        return [Send((peer,), Rpc(subscriptions=tuple(topics), graft=tuple(grafts), ihave=tuple(news)))]

    def misbehaved(self, peer: bytes, *, amount: float = 1.0) -> None:
        """The driver saw something that an honest peer does not do, such as bytes that are no RPC (P7)."""
        neighbour = self.state.neighbours.get(peer)
        if neighbour is not None:
            self.state.scores.misbehaved(peer, neighbour.score, amount)

    # --- topics --------------------------------------------------------------------------------------------

    def join(self, topic: str, *, now: int) -> list[Effect]:
        """v1.0 "Topic Membership", JOIN. Idempotent."""
        state = self.state
        if topic in state.mesh:
            return []
        state.mesh[topic] = {}
        state.left.pop(topic, None)
        outbox = Outbox()
        # "If there are peers in fanout[topic], the router will move those peers from the fanout map"
        fanout = state.fanout.pop(topic, {})
        state.fanout_published_at.pop(topic, None)
        for neighbour in fanout.values():
            if neighbour.score.value >= 0 and not neighbour.is_explicit:
                graft(state, neighbour, topic, outbox, now=now)
        mesh = state.mesh[topic]
        found = state.candidates(topic, without=mesh, now=now)
        for neighbour in state.choose(found, self._settings.degree - len(mesh)):
            graft(state, neighbour, topic, outbox, now=now)
        effects: list[Effect] = []
        if state.neighbours:
            effects.append(Send(tuple(state.neighbours), Rpc(subscriptions=((True, topic),))))
        return effects + outbox.effects()

    def leave(self, topic: str, *, now: int) -> list[Effect]:
        """LEAVE: tell everybody, prune the mesh, with a shorter backoff so that we may come back."""
        state = self.state
        mesh = state.mesh.get(topic)
        if mesh is None:
            return []
        outbox = Outbox()
        for neighbour in list(mesh.values()):
            state.leave_mesh(neighbour, topic)
            outbox.prune[neighbour.peer] = [
                prune_message(
                    state,
                    neighbour,
                    topic,
                    now=now,
                    with_px=False,
                    backoff_s=self._settings.unsubscribe_backoff_s,
                )
            ]
        del state.mesh[topic]
        state.note_left(topic)
        for neighbour in state.neighbours.values():
            neighbour.topic_buckets.pop(topic, None)
        effects: list[Effect] = []
        if state.neighbours:
            effects.append(Send(tuple(state.neighbours), Rpc(subscriptions=((False, topic),))))
        return effects + outbox.effects()

    def publish(self, topic: str, data: bytes, *, now: int) -> list[Effect]:
        """Send a message of our own. Its Send names everybody it goes to. Raises MessageTooLong."""
        if len(data) > self._settings.message_bytes_max:
            raise MessageTooLong(f"{len(data)} bytes; the bound is {self._settings.message_bytes_max}")
        state = self.state
        self._last_seqno = max(self._last_seqno + 1, now)
        message = new_message(source=self._me, data=data, seqno=self._last_seqno.to_bytes(8, "big"), topic=topic)
        if self._sign is not None:
            message = with_signature(message, self._sign(SIGN_PREFIX + message.signed))
        message_id = message.id = self._message_id(message)
        state.seen.add(message_id, now=now)
        state.cache.put(message_id, message)
        state.counters.published += 1
        peers = self._recipients_of_ours(topic, now=now)
        return [Send(peers, Rpc(messages=(message,)))] if peers else []

    def _recipients_of_ours(self, topic: str, *, now: int) -> tuple[bytes, ...]:
        state, settings = self.state, self._settings
        members = state.topics.get(topic, {})
        lowest = settings.score.publish_threshold
        if topic not in state.mesh:
            state.fanout_published_at[topic] = now
            fanout = state.fanout.setdefault(topic, {})
            if not fanout:
                found = state.candidates(topic, without=fanout, now=now)
                fanout.update({n.peer: n for n in state.choose(found, settings.degree)})
        if settings.flood_publish:
            # "publishing the message to all connected peers with a score above a publish threshold"
            return tuple(p for p, n in members.items() if n.score.value >= lowest or n.is_explicit)
        chosen = dict.fromkeys(state.mesh.get(topic) or state.fanout.get(topic, {}))
        chosen.update({peer: None for peer, n in members.items() if n.is_explicit})
        return tuple(chosen)

    # --- input ---------------------------------------------------------------------------------------------

    def receive(self, peer: bytes, rpc: Rpc, *, now: int) -> list[Effect]:
        state = self.state
        neighbour = state.neighbours.get(peer)
        if neighbour is None:
            return []
        if neighbour.score.value < self._settings.score.graylist_threshold and not neighbour.is_explicit:
            state.counters.rpcs_graylisted += 1  # "the peer is graylisted and its RPCs are ignored"
            state.scores.misbehaved(peer, neighbour.score, self._settings.graylisted_penalty)
            return []
        neighbour.mesh_changes += len(rpc.subscriptions) + len(rpc.graft) + len(rpc.prune)
        if neighbour.mesh_changes > self._settings.mesh_changes_max and not neighbour.is_explicit:
            state.scores.misbehaved(peer, neighbour.score)
            return []
        effects: list[Effect] = []
        has_room = True
        for is_subscribed, topic in rpc.subscriptions:
            if is_subscribed:
                has_room = state.subscribed(neighbour, topic) and has_room
            else:
                state.unsubscribed(neighbour, topic)
        if not has_room:  # in more topics than a peer may be
            state.scores.misbehaved(peer, neighbour.score)
        for message in rpc.messages:
            self._message(neighbour, message, now, effects)
        if rpc.graft or rpc.prune or rpc.ihave or rpc.iwant or rpc.idontwant:
            handle_control(state, neighbour, rpc, now, effects)
        return effects

    def on_time(self, *, now: int) -> list[Effect]:
        """One heartbeat when it is due. A late caller gets one, not all that were missed."""
        state = self.state
        if now < state.next_heartbeat:
            return []
        effects = heartbeat(state, now=now)
        window = max((state.scores.near_first_window(topic) for topic in state.mesh), default=0)
        for message_id in list(self._near_first):
            seen_at = state.seen.seen_at(message_id)
            if seen_at is None or now - seen_at > window:
                del self._near_first[message_id]
        overdue = now - int(self._settings.pending_ttl_s * NANOSECONDS)
        for message_id in [i for i, (_, _, since) in self._pending.items() if since < overdue]:
            del self._pending[message_id]
            state.counters.ignored += 1
        return effects

    def verdict(self, message_id: bytes, verdict: Verdict, *, now: int) -> list[Effect]:
        """The late answer of a validator that said PENDING. Unknown or expired ids are ignored."""
        pending = self._pending.pop(message_id, None)
        if pending is None:
            return []
        forwarder, message, _ = pending
        effects: list[Effect] = []
        self._judged(forwarder, message_id, message, verdict, now, effects)
        return effects

    # --- messages ------------------------------------------------------------------------------------------

    def _message(self, neighbour: Neighbour, message: Message, now: int, effects: list[Effect]) -> None:
        state = self.state
        message_id = message.id
        if message_id is None:
            message_id = message.id = self._message_id(message)
        seen_at = state.seen.seen_at(message_id)
        if seen_at is not None:
            state.counters.duplicates += 1
            self._near_first_copy(neighbour, message, message_id, now - seen_at)
            return
        topic = message.topic
        if topic not in state.mesh or message.source == self._me:
            return  # not ours to judge; "if the router receives a message that it published itself …"
        if len(message.data) > self._settings.message_bytes_max:
            self._reject(neighbour, topic)
            return
        if not self._within_rate(neighbour, topic, now):
            state.counters.over_rate += 1  # not marked as seen: another peer's copy may pass
            return
        if self._verify is not None and not self._verify(message):
            state.counters.invalid_signatures += 1
            self._reject(neighbour, topic)
            return
        verdict = self._validate(neighbour.peer, message)
        state.seen.add(message_id, now=now)
        if verdict is Verdict.PENDING:
            if len(self._pending) < self._settings.pending_max:
                self._pending[message_id] = (neighbour.peer, message, now)
            else:
                state.counters.ignored += 1
            return
        self._judged(neighbour.peer, message_id, message, verdict, now, effects)

    def _judged(
        self,
        forwarder: bytes,
        message_id: bytes,
        message: Message,
        verdict: Verdict,
        now: int,
        effects: list[Effect],
    ) -> None:
        state = self.state
        state.promises.kept(message_id)
        neighbour = state.neighbours.get(forwarder)
        if verdict is Verdict.ACCEPT:
            if neighbour is not None:
                state.scores.first_delivery(neighbour.score, message.topic)
            state.counters.delivered += 1
            state.cache.put(message_id, message)
            effects.append(Deliver(forwarder, message))
            self._forward(forwarder, message_id, message, effects)
        elif verdict is Verdict.REJECT:
            if neighbour is not None:
                self._reject(neighbour, message.topic)
        else:
            state.counters.ignored += 1

    def _forward(self, forwarder: bytes, message_id: bytes, message: Message, effects: list[Effect]) -> None:
        state, settings = self.state, self._settings
        mesh = state.mesh.get(message.topic)
        if mesh is None:
            return
        source = message.source
        if len(message.data) >= settings.idontwant_bytes_min:
            # v1.2: "it immediately broadcasts IDONTWANT with the messageId to all its mesh peers"
            told = tuple(p for p, n in mesh.items() if n.has_idontwant and p != forwarder and p != source)
            if told:
                effects.append(Send(told, Rpc(idontwant=(message_id,))))
        peers = [
            p
            for p, n in mesh.items()
            if p != forwarder and p != source and not (n.dont_send and message_id in n.dont_send)
        ]
        if self._explicit:  # "every new valid incoming message is forwarded to the direct peers"
            members = state.topics.get(message.topic, {})
            peers += [p for p in self._explicit if p in members and p != forwarder and p != source]
        if peers:
            effects.append(Send(tuple(peers), Rpc((), (message,))))

    def _reject(self, neighbour: Neighbour, topic: str) -> None:
        self.state.counters.rejected += 1
        self.state.scores.invalid_message(neighbour.peer, neighbour.score, topic)

    def _near_first_copy(self, neighbour: Neighbour, message: Message, message_id: bytes, age: int) -> None:
        """P3: "received within a configurable window of validation of first message delivery", once a peer."""
        window = self.state.scores.near_first_window(message.topic)
        if window and age <= window:
            counted = self._near_first.setdefault(message_id, {})
            if neighbour.peer not in counted:
                counted[neighbour.peer] = None
                self.state.scores.near_first_delivery(neighbour.score, message.topic)

    def _within_rate(self, neighbour: Neighbour, topic: str, now: int) -> bool:
        settings = self._settings
        if neighbour.is_explicit:
            return True
        if neighbour.bucket is None:
            neighbour.bucket = TokenBucket(
                per_s=settings.messages_per_peer_per_s, burst=settings.messages_per_peer_burst, now=now
            )
        in_topic = neighbour.topic_buckets.get(topic)
        if in_topic is None:
            in_topic = neighbour.topic_buckets[topic] = TokenBucket(
                per_s=settings.messages_per_topic_per_s, burst=settings.messages_per_topic_burst, now=now
            )
        return neighbour.bucket.take(now=now) and in_topic.take(now=now)
